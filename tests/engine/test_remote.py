"""What engines behind an API share, over real HTTP on loopback: LiteLLM's and the direct one. And how APIs fail."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest

from mmc.engine.base import Choice, Completion, JsonSchema, Message, Request, Sampling
from mmc.engine.litellm import LiteLlmEngine
from mmc.engine.openai import OpenAiEngine
from mmc.engine.remote import seconds_of
from mmc.errors import EnvironmentProblem, RunFailure, UsageError
from mmc.spec.model import LiteLlmModel, OpenAiModel

from .remote_api import GOOD, KEY, Api, Handler, answers, ask

KINDS = {
    "litellm": lambda **keys: LiteLlmEngine(LiteLlmModel(type="litellm", **{"model": "openai/tiny", **keys})),
    "openai": lambda **keys: OpenAiEngine(OpenAiModel(type="openai", **{"model": "tiny", **keys})),
}


@pytest.fixture(params=list(KINDS))
def engine(api: Api, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Opens an engine of either kind."""
    opened = []

    def open_(**keys: Any) -> Any:
        opened.append(KINDS[request.param](**{"api_key": "${env:TINY_KEY}", "api_base": api.url, **keys}))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


def test_a_completion_carries_text_counts_and_cost_but_no_tokens(api: Api, engine: Any) -> None:
    (found,) = answers(engine(), ask())
    assert found == Completion(
        "blue", "stop", prompt_tokens=11, completion_tokens=3, temperature=0.7, exact=False, metadata={"cost": None}
    )
    sent = api.bodies[0]
    assert sent["messages"] == [{"role": "user", "content": "what colour?"}]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("tiny", 0.7, 5) and 0 <= sent["seed"] < 2**31
    assert api.keys == {f"Bearer {KEY}"}


def test_a_cut_answer_is_one_of_finish_length(api: Api, engine: Any) -> None:
    choice = {**GOOD["choices"][0], "finish_reason": "length"}  # type: ignore[index]
    api.answer = lambda h, body, n: h.reply({**GOOD, "choices": [choice]})
    (found,) = answers(engine(), ask())
    assert found.finish == "length"  # type: ignore[union-attr]


def test_draws_differ_by_key_alone_and_equal_requests_share_an_answer(api: Api, engine: Any) -> None:
    one = engine()
    found = answers(one, ask(1), ask(2), ask(1), ask(1, seed=7))
    assert found[0] is found[2] and len(api.bodies) == 3
    assert len({body["seed"] for body in api.bodies}) == 3
    answers(one, ask(1))
    assert len(api.bodies) == 4, "a later batch asks anew"
    assert api.bodies[3]["seed"] in {body["seed"] for body in api.bodies[:3]}, "with the same seed"


def test_what_passes_is_tried_again(api: Api, engine: Any) -> None:
    def answer(h: Handler, body: dict[str, Any], n: int) -> None:
        match n:
            case 1:
                h.fail(429, "slow down", retry_after="1")
            case 2:
                h.fail(503)
            case 3:
                h.connection.close()
            case 4:
                h.reply(b'{"choices": [{"mess')
            case _:
                h.reply(GOOD)

    api.answer = answer
    began = time.perf_counter()
    (found,) = answers(engine(retries=4), ask())
    assert isinstance(found, Completion) and found.text == "blue" and len(api.bodies) == 5
    assert time.perf_counter() - began > 1.0, "a 429 says how long to wait"


def hang(h: Handler, body: dict[str, Any], n: int) -> None:
    h.server.over.wait(10)


