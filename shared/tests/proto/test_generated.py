from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.message import Message

from containerd_shimkit.proto import (
    bootstrap_pb2,
    cgroups_v1_pb2,
    cgroups_v2_pb2,
    events_pb2,
    forward_pb2,
    process_pb2,
    runc_options_pb2,
    runtime_options_pb2,
    task_pb2,
    types_pb2,
)

SHARED = Path(__file__).resolve().parents[2]
COMMITTED = SHARED / "src"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("grpc_tools", reason="grpcio-tools, which has the protobuf compiler")
    output = tmp_path_factory.mktemp("generated")
    tool = SHARED / "tools" / "generate_proto.py"
    subprocess.run([sys.executable, str(tool), "--output", str(output)], check=True, timeout=60)
    return output


def modules_below(root: Path) -> dict[Path, bytes]:
    # Compiled, they are in __pycache__, with another suffix.
    found = [path for suffix in ("py", "pyi") for path in root.rglob(f"*_pb2.{suffix}")]
    return {path.relative_to(root): path.read_bytes() for path in found}


def test_generated_modules_are_current(generated: Path) -> None:
    """What is committed is what ``make proto`` writes, byte for byte, and nothing more."""
    expected, found = modules_below(generated), modules_below(COMMITTED)
    assert found == expected
    assert len(found) == 2 * len(list(COMMITTED.rglob("*.proto")))


@pytest.mark.parametrize(
    ("message", "full_name"),
    [
        (types_pb2.Mount, "containerd.types.Mount"),
        (types_pb2.Envelope, "containerd.types.Envelope"),
        (types_pb2.RuntimeInfo, "containerd.types.RuntimeInfo"),
        (process_pb2.ProcessInfo, "containerd.v1.types.ProcessInfo"),
        (task_pb2.CreateTaskRequest, "containerd.task.v2.CreateTaskRequest"),
        (events_pb2.TaskExit, "containerd.events.TaskExit"),
        (forward_pb2.ForwardRequest, "containerd.services.events.ttrpc.v1.ForwardRequest"),
        (cgroups_v1_pb2.Metrics, "io.containerd.cgroups.v1.Metrics"),
        (cgroups_v2_pb2.Metrics, "io.containerd.cgroups.v2.Metrics"),
        (runtime_options_pb2.Options, "runtimeoptions.v1.Options"),
        (runc_options_pb2.Options, "containerd.runc.v1.Options"),
        (bootstrap_pb2.BootstrapParams, "containerd.runtime.bootstrap.v1.BootstrapParams"),
    ],
)
def test_full_names_are_containerds(message: type[Message], full_name: str) -> None:
    """containerd finds the type of an ``Any`` by this name."""
    assert message.DESCRIPTOR.full_name == full_name


def test_create_request_from_the_wire() -> None:
    """Bytes as containerd marshals them, written out by hand: field number and type in each tag."""
    wire = bytes.fromhex("0a0261 62 12042f62 2f63 1a080a04 62696e64 1200 2001 5203 0a0178")
    request = task_pb2.CreateTaskRequest.FromString(wire)
    assert (request.id, request.bundle, request.terminal) == ("ab", "/b/c", True)
    assert [mount.type for mount in request.rootfs] == ["bind"]
    assert request.options.type_url == "x"


def test_open_enum_keeps_unknown_level() -> None:
    params = bootstrap_pb2.BootstrapParams.FromString(b"\x18\x05")
    assert params.log_level == 5
