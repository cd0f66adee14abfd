"""Large language models, on a server that ``[llm_compute]`` of the runtime configuration names.

The server speaks Spin's own protocol (``api_type = "default"``: POST /infer and /embed) or that of
OpenAI (``"open_ai"``: POST /v1/chat/completions and /v1/embeddings). The path of the configured URL
is replaced, as in Spin. It is the operator's server: neither allowed hosts nor blocked networks
apply. What the server says of an error is the guest's to read; the token is in no message.

Sources: Spin 3.6 crates/llm-remote-http/src/, crates/factor-llm/src/host.rs; OpenAI API reference,
chat completions and embeddings.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from containerd_shim_spin_v1.host.tls import TlsContexts
from containerd_shim_spin_v1.runtime_config.model import LocalLlm, RemoteLlm
from containerd_shimkit.http_client.client import (
    HttpClient,
    RequestError,
    RequestFailedError,
    read_all,
)
from containerd_shimkit.http_client.networks import Networks
from containerd_shimkit.http_client.urls import parse_url
from containerd_shimkit.tls import TlsConfigError

_MAX_ANSWER_BYTES: Final = 32 << 20
_MAX_SHOWN: Final = 500  # characters of a server's own message
_MAX_COUNT: Final = (1 << 32) - 1
_MAX_FLOAT: Final = 3.4e38  # guests have 32 bits for it


class LlmError(Exception):
    """``runtime-error``: the model gave no answer."""


class ModelNotSupportedError(LlmError):
    """``model-not-supported``: there is nobody who has models."""


class InvalidInputError(LlmError):
    """``invalid-input``: the component may not ask, or not this."""


@dataclass(frozen=True, slots=True)
class InferencingParams:
    """How a model is to answer; the defaults are Spin's."""

    max_tokens: int = 100
    repeat_penalty: float = 1.1
    repeat_penalty_last_n_token_count: int = 64
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9


@dataclass(frozen=True, slots=True)
class InferencingResult:
    """What a model said, and how many tokens that took."""

    text: str
    prompt_token_count: int
    generated_token_count: int


@dataclass(frozen=True, slots=True)
class EmbeddingsResult:
    """A vector for each text, and how many tokens they have."""

    embeddings: list[list[float]]
    prompt_token_count: int


