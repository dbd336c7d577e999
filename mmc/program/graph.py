"""A spec made executable: nodes, templates, tools and the metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mmc.metric import Metric, make_metric, make_shaping
from mmc.program.check import check, refuse
from mmc.program.expression import Expression, compile_value
from mmc.program.node import JudgeNode, Node, make_judges, make_nodes
from mmc.program.outputs import Outputs
from mmc.prompt import Template
from mmc.spec.load import LoadedSpec
from mmc.spec.model import Spec
from mmc.tool import make_tool
from mmc.tool.base import Tool


@dataclass(frozen=True)
class Program:
    """Everything a run needs but the engines. Edits give new programs that share what did not change."""

    loaded: LoadedSpec
    nodes: tuple[Node, ...]
    results: Mapping[str, Expression]
    templates: Mapping[str, Template]
    readers: Mapping[str, Outputs]
    tools: Mapping[str, Tool]
    metric: Metric | None
    adapters: Mapping[str, str | None]
    """Module -> name of the adapter it runs with."""
    shaping: Mapping[str, tuple[tuple[float, Metric], ...]] = field(default_factory=dict)
    """Module -> weighted metrics of its single calls, for training."""
    judges: tuple[JudgeNode, ...] = ()
    """What the metric asks an LM."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Key of the spec -> value that a search has set there."""
    trust: bool = False
    """Whether Python that the spec names may be imported, for tools that are opened again."""

    @classmethod
    def build(cls, loaded: LoadedSpec, trust: bool = False) -> Program:
        """Builds the program of a spec or a build. Raises InvalidError with every static problem at once,
        EnvironmentProblem when only variables of the environment are missing.
        """
        refuse(check(loaded))
        spec = loaded.spec
        return cls(
            loaded=loaded,
            nodes=make_nodes(spec.program.steps, spec),
            results={name: compile_value(value) for name, value in spec.program.outputs.items()},
            templates={name: Template.load(loaded.resolve(m.template)) for name, m in spec.modules.items()},
            readers={name: Outputs(loaded, name) for name in spec.modules},
            tools={name: make_tool(loaded, name, trust) for name in spec.tools},
            metric=make_metric(loaded, trust) if spec.metric is not None else None,
            adapters={name: spec.adapters.get(name) for name in spec.modules},
            shaping=make_shaping(loaded, trust),
            judges=make_judges(spec),
            trust=trust,
        )

    @property
    def spec(self) -> Spec:
        return self.loaded.spec

    def with_templates(self, templates: Mapping[str, Template]) -> Program:
        """The same program with other templates for some modules."""
        return replace(self, templates={**self.templates, **templates})

    def with_settings(self, values: Mapping[str, Any]) -> Program:
        """The same program with other values for keys of its spec, like ``tools.search.k``; templates, adapters and the metric
        stay. Raises InvalidError when the spec cannot have them, and what opening a tool raises.
        """
        if not values:
            return self
        loaded = self.loaded.with_values(values)
        refuse(check(loaded))
        spec = loaded.spec
        return replace(
            self,
            loaded=loaded,
            nodes=make_nodes(spec.program.steps, spec),
            results={name: compile_value(value) for name, value in spec.program.outputs.items()},
            readers={name: Outputs(loaded, name) for name in spec.modules},
            tools={
                name: self.tools[name] if config == self.spec.tools[name] else make_tool(loaded, name, self.trust)
                for name, config in spec.tools.items()
            },
            settings={**self.settings, **values},
        )

    def with_adapters(self, adapters: Mapping[str, str | None]) -> Program:
        """The same program with other adapters for some modules."""
        return replace(self, adapters={**self.adapters, **adapters})

    def prompt_variables(self, module: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What a module's template is rendered with: its inputs, and ``choices`` of its enum outputs."""
        return {**inputs, "choices": self.readers[module].options(inputs)}
