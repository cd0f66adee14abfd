"""The command line: ``start``, ``delete``, ``-info``, ``-v``, ``--help``, and what people run.

The flags are those of every containerd shim (containerd ``pkg/shim``): Go style, one dash or two.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NoReturn

from setproctitle import setproctitle

from containerd_shimkit.background import fork_into_background
from containerd_shimkit.bootstrap import StartArguments, delete_task, start_shim
from containerd_shimkit.errors import ShimError
from containerd_shimkit.proto.types_pb2 import RuntimeInfo, RuntimeVersion
from containerd_shimkit.runtime import ShimKind
from containerd_shimkit.shim import run_shim

_EXIT_USAGE = 64  # EX_USAGE
_EXIT_FAILED = 1  # what containerd's own shims exit with; the reason is on stderr

_FOR_PEOPLE = ("cache", "config", "doctor", "precompile")

Detach = Callable[[], None]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(_EXIT_USAGE, f"{self.prog}: {message}\n")

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """No abbreviations: ``allow_abbrev`` is for two dashes only."""
        return []


def warm_up(kind: ShimKind) -> None:
    """Do in the zygote what each of its forks would do again: argparse takes a millisecond."""
    _parser(kind).parse_args(["-namespace", "default", "-id", "warm-up", "start"])


@cache
def _parser(kind: ShimKind) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=kind.binary,
        allow_abbrev=False,
        description=f"containerd shim that runs {kind.name} apps ({kind.runtime}). "
        "containerd executes it; copy it to a directory on containerd's PATH.",
        epilog="For people: `config` tells the node's containerd of this shim, `doctor` looks for "
        "what is in its way, `cache` looks at the compiled modules of this node, `precompile` adds "
        "those of an image; each has a --help of its own.",
    )
    parser.add_argument("-help", action="help", help=argparse.SUPPRESS)
    text = {"default": "", "metavar": "TEXT"}
    parser.add_argument("-namespace", "--namespace", help="containerd namespace", **text)  # type: ignore[arg-type]
    parser.add_argument("-address", "--address", help="containerd's gRPC socket", **text)  # type: ignore[arg-type]
    parser.add_argument(
        "-publish-binary",
        "--publish-binary",
        help="program that publishes events where containerd has no ttrpc socket",
        **text,  # type: ignore[arg-type]
    )
    parser.add_argument("-id", "--id", help="id of the task", **text)  # type: ignore[arg-type]
    parser.add_argument("-bundle", "--bundle", help="bundle directory, for delete", **text)  # type: ignore[arg-type]
    parser.add_argument("-socket", "--socket", help="ignored; older containerds pass it", **text)  # type: ignore[arg-type]
    parser.add_argument("-debug", "--debug", action="store_true", help="log more")
    parser.add_argument("-v", "--version", action="store_true", help="print the version and exit")
    parser.add_argument("-info", "--info", action="store_true", help="print RuntimeInfo (protobuf)")
    parser.add_argument("command", nargs="?", choices=("start", "delete"), help="what to do")
    return parser


def run(
    kind: ShimKind, build_id: str | None, arguments: list[str], detach: Detach | None = None
) -> int:
    """Run one command and return its exit code.

    detach: what lets the caller of ``start`` go on while this process becomes the shim; by
    default the process forks and its parent exits.
    """
    if arguments and arguments[0] in _FOR_PEOPLE:
        return _run_for_people(kind, arguments)
    try:
        options = _parser(kind).parse_args(arguments)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else _EXIT_USAGE
    if options.version:
        sys.stdout.write(version_text(kind, build_id))
        return 0
    if options.info:
        sys.stdout.buffer.write(runtime_info(kind, build_id).SerializeToString())
        return 0
    if options.command is None:
        sys.stderr.write(
            f"{kind.binary} is executed by containerd; see --help and the README to install it\n"
        )
        return _EXIT_USAGE
    missing = [name for name in ("namespace", "id") if not getattr(options, name)]
    if missing:
        sys.stderr.write(f"{kind.binary}: {options.command} needs -{' and -'.join(missing)}\n")
        return _EXIT_USAGE
    try:
        return _run_command(kind, options, detach or fork_into_background)
    except (ShimError, OSError) as exc:
        sys.stderr.write(f"{kind.binary}: {exc}\n")
        return _EXIT_FAILED


def _run_for_people(kind: ShimKind, arguments: list[str]) -> int:
    """Run a command that containerd never does; what it needs is imported for it alone."""
    command = arguments[0]
    parser = _Parser(prog=f"{kind.binary} {command}", allow_abbrev=False)
    parser.add_argument("-help", action="help", help=argparse.SUPPRESS)

    run_it: Callable[[argparse.Namespace], int]
    if command == "cache":
        from containerd_shimkit.cache_command import define_cache_command, run_cache_command

        define_cache_command(parser)
        run_it = run_cache_command
    elif command == "config":
        from containerd_shimkit.node.config_command import define_config_command, run_config_command

        define_config_command(parser, kind)
        run_it = partial(run_config_command, kind=kind)
    elif command == "doctor":
        from containerd_shimkit.node.doctor import define_doctor_command, run_doctor_command

        define_doctor_command(parser, kind)
        run_it = partial(run_doctor_command, kind=kind)
    else:
        from containerd_shimkit.precompile import define_precompile_command, run_precompile_command

        define_precompile_command(parser, kind)
        run_it = partial(run_precompile_command, kind=kind)
    try:
        return run_it(parser.parse_args(arguments[1:]))
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else _EXIT_USAGE
    except (ShimError, OSError) as exc:
        sys.stderr.write(f"{parser.prog}: {exc}\n")
        return _EXIT_FAILED


def _run_command(kind: ShimKind, options: argparse.Namespace, detach: Detach) -> int:
    if options.command == "delete":
        bundle = options.bundle or os.getcwd()
        response = delete_task(options.address, options.namespace, options.id, bundle)
        sys.stdout.buffer.write(response.SerializeToString())
        return 0
    start = StartArguments(
        namespace=options.namespace,
        address=options.address,
        publish_binary=options.publish_binary,
        task_id=options.id,
        bundle=os.getcwd(),
        debug=options.debug,
    )
    listener = start_shim(start)
    if listener is not None:
        # Before containerd goes on, so that whoever looks for the shim finds it by its name.
        setproctitle(
            f"{kind.binary} -namespace {start.namespace} -id {start.task_id} "
            f"-address {start.address}"
        )
        detach()
        return run_shim(kind, start, listener)
    return 0


def version_text(kind: ShimKind, build_id: str | None) -> str:
    """Return what ``-v`` prints, in the form of the other containerd wasm shims."""
    from containerd_shimkit.wasm.engine import WASMTIME_VERSION

    return (
        f"{kind.binary}:\n"
        f"  Runtime: {kind.runtime}\n"
        f"  Version: {kind.version}\n"
        f"  Wasmtime: {WASMTIME_VERSION}\n"
        f"  Revision: {build_id or 'source checkout'}\n"
        "\n"
    )


def runtime_info(kind: ShimKind, build_id: str | None) -> RuntimeInfo:
    """Return what ``-info`` prints (containerd 2.x asks for it)."""
    version = RuntimeVersion(version=kind.version, revision=build_id or "")
    return RuntimeInfo(name=kind.runtime, version=version)
