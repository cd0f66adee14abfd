"""docs/configuration.md names every variable that is read, no other, and the defaults they have.

Which variables are read is found in the sources:

- Python: what is taken out of a mapping called ``environ`` or ``env``, or by a function that gets
  such a mapping and then a name; and every text that begins as our variables do.
- C: ``getenv``.  Shell: ``${NAME:-default}``.
- Make: ``NAME ?= default``, and what is used and never set.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from doc_player.document import anchors

from containerd_shim_spin_v1.settings import DEFAULT_ADDRESS
from containerd_shimkit import runtime
from containerd_shimkit.errors import ExitCode
from containerd_shimkit.node.places import find_place

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/configuration.md").read_text()
SHIMS = ("spin", "slight", "wws")

_MAPPINGS = {"environ", "env", "_env"}
_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_OURS = re.compile(r"(CONTAINERD_WASM_SHIMS|SPIN|SLIGHT|WWS|RUNTIME_CONFIG)_[A-Z0-9_]+")
# The variables of an app: each is followed by the variable's name, which the page calls NAME.
_PREFIXES = {"SPIN_VARIABLE": "SPIN_VARIABLE_NAME", "SPIN_CONFIG": "SPIN_CONFIG_NAME"}
_PLACEHOLDERS = {"NAME"}
# Set by us for a moment, and put back (host/named_user); and passed by make to a script.
_INTERNAL = {"LOGNAME", "GUESTS_PACKAGES"}
# What make sets by itself.
_MAKE_OWN = {"MAKE", "MAKEFILE_LIST", "CURDIR"}
_MAKEFILES = (
    "Makefile",
    "images/guests.mk",
    "containerd-shim-wws-v1/engines/engines.mk",
    "deployments/k3d/Makefile",
)


@dataclass(frozen=True)
class Row:
    """A variable of the page."""

    name: str
    default: str
    """The first thing in backticks of its column, else the column's text."""


