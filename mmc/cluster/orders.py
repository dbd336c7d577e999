"""What goes from the driver to a worker, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmc.data import Example
from mmc.errors import MmcError
from mmc.program.run import RunSettings
from mmc.prompt import Template
from mmc.spec.load import LoadedSpec

if TYPE_CHECKING:
    from mmc.mmgrpo.imitate import Sentence
    from mmc.mmgrpo.update import TrainingCall, UpdateReport
    from mmc.spec.model import Tuning

Files = Mapping[str, bytes]
"""A folder: name of a file -> what it holds."""


class PeersLost(MmcError):
    """A sum over the workers failed: one of them died, or did not answer in time."""


@dataclass(frozen=True)
class Setup:
    """What every worker opens when it starts."""

    loaded: LoadedSpec
    trust: bool
    workers: int
    """How many share the limits of what is asked over a network."""


@dataclass(frozen=True)
class About:
    """A started worker: where it is, and what it runs on."""

    node: str
    pid: int
    mmc: str
    device: str
    threads: int


@dataclass(frozen=True)
class Pushed:
    """Something large in Ray's object store. A worker fetches it when it has another version under this name."""

    name: str
    version: str
    reference: tuple[Any, ...]
    """One reference; inside a tuple, so that Ray does not fetch it with the order."""
    size: int
    """Bytes."""
    model: str = ""
    """Of an adapter: the model it belongs to."""


@dataclass(frozen=True)
class Plan:
    """What a training changes: the arguments of :func:`mmc.mmgrpo.policy.make_policy`, adapters to go on from as files."""

    config: Tuning
    label: str
    seed: int
    initial: Mapping[str, str]
    """Module -> a key of ``folders``."""
    folders: Mapping[str, Files]


@dataclass(frozen=True)
class LearnerState:
    """All that a training's next step depends on."""

    adapters: Mapping[str, Files]
    optimizer: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.optimizer) + sum(len(one) for files in self.adapters.values() for one in files.values())


@dataclass(frozen=True)
class Place:
    """Where a training stands: what it changes, and the state of that (None: as it is made)."""

    plan: Pushed
    state: Pushed | None


@dataclass(frozen=True)
class RunOrder:
    """Runs of the program on some examples."""

    knobs: Mapping[str, Any]
    """Key of the spec -> value that a search has set there."""
    templates: Mapping[str, Template]
    adapters: Mapping[str, str | None]
    """Module -> name of its adapter."""
    pushed: Sequence[Pushed]
    """Finished adapters among them."""
    place: Place | None
    """The training whose adapters are among them."""
    examples: Sequence[Example]
    settings: RunSettings
    rollouts: int
    keep: bool
    """Whether what prompts have in common stays computed for the next order."""


@dataclass(frozen=True)
class Meeting:
    """Where the workers meet for sums. ``token`` names it."""

    token: str
    address: str
    port: int
    size: int
    timeout: float


@dataclass(frozen=True)
class UpdateOrder:
    """One worker's part of a step."""

    place: Place
    becomes: str
    """The version of the state after it."""
    meeting: Meeting | None
    """None for a single worker."""
    rank: int
    rate: tuple[float, float]
    """As in :meth:`mmc.mmgrpo.policy.Learner.set_rate`."""
    calls: Sequence[TrainingCall] | Sequence[Sentence]
    config: Tuning
    seed: int


@dataclass(frozen=True)
class Updated:
    """What a worker's part gave."""

    report: UpdateReport
    digest: str
    """Of the trained tensors after the step."""
    state: LearnerState | None
    """From the first worker."""
    seconds: Mapping[str, float]
    """Of the gradient, of the sums over the workers (waiting included), of packing up the state."""
