"""The layering of the kit, read from its imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import containerd_shimkit

KIT = "containerd_shimkit"
ROOT = Path(containerd_shimkit.__file__).parent
MODULES = {
    ".".join((KIT, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if not path.name.endswith("_pb2.py")
}
CHECKED = [name for name in MODULES if not name.startswith(f"{KIT}.testing")]

# What a package may import of the kit, besides itself
ALONE = {
    "linux": {"errors"},
    "oci": {"errors"},
    "rpc": {"errors", "proto"},
    "wasm": {"errors"},
    "http": {"errors"},
    "text": {"errors"},
}


def imports_of(module: str, *, top_level: bool = False) -> Iterator[str]:
    """Yield the full name of each module that ``module`` imports; those inside functions too."""
    tree = ast.parse(MODULES[module].read_text())
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in MODULES else base


def layer_of(module: str) -> str:
    """Return ``linux`` for ``containerd_shimkit.linux.mounts``."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", [name for name in CHECKED if layer_of(name) in ALONE])
def test_layer_knows_nothing_of_the_others(module: str) -> None:
    layer = layer_of(module)
    known = {layer_of(name) for name in imports_of(module) if name.split(".")[0] == KIT}
    assert known - {layer} <= ALONE[layer]


@pytest.mark.parametrize("module", ["errors", "runtime", "handover"])
def test_root_of_the_layers_imports_nothing_of_the_kit(module: str) -> None:
    known = {n for n in imports_of(f"{KIT}.{module}") if n.split(".")[0] == KIT}
    assert known <= {f"{KIT}.runtime"} - {f"{KIT}.{module}"}


def test_only_the_entry_points_know_the_command_line() -> None:
    users = {name for name in CHECKED if f"{KIT}.cli" in imports_of(name)}
    assert users <= {f"{KIT}.launch", f"{KIT}.zygote"}


@pytest.mark.parametrize("module", CHECKED)
def test_kit_never_imports_a_shim(module: str) -> None:
    assert not [n for n in imports_of(module) if n.startswith("containerd_shim_")]


@pytest.mark.parametrize("module", CHECKED)
def test_kit_does_not_need_its_test_kit(module: str) -> None:
    assert not [n for n in imports_of(module) if n.startswith((f"{KIT}.testing", "pytest"))]


def test_launch_imports_only_what_is_cheap() -> None:
    """Each module is paid for at every start of a container."""
    cheap = {"__future__", "_socket", "os", "sys", f"{KIT}.runtime", f"{KIT}.handover"}
    assert set(imports_of(f"{KIT}.launch", top_level=True)) <= cheap
    for module in ("runtime", "handover"):
        found = set(imports_of(f"{KIT}.{module}", top_level=True))
        assert found <= {"__future__", "os", f"{KIT}.runtime"}


def test_modules_import_each_other_in_one_direction() -> None:
    """No circles, imports inside functions included, but for what the zygote's forks run."""
    graph = {n: {i for i in imports_of(n) if i in MODULES and i != n} for n in CHECKED}
    graph[f"{KIT}.launch"].discard(f"{KIT}.cli")
    while free := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"circles among {sorted(graph)}"


def test_only_commands_for_people_need_http_2() -> None:
    """Neither what containerd waits for nor the zygote pays for it."""
    commands = ("precompile", "cache_command", "node.config_command", "node.doctor")
    for_people = {f"{KIT}.{name}" for name in commands}
    known = {name: set(imports_of(name)) for name in CHECKED}
    assert {name for name in CHECKED if known[name] & for_people} == {f"{KIT}.cli"}
    assert not for_people & set(imports_of(f"{KIT}.cli", top_level=True))
    users = {"rpc.grpc": {"images", "node.daemons"}, "images": {"precompile"}}
    users["node.daemons"] = {"node.config_command", "node.doctor"}
    for module, expected in users.items():
        found = {name for name in CHECKED if f"{KIT}.{module}" in known[name]}
        assert found == {f"{KIT}.{name}" for name in expected}
