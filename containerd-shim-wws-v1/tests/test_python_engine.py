"""Workers in Python, run by the engine that `make engines` builds."""

from __future__ import annotations

import base64
import gzip
import hmac
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from language_engine import (
    ENGINES,
    LanguageEngine,
    OutgoingError,
    OutgoingRequest,
    OutgoingResponse,
    WorkerFailed,
    mutable_globals,
)

pytestmark = pytest.mark.xdist_group("python-engine")  # where it is compiled


@pytest.fixture(scope="module")
def python() -> LanguageEngine:
    path = ENGINES / "python.wasm"
    assert path.exists(), "the Python engine is not built: run `make engines`"
    return LanguageEngine(path)


def answer(
    python: LanguageEngine, source: str, request: Mapping[str, Any] | None = None, **load: Any
) -> dict[str, Any]:
    """Return the response of a worker to one request."""
    return python.load(source, **load).handle(request or {}).response


def failure(
    python: LanguageEngine, source: str, request: Mapping[str, Any] | None = None, **load: Any
) -> str:
    """Return what a worker printed that loaded and failed at its request."""
    worker = python.load(source, **load)
    with pytest.raises(WorkerFailed) as failed:
        worker.handle(request or {})
    return failed.value.stderr


# The module


def test_engine_keeps_its_state_in_memory_only(python: LanguageEngine) -> None:
    assert mutable_globals(python.wasm) == 1  # the stack pointer
    modules = {wanted.module for wanted in python.module.imports}
    assert modules <= {"wasi_snapshot_preview1", "http"}
    exports = {export.name for export in python.module.exports}
    assert exports >= {"memory", "_initialize", "allocate", "load", "handle"}


def test_engine_is_small(python: LanguageEngine) -> None:
    assert len(python.wasm) < 20 << 20


def test_snapshot_of_a_small_worker_is_small(python: LanguageEngine) -> None:
    worker = python.load("def worker(request):\n    return Response('Hello')\n")
    assert len(worker.pages) < 500
    assert worker.memory_bytes < 32 << 20


# Requests and responses


@pytest.mark.parametrize(
    ("expression", "data"),
    [
        ("request.method", "GET"),
        ("request.url", "http://localhost/worker"),
        ("request.headers['host']", "localhost"),
        ("request.headers['HOST']", "localhost"),
        ("request.headers.get('x-none', 'none')", "none"),
        ("str('Host' in request.headers)", "True"),
        ("repr(request.body)", "''"),
        ("repr(request.content)", "b''"),
        ("repr(request.params)", "{}"),
        ("__name__", "__main__"),
        ("__file__", "/worker"),
        # The kit's names that were not imported.
        ("json.dumps([1]) + sys.platform + base64.b64encode(b'a').decode()", "[1]wasiYQ=="),
        ("sys.version.split()[0]", "3.11.2"),
        ("str(sys.path)", "[]"),
    ],
)
def test_request_in_an_expression(python: LanguageEngine, expression: str, data: str) -> None:
    source = f"def worker(request):\n    return Response({expression})\n"
    assert answer(python, source)["data"] == data


BODY = "def worker(request):\n    return Response(repr((request.body, request.content)))\n"


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        ({"body": "text"}, ("text", b"text")),
        ({"body": "é\0\n"}, ("é\0\n", "é\0\n".encode())),
        ({"body": "8J+YgA==", "base64": True}, (b"\xf0\x9f\x98\x80",) * 2),
        ({"body": "/wD+", "base64": True}, (b"\xff\0\xfe",) * 2),
        ({"body": "x" * 2_000_000}, ("x" * 2_000_000, b"x" * 2_000_000)),
    ],
    ids=["text", "not-ascii", "base64", "no-utf-8", "large"],
)
def test_body_of_a_request(
    python: LanguageEngine, request_: dict[str, Any], body: tuple[Any, bytes]
) -> None:
    assert answer(python, BODY, request_)["data"] == repr(body)


