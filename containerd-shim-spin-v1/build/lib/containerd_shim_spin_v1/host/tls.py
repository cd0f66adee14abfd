"""TLS as a client: whom to trust, and who we are.

Certificates of servers are checked as ``containerd_shimkit.tls`` says. ``[[client_tls]]`` of the
runtime configuration says otherwise for some components and hosts; of several that fit, the first
counts. There is no second bundle in this program, so ``ca_use_webpki_roots`` means the same
certificates as ``ca_use_platform_roots``.

Source: Spin 4.0 crates/factor-outbound-networking/src/{tls.rs,runtime_config/spin.rs}.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

from containerd_shim_spin_v1.outbound.allowed_hosts import AllowedHost, parse_rule
from containerd_shim_spin_v1.runtime_config.model import ClientTls, RuntimeConfig
from containerd_shimkit.hosts import HostError, parse_host
from containerd_shimkit.tls import TlsConfigError, TrustedCertificates, new_context


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
        self._directory = directory
        self._trusted = TrustedCertificates(env, root=root, ca_bundle=ca_bundle)
        self._rules = [_Rule(tls) for tls in config.client_tls]

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
        return self._trusted.context()

    def _context_of(self, rule: _Rule) -> ssl.SSLContext:
        if rule.context is None:
            rule.context = self._make(rule.config)
        return rule.context

    def _make(self, config: ClientTls) -> ssl.SSLContext:
        context = new_context()
        if config.roots_file is not None:
            self._trusted.trust_file(context, self._directory / config.roots_file)
        if config.use_platform_roots or config.use_webpki_roots:
            self._trusted.trust(context)
        if config.cert_file is not None and config.key_file is not None:
            self._load_key(context, config.cert_file, config.key_file)
        return context

    def _load_key(self, context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
        cert, key = self._directory / cert_file, self._directory / key_file
        for path in (cert, key):
            self._trusted.read(path)  # OpenSSL would wait for whoever writes into a FIFO
        inside = self._trusted.inside
        try:
            # Without a password given it would ask for one at the terminal.
            context.load_cert_chain(inside(cert), inside(key), password="")
        except (OSError, ValueError):
            raise TlsConfigError(f"{cert} and {key} are no certificate with its key") from None


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
        except HostError:
            return False
        return any(entry.allows("https", parsed, None) for entry in self._hosts)
