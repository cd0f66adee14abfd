"""Addresses of Redis servers, which guests write."""

from __future__ import annotations

import pytest

from containerd_shimkit.redis_client.address import AddressError, RedisAddress


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("redis://h", RedisAddress("h", 6379)),
        ("redis://H.Example:7000/", RedisAddress("h.example", 7000)),
        ("REDIS://h/3", RedisAddress("h", 6379, 3)),
        ("rediss://h:1/3/", RedisAddress("h", 1, 3, True)),
        ("redis://[::1]:6380/0", RedisAddress("::1", 6380)),
        ("redis://0x7f.1", RedisAddress("127.0.0.1", 6379)),
        ("redis://:p%40ss@h", RedisAddress("h", 6379, password=b"p@ss")),
        ("redis://u:p@h", RedisAddress("h", 6379, username=b"u", password=b"p")),
        ("redis://u:a:b@c@h:2", RedisAddress("h", 2, username=b"u", password=b"a:b@c")),
        ("redis://u@h", RedisAddress("h", 6379, username=b"u")),
        ("redis://h?ssl_ca_certs=/x&db=4&path=/s", RedisAddress("h", 6379)),
        ("redis://bücher.example", RedisAddress("xn--bcher-kva.example", 6379)),
    ],
)
def test_address(text: str, address: RedisAddress) -> None:
    assert RedisAddress.parse(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h:6379",
        "http://h",
        "unix:///run/redis.sock",
        "redis+unix:///run/redis.sock",
        "redis:///run/redis.sock",
        "redis://",
        "redis://:6379",
        "redis://h:0",
        "redis://h:65536",
        "redis://h:99999999",
        "redis://h:-1",
        "redis://h/name",
        "redis://h/-1",
        "redis://h/1/2",
        "redis://a b",
        "redis://h\n",
        "redis://h\0",
        "redis://a\\b",
        "redis://a%2eb",
        "redis://[::1",
        "redis://[1.2.3.4]",
        "redis://1.2.3.256",
        "rediss://h#insecure",
        "redis://" + "h" * 5000,
    ],
    ids=lambda text: repr(text)[:40],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(AddressError):
        RedisAddress.parse(text)


def test_password_is_never_shown() -> None:
    address = RedisAddress.parse("redis://u:s3cret@h")
    assert "s3cret" not in f"{address} {address!r}"
    for text in ("redis://u:s3cret@h/name", "s3cret", "redis://u:s3cret@%"):
        with pytest.raises(AddressError) as caught:
            RedisAddress.parse(text)
        assert "s3cret" not in str(caught.value)
