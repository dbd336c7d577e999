from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmc.errors import EnvironmentProblem, needing


def test_a_package_that_is_missing_comes_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(EnvironmentProblem) as caught, needing("search", "a search"):
        import optuna.trial  # noqa: F401
    assert str(caught.value) == "a search needs optuna: pip install 'mmc[search]'"


def test_a_package_that_is_there_and_broken_comes_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To install it again as it is would not help."""
    (tmp_path / "broken_package.py").write_text("from json import this_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentProblem) as caught, needing("local", "a local model"):
        import broken_package  # type: ignore[import-not-found]  # noqa: F401
    assert "fails to import: cannot import name 'this_is_not_there'" in str(caught.value)
    assert "pip install" not in str(caught.value)


def test_a_module_of_our_own_that_is_missing_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"mmc\.not_there"), needing("local", "a local model"):
        import mmc.not_there  # type: ignore[import-not-found]  # noqa: F401