def test_request_as_text_and_json(python: LanguageEngine) -> None:
    source = "def worker(request):\n    return Response(request.text() + request.json()['a'])\n"
    assert answer(python, source, {"body": '{"a": "b"}'})["data"] == '{"a": "b"}b'


def test_repeated_request_headers(python: LanguageEngine) -> None:
    source = (
        "def worker(request):\n"
        "    return Response(repr((request.headers['cookie'], request.header_values('Cookie'))))\n"
    )
    repeated = {
        "headers": {"cookie": "b"},
        "headers_list": [["cookie", "a"], ["host", "localhost"], ["Cookie", "b"]],
    }
    assert answer(python, source, repeated)["data"] == repr(("b", ["a", "b"]))
    single = {"headers": {"cookie": "a"}}
    assert answer(python, source, single)["data"] == repr(("a", ["a"]))


def test_params(python: LanguageEngine) -> None:
    source = "def worker(request):\n    return Response(request.params['id'])\n"
    assert answer(python, source, {"params": {"id": "7"}})["data"] == "7"


RESPONSES = [
    ("Response('text')", {"data": "text"}),
    ("Response('é\\n\\0\"')", {"data": 'é\n\0"'}),
    ("Response('a', 404)", {"data": "a", "status": 404}),
    ("Response('a', status=404, headers={'X-A': 'b'})", {"status": 404, "headers": {"x-a": "b"}}),
    ("Response(b'\\xff')", {"data": "/w==", "base64": True}),
    ("Response(bytearray(b'a'))", {"data": "YQ==", "base64": True}),
    ("Response()", {"data": ""}),
    ("Response.json({'a': 1}, 201)", {"data": '{"a": 1}', "status": 201}),
    ("Response.json(1)", {"headers": {"content-type": "application/json"}}),
    ("Response('a', headers={'set-cookie': ['a', 'b']})", {"headers": {"set-cookie": ["a", "b"]}}),
    ("Response('', headers=[('a', 'b'), ('A', 'c'), ('a', 'd')])", {"headers": {"a": list("bcd")}}),
    ("Response('a', headers={'x-number': 1})", {"headers": {"x-number": "1"}}),
    ("'text'", {"data": "text", "base64": False}),
    ("b'bytes'", {"data": "Ynl0ZXM=", "base64": True}),
]


@pytest.mark.parametrize(("expression", "fields"), RESPONSES, ids=[name for name, _ in RESPONSES])
def test_response(python: LanguageEngine, expression: str, fields: dict[str, Any]) -> None:
    response = answer(python, f"def worker(request):\n    return {expression}\n")
    assert {name: response[name] for name in fields} == fields


def test_response_changed_after_it_was_made(python: LanguageEngine) -> None:
    """As the kit's documentation does it."""
    source = """
from workers import Response

def worker(request):
    response = Response("")
    response.body = "later"
    response.status_code = 418
    response.headers["X-Generated-By"] = "wasm-workers-server"
    return response
"""
    response = answer(python, source)
    assert response["data"] == "later"
    assert response["status"] == 418
    assert response["headers"] == {"x-generated-by": "wasm-workers-server"}


def test_large_response(python: LanguageEngine) -> None:
    source = "def worker(request):\n    return Response('x' * 5_000_000)\n"
    assert len(answer(python, source)["data"]) == 5_000_000


# Key-value store, environment, folders


def test_key_value_store(python: LanguageEngine) -> None:
    source = """
def worker(request):
    count = Cache.get("counter")
    Cache.set("counter", 0 if count is None else int(count) + 1)
    Cache.delete("old")
    return Response(",".join(sorted(Cache.keys())))
"""
    worker = python.load(source)
    first = worker.handle({}).response
    assert (first["kv"], first["data"]) == ({"counter": "0"}, "counter")
    later = worker.handle({"kv": {"counter": "41", "old": "x", "z": "é"}}).response
    assert (later["kv"], later["data"]) == ({"counter": "42", "z": "é"}, "counter,z")
    assert worker.handle({}).response["kv"] == {"counter": "0"}


