"""config.json: what is read of it, and what each broken one is told."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.errors import BundleError
from containerd_shimkit.oci.bundle import MAX_CONFIG_BYTES, Bundle
from containerd_shimkit.oci.spec import Hook, parse_hooks, parse_resources, parse_spec

CONFIG = Path(__file__).parents[1] / "linux" / "data" / "config.json"


@pytest.fixture
def config() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(CONFIG.read_text())
    return data


def test_real_config(config: dict[str, Any]) -> None:
    spec = parse_spec(config)
    assert spec.process.args == ("/spin.toml",)
    assert spec.process.environment["GREETING"] == "a=b"
    assert spec.process.user.additional_gids == (10, 1000)
    assert spec.process.capabilities is not None
    assert spec.process.capabilities["ambient"] == ("CAP_NET_BIND_SERVICE",)
    assert spec.root.readonly
    assert spec.mounts[0].options == ("nosuid", "noexec", "nodev")
    assert [entry.type for entry in spec.linux.namespaces][:2] == ["pid", "ipc"]
    assert spec.linux.resources["memory"]["limit"] == 128 << 20
    assert spec.process.oom_score_adj is None


def test_smallest_config_has_the_defaults_of_the_spec() -> None:
    spec = parse_spec({"process": {"args": ["/x"], "cwd": "/"}, "linux": None, "mounts": None})
    assert spec.root.path == "rootfs"
    assert spec.process.capabilities is None
    assert spec.linux.resources == {}


def at(data: Any, *keys: Any) -> Callable[[Any], None]:
    *path, last = keys
    for key in path:
        data = data[key]
    return lambda value: data.__setitem__(last, value)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("process",), None, "c.json: process: is missing"),
        (("process",), [], "c.json: process: [] is not an object"),
        (("process", "args"), [], "process.args: is empty"),
        (("process", "args"), "sh", 'process.args: "sh" is not a list'),
        (("process", "args"), ["a", 1], "process.args: 1 is not a string"),
        (("process", "args"), ["a\0b"], 'process.args: "a\\0b" has a NUL character'),
        (("process", "args"), ["\ud800"], "half of a surrogate pair"),
        (("process", "args"), ["x" * (1 << 21)], "is longer than 1048576 characters"),
        (("process", "env"), ["PATH"], 'process.env: "PATH" is not of the form NAME=value'),
        (("process", "env"), ["=x"], "is not of the form"),
        (("process", "cwd"), "tmp", 'process.cwd: "tmp" is not an absolute path'),
        (("process", "user", "uid"), -1, "process.user.uid: -1 is not in 0..4294967294"),
        (("process", "user", "uid"), True, "process.user.uid: True is not an integer"),
        (("process", "user", "uid"), 1.5, "process.user.uid: 1.5 is not an integer"),
        (("process", "oomScoreAdj"), 2000, "oomScoreAdj: 2000 is not in -1000..1000"),
        (("process", "noNewPrivileges"), "yes", "is not true or false"),
        (("process", "rlimits", 0, "type"), "RLIMIT_X", "process.rlimits[0].type: "),
        (("process", "rlimits", 0, "soft"), 4096, "soft: 4096 exceeds hard, 1024"),
        (("root", "path"), "", "root.path"),
        (("hostname",), "h" * 65, "is longer than 64 bytes"),
        (("mounts", 1), "x", 'mounts[1]: "x" is not an object'),
        (("mounts", 1, "destination"), "", "mounts[1].destination"),
        (("mounts", 1, "options"), [None], "mounts[1].options: null is not a string"),
        (("process", "scheduler"), {"policy": "SCHED_OTHER", "nice": 20}, "nice: 20 is not in"),
        (("process", "ioPriority"), {"class": "x", "priority": 8}, "priority: 8 is not in 0..7"),
        (("linux", "timeOffsets"), {"realtime": {}}, "realtime: is not one of monotonic, boot"),
        (("linux", "timeOffsets"), {"boottime": {"nanosecs": 10**9}}, "nanosecs: 1000000000 is"),
        (("linux", "namespaces", 1, "type"), "pid", 'linux.namespaces[1].type: "pid" is given'),
        (("linux", "namespaces", 1, "path"), "x", "is not an absolute path"),
        (("linux", "resources", "memory", "limit"), "1G", "linux.resources.memory.limit"),
        (("linux", "resources", "pids", "limit"), 2**70, "is not in"),
        (("linux", "resources", "devices", 0, "access"), "rx", "devices[0].access"),
        (("linux", "sysctl"), {"a": 1}, "linux.sysctl.a: 1 is not a string"),
        (("linux", "devices"), [{"path": "/dev/x", "type": "q"}], "linux.devices[0].type"),
        (("annotations",), {"a": None}, "annotations.a: null is not a string"),
        (("hooks",), [], "hooks: [] is not an object"),
        (("hooks",), {"poststop": [{}]}, 'hooks.poststop[0].path: "" is empty'),
        (("hooks",), {"prestart": [{"path": "x"}]}, 'path: "x" is not an absolute path'),
        (("hooks",), {"prestart": [{"path": "/x", "timeout": 0}]}, "timeout: 0 is not in"),
        (("hooks",), {"prestart": [{"path": "/x", "env": ["A"]}]}, 'env: "A" is not of the'),
    ],
)
def test_broken_config_names_field_value_and_rule(
    keys: tuple[Any, ...], value: object, message: str, config: dict[str, Any]
) -> None:
    at(config, *keys)(copy.copy(value))
    with pytest.raises(BundleError) as caught:
        parse_spec(config, "c.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("c.json: ")


@pytest.mark.parametrize("data", [None, [], "x", 1])
def test_config_that_is_no_object(data: object) -> None:
    with pytest.raises(BundleError, match="is not an object"):
        parse_spec(data)


def test_hooks() -> None:
    config = {"path": "/x", "args": ["x", "y"], "env": ["A=b"], "timeout": 5}
    hooks = parse_hooks({"poststart": [config, {"path": "/z"}], "prestart": [], "later": 1})
    assert hooks == {"poststart": (Hook("/x", ("x", "y"), ("A=b",), 5), Hook("/z"))}


def test_resources_of_an_update_name_their_own_fields() -> None:
    with pytest.raises(BundleError, match=r"^resources: cpu\.quota: "):
        parse_resources({"cpu": {"quota": "much"}})


@pytest.mark.parametrize("kind", ["sandbox", "container"])
def test_bundle_of_a_pod(tmp_path: Path, config: dict[str, Any], kind: str) -> None:
    config["annotations"] = {
        "io.kubernetes.cri.sandbox-id": "pod1",
        "io.kubernetes.cri.container-type": kind,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    bundle = Bundle.load(tmp_path)
    assert bundle.rootfs == tmp_path / "rootfs"
    assert (bundle.group, bundle.is_pause) == ("pod1", kind == "sandbox")


def test_bundle_outside_kubernetes_has_no_group(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG.read_bytes())
    bundle = Bundle.load(str(tmp_path))
    assert (bundle.group, bundle.is_pause) == (None, False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json: No such file or directory"),
        (b"{", "config.json: not JSON: "),
        (b"\xff\xfe", "config.json: not JSON: "),
        (b"[" * 100_000, "config.json: not JSON: "),
        (b" " * (MAX_CONFIG_BYTES + 1), "config.json: larger than 16777216 bytes"),
        (b"[]", "config.json: [] is not an object"),
    ],
)
def test_broken_config_file(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BundleError) as caught:
        Bundle.load(tmp_path)
    assert message in str(caught.value)