def rows() -> Iterator[Row]:
    """Yield the variables of the page's tables."""
    for table in re.findall(r"^\| variable \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.M):
        for line in table.splitlines():
            names, defaults, *_ = [cell.strip() for cell in line.strip("|").split(" | ")]
            shown = re.findall(r"`([^`]*)`", defaults) or [defaults]
            found = re.findall(r"`([A-Z][A-Z0-9_]*)`", names)
            assert found, line
            for number, name in enumerate(found):
                yield Row(name, shown[min(number, len(shown) - 1)])


def sources(*patterns: str) -> Iterator[Path]:
    """Yield files of the working copy that are part of what is built or run."""
    for pattern in patterns:
        found = [path for path in ROOT.glob(pattern) if path.is_file()]
        assert found, pattern
        yield from (path for path in found if "/testing/" not in str(path))


# Python


class Module:
    """A module's tree, and the texts that its names stand for."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text())
        self._texts: dict[str, str] = {}
        for node in self.tree.body:
            target: ast.expr | None = None
            if isinstance(node, ast.AnnAssign):
                target = node.target
            elif isinstance(node, ast.Assign):
                target = node.targets[0]
            value = getattr(node, "value", None)
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
                self._texts[target.id] = str(value.value)
            if isinstance(node, ast.ImportFrom) and node.module:
                self._import(node)

    def _import(self, node: ast.ImportFrom) -> None:
        path = f"*/src/{str(node.module).replace('.', '/')}.py"
        constants = [name for name in node.names if name.name.isupper()]
        for file in ROOT.glob(path) if constants else ():
            other = Module(file)
            for name in constants:
                if (text := other._texts.get(name.name)) is not None:
                    self._texts[name.asname or name.name] = text

    def text_of(self, node: ast.expr) -> str | None:
        """Return the text that an expression is, None if it cannot be told."""
        if isinstance(node, ast.Name):
            return self._texts.get(node.id)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        return None

    def read(self) -> Iterator[tuple[str, ast.expr | None]]:
        """Yield the variables that are read, and the expression of a default, if there is one."""
        for node in ast.walk(self.tree):
            name: ast.expr | None = None
            default: ast.expr | None = None
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                name = node.slice if _is_mapping(node.value) else None
            elif isinstance(node, ast.Call):
                arguments = node.args
                if isinstance(node.func, ast.Attribute) and _is_mapping(node.func.value):
                    name = arguments[0] if node.func.attr == "get" else None
                elif len(arguments) > 1 and _is_mapping(arguments[0]):
                    name = arguments[1]
                    default = arguments[2] if len(arguments) > 2 else None
            elif isinstance(node, ast.Constant) and _OURS.fullmatch(str(node.value)):
                name = node
            if name is not None and (text := self.text_of(name)) and _NAME.fullmatch(text):
                yield text, default


def _is_mapping(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in _MAPPINGS
    return isinstance(node, ast.Name) and node.id in _MAPPINGS


def read_by_python() -> dict[str, ast.expr | None]:
    """Return the variables that the shims and the tools read, with expressions of defaults."""
    found: dict[str, ast.expr | None] = {}
    for path in sources("*/src/**/*.py", "shared/tools/**/*.py"):
        for name, default in Module(path).read():
            found[name] = default or found.get(name)
    return found


def read_by_tests() -> set[str]:
    """Return what changes how tests run: what they read of the environment, by our names."""
    files = [*ROOT.glob("shared/src/**/testing/*.py"), *ROOT.glob("*/tests/**/conftest.py")]
    names = {name for path in files for name, _ in Module(path).read()}
    return {name for name in names if name.startswith("TEST_") or name == "SHIM_DIR"}


# The others


def read_by_c() -> set[str]:
    texts = [path.read_text() for path in sources("shared/launcher/*.c")]
    return {name for text in texts for name in re.findall(r'\bgetenv\("(\w+)"\)', text)}


def read_by_shell() -> dict[str, str]:
    """Return variables with their defaults."""
    files = sources("deployments/**/*.sh", "shared/tools/**/*.sh", ".ci/*")
    found = [
        pair
        for path in files
        for pair in re.findall(r"\$\{([A-Z][A-Z0-9_]*):[-?]([^}]*)\}", path.read_text())
    ]
    return dict(reversed(found))


def read_by_make() -> dict[str, set[str]]:
    """Return variables with their defaults."""
    found: dict[str, set[str]] = {}
    texts = [path.read_text() for path in sources(*_MAKEFILES)]
    for text in texts:
        for name, default in re.findall(r"^(\w+) \?=[ ]*(.*)$", text, re.M):
            found.setdefault(name, set()).add(default)
    whole = "\n".join(texts)
    used = set(re.findall(r"\$\(([A-Z][A-Z0-9_]*)[):]", whole))
    used |= set(re.findall(r"\$\$\{([A-Z][A-Z0-9_]*)", whole))
    known = set(re.findall(r"\b([A-Z][A-Z0-9_]*) :?= ", whole)) | _MAKE_OWN
    return found | {name: set() for name in used - known - set(found)}


def test_page_names_what_is_read_and_nothing_else() -> None:
    read = {*read_by_python(), *read_by_c(), *read_by_shell(), *read_by_make(), *read_by_tests()}
    read = {_PREFIXES.get(name, name) for name in read - _INTERNAL}
    # KUBERNETES_SERVICE_HOST stands where the default of API_SERVER does.
    named = {row.name for row in rows()} | set(re.findall(r"`(KUBERNETES_\w+)`", PAGE))
    assert read - named == set(), "read, and not in docs/configuration.md"
    assert named - read - _PLACEHOLDERS == set(), "in docs/configuration.md, and nobody reads it"


def test_numbers_have_the_defaults_that_the_page_says() -> None:
    page = {row.name: row.default for row in rows()}
    checked = 0
    for name, expression in read_by_python().items():
        value = _number(expression)
        if value is not None:
            assert page[name] == f"{value:g}" or page[name] == str(int(value)), name
            checked += 1
    assert checked >= 12


def _number(expression: ast.expr | None) -> float | None:
    """Return what an expression of plain numbers comes to, None for every other."""
    if expression is None:
        return None
    if any(isinstance(node, ast.Name | ast.Call | ast.BoolOp) for node in ast.walk(expression)):
        return None
    value = eval(compile(ast.Expression(expression), "default", "eval"), {"__builtins__": {}})
    return float(value) if isinstance(value, int | float) else None


def test_directories_are_those_of_the_code() -> None:
    page = {row.name: row.default for row in rows()}
    assert page["CONTAINERD_WASM_SHIMS_ROOT"] == runtime.DEFAULT_STATE
    assert page["CONTAINERD_WASM_SHIMS_RUN"] == runtime.DEFAULT_RUN
    assert page["CONTAINERD_WASM_SHIMS_CACHE_MAX_BYTES"] == str(runtime.DEFAULT_CACHE_MAX_BYTES)
    assert page["SPIN_HTTP_LISTEN_ADDR"] == DEFAULT_ADDRESS


def test_shell_and_make_have_the_defaults_that_the_page_says() -> None:
    page: dict[str, set[str]] = {}
    for row in rows():
        page.setdefault(row.name, set()).add(row.default)
    for name, default in read_by_shell().items():
        if default and name != "KUBERNETES_SERVICE_PORT":
            assert default in page[name], name
    for name, defaults in read_by_make().items():
        assert {default for default in defaults if default} <= page[name], name


def test_exit_codes_are_those_of_the_code() -> None:
    table = PAGE.partition("## Exit codes")[2].partition("\n## ")[0]
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}
    assert codes == {int(code) for code in ExitCode}


@pytest.mark.parametrize(
    ("files", "path"),
    [
        ([], "/etc/containerd/config.toml"),
        (["var/lib/rancher/k3s/agent/etc/containerd/config.toml"], "/var/lib/rancher/k3s/agent/"),
        (["var/lib/rancher/rke2/agent/etc/containerd/config.toml"], "/var/lib/rancher/rke2/agent/"),
        (["var/snap/microk8s/current/args/containerd-template.toml"], ""),
        (["etc/k0s/containerd.toml"], ""),
    ],
    ids=["default", "k3s", "rke2", "microk8s", "k0s"],
)
def test_place_of_containerds_configuration(tmp_path: Path, files: list[str], path: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("version = 2\n")
    place = find_place(tmp_path)
    found = f"/{place.file.relative_to(tmp_path)}"
    assert found.startswith(path)
    assert f"`{found}`" in PAGE or f"`{place.file.name}`" in PAGE
    assert place.restart[-1] in PAGE


def test_parts_that_other_pages_link_to_are_there() -> None:
    assert {"commands-for-people", "environment-of-the-app", "exit-codes"} <= anchors(PAGE)