def test_environment(python: LanguageEngine) -> None:
    source = """
import os
loaded = os.environ["MESSAGE"]

def worker(request):
    return Response(loaded + os.getenv("MESSAGE") + str(os.getenv("PATH")))
"""
    assert answer(python, source, env={"MESSAGE": "é="})["data"] == "é=é=None"


def test_folder_with_libraries(python: LanguageEngine, tmp_path: Path) -> None:
    """As the kit's documentation does it, and imported late, too."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library/__init__.py").write_text("from .part import name\n")
    (tmp_path / "library/part.py").write_text("name = __file__\n")
    (tmp_path / "late.py").write_text("def fail(): raise KeyError('late')\n")
    source = """
import library

def worker(request):
    import late
    if request.method == "POST":
        late.fail()
    return Response(library.name + late.__name__)
"""
    options: dict[str, Any] = {"env": {"PYTHONPATH": "/libs"}, "folders": {tmp_path: "/libs"}}
    assert answer(python, source, **options)["data"] == "/libs/library/part.pylate"
    printed = failure(python, source, {"method": "POST"}, **options)
    assert 'File "/libs/late.py", line 1, in fail\n    def fail(): raise KeyError' in printed
    assert not list(tmp_path.rglob("*.pyc"))


def test_folder_is_read_and_written(python: LanguageEngine, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("content")
    source = """
from pathlib import Path

def worker(request):
    Path("/data/out").write_text(Path("/data/in").read_text() * 2)
    return Response(",".join(sorted(path.name for path in Path("/data").iterdir())))
"""
    assert answer(python, source, folders={tmp_path: "/data"})["data"] == "in,out"
    assert (tmp_path / "out").read_text() == "contentcontent"


def test_without_folders_there_are_no_files(python: LanguageEngine) -> None:
    for expression in ("open('/worker')", "__import__('os').listdir('/')", "open('x', 'w')"):
        printed = failure(python, f"def worker(request):\n    {expression}\n")
        assert "Error: [Errno " in printed


# Coroutines


def test_coroutine(python: LanguageEngine) -> None:
    source = """
import asyncio

async def part(number):
    await asyncio.sleep(0.001 * number)
    return str(number)

async def worker(request):
    parts = await asyncio.gather(*map(part, range(10)))
    async with asyncio.timeout(10):
        return Response("".join(parts))
"""
    assert answer(python, source)["data"] == "0123456789"


def test_coroutine_of_a_plain_function(python: LanguageEngine) -> None:
    source = """
async def later(request):
    import asyncio
    return Response(type(asyncio.get_running_loop()).__name__)

def worker(request):
    return later(request)
"""
    assert answer(python, source)["data"] == "SelectorEventLoop"


def test_asyncio_run_in_a_plain_function(python: LanguageEngine) -> None:
    source = """
import asyncio

def worker(request):
    return Response(asyncio.run(asyncio.sleep(0, "done")))
"""
    assert answer(python, source)["data"] == "done"


def test_coroutine_that_nothing_wakes_fails(python: LanguageEngine) -> None:
    source = "import asyncio\nasync def worker(request):\n    await asyncio.Event().wait()\n"
    assert "nothing is left that could wake the event loop" in failure(python, source)


# HTTP requests


def echo(request: OutgoingRequest) -> OutgoingResponse:
    body = json.dumps(
        [request.method, request.uri, request.headers, (request.body or b"").decode("latin-1")]
    )
    return OutgoingResponse(
        203, [("X-A", "bé"), ("set-cookie", "1"), ("Set-Cookie", "2")], body.encode()
    )


@pytest.mark.parametrize(
    ("call", "seen"),
    [
        ("fetch('https://a/b?c')", ["GET", "https://a/b?c", [], ""]),
        ("fetch('http://a/', 'post', body='é')", ["POST", "http://a/", [], "Ã©"]),
        ("fetch('http://a/', 'PUT', body=b'\\xff')", ["PUT", "http://a/", [], "ÿ"]),
        (
            "fetch('http://a/', headers={'X-B': 'c', 'n': [1, 2]})",
            ["GET", "http://a/", [["x-b", "c"], ["n", "1"], ["n", "2"]], ""],
        ),
    ],
)
def test_fetch(python: LanguageEngine, call: str, seen: list[Any]) -> None:
    source = f"""