ENDINGS = [
    (lambda h, body, n: h.fail(500, f"broken, {KEY}"), 3, RunFailure, "failed: .*broken, \\*\\*\\*"),
    (hang, 2, RunFailure, r"did not answer within 2 seconds \(timeout\)"),
    (lambda h, body, n: h.connection.close(), 3, RunFailure, "failed: "),
    (lambda h, body, n: h.reply(b"<html>hello</html>"), 3, RunFailure, "failed: "),
    (lambda h, body, n: h.reply({**GOOD, "choices": []}), 3, RunFailure, "failed: "),
    (lambda h, body, n: h.fail(400, "too long"), 1, RunFailure, "failed: .*too long"),
    (lambda h, body, n: h.fail(401, f"bad key {KEY}"), 1, EnvironmentProblem, r"tiny .*check its `api_key`"),
    (lambda h, body, n: h.fail(404, "who?"), 1, EnvironmentProblem, "tiny .*check its `model` and `api_base`"),
]
NAMES = ["500", "hangs", "cut", "not json", "no choices", "400", "401", "404"]


@pytest.mark.parametrize(("answer", "attempts", "kind", "message"), ENDINGS, ids=NAMES)
def test_what_stays_broken_is_said_after_the_retries_it_deserves(
    api: Api, engine: Any, answer: Any, attempts: int, kind: type[Exception], message: str
) -> None:
    answers(engine(), ask())  # a first request takes longer
    api.bodies.clear()
    api.answer = answer
    (found,) = answers(engine(retries=1 if answer is hang else 2, timeout=2 if answer is hang else 20), ask())
    assert type(found) is kind
    with pytest.raises(kind, match=message) as error:
        raise found
    assert KEY not in str(error.value)
    assert len(api.bodies) == attempts


def test_no_more_requests_run_at_a_time_than_allowed(api: Api, engine: Any) -> None:
    running, most = set[int](), 0

    def answer(h: Handler, body: dict[str, Any], n: int) -> None:
        nonlocal most
        with api.lock:
            running.add(n)
            most = max(most, len(running))
        time.sleep(0.05)
        # Over before the answer is out: the client's next request may come before this thread goes on.
        with api.lock:
            running.remove(n)
        h.reply(GOOD)

    api.answer = answer
    one = engine(concurrency=3)
    for _ in range(2):  # a new event loop each time
        found = answers(one, *(ask(i) for i in range(10)))
        assert all(isinstance(f, Completion) for f in found)
    assert len(api.bodies) == 20 and most == 3


def test_a_main_loop_that_decodes_meanwhile_costs_no_time_out(api: Api, engine: Any) -> None:
    async def busy() -> Completion:
        waiting = asyncio.create_task(one.complete(ask()))
        await asyncio.sleep(0)
        time.sleep(2.5)  # as a local engine does
        return await waiting

    one = engine(timeout=2, retries=0)
    answers(one, ask(1))  # a first request takes longer
    assert asyncio.run(busy()).text == "blue"


def test_what_needs_a_local_model_is_refused(engine: Any) -> None:
    choice, adapter = answers(engine(), ask(constraint=Choice(("a", "b"))), ask(adapter="x"))
    assert isinstance(choice, UsageError) and "JSON alone" in str(choice)
    assert isinstance(adapter, UsageError) and "type: local" in str(adapter)


def test_tokens_are_counted_without_the_network(engine: Any) -> None:
    short, long = (engine().count_tokens([Message("user", text)]) for text in ("one", "one two three four five"))
    assert 0 < short < long


def test_greedy_answers_are_paid_for_once_draws_each_time(api: Api, engine: Any) -> None:
    greedy = [
        Request(("s", 0, i), (Message("user", text),), Sampling(0.0, 5)) for i, text in enumerate(("a", "a", "b"))
    ]
    first, _, _ = answers(engine(), *greedy)
    again, _, other = answers(engine(), *greedy)
    assert {body["messages"][0]["content"] for body in api.bodies} == {"a", "b"} and len(api.bodies) <= 3
    asked = len(api.bodies)
    assert again.text == first.text and again.metadata["cost"] == 0.0 and other.prompt_tokens == 11
    answers(engine(cache=False), greedy[0])
    answers(engine(), ask(), Request(("s", 0, 0), greedy[0].messages, Sampling(0.0, 6)))
    answers(engine(), ask())
    assert len(api.bodies) == asked + 4, "without a cache, at another length, and twice with a temperature"


