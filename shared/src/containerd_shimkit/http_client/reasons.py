"""Why a server cannot be asked, for whoever uses aiohttp by itself."""

from __future__ import annotations

import aiohttp


def reason_of(exc: BaseException) -> str:
    """Return what went wrong, without the URL that aiohttp's own texts begin with."""
    match exc:
        case aiohttp.ClientConnectorCertificateError():
            return str(exc.certificate_error)
        case aiohttp.ClientConnectorError():
            return exc.os_error.strerror or type(exc.os_error).__name__
        case aiohttp.ServerDisconnectedError():
            return "the server closed the connection"
        case OSError() if exc.strerror:
            return exc.strerror
    return type(exc).__name__
