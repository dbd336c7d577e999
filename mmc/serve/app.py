"""The routes."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

import mmc
from mmc.compile.state import trace
from mmc.engine.base import Completion, Sampling
from mmc.engine.base import Request as Call
from mmc.errors import MmcError, ProgramLimit, RunFailure
from mmc.program.graph import Program
from mmc.program.trajectory import Trajectory
from mmc.serve.chat import DONE, Answer, ChatRequest, event, usage
from mmc.serve.desk import Desk
from mmc.serve.measure import Measures
from mmc.serve.metered import Meter
from mmc.serve.options import Options
from mmc.serve.problem import MEDIA_TYPE, STATUS, Problem, invalid, located
from mmc.serve.schema import Inputs, outputs_schema
from mmc.serve.worker import Drawing, Worker
from mmc.spec.model import LocalModel

Temperature = Annotated[float, Query(ge=0, le=2, description="0 is greedy.")]
Seed = Annotated[int | None, Query(description="Of the draws when not greedy; one is drawn when left out.")]
UNCACHED = {"Cache-Control": "no-cache"}
Trace = Annotated[bool, Query(description="Whether the answer shows every LM call and tool use.")]


@dataclass(frozen=True)
class Service:
    """Everything the routes share."""

    program: Program
    options: Options
    worker: Worker
    desk: Desk
    measures: Measures
    started: int = field(default_factory=lambda: int(time.time()))

    async def run(self, inputs: dict[str, Any], drawing: Drawing, meter: Meter) -> Trajectory:
        """One run, in its turn."""
        try:
            trajectory = await self.desk.do(lambda: self.worker.run(inputs, drawing, meter))
        finally:
            self.measures.spent(meter.prompt, meter.completion)
        self.measures.endings.labels(trajectory.ending).inc()
        return trajectory


def make_app(service: Service) -> FastAPI:
    """The application of one program."""
    spec = service.program.spec
    app = FastAPI(
        title=spec.name,
        description=spec.description,
        version=mmc.__version__,
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            Problem: _problem,
            RequestValidationError: _invalid,
            HTTPException: _http,
            MmcError: _ours,
            Exception: _unexpected,
        },
    )
    _own_routes(app, service)
    _openai_routes(app, service)
    return app


# --- the program's own endpoint -----------------------------------------------------------------------------------


def _own_routes(app: FastAPI, service: Service) -> None:
    inputs = Inputs(service.program)
    body = {"required": True, "content": {"application/json": {"schema": inputs.schema()}}}

    @app.post(
        "/run",
        summary=f"Run {service.program.spec.name} once",
        responses=_responses(service.program),
        openapi_extra={"requestBody": body},
    )
    async def run(
        request: Request,
        temperature: Temperature = 0.0,
        seed: Seed = None,
        trace_: Annotated[Trace, Query(alias="trace")] = False,
    ) -> Response:
        """The body holds the program's inputs; the answer its outputs, how the run ended, and the tokens it took."""
        service.desk.check()
        found = inputs.read(await request.body())
        drawing, meter = _drawing(temperature, seed), Meter(service.options.tokens)
        trajectory = await service.run(found, drawing, meter)
        more: dict[str, Any] = {"ending": trajectory.ending, "usage": {"calls": len(trajectory.calls), **usage(meter)}}
        if temperature:
            more["seed"] = drawing.seed
        if trace_:
            more["trace"] = trace(trajectory)
        _check_ending(trajectory, more)
        return _json({"outputs": trajectory.outputs, **more})

    @app.get("/health", responses={503: {"description": "Not ready."}})
    async def health() -> Response:
        """200 when requests are taken."""
        state = service.desk.state
        return JSONResponse({"status": state, "program": service.program.spec.name}, 200 if state == "ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.measures.text(), media_type="text/plain; version=0.0.4")


def _json(document: Mapping[str, Any]) -> Response:
    """An answer as `mmc run` prints outputs: what JSON has no word for as a text."""
    return Response(json.dumps(document, ensure_ascii=False, default=str), media_type="application/json")


def _responses(program: Program) -> dict[int | str, dict[str, Any]]:
    """What `/run` may answer, for the OpenAPI document."""
    counts = {name: {"type": "integer"} for name in ("calls", "prompt_tokens", "completion_tokens", "total_tokens")}
    done = {
        "type": "object",
        "properties": {
            "outputs": outputs_schema(program),
            "ending": {"const": "done"},
            "usage": {"type": "object", "properties": counts},
            "seed": {"type": "integer"},
            "trace": {"type": "object"},
        },
        "required": ["outputs", "ending", "usage"],
    }
    texts = {
        413: "The body is too large.",
        422: "An input is missing, unknown or of another type; `errors` names each.",
        500: "The run failed, or ran into a limit of the program's or the server's; `ending` says which.",
        502: "A completion could not be read, or a tool failed; `ending` says which.",
        503: "Not ready, too busy, or stopping.",
        504: "Not done in time.",
    }
    document: dict[str, Any] = {"type": "object", "properties": {"type": {}, "title": {}, "status": {}, "detail": {}}}
    problems: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": {MEDIA_TYPE: {"schema": document}}} for status, text in texts.items()
    }
    return {200: {"description": "Done.", "content": {"application/json": {"schema": done}}}, **problems}


def _drawing(temperature: float, seed: int | None) -> Drawing:
    drawn = seed if seed is not None else secrets.randbits(31) if temperature else 0
    return Drawing(temperature, drawn)


def _check_ending(trajectory: Trajectory, more: dict[str, Any]) -> None:
    """Raises the Problem of an interrupted run."""
    if trajectory.ending != "done":
        title = f"The run was interrupted: {trajectory.ending}"
        raise Problem(STATUS[trajectory.ending], f"run-{trajectory.ending}", title, trajectory.error or "", more)