def test_a_failure_is_not_kept(api: Api, engine: Any) -> None:
    api.answer = lambda h, body, n: h.fail(500)
    question = Request(("s", 0), (Message("user", "?"),), Sampling(0.0, 5))
    (failed,) = answers(engine(retries=0), question)
    api.answer = lambda h, body, n: h.reply(GOOD)
    (found,) = answers(engine(), question)
    assert isinstance(failed, RunFailure) and found.text == "blue"


def test_a_json_constraint_is_asked_for_as_a_response_format(api: Api, engine: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"t": {"type": "string"}},
        "required": ["t"],
        "additionalProperties": False,
    }
    answers(engine(), ask(constraint=JsonSchema(json.dumps(schema))))
    assert api.bodies[0]["response_format"]["json_schema"]["schema"] == schema


def test_a_batch_of_any_size_keeps_few_answers(api: Api, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmc.engine import remote

    monkeypatch.setattr(remote, "SHARED", 3)
    one = engine()
    with one.client():
        for i in range(8):
            answers_inside = asyncio.run(one.complete(ask(i)))
            assert answers_inside.text == "blue" and len(one._calls._answers) <= 3


TOLD = {"content": [{"token": "bl", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}


def told(engine: Any, **more: Any) -> Any:
    (found,) = answers(engine, Request(("s", 0), (Message("user", "what colour?"),), Sampling(0.0, 5), **more))
    return found


def test_log_probabilities_are_asked_for_and_told(api: Api, engine: Any) -> None:
    choice = {**GOOD["choices"][0], "logprobs": TOLD}  # type: ignore[index]
    api.answer = lambda h, body, n: h.reply({**GOOD, "choices": [choice]})
    found = told(engine(cache=False), logprobs=True)
    assert (found.tokens_T, found.logprobs_T, found.ids_T) == (("bl",), (-0.5,), ()) and not found.exact
    assert api.bodies[0]["logprobs"] is True
    found = told(engine(cache=False))
    assert (found.tokens_T, found.logprobs_T) == ((), ()) and "logprobs" not in api.bodies[1]


@pytest.mark.parametrize("given", [None, {}, {"content": None}, {"content": [{"token": "a"}]}, [1]])
def test_an_api_without_log_probabilities_leaves_them_empty(api: Api, given: object) -> None:
    choice = {**GOOD["choices"][0], "logprobs": given}  # type: ignore[index]
    api.answer = lambda h, body, n: h.reply({**GOOD, "choices": [choice]})
    engine = KINDS["openai"](api_base=api.url, cache=False)
    found = told(engine, logprobs=True)
    engine.close()
    assert found.text == "blue" and (found.tokens_T, found.logprobs_T) == ((), ())


def test_a_kept_answer_has_its_log_probabilities(
    api: Api, engine: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    choice = {**GOOD["choices"][0], "logprobs": TOLD}  # type: ignore[index]
    api.answer = lambda h, body, n: h.reply({**GOOD, "choices": [choice]})
    one = engine()
    assert told(one).tokens_T == ()
    first, second = told(one, logprobs=True), told(one, logprobs=True)
    assert second.metadata["kept"] and (second.tokens_T, second.logprobs_T) == (first.tokens_T, first.logprobs_T) == (
        ("bl",),
        (-0.5,),
    )
    assert len(api.bodies) == 2, "an answer without them is no answer to a request for them"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("", 0.0), ("soon", 0.0), ("nan", 0.0), ("inf", 0.0)],
)
def test_retry_after_is_read_as_a_number(header: str, seconds: float) -> None:
    assert seconds_of(header) == seconds


def test_retry_after_is_read_as_a_date() -> None:
    assert 50 < seconds_of(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
