from __future__ import annotations

from typing import Any

import pytest

from mmc.build.export.runtime import typed
from mmc.spec.types import coerce, parse_type

READERS = {"mmc": lambda value, wanted: coerce(value, parse_type(wanted)), "an exported program": typed}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize(
    ("value", "wanted", "found"),
    [
        ("12345678901234567", "int", 12345678901234567),
        (12345678901234567, "int", 12345678901234567),
        ("-1,000", "int", -1000),
        ("3.0", "int", 3),
        (2, "float", 2.0),
        (" 1e-3 ", "float", 1e-3),
        ("Yes", "bool", True),
        (7, "str", "7"),
        (["1", 2], "list[int]", [1, 2]),
    ],
)
def test_values_become_what_their_type_says(reader: Any, value: Any, wanted: str, found: Any) -> None:
    """No digit of a large number is lost."""
    read = reader(value, wanted)
    assert read == found and type(read) is type(found)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("nan", "float"),
        (float("inf"), "float"),
        ("-inf", "int"),
        ("1.5", "int"),
        (True, "int"),
        ("+-5", "int"),
        ("--5", "int"),
        ("five", "float"),
        ("maybe", "bool"),
        ({"a": 1}, "str"),
        ("1", "list[int]"),
    ],
)
def test_what_is_no_such_value_is_refused(reader: Any, value: Any, wanted: str) -> None:
    """Numbers that JSON does not have among them."""
    with pytest.raises(ValueError, match=r"expected|could not convert string to float"):
        reader(value, wanted)
