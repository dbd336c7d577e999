"""What the checks have found so far, and the questions that several of them ask."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from mmc.errors import Diagnostic, EnvironmentProblem, InvalidError
from mmc.program.expression import compile_value, names_in
from mmc.prompt import Template
from mmc.prompt.environment import explained
from mmc.spec.env import REFERENCE, expand
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath
from mmc.spec.types import did_you_mean, parse_type

VARIABLE = re.compile(r"\$\{?[A-Za-z_]\w*\}?")
"""What other programs would replace by a variable of the environment."""


class Findings:
    """Collects the problems of one spec."""

    def __init__(self, loaded: LoadedSpec) -> None:
        self.loaded, self.spec = loaded, loaded.spec
        self.found: list[Diagnostic] = []
        self.lacking: dict[tuple[KeyPath, str], dict[str, list[str]]] = {}
        """Where a column is named, and the column -> the files that lack it, and what columns these have."""
        self._unset: set[str] = set()

    def error(self, path: KeyPath, message: str, hint: str = "", at_key: bool = False) -> None:
        self.found.append(self.loaded.diagnostic(path, message, hint, at_key))

    def warning(self, path: KeyPath, message: str, hint: str = "", at_key: bool = False) -> None:
        self.found.append(replace(self.loaded.diagnostic(path, message, hint, at_key), severity="warning"))

    def known(self, name: str, known: Mapping[str, object], path: KeyPath, noun: str, at_key: bool = False) -> bool:
        """Whether ``name`` is declared; an error where it is not."""
        if name not in known:
            listed = ", ".join(known) or "none"
            self.error(
                path, f"there is no {noun} {name!r}.{did_you_mean(name, known)}", f"declared are: {listed}", at_key
            )
        return name in known

    def type(self, path: KeyPath, kind: str) -> None:
        """An error when ``kind`` names no type."""
        try:
            parse_type(kind)
        except ValueError as error:
            self.error(path, str(error))

    def names(self, path: KeyPath, value: Any) -> set[str]:
        """The variables that an expression uses; an error when it is none."""
        try:
            compile_value(value)
            return names_in(value)
        except jinja2.TemplateSyntaxError as error:
            self.error(path, f"not a valid expression: {explained(error)}")
            return set()

    def resolve(self, path: KeyPath, text: str) -> Path | None:
        """The file that ``text`` names; None, with an error once a variable, when that depends on one that is not set."""
        missing = next((m for m in REFERENCE.findall(text) if not _is_set(m)), None)
        if missing is None:
            if VARIABLE.search(REFERENCE.sub("", text)):
                variable = next(iter(VARIABLE.findall(REFERENCE.sub("", text)))).strip("${}")
                self.error(path, f"{text}: this is no variable of the environment", f"write ${{env:{variable}}}")
                return None
            return self.loaded.resolve(text)
        if missing not in self._unset:
            self._unset.add(missing)
            message = f"the environment variable {missing} is not set; {text!r} needs it"
            self.found.append(
                replace(self.loaded.diagnostic(path, message, f"export {missing}=..."), cause="environment")
            )
        return None

    def template(self, path: KeyPath, name: str) -> Template | None:
        """The template ``name``; None, with its problems, when it cannot be used."""
        file = self.resolve(path, name)
        if file is None:
            return None
        try:
            return Template.load(file)
        except InvalidError as error:
            for problem in error.diagnostics:
                # What is wrong with a file as a whole is said where the spec names it.
                whole = problem.line == 0 and problem.file == str(file)
                self.found.append(self.loaded.diagnostic(path, f"{name}: {problem.message}") if whole else problem)
            return None


def _is_set(name: str) -> bool:
    try:
        expand(f"${{env:{name}}}")
    except EnvironmentProblem:
        return False
    return True