async def worker(request):
    plain, awaited = {call}, await {call}
    assert plain.content == awaited.content
    assert plain.ok and plain.status == 203
    assert plain.headers["x-a"] == "bé"
    assert plain.headers.get_all("SET-COOKIE") == ["1", "2"]
    return Response.json(plain.json())
"""
    assert json.loads(answer(python, source, send=echo)["data"]) == seen


def test_response_without_a_body_and_large_one(python: LanguageEngine) -> None:
    source = "def worker(request):\n    return Response(fetch(request.url).content)\n"
    large = bytes(range(256)) * 4096
    for body in (None, b"", large):
        response = answer(python, source, send=lambda _, body=body: OutgoingResponse(200, (), body))
        assert base64.b64decode(response["data"]) == (body or b"")


def test_refused_fetch(python: LanguageEngine) -> None:
    source = """
def worker(request):
    try:
        fetch("http://a/")
    except FetchError as exc:
        return Response(f"{exc.kind}: {exc}")
"""
    expected = "not-allowed: the worker has no http_requests (not-allowed)"
    assert answer(python, source)["data"] == expected

    def time_out(_request: OutgoingRequest) -> OutgoingResponse:
        raise OutgoingError("timeout", "")

    assert answer(python, source, send=time_out)["data"] == "timeout: timeout"


def test_urllib_fetches(python: LanguageEngine) -> None:
    source = """
import urllib.request, urllib.error

def worker(request):
    asked = urllib.request.Request("https://a/b", b"x=1", {"X-A": "b"})
    with urllib.request.urlopen(asked, timeout=5) as response:
        assert response.status == 203 and response.headers["x-a"] == "bé"
        return Response(response.read())
