"""What cannot run says why: in ctr's error, in the container's log, and by its exit code."""

from __future__ import annotations

import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from containerd_shimkit.errors import ExitCode
from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import Node, Refusal

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUESTS = Path(__file__).parents[1] / "guests"

HEAD = """\
spin_manifest_version = "1"
name = "app"
version = "1.0.0"
trigger = { type = "http", base = "/" }
"""  # 4 lines
COMPONENT = """\
[[component]]
id = "one"
source = "one.wasm"
"""  # lines 5 to 7
ROUTE = """\
[component.trigger]
route = "/one"
"""
WAGI_ROUTE = ROUTE + 'executor = { type = "wagi" }\n'
GOOD = HEAD + COMPONENT + ROUTE
VERSION_2 = """\
spin_manifest_version = 2
[application]
name = "app"
[[trigger.http]]
route = "/one"
component = "one"
[component.one]
source = "one.wasm"
"""
NO_WASM = b"\0asn\1\0\0\0"
COMPONENT_WASM = b"\0asm\x0d\0\1\0"
FUTURE_WASM = b"\0asm\2\0\0\0"
TRUNCATED_WASM = b"\0asm\1\0\0\0\1\x20"


Refuse = Callable[..., Refusal]


@pytest.fixture
def refuse(node: Node) -> Refuse:
    """Run an image of these files, which is refused."""

    def run(manifest: str | bytes | None, wasm: bytes | None, *more: ImageFile) -> Refusal:
        files = list(more)
        if manifest is not None:
            data = manifest.encode() if isinstance(manifest, str) else manifest
            files.append(ImageFile("spin.toml", data))
        if wasm is not None:
            files.append(ImageFile("one.wasm", wasm))
        return node.run_refused(node.image([*files, ImageFile("other")]))

    return run


def check(refusal: Refusal, code: ExitCode, *sentences: str) -> None:
    for sentence in sentences:
        assert sentence in refusal.error
        assert sentence in refusal.log
    assert refusal.exit_code == code
    assert "Traceback" not in refusal.log


@pytest.mark.parametrize(
    ("manifest", "sentences"),
    [
        pytest.param(GOOD + "[[component]\n", ["/spin.toml:10:"], id="malformed"),
        pytest.param("name = \n", ["/spin.toml:1:"], id="malformed-first-line"),
        pytest.param(b"name = '\xff'\n", ["/spin.toml: not UTF-8: byte 8"], id="not-utf-8"),
        pytest.param("", ["/spin.toml", "spin_manifest_version"], id="empty"),
        pytest.param(
            GOOD + 'rout = "/two"\n',
            ["/spin.toml:10:", "unknown field `rout`; did you mean `route`?"],
            id="unknown-field",
        ),
        pytest.param(
            GOOD.replace("source", "sorce"),
            ["/spin.toml:7:", "unknown field `sorce`; did you mean `source`?"],
            id="unknown-field-of-component",
        ),
        pytest.param(
            GOOD.replace('"/one"', '"/.../one"'),
            ["/spin.toml:9:", '/.../one"', '"..." is a wildcard only as the last part'],
            id="bad-route",
        ),
        pytest.param(
            GOOD.replace('base = "/"', 'base = "app"'), ["/spin.toml:4:", '"app"'], id="bad-base"
        ),
        pytest.param(
            GOOD.replace(
                '"one.wasm"',
                '{ url = "https://example.com/one.wasm", digest = "sha256:' + "0" * 64 + '" }',
            ),
            ["/spin.toml:", "source is a URL: an image holds its .wasm files itself"],
            id="url-source",
        ),
        pytest.param(
            "spin_manifest_version = 2\n",
            ["/spin.toml:1:1: required field `application` is missing", "field `trigger` is"],
            id="version-2",
        ),
        pytest.param(
            VERSION_2.replace("[component.one]", '[component.one]\nallowed_http_host = ["h"]'),
            ["/spin.toml:8:1: component.one: unknown", "did you mean `allowed_http_hosts`?"],
            id="version-2-unknown-field",
        ),
        pytest.param(
            VERSION_2.replace("trigger.http", "trigger.timer").replace('route = "/one"', ""),
            ["/spin.toml:4:1: trigger.timer[0]", "'timer'", "types of triggers that are served"],
            id="version-2-other-trigger",
        ),
        pytest.param(
            GOOD.replace('version = "1"', 'version = "7"', 1),
            ["/spin.toml:1:", 'must be "1"'],
            id="version-7",
        ),
    ],
)
def test_manifest_is_refused(refuse: Refuse, manifest: str | bytes, sentences: list[str]) -> None:
    check(refuse(manifest, NO_WASM), ExitCode.MANIFEST, *sentences)


