"""``http-server``, in SpiderLightning 0.1 and 0.2 called ``http``: routers and servers.

Source: SpiderLightning 0.5 wit/http-server.wit, wit/http-types.wit; 0.2 wit/http.wit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from containerd_shim_slight_v1.abi.http_types import HTTP_ERROR
from containerd_shim_slight_v1.abi.imports import (
    OLD_ERROR,
    Function,
    Interface,
    error_of,
    old_error,
)
from containerd_shim_slight_v1.capabilities.instance import Instance
from containerd_shim_slight_v1.http.routes import Router
from containerd_shim_slight_v1.http.servers import RouterError, Server, Servers
from containerd_shimkit.wasm.canonical import STRING, U32, Result, Variant


async def _new(instance: Instance) -> int:
    return instance.handles.add(Router())


async def _new_with_base(instance: Instance, base: str) -> int:
    return _added(instance, Router.with_base(base))


def _adds(method: str) -> Callable[[Instance, int, str, str], Awaitable[int]]:
    async def add(instance: Instance, handle: int, pattern: str, handler: str) -> int:
        router = instance.handles.get(handle, Router)
        try:
            return _added(instance, router.add(method, pattern, handler))
        except ValueError as exc:
            raise RouterError(str(exc)) from None

    return add


def _added(instance: Instance, router: Router) -> int:
    texts = [text for route in router.routes for text in (route.pattern, route.handler)]
    return instance.handles.add(router, router.base, *texts)


async def _serve(instance: Instance, address: str, handle: int) -> int:
    router = instance.handles.get(handle, Router)
    return instance.handles.add(_servers(instance).serve(address, router))


async def _stop(instance: Instance, handle: int) -> None:
    _servers(instance).stop(instance.handles.get(handle, Server))


def _servers(instance: Instance) -> Servers:
    if instance.servers is None:
        raise RouterError(
            "servers are started while the app is set up, and by apps whose slightfile has http"
        )
    return instance.servers


def _functions(error: Variant) -> list[Function]:
    router, nothing = Result(U32, error), Result(None, error)
    return [
        Function("router::new", [], router, _new),
        Function("router::new-with-base", [STRING], router, _new_with_base),
        *(
            Function(f"router::{method.lower()}", [U32, STRING, STRING], router, _adds(method))
            for method in ("GET", "PUT", "POST", "DELETE")
        ),
        Function("server::serve", [STRING, U32], Result(U32, error), _serve),
        Function("server::stop", [U32], nothing, _stop),
    ]


RESOURCES: Final = ("router", "server")
INTERFACES: Final = (
    Interface("http-server", _functions(HTTP_ERROR), error_of(RouterError)),
    Interface("http", _functions(OLD_ERROR), old_error),
)
