"""containerd's configuration as text: adding, and taking out to the byte."""

from __future__ import annotations

import tomllib

import pytest

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
)

SPIN = Runtime("spin", "io.containerd.spin.v1", systemd_cgroup=True)
WWS = Runtime("w.ws", "io.containerd.wws.v1")
TEXTS = [
    "",
    "\n",
    "# nothing\n",
    "# nothing",
    "version = 2",
    "version = 2\n",
    'version = 2\n\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "x"\n\n',
    'version = 2\r\n[plugins]\r\n[plugins."io.containerd.grpc.v1.cri".containerd]\r\n',
    '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]',
]


@pytest.mark.parametrize("text", TEXTS)
def test_taking_out_gives_the_bytes_of_before(text: str) -> None:
    one = with_runtimes(text, [SPIN], 2)
    two = with_runtimes(one, [SPIN, WWS], 2)
    assert one.startswith(text)
    assert two.startswith(text)
    assert ours_in(two) == {"spin": SPIN, "w.ws": WWS}
    assert runtimes_of(tomllib.loads(two)).items() >= ours_in(two).items()
    assert with_runtimes(two, [SPIN], 2) == one
    assert with_runtimes(two, [], 2) == text


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_added_behind_stays(text: str) -> None:
    added = with_runtimes(text, [SPIN], 2) + "[x]\n"
    left = with_runtimes(added, [], 2)
    assert left == (text if text.endswith("\n") or not text else f"{text}\n") + "[x]\n"
    assert tomllib.loads(left) == tomllib.loads(f"{text}\n[x]\n")


@pytest.mark.parametrize("version", CRI_PLUGINS)
def test_each_version_has_its_plugin(version: int) -> None:
    text = with_runtimes("", [SPIN], version, f"version = {version}\n")
    tables = tomllib.loads(text)
    assert tables["version"] == version
    entry = tables["plugins"][CRI_PLUGINS[version]]["containerd"]["runtimes"]["spin"]
    assert entry == {"runtime_type": SPIN.type, "options": {"SystemdCgroup": True}}


@pytest.mark.parametrize("text", ["", "# a comment\n"])
def test_head_is_for_what_says_nothing_else(text: str) -> None:
    assert "version = 3" in with_runtimes(text, [SPIN], 3, "version = 3\n")
    assert "version = 3" not in with_runtimes("root = '/x'\n", [SPIN], 3, "version = 3\n")
    two = with_runtimes(with_runtimes(text, [SPIN], 3, "version = 3\n"), [WWS], 3, "version = 3\n")
    assert two.count("version = 3") == 1


@pytest.mark.parametrize(
    ("text", "version"),
    [("", None), ("# x\n", None), ("root = '/x'", 1), ("version = 1", 1), ("version = 4", 4)],
)
def test_versions(text: str, version: int | None) -> None:
    assert version_of(parse(text, "config.toml"), "config.toml") == version


@pytest.mark.parametrize("text", ["version = 9", "version = '2'", "version = [2]"])
def test_unknown_version(text: str) -> None:
    with pytest.raises(ConfigTextError, match=r"config\.toml: version = .* is none of"):
        version_of(parse(text, "config.toml"), "config.toml")


def test_what_is_no_toml_is_told_with_its_line() -> None:
    with pytest.raises(ConfigTextError, match=r"config\.toml is not TOML: .*line 2"):
        parse("a = 1\nb =\n", "config.toml")


def test_tables_of_a_template() -> None:
    text = """{{ template "base" . }}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes."spin"]
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.wws]
# [plugins.cri.containerd.runtimes.other]
"""
    assert named_in(text) == {"spin", "wws"}


def test_ours_changed_by_hand() -> None:
    text = with_runtimes("", [SPIN], 2).replace('"io.containerd.spin.v1"', "io.containerd")
    with pytest.raises(ConfigTextError, match="take it out by hand"):
        ours_in(text)
