"""Adding a runtime to a node's containerd, and taking it out again.

Nothing is written that containerd would not read: the new text is tried with ``containerd config
dump`` first. A file is replaced whole or not at all; what it was is kept beside it until the last
of our runtimes is taken out.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from containerd_shimkit.errors import ShimError
from containerd_shimkit.node.config_text import (
    CRI_PLUGINS,
    ConfigTextError,
    Runtime,
    named_in,
    ours_in,
    parse,
    runtimes_of,
    version_of,
    with_runtimes,
    without_ours,
)
from containerd_shimkit.node.places import Place

BACKUP_SUFFIX: Final = ".before-containerd-wasm-shims"
KUBELET_CONFIGS: Final = ("/var/lib/kubelet/config.yaml", "/etc/kubernetes/kubelet/config.json")

_SECONDS: Final = 30.0
_VERSION: Final = re.compile(r"\bv?(\d+)\.\d+\.\d+")
_DRIVER: Final = re.compile(r"""^\s*"?cgroupDriver"?\s*:\s*"?(systemd|cgroupfs)\b""", re.M)


class ConfigError(ShimError):
    """The node's containerd cannot be told of the runtime; nothing has been changed."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one file was, and is to be; None is no file."""

    file: Path
    before: str | None
    after: str | None

    @property
    def is_none(self) -> bool:
        return self.before == self.after


class Configuration:
    """The configuration of one containerd."""

    def __init__(self, place: Place, program: Path | None, version: int | None = None) -> None:
        """program: containerd's, if there is one.  version: of the file, where nothing else says.

        Raises ConfigError.
        """
        self.place = place
        self.program = program
        self._text = _read(place.file)
        self._dumped: Mapping[str, Any] | None = None
        self.version = self._version(version)

    def _version(self, given: int | None) -> int:
        if self.place.version is not None:
            return self.place.version
        tables = _parse(self._text or "", self.place.file)
        return _version(tables, self.place.file) or given or self._newest_version()

    def _newest_version(self) -> int:
        """Return the version for a file that says nothing yet."""
        if self.program is None:
            raise ConfigError(
                f"{self.place.file} does not say its version, and there is no containerd to ask: "
                "say --config-version 2 for containerd 1.x, 3 for 2.x"
            )
        found = _VERSION.search(_output(self.program, "--version"))
        return 2 if found is not None and found[1] == "1" else 3

    def effective(self) -> Mapping[str, Any]:
        """Return the tables that containerd has: its defaults and all files. Raises ConfigError."""
        if self._dumped is None:
            read = self.place.read
            if self.program is None:
                self._dumped = _parse(_read(read) or "", read)
            else:
                self._dumped = self._dump(read if read.exists() else Path(os.devnull))
        return self._dumped

    def systemd_cgroup(self, kubelet_configs: tuple[str, ...] = KUBELET_CONFIGS) -> bool:
        """Return whether the node's containers are made by systemd: as runc's are, or kubelet's."""
        runc = runtimes_of(self.effective()).get("runc")
        if runc is not None and runc.systemd_cgroup:
            return True
        for path in kubelet_configs:
            with contextlib.suppress(OSError):
                found = _DRIVER.search(Path(path).read_text(errors="replace"))
                if found is not None:
                    return found[1] == "systemd"
        return False

    def adding(self, runtimes: Iterable[Runtime]) -> Change:
        """Return what adding runtimes changes. Raises ConfigError."""
        ours = self._ours()
        new = {
            runtime.handler: runtime
            for runtime in runtimes
            if runtime.handler in ours or not self._is_there(runtime)
        }
        if not new:
            return Change(self.place.file, self._text, self._text)
        change = self._change({**ours, **new})
        if lost := self._lost(change):
            change = self._change({**lost, **ours, **new})
        return change

    def removing(self, handlers: Collection[str]) -> Change:
        """Return what taking runtimes of ours out changes. Raises ConfigError."""
        kept = {name: each for name, each in self._ours().items() if name not in handlers}
        if all(runtime.is_default for runtime in kept.values()):
            kept = {}
        return self._change(kept)

    def _lost(self, change: Change) -> dict[str, Runtime]:
        """Return the default runtimes that containerd would no longer have."""
        if self.program is None or self.place.file != self.place.read or not change.after:
            return {}  # a distribution's own file names them
        _parse(change.after, self.place.file)
        before, after = runtimes_of(self.effective()), runtimes_of(self._try(change.after))
        return {
            name: runtime
            for name, runtime in before.items()
            if name not in after and runtime.is_default
        }

    def _ours(self) -> dict[str, Runtime]:
        try:
            return ours_in(self._text or "")
        except ConfigTextError as exc:
            raise ConfigError(f"{self.place.file}: {exc}") from None

    def _is_there(self, runtime: Runtime) -> bool:
        """Return whether somebody else has said the same. Raises ConfigError for something else."""
        there = runtimes_of(self.effective()).get(runtime.handler)
        if there is None and runtime.handler not in named_in(self._text or ""):
            return False
        if there is not None and there.type == runtime.type:
            return True
        kind = there.type if there is not None else "something else"
        hint = ""
        if self.place.is_template:
            hint = (
                f"; {self.place.distribution} does so for shims that it finds in /usr/bin: "
                "have them in /usr/local/bin"
            )
        raise ConfigError(
            f'{self.place.read}: runtime "{runtime.handler}" is {kind} already{hint}; take it out, '
            "or choose another name with --handler"
        )

    def _change(self, runtimes: Mapping[str, Runtime]) -> Change:
        before = self._text
        after: str | None = self._rendered(before, runtimes)
        if not runtimes and after == self.place.head and self._made_by_us():
            after = None
        return Change(self.place.file, before, after)

    def _rendered(self, text: str | None, runtimes: Mapping[str, Runtime]) -> str | None:
        if text is None:
            if not runtimes:
                return None
            # Outside of ours: what is made of a template has it there, too.
            text = self.place.head
        head = "" if self.place.head else f"version = {self.version}\n"
        return with_runtimes(
            *(text, runtimes.values(), self.version, head),
            in_k3s_template=self.place.is_template,
        )

    def _made_by_us(self) -> bool:
        """Whether the file was not there before the first of ours: it has no backup."""
        return bool(self._ours()) and not _backup(self.place.file).exists()

    def check(self, change: Change, runtimes: Iterable[Runtime] = ()) -> None:
        """Try the new text. runtimes: what has to be in it. Raises ConfigError if containerd fails.

        Without a containerd its syntax is checked.
        """
        text = change.after or ""
        if self.place.is_template:
            # What it adds is what our text adds to the file that was made of the template before.
            ours = _parse_ours(text, self.place.file)
            made = without_ours(_read(self.place.read) or "")
            named = runtimes_of(_parse(made, self.place.read))
            added = [each for name, each in ours.items() if name not in named]
            text = with_runtimes(made, added, self.version)
        tables: Mapping[str, Any] = _parse(text, self.place.file)
        if self.program is not None and text:
            tables = self._try(text)
        found = runtimes_of(tables)
        for runtime in runtimes:
            there = found.get(runtime.handler)
            if there is None or there.type != runtime.type:
                raise ConfigError(
                    f"{self.place.file}: containerd would not know {runtime.handler!r} afterwards: "
                    f"it reads version {self.version}, {CRI_PLUGINS[self.version]!r}, as {there}"
                )

    def _try(self, text: str) -> Mapping[str, Any]:
        """Return what containerd makes of a text; beside the file, as it may import others."""
        directory = self.place.read.parent
        try:
            with tempfile.NamedTemporaryFile(
                "w", prefix=".config-trial-", dir=directory if directory.is_dir() else None
            ) as trial:
                trial.write(text)
                trial.flush()
                return self._dump(Path(trial.name))
        except OSError as exc:
            raise ConfigError(f"cannot write beside {self.place.read}: {exc.strerror}") from None

    def _dump(self, file: Path) -> Mapping[str, Any]:
        assert self.program is not None
        return _parse(_output(self.program, "-c", str(file), "config", "dump"), file)


