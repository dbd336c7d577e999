"""How many tokens messages are for a model, without its weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmc.engine.base import Message
from mmc.errors import EnvironmentProblem, needing
from mmc.spec.load import LoadedSpec
from mmc.spec.model import LocalModel, OpenAiModel


def chat_ids(tokenizer: Any, messages: Sequence[Message], answering: bool = True) -> list[int]:
    """Token ids of ``messages`` in the model's chat template, with what comes before the answer if ``answering``."""
    chat = [{"role": m.role, "content": m.content} for m in messages]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=answering, return_dict=False))


@dataclass(frozen=True)
class Counter:
    """Counts the tokens of messages for one model; ``ids`` is None where only a number is known."""

    count: Callable[[Sequence[Message]], int]
    ids: Callable[[Sequence[Message], bool], list[int]] | None = None


def open_counter(loaded: LoadedSpec, name: str) -> Counter:
    """The counter of the model ``name``: its own tokenizer, or LiteLLM's for a model behind an API.

    Raises EnvironmentProblem when neither is there.
    """
    config = loaded.spec.models[name]
    if isinstance(config, LocalModel):
        tokenizer = _tokenizer(config, loaded.resolve)
        return Counter(lambda m: len(chat_ids(tokenizer, m)), lambda m, answering: chat_ids(tokenizer, m, answering))
    if isinstance(config, OpenAiModel):
        raise EnvironmentProblem(f"the server of {config.model} does not tell how it counts tokens")
    from mmc.engine.litellm import load_litellm
    from mmc.engine.remote import chat

    litellm = load_litellm()
    return Counter(lambda messages: int(litellm.token_counter(model=config.model, messages=chat(messages))))


def _tokenizer(config: LocalModel, resolve: Callable[[str], Path]) -> Any:
    """The tokenizer of the first source that is there. Weights are neither loaded nor downloaded nor converted."""
    with needing("local", "a tokenizer"):
        from transformers import AutoTokenizer
    from mmc.engine.weights import quiet_transformers

    sources = [config.source] if isinstance(config.source, str) else config.source
    for source in sources:
        kind, _, rest = source.partition(":")
        with quiet_transformers():
            try:
                found = AutoTokenizer.from_pretrained(**_place(kind, rest, resolve))
            except (OSError, ValueError):
                continue
        if found.chat_template is not None:
            return found
    raise EnvironmentProblem(f"no tokenizer with a chat template is there in {', '.join(sources)}")


def _place(kind: str, rest: str, resolve: Callable[[str], Path]) -> dict[str, Any]:
    """Where transformers finds a source's tokenizer. Raises OSError when that is nowhere."""
    from mmc.engine.weights import converted

    if kind == "hf":
        name, _, revision = rest.partition("@")
        return {"pretrained_model_name_or_path": name, "revision": revision or "main"}
    if kind == "path":
        folder = resolve(rest)
    else:
        package, _, name = rest.partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        places = (spec.submodule_search_locations if spec is not None else None) or ["nowhere"]
        file = Path(next(iter(places))) / name
        if not file.is_file():
            raise FileNotFoundError(file)
        folder, _ = converted(file)
        if not folder.is_dir():
            return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    return {"pretrained_model_name_or_path": str(folder)}