@pytest.mark.parametrize(
    ("wasm", "sentence"),
    [
        pytest.param(NO_WASM, "is no WebAssembly: it starts with b'\\x00asn'", id="no-wasm"),
        pytest.param(b"", "has 0 bytes, which is too short", id="empty"),
        pytest.param(COMPONENT_WASM, "is a component; this version of the shim", id="component"),
        pytest.param(FUTURE_WASM, "has WebAssembly version 02000000", id="future"),
        pytest.param(TRUNCATED_WASM, "does not compile: ", id="truncated"),
        pytest.param("not_wasm.wasm", "is no WebAssembly", id="text"),
        pytest.param("unknown_import.wasm", "mystery", id="unknown-import"),
        pytest.param("no_handler.wasm", "exports no function 'handle-http-request'", id="handler"),
        pytest.param("wrong_signature.wasm", "has type (", id="signature"),
    ],
)
def test_module_is_refused(refuse: Refuse, wasm: bytes | str, sentence: str) -> None:
    data = (GUESTS / wasm).read_bytes() if isinstance(wasm, str) else wasm
    check(
        refuse(GOOD, data), ExitCode.INVALID_MODULE, f"component 'one': one.wasm: {sentence}"[:26]
    )
    check(refuse(GOOD, data), ExitCode.INVALID_MODULE, sentence)


def test_wagi_module_without_a_main_function_is_refused(refuse: Refuse) -> None:
    refusal = refuse(HEAD + COMPONENT + WAGI_ROUTE, (GUESTS / "no_handler.wasm").read_bytes())
    check(refusal, ExitCode.INVALID_MODULE, "exports no function '_start', the wagi entrypoint")


def test_missing_wasm(refuse: Refuse) -> None:
    sentence = "component 'one': one.wasm: no such file in the image"
    check(refuse(GOOD, None), ExitCode.MISSING_FILE, sentence)


def test_missing_manifest(refuse: Refuse) -> None:
    refusal = refuse(None, NO_WASM)
    check(refusal, ExitCode.MISSING_FILE, "/spin.toml: no such file in the image")


def test_missing_files_directory(refuse: Refuse) -> None:
    """What `files` places has to be there: a rule of the manifest, with its line."""
    files = 'files = [{ source = "static", destination = "/" }]\n'
    refusal = refuse(HEAD + COMPONENT + files + ROUTE, (GUESTS / "probe.wasm").read_bytes())
    check(refusal, ExitCode.MANIFEST, "/spin.toml:8:10: ", "source `static` not found")


def test_foreground_shows_the_reason(node: Node) -> None:
    """Twice, since the container's standard error and ctr's own are one."""
    image = node.image([ImageFile("spin.toml", b"nonsense\n")])
    with node.foreground(image) as ctr:
        assert ctr.process.wait(20) != 0
        assert "/spin.toml:1:" in ctr.stderr.splitlines()[0]
        assert "ctr: /spin.toml:1:" in ctr.stderr
        assert "Traceback" not in ctr.stderr


# Settings