def write(change: Change) -> None:
    """Make a change, whole or not at all. Raises ConfigError."""
    file = change.file.resolve()
    backup = _backup(change.file)
    try:
        if change.after is None:
            file.unlink()
        else:
            if change.before is not None and not backup.exists() and not ours_in(change.before):
                _replace(backup, change.before, like=file)
            file.parent.mkdir(parents=True, exist_ok=True)
            _replace(file, change.after, like=file)
        if change.after is None or not ours_in(change.after):
            backup.unlink(missing_ok=True)
    except OSError as exc:
        raise ConfigError(f"cannot write {exc.filename or file}: {exc.strerror}") from None


def find_containerd(place: Place) -> Path | None:
    """Return the program of containerd: the distribution's, or the one on PATH."""
    for program in place.containerd:
        if os.access(program, os.X_OK):
            return program
    found = shutil.which("containerd")
    return Path(found) if found else None


def restart(place: Place) -> None:
    """Restart containerd. Raises ConfigError."""
    try:
        done = subprocess.run(place.restart, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ConfigError(f"cannot run {' '.join(place.restart)}: {exc}") from None
    if done.returncode:
        raise ConfigError(f"{' '.join(place.restart)} failed: {done.stderr.strip()}")


def _backup(file: Path) -> Path:
    return file.with_name(file.name + BACKUP_SUFFIX)


def _replace(file: Path, text: str, *, like: Path) -> None:
    """Write a file so that whoever reads it finds the old or the new one. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with open(descriptor, "w") as new:
            new.write(text)
            with contextlib.suppress(FileNotFoundError):
                status = like.stat()
                os.fchown(new.fileno(), status.st_uid, status.st_gid)
            os.fchmod(new.fileno(), stat.S_IMODE(status.st_mode) if like.exists() else 0o644)
            new.flush()
            os.fsync(new.fileno())
        Path(name).rename(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(file: Path) -> str | None:
    try:
        return file.read_bytes().decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read {file}: {exc}") from None


def _parse(text: str, file: Path) -> dict[str, Any]:
    try:
        return parse(text, str(file))
    except ConfigTextError as exc:
        raise ConfigError(str(exc)) from None


def _parse_ours(text: str, file: Path) -> dict[str, Runtime]:
    try:
        return ours_in(text)
    except ConfigTextError as exc:
        raise ConfigError(f"{file}: {exc}") from None


def _version(tables: Mapping[str, Any], file: Path) -> int | None:
    try:
        return version_of(tables, str(file))
    except ConfigTextError as exc:
        raise ConfigError(str(exc)) from None


def _output(program: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ConfigError(f"cannot run {program}: {exc}") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise ConfigError(f"{program} refuses it: {reason[-1] if reason else done.returncode}")
    return done.stdout
