"""``llm``: text and vectors made by models.

Source: Spin 1.5 wit/preview2/llm.wit; Spin 3.6 wit/deps/spin@2.0.0/llm.wit.
"""

from __future__ import annotations

from typing import Final

from containerd_shim_spin_v1.abi.imports import Function, Interface
from containerd_shim_spin_v1.host.instance import Instance
from containerd_shim_spin_v1.host.llm import (
    EmbeddingsResult,
    InferencingParams,
    InferencingResult,
    InvalidInputError,
    LlmError,
    ModelNotSupportedError,
)
from containerd_shimkit.wasm.canonical import (
    F32,
    STRING,
    U32,
    List,
    Option,
    Record,
    Result,
    Variant,
)
from containerd_shimkit.wasm.interfaces import CURRENT_REALLOC

_PARAMS: Final = Record(U32, F32, U32, F32, U32, F32, make=InferencingParams)
_INFERRED: Final = Record(
    STRING, U32, U32, names=("text", "prompt_token_count", "generated_token_count")
)
_EMBEDDED: Final = Record(List(List(F32)), U32, names=("embeddings", "prompt_token_count"))
_ERROR: Final = Variant(model_not_supported=None, runtime_error=STRING, invalid_input=STRING)


async def _infer(
    instance: Instance, model: str, prompt: str, params: InferencingParams | None
) -> InferencingResult:
    models = instance.component.ai_models
    return await instance.services.llm.infer(models, model, prompt, params)


async def _embed(instance: Instance, model: str, texts: list[str]) -> EmbeddingsResult:
    models = instance.component.ai_models
    return await instance.services.llm.generate_embeddings(models, model, texts)


def _error(exc: Exception) -> tuple[str, str | None] | None:
    match exc:
        case ModelNotSupportedError():
            return "model-not-supported", None
        case InvalidInputError():
            return "invalid-input", str(exc)
        case LlmError():
            return "runtime-error", str(exc)
    return None


_FUNCTIONS: Final = (
    Function("infer", [STRING, STRING, Option(_PARAMS)], Result(_INFERRED, _ERROR), _infer),
    Function("generate-embeddings", [STRING, List(STRING)], Result(_EMBEDDED, _ERROR), _embed),
)

INTERFACES: Final = tuple(
    Interface(module, _FUNCTIONS, _error, CURRENT_REALLOC)
    for module in ("fermyon:spin/llm", "fermyon:spin/llm@2.0.0")
)
