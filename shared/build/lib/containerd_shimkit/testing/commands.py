"""A shim's executable, run as containerd runs it, without a containerd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from google.protobuf.message import Message

from containerd_shimkit.bootstrap import socket_path
from containerd_shimkit.proto.task_pb2 import DeleteResponse
from containerd_shimkit.rpc.client import Client
from containerd_shimkit.testing.leftovers import Process, find_processes

M = TypeVar("M", bound=Message)

SECONDS = 30.0
"""How long a command or a call may take."""
SERVICE = "containerd.task.v2.Task"
_STUB = """\
#!{python}
import sys
from containerd_shimkit.launch import main
from containerd_shimkit.testing.stub_engine import STUB_KIND
{setup}
sys.exit(main(STUB_KIND, {build_id!r}))
"""


def write_stub_binary(path: Path, *, build_id: str | None = None, setup: str = "") -> Path:
    """Write an executable of the stub shim, which runs from the sources.

    build_id: what the zygote is called that a launcher makes of it; None is a shim without one.
    setup: Python that runs before ``main``.
    """
    path.write_text(_STUB.format(python=sys.executable, setup=setup, build_id=build_id))
    path.chmod(0o755)
    return path


class ShimCommand:
    """One executable, and the containerd that is said to run it."""

    def __init__(self, binary: Path, directory: Path, namespace: str) -> None:
        """directory: short; where the zygote's socket and everything else of the shims goes."""
        self.binary = binary
        self.directory = directory
        self.namespace = namespace
        self.address = f"{directory}/containerd.sock"
        self.run_directory = directory / "run"
        self.env: dict[str, str] = {
            "PATH": os.environ.get("PATH", os.defpath),
            "CONTAINERD_WASM_SHIMS_RUN": str(self.run_directory),
            "CONTAINERD_WASM_SHIMS_ROOT": str(directory / "root"),
            "CONTAINERD_WASM_SHIMS_CACHE": str(directory / "cache"),
        }

    def arguments(self, task_id: str, command: str, *more: str) -> list[str]:
        """Return the command line as containerd 1.6 and later write it."""
        return [
            str(self.binary),
            *("-namespace", self.namespace, "-address", self.address),
            *("-publish-binary", "/bin/true", "-id", task_id, *more, command),
        ]

    def start(
        self,
        bundle: Path,
        task_id: str = "c",
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``start``; return when stdout and stderr are at their end, as containerd does."""
        return subprocess.run(
            self.arguments(task_id, "start"),
            cwd=bundle,
            env={**self.env, **env},
            input=stdin,
            capture_output=True,
            timeout=SECONDS,
        )

    def delete(self, bundle: Path, task_id: str = "c") -> DeleteResponse:
        """Run ``delete``, which has to succeed."""
        done = subprocess.run(
            self.arguments(task_id, "delete", "-bundle", str(bundle)),
            cwd=bundle if bundle.is_dir() else "/",
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr.decode()
        return DeleteResponse.FromString(done.stdout)

    def call(self, method: str, request: Message, response: type[M], group: str = "c") -> M:
        """Call the shim of ``group``."""

        async def call() -> M:
            client = await Client.connect(self.socket(group), SECONDS)
            try:
                return await client.call(SERVICE, method, request, response, timeout=SECONDS)
            finally:
                await client.close()

        return asyncio.run(call())

    def socket(self, group: str = "c") -> str:
        """Return the path of the socket of the shim of ``group``."""
        return socket_path(self.address, self.namespace, group)

    def processes(self) -> list[Process]:
        """Return the shims, their containers and the zygote, whoever started them."""
        return find_processes([str(self.directory)])

    def zygotes(self) -> list[Process]:
        return [p for p in self.processes() if f" zygote {self.run_directory}" in p.command]

    def shims(self) -> list[Process]:
        words = f" -namespace {self.namespace} -id "
        return [
            p for p in self.processes() if words in p.command and " engine -name" not in p.command
        ]


@contextmanager
def shim_command(binary: Path, namespace: str) -> Iterator[ShimCommand]:
    """A command whose processes, sockets and files are gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="cw-"))
    command = ShimCommand(binary, directory, namespace)
    try:
        yield command
    finally:
        _kill(command)
        digests = Path("/run/containerd/s")
        for config in directory.glob("*/config.json"):
            Path(command.socket(config.parent.name)).unlink(missing_ok=True)
        if digests.is_dir() and os.access(digests, os.W_OK):
            Path(command.socket()).unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)


def _kill(command: ShimCommand) -> None:
    """Kill every process of the command, those too that are being forked; wait for their end."""
    deadline = time.monotonic() + SECONDS
    while (found := command.processes()) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.005)
