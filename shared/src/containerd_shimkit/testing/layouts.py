"""How distributions of Kubernetes lay out their containerd's configuration, and restart it.

Sources: those of ``containerd_shimkit.node.places``; kubeadm, AKS, EKS and GKE: what their nodes
have in ``/etc/containerd``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from containerd_shimkit.node.places import BASE_TEMPLATE
from containerd_shimkit.testing.k3s import render_k3s_template


class NodeFiles(Protocol):
    """The files of a node, by paths relative to its root."""

    @property
    def root(self) -> Path:
        """As this process sees it."""

    def read(self, path: str) -> str | None:
        """Return a file's text, None if it is not there."""

    def write(self, path: str, text: str) -> None:
        """Write a file, and make its directories."""


Action = Callable[[NodeFiles, str], None]

_CRI: Final = 'plugins."io.containerd.grpc.v1.cri"'
RUNC: Final = f"""\
[{_CRI}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""
NESTED: Final = f"""\
  [{_CRI}.containerd]
    default_runtime_name = "runc"
    [{_CRI}.containerd.runtimes]
      [{_CRI}.containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
        [{_CRI}.containerd.runtimes.runc.options]
          SystemdCgroup = false
  [{_CRI}.registry]
    config_path = "/etc/containerd/certs.d"
"""
UNIT: Final = "[Unit]\n"
K3S: Final = "var/lib/rancher/k3s/agent/etc/containerd"
RKE2: Final = "var/lib/rancher/rke2/agent/etc/containerd"
MICROK8S: Final = "var/snap/microk8s/current/args"


def _nothing(node: NodeFiles, base: str) -> None:
    """Nothing is to be done."""


@dataclass(frozen=True)
class Layout:
    """A distribution's."""

    restart: str
    """The command that restarts its containerd."""
    read: str
    """What containerd reads; paths are relative to the root."""
    written: str
    """What the installer writes."""
    lay_out: Action
    before_start: Action = _nothing
    """What the distribution does before it starts containerd again."""
    runtimes: str = RUNC
    containerd: str = "usr/local/libexec/containerd"
    files: Mapping[str, str] = field(default_factory=dict)


def _ordinary(runtimes: str, **more: str) -> Layout:
    file = "etc/containerd/config.toml"
    return Layout(
        restart="systemctl restart containerd",
        read=file,
        written=file,
        lay_out=lambda node, base: node.write(file, base),
        runtimes=runtimes,
        files=more,
    )


def _version_1(node: NodeFiles, base: str) -> None:
    text = base.replace("version = 2\n", "").replace(_CRI, "plugins.cri")
    node.write("etc/containerd/config.toml", text)


def _k3s_like(name: str, data: str, unit: str, *, template: str | None = None) -> Layout:
    config, tmpl = f"{data}/config.toml", f"{data}/config.toml.tmpl"

    def render(node: NodeFiles, base: str) -> None:
        found = {
            shim: f"io.containerd.{shim}.v1"
            for shim in ("slight", "wws")  # of ours those that current k3s knows
            if (node.root / f"usr/local/bin/containerd-shim-{shim}-v1").exists()
        }
        text = node.read(tmpl) or BASE_TEMPLATE
        node.write(config, render_k3s_template(text, base, found))

    def lay_out(node: NodeFiles, base: str) -> None:
        if template is not None:
            node.write(tmpl, template)
        render(node, base)

    return Layout(
        restart=f"systemctl restart {unit}",
        read=config,
        written=tmpl,
        lay_out=lay_out,
        before_start=render,
        containerd=f"{data.removesuffix('agent/etc/containerd')}data/current/bin/containerd",
        files={f"etc/systemd/system/{unit}.service": UNIT},
    )


def _microk8s() -> Layout:
    template, config = f"{MICROK8S}/containerd-template.toml", f"{MICROK8S}/containerd.toml"

    def render(node: NodeFiles, base: str) -> None:
        text = node.read(template)
        assert text is not None
        node.write(config, text.replace("${SNAPSHOTTER}", "overlayfs"))

    def lay_out(node: NodeFiles, base: str) -> None:
        node.write(template, f'{base}[{_CRI}.containerd]\n  snapshotter = "${{SNAPSHOTTER}}"\n')
        render(node, base)

    return Layout(
        restart="snap restart microk8s.daemon-containerd",
        read=config,
        written=template,
        lay_out=lay_out,
        before_start=render,
        containerd="snap/microk8s/current/bin/containerd",
    )


def _k0s() -> Layout:
    main, added = "etc/k0s/containerd.toml", "etc/k0s/containerd.d/containerd-wasm-shims.toml"

    def render(node: NodeFiles, base: str) -> None:
        """Put additions into what containerd reads, as k0s does with those for CRI."""
        text = node.read(added) or ""
        tomllib.loads(text)
        tables = "".join(
            line for line in text.splitlines(keepends=True) if not line.startswith("version")
        )
        node.write(main, f"# k0s_managed=true\n{base}{tables}")

    return Layout(
        restart="systemctl restart k0sworker",
        read=main,
        written=added,
        lay_out=render,
        before_start=render,
        containerd="var/lib/k0s/bin/containerd",
        files={
            "etc/systemd/system/k0sworker.service": UNIT,
            "etc/k0s/containerd.d/another.toml": "version = 2\n",
        },
    )


_EKS = f"""\
  [{_CRI}.containerd]
    default_runtime_name = "runc"
    discard_unpacked_layers = true
  [{_CRI}.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "/etc/containerd/base-runtime-spec.json"
"""

LAYOUTS: Final = {
    "debian": _ordinary(""),
    "kubeadm": _ordinary(NESTED),
    "aks": _ordinary(
        NESTED + f'[{_CRI}.containerd.runtimes.untrusted]\n  runtime_type = "io.containerd.runc.v2"'
    ),
    "eks": _ordinary(_EKS, **{"etc/containerd/base-runtime-spec.json": "{}\n"}),
    "gke": _ordinary(RUNC + f"[{_CRI}.registry.mirrors]\n"),
    "version 1": Layout(
        restart="systemctl restart containerd",
        read="etc/containerd/config.toml",
        written="etc/containerd/config.toml",
        lay_out=_version_1,
    ),
    "k3s": _k3s_like("k3s", K3S, "k3s"),
    "k3s agent": _k3s_like("k3s", K3S, "k3s-agent", template=f"{BASE_TEMPLATE}# mine\n"),
    "rke2": _k3s_like("rke2", RKE2, "rke2-server", template=BASE_TEMPLATE),
    "microk8s": _microk8s(),
    "k0s": _k0s(),
}
