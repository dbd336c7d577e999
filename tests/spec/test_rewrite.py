from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmc.errors import InvalidError
from mmc.spec import rewrite
from mmc.spec.marks import KeyPath, parse

TEXT = """\
# head
a: 1   # one
b:
  c: [x, y]  # list
  d: {e: 2}
  f: |
    long
    text
g:
  - h: 3
    i: 4

j: end # tail
"""


def value_at(text: str, path: KeyPath) -> object:
    found: object = parse(text, "t").data
    for part in path:
        found = found[part]  # type: ignore[index]
    return found


simple = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
)
values = st.recursive(
    simple,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=6), inner, max_size=3),
    max_leaves=5,
)
PATHS: list[KeyPath] = [
    ("a",),
    ("b",),
    ("b", "c"),
    ("b", "c", 1),
    ("b", "d", "e"),
    ("b", "f"),
    ("g", 0, "i"),
    ("g",),
    ("j",),
]
NEW: list[KeyPath] = [("k",), ("b", "z"), ("b", "d", "z"), ("g", 0, "z"), ("k", "l", "m"), ("b", "y", "z")]


@given(st.sampled_from(PATHS + NEW), values)
def test_what_is_written_is_read_again_and_the_rest_stays(path: KeyPath, value: object) -> None:
    text = rewrite(TEXT, {path: value})
    assert value_at(text, path) == value
    for other in PATHS:
        related = other[: len(path)] == path or path[: len(other)] == other
        if not related:
            assert value_at(text, other) == value_at(TEXT, other)
    assert "# head" in text and "# tail" in text
    if path != ("a",):
        assert "a: 1   # one\n" in text


def test_only_the_value_changes() -> None:
    assert rewrite(TEXT, {("a",): 5}) == TEXT.replace("a: 1 ", "a: 5 ")
    assert rewrite(TEXT, {("b", "c"): ["z"]}) == TEXT.replace("[x, y]", "[z]")
    assert rewrite(TEXT, {("g", 0, "k"): True}) == TEXT.replace("    i: 4\n", "    i: 4\n    k: true\n")


@pytest.mark.parametrize(("text", "path"), [("a: &z 1\nb: *z\n", ("a",)), ("a: &z {k: 1}\nb: *z\n", ("b", "k"))])
def test_what_an_anchor_shares_is_refused_instead_of_changed_elsewhere(text: str, path: KeyPath) -> None:
    with pytest.raises(InvalidError, match="an anchor or alias is involved"):
        rewrite(text, {path: 2})
