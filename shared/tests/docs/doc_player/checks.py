"""What a block of a document has to be, by the word behind its fence.

A kind that nobody knows here is an error, so that nothing stands in a document unchecked. What a
document shows of a program's output, and what is none of the others, is ``text``.

Each check raises AssertionError, or the error of the reader that refuses the block, and skips the
test if its program is not installed.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from containerd_shim_slight_v1.slightfile.reader import parse_slightfile
from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.runtime_config.reader import parse_runtime_config
from containerd_shim_wws_v1.project.files import ProjectFiles
from containerd_shim_wws_v1.project.runtimes import load_runtimes
from containerd_shim_wws_v1.project.worker_config import parse_worker_config
from containerd_shimkit.node.config_text import runtimes_of
from containerd_shimkit.testing.fixtures import chosen_versions, containerd_program
from containerd_shimkit.testing.manifests import check_manifest, kustomize
from doc_player.document import Block, commands
from doc_player.player import rule_of

ROOT: Final = Path(__file__).parents[4]
_SECONDS: Final = 60.0


def check_block(block: Block) -> None:
    """Check a block by its kind."""
    check = CHECKS.get(block.kind)
    assert check is not None, (
        f"line {block.line}: no rule says how a block of kind {block.kind!r} is checked: "
        f"{', '.join(CHECKS)} are known"
    )
    check(block)


def _run(program: str, package: str, *arguments: str, text: str | None = None) -> str:
    path = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"needs {program}: apt-get install {package}")
    done = subprocess.run(
        [path, *arguments], input=text, capture_output=True, text=True, timeout=_SECONDS
    )
    assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
    return done.stdout


# Commands


def _console(block: Block) -> None:
    for command in commands(block):
        assert rule_of(command.text), f"line {command.line}: no rule for {command.text!r}"
        _shellcheck("bash", f"{command.text}\n")


def _shell(block: Block) -> None:
    _shellcheck("sh" if block.kind == "sh" else "bash", block.text)


def _shellcheck(shell: str, text: str) -> None:
    _run("shellcheck", "shellcheck", "--shell", shell, "-", text=text)


# Kubernetes


def _yaml(block: Block) -> None:
    for manifest in yaml.safe_load_all(block.text):
        assert isinstance(manifest, dict), f"line {block.line}: no mapping"
        if str(manifest.get("apiVersion")).startswith("kustomize.config.k8s.io/"):
            _kustomization(block, manifest)
        elif "kind" in manifest:
            check_manifest(manifest)
        else:
            _part_of_a_pod(manifest)


def _kustomization(block: Block, manifest: Mapping[str, Any]) -> None:
    """It is what kustomize takes in the root of the working copy, and each image gets its name."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        shutil.copytree(ROOT / "deployments", directory / "deployments")
        (directory / "kustomization.yaml").write_text(block.text)
        made = kustomize(directory, ROOT)
    assert manifest["kind"] == "Kustomization"
    for image in manifest.get("images", []):
        assert f"image: {image.get('newName', image['name'])}" in made, f"nothing is {image}"


def _part_of_a_pod(part: dict[str, Any]) -> None:
    """A page may show some fields only: of a pod, of a container, or of a Deployment."""
    spec: dict[str, Any] = part["spec"] if part.keys() == {"spec"} else part
    container: dict[str, Any] = {"name": "name", "image": "image"}
    pod: dict[str, Any] = {"containers": [container]}
    deployment: dict[str, Any] = {
        "selector": {"matchLabels": {"app": "name"}},
        "template": {"metadata": {"labels": {"app": "name"}}, "spec": pod},
    }
    for entry in spec.get("containers", []):
        entry.setdefault("name", "name")
    candidates = [
        ("v1", "Pod", pod | spec),
        ("v1", "Pod", {"containers": [container | spec]}),
        ("apps/v1", "Deployment", deployment | spec),
    ]
    faults = []
    for version, kind, whole in candidates:
        named = {"apiVersion": version, "kind": kind, "metadata": {"name": "name"}}
        try:
            check_manifest(named | {"spec": whole})
        except AssertionError as exc:
            faults.append(str(exc))
        else:
            return
    raise AssertionError("it is no part of a pod:\n" + "\n".join(faults))


# TOML


def _toml(block: Block) -> None:
    tables = tomllib.loads(block.text)
    for belongs, check in _TOML:
        if belongs(Path(block.path).name, tables):
            check(block.text)
            return
    raise AssertionError(f"line {block.line}: nobody knows what this TOML is")


def _named(file: str, *keys: str) -> Callable[[str, Mapping[str, Any]], bool]:
    """Whether a block is such a file, or shows one of its fields."""
    return lambda name, tables: name == file or (not name and not tables.keys().isdisjoint(keys))


def _spin_manifest(text: str) -> None:
    if tomllib.loads(text).keys() & {"spin_manifest_version", "spin_version"}:
        parse_manifest(text)  # of a part we know no more than that it is TOML


def _slightfile(text: str) -> None:
    whole = "specversion" in tomllib.loads(text)
    parse_slightfile(text if whole else f'specversion = "0.2"\n{text}')


def _image(text: str) -> None:
    tables = tomllib.loads(text)
    assert tables.keys() <= {"reference", "entrypoint", "env", "files"}
    assert all(file.keys() == {"source", "path"} for file in tables["files"])
    assert tables["entrypoint"]


