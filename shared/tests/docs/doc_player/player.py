"""Following a document: its files are written, its commands run, in a copy of the working copy.

Every command has to be one that a rule below knows, so that none stands in a document unseen.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from doc_player.document import Block, Command, blocks, commands

DEADLINE = 60.0
"""For what a command has to print."""

DRY, RUN, BACKGROUND, NOTHING, PATHS = "dry", "run", "background", "nothing", "paths"
RULES: tuple[tuple[str, str], ...] = (
    # Builds what is built, or runs all tests: that the target is there has to do.
    (r"make (build|test|bench|soak|lint|guests|release)\b", DRY),
    # Packages that this machine has: that Debian knows their names has to do.
    (r"apt-get install [^&|;]+", DRY),
    # Told of a node's own containerd, and tested with others: shared/tests/node.
    (r"containerd-shim-\w+-v1 (config|doctor)( --[\w-]+| \w+)*", NOTHING),
    # Of builds that are not there: shared/tests/e2e/test_upgrade.py and test_precompile.py.
    (r"(dist/)?containerd-shim-\w+-v1 (-v|precompile \S+)", NOTHING),
    # What wants a cluster, base images or the machine itself: shared/tests/deployments does that in
    # other ways. What the command names has to be there.
    (r"(microk8s )?kubectl .*|microk8s ctr .*", PATHS),
    (r"k3d image import .*|crictl (ps|logs) .*|journalctl .*", PATHS),
    (r"docker build .*--file deployments/.*", PATHS),
    (r"rm -r images/\w+", RUN),
    (r"docker push registry\.example\.com/containerd-wasm-shims/node-installer\S*", NOTHING),
    (r"(install|mv|rm) [^&|;]+|(\w+=\S+ )?deployments/node-installer/install\.sh \w+", PATHS),
    (r"make (-C deployments/k3d [\w-]+|install-k3d|up|clean)", DRY),
    (r"curl http://127\.0\.0\.1:8081/.*", NOTHING),
    (r"make run_\w+.*", BACKGROUND),
    (r"ctr run (?!.*(-d|--detach)).*", BACKGROUND),
    (r"ctr .*", RUN),
    (r"make (install|load|images|interpreters|install load)", RUN),
    (r"(docker (build|load|push|tag|rmi)|buildah (build|pull|push|tag|rmi)) [^&|;]+", RUN),
    (r"skopeo copy [^&|;]+", RUN),
    (r"(curl|mkdir|cp|clang-14|rustc|cat|ls) [^&|;]*", RUN),
)


class PlayError(AssertionError):
    """A document is not true."""


class Player:
    """Runs documents in one directory."""

    def __init__(self, directory: Path, environment: Mapping[str, str], prefix: list[str]) -> None:
        """prefix: the arguments with which every command is executed."""
        self._directory = directory
        self._environment = dict(environment)
        self._prefix = prefix
        self._running: list[subprocess.Popen[str]] = []

    def play(self, document: Path) -> list[str]:
        """Do what a document says; return the commands that were run. Raises PlayError."""
        done: list[str] = []
        try:
            for block in blocks(document.read_text()):
                if block.path:
                    self._write(block)
                elif block.kind == "console":
                    for command in commands(block):
                        self._do(command, document)
                        done.append(command.text)
        finally:
            self.close()
        return done

    def _write(self, block: Block) -> None:
        path = self._directory / block.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)

    def _do(self, command: Command, document: Path) -> None:
        where = f"{document.name}:{command.line}: {command.text}"
        rule = rule_of(command.text)
        if rule is None:
            raise PlayError(f"{where}: no rule says how this command is tested")
        if rule == NOTHING:
            return
        if rule == PATHS:
            for missing in self._missing(command.text):
                raise PlayError(f"{where}: there is no {missing}")
            return
        if rule == BACKGROUND:
            self.close()  # one app at a time: a reader ends it before the next
            self._start(command, where)
            return
        text = dry(command.text) if rule == DRY else command.text
        # What has been started in the background may take a moment until it answers.
        deadline = time.monotonic() + (DEADLINE if text.startswith("curl ") else 0)
        while True:
            result = self._run(text)
            fault = fault_of(result, () if rule == DRY else command.printed)
            if fault is None:
                return
            if time.monotonic() > deadline:
                raise PlayError(f"{where}: {fault}")
            time.sleep(0.1)

    def _missing(self, text: str) -> list[str]:
        """Return what a command names in the working copy that is not there."""
        tops = {path.name for path in self._directory.iterdir() if path.is_dir()}
        words = re.split(r"[\s:=]+", text)
        named = [word for word in words if word.partition("/")[0] in tops]
        return [word for word in named if not (self._directory / word).exists()]

    def _run(self, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._prefix, "bash", "-ec", text],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def _start(self, command: Command, where: str) -> None:
        process = subprocess.Popen(
            [*self._prefix, "bash", "-ec", f"exec {command.text}"],
            cwd=self._directory,
            env=self._environment_of(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._running.append(process)
        assert process.stdout is not None
        seen = []
        for expected in command.printed:
            for line in process.stdout:
                seen.append(line)
                if line.rstrip() == expected:
                    break
            else:
                raise PlayError(f"{where}: it has not printed {expected!r}:\n{''.join(seen)}")

    def _environment_of(self, command: Command) -> dict[str, str]:
        if not command.text.startswith("make run_"):
            return self._environment
        # They have a containerd of their own.
        return {k: v for k, v in self._environment.items() if not k.startswith("CONTAINERD_")}

    def close(self) -> None:
        """End what runs."""
        for process in self._running:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        self._running.clear()


def rule_of(text: str) -> str | None:
    """Return how a command is tested, None if no rule knows it."""
    joined = text.replace("\\\n", " ")
    return next((how for pattern, how in RULES if re.fullmatch(pattern, joined)), None)


def dry(text: str) -> str:
    """Return a command that says whether another could be run."""
    if text.startswith("make "):
        # These are of deployments/k3d, whose page is read there.
        there = text in ("make install-k3d", "make up", "make clean")
        where = "--directory deployments/k3d " if there else ""
        return f"make {where}--dry-run {text.removeprefix('make ')}"
    return text.replace("apt-get install", "apt-get install --simulate", 1)


def fault_of(result: subprocess.CompletedProcess[str], printed: tuple[str, ...]) -> str | None:
    """Return what is wrong with a command's end, None if nothing is."""
    if result.returncode:
        return f"exit code {result.returncode}: {result.stdout}{result.stderr}"
    lines = result.stdout.splitlines()
    if printed and lines != list(printed):
        return f"it printed {lines}"
    return None


def copy_of(root: Path, directory: Path) -> Path:
    """Return a copy of a working copy's files, with what is built and downloaded for it."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        if (root / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, directory / name)
    for name in (".venv", ".cache"):
        (directory / name).symlink_to(root / name)
    shutil.copytree(root / "dist", directory / "dist", ignore=shutil.ignore_patterns("bench"))
    engines = "containerd-shim-wws-v1/src/containerd_shim_wws_v1/engines"
    for path in (root / engines).glob("*.wasm"):
        shutil.copy(path, directory / engines)
    # Newer than all sources, as they are in the working copy.
    for path in [*(directory / engines).glob("*.wasm"), *(directory / "dist").rglob("*")]:
        os.utime(path)
    return directory
