"""``outbound-mysql``: statements of MySQL servers; see ``databases``."""

from __future__ import annotations

from typing import Final

from containerd_shim_spin_v1.abi.databases import interfaces_of

INTERFACES: Final = interfaces_of(lambda instance: instance.mysql, None, "outbound-mysql", "mysql")
