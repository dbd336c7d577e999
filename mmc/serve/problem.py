"""Errors as problem details (RFC 9457), with what OpenAI's clients look for beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmc.program.trajectory import Ending

MEDIA_TYPE = "application/problem+json"
STATUS: Mapping[Ending, int] = {
    "unparsed": 502,
    "cut": 502,
    "tool_failed": 502,
    "limit": 500,
    "timeout": 504,
    "failed": 500,
}
"""How a run ended -> the answer's status. What a model or a tool did wrong is as if a server behind this one had."""


@dataclass
class Problem(Exception):
    """An answer that is an error. ``kind`` is the last part of its type, ``more`` are members of its own."""

    status: int
    kind: str
    title: str
    detail: str
    more: Mapping[str, Any] = field(default_factory=dict)
    retry_after: float | None = None
    """Seconds after which it is worth asking again."""

    def body(self) -> dict[str, Any]:
        """The JSON document. ``error`` is for OpenAI's clients."""
        return {
            "type": f"urn:mmc:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.more,
            "error": {"message": self.detail, "type": self.kind, "param": None, "code": self.kind},
        }

    def headers(self) -> dict[str, str]:
        found = {"Content-Type": MEDIA_TYPE}
        if self.retry_after is not None:
            found["Retry-After"] = str(max(1, round(self.retry_after)))
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found


def invalid(errors: list[dict[str, str]]) -> Problem:
    """What was sent is not what is asked for; ``errors`` name field and reason."""
    detail = "; ".join(f"{one['field']}: {one['message']}" if one["field"] else one["message"] for one in errors)
    return Problem(422, "invalid", "The request cannot be used", detail, {"errors": errors})


def located(details: Sequence[Any]) -> list[dict[str, str]]:
    """Pydantic's errors as field and message."""
    found = []
    for one in details:
        place = [str(part) for part in one["loc"] if part != "body"]
        found.append({"field": ".".join(place), "message": one["msg"]})
    return found
