"""The runtime options of a Create request, as far as they concern ordinary Linux containers.

containerd sends runc's own message (``ctr run``), or for runtimes it does not know, the table of
its configuration file as TOML (CRI of 1.7 and later); 1.6 names a file nobody wrote.

For shims that it finds on its PATH k3s writes the shim itself as ``BinaryName`` (its
pkg/agent/templates, ``ExtraRuntimes``). A shim is no OCI runtime: the node's own is used then.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from containerd_shimkit.errors import InvalidArgumentError
from containerd_shimkit.proto import runc_options_pb2, runtime_options_pb2


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Settings of a runtime, by the names they have in containerd's configuration."""

    binary_name: str = ""
    """``BinaryName``: the OCI runtime for ordinary containers."""
    root: str = ""
    """``Root``: where that runtime keeps its state."""
    systemd_cgroup: bool = False
    """``SystemdCgroup``: cgroups are made by systemd."""

    @classmethod
    def parse(cls, options: Any) -> RuntimeOptions:
        """Read ``CreateTaskRequest.options``. Raises InvalidArgumentError."""
        try:
            if options.type_url.endswith("containerd.runc.v1.Options"):
                runc = runc_options_pb2.Options.FromString(options.value)
                return cls(_oci_runtime(runc.binary_name), runc.root, runc.systemd_cgroup)
            if options.type_url.endswith("runtimeoptions.v1.Options"):
                generic = runtime_options_pb2.Options.FromString(options.value)
                return cls._of_toml(generic.config_body.decode())
        except (DecodeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise InvalidArgumentError(f"runtime options {options.type_url}: {exc}") from exc
        return cls()

    @classmethod
    def _of_toml(cls, text: str) -> RuntimeOptions:
        table = tomllib.loads(text)
        binary, root = table.get("BinaryName", ""), table.get("Root", "")
        systemd_cgroup = table.get("SystemdCgroup", False)
        if not (
            isinstance(binary, str) and isinstance(root, str) and isinstance(systemd_cgroup, bool)
        ):
            raise InvalidArgumentError(
                "runtime options: BinaryName, Root or SystemdCgroup: bad type"
            )
        return cls(_oci_runtime(binary), root, systemd_cgroup)


def _oci_runtime(binary: str) -> str:
    return "" if binary.rpartition("/")[2].startswith("containerd-shim-") else binary
