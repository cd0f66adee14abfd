"""Where distributions of Kubernetes have their containerd's configuration, and how it is restarted.

Some write the file that containerd reads at each start: there it is their template, or a directory
of additions, that has to be written.

Sources: docs.k3s.io/advanced and k3s pkg/agent/containerd/config.go; docs.rke2.io/advanced;
docs.k0sproject.io/stable/runtime; microk8s microk8s-resources/default-args.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BASE_TEMPLATE: Final = '{{ template "base" . }}\n'
"""With it a template of k3s begins that adds to what k3s writes itself."""

DEFAULT: Final = "/etc/containerd/config.toml"
_K3S_LIKE: Final = (
    ("k3s", "/var/lib/rancher/k3s", ("k3s", "k3s-agent")),
    ("rke2", "/var/lib/rancher/rke2", ("rke2-server", "rke2-agent")),
)
_MICROK8S: Final = "/var/snap/microk8s/current/args/containerd-template.toml"
_K0S: Final = "/etc/k0s"
_K0S_MANAGED: Final = re.compile(r"^# k0s_managed=true\b", re.M)
_UNITS: Final = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")


@dataclass(frozen=True, slots=True)
class Place:
    """A containerd's configuration."""

    distribution: str
    file: Path
    """What is to be written; need not be there."""
    read: Path
    """What containerd reads; need not be there, and often is ``file``."""
    restart: tuple[str, ...]
    """The command after which containerd has read it."""
    containerd: tuple[Path, ...] = ()
    """Where its program may be; without any it is found by PATH."""
    head: str = ""
    """What a new file begins with, apart from the version."""
    version: int | None = None
    """Of ``file``, where it does not say so itself."""

    @property
    def is_template(self) -> bool:
        """Whether ``file`` need not be TOML."""
        return self.file.suffix == ".tmpl"


def find_place(root: Path = Path("/")) -> Place:
    """Return where the configuration of the node is, whose files lie below ``root``."""
    for find in (_k3s_like, _microk8s, _k0s):
        for place in find(root):
            return place
    return ordinary_place(_below(root, DEFAULT))


def ordinary_place(file: Path) -> Place:
    """Return the place of a file that containerd reads itself."""
    return Place("containerd", file, file, ("systemctl", "restart", "containerd"))


def _k3s_like(root: Path) -> Iterator[Place]:
    for name, data, units in _K3S_LIKE:
        directory = _below(root, f"{data}/agent/etc/containerd")
        if not directory.is_dir():
            continue
        read = directory / "config.toml"
        version = _written_version(read)
        # It takes the first of these that is there, and only that: a new one must hide none.
        files = {3: directory / "config-v3.toml.tmpl", 2: directory / "config.toml.tmpl"}
        there = [number for number, file in files.items() if file.exists()]
        chosen = there[0] if there else (3 if version >= 3 else 2)
        unit = next((unit for unit in units if _has_unit(root, unit)), units[0])
        programs = sorted(_below(root, f"{data}/data").glob("*/bin/containerd"))
        yield Place(
            *(name, files[chosen], read, ("systemctl", "restart", unit)),
            containerd=tuple(reversed(programs)),
            head=BASE_TEMPLATE,
            version=chosen,
        )


def _microk8s(root: Path) -> Iterator[Place]:
    file = _below(root, _MICROK8S)
    if file.exists():
        yield Place(
            *("microk8s", file, file.with_name("containerd.toml")),
            ("snap", "restart", "microk8s.daemon-containerd"),
            containerd=(_below(root, "/snap/microk8s/current/bin/containerd"),),
        )


def _k0s(root: Path) -> Iterator[Place]:
    main = _below(root, f"{_K0S}/containerd.toml")
    if not main.exists():
        return
    unit = next((u for u in ("k0sworker", "k0scontroller") if _has_unit(root, u)), "k0sworker")
    managed = _K0S_MANAGED.search(main.read_text(errors="replace")) is not None
    yield Place(
        "k0s",
        main.parent / "containerd.d" / "containerd-wasm-shims.toml" if managed else main,
        main,
        ("systemctl", "restart", unit),
        containerd=(_below(root, "/var/lib/k0s/bin/containerd"),),
        version=_written_version(main) if managed else None,
    )


def _written_version(file: Path) -> int:
    """Return the version that a distribution has written, 2 where it cannot be told."""
    try:
        version = tomllib.loads(file.read_text()).get("version")
    except (OSError, ValueError):
        return 2
    return version if isinstance(version, int) else 2


def _has_unit(root: Path, name: str) -> bool:
    return any((root / directory / f"{name}.service").exists() for directory in _UNITS)


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")
