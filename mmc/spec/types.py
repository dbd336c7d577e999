"""The small type language of inputs and outputs: ``str``, ``int``, ``float``, ``bool``, ``object``, ``any``, ``list[...]``."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

SIMPLE = ("str", "int", "float", "bool", "object", "any")


@dataclass(frozen=True)
class Type:
    """A simple type, or a list of ``item``."""

    kind: Literal["str", "int", "float", "bool", "object", "any", "list"]
    item: Type | None = None

    def __str__(self) -> str:
        return f"list[{self.item}]" if self.kind == "list" else self.kind


def parse_type(text: str) -> Type:
    """The type that ``text`` names. Raises ValueError that says what is known."""
    text = text.strip()
    if text in SIMPLE:
        return Type(text)  # type: ignore[arg-type]
    if text == "list":
        return Type("list", Type("any"))
    match = re.fullmatch(r"list\[(.+)\]", text)
    if match:
        return Type("list", parse_type(match.group(1)))
    raise ValueError(
        f"{text!r} is not a type; known are {', '.join(SIMPLE)} and list[...]." + did_you_mean(text, SIMPLE)
    )


def closest(word: str, words: Iterable[str]) -> str | None:
    """The known word that was probably meant, if any is near."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)), None)


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` when something known is close, else nothing."""
    close = closest(word, words)
    return f" Did you mean {close!r}?" if close is not None else ""


def coerce(value: Any, wanted: Type) -> Any:
    """``value`` as the wanted type; texts are read as numbers and booleans. Raises ValueError when that is impossible."""
    match wanted.kind:
        case "any":
            return value
        case "list":
            if not isinstance(value, list | tuple):
                raise ValueError(f"expected {wanted}, got {_short(value)}")
            assert wanted.item is not None
            return [coerce(item, wanted.item) for item in value]
        case "object":
            if not isinstance(value, dict):
                raise ValueError(f"expected an object, got {_short(value)}")
            return value
        case "str":
            if isinstance(value, dict | list | tuple):
                raise ValueError(f"expected a text, got {_short(value)}")
            return value if isinstance(value, str) else str(value)
        case "bool":
            return _boolean(value)
        case _:
            return _number(value, wanted.kind)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("true", "yes"):
        return True
    if text in ("false", "no"):
        return False
    raise ValueError(f"expected true or false, got {_short(value)}")


def _number(value: Any, kind: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected {kind}, got {_short(value)}")
    text = str(value).strip().replace(",", "")
    if kind == "int" and text.removeprefix("-").isdecimal():
        return int(text)  # as a float it would lose its last digits
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):  # JSON has no such numbers
        raise ValueError(f"expected {kind}, got {_short(value)}")
    if kind == "float":
        return number
    if not number.is_integer():
        raise ValueError(f"expected a whole number, got {_short(value)}")
    return int(number)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def json_schema_of(wanted: Type) -> dict[str, Any]:
    """The JSON schema of a type."""
    if wanted.kind == "list":
        assert wanted.item is not None
        return {"type": "array", "items": json_schema_of(wanted.item)}
    names = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "object": "object"}
    return {"type": names[wanted.kind]} if wanted.kind in names else {}
