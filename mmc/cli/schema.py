"""mmc schema: the JSON schema of a spec."""

from __future__ import annotations


def schema_command() -> None:
    """Print the JSON schema of a spec, for editors."""
    from mmc.spec.schema import schema_text

    print(schema_text(), end="")
