"""How host names are looked up in a container: by its /etc/hosts and /etc/resolv.conf alone.

The C library looks into /etc/nsswitch.conf, which is the image's, and loads ``libnss_NAME.so.2``
for what it names: from the image, into a process that otherwise runs no code of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Final

_BUILT_IN_SINCE: Final = (2, 34)  # glibc's own NEWS: files and dns need no libraries any more


def use_files_and_dns() -> None:
    """Fix how this process looks up names; to be called while the node's files are there."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "__nss_configure_lookup"):
        return  # not glibc: there is nothing to configure
    version = (os.confstr("CS_GNU_LIBC_VERSION") or "").rpartition(" ")[2]
    if tuple(int(part) for part in version.split(".")[:2]) < _BUILT_IN_SINCE:
        for name in ("files", "dns"):
            with contextlib.suppress(OSError):
                ctypes.CDLL(f"libnss_{name}.so.2")
    libc.__nss_configure_lookup(b"hosts", b"files dns")
