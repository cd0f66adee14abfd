"""Debian's etcd."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.process import Server, need_program, running_server


@contextmanager
def running_etcd() -> Iterator[Server]:
    """An etcd of one member, which has leases of a second and more."""
    program = need_program("etcd", "etcd-server")
    peer = "http://{}:{}".format(*free_address())

    def command(server: Server) -> Sequence[str]:
        own = f"http://{server.address}"
        return [
            *(program, "--name", "one", "--data-dir", str(server.directory / "data")),
            *("--listen-client-urls", own, "--advertise-client-urls", own),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"one={peer}", "--unsafe-no-fsync", "--log-level", "error"),
            *("--heartbeat-interval", "20", "--election-timeout", "200"),
        ]

    def ready(server: Server) -> bool:
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://{server.address}/health", timeout=5) as response,
        ):
            return bool(json.load(response)["health"] == "true")
        return False

    with running_server(command, ready=ready) as server:
        yield server
