"""What may stand where in a spec, by the places that pydantic's errors name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Tag

from mmc.spec.keys import Keys
from mmc.spec.model import Spec

DISCRIMINATORS = ("type", "algorithm")
"""Keys that say which of several blocks a mapping is."""


@dataclass(frozen=True)
class _Member:
    """One of the things that may stand somewhere, and what pydantic calls it in an error's place."""

    kind: Any
    tags: frozenset[str]


@dataclass(frozen=True)
class Place:
    """What may stand at a place; ``family`` are the blocks of which it is one, where a key such as `type` decides."""

    members: tuple[_Member, ...]
    family: tuple[_Member, ...] = ()

    @property
    def block(self) -> type[Keys] | None:
        """The block that stands here, when it can be one only."""
        blocks = _blocks(self.members)
        return blocks[0] if len(blocks) == 1 else None

    @property
    def tags(self) -> list[str]:
        """What the deciding key may say here."""
        return [tag for kind in _blocks(self.members) for tag in _literals(kind)]

    def knowing(self, key: str) -> list[str]:
        """The blocks of the family that have a key, by what the deciding key says."""
        return [tag for kind in _blocks(self.family) if key in fields(kind) for tag in _literals(kind)]


def place_of(loc: Sequence[str | int]) -> Place:
    """What may stand at the place of one of pydantic's errors, in which tags of unions stand between the keys."""
    place = Place(_members(Spec))
    for part in loc:
        place = _down(place, part)
    return place


def fields(block: type[Keys]) -> dict[str, bool]:
    """The keys of a block, as a spec spells them -> whether they must be there."""
    return {field.alias or name: field.is_required() for name, field in block.model_fields.items()}


def _down(place: Place, part: str | int) -> Place:
    tagged = tuple(member for member in place.members if part in member.tags)
    if len(place.members) > 1 and tagged:
        return Place(tagged, place.members)
    found: list[_Member] = []
    for member in place.members:
        found += _inside(member.kind, part)
    return Place(tuple(found))


def _inside(kind: Any, part: str | int) -> tuple[_Member, ...]:
    if isinstance(kind, type) and issubclass(kind, Keys):
        for name, field in kind.model_fields.items():
            if part == (field.alias or name):
                return _members(field.annotation)
        return ()
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return _members(arguments[1])
    if get_origin(kind) in (list, tuple) and isinstance(part, int):
        return _members(arguments[0])
    return ()


def _members(kind: Any, tags: frozenset[str] = frozenset()) -> tuple[_Member, ...]:
    if get_origin(kind) is Annotated:
        inner, *marks = get_args(kind)
        return _members(inner, tags | {mark.tag for mark in marks if isinstance(mark, Tag)})
    if get_origin(kind) in (Union, UnionType):
        return tuple(member for part in get_args(kind) for member in _members(part, tags) if part is not type(None))
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    return (_Member(kind, tags | {name, *_literals(kind)}),)


def _literals(kind: Any) -> tuple[str, ...]:
    """What the deciding key of a block says; nothing for what is no such block."""
    if not (isinstance(kind, type) and issubclass(kind, Keys)):
        return ()
    for key in DISCRIMINATORS:
        field = kind.model_fields.get(key)
        if field is not None and get_origin(field.annotation) is Literal:
            return get_args(field.annotation)
    return ()


def _blocks(members: Sequence[_Member]) -> list[type[Keys]]:
    return [member.kind for member in members if isinstance(member.kind, type) and issubclass(member.kind, Keys)]
