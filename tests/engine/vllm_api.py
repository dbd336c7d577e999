"""What mmc needs of vLLM's server, over real HTTP: the tiny model by transformers and PEFT, one sequence at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


class Vllm:
    """A server in a thread; ``before`` may answer in its place."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.adapters: list[str] = []
        """Those it has now."""
        self.asked: list[tuple[str, Any]] = []
        self.before: Callable[[str, Any], Coroutine[None, None, web.Response | None]] = _nothing
        self.raw = False
        """Whether log-probabilities are those before temperature and constraint."""
        self._started: Future[str] = Future()
        self._over: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self.url = self._started.result()

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._answer)
        for path in ("completions", "load_lora_adapter", "unload_lora_adapter"):
            app.router.add_post(f"/v1/{path}", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._started.set_result(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        await self._over.wait()
        await runner.cleanup()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _answer(self, request: web.Request) -> web.Response:
        name = request.path.rpartition("/")[2]
        body = await request.json() if request.method == "POST" else {}
        self.asked.append((name, body))
        instead = await self.before(name, body)
        if instead is not None:
            return instead
        match name:
            case "models":
                return web.json_response({"data": [{"id": "tiny"}]})
            case "load_lora_adapter":
                self._load(body["lora_name"], body["lora_path"])
                return web.Response(text="Success: LoRA adapter added")
            case "unload_lora_adapter":
                self.adapters.remove(body["lora_name"])
                return web.Response(text="Success: LoRA adapter removed")
        return web.json_response(self._complete(body))

    def _load(self, name: str, path: str) -> None:
        if isinstance(self._model, PeftModel):
            self._model.load_adapter(path, adapter_name=name)
        else:
            self._model = PeftModel.from_pretrained(self._model, path, adapter_name=name).eval()
        self.adapters.append(name)

    @torch.no_grad()
    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["model"] != "tiny" and body["model"] not in self.adapters:
            raise web.HTTPNotFound(text="no such model")
        only = body.get("structured_outputs", {}).get("regex")
        forced = self._tokenizer(only)["input_ids"] if only is not None else []
        draws = torch.Generator().manual_seed(body.get("seed", 0))
        ids: list[int] = []
        logprobs: list[float] = []
        while len(ids) < body["max_tokens"] and 0 not in ids:
            logits = self._logits([*body["prompt"], *ids], body["model"])
            raw = torch.log_softmax(logits, -1)
            said = torch.log_softmax(logits / (body.get("temperature") or 1.0), -1)
            if only is not None:
                token = [*forced, 0][len(ids)]
                said = torch.full_like(said, -torch.inf).index_fill_(0, torch.tensor([token]), 0.0)
            elif body.get("temperature"):
                token = int(torch.multinomial(said.exp(), 1, generator=draws))
            else:
                token = int(said.argmax())
            ids.append(token)
            logprobs.append(float((raw if self.raw else said)[token]))
        reason = "stop" if ids[-1] == 0 else "length"
        return {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": logprobs}, "finish_reason": reason}]}

    def _logits(self, ids: list[int], model: str) -> torch.Tensor:
        if isinstance(self._model, PeftModel):
            if model == "tiny":
                with self._model.disable_adapter():
                    return self._model(input_ids=torch.tensor([ids])).logits[0, -1].float()
            self._model.set_adapter(model)
        return self._model(input_ids=torch.tensor([ids])).logits[0, -1].float()


async def _nothing(name: str, body: Any) -> web.Response | None:
    return None
