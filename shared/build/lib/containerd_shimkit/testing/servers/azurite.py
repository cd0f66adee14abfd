"""Azurite, Azure's emulator of its blob storage, which `make azurite` installs."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from containerd_shimkit.testing.servers.process import Server, need_program, running_server

ACCOUNT = "testaccount"
KEY = base64.b64encode(b"a key of this test's own account").decode()

_PROGRAM = Path(".cache/azurite/node_modules/azurite/dist/src/blob/main.js")


@contextmanager
def running_azurite() -> Iterator[Server]:
    """A blob service with one account, in memory. Its URL is ``http://ADDRESS/ACCOUNT``."""
    node = need_program("node", "nodejs")
    program = next((d / _PROGRAM for d in Path(__file__).parents if (d / _PROGRAM).exists()), None)
    if program is None:
        pytest.skip("needs azurite: make azurite")

    def command(server: Server) -> Sequence[str]:
        return [
            *("/usr/bin/env", f"AZURITE_ACCOUNTS={ACCOUNT}:{KEY}", node, str(program)),
            *("--blobHost", server.host, "--blobPort", str(server.port)),
            *("--inMemoryPersistence", "--silent", "--disableTelemetry"),
        ]

    with running_server(command, as_nobody=False) as server:
        yield server
