"""How many runs of the program a search makes at least and at most."""

from __future__ import annotations

from mmc.search.base import SearchConfig
from mmc.search.halving import rounds
from mmc.spec.searches import BootstrapSearch, GepaSearch, HalvingSearch, MiproSearch


def search_cost(config: SearchConfig, train: int, dev: int) -> tuple[int, int]:
    """(fewest, most) runs on ``train`` and ``dev`` examples. A budget may end a search earlier."""
    looking = 2 * min(config.bootstrap, train) if config.demos else 1
    match config:
        case HalvingSearch():
            met, most = 0, 0
            for count, end in rounds(config.trials, config.examples, dev):
                most, met = most + (count + 1) * (end - met), end
            return 1, looking + most
        case BootstrapSearch():
            return 1, looking + (1 + config.trials) * min(config.examples, dev)
        case MiproSearch():
            whole = min(config.examples, dev)
            leaders = -(-config.trials // config.full_every)
            return 1, looking + whole * (1 + leaders) + config.trials * min(config.minibatch, whole)
        case GepaSearch():
            # The library finishes the iteration it is in.
            return 1, looking + config.runs + min(config.examples, dev) + 2 * config.minibatch
