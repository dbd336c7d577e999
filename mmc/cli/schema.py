"""mmc schema: the JSON schema of a spec."""

from __future__ import annotations

import json


def schema_command() -> None:
    """Print the JSON schema of a spec, for editors."""
    from mmc.spec.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