"""
    response = answer(python, source, send=echo)
    method, uri, headers, body = json.loads(base64.b64decode(response["data"]))
    assert (method, uri, body) == ("POST", "https://a/b", "x=1")
    assert dict(headers)["x-a"] == "b"
    assert not {"host", "content-length"} & set(dict(headers))

    def not_found(_request: OutgoingRequest) -> OutgoingResponse:
        return OutgoingResponse(404, (), b"no")

    assert "HTTPError: HTTP Error 404: Not Found" in failure(python, source, send=not_found)
    assert "URLError: <urlopen error the worker has no http_requests" in failure(python, source)


# Failures


LOAD_FAILURES = [
    ("def worker(request:\n    pass\n", ['File "/a/b.py", line 1', "SyntaxError: '(' was"]),
    ("x = 1\n\nraise ValueError('é')\n", ['"/a/b.py", line 3, in <module>', "ValueError: é"]),
    ("x = 1\n", ["/a/b.py: there is no function worker(request)"]),
    ("worker = 1\n", ["/a/b.py: there is no function worker(request)"]),
    ("import numpy\n", ["line 1", "ModuleNotFoundError: No module named 'numpy'"]),
    ("import sys\nsys.exit(3)\n", ["/a/b.py: it left by exit(3)"]),
    ("raise KeyboardInterrupt\n", ["KeyboardInterrupt"]),
    ("\0", ["source code string cannot contain null bytes"]),
    ("def f(): f()\nf()\n", ["RecursionError"]),
    ("x = [0] * (1 << 30)\n", ["MemoryError"]),
    ("", ["/a/b.py: there is no function worker(request)"]),
]


@pytest.mark.parametrize(("source", "printed"), LOAD_FAILURES)
def test_worker_that_does_not_load(python: LanguageEngine, source: str, printed: list[str]) -> None:
    with pytest.raises(WorkerFailed) as failed:
        python.load(source, "/a/b.py")
    for text in printed:
        assert text in failed.value.stderr
    assert "<frozen" not in failed.value.stderr


def test_source_that_is_no_utf_8(python: LanguageEngine) -> None:
    with pytest.raises(WorkerFailed) as failed:
        python.load(b"x = '\xff'\n")
    assert "SyntaxError: (unicode error) 'utf-8' codec can't decode" in failed.value.stderr
    latin = "# coding: latin-1\ndef worker(request):\n    return Response('é')\n".encode("latin-1")
    assert python.load(latin).handle({}).response["data"] == "é"


HANDLE_FAILURES = [
    ("1 / 0", ['File "/worker", line 2, in worker\n    1 / 0\n    ~~^~~\nZeroDivisionError']),
    ("return 1", ["TypeError: worker returned no Response: int"]),
    ("pass", ["TypeError: worker returned no Response: NoneType"]),
    ("return Response(1)", ["TypeError: the body of a Response is str or bytes, not int"]),
    ("return Response('\\ud800')", ["UnicodeEncodeError"]),
    ("return Response('', status='x')", ["ValueError: invalid literal for int()"]),
    ("raise SystemExit", ["/worker: it left by exit(None), without a response"]),
    ("raise KeyboardInterrupt", ["KeyboardInterrupt"]),
    ("raise BaseException('x')", ["BaseException: x"]),
    ("raise ExceptionGroup('x', [OSError('y')])", ["ExceptionGroup: x", "OSError: y"]),
    ("request.headers['x-none']", ["KeyError: 'x-none'"]),
    ("sys.stdout.close(); print('x')", ["ValueError: I/O operation on closed file"]),
    ("import threading; threading.Thread().start()", ["RuntimeError: can't start new thread"]),
    ("import subprocess; subprocess.run(['ls'])", ["OSError: [Errno 58]"]),
    ("import socket; socket.socket()", ["OSError: [Errno 58]"]),
]


@pytest.mark.parametrize(("statement", "printed"), HANDLE_FAILURES)
def test_worker_that_fails(python: LanguageEngine, statement: str, printed: list[str]) -> None:
    stderr = failure(python, f"def worker(request):\n    {statement}\n")
    for text in printed:
        assert text in stderr


@pytest.mark.parametrize("request_", ["", "{}", "[]", "x", '{"url": 1', b"\xff"])
def test_request_that_is_none(python: LanguageEngine, request_: str | bytes) -> None:
    worker = python.load("def worker(request):\n    return Response('x')\n")
    with pytest.raises(WorkerFailed):
        worker.handle(request_)


DEEP = [
    "def f(): f()\ndef worker(request): f()",
    "def f(x): return sorted([1], key=f)\ndef worker(request): f(1)",
    "def f(x): return list(map(f, [x]))\ndef worker(request): f(1)",
    "class A:\n def __getattr__(self, n): return getattr(self, 'x')\ndef worker(request): A().a",
    "class A:\n def __init__(self): A()\ndef worker(request): A()",
    "class A:\n def __eq__(self, other): return self == other\ndef worker(request): A() == A()",
    "def f(n): yield from f(n + 1)\ndef worker(request): list(f(0))",
    "def f(*a, **k): return g(*a, **k)\ndef g(*a, **k): f(*a, **k)\ndef worker(request): f()",
    "def f(): return sum(f() for _ in [1])\ndef worker(request): f()",
    "text = 'exec(text, globals())'\ndef worker(request): exec(text, globals())",
    "import re\ndef f(m): return re.sub('a', f, 'a')\ndef worker(request): f(1)",
    "class A:\n def __hash__(self): return hash((self,))\ndef worker(request): {A(): 1}",
    "class A:\n def __repr__(self): return f'{self!r}'\ndef worker(request): repr(A())",
    "class A:\n def __setattr__(self, n, v): setattr(self, n, v)\ndef worker(request): A().a = 1",
    "def f(o): return json.loads('{}', object_hook=f)\ndef worker(request): f(1)",
    "async def f(): await f()\nasync def worker(request): await f()",
    "def worker(request):\n x = []\n for _ in range(100_000): x = [x]\n repr(x)",
    "def worker(request):\n x = []\n for _ in range(100_000): x = [x]\n json.dumps(x)",
    "def worker(request): json.loads('[' * 100_000)",
    "def worker(request): json.loads('{\"a\":' * 100_000)",
    "def worker(request): eval('-' * 100_000 + '1')",
    "def worker(request): eval('(' * 100_000)",
    "def worker(request): eval('(' * 190 + ')' * 190)",
    "def worker(request): eval('lambda:' * 100_000 + '1')",
    "def worker(request): eval('2**' * 100_000 + '1')",
    "def worker(request): eval('1' + '+1' * 100_000)",
    "import re\ndef worker(request): re.compile('(' * 10_000 + ')' * 10_000)",
    "import copy\ndef worker(request):\n x = 1\n for _ in range(9999): x = [x]\n copy.deepcopy(x)",
    "import pickle\ndef worker(request):\n x = 1\n for _ in range(9999): x = [x]\n pickle.dumps(x)",
]


@pytest.mark.parametrize("source", DEEP)
def test_deep_recursion_is_an_error(python: LanguageEngine, source: str) -> None:
    last = failure(python, source).strip().splitlines()[-1]
    # The parser says MemoryError, and SyntaxError for the tokenizer's own limit.
    assert last.split(":")[0] in {"RecursionError", "MemoryError", "SyntaxError"}


def test_json_at_the_end_of_deep_calls(python: LanguageEngine) -> None:
    """The stack has room for what C does below the last call that is counted."""
    source = """
