"""The typer application and its commands."""

from __future__ import annotations

from typing import Any

import typer

import mmc
from mmc.cli.check import check_command
from mmc.cli.compile import compile_command
from mmc.cli.diff import diff_command
from mmc.cli.doctor import doctor_command
from mmc.cli.eval import eval_command
from mmc.cli.export import export_command
from mmc.cli.graph import graph_command
from mmc.cli.init import init_command
from mmc.cli.migrate import migrate_command
from mmc.cli.plan import plan_command
from mmc.cli.render import render_command
from mmc.cli.run import run_command
from mmc.cli.schema import schema_command
from mmc.cli.serve import serve_command
from mmc.cli.verify import verify_command
from mmc.cli.view import view_command

app = typer.Typer(
    name="mmc",
    help="Compile multi-module LM programs: prompts searched, weights trained, one readable build.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # Every option can also be set in the environment: MMC_COMPILE_OUT is --out of compile.
    context_settings={"auto_envvar_prefix": "MMC"},
)


def _version(shown: bool) -> None:
    if shown:
        print(f"mmc {mmc.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Compile multi-module LM programs: prompts searched, weights trained, one readable build."""


def command_group() -> Any:
    """The application as click's group. A parameter such as ``set_`` is read from the environment as its option is called."""
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        for parameter in command.params:
            if parameter.name.endswith("_"):
                parameter.envvar = f"MMC_{name}_{parameter.name.rstrip('_')}".upper()
    return group


app.command("init")(init_command)
app.command("check")(check_command)
app.command("migrate")(migrate_command)
app.command("render")(render_command)
app.command("graph")(graph_command)
app.command("plan")(plan_command)
app.command("run")(run_command)
app.command("eval")(eval_command)
app.command("compile")(compile_command)
app.command("diff")(diff_command)
app.command("serve")(serve_command)
app.command("export")(export_command)
app.command("verify")(verify_command)
app.command("view")(view_command)
app.command("doctor")(doctor_command)
app.command("schema")(schema_command)
