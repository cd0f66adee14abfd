"""docs/troubleshooting.md quotes what is really said: by the shims' sources, and by containerd."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.testing.cri import CriError
from containerd_shimkit.testing.fixtures import each_containerd
from containerd_shimkit.testing.shim_nodes import running_cri

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()

OF_CONTAINERD = (
    'no runtime for "spin" is configured',
    'runtime "io.containerd.spin.v1" binary not installed "containerd-shim-spin-v1"',
    "no command specified",
    "image might be filtered out",
    "no match for platform in manifest",
)
"""What ``test_containerd_says_so`` has it say."""
OF_OTHERS = {
    *('RuntimeClass "wasmtime-spin" not found', "exec format error", "permission denied"),
    "node(s) didn't match Pod's node affinity/selector",
    "Readiness probe failed … connection refused",
    "Readiness probe failed … statuscode: 404",
    "Liveness probe failed … context deadline exceeded",
}
"""What Kubernetes and the kernel say."""


def quotes() -> Iterator[str]:
    """Yield what first columns quote: all in backticks that has more than a word."""
    for cell in re.findall(r"^\| (.*?) \|", PAGE, re.M):
        for quote in re.findall(r"`([^`]+)`", cell):
            if " " in quote and not quote.startswith(
                ("kubectl ", "docker ", "ctr ", "containerd-")
            ):
                yield quote


def texts() -> str:
    """Return the texts in the sources; where something is put into one there is a hole."""
    found = []
    for path in [*ROOT.glob("*/src/**/*.py"), *ROOT.glob("shared/launcher/*.c")]:
        if path.suffix == ".c":
            found += re.findall(r'"((?:[^"\\]|\\.)*)"', path.read_text())
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "\0"
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_shims_say_what_is_quoted() -> None:
    known = texts()
    ours = [q for q in quotes() if q not in OF_OTHERS and q not in OF_CONTAINERD]
    assert len(ours) >= 12
    for quote in ours:
        # What is put into a message is an address, a name, a value.
        parts = re.split(r"…|0\.0\.0\.0:80|SPIN_|'|: (?=Permission|Address)|/spin\.toml", quote)
        for part in filter(None, (part.strip(" :") for part in parts)):
            if part not in ("Permission denied", "Address already in use"):  # the kernel's
                assert part in known or part in _listed(), f"{quote!r}: nobody says {part!r}"


def _listed() -> str:
    """Return messages of which a part is made of a list."""
    from containerd_shimkit.scratch import PLACES

    places = ", ".join(PLACES)
    return (
        f"needs a writable directory for copies: none of {places} is; mount an emptyDir at /tmp"
        "\nzygote"
    )


_OCI = "application/vnd.oci.image"


def blob(content: object, kind: str, blobs: dict[str, bytes]) -> dict[str, object]:
    """Add JSON to ``blobs``, by digest; return its descriptor."""
    data = json.dumps(content).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blobs[digest] = data
    return {"mediaType": f"{_OCI}.{kind}.v1+json", "digest": digest, "size": len(data)}


@contextmanager
def registry() -> Iterator[str]:
    """Serve an image whose index has the platform `wasi/wasm` alone; yield the address."""
    blobs: dict[str, bytes] = {}
    platform = {"os": "wasi", "architecture": "wasm"}
    rootfs = {"type": "layers", "diff_ids": []}
    config = blob(platform | {"rootfs": rootfs}, "config", blobs)
    manifest = blob({"schemaVersion": 2, "config": config, "layers": []}, "manifest", blobs)
    index = {"schemaVersion": 2, "manifests": [manifest | {"platform": platform}]}
    top = blob(index, "index", blobs)["digest"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2].partition("?")[0]
            digest = name if name in blobs else str(top)
            kind = "index" if digest == top else "manifest"
            self.send_response(200)
            self.send_header("Content-Type", f"{_OCI}.{kind}.v1+json")
            self.send_header("Content-Length", str(len(blobs[digest])))
            self.send_header("Docker-Content-Digest", digest)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(blobs[digest])

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.root
@pytest.mark.containerd
@pytest.mark.parametrize("version", each_containerd())
def test_containerd_says_so(tmp_path: Path, shim_dir: Path, shims_home: Path, version: str) -> None:
    """The node has the shim of Spin alone; its handlers are spin, slight and wws."""
    here = tmp_path / "bin"
    here.mkdir()
    (here / "containerd-shim-spin-v1").symlink_to(shim_dir / "containerd-shim-spin-v1")
    said = []
    with running_cri(tmp_path, ROOT, here, shims_home, "spin", version) as cri:
        cri.import_busybox()
        with cri.leaving_nothing():
            for handler in ("other", "slight"):
                with pytest.raises(CriError) as refused:
                    cri.run_pod(handler=handler, host_network=True)
                said.append(str(refused.value).replace(handler, "spin"))
            image = cri.import_image("docker.io/library/bare:latest", [ImageFile("x")], [])
            pod = cri.run_pod(handler="spin", host_network=True)
            with pytest.raises(CriError) as refused:
                cri.create_container(pod, image, "bare")
            said.append(str(refused.value))
            archive = tmp_path / "wasi.tar"
            write_image_archive(
                *(archive, "docker.io/library/wasi:latest", [ImageFile("x")]),
                entrypoint=["/"],
                os_="wasi",
                architecture="wasm",
            )
            ctr = cri.daemon.ctr
            said.append(ctr("image", "import", str(archive), check=False).stderr)
            with registry() as address:
                # 1.6 says it here, 2.4 when the image is used.
                ctr("image", "pull", "--plain-http", f"{address}/app:1", check=False)
                said.append(ctr("run", f"{address}/app:1", "app", check=False).stderr)
    for quote, message in zip(OF_CONTAINERD, said, strict=True):
        assert quote in PAGE
        assert quote in message
