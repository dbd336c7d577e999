"""A local model whose completions vLLM servers draw: for rollouts on many GPUs, or wherever servers are faster than this process.

Tokens and their log-probabilities come back, so nothing is tokenized again; they are not ``exact``, and training corrects for
the difference. An adapter is written to a folder and loaded by every server when it has changed since it was last used. What
is constrained is drawn in this process: what a constraint forces has one way to be written in tokens here, which servers
do not keep to.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from mmc.engine.base import Completion, Request, Watch
from mmc.engine.http import ApiError, Http
from mmc.engine.local import LocalEngine
from mmc.engine.remote import Api, RemoteCalls, Unusable, api_seed, status_mends
from mmc.errors import EnvironmentProblem, MmcError, RunFailure, UsageError
from mmc.spec.env import expand
from mmc.spec.model import VllmSampler

START_S = 600
"""Seconds that a server may take to start."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
PROCESSED = "--logprobs-mode processed_logprobs"
NEEDED = (
    "--enable-lora",
    "--logprobs-mode",
    "processed_logprobs",
    "--generation-config",
    "vllm",
)


class VllmEngine(LocalEngine):
    """A :class:`LocalEngine` that trains and encodes here, and draws at vLLM servers.

    Raises EnvironmentProblem when a server cannot be started or reached, or runs without an option that it needs.
    """

    def __init__(
        self, model: Any, tokenizer: Any, batch_tokens: int | None, base_name: str, config: VllmSampler, folder: Path
    ) -> None:
        super().__init__(model, tokenizer, batch_tokens, base_name)
        self._own = _Server.start(config, folder) if config.start is not None else None
        servers = [self._own.address] if self._own is not None else [expand(one) for one in config.servers]
        self._servers = _Servers(servers, config, self)
        api = Api(
            name=f"vLLM at {', '.join(servers)}",
            attempt=self._servers.draw,
            errors=(ApiError,),
            mends=lambda error: isinstance(error, ApiError) and (not error.status or status_mends(error.status)),
            problem=self._problem,
            asked_pause=lambda error: error.pause if isinstance(error, ApiError) else 0.0,
            goodbye=self._servers.close,
        )
        self._calls = RemoteCalls(api, config)

    async def complete(self, request: Request, watch: Watch | None = None) -> Completion:
        if request.constraint is not None:
            if self._servers.fixed:
                raise UsageError(
                    f"a constrained request ({request.constraint!r}) is drawn in this process, by weights that are in training "
                    "meanwhile; leave out the constraint or `staleness`"
                )
            return await super().complete(request, watch)
        self.adapters.check(request.adapter)
        self._stream(request)  # too long a prompt is said here
        with self.elsewhere():
            await self._calls.loop.run(self._servers.ready(request.adapter))
            completion = await self._calls.complete(request, watch)
        self.spent.add(completion)
        return completion

    def draw_with(self, folders: Mapping[str, Path]) -> None:
        """From now on servers draw with each of these adapters as it lies in its folder, whatever is trained here; with none of
        them, as they are here again. Nothing may be drawing meanwhile.
        """
        self._servers.fixed = dict(folders)

    def _problem(self, error: Exception) -> MmcError:
        status = error.status if isinstance(error, ApiError) else 0
        if status in (401, 403, 404):
            return EnvironmentProblem(f"vLLM refused a request; check `servers` and `api_key` of the sampler: {error}")
        return self.ended() or RunFailure(f"vLLM failed: {error}")

    def ended(self) -> EnvironmentProblem | None:
        """The problem that the server started here is gone."""
        said = self._own.ended if self._own is not None else None
        return EnvironmentProblem(said) if said is not None else None

    @contextmanager
    def client(self) -> Iterator[None]:
        with super().client(), self._calls.client():
            yield

    @contextmanager
    def serving(self) -> Iterator[None]:
        with super().serving(), self._calls.serving():
            yield

    def drawn(self, request: Request, ids: Sequence[int], logprobs: Sequence[float]) -> Completion:
        """What a server drew, as this engine would have given it."""
        stream = self._stream(request)
        for token, logprob in zip(ids, logprobs, strict=True):
            stream.take(token, logprob, None, self.stops)
        return replace(self._completion(stream, request.logprobs), exact=False)

    def close(self) -> None:
        self._calls.close()
        if self._own is not None:
            self._own.stop()
        super().close()


@dataclass
class _Given:
    """The adapter as the servers have it now."""

    version: Hashable
    name: str
    folder: Path


