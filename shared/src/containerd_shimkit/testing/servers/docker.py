"""Debian's Docker: a daemon and its client, which build images and load and push them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from containerd_shimkit.testing.apps import eventually
from containerd_shimkit.testing.servers.process import need_program

_SECONDS: Final = 60.0

# What it writes to outside of its directories is its own, in a mount namespace.
_START: Final = """\
set -e
mkdir -p /etc/docker /run/docker
mount -t tmpfs none /etc/docker
mount -t tmpfs none /run/docker
exec "$@"
"""


class Docker:
    """A daemon that runs no containers, and so has no network for them."""

    def __init__(self, client: str, socket: Path) -> None:
        self._client = client
        self.host = f"unix://{socket}"
        """What a client has to be told as ``DOCKER_HOST``."""
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(socket.parent),
            "DOCKER_HOST": self.host,
        }

    def run(self, *arguments: object, check: bool = True, buildkit: bool = True) -> str:
        """Run ``docker``; return what it printed, on both.

        buildkit: whether ``build`` is by BuildKit, as by default from 23 on.
        """
        command = [self._client, *map(str, arguments)]
        done = subprocess.run(
            command,
            env=self._environment | {"DOCKER_BUILDKIT": str(int(buildkit))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}"
        return done.stdout

    def is_ready(self) -> bool:
        return "Server" in self.run("version", check=False)


@contextmanager
def running_docker(
    prefix: Sequence[str] = (), environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Docker]:
    """A daemon and all that is its own; gone at the end.

    prefix: the arguments with which it is executed, if not in this machine's network.
    environment: more variables for it.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root")
    program = need_program("dockerd", "docker.io")
    # Of the same package: another version may want plugins that are not there.
    client = shutil.which("docker", path=f"/usr/bin:{os.environ['PATH']}")
    if client is None:
        pytest.skip("needs docker: apt-get install docker.io")
    # A short one: the path of a socket may be 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="docker-") as name:
        directory = Path(name)
        socket = directory / "docker.sock"
        configuration = directory / "daemon.json"
        configuration.write_text("{}")  # not the machine's
        command = [
            *prefix,
            *("unshare", "--mount", "sh", "-c", _START, "sh"),
            *(program, "--config-file", str(configuration), "--host", f"unix://{socket}"),
            *("--data-root", str(directory / "data"), "--exec-root", str(directory / "exec")),
            *("--pidfile", str(directory / "docker.pid"), "--bridge", "none"),
            *("--iptables=false", "--ip6tables=false", "--ip-forward=false"),
        ]
        log = directory / "docker.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            docker = Docker(client, socket)

            def is_ready() -> bool:
                assert process.poll() is None, log.read_text()[-2000:]
                return docker.is_ready()

            eventually(is_ready, "Docker is ready", _SECONDS)
            yield docker
        finally:
            process.terminate()  # ends its containerd, too
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_SECONDS)
