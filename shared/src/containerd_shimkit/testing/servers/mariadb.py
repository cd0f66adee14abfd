"""Debian's MariaDB server, which speaks MySQL's protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from containerd_shimkit.testing.servers.process import Server, need_program, running_server

USER: Final = "tester"
PASSWORD: Final = "correct horse"
DATABASE: Final = "app"

# Run by the server itself before it listens; one statement a line.
_USERS: Final = (
    f"CREATE DATABASE IF NOT EXISTS {DATABASE} CHARACTER SET utf8mb4;",
    f"CREATE USER IF NOT EXISTS {USER} IDENTIFIED BY '{PASSWORD}';",
    f"GRANT ALL ON *.* TO {USER};",
    "",
)
# What makes a server quick that may lose everything, and small enough for several at once.
_OPTIONS: Final = (
    "--skip-log-bin",
    "--skip-name-resolve",
    "--performance-schema=OFF",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--innodb-use-native-aio=0",  # the kernel has a limit for all processes together
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=16M",
    "--max-allowed-packet=64M",
    "--max-connections=200",
)


@contextmanager
def running_mariadb(
    *options: str, certificate: tuple[Path, Path] | None = None, localhost: bool = False
) -> Iterator[Server]:
    """A MariaDB server with one database, and one user, who needs a password.

    options: as on its command line.  certificate: PEM files of chain and key, for connections by
    TLS.  localhost: whether it listens there, too.
    """
    install = need_program("mariadb-install-db", "mariadb-server")
    program = need_program("mariadbd", "mariadb-server")
    more = list(options)

    def prepare(server: Server) -> None:
        server.write_file("users.sql", "\n".join(_USERS).encode())
        server.run(
            *(install, "--no-defaults", f"--datadir={server.directory / 'data'}"),
            *("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"),
            *("--innodb-flush-method=nosync", "--innodb-log-file-size=16M"),
            # Each removes what others have for a moment in a directory that they share.
            *("--innodb-use-native-aio=0", f"--tmpdir={server.directory}"),
        )
        if certificate is not None:
            chain, key = certificate
            more.append(f"--ssl-cert={server.write_file('tls.crt', chain.read_bytes())}")
            more.append(f"--ssl-key={server.write_file('tls.key', key.read_bytes())}")

    def command(server: Server) -> Sequence[str]:
        return [
            *(program, "--no-defaults", f"--datadir={server.directory / 'data'}"),
            *(
                f"--bind-address={server.host}{',localhost' if localhost else ''}",
                f"--port={server.port}",
            ),
            *(f"--socket={server.directory / 's'}", f"--tmpdir={server.directory}"),
            *(f"--init-file={server.directory / 'users.sql'}", *_OPTIONS, *more),
        ]

    with running_server(command, prepare) as server:
        yield server


def mysql_url(server: Server, *, password: str = PASSWORD, options: str = "") -> str:
    """Return the address of the server's database. options: as in ``?ssl-mode=REQUIRED``."""
    return f"mysql://{USER}:{quote(password)}@{server.address}/{DATABASE}{options}"
