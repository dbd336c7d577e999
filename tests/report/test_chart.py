"""Scales and curves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmc.report.chart import chart, charts_of, scale_of, smoothed

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.integers(2, 6))
def test_a_scale_holds_its_values_between_round_ticks(values: list[float], most: int) -> None:
    scale = scale_of(values, most)
    least = 1e-5 * (max(values) - min(values))
    assert scale.low <= min(values) + least and scale.high >= max(values) - least
    assert 2 <= len(scale.ticks) <= most + 2 and list(scale.ticks) == sorted(set(scale.ticks))
    assert all(0 <= scale.at(value) <= 100 for value in [*values, 1e12, -1e12])


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.12, 0.47], (0.1, 0.2, 0.3, 0.4, 0.5)),
        ([0.0, 1.0], (0.0, 0.5, 1.0)),
        ([-0.05, 0.12], (-0.05, 0.0, 0.05, 0.1, 0.15)),
        ([3.0], (2.0, 3.0, 4.0)),
        ([], (0.0, 0.5, 1.0)),
    ],
)
def test_ticks_are_what_a_person_would_choose(values: list[float], ticks: tuple[float, ...]) -> None:
    scale = scale_of(values)
    assert set(ticks) <= set(scale.ticks) or scale.ticks == ticks, scale


def test_the_bold_line_is_a_mean_of_five() -> None:
    points = [(float(i), float(i)) for i in range(1, 8)]
    assert [y for _, y in smoothed(points)] == [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0]


def test_a_chart_places_the_first_step_left_and_the_highest_value_up() -> None:
    made = chart("Reward", "x", {"": [(1.0, 0.0), (2.0, 1.0)]})
    assert made.series[0].raw == "0.00,100.00 100.00,0.00"
    assert made.told == "Reward over steps 1 to 2: Reward from 0 to 0.5"


def test_measures_that_are_nowhere_or_always_zero_are_left_out() -> None:
    rows = [
        {"step": i, "reward": 0.1 * i, "kl": 0.0, "dev": None if i == 1 else 0.5, "modules": {"a": {"reward": 1.0}}}
        for i in (1, 2)
    ]
    assert [made.title for made in charts_of(rows)] == ["Reward", "Dev"]
    both = [{**row, "modules": {n: {"reward": 1.0, "spread": 0.0, "tokens": 2.0} for n in "ab"}} for row in rows]
    titles = [made.title for made in charts_of(both)]
    assert titles == ["Reward", "Reward by module", "Dev", "Spread by module", "Length by module"]
    assert [s.name for s in charts_of(both)[1].series] == ["a", "b"]
