"""Certificates for tests, made by the ``openssl`` program: an authority, and what it signs."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from containerd_shimkit.testing.servers.process import need_program, server_directory

_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, files in PEM form that every user may read."""

    cert: Path
    key: Path

    def server_context(self, client_authority: Path | None = None) -> ssl.SSLContext:
        """Return a server's context. client_authority: who must have signed the clients' ones."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        if client_authority is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(client_authority)
        return context


class Authority:
    """A certificate authority that nobody else trusts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._openssl = need_program("openssl", "openssl")
        self._own = self._files("authority")
        self._run(
            *("req", "-x509", *_NEW_KEY, "-subj", "/CN=Test Authority", "-days", "2"),
            *("-addext", "keyUsage=critical,keyCertSign"),
            *("-keyout", str(self._own.key), "-out", str(self._own.cert)),
        )

    @property
    def cert(self) -> Path:
        """What who trusts the authority has."""
        return self._own.cert

    def issue(self, name: str, *hosts: str, days: int = 2) -> Certificate:
        """Return a new certificate.

        name: of its files.  hosts: ``DNS:localhost``, ``IP:127.0.0.1``.  days: how long it is
        valid; it was until yesterday if -1.
        """
        made = self._files(name)
        request = self._directory / f"{name}.csr"
        extensions = self._directory / f"{name}.ext"
        names = f"subjectAltName={','.join(hosts)}\n" if hosts else ""
        extensions.write_text(f"basicConstraints=CA:FALSE\n{names}")
        self._run(
            *("req", "-new", *_NEW_KEY, "-subj", f"/CN={name}"),
            *("-keyout", str(made.key), "-out", str(request)),
        )
        self._run(
            *("x509", "-req", "-in", str(request), "-days", str(days), "-CAcreateserial"),
            *("-CA", str(self._own.cert), "-CAkey", str(self._own.key)),
            *("-extfile", str(extensions), "-out", str(made.cert)),
        )
        made.key.chmod(0o644)
        return made

    def _files(self, name: str) -> Certificate:
        return Certificate(self._directory / f"{name}.pem", self._directory / f"{name}.key")

    def _run(self, *arguments: str) -> None:
        command: Sequence[str] = [self._openssl, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        assert done.returncode == 0, f"{command}: {done.stderr}"


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@contextmanager
def certificate_authority() -> Iterator[Authority]:
    """An authority whose files are gone at the end."""
    with server_directory() as directory:
        yield Authority(directory)
