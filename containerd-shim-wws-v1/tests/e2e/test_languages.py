"""Workers in every language, in one container."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import Node, eventually
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD

pytestmark = [pytest.mark.root, pytest.mark.containerd]

ImageOf = Callable[..., str]  # of conftest.py

GUESTS = Path(__file__).parents[1] / "guests"
JAVASCRIPT = """\
addEventListener("fetch", (event) => {
  const count = Number(Cache.get("count") ?? 0) + 1;
  Cache.set("count", String(count));
  event.respondWith(new Response(`javascript ${event.request.method} ${count}`));
});
"""
PYTHON = """\
import os

def worker(request):
    return Response(f"python {request.method} {os.environ['NAME']}")
"""


@ON_EACH_CONTAINERD
def test_c_rust_javascript_and_python(node: Node, image_of: ImageOf) -> None:
    image = image_of(
        node,
        {
            "c.wasm": "probe.wasm",
            "rust.wasm": "rust_worker.wasm",
            "js.js": JAVASCRIPT,
            "js.toml": 'version = "1"\n[data.kv]\nnamespace = "js"\n',
            "py.py": PYTHON,
            "py.toml": 'version = "1"\n[vars]\nNAME = "$NAME"\n',
            "broken.js": "function {",
        },
    )
    app = node.run(image, env={"NAME": "of the pod"})
    assert app.get("/c?mode=stderr").text == "said"
    assert app.get("/rust?query").text.startswith("rust query ")
    assert [app.get("/js").text for _ in range(2)] == ["javascript GET 1", "javascript GET 2"]
    assert app.get("/py", method="POST", body=b"x").text == "python POST of the pod"
    assert app.get("/broken").status == 500
    eventually(lambda: "SyntaxError" in app.log and "/broken.js" in app.log)
    assert app.stop() == 0


def test_go(node: Node, tmp_path: Path) -> None:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        pytest.skip("needs Go 1.21 or newer")
    worker = tmp_path / "go.wasm"
    environment = os.environ | {"GOOS": "wasip1", "GOARCH": "wasm", "GOTOOLCHAIN": "local"}
    build = [go, "build", "-trimpath", "-ldflags=-s -w", "-o", str(worker)]
    subprocess.run([*build, str(GUESTS / "go_worker.go")], env=environment, check=True, timeout=100)
    app = node.run(node.image([ImageFile("go.wasm", worker.read_bytes())]))
    assert app.get("/go?query").text.startswith('go {"url":"http://')
    assert app.stop() == 0
