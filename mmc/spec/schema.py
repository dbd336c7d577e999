"""The JSON schema of a spec, for editors."""

from __future__ import annotations

import json
from typing import Any

from mmc.spec.model import Spec


def json_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a spec, with every key's documentation."""
    schema = Spec.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "mmc spec", **schema}


def schema_text() -> str:
    """The schema as a file: what `mmc schema` prints."""
    return json.dumps(json_schema(), indent=2) + "\n"
