"""OpenAI's chat completions in our words: requests read, answers written.

A parameter that would change the answer and that we cannot honour is refused, never passed over.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mmc.engine.base import Message
from mmc.serve.metered import Meter


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message; of the parts of a content only texts are known."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    def plain(self) -> Message:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, content)


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request. `model` is the program's name, or the name, a slash and a module of it."""

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    temperature: float = Field(0.0, ge=0, le=2, description="0, the default here, is greedy.")
    max_tokens: int | None = Field(None, gt=0)
    max_completion_tokens: int | None = Field(None, gt=0)
    seed: int | None = None
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    n: int = Field(1, ge=1, le=1)
    top_p: float = Field(1.0, ge=1, le=1)
    frequency_penalty: float = Field(0.0, ge=0, le=0)
    presence_penalty: float = Field(0.0, ge=0, le=0)
    user: str | None = Field(None, description="Not used.")

    @property
    def longest(self) -> int | None:
        """Most tokens of the completion."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def last_user(self) -> str | None:
        """The last message of the user; what came before is no part of it."""
        said = [message.plain().content for message in self.messages if message.role == "user"]
        return said[-1] if said else None


def usage(meter: Meter) -> dict[str, int]:
    """Tokens as OpenAI counts them."""
    return {
        "prompt_tokens": meter.prompt,
        "completion_tokens": meter.completion,
        "total_tokens": meter.prompt + meter.completion,
    }


@dataclass(frozen=True)
class Answer:
    """The documents that make one answer."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, finish: str, meter: Meter) -> dict[str, Any]:
        """The answer in one document."""
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(meter)}

    def piece(self, text: str, first: bool = False) -> dict[str, Any]:
        """The next part of the text."""
        delta = {"role": "assistant", "content": text} if first else {"content": text}
        return self._chunk(delta, None)

    def end(self, finish: str) -> dict[str, Any]:
        """The last document with a choice."""
        return self._chunk({}, finish)

    def spent(self, meter: Meter) -> dict[str, Any]:
        """The document with the usage, which comes after the last choice when it was asked for."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(meter)}

    def _chunk(self, delta: Mapping[str, str], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(document: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
"""What ends a stream."""
