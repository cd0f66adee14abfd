"""Capability sets of ``process.capabilities`` and the order in which they are applied.

1. ``limit_bounding`` needs CAP_SETPCAP, so it comes before the user changes; it also has the
   kernel keep the permitted set over setuid(2), which otherwise empties it.
2. The user changes (``process.apply_user``).
3. ``as_if_executed``: the engine is forked, not executed; execve(2) would take more away.
4. ``apply_sets``: the effective set, emptied by setuid, is filled again; then ambient, each of
   which has to be permitted and inheritable by then. capabilities(7)
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.syscalls import (
    cap_ambient_clear_all,
    cap_ambient_raise,
    capbset_drop,
    capget,
    capset,
    set_keepcaps,
    step,
)

NUMBERS = {name: number for number, name in enumerate(k.CAPABILITIES)}


class CapabilitySets(NamedTuple):
    """The five sets as bit masks."""

    bounding: int = 0
    effective: int = 0
    permitted: int = 0
    inheritable: int = 0
    ambient: int = 0


def mask_of(names: Iterable[str]) -> tuple[int, list[str]]:
    """Return the bit mask of ``names``, and those that are no capability known here."""
    mask, unknown = 0, []
    for name in names:
        number = NUMBERS.get(name)
        if number is None:
            unknown.append(name)
        else:
            mask |= 1 << number
    return mask, unknown


def plan_sets(capabilities: Mapping[str, Sequence[str]] | None) -> tuple[CapabilitySets, list[str]]:
    """Return the sets to apply and a warning for each capability that is left out.

    capabilities: names by set; None is no capability at all. Left out are unknown names, and what
    this process does not hold itself (it could not pass it on, and the kernel would refuse all).
    """
    held = capget()[1]
    warnings: dict[str, None] = {}
    masks = []
    for field in CapabilitySets._fields:
        mask, unknown = mask_of((capabilities or {}).get(field, ()))
        for name in unknown:
            warnings[f"capability {name} is not known: left out"] = None
        for number in _numbers(mask & ~held):
            name = k.CAPABILITIES[number]
            warnings[f"capability {name} is not held by the shim: left out"] = None
        masks.append(mask & held)
    return CapabilitySets(*masks), list(warnings)


def limit_bounding(sets: CapabilitySets) -> None:
    """Take all but ``sets.bounding`` out of the bounding set. Before the user is changed."""
    with step("limit the bounding set"):
        for number in range(64):
            if sets.bounding >> number & 1:
                continue
            try:
                capbset_drop(number)
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                break  # this kernel's last capability was the one before
        set_keepcaps(True)


def as_if_executed(sets: CapabilitySets, uid: int) -> CapabilitySets:
    """Return what a program that ``uid`` executes is left with: only root keeps more than ambient.

    capabilities(7), "Transformation of capabilities during execve()", for a file without any.
    """
    if uid == 0:
        return sets
    kept = sets.ambient & sets.permitted & sets.inheritable
    return sets._replace(effective=kept, permitted=kept)


def apply_sets(sets: CapabilitySets) -> None:
    """Set permitted, effective, inheritable and ambient. After the user was changed."""
    with step("set the capabilities"):
        set_keepcaps(False)
        cap_ambient_clear_all()
        capset(sets.effective, sets.permitted, sets.inheritable)
        for number in _numbers(sets.ambient & sets.permitted & sets.inheritable):
            cap_ambient_raise(number)


def _numbers(mask: int) -> list[int]:
    return [number for number in range(mask.bit_length()) if mask >> number & 1]
