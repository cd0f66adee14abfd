"""URLs of guests: what is connected to, and what is no URL."""

from __future__ import annotations

import pytest

from containerd_shim_spin_v1.host.http import component_of
from containerd_shimkit.http_client.urls import InvalidUrlError, parse_target, parse_url


@pytest.mark.parametrize(
    ("text", "origin", "target"),
    [
        ("http://example.com", "http://example.com", "/"),
        ("HTTP://EXAMPLE.com/A?b=C", "http://example.com", "/A?b=C"),
        ("https://example.com:443/", "https://example.com", "/"),
        ("http://example.com:443/", "http://example.com:443", "/"),
        ("http://example.com:/a", "http://example.com", "/a"),
        ("http://example.com:0080/a", "http://example.com", "/a"),
        ("http://example.com?q", "http://example.com", "/?q"),
        ("http://example.com#/@evil.com", "http://example.com", "/"),
        ("http://example.com/a#b?c", "http://example.com", "/a"),
        ("http://example.com/a?", "http://example.com", "/a?"),
        ("  http://example.com/a b \n", "http://example.com", "/a%20b"),
        ("ht\ntp://exam\tple.com/\r\nx: y", "http://example.com", "/x:%20y"),
        # Who the host is
        ("http://a@b/", "http://b", "/"),
        ("http://a:b@c:80@d:81/", "http://d:81", "/"),
        ("http://good.com/@evil.com", "http://good.com", "/@evil.com"),
        ("http://good.com\\@evil.com", "http://good.com", "/@evil.com"),
        ("http:\\\\good.com\\a", "http://good.com", "/a"),
        ("http://good.com?@evil.com", "http://good.com", "/?@evil.com"),
        ("http://good.com#@evil.com", "http://good.com", "/"),
        ("http://127.1/", "http://127.0.0.1", "/"),
        ("http://0x7f.1/", "http://127.0.0.1", "/"),
        ("http://2130706433/", "http://127.0.0.1", "/"),
        ("http://0177.0.0.1./", "http://127.0.0.1", "/"),
        ("http://\uff11\uff12\uff17.0.0.1/", "http://127.0.0.1", "/"),
        ("http://[::1]:8080/", "http://[::1]:8080", "/"),
        ("http://[0:0:0:0:0:0:0:1]/", "http://[::1]", "/"),
        ("http://bücher.example/", "http://xn--bcher-kva.example", "/"),
        ("http://ex。ample/", "http://ex.ample", "/"),
        # What a path may hold
        ("http://h/é?é", "http://h", "/%C3%A9?%C3%A9"),
        ("http://h/%zz%2f?%", "http://h", "/%zz%2f?%"),
        ("http://h/a/./b/../c", "http://h", "/a/c"),
        ("http://h/a/..", "http://h", "/"),
        ("http://h/a/b/.", "http://h", "/a/b/"),
        ("http://h/../../x", "http://h", "/x"),
        ("http://h/a/%2e%2E/b", "http://h", "/b"),
        ("http://h//a//", "http://h", "//a//"),
        ('http://h/"<>`{}', "http://h", "/%22%3C%3E%60%7B%7D"),
        ("http://h/?\"<>'", "http://h", "/?%22%3C%3E%27"),
    ],
)
def test_where_a_request_goes(text: str, origin: str, target: str) -> None:
    url = parse_url(text)
    assert (url.origin, url.target) == (origin, target)
    assert parse_url(str(url)) == parse_url(url.origin + url.target)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com",
        "/path",
        "//host/path",
        "ftp://example.com",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http:",
        "http://",
        "http:///example.com",
        "http:example.com",
        "http://:80/",
        "http://a:b/",
        "http://a:65536/",
        "http://a:-1/",
        "http://a:٨٠/",
        "http://a b/",
        "http://a%2eb/",
        "http://a<b/",
        "http://[::1/",
        "http://[::1%25eth0]/",
        "http://[::1]x/",
        "http://1.2.3.4.5/",
        "http://256.1.1.1/",
        "http://a\0b/",
        "http://℀.example/",
        "http://h/\ud800",
        "http://h/" + "a" * 70_000,
        "http://h/" + "é" * 30_000,
    ],
)
def test_what_is_no_url(text: str) -> None:
    with pytest.raises(InvalidUrlError):
        parse_url(text)


def test_user_and_password() -> None:
    url = parse_url("http://Aladdin:open%20sesame@example.com/")
    assert url.authorization == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert "sesame" not in f"{url} {url!r}"
    assert "QWxh" not in f"{url} {url!r}"
    assert parse_url("http://@example.com/").authorization is None


@pytest.mark.parametrize(
    "text", ["http://u:secret@a:b/", "http://u:secret@[::/", "http://u:secret@a b/"]
)
def test_a_password_is_in_no_message(text: str) -> None:
    with pytest.raises(InvalidUrlError) as caught:
        parse_url(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "result"),
    [
        ("/b", "http://h:81/b"),
        ("c", "http://h:81/a/c"),
        ("?q", "http://h:81/a/b?q"),
        ("../x", "http://h:81/x"),
        ("//other/y", "http://other/y"),
        ("https://other/y#z", "https://other/y"),
        ("", "http://h:81/a/b"),
    ],
)
def test_where_a_redirect_leads(location: str, result: str) -> None:
    assert str(parse_url("http://u:p@h:81/a/b").join(location)) == result


@pytest.mark.parametrize("location", ["ftp://h/", "http://[", "mailto:a@b", "http://a b"])
def test_a_redirect_to_nowhere(location: str) -> None:
    with pytest.raises(InvalidUrlError):
        parse_url("http://h/").join(location)


@pytest.mark.parametrize(
    ("text", "target"),
    [("/a?b", "/a?b"), ("/", "/"), ("//evil.com/x", "//evil.com/x"), ("/a b#c", "/a%20b")],
)
def test_a_url_without_host(text: str, target: str) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "component"),
    [
        ("http://back.spin.internal/", "back"),
        ("http://BACK.spin.internal:80/", "back"),
        ("http://spin.internal/", None),
        ("http://.spin.internal/", None),
        ("http://spin.internal.example/", None),
        ("http://back.spin.internal.example/", None),
    ],
)
def test_components_have_hosts(text: str, component: str | None) -> None:
    assert component_of(parse_url(text)) == component
