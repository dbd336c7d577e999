"""The command line: one file a command; each parses, calls one library function and prints.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 unexpected, 2 wrong command line, 3 spec, template,
data or build is invalid, 4 environment, 5 stopped by a limit, 10 `plan --detailed-exitcode`
found work to do, 100 a quality gate of `eval` failed, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import NoReturn

COMPLETING = "_MMC_COMPLETE"
"""Set by a shell that asks how a command line may go on."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs one command and exits."""
    sys.exit(execute(sys.argv[1:] if arguments is None else arguments))


def execute(arguments: list[str]) -> int:
    """Runs one command; gives its exit code. The one place where errors become messages."""
    import typer
    from typer.exceptions import TyperException

    from mmc.cli.app import command_group
    from mmc.cli.crash import write_crash_log
    from mmc.errors import MmcError

    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    if not arguments and COMPLETING not in os.environ:
        execute(["--help"])
        return 2
    try:
        code = command_group().main(args=arguments, prog_name="mmc", standalone_mode=False)
        return _interrupted(arguments) if code == 130 else code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted(arguments)
    except TyperException as error:
        known = arguments and arguments[0] in command_group().commands
        print(f"error: {error.format_message()}\nsee: mmc {f'{arguments[0]} ' if known else ''}--help", file=sys.stderr)
        return 2
    except MmcError as error:
        print(_worded(error), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 0
    except Exception as error:  # the command line: nobody shall see a traceback
        log = write_crash_log(error, arguments)
        print(f"error: this is a bug in mmc: {type(error).__name__}: {error}", file=sys.stderr)
        print(f"the details are in {log}; please send them with your report", file=sys.stderr)
        return 1


def _worded(error: Exception) -> str:
    text = str(error)
    return text if "error: " in text.splitlines()[0] else f"error: {text}"


def _interrupted(arguments: list[str]) -> int:
    print("\ninterrupted", file=sys.stderr)
    if arguments[:1] == ["compile"]:
        print(f"everything finished so far is kept; go on with: mmc {' '.join(arguments)}", file=sys.stderr)
    return 130
