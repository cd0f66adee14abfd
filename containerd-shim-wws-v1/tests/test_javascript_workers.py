"""JavaScript workers as the host sees them: forms, requests, responses, failures, hostile ones."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from language_engine import (
    Answer,
    LanguageEngine,
    OutgoingError,
    OutgoingRequest,
    OutgoingResponse,
    WorkerFailed,
    engine_file,
)


@pytest.fixture(scope="module")
def engine() -> LanguageEngine:
    return LanguageEngine(engine_file("javascript"))


def listener(body: str) -> str:
    """A worker whose listener is the body of a function of `event`."""
    return f'addEventListener("fetch", async (event) => {{ {body} }});'


def respond(expression: str) -> str:
    """A worker that answers with an expression; `request` is what is asked."""
    return (
        f"const reply = async (request) => {expression};\n"
        'addEventListener("fetch", (event) => event.respondWith(reply(event.request)));'
    )


def answer(engine: LanguageEngine, source: str, **request: Any) -> Answer:
    return engine.load(source).handle(request)


def failure(engine: LanguageEngine, source: str, **request: Any) -> str:
    worker = engine.load(source)
    with pytest.raises(WorkerFailed) as raised:
        worker.handle(request)
    return raised.value.stderr


def load_failure(engine: LanguageEngine, source: str | bytes, **options: Any) -> str:
    with pytest.raises(WorkerFailed) as raised:
        engine.load(source, **options)
    return raised.value.stderr


@pytest.mark.parametrize(
    "source",
    [
        respond('new Response("x")'),
        'addEventListener("fetch", (e) => e.respondWith(new Response("x")))',
        'addEventListener("fetch", (e) => { return e.respondWith(new Response("x")) })',
        'addEventListener("fetch", async (e) => { await 1; e.respondWith(new Response("x")) })',
        'addEventListener("fetch", () => {});'
        ' addEventListener("fetch", (e) => e.respondWith(new Response("x")))',
        'export default { fetch(request) { return new Response("x") } }',
        'export default { async fetch(request) { return new Response("x") } };',
        'const app = { fetch: () => new Response("x") };\nexport default app;',
        'const app = { fetch: () => new Response("x") };\nexport { app as default };',
        'class App { y = "x"; fetch() { return new Response(this.y) } }\nexport default new App();',
        'export default function (request) { return new Response("x") }',
        'export default async (request) => new Response("x")',
        '\ufeff#!/usr/bin/env wws\nexport default () => new Response("x")',
        'export {}; addEventListener("fetch", (e) => e.respondWith(new Response("x")))',
        'var a = 08; addEventListener("fetch", (e) => e.respondWith(new Response("x")))',
        'let ready; Promise.resolve().then(() => (ready = "x"));'
        ' addEventListener("fetch", (e) => e.respondWith(new Response(ready)))',
        'const console = 1; addEventListener("fetch", (e) => e.respondWith(new Response("x")))',
    ],
)
def test_forms_of_workers(engine: LanguageEngine, source: str) -> None:
    worker = engine.load(source)
    assert worker.stderr == ""
    assert worker.handle({}).response == {"data": "x", "status": 200, "headers": {}, "kv": {}}


def test_export_gets_variables_and_a_context(engine: LanguageEngine) -> None:
    source = (
        "export default { async fetch(request, env, context) {"
        ' context.waitUntil(new Promise((done) => setTimeout(() => { console.log("done"); done() },'
        " 2))); return new Response(env.A) } }"
    )
    result = engine.load(source, env={"A": "b"}).handle({})
    assert (result.response["data"], result.stdout) == ("b", "done\n")


@pytest.mark.parametrize(
    ("expression", "request_", "data"),
    [
        ("request.url", {}, "http://localhost/worker"),
        ("request.url", {"url": "/path?x=1"}, "/path?x=1"),
        ("request.method", {"method": "PATCH"}, "PATCH"),
        ("request.headers.get('X-Y')", {"headers": {"x-y": "z"}}, "z"),
        ("request.headers.get('x')", {"headers_list": [["x", "1"], ["X", "2"]]}, "1, 2"),
        ("request.body", {"body": "text"}, "text"),
        ("request.body || '-'", {}, "-"),
        ("await request.text()", {"body": "t\0\u20ac"}, "t\0\u20ac"),
        ("(await request.json()).a", {"body": '{"a": "b"}'}, "b"),
        ("JSON.parse(request.text()).a", {"body": '{"a": "b"}'}, "b"),
        ("(await request.arrayBuffer()).byteLength", {"body": "\u20ac"}, "3"),
        ("[...request.body].join()", {"body": "gP8=", "base64": True}, "128,255"),
        ("(await request.text())", {"body": "gEE=", "base64": True}, "\ufffdA"),
        ("request.params.id", {"params": {"id": "7"}}, "7"),
        ("request.params.none", {}, "undefined"),
        ("Cache.get('k')", {"kv": {"k": "v"}}, "v"),
        ("Cache.get('constructor')", {}, "undefined"),
        ("new URL(request.url).pathname", {}, "/worker"),
        ("(await request.clone().text())", {"body": "x"}, "x"),
        ("request.text().then((text) => text.length)", {"body": "x" * 1_000_000}, "1000000"),
    ],
)
def test_request(
    engine: LanguageEngine, expression: str, request_: dict[str, Any], data: str
) -> None:
    source = respond(f"new Response(String(await ({expression})))")
    assert answer(engine, source, **request_).response["data"] == data


@pytest.mark.parametrize(
    ("expression", "response"),
    [
        (
            "new Response('x', { status: 201, headers: { 'X-A': 'b' } })",
            {"data": "x", "status": 201, "headers": {"x-a": "b"}},
        ),
        (
            "new Response('a\\\\\"\\n\\u0001\\u20ac\\u{1f600}')",
            {"data": 'a\\"\n\x01\u20ac\U0001f600'},
        ),
        ("new Response('a\\ud800b')", {"data": "a\ufffdb"}),
        ("new Response('\\0')", {"data": "\0"}),
        ("new Response(null, { status: 204 })", {"data": "", "status": 204}),
        ("new Response(new Uint8Array([104, 105]))", {"data": "hi"}),
        ("new Response(new Uint8Array([104, 255]).buffer)", {"data": "aP8=", "base64": True}),
        ("new Response(new ArrayBuffer(0))", {"data": ""}),
        (
            "new Response('', { headers: [['set-cookie', 'a=1'], ['set-cookie', 'b=2']] })",
            {"headers": {"set-cookie": ["a=1", "b=2"]}},
        ),
        ("new Response('', { headers: [['x', '1'], ['x', '2']] })", {"headers": {"x": "1, 2"}}),
        ("new Response('', { headers: { x: '\\ud800' } })", {"headers": {"x": "\ufffd"}}),
        (
            "Response.json({ a: 1 })",
            {"data": '{"a":1}', "headers": {"content-type": "application/json"}},
        ),
        (
            "Response.redirect('https://x/', 301)",
            {
                "data": "Redirecting to https://x/",
                "status": 301,
                "headers": {"location": "https://x/"},
            },
        ),
        (
            "(Cache.set('n', 1), Cache.set('s', 'a\\ud800'), Cache.set('o', { a: 1 }),"
            " Cache.delete('old'), new Response(''))",
            {"kv": {"keep": "k", "n": "1", "s": "a\ufffd", "o": '{"a":1}'}},
        ),
        (
            "(Cache.set('__proto__', 'x'), new Response(''))",
            {"kv": {"keep": "k", "old": "o", "__proto__": "x"}},
        ),
        ("(Object.prototype.polluted = 'p', new Response(''))", {"kv": {"keep": "k", "old": "o"}}),
    ],
)
def test_response(engine: LanguageEngine, expression: str, response: dict[str, Any]) -> None:
    result = answer(engine, respond(expression), kv={"keep": "k", "old": "o"}).response
    assert {key: result.get(key) for key in response} == response
    assert ("base64" in result) == ("base64" in response)


@pytest.mark.parametrize(
    ("statement", "stdout", "stderr"),
    [
        ("console.log('a', 1, null, undefined, true)", "a 1 null undefined true\n", ""),
        ("console.info('i'); console.debug('d')", "i\nd\n", ""),
        ("console.warn('w'); console.error('e')", "", "w\ne\n"),
        (
            "console.log({ a: [1, 'x'], 'b-c': { d: null } })",
            '{ a: [ 1, "x" ], "b-c": { d: null } }\n',
            "",
        ),
        (
            "console.log([], {}, new Map([[1, 'a']]), new Set(['b']))",
            '[] {} Map(1) { 1 => "a" } Set(1) { "b" }\n',
            "",
        ),
        (
            "console.log(1n, -0, Symbol('s'), function f() {}, class C {})",
            "1n -0 Symbol(s) [Function: f] [class: C]\n",
            "",
        ),
        ("const o = {}; o.o = o; console.log(o)", "{ o: [Circular] }\n", ""),
        ("console.log(new (class A { x = 1 })())", "A { x: 1 }\n", ""),
        ("console.log({ get x() { throw 1 } })", "{ x: [Getter] }\n", ""),
        (
            "console.log(new Proxy({}, { ownKeys() { throw 1 } }))",
            "[a value that cannot be shown]\n",
            "",
        ),
        (
            "console.log({ a: { b: { c: { d: { e: { f: 1 } } } } } })",
            "{ a: { b: { c: { d: { e: [Object] } } } } }\n",
            "",
        ),
        (
            "console.log(new Uint8Array(3), new Date(0), /x/g)",
            "Uint8Array(3) [ 0, 0, 0 ] 1970-01-01T00:00:00.000Z /x/g\n",
            "",
        ),
        ("console.log('%s is %d%% %o', 'x', '5', { a: 1 }, 'rest')", "x is 5% { a: 1 } rest\n", ""),
        ("console.log('100%', 'x')", "100% x\n", ""),
        (
            "console.group('g'); console.log('in'); console.groupEnd(); console.log('out')",
            "g\n  in\nout\n",
            "",
        ),
        ("console.assert(1 === 2, 'no'); console.assert(true)", "", "Assertion failed: no\n"),
        ("console.count(); console.count()", "default: 1\ndefault: 2\n", ""),
        ("console.log('\\ud800', '\\0')", "\ufffd \0\n", ""),
        (
            "console.log(Object.create(null), new Headers({ a: 'b' }))",
            '{} Headers { "a": "b" }\n',
            "",
        ),
        ("console.log(event.request)", "Request { GET http://localhost/worker }\n", ""),
    ],
)
def test_console(engine: LanguageEngine, statement: str, stdout: str, stderr: str) -> None:
    source = listener(f"{statement}; event.respondWith(new Response(''))")
    result = answer(engine, source)
    assert (result.stdout, result.stderr) == (stdout, stderr)


@pytest.mark.parametrize(
    ("source", "stderr"),
    [
        (
            "addEventListener('fetch', (e) => {\n  undefinedName;\n});",
            "ReferenceError: 'undefinedName' is not defined\n    at <anonymous> (/worker:2)\n",
        ),
        (respond("Promise.reject(new TypeError('no'))"), "Uncaught TypeError: no\n"),
        (respond("Promise.reject('text')"), 'Uncaught "text"\n'),
        (respond("Promise.reject({ a: 1 })"), "Uncaught { a: 1 }\n"),
        (respond("Promise.reject(Object.create(null))"), "Uncaught {}\n"),
        (respond("new Promise(() => {})"), "Uncaught Error: the handler's promise never settles\n"),
        (listener(""), "the listener did not call event.respondWith(response)\n"),
        (respond("'text'"), 'the handler\'s answer is no Response: "text"\n'),
        (respond("undefined"), "the handler's answer is no Response: undefined\n"),
        (respond("({ status: 200 })"), "the handler's answer is no Response: { status: 200 }\n"),
        (respond("Response.error()"), "the handler answered with Response.error()\n"),
        (
            listener("event.respondWith(new Response('')); event.respondWith(new Response(''))"),
            "respondWith was called before",
        ),
        (listener("event.respondWith(new Response('')); throw new Error('late')"), "late"),
        ("export default { fetch() { throw new RangeError('r') } }", "Uncaught RangeError: r\n"),
        (
            respond("new Response((function f() { return f() + 1 })())"),
            "InternalError: stack overflow",
        ),
        (
            respond("new Response('x'.repeat(2 ** 29).length + new Array(2 ** 28).fill(0).length)"),
            "InternalError: out of memory",
        ),
        (respond("new Response(JSON.stringify({ n: 1n }))"), "TypeError"),
    ],
)
def test_failing_handlers(engine: LanguageEngine, source: str, stderr: str) -> None:
    """The host is told of a failure, and its log of the reason and the place."""
    assert stderr in failure(engine, source)


def test_failure_names_file_and_line_and_no_line_of_ours(engine: LanguageEngine) -> None:
    source = (
        "function inner() {\n  null.x;\n}\n"
        'addEventListener("fetch", (event) => event.respondWith(reply()));\n'
        "async function reply() {\n  await fetchNothing();\n  inner();\n}\n"
        "async function fetchNothing() {}\n"
    )
    worker = engine.load(source, "/app/hello.js")
    with pytest.raises(WorkerFailed) as raised:
        worker.handle({})
    first, *places = raised.value.stderr.splitlines()
    assert first == "Uncaught TypeError: cannot read property 'x' of null"
    assert places == [
        "    at inner (/app/hello.js:2)",
        "    at reply (/app/hello.js:7)",
    ]


@pytest.mark.parametrize(
    ("source", "stderr"),
    [
        ("", "the worker has no handler"),
        ("export default 5", "the worker has no handler"),
        ("export default { fetch: 1 }", "the worker has no handler"),
        ('addEventListener("fetch", 5)', "TypeError: a listener is a function"),
        ('addEventListener("click", () => {})', "there are fetch events only, not click"),
        ("let x = ;", "SyntaxError: "),
        ("\n\nexport default { fetch( }", "/worker:3"),
        ("\n\nlet 1x", "/worker:3"),
        ("throw new Error('at load')", "Uncaught Error: at load\n    at <eval> (/worker)"),
        ("import x from './missing.js'; export default x", "cannot import '/missing.js'"),
        ("import x from 'hono'; export default x", "there are no packages here"),
        ("(function f() { f() })()", "stack overflow"),
        ("[" * 100_000, "stack overflow"),
        ("x" * 1000 + "\0", "SyntaxError"),
        (b"\xff", "/worker is no UTF-8"),
        ("Promise.reject(new Error('early'))", "Unhandled rejection: Error: early"),
    ],
)
def test_failing_to_load(engine: LanguageEngine, source: str | bytes, stderr: str) -> None:
    assert stderr in load_failure(engine, source)


@pytest.mark.parametrize(
    ("statement", "stderr"),
    [
        ("Promise.reject(new Error('aside'))", "Unhandled rejection: Error: aside\n"),
        ("setTimeout(() => { throw new Error('in time') }, 0)", "Uncaught in a timer: Error: in"),
        ("queueMicrotask(() => { throw new Error('m') })", "Uncaught in a microtask: Error: m\n"),
        ("event.waitUntil(Promise.reject(new Error('w')))", "Uncaught in waitUntil: Error: w\n"),
    ],
)
def test_failures_beside_the_answer_are_told_of(
    engine: LanguageEngine, statement: str, stderr: str
) -> None:
    source = listener(
        f"{statement}; event.respondWith(new Promise((done) =>"
        " setTimeout(done, 2, new Response('x'))))"
    )
    result = answer(engine, source)
    assert result.response["data"] == "x"
    assert result.stderr.startswith(stderr)


def test_handled_rejection_is_not_told_of(engine: LanguageEngine) -> None:
    source = listener(
        "const promise = Promise.reject(1); await 2; promise.catch(() => {});"
        " event.respondWith(new Response(''))"
    )
    assert answer(engine, source).stderr == ""


# Snapshots


def test_nothing_of_a_request_stays(engine: LanguageEngine) -> None:
    source = "let count = 0; globalThis.list = [];\n" + respond(
        "(list.push(request.body), Cache.set('a', 'b'), new Response(`${++count} ${list}`))"
    )
    worker = engine.load(source)
    assert [worker.handle({"body": b}).response["data"] for b in "xyz"] == ["1 x", "1 y", "1 z"]


def test_chance_and_time_differ_in_each_request(engine: LanguageEngine) -> None:
    source = "Math.random(); const then = performance.now();\n" + respond(
        "new Response([Math.random(), crypto.randomUUID(), Date.now()].join())"
    )
    worker = engine.load(source)
    answers = [worker.handle({}).response["data"].split(",") for _ in range(5)]
    assert all(len({fields[i] for fields in answers}) == 5 for i in (0, 1))
    assert len({fields[2] for fields in answers}) > 1


def test_what_load_has_made_is_there(engine: LanguageEngine) -> None:
    """More than fits into the memory that the module has from the start."""
    source = (
        "const table = Array.from({ length: 100000 }, (_, i) => ({ i, text: `text ${i}` }));\n"
        "console.log('loaded');\n" + respond("new Response(table[99999].text)")
    )
    worker = engine.load(source)
    assert worker.memory_bytes > worker.initial_bytes
    assert (worker.stdout, worker.handle({}).response["data"]) == ("loaded\n", "text 99999")
    assert worker.handle({}).stdout == ""


def test_timer_of_load_runs_in_a_request(engine: LanguageEngine) -> None:
    source = (
        "let late; const ready = new Promise((done) => setTimeout(() => done('x'), 1));\n"
        + respond("new Response(await ready)")
    )
    assert answer(engine, source).response["data"] == "x"


def test_variables_are_not_those_of_the_build(
    engine: LanguageEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = respond("new Response(JSON.stringify(process.env))")
    worker = engine.load(source, env={"A": "1=2", "Ä": "ä", "EMPTY": ""})
    data = json.loads(worker.handle({}).response["data"])
    assert data == {"A": "1=2", "Ä": "ä", "EMPTY": ""}


# HTTP


def test_fetch_sends_and_returns(engine: LanguageEngine) -> None:
    seen: list[OutgoingRequest] = []

    def send(request: OutgoingRequest) -> OutgoingResponse:
        seen.append(request)
        return OutgoingResponse(
            201, [("X-A", "b"), ("set-cookie", "1"), ("set-cookie", "2")], b"[1, 2]"
        )

    source = respond(
        "fetch('https://example.com/p?q#f', { method: 'post', headers: { 'X-Y': 'z' }, body: 'ä' })"
        ".then(async (r) => new Response(JSON.stringify([r.status, r.ok, r.headers.get('x-a'),"
        " r.headers.getSetCookie(), await r.json(), r.url])))"
    )
    result = engine.load(source, send=send).handle({}).response["data"]
    assert json.loads(result) == [
        *(201, True, "b", ["1", "2"], [1, 2], "https://example.com/p?q"),
    ]
    assert seen == [
        OutgoingRequest(
            "POST",
            "https://example.com/p?q",
            [("content-type", "text/plain;charset=UTF-8"), ("x-y", "z")],
            [],
            "ä".encode(),
        )
    ]


@pytest.mark.parametrize(
    ("arguments", "method", "body"),
    [
        ("'http://a'", "GET", None),
        ("new URL('http://a')", "GET", None),
        ("new Request('http://a', { method: 'DELETE' })", "DELETE", None),
        (
            "'http://a', { method: 'PUT', body: new Uint8Array([0, 255, 1]).subarray(1) }",
            "PUT",
            b"\xff\x01",
        ),
        ("'http://a', { method: 'PATCH', body: new ArrayBuffer(2) }", "PATCH", b"\0\0"),
        ("'http://a', { method: 'OPTIONS' }", "OPTIONS", None),
        ("'http://a', { method: 'head' }", "HEAD", None),
        ("'http://a', { method: 'POST', body: '' }", "POST", b""),
    ],
)
def test_fetch_arguments(
    engine: LanguageEngine, arguments: str, method: str, body: bytes | None
) -> None:
    def send(request: OutgoingRequest) -> OutgoingResponse:
        got.append((request.method, request.uri, request.body))
        return OutgoingResponse(204)

    got: list[tuple[str, str, bytes | None]] = []
    source = respond(f"fetch({arguments}).then((r) => new Response(String(r.body)))")
    assert engine.load(source, send=send).handle({}).response["data"] == "null"
    assert got == [(method, "http://a/", body)]


def test_fetched_bytes_pass_unchanged(engine: LanguageEngine) -> None:
    body = bytes(range(256)) * 4096
    source = respond("fetch('http://a').then(async (r) => new Response(await r.arrayBuffer()))")
    worker = engine.load(source, send=lambda _: OutgoingResponse(200, [], body))
    response = worker.handle({}).response
    assert response["base64"]
    assert base64.b64decode(response["data"]) == body


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            "not-allowed",
            "not allowed: why (see allowed_hosts, allowed_methods and allow_http of"
            " [features.http_requests] in the worker's TOML)",
        ),
        ("timeout", "timeout: why"),
        ("redirect-loop", "redirect loop: why"),
        ("internal-error", "internal error: why"),
        ("invalid-request", "invalid request: why"),
    ],
)
def test_fetch_fails_with_the_reason(engine: LanguageEngine, error: str, message: str) -> None:
    def send(_request: OutgoingRequest) -> OutgoingResponse:
        raise OutgoingError(error, "why")

    source = respond("fetch('https://a.example/?secret').catch((e) => new Response(String(e)))")
    data = engine.load(source, send=send).handle({}).response["data"]
    assert data == f"TypeError: GET https://a.example: {message}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'/relative'", "Invalid URL: /relative"),
        ("'ftp://a'", "fetch knows http and https, not ftp:"),
        ("'http://a', { method: 'TRACE' }", "fetch cannot send TRACE requests"),
        ("'http://a', { body: 'x' }", "a GET request has no body"),
        ("'http://u:secret@a'", "a request's URL has no user and password"),
    ],
)
def test_fetch_refuses(engine: LanguageEngine, arguments: str, message: str) -> None:
    source = respond(f"fetch({arguments}).catch((e) => new Response(String(e)))")
    data = answer(engine, source).response["data"]
    assert data.startswith(f"TypeError: {message}")
    assert "secret" not in data


# Modules


def test_modules_of_the_workers_folder(engine: LanguageEngine, tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "text.js").write_text(
        "import { x } from '../x.js';\nexport const text = () => x + import.meta.url;\n"
    )
    (tmp_path / "x.js").write_text("export const x = 'x ';\nexport default 7;\n")
    source = (
        "import { text } from './library/text.js';\n"
        "export default async () => new Response(text() + (await import('./x.js')).default);\n"
    )
    worker = engine.load(source, "/app/index.js", folders={tmp_path: "/app"})
    assert worker.handle({}).response["data"] == "x file:///app/library/text.js7"


@pytest.mark.parametrize(
    ("source", "stderr"),
    [
        ("import './none.js'", "cannot import '/app/none.js': no such file"),
        ("import '../outside.js'", "cannot import '/outside.js': no such file"),
        ("import './bad.js'", "/app/bad.js:2"),
        ("import '/etc/passwd'", "cannot import '/etc/passwd': no such file"),
        ("import './link.js'", "cannot import '/app/link.js': no such file"),
        ("import './huge.js'", "no such file of at most 4 MiB"),
    ],
)
def test_modules_that_cannot_be_imported(
    engine: LanguageEngine, tmp_path: Path, source: str, stderr: str
) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (tmp_path / "outside.js").write_text("")
    (app / "link.js").symlink_to("../outside.js")
    (app / "bad.js").write_text("let a;\nlet a;\n")
    (app / "huge.js").write_text(" " * ((4 << 20) + 1))
    assert stderr in load_failure(engine, source, name="/app/index.js", folders={app: "/app"})


# Hostile workers and hosts


def test_endless_loop_ends_at_the_time_limit(engine: LanguageEngine) -> None:
    worker = engine.load(respond("{ for (;;); }"))
    with pytest.raises(wasmtime.Trap):
        worker.handle({}, seconds=0.2)


def test_endless_regular_expression_ends_at_the_time_limit(engine: LanguageEngine) -> None:
    worker = engine.load(respond("new Response(String(/^(a+)+$/.test('a'.repeat(50) + 'b')))"))
    with pytest.raises(wasmtime.Trap):
        worker.handle({}, seconds=0.2)


def test_large_output(engine: LanguageEngine) -> None:
    source = respond("(console.log('y'.repeat(2 ** 22)), new Response('\\u20ac'.repeat(2 ** 22)))")
    result = answer(engine, source)
    assert len(result.stdout) == (1 << 22) + 1
    assert result.response["data"] == "€" * (1 << 22)


@pytest.mark.parametrize(
    "pollution",
    [
        "Object.prototype.toJSON = () => 'x'; Object.prototype.base64 = true",
        "Array.prototype[Symbol.iterator] = null",
        "Map.prototype.get = Map.prototype.set = null",
        "Promise.prototype.then = () => { throw 1 }",
        "JSON.parse = JSON.stringify = null; String.prototype.replace = null",
        "Object.defineProperty(Object.prototype, '0', { set() { throw 1 }, get() { return 'x' } })",
        "Headers.prototype.toJSON = () => undefined",
        "Object.defineProperty(Response.prototype, 'body', { get: () => Symbol() })",
        "Object.defineProperty(Response.prototype, 'status', { get: () => { throw 1 } })",
        "Object.defineProperty(Response.prototype, 'body', { get: () => ({ buffer: 5 }) })",
        "for (const key of Object.getOwnPropertyNames(globalThis)) { try { delete globalThis[key] }"
        " catch {} }",
        "for (const value of [Object, Array, Map, Promise, String, Symbol, Error])"
        " for (const key of Reflect.ownKeys(value.prototype)) {"
        " try { value.prototype[key] = undefined } catch {} }",
    ],
)
def test_polluted_globals_harm_the_worker_only(engine: LanguageEngine, pollution: str) -> None:
    """It answers or fails, and does not trap."""
    worker = engine.load(respond("new Response('fine')") + f"; try {{ {pollution} }} catch {{}}")
    with contextlib.suppress(WorkerFailed):
        worker.handle({"kv": {"a": "b"}, "headers": {"x": "y"}})


@pytest.mark.parametrize(
    ("request_", "stderr"),
    [
        ("nonsense", "the host's request is no JSON: "),
        ("", "the host's request is no JSON: "),
        (b'{"url": "\xff"}', "the host's request is no JSON: "),
        ("{" * 100_000, "the host's request is no JSON: "),
        ("null", "TypeError"),
    ],
)
def test_requests_that_are_none(engine: LanguageEngine, request_: str | bytes, stderr: str) -> None:
    worker = engine.load(respond("new Response('')"))
    with pytest.raises(WorkerFailed, match=stderr):
        worker.handle(request_)


@pytest.mark.parametrize(
    "request_",
    [
        {"headers": {"": "", "a b": "\0", "x": "\ud800"}},
        {"body": "\ud800"},
        {"body": "no base64!", "base64": True},
        {"kv": {"": "", "__proto__": "x"}},
        {"url": "", "method": ""},
    ],
)
def test_odd_requests_are_answered(engine: LanguageEngine, request_: dict[str, Any]) -> None:
    source = respond("new Response([...request.headers].flat().join() + request.body)")
    json.dumps(answer(engine, source, **request_).response, ensure_ascii=False).encode()


def test_little_memory_is_an_exception_of_the_language(engine: LanguageEngine) -> None:
    worker = engine.load(
        respond("{ const all = []; for (;;) all.push(new Array(1000).fill({})); }"),
        max_memory_bytes=16 << 20,
    )
    with pytest.raises(WorkerFailed, match="out of memory"):
        worker.handle({})


@pytest.mark.parametrize(
    "expression",
    [
        "JSON.parse('['.repeat(1e5))",
        "(() => { let o = []; for (let i = 0; i < 1e5; i++) o = [o]; return JSON.stringify(o) })()",
        "(() => { let o = []; for (let i = 0; i < 1e5; i++) o = [o]; return o.flat(Infinity) })()",
        "(() => { let o = []; for (let i = 0; i < 1e5; i++) o = [o]; return String(o) })()",
        "(() => { let p = {}; for (let i = 0; i < 1e5; i++) p = new Proxy(p, {}); p.x = 1 })()",
        "eval('('.repeat(1e5))",
        "eval('x=>'.repeat(1e5))",
        "eval('(function(){'.repeat(1e5))",
        "eval('`${'.repeat(1e5))",
        "new RegExp('(?:'.repeat(1e5))",
        "(function f() { [1].map(f) })()",
        "(function f() { 'a'.replace(/a/, f) })()",
        "(() => { const o = { get x() { return this.x } }; return o.x })()",
        "(() => { const o = { toString() { return `${this}` } }; return String(o) })()",
        "(() => { const o = { valueOf() { return +o } }; return +o })()",
        "(() => { const o = { set x(v) { this.x = v } }; o.x = 1 })()",
        "(() => { const o = { [Symbol.toPrimitive]() { return o + 1 } }; return o + 1 })()",
        "(() => { const g = () => [...{ [Symbol.iterator]: g }]; g() })()",
        "(() => { const g = () => Reflect.apply(g, null, []); g() })()",
        "(() => { const p = new Proxy(function () {}, { apply: () => p() }); p() })()",
        "(() => { const g = () => JSON.parse('[1]', g); g() })()",
        "(() => { let o = {}; for (let i = 0; i < 1e5; i++) o = { o }; structuredClone(o) })()",
        "(() => { class A { constructor() { new A() } } new A() })()",
        "(function* f() { yield* f() })().next()",
        "(async function f() { await f() })()",
    ],
)
def test_deep_recursion_is_an_exception_of_the_language(
    engine: LanguageEngine, expression: str
) -> None:
    source = respond(f"(async () => {expression})().catch((e) => new Response(String(e)))")
    assert "stack overflow" in answer(engine, source).response["data"]


def test_usual_recursion_has_room(engine: LanguageEngine) -> None:
    source = respond("new Response(String((function f(n) { return n && 1 + f(n - 1) })(300)))")
    assert answer(engine, source).response["data"] == "300"