def _crate(text: str) -> None:
    assert {"name", "version", "edition"} <= tomllib.loads(text)["package"].keys()


def _worker(text: str) -> None:
    names = re.findall(r'"\$(\w+)"', text)
    config = parse_worker_config(text, "worker.toml", dict.fromkeys(names, "value"))
    assert not config.warnings


def _runtimes(text: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, ".wws.toml").write_text(text)
        files = ProjectFiles(Path(directory))
        try:
            found = load_runtimes(files)
        finally:
            files.close()
    # Where the runtimes themselves are missing nothing else is said.
    assert all("is not installed" in warning for warning in found.warnings), found.warnings


def _containerd(text: str) -> None:
    """The containerd of that version reads it, and then has its runtimes and settings."""
    tables = tomllib.loads(text)
    plugins = tables.get("plugins", {})
    old = "io.containerd.grpc.v1.cri" in plugins
    version = tables.get("version", 2 if old else 3)
    if "version" not in tables:
        text = f"version = {version}\n{text}"
    for name in chosen_versions():
        program = containerd_program(name, ROOT)
        is_old = re.search(r"\bv?1\.\d+\.\d+", _run(program, "containerd", "--version")) is not None
        if is_old and version > 2:
            continue
        dumped = _dump(program, text)
        runtimes = runtimes_of(dumped)
        for handler, runtime in runtimes_of(tables).items():
            assert runtimes.get(handler) == runtime, f"containerd {name} has no {runtime}"
        if is_old == (version == 2):  # else it has settings in other places
            for path, value in _leaves(tables):
                assert _found(dumped, path) == value, f"containerd {name}: no {path}"


def _dump(program: str, text: str) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        arguments = ("--config", file.name, "config", "dump")
        return tomllib.loads(_run(program, "containerd", *arguments))


def _leaves(
    tables: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        elif (*path, key) != ("version",):  # that of what is dumped is the newest
            yield (*path, key), value


def _found(tables: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tables = tables.get(key) if isinstance(tables, dict) else None
    return tables


_TOML: Final[
    tuple[tuple[Callable[[str, Mapping[str, Any]], bool], Callable[[str], object]], ...]
] = (
    (_named("config.toml", "plugins", "proxy_plugins", "disabled_plugins"), _containerd),
    (
        _named(
            "spin.toml",
            *("spin_manifest_version", "spin_version", "application", "variables"),
            *("component", "trigger"),
        ),
        _spin_manifest,
    ),
    (_named("slightfile.toml", "specversion", "capability"), _slightfile),
    (_named("image.toml", "entrypoint"), _image),
    (_named("Cargo.toml", "package"), _crate),
    (_named(".wws.toml", "repositories"), _runtimes),
    (
        _named(
            "runtime-config.toml",
            *("config_provider", "variables_provider", "key_value_store", "sqlite_database"),
            *("llm_compute", "client_tls", "outbound_http", "outbound_networking", "state_dir"),
            *("outbound_redis", "outbound_pg", "outbound_mysql", "outbound_mqtt", "log_dir"),
            *("max_instance_memory", "variable_provider"),
        ),
        parse_runtime_config,
    ),
    (lambda name, tables: "version" in tables or name.endswith(".toml"), _worker),
)
"""What a block of TOML is, and what then has to hold. The first that fits is taken."""


# Programs


def _c(block: Block) -> None:
    headers = {path.parent for path in (ROOT / "images").rglob("*.h")}
    _run(
        *("clang-14", "clang-14", "--target=wasm32-wasi", "-std=gnu17", "-fsyntax-only"),
        *("-Wall", "-Wextra", "-Werror", *(f"-I{path}" for path in sorted(headers))),
        *("-x", "c", "-"),
        text=block.text,
    )


def _rust(block: Block) -> None:
    """What has a name is built by the document that is played; what has none stands for itself."""
    if not block.path:
        with tempfile.TemporaryDirectory() as directory:
            options = ("--edition", "2021", "--crate-type", "lib", "--emit", "metadata")
            _run("rustc", "rustc", *options, "--out-dir", directory, "-", text=block.text)


def _javascript(block: Block) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".mjs") as file:
        file.write(block.text)
        file.flush()
        _run("node", "nodejs", "--check", file.name)


def _dockerfile(block: Block) -> None:
    _run("hadolint", "hadolint", "-", text=block.text)


def _mermaid(block: Block) -> None:
    """That its kind is one that GitHub draws."""
    kinds = {"flowchart", "graph", "sequenceDiagram", "stateDiagram-v2"}
    assert block.text.split(maxsplit=1)[0] in kinds


CHECKS: Final[Mapping[str, Callable[[Block], object]]] = {
    "console": _console,
    "sh": _shell,
    "bash": _shell,
    "yaml": _yaml,
    "toml": _toml,
    "json": lambda block: json.loads(block.text),
    "dockerfile": _dockerfile,
    "c": _c,
    "rust": _rust,
    "python": lambda block: ast.parse(block.text),
    "js": _javascript,
    "javascript": _javascript,
    "mermaid": _mermaid,
    "text": lambda block: None,
}
"""By the word behind the fence."""