def test_port_in_use(node: Node, probe_image: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        host, port = listener.getsockname()
        refusal = node.run_refused(probe_image, address=(host, port))
    check(
        refusal,
        ExitCode.UNAVAILABLE,
        f"cannot listen on {host}:{port}: Address already in use",
    )


def test_address_that_is_not_here(node: Node, probe_image: str) -> None:
    refusal = node.run_refused(probe_image, address=("192.0.2.1", 8080))  # TEST-NET-1, RFC 5737
    check(refusal, ExitCode.UNAVAILABLE, "cannot listen on 192.0.2.1:8080: Cannot assign")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("SPIN_HTTP_LISTEN_ADDR", "localhost", "is not an IP address and port, like 0.0.0.0:80"),
        ("SPIN_HTTP_LISTEN_ADDR", "127.0.0.1:65536", "is not an IP address and port"),
        ("SPIN_HTTP_REQUEST_TIMEOUT_SECONDS", "soon", "is not a number"),
        ("SPIN_HTTP_MAX_BODY_BYTES", "-1", "is not between 0 and"),
        ("SPIN_HTTP_MAX_BODY_BYTES", "nan", "is not between 0 and"),
        ("SPIN_MAX_INSTANCE_COUNT", "0", "is not between 1 and 10000"),
    ],
)
def test_setting_is_refused(node: Node, probe_image: str, name: str, value: str, rule: str) -> None:
    refusal = node.run_refused(probe_image, env={name: value})
    check(refusal, ExitCode.MANIFEST, f"{name}='{value}' {rule}")


# Without an image


def test_rootfs_that_is_not_there(node: Node) -> None:
    missing = node.directory / "no-such-rootfs"
    refusal = node.run_refused(str(missing), "--rootfs", command=["/"])
    assert "no-such-rootfs" in refusal.error
    assert "no such file or directory" in refusal.error.lower()
    assert refusal.exit_code != 137


def test_volume_that_is_not_there(node: Node, probe_image: str) -> None:
    mount = "type=bind,src=/no/such/volume,dst=/data,options=rbind:ro"
    refusal = node.run_refused(probe_image, "--mount", mount)
    assert "/no/such/volume" in refusal.error
    assert refusal.exit_code != 137


def test_log_program_that_is_not_there(node: Node, probe_image: str) -> None:
    command = node.run_command(
        probe_image, node.new_id(), ("127.0.0.1", 0), "-d", "--log-uri", "binary:///no/such/program"
    )
    result = node.daemon.ctr(*command, check=False)
    assert result.returncode != 0
    assert "/no/such/program" in result.stderr


# Hostile images: paths and links lead nowhere but into the image


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the host; the test runs as root, as the shim does."""
    path = tmp_path / "secret"
    path.write_text("host-secret-1b0f")
    return path


@pytest.mark.parametrize("prefix", ["", "../../../../../../../../.."])
def test_manifest_that_links_to_a_file_of_the_host(
    refuse: Refuse, secret: Path, prefix: str
) -> None:
    link = ImageFile("spin.toml", kind=tarfile.SYMTYPE, link=f"{prefix}{secret}")
    refusal = refuse(None, NO_WASM, link)
    check(refusal, ExitCode.MISSING_FILE, "/spin.toml: no such file in the image")
    assert "host-secret-1b0f" not in refusal.error + refusal.log


def test_manifest_that_links_to_the_password_file(refuse: Refuse) -> None:
    link = ImageFile("spin.toml", kind=tarfile.SYMTYPE, link="/etc/shadow")
    refusal = refuse(None, NO_WASM, link)
    check(refusal, ExitCode.MISSING_FILE, "/spin.toml: no such file in the image")
    assert "root:" not in refusal.error + refusal.log


def test_manifest_that_links_to_itself(refuse: Refuse) -> None:
    link = ImageFile("spin.toml", kind=tarfile.SYMTYPE, link="spin.toml")
    refusal = refuse(None, NO_WASM, link)
    check(refusal, ExitCode.MANIFEST, "/spin.toml: cannot be read: Too many levels of symbolic")


def test_manifest_that_is_a_fifo(refuse: Refuse) -> None:
    refusal = refuse(None, NO_WASM, ImageFile("spin.toml", kind=tarfile.FIFOTYPE))
    assert refusal.exit_code == ExitCode.MANIFEST
    assert "/spin.toml" in refusal.error


def test_manifest_that_is_a_directory(refuse: Refuse) -> None:
    refusal = refuse(None, NO_WASM, ImageFile("spin.toml/inner"))
    check(refusal, ExitCode.MANIFEST, "/spin.toml: cannot be read: Is a directory")


def test_manifest_that_is_huge(refuse: Refuse) -> None:
    refusal = refuse("#" * ((1 << 20) + 1), NO_WASM)
    check(refusal, ExitCode.MANIFEST, "/spin.toml: larger than 1048576 bytes")


def test_module_that_is_a_fifo(refuse: Refuse) -> None:
    refusal = refuse(GOOD, None, ImageFile("one.wasm", kind=tarfile.FIFOTYPE))
    check(refusal, ExitCode.INVALID_MODULE, "one.wasm: is no regular file")


def test_module_that_is_a_directory(refuse: Refuse) -> None:
    refusal = refuse(GOOD, None, ImageFile("one.wasm/inner"))
    check(refusal, ExitCode.INVALID_MODULE, "one.wasm: is no regular file")


def test_module_behind_absolute_links_is_the_images_own(node: Node) -> None:
    """/opt of the link is the image's /opt, whatever the host has there."""
    image = node.image(
        [
            ImageFile("spin.toml", GOOD.replace('"/one"', '"/..."').encode()),
            ImageFile("one.wasm", kind=tarfile.SYMTYPE, link="/opt/two.wasm"),
            ImageFile("opt/two.wasm", kind=tarfile.SYMTYPE, link="/data/three.wasm"),
            ImageFile("data/three.wasm", (GUESTS / "probe.wasm").read_bytes()),
        ]
    )
    assert node.run(image).get("/status?code=204").status == 204


