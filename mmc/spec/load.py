"""A spec file or a build folder -> a checked Spec that remembers where everything stands."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from yaml import ScalarNode

from mmc.errors import Diagnostic, EnvironmentProblem, InvalidError
from mmc.spec.env import expand
from mmc.spec.marks import Document, KeyPath, parse
from mmc.spec.migrate import CURRENT, version_problem
from mmc.spec.model import Spec
from mmc.spec.problems import key_path, read_spec
from mmc.spec.rewrite import rewrite
from mmc.spec.types import did_you_mean

BUILT = "program.yaml"
"""The spec's file in a build folder."""


@dataclass(frozen=True)
class LoadedSpec:
    """A spec, the text it came from (overrides applied) and its place on disk."""

    spec: Spec
    path: Path
    text: str
    document: Document
    given: str = ""
    """The text before a search set values in it; empty where none did."""

    @property
    def folder(self) -> Path:
        """What relative paths in the spec are relative to."""
        return self.path.parent

    @property
    def sha256(self) -> str:
        """Of what the user gave."""
        return hashlib.sha256((self.given or self.text).encode()).hexdigest()

    def diagnostic(self, path: KeyPath, message: str, hint: str = "", at_key: bool = False) -> Diagnostic:
        """A diagnostic at the line and column of what stands under ``path``, or of its key."""
        return self.document.diagnostic(path, message, hint, at_key)

    def resolve(self, text: str) -> Path:
        """A path of the spec as an absolute one. Raises EnvironmentProblem, with its place, when a variable is unset."""
        try:
            return (self.folder / Path(expand(text)).expanduser()).resolve()
        except EnvironmentProblem as error:
            nodes = self.document.values.items()
            place = next((path for path, node in nodes if isinstance(node, ScalarNode) and node.value == text), ())
            raise EnvironmentProblem(self.diagnostic(place, str(error)).render()) from None

    def reparsed(self, text: str) -> LoadedSpec:
        """The same place with another text."""
        return _validated(self.path, text, ())

    def with_values(self, values: Mapping[str, object]) -> LoadedSpec:
        """The spec with other values at some keys (``a.b``), as a search sets them. Raises InvalidError when that is no valid
        spec, KeyError when a key leads through something that is no mapping.
        """
        changed = self.reparsed(rewrite(self.text, {key_path(key): value for key, value in values.items()}))
        return replace(changed, given=self.given or self.text)

    def overridden(self, overrides: Sequence[str]) -> LoadedSpec:
        """The spec with some keys overridden, as in :func:`load`."""
        text = self.text
        for override in overrides:
            text = _override(text, override)
        return _validated(self.path, text, overrides)


def load(path: Path, overrides: Sequence[str] = ()) -> LoadedSpec:
    """Loads a spec file, or a build folder that holds a program.yaml.

    ``overrides`` are ``a.b=value`` in the file's own spelling. Raises InvalidError with every problem at once.
    """
    path = spec_file(path)
    return _validated(path, _text(path, overrides), overrides)


def survey(path: Path, overrides: Sequence[str] = ()) -> tuple[LoadedSpec | None, tuple[Diagnostic, ...]]:
    """As :func:`load`, with the problems of shape instead of an error, and the spec as far as it can be read.

    Raises InvalidError for what is no YAML mapping.
    """
    path = spec_file(path)
    return _read(path, _text(path, overrides), overrides)


def spec_file(path: Path) -> Path:
    """The spec's file, where a build folder may be named instead."""
    path = Path(path)
    return path / BUILT if path.is_dir() else path


def read_text(path: Path) -> str:
    """The text of a spec's file. Raises InvalidError when there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidError([Diagnostic(str(path), 0, 0, "there is no such file." + _neighbours(path))]) from None
    except UnicodeDecodeError as error:
        raise InvalidError([Diagnostic(str(path), 0, 0, f"this is not UTF-8 text: {error}")]) from None
    except OSError as error:
        raise InvalidError([Diagnostic(str(path), 0, 0, f"cannot be read: {error.strerror}")]) from None


def _text(path: Path, overrides: Sequence[str]) -> str:
    text = read_text(path)
    if overrides:
        parse(text, str(path))
    for override in overrides:
        text = _override(text, override)
    return text


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder {path.parent} either."
    specs = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml"))
    if path.name == BUILT:
        listed = f" Specs there are: {', '.join(specs)}." if specs else ""
        return f" A folder is a build when it has one.{listed}"
    return did_you_mean(path.name, specs)


def _override(text: str, override: str) -> str:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise InvalidError(f"--set {override}: write it as a.b=value")
    parsed = parse(f"value: {value or '~'}", f"--set {override}").data["value"]
    try:
        return rewrite(text, {key_path(key): parsed})
    except KeyError:
        raise InvalidError(
            f"--set {override}: there is no mapping at {key.rpartition('.')[0]!r} to set a key in"
        ) from None


def _validated(path: Path, text: str, overrides: Sequence[str]) -> LoadedSpec:
    loaded, problems = _read(path, text, overrides)
    if problems or loaded is None:
        raise InvalidError(problems)
    return loaded


def _read(path: Path, text: str, overrides: Sequence[str]) -> tuple[LoadedSpec | None, tuple[Diagnostic, ...]]:
    document = parse(text, str(path))
    outdated, readable = version_problem(document)
    if not readable:
        assert outdated is not None
        return None, (outdated,)
    if outdated is not None:
        document = replace(document, data={**document.data, "mmc": CURRENT})
    spec, problems = read_spec(document, overrides)
    found = tuple(sorted({*problems, *([outdated] if outdated else [])}))
    return None if spec is None else LoadedSpec(spec, path.resolve(), text, document), found
