"""Debian's mosquitto, and what it was sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from containerd_shimkit.testing.servers.process import Server, need_program, running_server
from containerd_shimkit.testing.servers.tls import Certificate


@contextmanager
def running_mosquitto(
    *options: str,
    users: Mapping[str, str] | None = None,
    certificate: Certificate | None = None,
    address: tuple[str, int] | None = None,
) -> Iterator[Server]:
    """An MQTT server that keeps nothing.

    options: lines of its configuration.  users: names and passwords; None lets everybody in.
    certificate: it speaks TLS.  address: see ``free_address``.
    """
    program = need_program("mosquitto", "mosquitto")

    def prepare(server: Server) -> None:
        lines = [f"listener {server.port} {server.host}", "persistence false"]
        # With a limit 2.0 forgets messages that wait for a subscriber, if their QoS differs.
        lines += ["max_inflight_messages 0", *options]
        lines.append(f"allow_anonymous {'true' if users is None else 'false'}")
        if users is not None:
            passwords = server.directory / "passwords"
            lines.append(f"password_file {passwords}")
            server.run("touch", str(passwords))
            for name, password in users.items():
                server.run(
                    need_program("mosquitto_passwd", "mosquitto"),
                    "-b",
                    str(passwords),
                    name,
                    password,
                )
        if certificate is not None:
            lines += [f"certfile {certificate.cert}", f"keyfile {certificate.key}"]
        (server.directory / "mosquitto.conf").write_text("\n".join([*lines, ""]))

    def command(server: Server) -> Sequence[str]:
        return [program, "-c", str(server.directory / "mosquitto.conf")]

    with running_server(command, prepare, address) as server:
        yield server
