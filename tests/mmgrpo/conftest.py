"""Fixtures of the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmc.engine.local import LocalEngine

from .lab import open_engine


@pytest.fixture
def engine(tiny_model_dir: Path) -> LocalEngine:
    """The tiny model in an engine of its own."""
    return open_engine(tiny_model_dir)
