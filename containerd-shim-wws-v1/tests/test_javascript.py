"""What JavaScript workers find in their engine, a line for each rule."""

from __future__ import annotations

import json
from typing import Any

import pytest

from language_engine import (
    LanguageEngine,
    Worker,
    engine_file,
    mutable_globals,
)

# Answers with the JSON of the expression that the request's body is.
LABORATORY = """
addEventListener("fetch", (event) => event.respondWith(answer(event.request)));
async function answer(request) {
  const value = await (0, eval)(`(async () => (${await request.text()}\n))()`);
  return new Response(JSON.stringify(value === undefined ? "undefined" : value));
}
"""


@pytest.fixture(scope="module")
def engine() -> LanguageEngine:
    return LanguageEngine(engine_file("javascript"))


@pytest.fixture(scope="module")
def laboratory(engine: LanguageEngine) -> Worker:
    return engine.load(LABORATORY, env={"MESSAGE": "from the TOML", "fetch": "mine"})


def evaluate(laboratory: Worker, expression: str) -> Any:
    return json.loads(laboratory.handle({"body": expression, "method": "POST"}).response["data"])


def test_engine_can_be_snapshot(engine: LanguageEngine) -> None:
    """All its state is memory: the stack pointer is the only global that it sets."""
    assert mutable_globals(engine.wasm) == 1
    assert len(engine.wasm) < 3 << 19  # 1.5 MB


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        # The language
        ("1 + 1", 2),
        ("2n ** 64n + ''", "18446744073709551616"),
        ("[1, 2, 3].at(-1)", 3),
        ("'abc'.at(-3)", "a"),
        ("'abc'.at(3)", "undefined"),
        ("new Uint8Array([7, 8]).at(-1)", 8),
        ("Object.hasOwn({ a: 1 }, 'a')", True),
        ("[1, 2, 3].findLast((n) => n < 3)", 2),
        ("[1, 2, 3].findLastIndex((n) => n > 3)", -1),
        ("[3, 1, 2].toSorted()", [1, 2, 3]),
        ("[1, 2].toReversed()", [2, 1]),
        ("[1, 2].with(0, 5)", [5, 2]),
        ("Object.groupBy([1, 2, 3], (n) => n % 2 ? 'odd' : 'even')", {"odd": [1, 3], "even": [2]}),
        ("'a-b-c'.replaceAll('-', '+')", "a+b+c"),
        ("[..._ = [], ...Object.keys(Array.prototype)]", []),
        ("[[1, [2]], 3].flat(2)", [1, 2, 3]),
        ("new Intl", "ReferenceError"),
        ("/(?<year>\\d{4})/.exec('in 2026').groups.year", "2026"),
        (
            "(() => { class A { #x = 1; static y = 2; get x() { return this.#x } }"
            " return new A().x + A.y })()",
            3,
        ),
        ("(() => { let a = null; a ??= 4; return a?.b?.c ?? a })()", 4),
        ("Promise.any([Promise.reject(1), Promise.resolve(2)])", 2),
        ("Promise.allSettled([1]).then((all) => all[0].status)", "fulfilled"),
        ("new Date(0).toISOString()", "1970-01-01T00:00:00.000Z"),
        ("new Date(2020, 0, 1).getTimezoneOffset()", 0),
        ("Math.abs(Date.now() - new Date()) < 1000", True),
        ("'\\u0130'.toLowerCase().length", 2),
        ("'e\\u0301'.normalize('NFC').length", 1),
        # Bytes and text
        ("btoa('\\x00\\xff')", "AP8="),
        ("btoa('\\u0100')", "InvalidCharacterError"),
        ("atob(' aG k= ')", "hi"),
        ("atob('aGk')", "hi"),
        ("atob('a')", "InvalidCharacterError"),
        ("atob('aGk==')", "InvalidCharacterError"),
        ("atob('AP8=').charCodeAt(1)", 255),
        ("atob(btoa('x'.repeat(100000))).length", 100000),
        ("[...new TextEncoder().encode('\\u20ac')]", [0xE2, 0x82, 0xAC]),
        ("[...new TextEncoder().encode('a\\ud800b')]", [97, 0xEF, 0xBF, 0xBD, 98]),
        ("new TextEncoder().encode().length", 0),
        ("new TextEncoder().encodeInto('a\\u20ac', new Uint8Array(3))", {"read": 1, "written": 1}),
        ("new TextDecoder().decode(new Uint8Array([0xf0, 0x9f, 0x98, 0x80]))", "\U0001f600"),
        ("new TextDecoder().decode(new Uint8Array([0xf0, 0x9f, 0x41]))", "\ufffdA"),
        ("new TextDecoder().decode(new Uint8Array([0xed, 0xa0, 0x80]))", "\ufffd\ufffd\ufffd"),
        ("new TextDecoder().decode(new Uint8Array([0xc0, 0x80]))", "\ufffd\ufffd"),
        ("new TextDecoder().decode(new Uint8Array([65, 0, 66]))", "A\0B"),
        ("new TextDecoder().decode(new Uint8Array([0xef, 0xbb, 0xbf, 65]))", "A"),
        (
            "new TextDecoder('utf8', { ignoreBOM: true }).decode(new Uint8Array([239, 187, 191]))",
            "\ufeff",
        ),
        ("new TextDecoder('utf-8', { fatal: true }).decode(new Uint8Array([255]))", "TypeError"),
        ("new TextDecoder('latin1')", "RangeError"),
        ("new TextDecoder().decode(new DataView(new Uint8Array([1, 65, 66]).buffer, 1, 1))", "A"),
        (
            "(() => { const d = new TextDecoder(); const s = { stream: true };"
            " return d.decode(new Uint8Array([65, 0xe2]), s) + d.decode(new Uint8Array([0x82]), s)"
            " + d.decode(new Uint8Array([0xac])) })()",
            "A\u20ac",
        ),
        (
            "new TextDecoder().decode(new TextEncoder().encode('\\u00e4'.repeat(70000))).length",
            70000,
        ),
        # Chance
        ("new Set(crypto.getRandomValues(new Uint8Array(64))).size > 8", True),
        ("crypto.getRandomValues(new Uint8Array(65537))", "QuotaExceededError"),
        (
            "/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/"
            ".test(crypto.randomUUID())",
            True,
        ),
        # Clones
        ("structuredClone({ a: [1, new Date(5)], m: new Map([[1, 2]]) }).a[1].getTime()", 5),
        (
            "(() => { const o = {}; o.o = o; const c = structuredClone(o);"
            " return c.o === c && c !== o })()",
            True,
        ),
        ("structuredClone(new Uint8Array([1, 2]).subarray(1))[0]", 2),
        ("structuredClone(() => 1)", "DataCloneError"),
        # Variables
        ("MESSAGE", "from the TOML"),
        ("process.env.MESSAGE", "from the TOML"),
        ("typeof fetch", "function"),
        ("process.env.fetch", "mine"),
        # Time
        ("new Promise((done) => setTimeout(done, 5, 'later'))", "later"),
        ("performance.now() >= 0 && performance.now() < 60000", True),
        (
            "(async () => { const order = []; setTimeout(() => order.push(3), 3);"
            " setTimeout(() => order.push(1), 1); setTimeout(() => order.push(2), 1);"
            " queueMicrotask(() => order.push(0));"
            " await new Promise((done) => setTimeout(done, 4)); return order })()",
            [0, 1, 2, 3],
        ),
        (
            "(async () => { let n = 0; const id = setInterval(() => { if (++n === 3)"
            " clearInterval(id) }, 1); await new Promise((done) => setTimeout(done, 20));"
            " return n })()",
            3,
        ),
        (
            "(async () => { let n = 0; clearTimeout(setTimeout(() => n++, 1));"
            " await new Promise((done) => setTimeout(done, 3)); return n })()",
            0,
        ),
        ("setTimeout('code', 1)", "TypeError"),
    ],
)
def test_language_and_globals(laboratory: Worker, expression: str, value: Any) -> None:
    if isinstance(value, str) and value.endswith("Error"):
        expression = f"(async () => {expression})().catch((error) => error.name)"
    assert evaluate(laboratory, expression) == value


