"""``.wws.toml``: runtimes of a project, read and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from containerd_shim_wws_v1.engine import WwsEngine
from containerd_shim_wws_v1.project.files import ProjectFiles
from containerd_shim_wws_v1.project.runtimes import Runtime, Runtimes, load_runtimes
from containerd_shimkit import scratch
from containerd_shimkit.errors import ManifestError
from containerd_shimkit.testing.http import fetch

Image = Any  # of conftest.py

RUBY = """\
version = 1

[[repositories]]
name = "wasmlabs"
url = "https://workers.example/index.toml"

[[repositories.runtimes]]
name = "ruby"
version = "3.2.0+20230215-1"
tags = ["latest", "3.2"]
status = "active"
extensions = ["rb", "ruby"]
args = ["--", "/src/index.rb"]

[repositories.runtimes.envs]
RUBYLIB = "/usr"

[repositories.runtimes.binary]
url = "https://example.com/ruby.wasm"
filename = "ruby.wasm"
[repositories.runtimes.binary.checksum]
type = "sha256"
value = "00"

[repositories.runtimes.polyfill]
url = "https://example.com/poly.rb"
filename = "poly.rb"

[repositories.runtimes.wrapper]
url = "https://example.com/wrapper.txt"
filename = "wrapper.txt"
"""
PLACE = ".wws/runtimes/wasmlabs/ruby/3.2.0+20230215-1"


def install(image: Image) -> None:
    """Have the probe be Ruby."""
    image.file(".wws.toml", RUBY)
    image.worker(f"{PLACE}/ruby.wasm")
    image.file(f"{PLACE}/poly.rb", "the polyfill")
    image.file(f"{PLACE}/wrapper.txt", "before\n{source}\nafter\n")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies of sources go."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr(scratch, "PLACES", (str(directory),))
    return directory


def load(root: Path, text: str) -> Runtimes:
    (root / ".wws.toml").write_text(text)
    files = ProjectFiles(root)
    try:
        return load_runtimes(files)
    finally:
        files.close()


def test_installed_runtime(tmp_path: Path) -> None:
    (tmp_path / PLACE).mkdir(parents=True)
    for name in ("ruby.wasm", "poly.rb", "wrapper.txt"):
        (tmp_path / PLACE / name).touch()
    found = load(tmp_path, RUBY)
    ruby = Runtime(
        name="ruby",
        version="3.2.0+20230215-1",
        extensions=("rb", "ruby"),
        arguments=("--", "/src/index.rb"),
        directory=PLACE,
        binary="ruby.wasm",
        polyfill="poly.rb",
        wrapper="wrapper.txt",
        environment={"RUBYLIB": "/usr"},
    )
    assert found == Runtimes((ruby,))
    assert found.extensions == {"rb", "ruby"}
    assert found.of("rb") == found.of("ruby") == ruby
    assert found.of("py") is None


@pytest.mark.parametrize("missing", ["ruby.wasm", "poly.rb", "wrapper.txt"])
def test_runtime_that_is_not_installed(tmp_path: Path, missing: str) -> None:
    (tmp_path / PLACE).mkdir(parents=True)
    for name in {"ruby.wasm", "poly.rb", "wrapper.txt"} - {missing}:
        (tmp_path / PLACE / name).touch()
    found = load(tmp_path, RUBY)
    assert found.installed == ()
    assert found.warnings == (
        "/.wws.toml:7:1: repositories[0].runtimes[0]: ruby 3.2.0+20230215-1 is not installed: "
        f"/{PLACE}/{missing} is not there (wws runtimes install)",
    )


def test_project_without_runtimes(tmp_path: Path) -> None:
    files = ProjectFiles(tmp_path)
    assert load_runtimes(files) == Runtimes()
    files.close()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "ruby"', "", "runtimes[0]: required field `name` is missing"),
        ('name = "ruby"', 'name = "../ruby"', "must be a name"),
        ('name = "ruby"', 'name = ".."', "must be a name"),
        ('"wasmlabs"', '"a/b"', "must be a name"),
        ('"ruby.wasm"', '"../x.wasm"', "must be a name"),
        ('"3.2.0+20230215-1"', "3", "must be a string, not an integer"),
        ('"rb", "ruby"', "", "`extensions` must name at least one"),
        ('"rb", "ruby"', '".rb"', "must be an extension without dot"),
        ('"/usr"', "1", "must be a string"),
        ("version = 1\n", 'version = "1"\n', "must be an integer"),
        ("[repositories.runtimes.binary]", "[x]", "binary: required field `filename` is missing"),
    ],
)
def test_fault(tmp_path: Path, old: str, new: str, reason: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load(tmp_path, RUBY.replace(old, new, 1))
    assert reason in str(caught.value)


def test_bad_file_is_ignored(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    install(image)
    image.worker("probe.wasm")
    image.file(".wws.toml", "version =")
    image.file("hello.rb", "puts 1")

    async def main(port: int) -> None:
        assert (await fetch(port, "/probe")).status == 200
        assert (await fetch(port, "/hello")).status == 404

    image.run(main)
    assert "/.wws.toml:1:" in caplog.text
    assert "/.wws.toml is ignored" in caplog.text


def test_worker_of_a_runtime(image: Image, place: Path) -> None:
    install(image)
    image.file("hello.rb", "puts 1")
    image.file("hello.toml", 'version = "1"\n[vars]\nA = "1"\n')
    image.file("api/other.ruby", "puts 2")

    async def main(port: int) -> None:
        async def ask(query: str) -> str:
            return (await fetch(port, query)).text

        assert await ask("/hello?mode=read&path=/src/index.rb") == "before\nputs 1\nafter\n"
        assert await ask("/hello?mode=read&path=/src/poly.rb") == "the polyfill"
        assert await ask("/api/other?mode=read&path=/src/index.rb") == "before\nputs 2\nafter\n"
        assert await ask("/hello?mode=environment") == "- --\n- /src/index.rb\nRUBYLIB=/usr\nA=1\n"
        # What one worker writes others would run.
        assert await ask("/hello?mode=write&path=/src/index.rb") != "7 bytes, 0"
        assert await ask("/hello?mode=read&path=/src/index.rb") == "before\nputs 1\nafter\n"

    image.run(main)
    assert list(place.iterdir()) == []


def test_wrapper_that_makes_much_of_a_source(image: Image, place: Path) -> None:
    install(image)
    image.file(f"{PLACE}/wrapper.txt", "{source}" * 100_000)
    image.file("a.rb", "x" * 100_000)
    with pytest.raises(ManifestError) as caught:
        image.prepare()
    assert str(caught.value) == (
        "/a.rb: has 10000800000 characters in the wrapper of ruby, more than 8388608"
    )


def test_without_wrapper_and_polyfill(image: Image, place: Path) -> None:
    image.file(".wws.toml", RUBY[: RUBY.index("[repositories.runtimes.polyfill]")])
    image.worker(f"{PLACE}/ruby.wasm")
    image.file("hello.rb", "puts 1")

    async def main(port: int) -> None:
        response = await fetch(port, "/hello?mode=read&path=/src/index.rb")
        assert response.text == "puts 1"

    image.run(main)
    assert list(place.iterdir()) == []


def test_runtime_for_python_comes_before_the_shims_own(image: Image, place: Path) -> None:
    image.file(".wws.toml", RUBY.replace('"rb", "ruby"', '"py", "js"'))
    image.worker(f"{PLACE}/ruby.wasm")
    image.file(f"{PLACE}/poly.rb")
    image.file(f"{PLACE}/wrapper.txt", "{source}")
    image.file("hello.py", "print(1)")

    async def main(port: int) -> None:
        response = await fetch(port, "/hello?mode=read&path=/src/index.py")
        assert response.text == "print(1)"

    image.run(main)


def test_no_place_for_sources(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "PLACES", ("/proc/nowhere",))
    install(image)
    image.file("hello.rb", "puts 1")
    with pytest.raises(ManifestError) as caught:
        image.prepare()
    assert str(caught.value) == (
        "/hello.rb: ruby needs a writable directory for copies: none of /proc/nowhere is; "
        "mount an emptyDir at /tmp"
    )


def test_sources_are_for_the_containers_user_only(image: Image, place: Path) -> None:
    install(image)
    image.file("hello.rb", "puts 1")
    app = image.prepare()
    (made,) = place.iterdir()
    assert made.stat().st_mode & 0o077 == 0
    WwsEngine().close(app)
