"""``${env:NAME}`` in a spec: resolved late, never written out."""

from __future__ import annotations

import os
import re

from mmc.errors import EnvironmentProblem

REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
"""A value of the environment; the group is its name."""


def expand(text: str) -> str:
    """``text`` with the environment's values. Raises EnvironmentProblem naming a variable that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise EnvironmentProblem(
                f"the environment variable {name} is not set; {text!r} needs it: export {name}=..."
            )
        return os.environ[name]

    return REFERENCE.sub(value, text)
