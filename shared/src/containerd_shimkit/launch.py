"""The Python side of what containerd executes: the zygote, or the work itself.

A built binary begins with the launcher (``shared/launcher``), a program in C that passes ``start``
and ``delete`` to the zygote. It executes this where there is no zygote yet, or none that answers.
"""

from __future__ import annotations

import sys

from containerd_shimkit.runtime import ShimKind


def main(kind: ShimKind, build_id: str | None) -> int:
    """Run the command line ``sys.argv`` and return the exit code.

    build_id: names the build whose zygote this may be; None, in a source checkout, means none.
    """
    arguments = sys.argv[1:]
    if build_id is not None and arguments == ["zygote"]:
        import gc

        gc.disable()  # a tenth of the time of its imports, for little; ``seal`` makes up for it
        from containerd_shimkit.zygote import serve_zygote

        return serve_zygote(kind, build_id)
    from containerd_shimkit.cli import run

    return run(kind, build_id, arguments)
