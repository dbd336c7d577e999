"""Jinja templates that render to chat messages, and the slots in them that prompt search may rewrite."""

from mmc.prompt.demo import DEMOS, demo_source, demos_source
from mmc.prompt.environment import environment
from mmc.prompt.slots import escape
from mmc.prompt.template import Template

__all__ = ["DEMOS", "Template", "demo_source", "demos_source", "environment", "escape"]
