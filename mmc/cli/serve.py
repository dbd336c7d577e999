"""mmc serve: a program over HTTP."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mmc.cli.common import SetOption, SpecArgument, TrustOption


def serve_command(
    spec: SpecArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of the machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    running: Annotated[int, typer.Option(min=1, help="Most requests worked on at a time.")] = 32,
    waiting: Annotated[int, typer.Option(min=0, help="Most requests that wait for their turn.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.1, help="Longest time for one request.")] = 120.0,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one request, over all its LM calls.")] = 32768,
    body_bytes: Annotated[int, typer.Option(min=1, help="Largest body of a request.")] = 1 << 20,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running requests have at the end.")] = 30.0,
    set_: SetOption = [],  # noqa: B006
    trust: TrustOption = False,
) -> None:
    """Serve a program: its own endpoint (/run), OpenAI's (/v1), /health, /metrics and /openapi.json.

    With MMC_SERVE_TOKEN in the environment, clients must send it as bearer token.
    """
    from mmc.program.graph import Program
    from mmc.serve.options import TOKEN, Options
    from mmc.serve.server import serve, token_from_environment
    from mmc.spec import load

    options = Options(host, port, running, waiting, seconds, tokens, body_bytes, grace, token=token_from_environment())
    program = Program.build(load(spec, set_), trust)
    if options.token is None and host not in ("127.0.0.1", "localhost", "::1"):
        print(f"warning: anybody who reaches {host} may use this server; set {TOKEN}", file=sys.stderr)
    serve(program, options, _say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
