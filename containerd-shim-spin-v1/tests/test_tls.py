"""Whom TLS connections trust, by real handshakes with certificates of a test's own authority."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from containerd_shim_spin_v1.host.tls import TlsContexts
from containerd_shim_spin_v1.runtime_config.model import RuntimeConfig
from containerd_shim_spin_v1.runtime_config.reader import parse_runtime_config
from containerd_shimkit.certificates import BUNDLES
from containerd_shimkit.testing.servers.tls import Authority, Certificate, certificate_authority
from containerd_shimkit.tls import TlsConfigError


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as made:
        yield made


@pytest.fixture(scope="module")
def server(authority: Authority) -> Certificate:
    return authority.issue("server", "DNS:localhost", "IP:127.0.0.1")


def put(root: Path, path: str, source: Path) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(source.read_bytes())


def client_tls(text: str) -> RuntimeConfig:
    return parse_runtime_config(f'[[client_tls]]\ncomponent_ids = ["c"]\n{text}')


def handshake(
    client: ssl.SSLContext,
    server: ssl.SSLContext,
    name: str = "localhost",
) -> None:
    """Connect once and hear one byte; raises ssl.SSLError as the client does."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"!")
        writer.close()

    async def main() -> None:
        listener = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server)
        try:
            port = listener.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=client, server_hostname=name
            )
            try:
                async with asyncio.timeout(10):
                    if await reader.read(1) != b"!":
                        raise ConnectionError("the server is gone")
            finally:
                writer.close()
        finally:
            listener.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_image_has_a_bundle(
    tmp_path: Path, authority: Authority, server: Certificate, bundle: str, name: str
) -> None:
    put(tmp_path, bundle, authority.cert)
    contexts = TlsContexts(RuntimeConfig(), {}, root=tmp_path)
    handshake(contexts.for_host("c", name), server.server_context(), name)


def test_the_node_has_a_bundle(tmp_path: Path, authority: Authority, server: Certificate) -> None:
    descriptor = os.open(authority.cert, os.O_RDONLY)
    try:
        for _ in range(2):  # the descriptor is shared with forks
            contexts = TlsContexts(RuntimeConfig(), {}, root=tmp_path, ca_bundle=descriptor)
            handshake(contexts.for_host("c", "localhost"), server.server_context())
    finally:
        os.close(descriptor)


def test_the_image_comes_before_the_node(
    tmp_path: Path, authority: Authority, server: Certificate
) -> None:
    with certificate_authority() as other:
        put(tmp_path, BUNDLES[0], other.cert)
    descriptor = os.open(authority.cert, os.O_RDONLY)
    try:
        contexts = TlsContexts(RuntimeConfig(), {}, root=tmp_path, ca_bundle=descriptor)
        with pytest.raises(ssl.SSLCertVerificationError, match="CERTIFICATE_VERIFY_FAILED"):
            handshake(contexts.default(), server.server_context())
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_the_environment_comes_before_the_image(
    tmp_path: Path, authority: Authority, server: Certificate, name: str
) -> None:
    with certificate_authority() as other:
        put(tmp_path, BUNDLES[0], other.cert)
    put(tmp_path, "/own/authority.pem", authority.cert)
    (tmp_path / "own/readme").write_text("no certificate")
    value = "/own/authority.pem" if name == "SSL_CERT_FILE" else "/own"
    contexts = TlsContexts(RuntimeConfig(), {name: value}, root=tmp_path)
    handshake(contexts.default(), server.server_context())


def test_a_bundle_with_one_bad_certificate(
    tmp_path: Path, authority: Authority, server: Certificate
) -> None:
    bad = "# é\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    put(tmp_path, BUNDLES[0], authority.cert)
    bundle = tmp_path / BUNDLES[0].lstrip("/")
    bundle.write_text(bad + bundle.read_text())
    contexts = TlsContexts(RuntimeConfig(), {}, root=tmp_path)
    handshake(contexts.default(), server.server_context())


def test_nobody_has_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(TlsConfigError, match="no certificates to check servers with"):
        TlsContexts(RuntimeConfig(), {}, root=tmp_path).default()


def test_contexts_are_made_once(tmp_path: Path, authority: Authority) -> None:
    put(tmp_path, BUNDLES[0], authority.cert)
    contexts = TlsContexts(RuntimeConfig(), {}, root=tmp_path)
    assert contexts.for_host("a", "a.example") is contexts.for_host("b", "b.example")


# What a server's certificate says