class Deep:
    def __getattr__(self, name):
        return json.loads("[" * 900 + "]" * 900) if len(name) > 70 else getattr(self, name + "x")

def worker(request):
    return Response(str(len(Deep().x)))
"""
    assert answer(python, source)["data"] == "1"


def test_recursion_that_programs_need(python: LanguageEngine) -> None:
    source = """
from functools import lru_cache

def plain(n):
    return n and 1 + plain(n - 1)

@lru_cache(None)
def cached(n):
    return n and 1 + cached(n - 1)

def worker(request):
    nested = None
    for _ in range(400):
        nested = [nested]
    assert json.loads(json.dumps(nested)) == nested
    return Response(f"{plain(900)} {cached(60)}")
"""
    assert answer(python, source)["data"] == "900 60"


@pytest.mark.parametrize(
    "statement",
    [
        "bytearray(1 << 30)",
        "x = 'x' * (1 << 30)",
        "x = []\n    while True: x.append(bytearray(1 << 20))",
        "x = {}\n    while True: x[str(len(x))] = [None] * 100",
    ],
)
def test_more_memory_than_there_is(python: LanguageEngine, statement: str) -> None:
    source = f"def worker(request):\n    {statement}\n"
    assert "MemoryError" in failure(python, source, max_memory_bytes=64 << 20)


def test_memory_error_can_be_handled(python: LanguageEngine) -> None:
    source = """
def worker(request):
    try:
        bytearray(1 << 30)
    except MemoryError:
        return Response("there is less")
"""
    assert answer(python, source)["data"] == "there is less"


# Output


def test_output(python: LanguageEngine) -> None:
    source = """
import sys
print("loading é")

def worker(request):
    print("printed", end="")
    print("error \\ud800", file=sys.stderr)
    return Response("x")
