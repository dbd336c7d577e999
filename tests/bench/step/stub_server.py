"""A server that answers every chat completion at once, always with the same: what is left is the client. Prints its port.

python stub_server.py
"""

from __future__ import annotations

import asyncio

from aiohttp import web

TEXT = "[[ ## summary ## ]]\nblue\n\n[[ ## colour ## ]]\nblue\n\n[[ ## completed ## ]]"
"""What DSPy's ChatAdapter reads either field from."""


def reply(text: str) -> dict[str, object]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "stub",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 40, "completion_tokens": 10, "total_tokens": 50},
    }


async def answer(request: web.Request) -> web.Response:
    await request.read()
    return web.json_response(reply(TEXT))


async def serve() -> None:
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