def test_module_that_links_to_a_file_of_the_host(refuse: Refuse, secret: Path) -> None:
    link = ImageFile("one.wasm", kind=tarfile.SYMTYPE, link=f"/../../../..{secret}")
    sentence = "component 'one': one.wasm: no such file in the image"
    check(refuse(GOOD, None, link), ExitCode.MISSING_FILE, sentence)


def test_files_that_link_out_of_the_image(node: Node, secret: Path) -> None:
    """Neither a link in `files` nor one to the host's root shows the guest the host."""
    manifest = (
        HEAD + COMPONENT + 'files = [{ source = "static", destination = "/" }]\n' + ROUTE
    ).replace('"/one"', '"/..."')
    image = node.image(
        [
            ImageFile("spin.toml", manifest.encode()),
            ImageFile("one.wasm", (GUESTS / "probe.wasm").read_bytes()),
            ImageFile("static/plain", b"of the image"),
            ImageFile("static/absolute", kind=tarfile.SYMTYPE, link=str(secret)),
            ImageFile("static/upwards", kind=tarfile.SYMTYPE, link="../" * 12 + str(secret)[1:]),
            ImageFile("static/passwords", kind=tarfile.SYMTYPE, link="/etc/shadow"),
        ]
    )
    app = node.run(image)
    assert app.get("/file?path=/plain").text == "of the image"
    for path in ("/absolute", "/upwards", "/passwords", "/../spin.toml", str(secret)):
        answer = app.get(f"/file?path={path}")
        assert (answer.status, "host-secret" in answer.text) == (404, False), path
    assert app.get("/write?path=/new").status == 403


def test_stdout_link_of_an_image_does_not_overwrite_the_host(node: Node, secret: Path) -> None:
    """Directories that the sandbox mounts on may be links in a hostile image."""
    manifest = GOOD.replace('"/one"', '"/..."').encode()
    image = node.image(
        [
            ImageFile("spin.toml", manifest),
            ImageFile("one.wasm", (GUESTS / "probe.wasm").read_bytes()),
            ImageFile("proc", kind=tarfile.SYMTYPE, link=str(secret.parent)),
            ImageFile("sys", kind=tarfile.SYMTYPE, link=str(secret.parent)),
            ImageFile("dev", kind=tarfile.SYMTYPE, link=str(secret.parent)),
        ]
    )
    before = sorted(secret.parent.iterdir())
    command = node.run_command(image, node.new_id(), ("127.0.0.1", 0), "-d", "--null-io")
    node.daemon.ctr(*command, check=False)  # whether it runs or is refused: both are fine
    assert sorted(secret.parent.iterdir()) == before
    assert secret.read_text() == "host-secret-1b0f"