@pytest.mark.parametrize(
    ("text", "base", "href"),
    [
        ("https://example.com", None, "https://example.com/"),
        ("HTTPS://EXAMPLE.com:443/A/../b", None, "https://example.com/b"),
        ("http://example.com:8080/", None, "http://example.com:8080/"),
        ("http://a/b c?d e#f g", None, "http://a/b%20c?d%20e#f%20g"),
        ("  http://a/\t\nb  ", None, "http://a/b"),
        ("http://a\\b\\c", None, "http://a/b/c"),
        ("http:a", None, "http://a/"),
        ("http:////a/b", None, "http://a/b"),
        ("http://u:p@a/", None, "http://u:p@a/"),
        ("http://u@x:p@a/", None, "http://u%40x:p@a/"),
        ("http://a/%2e%2E/b/./c", None, "http://a/b/c"),
        ("http://a/b/..", None, "http://a/"),
        ("http://a/?x='", None, "http://a/?x=%27"),
        ("http://a/\u00e4?\u00e4#\u00e4", None, "http://a/%C3%A4?%C3%A4#%C3%A4"),
        ("http://m\u00fcnchen.example/", None, "http://xn--mnchen-3ya.example/"),
        ("http://\u65e5\u672c\u8a9e.jp/", None, "http://xn--wgv71a119e.jp/"),
        ("http://ex%41mple/", None, "http://example/"),
        ("http://0x7f.1/", None, "http://127.0.0.1/"),
        ("http://2130706433/", None, "http://127.0.0.1/"),
        ("http://[2001:DB8:0:0:1::1]/", None, "http://[2001:db8::1:0:0:1]/"),
        ("http://[0:0:0:0:0:0:0:1]:80/", None, "http://[::1]/"),
        ("http://[::ffff:1.2.3.4]/", None, "http://[::ffff:102:304]/"),
        ("file:///a/b", None, "file:///a/b"),
        ("file://localhost/a", None, "file:///a"),
        ("data:text/plain,a b", None, "data:text/plain,a b"),
        ("mailto:x@y", None, "mailto:x@y"),
        ("foo://Host/a/../b", None, "foo://Host/b"),
        ("b", "http://a/c/d", "http://a/c/b"),
        ("../b?q", "http://a/c/d/e", "http://a/c/b?q"),
        ("/b", "http://a/c?x#y", "http://a/b"),
        ("//b/c", "https://a/", "https://b/c"),
        ("?q", "http://a/b?c", "http://a/b?q"),
        ("#h", "http://a/b?c", "http://a/b?c#h"),
        ("", "http://a/b?c#d", "http://a/b?c"),
        ("https:x", "http://a/b", "https://x/"),
        ("http:x", "http://a/b/c", "http://a/b/x"),
        ("#h", "data:x", "data:x#h"),
        ("", None, "TypeError"),
        ("/path", None, "TypeError"),
        ("http://", None, "TypeError"),
        ("http://a b/", None, "TypeError"),
        ("http://a:99999/", None, "TypeError"),
        ("http://a:x/", None, "TypeError"),
        ("http://[::1/", None, "TypeError"),
        ("http://[1::2::3]/", None, "TypeError"),
        ("http://256.256.256.256/", None, "TypeError"),
        ("http://a%00b/", None, "TypeError"),
        ("x", "data:y", "TypeError"),
        ("x", "nonsense", "TypeError"),
    ],
)
def test_url(laboratory: Worker, text: str, base: str | None, href: str) -> None:
    arguments = json.dumps(text) + ("" if base is None else f", {json.dumps(base)}")
    expression = f"(async () => new URL({arguments}).href)().catch((error) => error.name)"
    assert evaluate(laboratory, expression) == href


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (
            "(({ protocol, host, hostname, port, pathname, search, hash, origin, username }) =>"
            " [protocol, host, hostname, port, pathname, search, hash, origin, username])"
            "(new URL('http://u@a:8080/p?q=1#h'))",
            ["http:", "a:8080", "a", "8080", "/p", "?q=1", "#h", "http://a:8080", "u"],
        ),
        ("new URL('data:x').origin", "null"),
        ("URL.canParse('nope')", False),
        ("JSON.stringify({ u: new URL('http://a') })", '{"u":"http://a/"}'),
        (
            "(() => { const u = new URL('http://a/b?x=1'); u.searchParams.append('y', 'ä &');"
            " return u.href })()",
            "http://a/b?x=1&y=%C3%A4+%26",
        ),
        (
            "(() => { const u = new URL('http://a/b?x=1'); u.search = '?z=2';"
            " return [u.searchParams.get('x'), u.searchParams.get('z')] })()",
            [None, "2"],
        ),
        (
            "(() => { const u = new URL('http://a/'); u.pathname = 'x y/../z'; u.hash = 'h';"
            " u.port = '81'; u.hostname = 'B'; u.protocol = 'https'; return u.href })()",
            "https://b:81/z#h",
        ),
        (
            "(() => { const u = new URL('http://a/'); u.host = 'c:90'; u.protocol = 'data';"
            " return u.href })()",
            "http://c:90/",
        ),
        (
            "[...new URLSearchParams('?a=1&b=%C3%A4+x&a=3&c')]",
            [["a", "1"], ["b", "ä x"], ["a", "3"], ["c", ""]],
        ),
        ("new URLSearchParams({ a: 'b c', d: '&' }).toString()", "a=b+c&d=%26"),
        ("new URLSearchParams([['a', 1], ['a', 2]]).getAll('a')", ["1", "2"]),
        ("new URLSearchParams([['a']])", "TypeError"),
        (
            "(() => { const p = new URLSearchParams('b=1&a=2&b=3'); p.set('b', 4); p.sort();"
            " p.delete('z'); return [p.toString(), p.has('b'), p.has('b', '1'), p.size] })()",
            ["a=2&b=4", True, False, 2],
        ),
        ("new URLSearchParams('a=%zz%4').get('a')", "%zz%4"),
        ("new URLSearchParams('a=%ff').get('a')", "\ufffd"),
        # Headers
        ("new Headers({ 'Content-Type': 'x' }).get('content-TYPE')", "x"),
        ("[...new Headers([['b', '1'], ['a', '2'], ['B', '3']])]", [["a", "2"], ["b", "1, 3"]]),
        (
            "[...new Headers([['Set-Cookie', 'a'], ['set-cookie', 'b']])]",
            [["set-cookie", "a"], ["set-cookie", "b"]],
        ),
        ("new Headers([['set-cookie', 'a'], ['set-cookie', 'b']]).getSetCookie()", ["a", "b"]),
        (
            "(() => { const h = new Headers({ a: 1 }); h.set('A', ' 2 '); h.append('a', 3);"
            " h.delete('b'); return [h.get('a'), h.has('A'), h.get('zz')] })()",
            ["2, 3", True, None],
        ),
        ("new Headers({ 'a b': '1' })", "TypeError"),
        ("new Headers({ a: 'x\\r\\ny' })", "TypeError"),
        ("new Headers({ a: '\\0' })", "TypeError"),
        ("new Headers([['a', 'b', 'c']])", "TypeError"),
        ("new Headers(new Headers({ a: 'b' })).get('a')", "b"),
        ("JSON.stringify(new Headers({ A: 'b' }))", '{"a":"b"}'),
        ("[...new Headers({ b: 1, a: 2 }).keys()]", ["a", "b"]),
        # Requests
        (
            "(({ method, url, body }) => [method, url, body])"
            "(new Request('http://a', { method: 'post', body: 'x' }))",
            ["POST", "http://a/", "x"],
        ),
        ("new Request('http://a', { method: 'purge' }).method", "purge"),
        ("new Request('/relative')", "TypeError"),
        ("new Request('http://u:p@a/')", "TypeError"),
        ("new Request('http://a', { body: 'x' })", "TypeError"),
        ("new Request('http://a', { method: 'a b' })", "TypeError"),
        (
            "new Request('http://a', { method: 'PUT', body: 'x' }).headers.get('content-type')",
            "text/plain;charset=UTF-8",
        ),
        (
            "new Request(new Request('http://a', { headers: { x: 'y' } }), { method: 'PUT' })"
            ".headers.get('x')",
            "y",
        ),
        ("new Request('http://a', { method: 'PUT', body: '{\"a\": 1}' }).json()", {"a": 1}),
        ("new Request('http://a', { method: 'PUT', body: 'nope' }).json()", "SyntaxError"),
        (
            "new Request('http://a', { method: 'PUT', body: new URLSearchParams('a=1') }).text()",
            "a=1",
        ),
        # Responses
        (
            "(({ status, ok, statusText, body }) => [status, ok, statusText, body])"
            "(new Response('x', { status: 404 }))",
            [404, False, "Not Found", "x"],
        ),
        ("new Response('x', { status: 99 })", "RangeError"),
        ("new Response('x', { status: 'abc' })", "RangeError"),
        ("new Response('x', { status: '201' }).status", 201),
        ("new Response().text()", ""),
        ("new Response(null).body", None),
        ("new Response(12).text()", "12"),
        ("new Response(new Uint8Array([1, 2]).subarray(1)).bytes().then((b) => [...b])", [2]),
        ("new Response('ä').arrayBuffer().then((b) => b.byteLength)", 2),
        ("Response.json([1]).headers.get('content-type')", "application/json"),
        ("Response.json(undefined)", "TypeError"),
        ("Response.redirect('/x', 301).headers.get('location')", "/x"),
        ("Response.redirect('/x').status", 307),
        ("Response.redirect('/x', 200)", "RangeError"),
        ("Response.error().type", "error"),
        ("new Response('x').clone().text()", "x"),
        (
            "(async () => { const r = new Response('x'); await r.text(); return r.bodyUsed })()",
            True,
        ),
        ("JSON.parse(new Response('[1]').text())", [1]),
        # Blobs and forms
        ("new Blob(['a', new Uint8Array([98]), new Blob(['c'])]).text()", "abc"),
        ("(({ size, type }) => [size, type])(new Blob(['ä'], { type: 'X/Y' }))", [2, "x/y"]),
        ("new Blob(['abcd']).slice(1, -1).text()", "bc"),
        ("new File(['x'], 'n.txt').name", "n.txt"),
        ("new Response(new Blob(['x'], { type: 'a/b' })).headers.get('content-type')", "a/b"),
        ("new Response('x').blob().then((blob) => blob.text())", "x"),
        (
            "(() => { const f = new FormData(); f.append('a', 1); f.append('a', 2); f.set('b', 3);"
            " f.set('a', 4); f.delete('b'); return [[...f], f.has('b'), f.get('b')] })()",
            [[["a", "4"]], False, None],
        ),
        (
            "new Response(new URLSearchParams('a=1&b=%20')).formData().then((f) => [...f])",
            [["a", "1"], ["b", " "]],
        ),
        (
            "(async () => { const f = new FormData(); f.append('a\"b', '\\r\\nä--');"
            " f.append('f', new Blob([new Uint8Array([13, 10, 255])]), 'x\"y');"
            " const back = await new Response(f).formData(); const file = back.get('f');"
            " return [back.get('a\"b'), file.name, file.type, [...await file.bytes()]] })()",
            ["\r\nä--", 'x"y', "application/octet-stream", [13, 10, 255]],
        ),
        ("new Response('x').formData()", "TypeError"),
        (
            "new Response('--b\\r\\n', { headers:"
            " { 'content-type': 'multipart/form-data; boundary=b' } }).formData()",
            "TypeError",
        ),
        # Signals
        ("AbortSignal.abort('why').reason", "why"),
        ("fetch('http://a', { signal: AbortSignal.abort() })", "AbortError"),
        (
            "(async () => { const c = new AbortController(); let n = 0;"
            " c.signal.addEventListener('abort', () => n++); c.abort(); c.abort(); return n })()",
            1,
        ),
        (
            "new Promise((done) => { const s = AbortSignal.timeout(1);"
            " s.onabort = () => done(s.reason.name) })",
            "TimeoutError",
        ),
        ("AbortSignal.any([AbortSignal.abort(1)]).aborted", True),
        ("new AbortSignal()", "TypeError"),
        ("`${new Response('plain').text()}`", "plain"),
    ],
)
def test_web_interfaces(laboratory: Worker, expression: str, value: Any) -> None:
    test_language_and_globals(laboratory, expression, value)