# --- OpenAI's endpoints -------------------------------------------------------------------------------------------


def _openai_routes(app: FastAPI, service: Service) -> None:
    name = service.program.spec.name
    models = [name, *(f"{name}/{module}" for module in service.program.spec.modules)]
    inputs = Inputs(service.program)

    @app.get("/v1/models")
    async def list_models() -> Response:
        """The program, and each of its modules."""
        rows = [{"id": m, "object": "model", "created": service.started, "owned_by": "mmc"} for m in models]
        return JSONResponse({"object": "list", "data": rows})

    @app.post("/v1/chat/completions", responses={422: {"description": "A parameter that cannot be honoured."}})
    async def chat(request: ChatRequest) -> Response:
        """OpenAI's chat completions: of the whole program, or of one module with its adapter."""
        service.desk.check()
        if request.model not in models:
            known = ", ".join(models)
            raise Problem(404, "no-model", "Unknown model", f"there is no model {request.model!r}; there are {known}")
        answer = Answer(request.model)
        if request.model == name:
            return await _whole_program(service, request, answer, _program_inputs(inputs, request))
        return await _module(service, request, answer, request.model.removeprefix(f"{name}/"))


def _program_inputs(inputs: Inputs, request: ChatRequest) -> dict[str, Any]:
    """What the last user message says: the only input where that is a text, otherwise JSON."""
    said = request.last_user()
    if said is None:
        raise invalid([{"field": "messages", "message": "there is no user message to take the inputs from"}])
    return {inputs.text: said} if inputs.text is not None else inputs.read(said)


async def _whole_program(service: Service, request: ChatRequest, answer: Answer, inputs: dict[str, Any]) -> Response:
    """Nothing can be said before the run's end, so a stream brings its answer in one piece."""
    meter = Meter(service.options.tokens, request.longest)
    trajectory = await service.run(inputs, _drawing(request.temperature, request.seed), meter)
    _check_ending(trajectory, {"ending": trajectory.ending, "usage": usage(meter)})
    text = _text(trajectory.outputs or {})
    if not request.stream:
        return JSONResponse(answer.whole(text, "stop", meter))
    documents = [answer.piece(text, first=True), answer.end("stop")]
    documents += [answer.spent(meter)] if request.stream_options.include_usage else []
    return Response(b"".join([*map(event, documents), DONE]), media_type="text/event-stream", headers=UNCACHED)


def _text(outputs: Mapping[str, Any]) -> str:
    """The one output where it is a text, otherwise all as JSON."""
    only = next(iter(outputs.values())) if len(outputs) == 1 else None
    return only if isinstance(only, str) else json.dumps(outputs, ensure_ascii=False, default=str)


async def _module(service: Service, request: ChatRequest, answer: Answer, module: str) -> Response:
    meter = Meter(service.options.tokens)
    declared = service.program.spec.modules[module]
    drawing = _drawing(request.temperature, request.seed)
    call = Call(
        key=("chat",),
        messages=tuple(message.plain() for message in request.messages),
        sampling=Sampling(drawing.temperature, request.longest or declared.max_tokens),
        seed=drawing.seed,
    )
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    async def work() -> Completion:
        try:
            return await service.worker.chat(module, call, meter, pieces.put_nowait if request.stream else None)
        except ProgramLimit as error:
            raise Problem(413, "too-large", "Too many tokens", str(error)) from None
        except RunFailure as error:
            local = isinstance(service.program.spec.models[declared.model], LocalModel)
            raise Problem(422 if local else 502, "no-completion", "There is no completion", str(error)) from None
        finally:
            service.measures.spent(meter.prompt, meter.completion)

    if not request.stream:
        completion = await service.desk.do(work)
        return JSONResponse(answer.whole(completion.text, completion.finish, meter))
    task = service.desk.begin(work)
    task.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        first = await pieces.get()
    except asyncio.CancelledError:
        task.cancel()
        raise
    if first is None:
        await service.desk.outcome(task)  # what is wrong from the start is a status, not an event
    stream = _Stream(service, answer, meter, request.stream_options.include_usage)
    return StreamingResponse(stream.events(first, pieces, task), media_type="text/event-stream", headers=UNCACHED)


@dataclass(frozen=True)
class _Stream:
    """The events of one streamed completion."""

    service: Service
    answer: Answer
    meter: Meter
    counts: bool

    async def events(
        self, first: str | None, pieces: asyncio.Queue[str | None], task: asyncio.Task[Completion]
    ) -> AsyncIterator[bytes]:
        """Piece by piece, then the end; an error in between is an event of its own."""
        try:
            yield event(self.answer.piece(first or "", first=True))
            piece = first
            while piece is not None:
                piece = await pieces.get()
                if piece is not None:
                    yield event(self.answer.piece(piece))
            completion = await self.service.desk.outcome(task)
            yield event(self.answer.end(completion.finish))
            if self.counts:
                yield event(self.answer.spent(self.meter))
            yield DONE
        except Problem as problem:
            yield event(problem.body())
        finally:
            task.cancel()


# --- errors -------------------------------------------------------------------------------------------------------


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    body = json.dumps(error.body(), ensure_ascii=False, default=str)
    return Response(body, error.status, error.headers(), media_type=MEDIA_TYPE)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _problem(request, invalid(located(error.errors())))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _problem(request, Problem(error.status_code, "http", str(error.detail), str(error.detail)))


async def _ours(request: Request, error: Exception) -> Response:
    """What no run could escape: a refused key, say."""
    return await _problem(request, Problem(500, "environment", "The server lacks something", str(error)))


async def _unexpected(request: Request, error: Exception) -> Response:
    detail = "this is a bug; the server's log says more"
    return await _problem(request, Problem(500, "bug", type(error).__name__, detail))
