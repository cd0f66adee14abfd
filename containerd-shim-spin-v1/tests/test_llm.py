"""Models on a server: both protocols, and servers that are not well."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from containerd_shim_spin_v1.host.llm import (
    InferencingParams,
    InferencingResult,
    InvalidInputError,
    LlmError,
    LlmHost,
    ModelNotSupportedError,
)
from containerd_shim_spin_v1.host.tls import TlsContexts
from containerd_shim_spin_v1.runtime_config.model import RuntimeConfig
from containerd_shim_spin_v1.runtime_config.reader import parse_runtime_config
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.http import (
    HttpServer,
    Received,
    answering,
    http_server,
    response,
)

MODELS = ("llama2-chat", "all-minilm-l6-v2")
TOKEN = "token-7c1f"
SECONDS = 30.0


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())


@asynccontextmanager
async def llm(url: str, more: str = "") -> AsyncIterator[LlmHost]:
    config = parse_runtime_config(
        f'[llm_compute]\ntype = "remote_http"\nurl = "{url}"\nauth_token = "{TOKEN}"\n{more}'
    )
    host = LlmHost(config.llm_compute, TlsContexts(config, {}))
    try:
        yield host
    finally:
        await host.close()


def answer(value: Any, status: int = 200) -> Callable[[Received], bytes]:
    return lambda _: response(status, json.dumps(value).encode(), "content-type: application/json")


def asked(server: HttpServer) -> tuple[str, str, Any]:
    """Return method, path and body of the only request, after a look at its headers."""
    (request,) = server.requests
    assert request.all("authorization") == [f"bearer {TOKEN}"]
    assert request.all("content-type") == ["application/json"]
    return request.method, request.target, json.loads(request.body)


def test_infer_by_the_default_protocol() -> None:
    async def main() -> None:
        usage = {"promptTokenCount": 3, "generatedTokenCount": 5}
        make = answering(answer({"text": "Hé!", "usage": usage}))
        async with http_server(make) as server, llm(f"{server.url}/ignored") as host:
            result = await host.infer(MODELS, "llama2-chat", "Say hé")
            assert result == InferencingResult("Hé!", 3, 5)
            options = {
                "maxTokens": 100,
                "repeatPenalty": 1.1,
                "repeatPenaltyLastNTokenCount": 64,
                "temperature": 0.8,
                "topK": 40,
                "topP": 0.9,
            }
            body = {"model": "llama2-chat", "prompt": "Say hé", "options": options}
            assert asked(server) == ("POST", "/infer", body)

    run(main)


def test_parameters_are_sent_as_they_were_written() -> None:
    async def main() -> None:
        usage = {"promptTokenCount": 0, "generatedTokenCount": 0}
        make = answering(answer({"text": "", "usage": usage}))
        async with http_server(make) as server, llm(server.url) as host:
            (narrow,) = struct.unpack("<f", struct.pack("<f", 0.1))
            params = InferencingParams(7, narrow, 9, 1.0, 2, narrow)
            await host.infer(MODELS, "llama2-chat", "", params)
            assert asked(server)[2]["options"] == {
                "maxTokens": 7,
                "repeatPenalty": 0.1,
                "repeatPenaltyLastNTokenCount": 9,
                "temperature": 1.0,
                "topK": 2,
                "topP": 0.1,
            }
            bad = InferencingParams(temperature=float("nan"))
            with pytest.raises(InvalidInputError):
                await host.infer(MODELS, "llama2-chat", "", bad)

    run(main)


def test_infer_by_openai() -> None:
    async def main() -> None:
        message = {"role": "assistant", "content": "Hello"}
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        completion = {"id": "x", "choices": [{"index": 0, "message": message}], "usage": usage}
        async with (
            http_server(answering(answer(completion))) as server,
            llm(server.url, 'api_type = "open_ai"') as host,
        ):
            result = await host.infer(MODELS, "llama2-chat", "Say hello")
            assert result == InferencingResult("Hello", 3, 5)
            body = {
                "messages": [{"role": "user", "content": "Say hello"}],
                "model": "llama2-chat",
                "max_completion_tokens": 100,
                "frequency_penalty": 1.1,
            }
            assert asked(server) == ("POST", "/v1/chat/completions", body)

    run(main)


@pytest.mark.parametrize("kind", ["default", "open_ai"])
def test_embeddings(kind: str) -> None:
    async def main() -> None:
        vectors = [[0.5, -1, 2e-3], [1.0]]
        said: dict[str, Any] = {"embeddings": vectors, "usage": {"promptTokenCount": 4}}
        path = "/embed"
        if kind == "open_ai":
            data = [{"object": "embedding", "embedding": vector} for vector in vectors]
            path, said = "/v1/embeddings", {"data": data, "usage": {"prompt_tokens": 4}}
        async with (
            http_server(answering(answer(said))) as server,
            llm(server.url, f'api_type = "{kind}"') as host,
        ):
            result = await host.generate_embeddings(MODELS, "all-minilm-l6-v2", ["a", "é"])
            assert (result.embeddings, result.prompt_token_count) == (vectors, 4)
            body = {"model": "all-minilm-l6-v2", "input": ["a", "é"]}
            assert asked(server) == ("POST", path, body)

    run(main)


def test_connections_are_kept() -> None:
    async def main() -> None:
        said = {"embeddings": [], "usage": {"promptTokenCount": 0}}
        async with http_server(answering(answer(said))) as server:
            async with llm(server.url) as host:
                for _ in range(3):
                    await host.generate_embeddings(MODELS, "all-minilm-l6-v2", [])
                assert server.connections == 1
            await server.all_closed()

    run(main)


# What goes wrong


def test_a_model_that_the_manifest_does_not_name() -> None:
    async def main() -> None:
        async with http_server(answering(answer({}))) as server, llm(server.url) as host:
            with pytest.raises(InvalidInputError) as caught:
                await host.infer(MODELS, "codellama-instruct", "x")
            assert str(caught.value) == (
                "The component does not have access to use 'codellama-instruct'. To give the "
                "component access, add 'codellama-instruct' to the 'ai_models' key for the "
                "component in your spin.toml manifest"
            )
            with pytest.raises(InvalidInputError):
                await host.generate_embeddings((), "llama2-chat", [])
            assert not server.connections

    run(main)


@pytest.mark.parametrize("text", ["", '[llm_compute]\ntype = "spin"'])
def test_nobody_has_models(text: str) -> None:
    async def main() -> None:
        config = parse_runtime_config(text)
        host = LlmHost(config.llm_compute, TlsContexts(RuntimeConfig(), {}))
        with pytest.raises(
            ModelNotSupportedError, match=r'\[llm_compute\] .* type = "remote_http"'
        ):
            await host.infer(MODELS, "llama2-chat", "x")
        await host.close()

    run(main)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        pytest.param(
            response(200, b"[" * 1_000_000),
            "POST /infer: the server's answer is no JSON",
            id="nested too deep",
        ),
        (response(200, b"<html>"), "POST /infer: the server's answer is no JSON"),
        (response(200, b"{}"), "POST /infer: the server's answer is without 'usage'"),
        (response(200, b"[]"), "POST /infer: the server's answer is of another form"),
        (response(200, b"null"), "POST /infer: the server's answer is no JSON"),
        (
            response(200, b'{"text": 1, "usage": {"promptTokenCount": 1}}'),
            "POST /infer: the server's answer is of another form",
        ),
        (
            response(200, b'{"text":"","usage":{"promptTokenCount":-1,"generatedTokenCount":0}}'),
            "POST /infer: the server's answer is of another form",
        ),
        (response(401, b"who are you"), "POST /infer: the server answers 401"),
        (
            response(429, b'{"error": {"message": "too many tokens"}}'),
            "POST /infer: the server answers 429: too many tokens",
        ),
        (response(302, b"", "location: /x"), "POST /infer: the server answers 302"),
    ],
)
def test_answers_of_another_form(said: bytes, message: str) -> None:
    async def main() -> None:
        async with http_server(answering(lambda _: said)) as server, llm(server.url) as host:
            with pytest.raises(LlmError) as caught:
                await host.infer(MODELS, "llama2-chat", "x")
            assert str(caught.value) == message

    run(main)


def test_an_error_of_openai() -> None:
    async def main() -> None:
        said = {"error": {"message": "the model is asleep", "type": "server_error"}}
        async with (
            http_server(answering(answer(said))) as server,
            llm(server.url, 'api_type = "open_ai"') as host,
        ):
            with pytest.raises(LlmError, match=r"^the model is asleep$"):
                await host.infer(MODELS, "llama2-chat", "x")

    run(main)


def test_no_server() -> None:
    async def main() -> None:
        async with llm("http://user:{}@{}:{}".format(TOKEN, *free_address())) as host:
            with pytest.raises(LlmError, match="cannot connect: Connection refused") as caught:
                await host.infer(MODELS, "llama2-chat", "x")
            assert TOKEN not in str(caught.value)

    run(main)


def test_a_token_that_is_no_header() -> None:
    async def main() -> None:
        config = parse_runtime_config(
            '[llm_compute]\ntype = "remote_http"\nurl = "http://h"\nauth_token = "a\\nb"'
        )
        host = LlmHost(config.llm_compute, TlsContexts(config, {}))
        with pytest.raises(LlmError, match="auth_token"):
            await host.infer(MODELS, "llama2-chat", "x")
        await host.close()

    run(main)
