"""What every prompt search is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mmc.data import Example
from mmc.engine.base import Engine, distinct
from mmc.metric import Interval, interval
from mmc.program.graph import Program
from mmc.program.usage import ByModule
from mmc.prompt import Template
from mmc.spec.searches import BootstrapSearch, GepaSearch, HalvingSearch, MiproSearch

SearchConfig = HalvingSearch | BootstrapSearch | MiproSearch | GepaSearch
"""A block of ``compile.prompts``."""


@dataclass(frozen=True)
class TrialReport:
    """One evaluation that has just finished (those read from the journal are not reported again)."""

    trial: int
    """Which evaluation this is, from 1; 0 for the runs that look for demonstrations."""
    trials: int
    """How many evaluations the whole search makes."""
    round: int
    """From 1; 0 for the runs that look for demonstrations, whose score is on training examples."""
    score: Interval
    """Over all dev examples this candidate has met."""
    what: str
    """The candidate in words."""
    seconds: float


@dataclass(frozen=True)
class Trial:
    """One candidate and how it did. Number 0 is the start."""

    number: int
    what: str
    rounds: int
    """Rounds it took part in; 0 when it was rejected."""
    scores: tuple[float, ...]
    """On the dev examples it met, in the search's order."""
    tokens: float
    """Mean prompt tokens a run; characters of its templates where the engine does not count tokens."""
    rejected: str = ""
    """Why it was never run."""

    @property
    def score(self) -> Interval | None:
        """The mean score with its interval; None when it was rejected."""
        return interval(self.scores) if self.scores else None


@dataclass(frozen=True)
class SearchJob:
    """What to search, on what, and where the journal is kept; a search resumes from its journal.

    Demonstrations come from ``train`` alone, and from none of its examples whose inputs stand in ``dev`` or ``held_out`` too;
    choices are made on ``dev``.
    """

    program: Program
    engines: Mapping[str, Engine]
    train: Sequence[Example]
    dev: Sequence[Example]
    config: SearchConfig
    seed: int
    folder: Path
    held_out: Sequence[Example] = ()
    """Examples that scores are reported on."""
    on_trial: Callable[[TrialReport], None] = lambda report: None
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class SearchResult:
    """The program to go on with (the start itself when nothing better was proved), and how it was found."""

    program: Program
    trials: tuple[Trial, ...]
    examples: tuple[str, ...]
    """Ids of the dev examples that the scores below are on, in order."""
    start_scores: tuple[float, ...]
    best_scores: tuple[float, ...]
    """Of ``program``."""
    difference: Interval
    """The finalist's mean gain over the start on these examples, whether or not it replaced the start."""
    replaced: bool
    note: str
    """The outcome in a sentence."""
    finalist: int | None = None
    """Number of the trial that was compared with the start at the end; None when there was none."""
    usage: ByModule | None = None
    """Of the whole search; None where a journal does not tell it by module."""


class Strategy(Protocol):
    """Finds a better program by putting other text into the slots of its templates."""

    def __call__(self, job: SearchJob) -> SearchResult:
        """Runs or resumes the search.

        Raises InvalidError when the journal in ``job.folder`` belongs to another search, UsageError when there are no
        dev examples.
        """
        ...


@contextmanager
def kept_beginnings(engines: Mapping[str, Engine]) -> Iterator[None]:
    """Candidates share what stands before the first slot that differs: within, engines keep it computed."""
    with ExitStack() as kept:
        for engine in distinct(engines):
            kept.enter_context(engine.keeping())
        yield


def all_templates(program: Program) -> dict[str, Template]:
    """Every template a search may choose, by the spec's key that names it."""
    found = {}
    for name, module in program.spec.modules.items():
        found[f"modules.{name}.template"] = program.templates[name]
        for i, path in enumerate(module.alternatives):
            found[f"modules.{name}.alternatives.{i}"] = Template.load(program.loaded.resolve(path))
    return found