class _Servers:
    """Draws at the servers in turn, with each adapter as it is now. Lives in the loop of the calls."""

    def __init__(self, addresses: Sequence[str], config: VllmSampler, engine: VllmEngine) -> None:
        key = expand(config.api_key) if config.api_key is not None else None
        self._https = {address: Http(address, key, config.timeout) for address in addresses}
        self._turn = count()
        self._config, self._engine = config, engine
        self._model: str | None = None
        self._given: dict[str, _Given] = {}
        self.fixed: dict[str, Path] = {}
        """Adapter -> the folder that is drawn with in its place."""
        self._number = count(1)
        self._lock = asyncio.Lock()
        self._temporary = None if config.adapters is not None else Path(tempfile.mkdtemp(prefix="mmc-adapters-"))
        self._folder = self._temporary or Path(expand(config.adapters or "")).expanduser()

    async def ready(self, adapter: str | None) -> None:
        """Sees to it that the servers can be asked, and have ``adapter`` as it is now. Raises EnvironmentProblem."""
        async with self._lock:
            if self._model is None:
                self._model = await self._probe()
            if adapter is not None:
                await self._give(adapter)

    async def draw(self, request: Request) -> Completion:
        """One completion by what is :meth:`ready`. Raises ApiError, TimeoutError, Unusable, and RunFailure."""
        addresses = list(self._https)
        http = self._https[addresses[next(self._turn) % len(addresses)]]
        body: dict[str, Any] = {
            "model": self._model if request.adapter is None else self._given[request.adapter].name,
            "prompt": self._engine.prompt_ids(request.messages),
            "max_tokens": request.sampling.max_tokens,
            "temperature": request.sampling.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "repetition_penalty": 1.0,
            "seed": api_seed(request),
            "logprobs": 0,
            "return_token_ids": True,
        }
        ids, logprobs = _tokens(await http.post("/completions", body))
        return self._engine.drawn(request, ids, logprobs)

    async def close(self) -> None:
        for http in self._https.values():
            await http.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    # --- what the servers have ---

    async def _probe(self) -> str:
        """The name of the plain model. Raises EnvironmentProblem when a server is another's, or says other probabilities than
        those it draws from.
        """
        names = []
        for address, http in self._https.items():
            try:
                names.append((await http.get("/models"))["data"][0]["id"])
                body = {"model": names[-1], "prompt": [min(self._engine.stops)], "max_tokens": 1, "logprobs": 0}
                only = {**body, "return_token_ids": True, "structured_outputs": {"regex": "a"}}
                _, logprobs = _tokens(await http.post("/completions", only))
            except (ApiError, TimeoutError, Unusable, LookupError, TypeError) as error:
                raise EnvironmentProblem(f"vLLM at {address} does not answer as vLLM does: {error}") from error
            if abs(logprobs[0]) > 1e-2:
                raise EnvironmentProblem(
                    f"vLLM at {address} gives log-probabilities of other distributions than it draws from; "
                    f"start it with {PROCESSED}"
                )
        if len(set(names)) > 1:
            raise EnvironmentProblem(f"the servers serve different models: {', '.join(names)}")
        return str(names[0])

    async def _give(self, adapter: str) -> None:
        """Lets all servers load ``adapter``, unless they have it as it is now."""
        adapters, fixed, given = self._engine.adapters, self.fixed.get(adapter), self._given.get(adapter)
        version: Hashable = fixed or adapters.version(adapter)
        if given is not None and given.version == version:
            return
        name = f"{adapter.rpartition('.')[2]}-{os.getpid()}-{next(self._number)}"
        folder = (self._folder / name).resolve()
        if fixed is not None:
            shutil.copytree(fixed, folder)
        else:
            adapters.save(adapter, folder)
        if not (folder / "adapter_config.json").exists():
            raise UsageError("vLLM samples with LoRA adapters alone; a model tuned in full needs `sampler` left out")
        for address, http in self._https.items():
            try:
                await http.post("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, read=False)
            except (ApiError, TimeoutError) as error:
                raise self._engine.ended() or EnvironmentProblem(_refused(address, folder, error)) from error
        self._given[adapter] = _Given(version, name, folder)
        if given is not None:
            await self._take_back(given)

    async def _take_back(self, given: _Given) -> None:
        for http in self._https.values():
            try:
                await http.post("/unload_lora_adapter", {"lora_name": given.name}, read=False)
            except (ApiError, TimeoutError):
                continue  # it has dropped it by itself, or will
        shutil.rmtree(given.folder, ignore_errors=True)


def _refused(address: str, folder: Path, error: Exception) -> str:
    said = str(error) or "no answer in time (timeout)"
    hint = "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
    return f"vLLM at {address} did not take the adapter in {folder}: {said}; {hint}"


def _tokens(found: Any) -> tuple[list[int], list[float]]:
    """Token ids and log-probabilities of a completion. Raises Unusable."""
    try:
        choice = found["choices"][0]
        ids, logprobs = list(choice["token_ids"]), list(choice["logprobs"]["token_logprobs"])
    except (LookupError, TypeError) as error:
        raise Unusable("the answer holds no token ids or no log-probabilities") from error
    if len(ids) != len(logprobs) or not ids:
        raise Unusable(f"the answer holds {len(ids)} tokens and {len(logprobs)} log-probabilities")
    return ids, logprobs


@dataclass(frozen=True)
class _Server:
    """A server of our own."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    @staticmethod
    def start(config: VllmSampler, folder: Path) -> _Server:
        """Starts one and waits until it answers. Raises EnvironmentProblem with the end of its log."""
        import httpx

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [expand(config.start or ""), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--host", "127.0.0.1", "--port", str(port), *NEEDED, *config.options]
        environment = {**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        handle, name = tempfile.mkstemp(prefix="mmc-vllm-", suffix=".log")
        before = _end_with_this_process if sys.platform == "linux" else None
        with os.fdopen(handle, "wb") as log:
            try:
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=before)
            except OSError as error:
                raise EnvironmentProblem(f"the sampler's server cannot be started: {error}") from error
        server = _Server(process, f"http://127.0.0.1:{port}/v1", Path(name))
        began = time.monotonic()
        while server.ended is None and time.monotonic() - began < START_S:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    return server
            except httpx.TransportError:
                time.sleep(0.5)
        problem = server.ended or f"the sampler's server did not answer within {START_S} seconds; see {name}"
        server.stop()
        raise EnvironmentProblem(problem)

    @property
    def ended(self) -> str | None:
        """How it ended, with the end of its log; None while it runs."""
        if self.process.poll() is None:
            return None
        end = self.log.read_text(encoding="utf-8", errors="replace").strip()[-1500:]
        return f"the sampler's server ended (exit code {self.process.returncode}); the end of {self.log}:\n{end}"

    def stop(self) -> None:
        """Ends it; its log stays only if it had ended by itself."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.unlink(missing_ok=True)


def _end_with_this_process() -> None:
    """Runs in the server's process before it starts: also a command that is killed leaves no server behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
