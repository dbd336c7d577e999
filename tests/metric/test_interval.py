from __future__ import annotations

import numpy as np
import pytest

from mmc.metric import interval, paired


def test_wilson_equals_its_published_values() -> None:
    """Wilson's interval for 7 of 20, computed by hand: (0.1812, 0.5671)."""
    found = interval([1.0] * 7 + [0.0] * 13)
    assert (round(found.low, 4), round(found.high, 4), found.n) == (0.1812, 0.5671, 20)
    assert found.mean == 0.35


def test_no_success_still_has_an_interval() -> None:
    found = interval([0.0] * 50)
    assert found.low == 0.0 and 0.05 < found.high < 0.1


def test_graded_scores_come_near_the_normal_interval() -> None:
    scores = np.random.default_rng(1).uniform(size=400)
    found = interval(scores.tolist())
    half = 1.96 * scores.std(ddof=1) / 20
    assert found.low == pytest.approx(scores.mean() - half, abs=0.004)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.004)
    assert interval(scores.tolist()) == found


def test_pairing_sees_what_unpaired_intervals_cannot() -> None:
    rng = np.random.default_rng(2)
    before = rng.uniform(0, 0.9, size=100)
    after = before + rng.uniform(0.0, 0.1, size=100)
    found = paired(before.tolist(), after.tolist())
    assert found.low > 0 and found.mean == pytest.approx((after - before).mean())
    assert interval(before.tolist()).high > interval(after.tolist()).low


def test_scores_of_other_examples_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="paired scores of 2 and 1"):
        paired([0.0, 1.0], [1.0])
    with pytest.raises(ValueError, match="no scores"):
        interval([])
