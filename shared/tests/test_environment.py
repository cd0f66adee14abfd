"""Settings of a container's environment."""

from __future__ import annotations

import pytest

from containerd_shimkit.environment import SettingError, parse_address, read_number


@pytest.mark.parametrize(("text", "value"), [("", 5.0), ("0", 0.0), ("2.5", 2.5), ("1e1", 10.0)])
def test_number(text: str, value: float) -> None:
    assert read_number({"N": text}, "N", 5.0, most=10) == value
    assert read_number({}, "N", 5.0) == 5.0


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("ten", "N='ten' is not a number"),
        ("11", "N='11' is not between 1 and 10"),
        ("0", "N='0' is not between 1 and 10"),
        ("nan", "N='nan' is not between 1 and 10"),
    ],
)
def test_number_that_cannot_be_used(text: str, rule: str) -> None:
    with pytest.raises(SettingError, match=f"^{rule}$"):
        read_number({"N": text}, "N", 5.0, least=1, most=10)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("0.0.0.0:80", "0.0.0.0", 80), ("[::1]:65535", "::1", 65535), ("127.0.0.1:0", "127.0.0.1", 0)],
)
def test_address(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", "80", ":80", "0.0.0.0", "h:80", "0.0.0.0:65536", "0.0.0.0:-1", "0.0.0.0:٣"]
)
def test_address_that_is_none(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of ipaddress, too
        parse_address(text)
