"""What the engine does with a worker: `load` it, then `handle` one request.

`load` ends the part that is made once: the interpreter's memory is kept as it is then, and every
request starts with a copy of it. What must differ between requests is drawn anew by `handle`.

So what is imported here is copied for each request of each worker. `json`, which needs `re`, would
be most of it: the prelude calls the C functions below it.
"""

from __future__ import annotations

import _json
import gc
import os
import sys
from binascii import b2a_base64

import workers
from workers import Cache, Request, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_CO_COROUTINE = 0x80  # `inspect`, which is large, has its name

# What the kit of Wasm Workers Server leaves in a worker's globals. Modules only if it names them.
_GLOBALS = {"sys": sys} | {name: getattr(workers, name) for name in workers.__all__}
_GLOBAL_MODULES = ("json", "base64")


class _Decoder:
    """What `json.JSONDecoder` tells the scanner: nothing special."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def _no_json(value: object) -> None:
    raise TypeError(f"{type(value).__name__} is no JSON")


_scan = _json.make_scanner(_Decoder)  # type: ignore[arg-type]
_encode = _json.make_encoder(
    *(None, _no_json, _json.encode_basestring, None, ":", ",", False, False, True)
)

_worker: Callable[[Request], Any]
_source = ("", b"")  # the worker's name and source, for messages


def load(name: str, source: bytes) -> bool:
    """Evaluate a worker's source; say whether it has a handler. If not, stderr says why."""
    global _worker, _source
    _source = (name, source)
    sys.argv = [name]
    sys.path[:] = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    module = type(sys)("__main__")
    module.__dict__.update(_GLOBALS, __file__=name)
    for known in _GLOBAL_MODULES:
        if known.encode() in source:
            module.__dict__[known] = __import__(known)
    sys.modules["__main__"] = module
    try:
        exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
        worker = module.__dict__.get("worker")
        if not callable(worker):
            print(f"{name}: there is no function worker(request)", file=sys.stderr)
            return False
        if _is_coroutine_function(worker):
            import asyncio  # noqa: F401  once here, not in `_finish` for each request
        _worker = worker
    except BaseException as exc:
        _print_error(exc)
        return False
    finally:
        _flush()
    # What is garbage need not be kept. A collection while a request is handled looks at its own.
    gc.collect()
    gc.freeze()
    return True


def handle(text: bytes) -> bytes | None:
    """Return the response's JSON to a request's, or None if the worker failed: stderr says why."""
    try:
        _draw_anew()
        fields, _ = _scan(text.decode(), 0)
        Cache.store = fields["kv"]
        answer = _finish(_worker(Request(fields)))
        return "".join(_encode(_response(answer), 0)).encode()
    except BaseException as exc:
        _print_error(exc)
        return None
    finally:
        _flush()


def _draw_anew() -> None:
    """Draw what a snapshot must not repeat. `secrets` and `os.urandom` keep nothing."""
    modules = sys.modules
    if seeds := modules.get("_random_seeds"):
        seeds.draw_anew()
    if uuid := modules.get("uuid"):
        vars(uuid).update(_node=None, _last_timestamp=None)
    if tempfile := modules.get("tempfile"):
        vars(tempfile).update(_name_sequence=None)


def _is_coroutine_function(function: Any) -> bool:
    return bool(getattr(getattr(function, "__code__", None), "co_flags", 0) & _CO_COROUTINE)


def _finish(answer: Any) -> Any:
    """Return what a worker returned, or what its coroutine returns."""
    if not hasattr(answer, "__await__"):
        return answer
    import asyncio

    async def waiting() -> Any:
        return await answer

    return asyncio.run(waiting())


def _response(answer: Any) -> dict[str, Any]:
    if isinstance(answer, (str, bytes)):
        answer = Response(answer)
    elif not hasattr(answer, "body") or not hasattr(answer, "headers"):
        raise TypeError(f"worker returned no Response: {type(answer).__name__}")
    body = answer.body
    if isinstance(body, (bytes, bytearray, memoryview)):
        data, encoded = b2a_base64(body, newline=False).decode(), True
    elif isinstance(body, str):
        data, encoded = body, False
    else:
        raise TypeError(f"the body of a Response is str or bytes, not {type(body).__name__}")
    return {
        "data": data,
        "status": int(answer.status_code),
        "headers": {str(name): _header(value) for name, value in answer.headers.items()},
        "kv": Cache.store,
        "base64": encoded,
    }


def _header(value: Any) -> str | list[str]:
    return [str(one) for one in value] if isinstance(value, (list, tuple)) else str(value)


def _print_error(exc: BaseException) -> None:
    """Print a traceback that begins with the worker's own frames."""
    import linecache
    import traceback

    name, source = _source
    if isinstance(exc, SystemExit):
        print(f"{name}: it left by exit({exc.code!r}), without a response", file=sys.stderr)
        return
    text = source.decode(errors="replace")
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    trace = exc.__traceback__
    while trace and trace.tb_next and trace.tb_frame.f_code.co_filename.startswith("<frozen "):
        trace = trace.tb_next
    if trace and trace.tb_frame.f_globals.get("__name__") == __name__:
        trace = None
    try:
        traceback.print_exception(type(exc), exc, trace)
    except (MemoryError, RecursionError):
        print(f"{name}: {type(exc).__name__}", file=sys.stderr)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  importing contextlib costs each request pages
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or replaced by the worker
            pass
