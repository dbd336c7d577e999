from __future__ import annotations

import random
from math import sqrt
from statistics import fmean

import pytest

from mmc.search.verdict import LEVEL, judge, sign_flip


def test_scores_of_zero_and_one_get_the_exact_chance() -> None:
    assert sign_flip([1.0] * 5 + [0.0] * 20) == 1 / 32
    assert sign_flip([1.0] * 9 + [-1.0]) == 11 / 1024
    assert sign_flip([-1.0] * 5) == 1.0
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([1.0] * 3000) == 0.0


def test_other_scores_get_nearly_the_exact_chance() -> None:
    assert sign_flip([0.5, 0.25, 0.125, 1.0]) == pytest.approx(1 / 16, abs=0.006)
    draw = random.Random(0)
    near = [draw.choice([-1, 1, 1]) * (1 + draw.random() * 1e-6) for _ in range(40)]
    assert sign_flip(near) == pytest.approx(sign_flip([round(d) for d in near]), abs=0.1)
    assert sign_flip(near) == sign_flip(near)


def test_the_more_candidates_were_tried_the_more_it_takes() -> None:
    start, finalist = [0.0] * 30, [1.0] * 6 + [0.0] * 24
    assert judge(start, finalist, 1).better
    assert judge(start, finalist, 3).better
    assert not judge(start, finalist, 4).better
    verdict = judge(start, finalist, 4)
    assert verdict.p == 1 / 64 and verdict.level == LEVEL / 4 and verdict.difference.mean == pytest.approx(0.2)


def test_a_worse_or_equal_finalist_is_never_better() -> None:
    assert not judge([1.0] * 30, [0.0] * 30, 1).better
    assert not judge([1.0, 0.0], [1.0, 0.0], 1).better


@pytest.mark.parametrize("graded", [False, True])
def test_the_best_of_many_equals_is_seldom_taken_for_better(graded: bool) -> None:
    """Chosen and judged on the same examples: the hardest case, as when dev is used up in the first round."""
    draw, wrong, naive, searches, tried = random.Random(1), 0, 0, 150 if graded else 200, 12
    for _ in range(searches):
        difficulty = [draw.random() for _ in range(64)]

        def scores(difficulty: list[float] = difficulty) -> list[float]:
            if graded:
                return [min(1.0, max(0.0, d + draw.uniform(-0.3, 0.3))) for d in difficulty]
            return [float(draw.random() < d) for d in difficulty]

        start = scores()
        best = max((scores() for _ in range(tried)), key=fmean)
        wrong += judge(start, best, tried).better
        naive += judge(start, best, 1).better
    assert naive > 0.2 * searches, "a test without the correction would be fooled"
    assert wrong <= LEVEL * searches + 2 * sqrt(LEVEL * (1 - LEVEL) * searches)
