"""The reference pages are the present ones and leave nothing unsaid; shells can complete."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmc.cli.app import command_group
from mmc.cli.reference import PAGES
from mmc.spec.keys import Keys
from mmc.spec.shape import DISCRIMINATORS

REPO = Path(__file__).parents[2]


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_the_present_one(name: str) -> None:
    assert (REPO / "examples/reference" / name).read_text() == PAGES[name](), "run: make reference"


def blocks(base: type[Keys] = Keys) -> Iterator[type[Keys]]:
    for found in base.__subclasses__():
        if found.__module__.startswith("mmc."):
            yield found
            yield from blocks(found)


def test_every_key_and_block_has_a_text() -> None:
    assert [b.__name__ for b in blocks() if not b.__doc__] == []
    named = [(b, name, field) for b in blocks() for name, field in b.model_fields.items()]
    # What stands under `type` or `algorithm` says which block it is; the block has the text.
    assert [f"{b.__name__}.{n}" for b, n, f in named if not f.description and n not in DISCRIMINATORS] == []
    assert len(named) > 150


def test_every_command_and_option_has_a_text() -> None:
    for name, command in command_group().commands.items():
        assert command.help and len(command.help.split("\n")[0]) <= 66, f"{name}: the first line stands whole in --help"
        assert [p.name for p in command.params if not p.help] == [], name


def test_options_are_called_in_the_environment_as_on_the_command_line() -> None:
    for name, command in command_group().commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                auto = f"MMC_{name}_{parameter.name}".upper()
                words = {option.lstrip("-").replace("-", "_").upper() for option in parameter.opts}
                assert (parameter.envvar or auto).removeprefix(f"MMC_{name.upper()}_") in words


def completed(folder: Path, words: str, **environment: str) -> list[str]:
    env = {**os.environ, "_MMC_COMPLETE": "complete_bash", "COMP_WORDS": words, "PYTHONPATH": str(REPO), **environment}
    env.setdefault("COMP_CWORD", str(len(words.split(" ")) - 1))
    command = [sys.executable, "-m", "mmc"]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False).stdout.split()


def test_a_shell_completes_commands_specs_and_options(tmp_path: Path) -> None:
    for name in ("shop.yaml", "rows.jsonl", "build/shop/v1/program.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert completed(tmp_path, "mmc ch") == ["check"]
    assert {"init", "compile", "migrate"} <= set(completed(tmp_path, "mmc "))
    assert completed(tmp_path, "mmc check ") == ["build/", "shop.yaml"]
    assert completed(tmp_path, "mmc run build/shop/") == ["build/shop/v1"]
    assert completed(tmp_path, "mmc eval shop.yaml --split t") == ["train", "test"]
    assert "--fail-under" in completed(tmp_path, "mmc eval shop.yaml --f")
    zsh = {"_MMC_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "mmc check sh"}
    assert "shop.yaml" in " ".join(completed(tmp_path, "mmc check sh", **zsh))


@pytest.mark.parametrize(("shell", "file"), [("bash", ".bashrc"), ("zsh", ".zshrc")])
def test_completion_can_be_installed(shell: str, file: str, tmp_path: Path) -> None:
    env = {
        **os.environ,
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
        "PYTHONPATH": str(REPO),
    }
    command = [sys.executable, "-m", "mmc", "--install-completion", shell]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{shell} completion installed" in done.stdout
    assert (tmp_path / file).is_file()