"""
    worker = python.load(source)
    assert worker.stdout == "loading é\n"
    result = worker.handle({})
    assert (result.stdout, result.stderr) == ("printed", "error \\ud800\n")


def test_output_of_a_worker_that_fails(python: LanguageEngine) -> None:
    source = "def worker(request):\n    print('before', file=sys.stderr)\n    1 / 0\n"
    assert failure(python, source).startswith("before\nTraceback (most recent call last):\n  File")


# Between requests


def test_nothing_of_a_request_stays(python: LanguageEngine) -> None:
    source = """
import os, sys
seen = []

def worker(request):
    seen.append(request.url)
    sys.modules["left"] = sys
    os.environ["LEFT"] = "x"
    return Response(repr((seen, os.environ.get("BEFORE"), list(os.environ))))
"""
    worker = python.load(source)
    first = worker.handle({"url": "/a"}).response["data"]
    assert first == "(['/a'], None, ['LEFT'])"
    assert worker.handle({"url": "/a"}).response["data"] == first


@pytest.mark.parametrize(
    "expression",
    [
        "random.random()",
        "random.randbytes(8).hex()",
        "own.random()",
        "numbers.random()",
        "uuid.uuid4()",
        "uuid.uuid1()",
        "secrets.token_hex()",
        "os.urandom(16).hex()",
        "next(tempfile._get_candidate_names())",
        "random.SystemRandom().random()",
    ],
)
def test_randomness_differs_between_requests(python: LanguageEngine, expression: str) -> None:
    source = f"""
import os, random, secrets, tempfile, uuid
uuid.uuid1(), random.random(), next(tempfile._get_candidate_names())
own = random.Random()
class Numbers(random.Random): pass
numbers = Numbers()

def worker(request):
    return Response(str({expression}))
"""
    worker = python.load(source)
    assert len({worker.handle({}).response["data"] for _ in range(3)}) == 3


def test_seeded_generators_repeat(python: LanguageEngine) -> None:
    """As they do where each request runs the whole script."""
    source = """
import random
random.seed(7)
own = random.Random(7)

def worker(request):
    return Response(f"{random.random()} {own.random()}")
"""
    worker = python.load(source)
    expected = str(random.Random(7).random())
    assert {worker.handle({}).response["data"] for _ in range(2)} == {f"{expected} {expected}"}


def test_time_goes_on(python: LanguageEngine) -> None:
    source = """
import datetime, time
loaded = time.time_ns(), datetime.datetime.now()

def worker(request):
    now = time.time_ns(), datetime.datetime.now()
    assert all(a > b for a, b in zip(now, loaded))
    return Response(str(now[0]))
"""
    worker = python.load(source)
    first, second = (int(worker.handle({}).response["data"]) for _ in range(2))
    assert first < second


def test_hashes_differ_between_workers(python: LanguageEngine) -> None:
    """A client cannot know which keys would collide."""
    source = "def worker(request):\n    return Response(str(hash('a')))\n"
    workers = [python.load(source) for _ in range(3)]
    assert len({worker.handle({}).response["data"] for worker in workers}) > 1


# The library


MODULES = """
abc argparse array ast asyncio atexit base64 binascii bisect calendar cmath cmd code codecs
collections.abc colorsys concurrent.futures configparser contextlib contextvars copy copyreg csv
dataclasses datetime decimal difflib dis email.message email.mime.text email.parser encodings.idna
enum errno fileinput fnmatch fractions functools gc getopt gettext glob graphlib gzip hashlib heapq
hmac html html.parser http http.client http.cookies http.cookiejar http.server importlib.metadata
importlib.resources inspect io ipaddress itertools json keyword linecache locale logging
logging.config logging.handlers mailbox math mimetypes numbers operator optparse os os.path pathlib
pickle pickletools pkgutil platform plistlib posixpath pprint queue quopri random re reprlib runpy
sched secrets select selectors shlex shutil signal smtplib socket socketserver stat statistics
string stringprep struct subprocess symtable sys sysconfig tabnanny tarfile tempfile textwrap
threading time timeit token tokenize tomllib trace traceback tracemalloc types typing unicodedata
unittest unittest.mock urllib.error urllib.parse urllib.request urllib.robotparser uuid warnings
wave weakref wsgiref.handlers wsgiref.util xml.dom.minidom xml.etree.ElementTree xml.sax
xmlrpc.client zipfile zipimport zlib zoneinfo
"""


def test_library_is_there(python: LanguageEngine) -> None:
    source = f"""
