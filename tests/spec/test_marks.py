"""What messages show of a file."""

from __future__ import annotations

import pytest

from mmc.errors import InvalidError
from mmc.spec.marks import parse


@pytest.mark.parametrize(
    "written", ["api_key: sk-secret", '"api_key": "sk-secret"', "{a: 1, api_key: 'sk-secret', b: 2}"]
)
def test_a_key_for_an_api_is_never_shown(written: str) -> None:
    document = parse(f"m: {written}\n" if written[0] == "{" else f"{written}\n", "f")
    shown = document.diagnostic(("m",), "x").render()
    assert "sk-secret" not in shown and "api_key" in shown and "***" in shown
    with pytest.raises(InvalidError) as caught:
        parse(f"{written} : : [\n", "f")
    assert "sk-secret" not in str(caught.value)
    with pytest.raises(InvalidError) as caught:
        parse("a: 1\n" + "".join(f"{{api_key: sk-secret}}: {i}\n" for i in range(2)), "f")
    assert "sk-secret" not in str(caught.value)


def test_the_name_of_a_variable_is_shown() -> None:
    document = parse('api_key: "${env:KEY}"\n', "f")
    assert "${env:KEY}" in document.diagnostic(("api_key",), "x").render()
