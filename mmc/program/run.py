"""Runs a program on examples. A bad run is data: whatever fails becomes the trajectory's ending."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from mmc.data import Example
from mmc.engine.base import Engine, distinct
from mmc.errors import EnvironmentProblem, ParseError, ProgramLimit, RunFailure, ToolError, UsageError
from mmc.program.call import complete, make_request, typed_inputs
from mmc.program.graph import Program
from mmc.program.judge import scored
from mmc.program.node import (
    CallNode,
    ForNode,
    IfNode,
    Node,
    ParallelNode,
    RepeatNode,
    ReturnNode,
    SetNode,
    ToolNode,
)
from mmc.program.trajectory import Call, Ending, ToolUse, Trajectory
from mmc.spec.types import coerce, parse_type

RUNS_A_SLOT = 2
"""Runs open at a time for each request that remote engines take at a time: some are busy between their calls."""


@dataclass(frozen=True)
class RunSettings:
    """What a run's draws depend on, beside the example and the rollout. Temperature 0 is greedy.

    With ``tree``, rollouts are the leaves of a tree: the branches at the first LM call, at the second, and so on. Runs
    draw the same as long as they take the same branches, and the trie computes what they share once.
    """

    stage: str
    step: int
    seed: int
    temperature: float
    score: bool = True
    tree: tuple[int, ...] = ()


@runtime_checkable
class RunsElsewhere(Protocol):
    """Engines that make whole runs in other processes."""

    def run_all(
        self,
        program: Program,
        examples: Sequence[Example],
        settings: RunSettings,
        rollouts: int,
        on_done: Callable[[Trajectory], Trajectory | None] | None,
    ) -> list[Trajectory]:
        """As the function :func:`run_all`."""
        ...


class _Returned(Exception):
    """A return step was reached."""

    def __init__(self, outputs: dict[str, Any]) -> None:
        self.outputs = outputs


@dataclass
class _Branch:
    """One line of control: its variables, what it did, and its place among the others."""

    variables: dict[str, Any]
    place: tuple[int, ...]
    clients: ExitStack
    calls: list[Call] = field(default_factory=list)
    tools: list[ToolUse] = field(default_factory=list)
    made: int = 0
    depth: int = 0
    """LM calls that came before in this line of control."""


class _Run:
    """One run of a program on one example."""

    def __init__(
        self, program: Program, engines: Mapping[str, Engine], example: Example, settings: RunSettings, rollout: int
    ) -> None:
        self.program, self.engines, self.example = program, engines, example
        self.settings, self.rollout = settings, rollout
        self.total = 0
        self.given_up: list[str] = []
        """What was being waited for, and how long, when the run was cancelled."""
        self.leaf = _digits(rollout, settings.tree)

    async def go(self) -> Trajectory:
        with ExitStack() as clients:
            branch = _Branch({}, (), clients)
            self._enter(clients)
            ending, error, outputs = await self._ended(branch)
            clients.close()
        reward, scores = 0.0, dict[str, float]()
        judged: tuple[Call, ...] = ()
        if ending == "done" and self.settings.score and self.program.metric is not None:
            try:
                score, judged = await scored(self.program, self.engines, outputs or {}, self.example.row)
                reward, scores = score.value, dict(score.parts)
            except (EnvironmentProblem, UsageError):
                raise
            except Exception as problem:  # a rollout: the metric is the user's code
                ending, error = "failed", f"the metric failed: {type(problem).__name__}: {problem}"
        return Trajectory(
            example_id=self.example.id,
            rollout=self.rollout,
            calls=_numbered(branch.calls),
            outputs=outputs,
            reward=reward,
            ending=ending,
            error=error,
            tools=tuple(branch.tools),
            scores=scores,
            judged=judged,
        )

    async def _ended(self, branch: _Branch) -> tuple[Ending, str | None, dict[str, Any] | None]:
        """Runs to the end: how it ended, why, and the outputs."""
        try:
            async with asyncio.timeout(self.program.spec.program.timeout):
                branch.variables.update(self._inputs())
                await self._steps(self.program.nodes, branch)
                return "done", None, {name: value(branch.variables) for name, value in self.program.results.items()}
        except _Returned as returned:
            return "done", None, returned.outputs
        except ParseError as error:
            cut = branch.calls and branch.calls[-1].completion.finish == "length"
            return ("cut" if cut else "unparsed"), str(error), None
        except ToolError as error:
            return "tool_failed", str(error), None
        except ProgramLimit as error:
            return "limit", str(error), None
        except TimeoutError as error:
            limit = self.program.spec.program.timeout
            waited = "".join(f"; {one}" for one in self.given_up)
            return "timeout", str(error) or f"not done after {limit:g} seconds (program.timeout){waited}", None
        except (EnvironmentProblem, UsageError):
            raise  # not this run's fault: no other run would fare better
        except Exception as error:  # a rollout: recorded, never lost
            return "failed", f"{error}" if isinstance(error, RunFailure) else f"{type(error).__name__}: {error}", None

    def _inputs(self) -> dict[str, Any]:
        found = {}
        for name, kind in self.program.spec.program.inputs.items():
            if name not in self.example.row:
                raise RunFailure(f"the example has no {name!r}")
            try:
                found[name] = coerce(self.example.row[name], parse_type(kind))
            except ValueError as error:
                raise RunFailure(f"input {name}: {error}") from None
        return found

    def _enter(self, clients: ExitStack) -> None:
        for engine in distinct(self.engines):
            clients.enter_context(engine.client())

    # --- steps ---

    async def _steps(self, nodes: Sequence[Node], branch: _Branch) -> None:
        for node in nodes:
            await self._step(node, branch)

    async def _step(self, node: Node, branch: _Branch) -> None:
        variables = branch.variables
        match node:
            case CallNode():
                variables[node.name] = await self._call(node, branch)
            case ToolNode():
                variables[node.name] = await self._tool(node, branch)
            case SetNode():
                variables.update({name: value(variables) for name, value in node.values.items()})
            case IfNode():
                await self._steps(node.then if _true(node.condition(variables)) else node.otherwise, branch)
            case RepeatNode():
                for _ in range(node.times):
                    await self._steps(node.body, branch)
                    if node.until is not None and _true(node.until(variables)):
                        break
            case ForNode():
                for item in _items(node.items(variables)):
                    variables[node.name] = item
                    await self._steps(node.body, branch)
            case ParallelNode():
                await self._parallel(node, branch)
            case ReturnNode():
                raise _Returned({name: value(variables) for name, value in node.values.items()})

    async def _call(self, node: CallNode, branch: _Branch) -> dict[str, Any]:
        self.total += 1
        if self.total > self.program.spec.program.max_calls:
            raise ProgramLimit(
                f"more than {self.program.spec.program.max_calls} LM calls in one run (program.max_calls)"
            )
        module, reader = self.program.spec.modules[node.module], self.program.readers[node.module]
        inputs = typed_inputs(module, node.module, {n: value(branch.variables) for n, value in node.inputs.items()})
        path = self.leaf[: branch.depth + 1]
        label: str | int = ".".join(map(str, path)) if self.settings.tree else self.rollout
        key = (self.settings.stage, self.settings.step, self.example.id, label, *branch.place, branch.made)
        request, options = make_request(
            self.program, node.module, inputs, key, self.settings.temperature, self.settings.seed
        )
        branches = branch.depth < len(self.settings.tree) and self.settings.tree[branch.depth] > 1
        branch.made += 1
        branch.depth += 1
        with self._waits_for(f"the module {node.module}"):
            completion = await complete(self.engines, module.model, request)
        call = Call(node.module, 0, inputs, request.messages, completion, None, path=path, branches=branches)
        try:
            outputs = reader.parse(completion.text, options)
        except ParseError as error:
            readable = len(error.partial) / len(module.outputs)
            branch.calls.append(replace(call, error=str(error), readable=readable))
            raise
        branch.calls.append(replace(call, outputs=outputs))
        return outputs

    async def _tool(self, node: ToolNode, branch: _Branch) -> Any:
        arguments = {name: value(branch.variables) for name, value in node.arguments.items()}
        try:
            with self._waits_for(f"the tool {node.tool}"):
                result = await self.program.tools[node.tool](arguments)
        except Exception as error:  # a tool call: the tool is the user's code
            reason = str(error) if isinstance(error, ToolError) else f"{type(error).__name__}: {error}"
            branch.tools.append(ToolUse(node.tool, arguments, None, reason))
            raise ToolError(f"the tool {node.tool} failed: {reason}") from error
        branch.tools.append(ToolUse(node.tool, arguments, result))
        return result

    @contextmanager
    def _waits_for(self, what: str) -> Iterator[None]:
        """Remembers what a run that is cancelled in here was waiting for."""
        start = time.monotonic()
        try:
            yield
        except asyncio.CancelledError:
            self.given_up.append(f"{what} had not answered for {time.monotonic() - start:.1f} s")
            raise

    async def _parallel(self, node: ParallelNode, branch: _Branch) -> None:
        """Branches run at once; what they set and did is merged in their order, the first failure is the run's."""
        before = dict(branch.variables)
        branches = []
        for i in range(len(node.branches)):
            one = _Branch(dict(before), (*branch.place, branch.made, i), ExitStack(), depth=branch.depth)
            self._enter(one.clients)
            branches.append(one)
        branch.made += 1
        branch.clients.close()
        try:
            work = (self._branch(nodes, one) for nodes, one in zip(node.branches, branches, strict=True))
            ends = await asyncio.gather(*work, return_exceptions=True)
        finally:
            self._enter(branch.clients)
            for one in branches:
                branch.calls += one.calls
                branch.tools += one.tools
                branch.depth = max(branch.depth, one.depth)
        for one in branches:
            changed = {k: v for k, v in one.variables.items() if k not in before or before[k] is not v}
            branch.variables.update(changed)
        failure = next((end for end in ends if isinstance(end, BaseException)), None)
        if failure is not None:
            raise failure

    async def _branch(self, nodes: Sequence[Node], branch: _Branch) -> None:
        with branch.clients:
            await self._steps(nodes, branch)


