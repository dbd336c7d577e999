"""One worker: a process with the spec's engines, which runs programs and trains as the driver says.

Ray runs its methods in threads, one order at a time and :meth:`Worker.where` beside it.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import mmc
from mmc.cluster.orders import About, Files, LearnerState, Place, Pushed, RunOrder, Setup, Updated, UpdateOrder
from mmc.engine import open_engines
from mmc.engine.base import Message, distinct, seed_of
from mmc.errors import EnvironmentProblem, needing
from mmc.program.graph import Program
from mmc.program.run import run_all
from mmc.program.trajectory import Trajectory
from mmc.spec.load import LoadedSpec
from mmc.spec.model import Distill

if TYPE_CHECKING:
    from mmc.mmgrpo.policy import Policy


class Worker:
    """A Ray actor. ``limit``: seconds that a fetch may take."""

    def __init__(self, number: int, cpus: int, gpus: int, limit: float) -> None:
        self.number, self._cpus, self._limit = number, cpus, limit
        self._doing, self._since = "starting", time.monotonic()
        self._turn = threading.Lock()
        """Held by the order that is being done: engines serve one."""
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["OMP_NUM_THREADS"] = str(cpus)
        self._have: dict[str, str] = {}
        """What was pushed here -> its version."""
        self._policy: Policy | None = None
        self._state = ""
        """Version of the policy's tensors and optimizer; empty while a step changes them."""
        self._keeping = ExitStack()
        self._kept = False

    def where(self) -> tuple[str, float]:
        """What it is doing, and for how many seconds."""
        return self._doing, time.monotonic() - self._since

    def _does(self, what: str) -> None:
        self._doing, self._since = what, time.monotonic()

    def start(self, setup: Setup) -> About:
        """Opens the engines. Raises what opening them and building the program raise."""
        self._setup, loaded = setup, _shared(setup.loaded, setup.workers)
        self._does("opening the models")
        threads = self._threads(loaded)
        self.program, self._knobs = Program.build(loaded, setup.trust), dict[str, Any]()
        self.engines = open_engines(loaded)
        self._does("nothing")
        return About(node_address(), os.getpid(), mmc.__version__, _device(), threads)

    def _threads(self, loaded: LoadedSpec) -> int:
        """Lets torch compute with the cores of this worker; how many threads that is."""
        if not any(model.type == "local" for model in loaded.spec.models.values()):
            return 1
        with needing("local", "a local model"):
            import torch
        torch.set_num_threads(self._cpus)
        return torch.get_num_threads()

    def count_tokens(self, model: str, messages: Sequence[Message]) -> int:
        """As an engine's method."""
        return self.engines[model].count_tokens(messages)

    # --- runs ---

    def run(self, order: RunOrder) -> Iterator[Trajectory]:
        """The runs of an order, each when it ends."""
        found: SimpleQueue[Trajectory | BaseException | None] = SimpleQueue()
        threading.Thread(target=self._run, args=(order, found), daemon=True).start()
        while (one := found.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one
        self._does("nothing")

    def _run(self, order: RunOrder, found: SimpleQueue[Trajectory | BaseException | None]) -> None:
        total, done = len(order.examples) * order.rollouts, 0

        def on_done(trajectory: Trajectory) -> None:
            nonlocal done
            done += 1
            self._does(f"running the program, {done} of {total} runs done")
            found.put(trajectory)

        try:
            with self._turn:
                program = self._prepared(order)
                self._does(f"running the program, 0 of {total} runs done")
                run_all(program, self.engines, order.examples, order.settings, order.rollouts, on_done)
            found.put(None)
        except BaseException as error:  # handed to whoever waits for the runs
            found.put(error)

    def _prepared(self, order: RunOrder) -> Program:
        """The order's program, once its adapters are here."""
        fresh = [one for one in order.pushed if self._have.get(one.name) != one.version]
        if fresh or not order.keep or (order.place is not None and not self._stands(order.place)):
            self._keeping.close()
            self._kept = False
        for one in fresh:
            self._load(one)
        if order.place is not None:
            self._at(order.place)
        if order.keep and not self._kept:
            for engine in distinct(self.engines):
                self._keeping.enter_context(engine.keeping())
            self._kept = True
        if self._knobs != order.knobs:
            turned = _shared(self._setup.loaded.with_values(order.knobs), self._setup.workers)
            self.program, self._knobs = Program.build(turned, self._setup.trust), dict(order.knobs)
        return self.program.with_templates(order.templates).with_adapters(order.adapters)

    def _load(self, pushed: Pushed) -> None:
        """A finished adapter, under its name."""
        engine: Any = self.engines[pushed.model]
        with tempfile.TemporaryDirectory(prefix="mmc-adapter-") as folder:
            engine.adapters.load(pushed.name, _written(self._fetched(pushed), Path(folder)))
        self._have[pushed.name] = pushed.version

    def _fetched(self, pushed: Pushed) -> Any:
        """What was pushed. Raises EnvironmentProblem when it does not come in time."""
        import ray

        what = f"{pushed.name} ({pushed.size / 1e6:.3g} MB)"
        self._does(f"fetching {what}")
        try:
            return ray.get(pushed.reference[0], timeout=self._limit)
        except ray.exceptions.GetTimeoutError:
            place = f"worker {self.number} on {node_address()}"
            raise EnvironmentProblem(
                f"{place} could not fetch {what} from Ray's object store within {self._limit:g} s (cluster.timeout)"
            ) from None

    # --- training ---

    def begin(self, place: Place) -> tuple[dict[str, str], LearnerState]:
        """Module -> adapter of what a training changes, and its state. Raises UsageError when nothing can be trained."""
        with self._turn:
            policy = self._at(place)
            return dict(policy.names), self._packed(policy)

    def training_tokens(self, place: Place, workers: int) -> int:
        """As a policy's method; ``workers`` share the memory."""
        with self._turn:
            return self._at(place).training_tokens(workers)

    def host(self, size: int, timeout: float) -> tuple[str, int]:
        """Opens the place where the workers meet; address and port."""
        address = node_address()
        return address, self._collective.host(address, size, timeout)

    def update(self, order: UpdateOrder) -> Updated:
        """Its part of a step; all workers end with the same tensors. Raises PeersLost when another one is gone."""
        with self._turn:
            return self._update(order)

    def _update(self, order: UpdateOrder) -> Updated:
        from mmc.mmgrpo.update import UpdateReport, alone

        policy = self._at(order.place)
        reduce, collective = alone, self._collective
        if order.meeting is not None:
            collective.join(order.meeting, order.rank, node_address(), policy.engine.lm.device)
            reduce = collective.sum
        self._state = ""
        for name in policy.adapters:  # also where none of the calls are its own, the sums go into it
            with policy.engine.adapters.active(name, train=True):
                pass
        policy.set_rate(*order.rate)
        self._does(f"the gradient of {len(order.calls)} calls")
        waited, began = collective.seconds, time.perf_counter()
        seed = seed_of(order.seed, order.rank) if order.rank else order.seed
        arguments: Any = (order.calls, order.config, seed, reduce)
        if isinstance(order.config, Distill):
            loss, norm = policy.imitate(*arguments)
            report = UpdateReport(loss=loss, grad_norm=norm)
        else:
            report = policy.update(*arguments)
        self._state = order.becomes
        computed, sums = time.perf_counter() - began, collective.seconds - waited
        state = self._packed(policy) if order.rank == 0 else None
        packing = time.perf_counter() - began - computed
        self._does("nothing")
        seconds = {"gradient": computed - sums, "sums": sums, "state": packing}
        return Updated(report, _digest(policy), state, seconds)

    @property
    def _collective(self) -> Any:
        """Made when it is first asked for: it loads torch."""
        if not hasattr(self, "_sums"):
            from mmc.cluster.collective import Collective

            self._sums = Collective(self._does)
        return self._sums

    def _stands(self, place: Place) -> bool:
        """Whether the policy is there, as it was pushed."""
        state = place.state.version if place.state is not None else ""
        return self._have.get(place.plan.name) == place.plan.version and self._state == state

    def _at(self, place: Place) -> Policy:
        """The policy, as it was pushed."""
        if self._have.get(place.plan.name) != place.plan.version:
            self._make(place.plan)
        assert self._policy is not None
        if place.state is not None and self._state != place.state.version:
            state: LearnerState = self._fetched(place.state)
            self._state = ""
            with tempfile.TemporaryDirectory(prefix="mmc-state-") as folder:
                for name, files in state.adapters.items():
                    _written(files, Path(folder) / name)
                (Path(folder) / "optimizer.pt").write_bytes(state.optimizer)
                self._policy.load(Path(folder))
                self._policy.load_optimizer(Path(folder) / "optimizer.pt")
            self._state = place.state.version
        return self._policy

    def _make(self, pushed: Pushed) -> None:
        from mmc.mmgrpo.policy import make_policy

        plan = self._fetched(pushed)
        self._does("making the adapters")
        self._have.pop(pushed.name, None)
        with tempfile.TemporaryDirectory(prefix="mmc-initial-") as folder:
            for key, files in plan.folders.items():
                _written(files, Path(folder) / key)
            initial = {module: Path(folder) / key for module, key in plan.initial.items()}
            self._policy = make_policy(self.program, self.engines, plan.config, plan.label, plan.seed, initial)
        self._have[pushed.name], self._state = pushed.version, ""

    def _packed(self, policy: Policy) -> LearnerState:
        """The tensors and the optimizer, as files."""
        import torch

        self._does("packing up the weights")
        with tempfile.TemporaryDirectory(prefix="mmc-state-") as folder:
            policy.save(Path(folder) / "adapters")
            adapters = {one.name: read_files(one) for one in sorted((Path(folder) / "adapters").iterdir())}
        optimizer = io.BytesIO()
        torch.save(policy.optimizer.state_dict(), optimizer)
        return LearnerState(adapters, optimizer.getvalue())


def node_address() -> str:
    """The address that the cluster knows this machine under."""
    import ray

    return str(ray.util.get_node_ip_address())


def read_files(folder: Path) -> Files:
    """The files of a folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def _written(files: Files, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def _shared(loaded: LoadedSpec, workers: int) -> LoadedSpec:
    """The spec with this worker's part of every limit on requests at a time."""

    def part(blocks: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, block in blocks.items():
            most = getattr(block, "concurrency", None)
            own = {} if most is None else {"concurrency": max(1, most // workers)}
            found[name] = block.model_copy(update=own)
        return found

    spec = loaded.spec
    return replace(loaded, spec=spec.model_copy(update={"models": part(spec.models), "tools": part(spec.tools)}))


def _device() -> str:
    import sys

    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else "CPU"


def _digest(policy: Policy) -> str:
    import torch

    found = hashlib.blake2b(digest_size=16)
    for name in policy.adapters:
        for tensor in policy.engine.adapters.parameters(name).values():
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