class LlmHost:
    """The models of an app's components. To be made in the event loop."""

    def __init__(self, config: LocalLlm | RemoteLlm | None, tls: TlsContexts) -> None:
        self._remote = config if isinstance(config, RemoteLlm) else None
        self._tls = tls
        self._client: HttpClient | None = None
        if self._remote is not None:
            self._url = parse_url(self._remote.url)
            self._client = HttpClient(Networks())

    async def close(self) -> None:
        """End every connection."""
        if self._client is not None:
            await self._client.close()

    async def infer(
        self,
        models: Collection[str],
        model: str,
        prompt: str,
        params: InferencingParams | None = None,
    ) -> InferencingResult:
        """Return what a model makes of a prompt.

        models: ``ai_models`` of the component.  Raises LlmError and those below it.
        """
        remote = self._engine(models, model)
        params = params or InferencingParams()
        if remote.api_type == "open_ai":
            path = "/v1/chat/completions"
            answer = await self._post(path, _chat(model, prompt, params))
        else:
            path = "/infer"
            answer = await self._post(path, _prompt(model, prompt, params))
        try:
            return (_read_chat if remote.api_type == "open_ai" else _read_text)(answer)
        except _UNEXPECTED as exc:
            _complain(path, exc)

    async def generate_embeddings(
        self, models: Collection[str], model: str, texts: Sequence[str]
    ) -> EmbeddingsResult:
        """Return a vector for each text. Raises as ``infer``."""
        remote = self._engine(models, model)
        body = {"model": model, "input": list(texts)}
        if remote.api_type == "open_ai":
            path, key, count = "/v1/embeddings", "data", "prompt_tokens"
        else:
            path, key, count = "/embed", "embeddings", "promptTokenCount"
        answer = await self._post(path, body)
        try:
            vectors = answer[key]
            if remote.api_type == "open_ai":
                vectors = [item["embedding"] for item in vectors]
            return EmbeddingsResult(
                [[_number(value) for value in vector] for vector in vectors],
                _count(answer["usage"][count]),
            )
        except _UNEXPECTED as exc:
            _complain(path, exc)

    def _engine(self, models: Collection[str], model: str) -> RemoteLlm:
        if model not in models:
            raise InvalidInputError(
                f"The component does not have access to use '{model[:80]}'. To give the component "
                f"access, add '{model[:80]}' to the 'ai_models' key for the component in your "
                "spin.toml manifest"
            )
        if self._remote is None:
            raise ModelNotSupportedError(
                "there are no models in this shim: [llm_compute] of the runtime configuration "
                'names a server that has them, with type = "remote_http"'
            )
        return self._remote

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the server's answer, parsed."""
        assert self._client is not None
        assert self._remote is not None
        url = replace(self._url, target=path)
        headers = [
            ("authorization", f"bearer {self._remote.auth_token}"),
            ("content-type", "application/json"),
        ]
        data = json.dumps(body).encode()
        try:
            context = self._tls.default() if url.scheme == "https" else None
            response = await self._client.exchange("POST", url, headers, data, context)
            with closing(response):
                content = await read_all(response, _MAX_ANSWER_BYTES, f"POST {path}")
        except RequestError:  # its message names the header, never the value
            raise LlmError("auth_token of [llm_compute] cannot be sent in a header") from None
        except (RequestFailedError, TlsConfigError) as exc:
            raise LlmError(str(exc)) from None
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if response.status != 200:
            raise LlmError(f"POST {path}: the server answers {response.status}{_message(answer)}")
        if answer is None:
            raise LlmError(f"POST {path}: the server's answer is no JSON")
        return answer


_UNEXPECTED: Final = (LookupError, TypeError, ValueError)


def _complain(path: str, exc: Exception) -> NoReturn:
    what = f"without {exc}" if isinstance(exc, KeyError) else "of another form"
    raise LlmError(f"POST {path}: the server's answer is {what}") from None


def _prompt(model: str, prompt: str, params: InferencingParams) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "options": {
            "maxTokens": params.max_tokens,
            "repeatPenalty": _sent(params.repeat_penalty),
            "repeatPenaltyLastNTokenCount": params.repeat_penalty_last_n_token_count,
            "temperature": _sent(params.temperature),
            "topK": params.top_k,
            "topP": _sent(params.top_p),
        },
    }


def _chat(model: str, prompt: str, params: InferencingParams) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": prompt}],
        "model": model,
        "max_completion_tokens": params.max_tokens,
        "frequency_penalty": _sent(params.repeat_penalty),
    }


def _read_text(answer: Any) -> InferencingResult:
    usage = answer["usage"]
    return InferencingResult(
        _text(answer["text"]),
        _count(usage["promptTokenCount"]),
        _count(usage["generatedTokenCount"]),
    )


def _read_chat(answer: Any) -> InferencingResult:
    if (fault := _message(answer)) and "choices" not in answer:
        raise LlmError(fault.removeprefix(": "))
    usage, choices = answer["usage"], answer["choices"]
    return InferencingResult(
        _text(choices[0]["message"]["content"]) if choices else "",
        _count(usage["prompt_tokens"]),
        _count(usage["completion_tokens"]),
    )


def _message(answer: Any) -> str:
    """Return what a server says of an error, as the end of a sentence."""
    error = answer.get("error") if isinstance(answer, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return f": {text[:_MAX_SHOWN]}" if isinstance(text, str) else ""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
        raise TypeError
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MAX_FLOAT:
        raise TypeError
    return float(value)


def _sent(value: float) -> float:
    """Return the shortest number that a 32-bit float was written as: 0.8, not 0.800000011920929."""
    if not math.isfinite(value):
        raise InvalidInputError("the parameters must be numbers")
    for digits in range(6, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value
