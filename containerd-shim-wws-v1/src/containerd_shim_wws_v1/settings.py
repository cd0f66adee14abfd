"""What the container's environment says about serving; the reference is docs/configuration.md.

Names follow the flags of upstream's ``wws``: ``--host``, ``--port``, ``--prefix``, ``--ignore``,
``--cors``, ``--enable-panel``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from containerd_shim_wws_v1.project.globs import GlobError, PathGlob
from containerd_shimkit.environment import SettingError, parse_address, read_number
from containerd_shimkit.workers import MAX_WORKERS

ADDRESS_SETTING: Final = "WWS_HTTP_LISTEN_ADDR"
DEFAULT_HOST: Final = "0.0.0.0"
DEFAULT_PORT: Final = 3000

_SNAPSHOT_BYTES: Final = 256 << 20  # where the container has no limit

_URL_FORMS: Final = ("absolute", "path")
_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO: Final = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of an app."""

    host: str
    port: int
    prefix: str
    """What the path of every URL begins with; empty, or with a slash in front and none behind."""
    ignore: tuple[PathGlob, ...]
    """Files that are no workers."""
    cors: tuple[str, ...]
    """Origins that may read what workers answer."""
    panel: bool
    """Whether the management API and the panel are served."""
    absolute_url: bool
    """Whether a request's ``url`` is absolute, as since 1.6.1, or path and query."""
    kv: str
    """Where values are kept; see ``kv.stores``."""
    drain_seconds: float
    request_seconds: float | None
    """A request may take this long, the reading of its body included; None is no limit."""
    max_body_bytes: int
    max_requests: int
    """Requests in flight, in all processes; beyond it 503."""
    max_memory_bytes: int
    """Linear memory of one instance."""
    max_snapshot_bytes: int
    """What is kept of loaded sources, in each process."""
    processes: int
    """Processes that serve."""

    @classmethod
    def load(
        cls, env: Mapping[str, str], memory_limit_bytes: int | None, processors: int = 1
    ) -> Settings:
        """Read ``env``. memory_limit_bytes: of the container. processors: those it may use.

        Raises SettingError naming the variable, its value and the rule.
        """
        host, port = _address(env)
        memory = min(memory_limit_bytes or 4 << 30, 4 << 30)
        limit = read_number(env, "WWS_MAX_INSTANCE_MEMORY", memory, least=64 << 10, most=4 << 30)
        count = read_number(env, "WWS_MAX_INSTANCE_COUNT", 1000, least=1, most=10_000)
        processes = int(
            read_number(
                *(env, "WWS_HTTP_WORKERS", min(processors, MAX_WORKERS)), least=1, most=MAX_WORKERS
            )
        )
        kept = memory_limit_bytes // 2 // processes if memory_limit_bytes else _SNAPSHOT_BYTES
        return cls(
            host=host,
            port=port,
            prefix=format_prefix(env.get("WWS_PREFIX", "")),
            ignore=tuple(map(_glob, _listed(env.get("WWS_IGNORE", "")))),
            cors=tuple(map(_origin, _listed(env.get("WWS_CORS", "")))),
            panel=_switch(env, "WWS_ENABLE_PANEL"),
            absolute_url=_url_form(env.get("WWS_REQUEST_URL") or "absolute") == "absolute",
            kv=env.get("WWS_KV") or "memory",
            drain_seconds=read_number(env, "WWS_SHUTDOWN_TIMEOUT_SECONDS", 10.0),
            request_seconds=read_number(env, "WWS_HTTP_REQUEST_TIMEOUT_SECONDS", 60.0) or None,
            max_body_bytes=int(read_number(env, "WWS_HTTP_MAX_BODY_BYTES", 32 << 20)),
            max_requests=int(count),
            max_memory_bytes=int(limit),
            max_snapshot_bytes=int(read_number(env, "WWS_MAX_SNAPSHOT_MEMORY", kept)),
            processes=processes,
        )


def format_prefix(text: str) -> str:
    """Return a prefix as URLs have it. Source: crates/router/src/lib.rs, ``format_prefix``."""
    parts = [part for part in text.replace("\\", "/").split("/") if part]
    return "".join(f"/{part}" for part in parts)


def _address(env: Mapping[str, str]) -> tuple[str, int]:
    text = env.get(ADDRESS_SETTING) or ""
    host = env.get("WWS_HOST") or DEFAULT_HOST
    port = int(read_number(env, "WWS_PORT", DEFAULT_PORT, most=65535))
    if host == "localhost":
        host = "127.0.0.1"
    shown = f"{ADDRESS_SETTING}={text!r}" if text else f"WWS_HOST={host!r}"
    try:
        bracketed = f"[{host}]" if ":" in host else host
        return parse_address(text or f"{bracketed}:{port}")
    except ValueError:
        example = "IP address and port, like 0.0.0.0:3000" if text else "IP address, like 0.0.0.0"
        raise SettingError(f"{shown} is not an {example}") from None


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _glob(text: str) -> PathGlob:
    try:
        return PathGlob(text)
    except GlobError as exc:
        raise SettingError(f"WWS_IGNORE: {text!r}: {exc}") from None


def _origin(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise SettingError(f"WWS_CORS: {text!r} is no origin, like https://example.com, and not *")
    return text


def _url_form(text: str) -> str:
    if text not in _URL_FORMS:
        raise SettingError(f"WWS_REQUEST_URL={text!r} is neither of {', '.join(_URL_FORMS)}")
    return text


def _switch(env: Mapping[str, str], name: str) -> bool:
    text = env.get(name, "").lower()
    if text not in _YES | _NO:
        raise SettingError(f"{name}={text!r} is neither 1 nor 0")
    return text in _YES
