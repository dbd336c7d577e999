"""The local engine while it serves: requests join between tokens, and get what they would get alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mmc.engine.base import Completion, Message, Request, Sampling
from mmc.engine.local import LocalEngine, open_local
from mmc.engine.pieces import Pieces
from mmc.spec.model import LocalModel


@pytest.fixture
def engine(tiny_model_dir: Path) -> LocalEngine:
    return open_local(LocalModel(type="local", source=f"path:{tiny_model_dir}"), Path, {})


def request(i: int, tokens: int = 8, temperature: float = 1.0) -> Request:
    return Request(("q", i), (Message("user", f"question {i}"),), Sampling(temperature, tokens), seed=1)


def test_serving_changes_no_completion(engine: LocalEngine) -> None:
    async def together() -> list[Completion]:
        async def one(i: int) -> Completion:
            with engine.client():
                return await engine.complete(request(i))

        return list(await asyncio.gather(*map(one, range(8))))

    async def served() -> list[Completion]:
        async def one(i: int) -> Completion:
            await asyncio.sleep(0.003 * i)
            with engine.client():
                return await engine.complete(request(i))

        with engine.serving():
            return list(await asyncio.gather(*map(one, range(8))))

    before, found, after = (asyncio.run(work()) for work in (together, served, together))
    assert [c.ids_T for c in found] == [c.ids_T for c in before]
    assert after == before


def test_a_client_that_does_something_else_holds_nobody_back_while_serving(engine: LocalEngine) -> None:
    async def ended() -> bool:
        with engine.client(), engine.client():  # the second one never asks
            try:
                await asyncio.wait_for(engine.complete(request(0)), 2)
            except TimeoutError:
                return False
        return True

    async def served() -> bool:
        with engine.serving():
            return await ended()

    assert asyncio.run(served()) and not asyncio.run(ended())


def test_the_pieces_of_a_watched_completion_are_its_text(engine: LocalEngine) -> None:
    pieces: list[str] = []

    async def body() -> Completion:
        with engine.serving(), engine.client():
            return await engine.complete(request(2, tokens=60, temperature=0.0), pieces.append)

    completion = asyncio.run(body())
    assert "".join(pieces) == completion.text
    assert len(pieces) > 5


def test_who_leaves_takes_its_stream_along(engine: LocalEngine) -> None:
    async def body() -> None:
        with engine.serving(), engine.client():
            task = asyncio.create_task(engine.complete(request(0, tokens=3000, temperature=0.0)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await engine.complete(request(1, tokens=3))
            (decoder,) = engine._decoders.values()
            assert not decoder

    asyncio.run(body())


def test_half_a_character_is_held_back() -> None:
    text = "naïve 水"
    raw, told = text.encode(), list[str]()
    pieces = Pieces(lambda ids: bytes(ids).decode(errors="replace"), told.append)
    for end in range(1, len(raw) + 1):
        pieces.grow(list(raw[:end]))
    pieces.finish(text)
    assert "".join(told) == text and told == list(text)
