"""What a user writes: models, loading with positions, rewriting in place, types, the JSON schema."""

from mmc.spec.load import LoadedSpec, load
from mmc.spec.model import Spec
from mmc.spec.rewrite import rewrite
from mmc.spec.schema import json_schema

__all__ = ["LoadedSpec", "Spec", "json_schema", "load", "rewrite"]
