"""Where each distribution has its configuration: its files, as they are laid out on its nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from containerd_shimkit.node.places import BASE_TEMPLATE, find_place

K3S = "var/lib/rancher/k3s/agent/etc/containerd"
RKE2 = "var/lib/rancher/rke2/agent/etc/containerd"
UNITS = "etc/systemd/system"
CASES = [
    # name, files there, distribution, file written, version, unit
    (
        "kubeadm",
        {"etc/containerd/config.toml": ""},
        "containerd",
        "etc/containerd/config.toml",
        None,
    ),
    ("nothing", {}, "containerd", "etc/containerd/config.toml", None),
    (
        "k3s, containerd 2",
        {f"{K3S}/config.toml": "version = 3\n"},
        "k3s",
        f"{K3S}/config-v3.toml.tmpl",
        3,
    ),
    (
        "k3s, containerd 1",
        {f"{K3S}/config.toml": "version = 2\n"},
        "k3s",
        f"{K3S}/config.toml.tmpl",
        2,
    ),
    (
        "k3s, containerd 2, an old template",
        {f"{K3S}/config.toml": "version = 2\n", f"{K3S}/config.toml.tmpl": BASE_TEMPLATE},
        *("k3s", f"{K3S}/config.toml.tmpl", 2),
    ),
    (
        "k3s, both templates",
        {f"{K3S}/config.toml.tmpl": BASE_TEMPLATE, f"{K3S}/config-v3.toml.tmpl": BASE_TEMPLATE},
        *("k3s", f"{K3S}/config-v3.toml.tmpl", 3),
    ),
    ("k3s, not started yet", {f"{K3S}/other": ""}, "k3s", f"{K3S}/config.toml.tmpl", 2),
    ("rke2", {f"{RKE2}/config.toml": "version = 3\n"}, "rke2", f"{RKE2}/config-v3.toml.tmpl", 3),
    (
        "microk8s",
        {"var/snap/microk8s/current/args/containerd-template.toml": "version = 2\n"},
        *("microk8s", "var/snap/microk8s/current/args/containerd-template.toml", None),
    ),
    (
        "k0s",
        {"etc/k0s/containerd.toml": "# k0s_managed=true\nversion = 3\n"},
        *("k0s", "etc/k0s/containerd.d/containerd-wasm-shims.toml", 3),
    ),
    (
        "k0s, configured by hand",
        {"etc/k0s/containerd.toml": "version = 2\n"},
        *("k0s", "etc/k0s/containerd.toml", None),
    ),
]


@pytest.mark.parametrize(
    ("files", "distribution", "file", "version"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_file(
    tmp_path: Path, files: dict[str, str], distribution: str, file: str, version: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    place = find_place(tmp_path)
    assert (place.distribution, place.file) == (distribution, tmp_path / file)
    assert place.version == version


@pytest.mark.parametrize(
    ("file", "unit", "command"),
    [
        (f"{K3S}/config.toml", "k3s", "systemctl restart k3s"),
        (f"{K3S}/config.toml", "k3s-agent", "systemctl restart k3s-agent"),
        (f"{RKE2}/config.toml", "rke2-server", "systemctl restart rke2-server"),
        (f"{RKE2}/config.toml", "rke2-agent", "systemctl restart rke2-agent"),
        ("etc/k0s/containerd.toml", "k0scontroller", "systemctl restart k0scontroller"),
        ("etc/k0s/containerd.toml", "k0sworker", "systemctl restart k0sworker"),
        ("etc/containerd/config.toml", "containerd", "systemctl restart containerd"),
        (
            *("var/snap/microk8s/current/args/containerd-template.toml", "snap.microk8s"),
            "snap restart microk8s.daemon-containerd",
        ),
    ],
)
def test_restart(tmp_path: Path, file: str, unit: str, command: str) -> None:
    for path in (tmp_path / file, tmp_path / UNITS / f"{unit}.service"):
        path.parent.mkdir(parents=True)
        path.touch()
    assert " ".join(find_place(tmp_path).restart) == command


def test_program_of_k3s(tmp_path: Path) -> None:
    (tmp_path / K3S).mkdir(parents=True)
    program = tmp_path / "var/lib/rancher/k3s/data/abc/bin/containerd"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    assert program in find_place(tmp_path).containerd
