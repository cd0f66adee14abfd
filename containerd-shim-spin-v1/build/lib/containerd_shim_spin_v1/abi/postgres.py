"""``outbound-pg``: statements of PostgreSQL servers; see ``databases``."""

from __future__ import annotations

from typing import Final

from containerd_shim_spin_v1.abi.databases import interfaces_of
from containerd_shimkit.wasm.canonical import U64

INTERFACES: Final = interfaces_of(
    lambda instance: instance.postgres, U64, "outbound-pg", "postgres"
)
