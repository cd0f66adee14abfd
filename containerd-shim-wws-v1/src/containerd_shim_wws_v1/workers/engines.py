"""The engines of languages that the shim brings along."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Final

from containerd_shimkit.errors import EngineError

LANGUAGES: Final = {"js": "javascript", "py": "python"}
"""By extension."""

_PACKAGE: Final = "containerd_shim_wws_v1.engines"
_SPELLED: Final = {"javascript": "JavaScript", "python": "Python"}


class NoEngineError(EngineError):
    """The shim has no engine for a language."""


def open_engine(language: str) -> int:
    """Return a descriptor of an engine's module.

    Only while the app is prepared: the container has no path to it, see ``late``.
    Raises NoEngineError.
    """
    try:
        spec = importlib.util.find_spec(_PACKAGE)
        places = spec.submodule_search_locations if spec is not None else None
        path = Path(places[0] if places else "/", f"{language}.wasm")
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NoEngineError(
            f"this shim was built without its {_SPELLED[language]} engine: "
            "`make engines`, then `make build`"
        ) from None
    except (ImportError, OSError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise NoEngineError(f"the {_SPELLED[language]} engine cannot be read: {reason}") from None