import importlib

def worker(request):
    for name in {MODULES!r}.split():
        importlib.import_module(name)
    return Response("all")
"""
    assert answer(python, source)["data"] == "all"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("__import__('hashlib').sha256(b'a').hexdigest()[:8]", "ca978112"),
        ("__import__('hashlib').md5(b'a').hexdigest()[:8]", "0cc175b9"),
        ("__import__('hashlib').blake2b(b'a').hexdigest()[:8]", "333fcb4e"),
        (
            "__import__('hmac').new(b'k', b'm', 'sha1').hexdigest()",
            hmac.new(b"k", b"m", "sha1").hexdigest(),
        ),
        ("str(__import__('decimal').Decimal(1) / 7)", "0.1428571428571428571428571429"),
        ("__import__('datetime').datetime(2024, 2, 29).strftime('%a %d %b')", "Thu 29 Feb"),
        ("__import__('re').sub(r'(\\d+)', r'<\\1>', 'a12b')", "a<12>b"),
        ("__import__('unicodedata').name('é')", "LATIN SMALL LETTER E WITH ACUTE"),
        ("'日本'.encode('shift_jis').hex()", "93fa967b"),
        ("'é.example'.encode('idna').decode()", "xn--9ca.example"),
        ("__import__('zlib').decompress(__import__('zlib').compress(b'a' * 9)).decode()", "a" * 9),
        (
            "__import__('xml.etree.ElementTree', fromlist='x').fromstring('<a b=\"c\"/>').get('b')",
            "c",
        ),
        ("str(__import__('math').fsum([0.1] * 10))", "1.0"),
        ("__import__('platform').system()", "wasi"),
        ("repr(1e16) + repr(0.1) + f'{3.14159:.2f}'", "1e+160.13.14"),
        ("str(2 ** 200 % 1000007)", str(2**200 % 1000007)),
    ],
)
def test_library_works(python: LanguageEngine, expression: str, value: str) -> None:
    assert answer(python, f"def worker(request):\n    return Response({expression})\n")["data"] == (
        value
    )


def test_gzip_of_the_host_is_read(python: LanguageEngine) -> None:
    source = """
import gzip

def worker(request):
    return Response(gzip.decompress(request.content))
"""
    body = base64.b64encode(gzip.compress(b"text " * 1000)).decode()
    response = answer(python, source, {"body": body, "base64": True})
    assert base64.b64decode(response["data"]) == b"text " * 1000


@pytest.mark.parametrize("name", ["ctypes", "multiprocessing", "sqlite3", "ssl", "tkinter", "test"])
def test_library_that_cannot_work_is_not_there(python: LanguageEngine, name: str) -> None:
    source = f"def worker(request):\n    import {name}\n"
    assert f"ModuleNotFoundError: No module named '{name}'" in failure(python, source)


def test_assertions_of_the_worker_hold(python: LanguageEngine) -> None:
    assert "AssertionError: x" in failure(python, "def worker(request):\n    assert False, 'x'\n")


def test_dataclasses_and_annotations(python: LanguageEngine) -> None:
    source = """
from __future__ import annotations
import dataclasses, typing, pickle

@dataclasses.dataclass
class Point:
    x: int
    y: typing.Optional[int] = None

def worker(request: Request) -> Response:
    point = pickle.loads(pickle.dumps(Point(1)))
    return Response(f"{point} {typing.get_type_hints(Point)['x']}")
"""
    assert answer(python, source)["data"] == "Point(x=1, y=None) <class 'int'>"
