"""Debian's etcd."""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.process import Server, need_program, running_server
from containerd_shimkit.testing.servers.tls import Certificate


@contextmanager
def running_etcd(
    certificate: Certificate | None = None, address: tuple[str, int] | None = None
) -> Iterator[Server]:
    """An etcd of one member, which has leases of a second and more.

    certificate: it speaks TLS only.  address: see ``free_address``.
    """
    program = need_program("etcd", "etcd-server")
    scheme, files, context = "http", [], None
    if certificate is not None:
        scheme = "https"
        files = ["--cert-file", str(certificate.cert), "--key-file", str(certificate.key)]
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    peer = "http://{}:{}".format(*free_address())

    def command(server: Server) -> Sequence[str]:
        own = f"{scheme}://{server.address}"
        return [
            *(program, "--name", "one", "--data-dir", str(server.directory / "data")),
            *("--listen-client-urls", own, "--advertise-client-urls", own),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"one={peer}", "--unsafe-no-fsync", "--log-level", "error"),
            *("--heartbeat-interval", "20", "--election-timeout", "200"),
            *files,
        ]

    def ready(server: Server) -> bool:
        with (
            suppress(OSError),
            urllib.request.urlopen(
                f"{scheme}://{server.address}/health", timeout=5, context=context
            ) as response,
        ):
            return bool(json.load(response)["health"] == "true")
        return False

    with running_server(command, address=address, ready=ready) as server:
        yield server
