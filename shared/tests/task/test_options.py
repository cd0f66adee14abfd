"""Runtime options of a Create request, in each of their forms."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from containerd_shimkit.errors import InvalidArgumentError
from containerd_shimkit.proto import runc_options_pb2, runtime_options_pb2
from containerd_shimkit.task.options import RuntimeOptions

RUNC = "containerd.runc.v1.Options"
GENERIC = "runtimeoptions.v1.Options"


def any_of(name: str, message: Message | bytes) -> Any:
    value = message if isinstance(message, bytes) else message.SerializeToString()
    return Any(type_url=name, value=value)


def generic(text: str) -> Any:
    options = runtime_options_pb2.Options()
    options.config_body = text.encode()
    return any_of(GENERIC, options)


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/", "types.containerd.io/"])
def test_options_of_runc(prefix: str) -> None:
    message = runc_options_pb2.Options(binary_name="crun", root="/run/x", systemd_cgroup=True)
    parsed = RuntimeOptions.parse(any_of(prefix + RUNC, message))
    assert parsed == RuntimeOptions("crun", "/run/x", systemd_cgroup=True)


def test_table_of_the_configuration_file() -> None:
    parsed = RuntimeOptions.parse(
        generic('BinaryName = "/opt/runc"\nRoot = "/run/x"\nSystemdCgroup = true\nOther = 1\n')
    )
    assert parsed == RuntimeOptions("/opt/runc", "/run/x", systemd_cgroup=True)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(Any(), id="none"),
        pytest.param(any_of(RUNC, b""), id="runc-empty"),
        pytest.param(any_of(GENERIC, b""), id="generic-empty"),
        pytest.param(generic("# nothing\n"), id="comment"),
        pytest.param(any_of("example.com/other.Options", b"\xff\xff"), id="unknown"),
    ],
)
def test_nothing_said(options: Any) -> None:
    assert RuntimeOptions.parse(options) == RuntimeOptions()


def test_shim_is_no_oci_runtime() -> None:
    """k3s names a shim that it has found on its PATH."""
    shim = "/usr/local/bin/containerd-shim-wws-v1"
    message = runc_options_pb2.Options(binary_name=shim, systemd_cgroup=True)
    expected = RuntimeOptions(systemd_cgroup=True)
    assert RuntimeOptions.parse(any_of(RUNC, message)) == expected
    assert RuntimeOptions.parse(generic(f'BinaryName = "{shim}"\nSystemdCgroup = true')) == expected


def test_file_that_nobody_wrote_is_not_read() -> None:
    """containerd 1.6 names one, and sends no contents."""
    options = runtime_options_pb2.Options(config_path="/does/not/exist.toml")
    assert RuntimeOptions.parse(any_of(GENERIC, options)) == RuntimeOptions()


@pytest.mark.parametrize("name", [RUNC, GENERIC])
def test_broken_message_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        RuntimeOptions.parse(any_of(name, b"\xff\xff\xff"))


@pytest.mark.parametrize("text", ["BinaryName = ", "[a", "a = 1\na = 2"])
def test_broken_table_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=GENERIC):
        RuntimeOptions.parse(generic(text))


@pytest.mark.parametrize("text", ["BinaryName = 1", "Root = []", 'SystemdCgroup = "yes"'])
def test_wrong_type_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="bad type"):
        RuntimeOptions.parse(generic(text))


def test_bytes_that_are_no_text_are_refused() -> None:
    # Field 3 in the wire format, whatever the field's declared type: not UTF-8.
    number = runtime_options_pb2.Options.DESCRIPTOR.fields_by_name["config_body"].number
    broken = bytes([number << 3 | 2, 2, 0xFF, 0xFE])
    with pytest.raises(InvalidArgumentError, match=GENERIC):
        RuntimeOptions.parse(any_of(GENERIC, broken))
