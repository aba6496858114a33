"""How OpenAI-compatible engines differ, as one table. Nothing else asks which engine it is.

Recognized by what an engine says of itself in /v1/models. Sources: docs/engines.md. vLLM and the embedded engine were run here;
the others' rows come from their documentation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Entry = Mapping[str, Any]  # one model in the answer of /v1/models


@dataclass(frozen=True)
class Dialect:
    """`context_*`: where the engine says how many tokens fit, as a path of keys; `default_context`: what holds where it does not.

    `identity`: what tells two models behind one name apart. `context_setting`: how its operator raises the limit.
    """

    kind: str
    owners: tuple[str, ...] = ()  # owned_by
    hosts: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    context_field: str = ""
    context_page: str = ""  # {model} is filled in; from the server's root, not from /v1
    context_page_field: str = ""
    context_setting: str = "the engine's context length"
    default_context: int | None = None
    length_parameter: str = "max_tokens"
    embedding_hint: str = ""  # for an engine that answers, and does not embed
    one_identity: bool = True  # every address must say the same of a model
    fixed_temperature: tuple[str, ...] = ()  # models that answer 400 to any temperature but their own, by the name's beginning

    def sampling(self, model: str, max_tokens: int) -> dict[str, Any]:
        """The request's parameters for a short, repeatable answer."""
        parameters: dict[str, Any] = {self.length_parameter: max_tokens}
        if not model.startswith(self.fixed_temperature or ("\0",)):
            parameters["temperature"] = 0
        return parameters

    def identify(self, entry: Entry) -> dict[str, Any]:
        """What the engine says about the weights behind the name; empty where it says nothing that lasts."""
        found = {path: field(entry, path) for path in self.identity}
        return {path: value for path, value in found.items() if value is not None}


VLLM = Dialect(
    "vLLM",
    owners=("vllm",),
    identity=("root",),  # the path or repository that was loaded; `created` is the moment of asking
    context_field="max_model_len",
    context_setting="--max-model-len",
    embedding_hint="a vLLM serves one model: start a second one with --runner pooling for embeddings",
)
LLAMA_CPP = Dialect(
    "llama.cpp",
    owners=("llamacpp",),
    identity=("meta.n_params", "meta.size", "meta.n_vocab", "meta.n_embd"),
    context_field="meta.n_ctx",
    context_page="/props",
    context_page_field="default_generation_settings.n_ctx",  # of one slot: --ctx-size is shared by --parallel of them
    context_setting="--ctx-size (shared by its --parallel slots)",
    embedding_hint="start a second llama-server with --embeddings",
)
OLLAMA = Dialect(
    "Ollama",
    owners=("library",),
    identity=("created",),  # when the model was last changed
    one_identity=False,  # … on that machine
    context_setting="OLLAMA_CONTEXT_LENGTH",
    embedding_hint="`ollama pull` an embedding model and name it in STARSEARCH_EMBEDDING_MODEL",
    default_context=4_096,  # longer prompts are cut silently, so no more than the default is ever sent
)
LM_STUDIO = Dialect(
    "LM Studio",
    owners=("organization_owner",),
    context_page="/api/v0/models/{model}",
    context_page_field="loaded_context_length",
    context_setting="lms load --context-length",
    default_context=4_096,
)
OPENAI = Dialect(
    "OpenAI",
    hosts=("api.openai.com",),
    identity=("created",),
    context_setting="a model with a longer context",
    length_parameter="max_completion_tokens",  # max_tokens is deprecated, and refused by its reasoning models
    fixed_temperature=("o1", "o3", "o4", "gpt-5", "gpt-6"),
)
EMBEDDED = Dialect("embedded", owners=("starsearch",), context_field="max_model_len")
UNKNOWN = Dialect("OpenAI-compatible", context_field="max_model_len")
DIALECTS = (VLLM, LLAMA_CPP, OLLAMA, LM_STUDIO, OPENAI, EMBEDDED)


def recognize(base_url: str, entry: Entry) -> Dialect:
    host, owner = urlsplit(base_url).hostname, entry.get("owned_by")
    return next((each for each in DIALECTS if host in each.hosts or owner in each.owners), UNKNOWN)


def field(value: object, path: str) -> Any:
    """What stands under a path of keys such as meta.n_ctx; None where the path leads nowhere."""
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
