"""TLS as a client: whom to trust, and who we are.

Certificates of servers are checked against the first of these that is there:

1. ``SSL_CERT_FILE`` and the files in ``SSL_CERT_DIR``, of the container's environment
2. the image's own bundle, where distributions have it
3. the node's, opened before the container was isolated: an image ``FROM scratch`` has none

``[[client_tls]]`` of the runtime configuration says otherwise for some components and hosts; of
several that fit, the first counts. There is no second bundle in this program, so
``ca_use_webpki_roots`` means the same certificates as ``ca_use_platform_roots``.

Source: Spin 4.0 crates/factor-outbound-networking/src/{tls.rs,runtime_config/spin.rs}.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from containerd_shim_spin_v1.outbound.allowed_hosts import (
    AllowedHost,
    HostEntryError,
    parse_host,
    parse_rule,
)
from containerd_shim_spin_v1.runtime_config.model import ClientTls, RuntimeConfig
from containerd_shimkit.certificates import BUNDLES
from containerd_shimkit.errors import ManifestError
from containerd_shimkit.text.image_files import read_text

_MOST_FILES: Final = 1000
_MOST_BUNDLE_BYTES: Final = 4 << 20
_PEM: Final = re.compile("-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")


class TlsConfigError(ManifestError):
    """Certificates or a key that cannot be used; the message names the file."""


class TlsContexts:
    """The contexts of an app's TLS connections, each made when it is first asked for."""

    def __init__(
        self,
        config: RuntimeConfig,
        env: Mapping[str, str],
        *,
        directory: Path = Path("/"),
        root: Path = Path("/"),
        ca_bundle: int | None = None,
    ) -> None:
        """env: of the container.  directory: of the configuration file.  root: of the image.

        ca_bundle: descriptor of the node's bundle, which stays the caller's.
        """
        self._env = env
        self._directory = directory
        self._root = root
        self._ca_bundle = ca_bundle
        self._rules = [_Rule(tls) for tls in config.client_tls]
        self._default: ssl.SSLContext | None = None

    def check(self) -> None:
        """Make the contexts of ``[[client_tls]]``. Raises TlsConfigError: a start finds faults."""
        for rule in self._rules:
            self._context_of(rule)

    def for_host(self, component_id: str, host: str) -> ssl.SSLContext:
        """Return the context for a component's connections to ``host``. Raises TlsConfigError."""
        for rule in self._rules:
            if rule.fits(component_id, host):
                return self._context_of(rule)
        return self.default()

    def default(self) -> ssl.SSLContext:
        """Return the context where nothing is configured. Raises TlsConfigError."""
        if self._default is None:
            context = _context()
            self._trust_system(context)
            if not context.cert_store_stats()["x509_ca"]:
                raise TlsConfigError(
                    "there are no certificates to check servers with: neither image nor node has a "
                    "bundle; SSL_CERT_FILE names another one"
                )
            self._default = context
        return self._default

    def _context_of(self, rule: _Rule) -> ssl.SSLContext:
        if rule.context is None:
            rule.context = self._make(rule.config)
        return rule.context

    def _make(self, config: ClientTls) -> ssl.SSLContext:
        context = _context()
        if config.roots_file is not None:
            self._trust_file(context, self._directory / config.roots_file)
        if config.use_platform_roots or config.use_webpki_roots:
            self._trust_system(context)
        if config.cert_file is not None and config.key_file is not None:
            self._load_key(context, config.cert_file, config.key_file)
        return context

    def _load_key(self, context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
        cert, key = self._directory / cert_file, self._directory / key_file
        for path in (cert, key):
            self._read(path)  # OpenSSL would wait for whoever writes into a FIFO
        try:
            # Without a password given it would ask for one at the terminal.
            context.load_cert_chain(self._inside(cert), self._inside(key), password="")
        except (OSError, ValueError):
            raise TlsConfigError(f"{cert} and {key} are no certificate with its key") from None

    def _trust_system(self, context: ssl.SSLContext) -> None:
        """Trust the certificates that count where nothing else is said."""
        file, directory = self._env.get("SSL_CERT_FILE"), self._env.get("SSL_CERT_DIR")
        if file or directory:
            if file:
                self._trust_file(context, Path("/", file))
            for path in self._files(Path("/", directory)) if directory else ():
                _trust(context, _PEM.findall(self._read(path)))
            return
        for path in map(Path, BUNDLES):
            if (text := read_text(self._inside(path), str(path))) is not None:
                _trust(context, _PEM.findall(text))
                return
        if self._ca_bundle is not None:
            _trust(context, _PEM.findall(_read_bundle(self._ca_bundle)))

    def _trust_file(self, context: ssl.SSLContext, path: Path) -> None:
        """Trust a file that somebody named: then everything in it must be good."""
        roots = _PEM.findall(self._read(path))
        if not roots or _trust(context, roots) < len(roots):
            what = "a certificate that cannot be read" if roots else "no certificate in PEM form"
            raise TlsConfigError(f"{path}: holds {what}")

    def _files(self, directory: Path) -> Iterator[Path]:
        with contextlib.suppress(OSError), os.scandir(self._inside(directory)) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
            yield from (directory / name for name in names[:_MOST_FILES])

    def _read(self, path: Path) -> str:
        text = read_text(self._inside(path), str(path))
        if text is None:
            raise TlsConfigError(f"{path}: no such file")
        return text

    def _inside(self, path: Path) -> Path:
        return self._root / path.relative_to("/")


class _Rule:
    """One ``[[client_tls]]`` and its context."""

    def __init__(self, config: ClientTls) -> None:
        self.config = config
        self.context: ssl.SSLContext | None = None
        self._hosts = [AllowedHost(None, parse_rule(host), None) for host in config.hosts]

    def fits(self, component_id: str, host: str) -> bool:
        if component_id not in self.config.component_ids:
            return False
        try:
            parsed = parse_host(f"[{host}]" if ":" in host and host[0] != "[" else host)
        except HostEntryError:
            return False
        return any(entry.allows("https", parsed, None) for entry in self._hosts)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which checks certificates and names
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