def _digits(number: int, widths: Sequence[int]) -> tuple[int, ...]:
    """``number`` in the mixed radix of ``widths``, the first digit the most significant."""
    digits = []
    for width in reversed(widths):
        number, digit = divmod(number, width)
        digits.append(digit)
    return tuple(reversed(digits))


def _true(value: Any) -> bool:
    """Truth of an expression's value; the texts of false are false."""
    return value.strip().lower() not in ("", "false", "no", "0", "none") if isinstance(value, str) else bool(value)


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise RunFailure(f"`for` needs a list, got {type(value).__name__}")
    return list(value)


def _numbered(calls: Sequence[Call]) -> tuple[Call, ...]:
    """The calls with their index among those of the same module."""
    counts: dict[str, int] = {}
    numbered = []
    for call in calls:
        index = counts.get(call.module, 0)
        counts[call.module] = index + 1
        numbered.append(replace(call, index=index))
    return tuple(numbered)


async def run(
    program: Program, engines: Mapping[str, Engine], example: Example, settings: RunSettings, rollout: int = 0
) -> Trajectory:
    """One run. Raises only what no other run could escape: EnvironmentProblem and UsageError."""
    return await _Run(program, engines, example, settings, rollout).go()


def run_all(
    program: Program,
    engines: Mapping[str, Engine],
    examples: Sequence[Example],
    settings: RunSettings,
    rollouts: int = 1,
    on_done: Callable[[Trajectory], Trajectory | None] | None = None,
) -> list[Trajectory]:
    """``rollouts`` runs of every example, at once as far as that serves the engines; example by example in the result.

    ``on_done`` hears of each run when it ends, and may give a shorter one to be kept in its place.
    """
    if isinstance(engines, RunsElsewhere):
        return engines.run_all(program, examples, settings, rollouts, on_done)
    jobs = [(example, rollout) for example in examples for rollout in range(rollouts)]
    found: list[Trajectory | None] = [None] * len(jobs)
    left = iter(enumerate(jobs))

    async def work() -> None:
        for place, (example, rollout) in left:
            trajectory = await run(program, engines, example, settings, rollout)
            found[place] = (on_done(trajectory) if on_done is not None else None) or trajectory

    async def everything() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(len(jobs), _width(engines) or len(jobs))):
                group.create_task(work())

    try:
        asyncio.run(everything())
    except BaseExceptionGroup as errors:
        # Only what no run could escape gets here; the first of them says it.
        problem: BaseException = errors
        while isinstance(problem, BaseExceptionGroup):
            problem = problem.exceptions[0]
        raise problem from None
    return [trajectory for trajectory in found if trajectory is not None]


def _width(engines: Mapping[str, Engine]) -> int | None:
    """How many runs to have open at a time; None where an engine forms its batches from all there are."""
    widths = [engine.width for engine in distinct(engines)]
    return None if None in widths else RUNS_A_SLOT * sum(width for width in widths if width is not None)
