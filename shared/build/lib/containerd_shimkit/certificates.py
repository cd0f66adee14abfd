"""The certificate authorities that a node trusts.

An image often holds nothing but an app, so whoever connects by TLS from its container needs the
node's. The file is opened before the container is isolated, and read if a connection is ever made.
"""

from __future__ import annotations

import os
import stat
from typing import Final

BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # CentOS
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine, BSD
)
"""Where a distribution has the certificates that it trusts, in one file."""


def open_bundle() -> int | None:
    """Return a descriptor of this machine's bundle, None if there is none to be read."""
    for path in BUNDLES:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    return None
