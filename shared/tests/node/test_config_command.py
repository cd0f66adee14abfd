"""``containerd-shim-… config`` on files of every kind, read by real containerds afterwards."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from containerd_shimkit.node.config_text import Runtime, with_runtimes
from containerd_shimkit.node.configuring import BACKUP_SUFFIX
from containerd_shimkit.node.places import BASE_TEMPLATE
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD
from containerd_shimkit.testing.k3s import render_k3s_template

Run = Callable[..., tuple[int, str, str]]
Runtimes = Callable[[Path], dict[str, Runtime]]

SPIN = Runtime("spin", "io.containerd.spin.v1")
WWS = Runtime("wws", "io.containerd.wws.v1")
FORMS = {
    "none": None,
    "empty": "",
    "comment": "# kept\n",
    "version 1": '[plugins.cri]\n  sandbox_image = "x"\n',
    "version 2": 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "x"\n',
    "no newline": 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "x"',
    "kubeadm": """\
version = 2
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".containerd]
      default_runtime_name = "runc"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes]
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
          runtime_type = "io.containerd.runc.v2"
          [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
            SystemdCgroup = true
""",
}
VERSION_3 = """\
version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
"""


@pytest.fixture
def containerd(containerd_binary: str) -> list[str]:
    return ["--containerd", containerd_binary]


@pytest.mark.parametrize("form", FORMS)
@ON_EACH_CONTAINERD
def test_written_twice_and_taken_out(
    tmp_path: Path, run: Run, runtimes: Runtimes, containerd: list[str], form: str
) -> None:
    text = FORMS[form]
    file = tmp_path / "config.toml"
    if text is not None:
        file.write_text(text)
        file.chmod(0o640)
    where = ["--file", file, *containerd]
    systemd = form == "kubeadm"

    code, out, err = run("config", "--write", *where)
    assert (code, err) == (0, "")
    assert f"{file}: spin is written\n" in out
    assert "systemctl restart containerd" in out
    assert runtimes(file)["spin"] == Runtime("spin", SPIN.type, systemd)
    if text is not None:
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        assert (tmp_path / f"config.toml{BACKUP_SUFFIX}").read_text() == text

    written = file.read_bytes()
    code, out, err = run("config", "--write", *where)
    assert (code, out, err) == (0, f"{file}: nothing to change\n", "")
    assert file.read_bytes() == written

    assert run("config", "--write", *where, kind="wws")[0] == 0
    assert runtimes(file).keys() >= {"spin", "wws"}
    assert run("config", "--remove", *where)[0] == 0
    assert "spin" not in runtimes(file)
    assert "wws" in runtimes(file)
    assert run("config", "--remove", *where, kind="wws")[0] == 0
    assert run("config", "--remove", *where, kind="wws")[1] == f"{file}: nothing to change\n"
    if text is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert file.read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


@ON_EACH_CONTAINERD
def test_default_runtime_stays(
    tmp_path: Path, run: Run, runtimes: Runtimes, containerd: list[str]
) -> None:
    """Up to containerd 1.7 it is gone as soon as another is named, and CRI does not start."""
    file = tmp_path / "config.toml"
    for form in ("none", "empty", "version 1", "version 2"):
        text = FORMS[form]
        file.write_text(text or "")
        before = runtimes(file)["runc"]
        where = ["--file", file, *containerd]
        assert run("config", "--write", "--with", "wws", *where)[0] == 0
        assert runtimes(file)["runc"] == before
        assert run("config", "--write", "--with", "wws", *where)[1].endswith("nothing to change\n")
        assert run("config", "--remove", *where)[0] == 0
        assert runtimes(file)["runc"] == before
        assert run("config", "--remove", *where, kind="wws")[0] == 0
        assert file.read_text() == (text or "")


@ON_EACH_CONTAINERD
def test_several_at_once(
    tmp_path: Path, run: Run, runtimes: Runtimes, containerd: list[str]
) -> None:
    """All or none of them."""
    file = tmp_path / "config.toml"
    text = f"version = 2\n{Runtime('wws', 'io.containerd.wws.v2').lines(2)}"
    file.write_text(text)
    both = ["--with", "wws", "--file", file, *containerd]
    code, out, err = run("config", "--write", *both)
    assert (code, out) == (1, "")
    assert 'runtime "wws" is io.containerd.wws.v2 already' in err
    assert file.read_text() == text
    file.write_text("version = 2\n")
    code, out, _ = run("config", "--write", *both)
    assert out.splitlines()[:2] == [f"{file}: spin is written", f"{file}: wws is written"]
    assert runtimes(file)["wws"] == WWS
    code, out, _ = run("config", "--remove", *both)
    assert out.splitlines()[:2] == [f"{file}: spin is taken out", f"{file}: wws is taken out"]
    assert file.read_text() == "version = 2\n"


@pytest.mark.parametrize("containerd_binary", ["2.4"], indirect=True)
def test_version_3(tmp_path: Path, run: Run, runtimes: Runtimes, containerd: list[str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text(VERSION_3)
    assert run("config", "--write", "--file", file, *containerd)[0] == 0
    assert runtimes(file)["spin"] == SPIN
    assert run("config", "--remove", "--file", file, *containerd)[0] == 0
    assert file.read_text() == VERSION_3


@ON_EACH_CONTAINERD
def test_files_that_it_imports(
    tmp_path: Path, run: Run, runtimes: Runtimes, containerd: list[str]
) -> None:
    """A runtime that stands in one of them is there already."""
    file, added = tmp_path / "config.toml", tmp_path / "conf.d" / "spin.toml"
    added.parent.mkdir()
    file.write_text(f'version = 2\nimports = ["{added.parent}/*.toml"]\n')
    added.write_text(f"version = 2\n{SPIN.lines(2)}")
    before = file.read_text()
    code, out, _ = run("config", "--write", "--file", file, *containerd)
    assert (code, out) == (0, f"{file}: nothing to change\n")
    assert file.read_text() == before


@ON_EACH_CONTAINERD
def test_name_that_is_taken(
    tmp_path: Path, run: Run, runtimes: Runtimes, containerd: list[str]
) -> None:
    file = tmp_path / "config.toml"
    text = f"version = 2\n{Runtime('spin', 'io.containerd.spin.v2').lines(2)}"
    file.write_text(text)
    code, _, err = run("config", "--write", "--file", file, *containerd)
    assert code == 1
    assert 'runtime "spin" is io.containerd.spin.v2 already' in err
    assert "--handler" in err
    assert file.read_text() == text
    assert run("config", "--write", "--file", file, "--handler", "spin-v1", *containerd)[0] == 0
    assert runtimes(file)["spin-v1"] == Runtime("spin-v1", SPIN.type)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("version = 2\n[plugins\n", "is not TOML"),
        ("version = 7\n", "version = 7 is none of"),
        ("version = 2\noom_score = 'x'\n", "refuses it"),
        ('version = 2\nplugins = {"io.containerd.grpc.v1.cri" = {containerd = {}}}\n', "not TOML"),
    ],
)
@ON_EACH_CONTAINERD
def test_what_cannot_be_added_to_stays_as_it_is(
    tmp_path: Path, run: Run, containerd: list[str], text: str, reason: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    code, out, err = run("config", "--write", "--file", file, *containerd)
    assert (code, out) == (1, "")
    assert str(file) in err or reason == "refuses it"
    assert reason in err
    assert file.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_without_a_containerd(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "config.toml"
    code, _, err = run("config", "--write", "--file", file)
    assert code == 1
    assert "--config-version 2 for containerd 1.x" in err
    assert run("config", "--write", "--file", file, "--config-version", "2")[0] == 0
    assert "version = 2" in file.read_text()


@pytest.mark.root
def test_full_disk(tmp_path: Path, run: Run, containerd: list[str]) -> None:
    """The file is as it was, and nothing half written lies beside it."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], check=True)
    try:
        file = small / "config.toml"
        text = 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "x"\n'
        file.write_text(text)
        filled = small / "filled"
        with filled.open("wb", buffering=0) as rest, suppress(OSError):
            while True:
                rest.write(b"x" * 4096)
        code, _, err = run("config", "--write", "--file", file, *containerd)
        assert code == 1
        assert "No space left on device" in err
        assert file.read_text() == text
        assert sorted(path.name for path in small.iterdir()) == ["config.toml", "filled"]
    finally:
        subprocess.run(["umount", small], check=True)


# Distributions


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def write(root: Path, name: str, text: str) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


K3S = "var/lib/rancher/k3s/agent/etc/containerd"


@pytest.mark.parametrize("there", [None, BASE_TEMPLATE, f"{BASE_TEMPLATE}# mine"])
@ON_EACH_CONTAINERD
def test_k3s(
    root: Path, run: Run, runtimes: Runtimes, containerd: list[str], there: str | None
) -> None:
    """What k3s makes of the template is what containerd reads."""
    made = 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "x"\n'
    config = write(root, f"{K3S}/config.toml", made)
    template = root / K3S / "config.toml.tmpl"
    if there is not None:
        template.write_text(there)
    where = ["--root", root, *containerd]
    code, out, err = run("config", "--write", *where)
    assert (code, err) == (0, "")
    assert "systemctl restart k3s" in out
    assert template.read_text().count(BASE_TEMPLATE) == 1
    config.write_text(render_k3s_template(template.read_text(), made))
    assert runtimes(config)["spin"] == SPIN
    assert run("config", "--write", *where)[1] == f"{template}: nothing to change\n"
    assert run("config", "--write", *where, kind="wws")[0] == 0
    config.write_text(render_k3s_template(template.read_text(), made))
    assert runtimes(config).keys() >= {"spin", "wws"}
    assert run("config", "--remove", *where)[0] == run("config", "--remove", *where, kind="wws")[0]
    assert (template.read_text() if template.exists() else None) == there


@ON_EACH_CONTAINERD
def test_k3s_that_finds_shims_on_its_path(
    root: Path, run: Run, runtimes: Runtimes, containerd: list[str]
) -> None:
    """It names them itself as soon as it starts again, and a table may come only once."""
    made = 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "x"\n'
    config = write(root, f"{K3S}/config.toml", made)
    template = root / K3S / "config.toml.tmpl"
    where = ["--root", root, *containerd]
    assert run("config", "--write", "--with", "wws", *where)[0] == 0
    config.write_text(render_k3s_template(template.read_text(), made, {"wws": WWS.type}))
    assert runtimes(config).keys() >= {"spin", "wws"}
    code, out, err = run("config", "--write", "--with", "slight", *where)
    assert (code, err) == (0, "")
    assert out.startswith(f"{template}: slight is written\n")
    config.write_text(render_k3s_template(template.read_text(), made, {"wws": WWS.type}))
    assert runtimes(config).keys() >= {"spin", "slight", "wws"}
    assert run("config", "--remove", "--with", "slight", "--with", "wws", *where)[0] == 0
    assert not template.exists()


def test_condition_of_the_template_is_go_s(tmp_path: Path) -> None:
    """A k3s that knows no runtimes, and one that has found the shim, as Go renders for them."""
    if (go := shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin")) is None:
        pytest.skip("needs go")
    text = with_runtimes(BASE_TEMPLATE, [SPIN, WWS], 2, in_k3s_template=True)
    program = write(tmp_path, "render.go", RENDER)
    for found, expected in (("", ["spin", "wws"]), ("wws", ["spin"])):
        done = subprocess.run(
            [go, "run", program, found],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        assert done.stdout.startswith("BASE\n")
        assert [each for each in ("spin", "wws") if f"runtimes.{each}]" in done.stdout] == expected


RENDER = """\
package main

import (
    "io"
    "os"
    "text/template"
)

type runtime struct{ RuntimeType, BinaryName string }

func main() {
    text, _ := io.ReadAll(os.Stdin)
    t := template.Must(template.New("config").Parse(string(text)))
    template.Must(t.New("base").Parse("BASE"))
    data := struct{ ExtraRuntimes map[string]runtime }{}
    if found := os.Args[1]; found != "" {
        data.ExtraRuntimes = map[string]runtime{found: {"io.containerd." + found + ".v1", "/x"}}
    }
    if err := t.Execute(os.Stdout, data); err != nil {
        panic(err)
    }
}
"""


def test_k3s_that_has_found_the_shim_itself(root: Path, run: Run, containerd: list[str]) -> None:
    made = f"version = 2\n{Runtime('spin', 'io.containerd.spin.v2').lines(2)}"
    write(root, f"{K3S}/config.toml", made)
    code, _, err = run("config", "--write", "--root", root, *containerd)
    assert code == 1
    assert "have them in /usr/local/bin" in err


@ON_EACH_CONTAINERD
def test_microk8s(root: Path, run: Run, runtimes: Runtimes, containerd: list[str]) -> None:
    text = (
        'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\n'
        '  snapshotter = "${SNAPSHOTTER}"\n'
    )
    file = write(root, "var/snap/microk8s/current/args/containerd-template.toml", text)
    code, out, _ = run("config", "--write", "--root", root, *containerd)
    assert code == 0
    assert "snap restart microk8s.daemon-containerd" in out
    assert runtimes(file)["spin"] == SPIN
    assert run("config", "--remove", "--root", root, *containerd)[0] == 0
    assert file.read_text() == text


@ON_EACH_CONTAINERD
def test_k0s(root: Path, run: Run, runtimes: Runtimes, containerd: list[str]) -> None:
    main = write(root, "etc/k0s/containerd.toml", "# k0s_managed=true\nversion = 2\n")
    code, out, _ = run("config", "--write", "--root", root, *containerd)
    added = root / "etc/k0s/containerd.d/containerd-wasm-shims.toml"
    assert code == 0
    assert f"{added}: spin is written" in out
    assert runtimes(added)["spin"] == SPIN
    assert main.read_text() == "# k0s_managed=true\nversion = 2\n"
    assert run("config", "--remove", "--root", root, *containerd)[0] == 0
    assert not added.exists()


# What is printed


def test_lines_are_printed(tmp_path: Path, run: Run, containerd: list[str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text("version = 2\n")
    code, out, _ = run("config", "--file", file, "--cgroup-driver", "systemd", *containerd)
    runtime = Runtime("spin", SPIN.type, systemd_cgroup=True)
    assert (code, out) == (0, f"# containerd: {file}\n{runtime.lines(2)}")
    assert file.read_text() == "version = 2\n"


def test_link_stays_one(tmp_path: Path, run: Run, containerd: list[str]) -> None:
    (tmp_path / "real").write_text("version = 2\n")
    file = tmp_path / "config.toml"
    file.symlink_to("real")
    assert run("config", "--write", "--file", file, *containerd)[0] == 0
    assert file.is_symlink()
    assert "io.containerd.spin.v1" in (tmp_path / "real").read_text()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of programs in front of the others."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def test_restart_is_for_changes_only(
    tmp_path: Path, run: Run, programs: Path, containerd: list[str]
) -> None:
    systemctl = programs / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n')
    systemctl.chmod(0o755)
    file = tmp_path / "config.toml"
    file.write_text("version = 2\n")
    for _ in range(2):
        assert run("config", "--write", "--restart", "--file", file, *containerd)[0] == 0
    assert (tmp_path / "calls").read_text() == "restart containerd\n"


def test_restart_that_fails(
    tmp_path: Path, run: Run, programs: Path, containerd: list[str]
) -> None:
    systemctl = programs / "systemctl"
    systemctl.write_text("#!/bin/sh\necho no such unit >&2; exit 5\n")
    systemctl.chmod(0o755)
    file = tmp_path / "config.toml"
    file.write_text("version = 2\n")
    code, _, err = run("config", "--write", "--restart", "--file", file, *containerd)
    assert code == 1
    assert "systemctl restart containerd failed: no such unit" in err
