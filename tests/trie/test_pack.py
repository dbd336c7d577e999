from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmc.trie.pack import pack, split_by_budget

sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=25)


@given(sequences)
def test_a_forest_has_one_node_for_each_distinct_prefix(rows: list[list[int]]) -> None:
    prefixes = {tuple(row[: d + 1]) for row in rows for d in range(len(row))}
    assert len(pack(rows)) == len(prefixes)


@given(sequences)
def test_the_ancestors_of_a_token_are_its_sequence_up_to_it(rows: list[list[int]]) -> None:
    forest = pack(rows)
    nodes = np.arange(len(forest))
    for s, row in enumerate(rows):
        for d in range(len(row)):
            node = forest.index_SL[s, d]
            ancestors = nodes[(nodes <= node) & (node < forest.ends_N)]
            assert forest.tokens_N[ancestors].tolist() == row[: d + 1]
            assert forest.positions_N[node] == d


@given(sequences, st.integers(1, 40))
def test_a_split_keeps_every_sequence_once_and_within_the_budget(rows: list[list[int]], budget: int) -> None:
    groups = split_by_budget(rows, budget)
    assert sorted(s for group in groups for s in group) == list(range(len(rows)))
    for group in groups:
        assert len(group) == 1 or len(pack([rows[s] for s in group])) <= budget


@pytest.mark.parametrize("rows", [[], [[]], [[1], []]])
def test_nothing_to_pack_is_an_error(rows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        pack(rows)
