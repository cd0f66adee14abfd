"""Whom TLS connections of a container trust, where nothing else is configured.

The first of these that is there counts:

1. ``SSL_CERT_FILE`` and the files in ``SSL_CERT_DIR``, of the container's environment
2. the image's own bundle, where distributions have it
3. the node's, opened before the container was isolated: an image ``FROM scratch`` has none
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from containerd_shimkit.certificates import BUNDLES
from containerd_shimkit.errors import ManifestError
from containerd_shimkit.text.image_files import read_text

_MOST_FILES: Final = 1000
_MOST_BUNDLE_BYTES: Final = 4 << 20
_PEM: Final = re.compile("-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")


class TlsConfigError(ManifestError):
    """Certificates or a key that cannot be used; the message names the file."""


class TrustedCertificates:
    """Those of a container."""

    def __init__(
        self, env: Mapping[str, str], *, root: Path = Path("/"), ca_bundle: int | None = None
    ) -> None:
        """env: of the container.  root: of the image.

        ca_bundle: descriptor of the node's bundle, which stays the caller's.
        """
        self._env = env
        self._root = root
        self._ca_bundle = ca_bundle
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context that trusts them, made at the first call. Raises TlsConfigError."""
        if self._context is None:
            context = new_context()
            self.trust(context)
            if not context.cert_store_stats()["x509_ca"]:
                raise TlsConfigError(
                    "there are no certificates to check servers with: neither image nor node has a "
                    "bundle; SSL_CERT_FILE names another one"
                )
            self._context = context
        return self._context

    def trust(self, context: ssl.SSLContext) -> None:
        """Have ``context`` trust them. Raises TlsConfigError."""
        file, directory = self._env.get("SSL_CERT_FILE"), self._env.get("SSL_CERT_DIR")
        if file or directory:
            if file:
                self.trust_file(context, Path("/", file))
            for path in self._files(Path("/", directory)) if directory else ():
                _trust(context, _PEM.findall(self.read(path)))
            return
        for path in map(Path, BUNDLES):
            if (text := read_text(self.inside(path), str(path))) is not None:
                _trust(context, _PEM.findall(text))
                return
        if self._ca_bundle is not None:
            _trust(context, _PEM.findall(_read_bundle(self._ca_bundle)))

    def trust_file(self, context: ssl.SSLContext, path: Path) -> None:
        """Trust a file that somebody named: then everything in it must be good.

        Raises TlsConfigError.
        """
        roots = _PEM.findall(self.read(path))
        if not roots or _trust(context, roots) < len(roots):
            what = "a certificate that cannot be read" if roots else "no certificate in PEM form"
            raise TlsConfigError(f"{path}: holds {what}")

    def read(self, path: Path) -> str:
        """Return a file of the image. Raises TlsConfigError."""
        text = read_text(self.inside(path), str(path))
        if text is None:
            raise TlsConfigError(f"{path}: no such file")
        return text

    def inside(self, path: Path) -> Path:
        """Return where a path of the image is."""
        return self._root / path.relative_to("/")

    def _files(self, directory: Path) -> Iterator[Path]:
        with contextlib.suppress(OSError), os.scandir(self.inside(directory)) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
            yield from (directory / name for name in names[:_MOST_FILES])


def new_context() -> ssl.SSLContext:
    """Return a client's context that checks certificates and names, and trusts nobody yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A certificate that is listed is trusted, also if another one signed it.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context


def _trust(context: ssl.SSLContext, roots: Iterable[str]) -> int:
    """Trust certificates; return how many could be read."""
    count = 0
    for root in roots:
        # One that this OpenSSL cannot read does not spoil the others of a bundle.
        with contextlib.suppress(ssl.SSLError):
            context.load_verify_locations(cadata=root)
            count += 1
    return count


def _read_bundle(descriptor: int) -> str:
    # By position, since forks share the descriptor.
    return os.pread(descriptor, _MOST_BUNDLE_BYTES, 0).decode("utf-8", "replace")
