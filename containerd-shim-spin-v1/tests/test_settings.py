"""Settings from the environment: defaults, what is read, and what is refused in which words."""

from __future__ import annotations

import re

import pytest

from containerd_shim_spin_v1.settings import Settings
from containerd_shimkit.environment import SettingError


def test_defaults() -> None:
    assert Settings.load({}, None) == Settings(
        host="0.0.0.0",
        port=80,
        drain_seconds=10.0,
        request_seconds=60.0,
        max_body_bytes=128 << 20,
        max_requests=1000,
        max_memory_bytes=4 << 30,
        workers=1,
    )


def test_as_many_workers_as_processors_unless_told_otherwise() -> None:
    assert Settings.load({}, None, 3).workers == 3
    assert Settings.load({"SPIN_HTTP_WORKERS": "2"}, None, 3).workers == 2


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("SPIN_HTTP_LISTEN_ADDR", "127.0.0.1:8080", "port", 8080),
        ("SPIN_HTTP_LISTEN_ADDR", "[::]:80", "host", "::"),
        ("SPIN_HTTP_LISTEN_ADDR", "", "host", "0.0.0.0"),
        ("SPIN_HTTP_REQUEST_TIMEOUT_SECONDS", "0", "request_seconds", None),
        ("SPIN_HTTP_REQUEST_TIMEOUT_SECONDS", "0.5", "request_seconds", 0.5),
        ("SPIN_HTTP_REQUEST_TIMEOUT_SECONDS", "", "request_seconds", 60.0),
        ("SPIN_SHUTDOWN_TIMEOUT_SECONDS", "0", "drain_seconds", 0.0),
        ("SPIN_SHUTDOWN_TIMEOUT_SECONDS", "25", "drain_seconds", 25.0),
        ("SPIN_HTTP_MAX_BODY_BYTES", "0", "max_body_bytes", 0),
        ("SPIN_HTTP_MAX_BODY_BYTES", "1e6", "max_body_bytes", 1_000_000),
        ("SPIN_MAX_INSTANCE_COUNT", "1", "max_requests", 1),
        ("SPIN_MAX_INSTANCE_COUNT", "10000", "max_requests", 10_000),
        ("SPIN_MAX_INSTANCE_MEMORY", "65536", "max_memory_bytes", 65_536),
    ],
)
def test_setting_is_read(name: str, text: str, field: str, value: object) -> None:
    assert getattr(Settings.load({name: text}, None), field) == value


@pytest.mark.parametrize(
    ("limit", "memory"), [(None, 4 << 30), (64 << 20, 64 << 20), (1 << 40, 4 << 30)]
)
def test_memory_follows_the_container(limit: int | None, memory: int) -> None:
    assert Settings.load({}, limit).max_memory_bytes == memory


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("SPIN_HTTP_REQUEST_TIMEOUT_SECONDS", "soon", "is not a number"),
        ("SPIN_HTTP_REQUEST_TIMEOUT_SECONDS", "-1", "is not between 0 and"),
        ("SPIN_HTTP_REQUEST_TIMEOUT_SECONDS", "nan", "is not between 0 and"),
        ("SPIN_HTTP_REQUEST_TIMEOUT_SECONDS", "inf", "is not between 0 and"),
        ("SPIN_SHUTDOWN_TIMEOUT_SECONDS", "1m", "is not a number"),
        ("SPIN_HTTP_MAX_BODY_BYTES", "1MB", "is not a number"),
        ("SPIN_MAX_INSTANCE_COUNT", "0", "is not between 1 and 10000"),
        ("SPIN_MAX_INSTANCE_COUNT", "10001", "is not between 1 and 10000"),
        ("SPIN_MAX_INSTANCE_MEMORY", "65535", "is not between 65536 and 4294967296"),
        ("SPIN_MAX_INSTANCE_MEMORY", "5e9", "is not between 65536 and 4294967296"),
    ],
)
def test_bad_setting_is_named_with_value_and_rule(name: str, text: str, rule: str) -> None:
    with pytest.raises(SettingError, match=f"^{name}={text!r} {rule}"):
        Settings.load({name: text}, None)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_address_is_parsed(text: str, address: tuple[str, int]) -> None:
    settings = Settings.load({"SPIN_HTTP_LISTEN_ADDR": text}, None)
    assert (settings.host, settings.port) == address


@pytest.mark.parametrize(
    "text",
    [
        "80",
        ":80",
        "localhost:80",
        "0.0.0.0",
        "0.0.0.0:",
        "0.0.0.0:65536",
        "0.0.0.0:-1",
        "1.2.3:80",
        "0.0.0.0:http",
        "0.0.0.0:٨٠",
        "http://0.0.0.0:80",
        "0.0.0.0:80/",
        " 0.0.0.0:80",
        "[::1]",
    ],
)
def test_bad_address_is_refused(text: str) -> None:
    message = f"SPIN_HTTP_LISTEN_ADDR={text!r} is not an IP address and port"
    with pytest.raises(SettingError, match=re.escape(message)):
        Settings.load({"SPIN_HTTP_LISTEN_ADDR": text}, None)
