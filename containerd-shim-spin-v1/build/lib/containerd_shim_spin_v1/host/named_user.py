"""A name for whoever runs this, while a library is imported that must have one.

aiomysql asks for it as it is imported, for logins without a user, and fails where nobody knows:
a node may have no /etc/passwd, and containerd no LOGNAME.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_VARIABLE: Final = "LOGNAME"  # the first that getpass.getuser looks at


@contextmanager
def named_user() -> Iterator[None]:
    """Let ``getpass.getuser`` find a name."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = before or "nobody"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
