"""The workers as the driver sees them. Nothing here waits for ever: who gives no result for ``timeout`` seconds is named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

import mmc
from mmc.cluster.orders import About, Meeting, PeersLost, Pushed, Setup
from mmc.cluster.worker import Worker, node_address
from mmc.errors import EnvironmentProblem, InvalidError, MmcError

MOST_LOST = 3
"""How many times in a row workers may die in one piece of work."""
GRACE_S = 15.0
"""How long the others may take to notice that one has died before they are taken for stuck and replaced, too."""
HOW = 300
"""Most characters of how a worker died."""
ANSWER_S = 5.0
"""How long a worker may take to say what it is doing."""


class Lost(Exception):
    """Workers died, or are stuck waiting for such. ``numbers``: worker -> how."""

    def __init__(self, numbers: Mapping[int, str]) -> None:
        super().__init__(", ".join(map(str, numbers)))
        self.numbers = dict(numbers)


@dataclass(frozen=True)
class Size:
    """How many workers, and what each asks of the cluster."""

    workers: int
    cpus: int
    gpus: int
    timeout: float


@dataclass(eq=False)
class Member:
    """One worker: the actor, and what it said of itself when it started."""

    number: int
    actor: Any
    about: About | None = None

    def __str__(self) -> str:
        place = f" (process {self.about.pid} on {self.about.node})" if self.about is not None else ""
        return f"worker {self.number}{place}"


class Pool:
    """Started workers. Raises EnvironmentProblem, and what opening the engines raises. ``say`` hears of replacements."""

    def __init__(self, size: Size, setup: Setup, say: Callable[[str], None]) -> None:
        self.size, self._say = size, say
        self._setup = ray.put(setup)
        self._meeting: Meeting | None = None
        self._tokens = count(1)
        self.members = [Member(number, self._actor(number)) for number in range(size.workers)]
        try:
            self._start(range(size.workers))
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.members)

    def close(self) -> None:
        """Ends all workers, also those that do not answer."""
        for member in self.members:
            self._end(member)

    def neighbours(self, number: int) -> int:
        """How many workers share the memory that this one computes in: those of its machine, unless it has a GPU."""
        abouts = [member.about for member in self.members]
        mine = abouts[number]
        crowd = [one for one in abouts if one is not None and mine is not None and one.node == mine.node]
        return len(crowd) if self.size.gpus == 0 else 1

    def push(self, name: str, version: str, value: Any, size: int, model: str = "") -> Pushed:
        """Puts something into Ray's object store, for workers to fetch."""
        return Pushed(name, version, (ray.put(value),), size, model)

    # --- asking ---

    def ask(self, number: int, method: str, *arguments: Any, what: str) -> Any:
        """What one worker answers; asked again when it dies. ``what`` is being done, for messages."""
        for _ in self.attempts(what):
            try:
                return self.gather({number: arguments}, method, what)[number]
            except Lost as lost:
                self.replace(lost)
        raise AssertionError  # the last attempt raises

    def gather(self, arguments: Mapping[int, Sequence[Any]], method: str, what: str) -> dict[int, Any]:
        """What several workers answer to one method: worker -> answer.

        Raises Lost when one dies, what a worker raises, and EnvironmentProblem when one does not answer in time.
        """
        calls = {n: getattr(self.members[n].actor, method).remote(*given) for n, given in arguments.items()}
        waiting = {reference: number for number, reference in calls.items()}
        done: dict[int, Any] = {}
        lost: dict[int, str] = {}
        failed: dict[int, str] = {}
        deadline = time.monotonic() + self.size.timeout
        while waiting and time.monotonic() < deadline:
            ready, _ = ray.wait(list(waiting), timeout=min(1.0, deadline - time.monotonic()))
            for reference in ready:
                number = waiting.pop(reference)
                try:
                    done[number] = ray.get(reference)
                except RayActorError as error:
                    lost[number] = _how(error)
                except RayTaskError as error:
                    if not isinstance(error.cause, PeersLost):
                        raise _meant(error) from None
                    failed[number] = str(error.cause)
            if lost or failed:
                deadline = min(deadline, time.monotonic() + GRACE_S) if ready else deadline
        if lost:
            stuck = "it was waiting for one that died"
            raise Lost({**lost, **dict.fromkeys(waiting.values(), stuck)})
        if waiting:
            raise self.hang(list(waiting.values()), what, failed)
        if failed:
            said = "; ".join(f"{self.members[number]}: {text}" for number, text in failed.items())
            raise EnvironmentProblem(f"{what}: no worker died, but the workers cannot reach each other: {said}")
        return done

    def stream(self, orders: Mapping[int, Any], what: str) -> Iterator[Any]:
        """The runs that workers give, as they come. Raises as :meth:`gather`, Lost once the other workers are done."""
        streams = {
            self.members[n].actor.run.options(num_returns="streaming").remote(order): n for n, order in orders.items()
        }
        last = dict.fromkeys(orders, time.monotonic())
        lost: dict[int, str] = {}
        while streams:
            ready, _ = ray.wait(list(streams), timeout=1.0)
            for stream in ready:
                number = streams[stream]
                last[number] = time.monotonic()
                try:
                    yield ray.get(next(stream))
                except StopIteration:
                    del streams[stream]
                except RayActorError as error:
                    lost[number] = _how(error)
                    del streams[stream]
                except RayTaskError as error:
                    raise _meant(error) from None
            now = time.monotonic()
            if late := [n for n in streams.values() if now - last[n] > self.size.timeout]:
                raise self.hang(late, what)
        if lost:
            raise Lost(lost)

    def hang(self, late: Sequence[int], what: str, failed: Mapping[int, str] = {}) -> EnvironmentProblem:
        """The problem that workers gave no result in time; every worker is asked what it is doing."""
        asked = {member.actor.where.remote(): member for member in self.members}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
        lines = []
        for reference, member in asked.items():
            said = (
                f"did not say within {ANSWER_S:g} s what it is doing: its process or machine is stopped or out of reach"
            )
            if member.about is None:
                said = f"has not started; {_room(self.size)}"
            elif reference in answered:
                with suppress(RayActorError, RayTaskError):
                    doing, seconds = ray.get(reference)
                    said = f"has been busy with {doing} for {seconds:.1f} s"
            end = "" if member.number not in failed else f" ({failed[member.number]})"
            lines.append(f"  - {member} {said}{end}")
        who = ", ".join(str(self.members[number]) for number in late)
        limit = f"{self.size.timeout:g} s (cluster.timeout)"
        return EnvironmentProblem("\n".join([f"{what}: no result within {limit} from {who}", *lines]))

    # --- those that die ---

    def attempts(self, what: str) -> Iterator[int]:
        """Counts attempts at a piece of work; the one after too many raises EnvironmentProblem with how the last ended."""
        self._deaths: dict[int, str] = {}
        yield from range(1 + MOST_LOST)
        died = "; ".join(f"worker {number}: {how}" for number, how in self._deaths.items())
        raise EnvironmentProblem(f"{what}: given up after workers died {1 + MOST_LOST} times, at last {died}")

    def replace(self, lost: Lost) -> None:
        """Fresh workers in the place of those that are gone."""
        self._deaths = lost.numbers
        self._meeting = None
        for number, how in lost.numbers.items():
            member = self.members[number]
            self._say(f"{member} is gone and will be replaced: {how}")
            self._end(member)
            self.members[number] = Member(number, self._actor(number))
        self._start(lost.numbers)

    def _actor(self, number: int) -> Any:
        size = self.size
        asked = {"num_cpus": size.cpus, "num_gpus": size.gpus, "max_concurrency": 2, "max_restarts": 0}
        return ray.remote(Worker).options(**asked).remote(number, size.cpus, size.gpus, size.timeout)

    def _start(self, numbers: Sequence[int] | Mapping[int, str] | range) -> None:
        what = "starting the workers"
        try:
            abouts = self.gather(dict.fromkeys(numbers, (self._setup,)), "start", what)
        except Lost as lost:
            died = "; ".join(f"worker {number}: {how}" for number, how in lost.numbers.items())
            raise EnvironmentProblem(f"{what}: {died}") from None
        for number, about in abouts.items():
            self.members[number].about = about
            if about.mmc != mmc.__version__:
                raise EnvironmentProblem(
                    f"{self.members[number]} has mmc {about.mmc}, this process {mmc.__version__}; install the same"
                )

    def _end(self, member: Member) -> None:
        with suppress(RayActorError, ValueError):
            ray.kill(member.actor)
        about = member.about
        if about is not None and about.node == node_address():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(about.pid, signal.SIGKILL)  # one that is stopped does not hear Ray

    # --- sums ---

    def meeting(self) -> Meeting | None:
        """Where the workers meet; a new place after one has died. None for a single worker. Raises Lost."""
        if self._meeting is None and len(self) > 1:
            arguments = (len(self), self.size.timeout)
            address, port = self.gather({0: arguments}, "host", "opening a place to meet")[0]
            self._meeting = Meeting(f"meeting-{next(self._tokens)}", address, port, len(self), self.size.timeout)
        return self._meeting


def _how(error: RayActorError) -> str:
    """How a worker died, on one short line, without Ray's advice."""
    text = " ".join(str(error).split()).partition("Some common causes include")[0]
    text = text.rpartition("Worker exit detail: ")[2].strip() or text
    memory = "Ray ended it because the machine's memory ran out. " * ("low on memory" in text or "OOM" in text)
    return memory + (text if len(text) <= HOW else f"{text[:HOW]} ...")


def _meant(error: RayTaskError) -> Exception:
    """What a worker raised, when it was raised on purpose; else Ray's error, which holds the worker's traceback.

    What a machine lacks names the machine: the driver has found nothing wrong with the same spec.
    """
    if isinstance(error.cause, InvalidError | EnvironmentProblem):
        return EnvironmentProblem(f"a worker on {error.ip} (process {error.pid}) cannot work: {error.cause}")
    return error.cause if isinstance(error.cause, MmcError) else error


def _room(size: Size) -> str:
    free = ray.available_resources()
    there = ", ".join(f"{free.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
    return f"free in the cluster are {there}, and a worker asks for {size.cpus} CPU and {size.gpus} GPU"