def test_certificate_for_another_host(
    tmp_path: Path, authority: Authority, server: Certificate
) -> None:
    put(tmp_path, BUNDLES[0], authority.cert)
    contexts = TlsContexts(RuntimeConfig(), {}, root=tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(contexts.default(), server.server_context(), "other.example")


def test_certificate_that_has_expired(tmp_path: Path, authority: Authority) -> None:
    put(tmp_path, BUNDLES[0], authority.cert)
    expired = authority.issue("expired", "DNS:localhost", days=-1)
    contexts = TlsContexts(RuntimeConfig(), {}, root=tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(contexts.default(), expired.server_context())


def test_tls_1_2_is_the_least(tmp_path: Path, authority: Authority) -> None:
    put(tmp_path, BUNDLES[0], authority.cert)
    context = TlsContexts(RuntimeConfig(), {}, root=tmp_path).default()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


# [[client_tls]]


def test_own_roots_for_a_host(tmp_path: Path, authority: Authority, server: Certificate) -> None:
    put(tmp_path, "/conf/roots.pem", authority.cert)
    with certificate_authority() as other:
        put(tmp_path, BUNDLES[0], other.cert)
    config = client_tls('hosts = ["localhost", "*.example.com"]\nca_roots_file = "roots.pem"')
    contexts = TlsContexts(config, {}, root=tmp_path, directory=Path("/conf"))
    contexts.check()
    own = contexts.for_host("c", "LOCALHOST")
    handshake(own, server.server_context())
    assert contexts.for_host("c", "a.example.com") is own
    for component, host in [("d", "localhost"), ("c", "example.com"), ("c", "127.0.0.1")]:
        assert contexts.for_host(component, host) is contexts.default()


@pytest.mark.parametrize("more", ["ca_use_platform_roots = true", "ca_use_webpki_roots = true"])
def test_own_roots_and_the_others(
    tmp_path: Path, authority: Authority, server: Certificate, more: str
) -> None:
    put(tmp_path, BUNDLES[0], authority.cert)
    with certificate_authority() as other:
        put(tmp_path, "/roots.pem", other.cert)
    config = client_tls(f'hosts = ["localhost"]\nca_roots_file = "/roots.pem"\n{more}')
    contexts = TlsContexts(config, {}, root=tmp_path)
    handshake(contexts.for_host("c", "localhost"), server.server_context())


def test_certificate_of_the_client(
    tmp_path: Path, authority: Authority, server: Certificate
) -> None:
    client = authority.issue("client")
    put(tmp_path, "/conf/roots.pem", authority.cert)
    put(tmp_path, "/conf/client.pem", client.cert)
    put(tmp_path, "/conf/client.key", client.key)
    roots = 'hosts = ["localhost"]\nca_roots_file = "roots.pem"\n'
    key = 'client_cert_file = "client.pem"\nclient_private_key_file = "client.key"'
    demanding = server.server_context(client_authority=authority.cert)

    with_key = TlsContexts(client_tls(roots + key), {}, root=tmp_path, directory=Path("/conf"))
    handshake(with_key.for_host("c", "localhost"), demanding)
    without = TlsContexts(client_tls(roots), {}, root=tmp_path, directory=Path("/conf"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(without.for_host("c", "localhost"), demanding)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "/conf/roots.pem: no such file"),
        ({"roots.pem": "nothing"}, "/conf/roots.pem: holds no certificate in PEM form"),
        (
            {"roots.pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
            "/conf/roots.pem: holds a certificate that cannot be read",
        ),
    ],
)
def test_bad_roots(tmp_path: Path, files: dict[str, str], message: str) -> None:
    (tmp_path / "conf").mkdir()
    for name, text in files.items():
        (tmp_path / "conf" / name).write_text(text)
    config = client_tls('hosts = ["localhost"]\nca_roots_file = "roots.pem"')
    contexts = TlsContexts(config, {}, root=tmp_path, directory=Path("/conf"))
    with pytest.raises(TlsConfigError) as caught:
        contexts.check()
    assert str(caught.value) == message


def test_a_key_that_is_not_the_certificates(tmp_path: Path, authority: Authority) -> None:
    put(tmp_path, "/client.pem", authority.issue("one").cert)
    put(tmp_path, "/client.key", authority.issue("two").key)
    config = client_tls(
        'hosts = ["localhost"]\nclient_cert_file = "/client.pem"\n'
        'client_private_key_file = "/client.key"'
    )
    put(tmp_path, BUNDLES[0], authority.cert)
    with pytest.raises(TlsConfigError, match=r"/client\.pem and /client\.key are no certificate"):
        TlsContexts(config, {}, root=tmp_path).check()


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "roots.pem")
    config = client_tls('hosts = ["localhost"]\nca_roots_file = "/roots.pem"')
    with pytest.raises(TlsConfigError, match="holds no certificate"):
        TlsContexts(config, {}, root=tmp_path).check()
