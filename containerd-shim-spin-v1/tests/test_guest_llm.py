"""A real guest asks models."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import fetch
from containerd_shimkit.testing.servers.http import Received, answering, http_server, response

MANIFEST = """
spin_manifest_version = 2
[application]
name = "test"
[[trigger.http]]
route = "/..."
component = "llm"
[component.llm]
source = "llm.wasm"
ai_models = ["llama2-chat"]
"""


@pytest.fixture
def app(image: Any) -> Any:
    image.component("llm", "/...")
    image.manifest(MANIFEST)
    return image


def use(image: Any, url: str) -> None:
    (image.root / "runtime-config.toml").write_text(
        f'[llm_compute]\ntype = "remote_http"\nurl = "{url}"\nauth_token = "t"\n'
    )


def serve(image: Any, make: Callable[[Received], bytes], *asks: tuple[str, str, str]) -> list[str]:
    """Return the guest's answers to requests: path, model and body."""
    answers: list[str] = []
    address = free_address()
    use(image, "http://{}:{}".format(*address))

    async def main(port: int) -> None:
        async with http_server(answering(make), address=address):
            for path, model, body in asks:
                headers = [("x-model", model), ("x-params", "7 0.5 9 0.25 2 0.1")]
                answer = await fetch(port, path, method="POST", headers=headers, body=body.encode())
                answers.append(answer.text)

    image.run(main)
    return answers


def answer(request: Received) -> bytes:
    asked = json.loads(request.body)
    if request.target == "/embed":
        vectors = [[len(text), 0.5, -1e-3] for text in asked["input"]]
        return response(
            200, json.dumps({"embeddings": vectors, "usage": {"promptTokenCount": 9}}).encode()
        )
    assert asked["options"]["topP"] == 0.1
    text = f"{asked['prompt']}: {asked['options']['maxTokens']} é"
    usage = {"promptTokenCount": 3, "generatedTokenCount": 5}
    return response(200, json.dumps({"text": text, "usage": usage}).encode())


@pytest.mark.parametrize("version", ["v1.5", "v2"])
def test_models_answer(app: Any, version: str) -> None:
    asks = [
        (f"/{version}/infer", "llama2-chat", "Say"),
        (f"/{version}/embed", "llama2-chat", "a\nlonger"),
    ]
    assert serve(app, answer, *asks) == [
        "ok 3 5 Say: 7 é",
        "ok 9 [ 1 0.5 -0.001 ] [ 6 0.5 -0.001 ]",
    ]


def test_errors(app: Any) -> None:
    answers = serve(
        app,
        lambda _: response(500, b'{"error": "asleep"}'),
        ("/v1.5/infer", "llama2-chat", ""),
        ("/v2/embed", "llama2-chat", ""),
        ("/v2/infer", "other", ""),
        ("/v1.5/embed", "other", ""),
    )
    assert answers[:2] == ["error 1 POST /infer: the server answers 500: asleep", "error 1"]
    assert answers[2].startswith("error 2 The component does not have access to use 'other'.")
    assert answers[3] == "error 2"


def test_a_large_answer(app: Any) -> None:
    text = "é" * 5_000_000
    usage = {"promptTokenCount": 0, "generatedTokenCount": 0}
    body = json.dumps({"text": text, "usage": usage}).encode()
    (found,) = serve(app, lambda _: response(200, body), ("/v2/infer", "llama2-chat", ""))
    assert found == f"ok 0 0 {text}"
