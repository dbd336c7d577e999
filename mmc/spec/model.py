"""What a user writes, as pydantic models. The text under each field is the documentation of that key.

Validation here is about shape alone; references between modules, tools, templates and data are checked in
:mod:`mmc.spec.check`, which knows line and column.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from mmc.spec.cluster import Cluster
from mmc.spec.data import Data, DataSource
from mmc.spec.keys import Keys, Name
from mmc.spec.lm import LiteLlmModel, LocalModel, Model, OpenAiModel, Price, RemoteModel, VllmSampler
from mmc.spec.metrics import Metric, WeightedPart
from mmc.spec.optimizers import Clip, Distill, Grouping, Lora, MmGrpo, Teacher, Tuning
from mmc.spec.searches import BootstrapSearch, GepaSearch, HalvingSearch, MiproSearch, PromptSearch
from mmc.spec.tools import Bm25Tool, HttpTool, McpTool, PythonTool, Record, SandboxTool, Tool

Expression = str
"""A Jinja expression in double braces, such as ``{{ hits | length }}``, or plain text that may contain some."""


# --- types --------------------------------------------------------------------------------------------------------


class EnumType(Keys):
    """One of a closed set of texts."""

    enum: list[str] | str
    """The texts; or a JSON file holding a list of them; or an expression over the module's inputs that gives one."""


def _output_kind(value: object) -> str:
    if isinstance(value, str):
        return "type"
    return "enum" if isinstance(value, EnumType) or (isinstance(value, dict) and "enum" in value) else "object"


OutputType = Annotated[
    Annotated[str, Tag("type")] | Annotated[EnumType, Tag("enum")] | Annotated[dict[str, str], Tag("object")],
    Discriminator(_output_kind),
]
"""`str`, `int`, `float`, `bool`, `list[str]`, ...; an enum; or an inline object of named simple types."""

# --- modules ------------------------------------------------------------------------------------------------------


class Training(Keys):
    """How one module takes part in the training of weights."""

    learning_rate: float | None = Field(None, gt=0)
    """Of the module's adapter, instead of the stage's; the module needs an adapter that no other module shares."""
    weight: float = Field(1.0, gt=0)
    """Weight of its calls in the loss."""


class Module(Keys):
    """One kind of LM call with a prompt of its own."""

    model: str
    """Name of an entry of `models`."""
    template: str
    """The prompt: a Jinja template, relative to the spec's folder."""
    alternatives: list[str] = []
    """Other templates for the same inputs that prompt search may choose instead."""
    candidates: dict[str, list[str]] = {}
    """For each slot of the template, texts that prompt search may put there instead."""
    inputs: dict[Name, str]
    """Name and type of everything the template may use."""
    outputs: dict[Name, OutputType] = Field(min_length=1)
    """Name and type of everything that is read from the completion."""
    format: Literal["auto", "text", "sections", "json"] = "auto"
    """How outputs stand in a completion. text: the whole completion is the one output; sections: `name: value` lines;
    json: one JSON object. auto: text for one output of a simple type, otherwise json."""
    constrain: bool = False
    """Decode only what can be read as the declared outputs."""
    max_tokens: int = Field(64, gt=0)
    """Longest completion, in tokens."""
    logprobs: bool = False
    """Whether traces tell each token of a completion with its log-probability. An API is asked for them; some give none."""
    train: bool | Training = True
    """Whether weights are tuned on this module's calls, and how."""


# --- program ------------------------------------------------------------------------------------------------------


class CallStep(Keys):
    """Calls a module. Its outputs are then known under the module's name, or under `as`."""

    call: str
    """Name of an entry of `modules`."""
    with_: dict[str, Any] = Field(default={}, alias="with")
    """Inputs of the module; an input that is left out is taken from the variable of the same name."""
    as_: Name | None = Field(None, alias="as")
    """The variable that its outputs become attributes of; the module's name when left out."""


class ToolStep(Keys):
    """Calls a tool. Its result is then known under the tool's name, or under `as`."""

    tool: str
    """Name of an entry of `tools`."""
    with_: dict[str, Any] = Field(default={}, alias="with")
    """The tool's arguments."""
    as_: Name | None = Field(None, alias="as")
    """The variable that its result becomes; the tool's name when left out."""


class SetStep(Keys):
    """Sets variables. All values are computed before any is set."""

    set: dict[Name, Any]
    """Name and value of each variable; values may be expressions."""


class IfStep(Keys):
    """Runs `steps` when the expression is true, `else` otherwise."""

    if_: Expression = Field(alias="if")
    """The condition, as an expression."""
    steps: list[Step]
    """What happens when it is true."""
    else_: list[Step] = Field(default=[], alias="else")
    """What happens when it is not."""


class RepeatStep(Keys):
    """Runs `steps` up to `repeat` times, until the expression is true after a turn."""

    repeat: int = Field(gt=0)
    """Most turns."""
    until: Expression | None = None
    """Looked at after each turn; when it is true, the loop ends."""
    steps: list[Step]
    """What happens in a turn."""


class ForStep(Keys):
    """Runs `steps` once for each item of a list: `for: {item: "{{ items }}"}`."""

    for_: dict[Name, Expression] = Field(alias="for", min_length=1, max_length=1)
    """The variable that holds the item, and the list."""
    steps: list[Step]
    """What happens for each item."""


class ParallelStep(Keys):
    """Runs branches at the same time. Each sees the variables from before; what they set is merged in order."""

    parallel: list[list[Step]] = Field(min_length=1)
    """The branches, each a list of steps."""


class ReturnStep(Keys):
    """Ends the run with these outputs."""

    return_: dict[Name, Any] = Field(alias="return")
    """Name and value of each output."""


STEP_KEYS = ("call", "tool", "set", "if", "repeat", "for", "parallel", "return")
"""The keys that say what a step does; it has one of them."""


def _step_kind(value: object) -> str | None:
    if isinstance(value, Keys):
        keys = {name.rstrip("_") for name in type(value).model_fields}
    else:
        keys = set(value) if isinstance(value, dict) else set()
    return next((key for key in STEP_KEYS if key in keys), None)


Step = Annotated[
    Annotated[CallStep, Tag("call")]
    | Annotated[ToolStep, Tag("tool")]
    | Annotated[SetStep, Tag("set")]
    | Annotated[IfStep, Tag("if")]
    | Annotated[RepeatStep, Tag("repeat")]
    | Annotated[ForStep, Tag("for")]
    | Annotated[ParallelStep, Tag("parallel")]
    | Annotated[ReturnStep, Tag("return")],
    Discriminator(
        _step_kind,
        custom_error_type="step_kind",
        custom_error_message="a step needs one of: call, tool, set, if, repeat, for, parallel, return",
    ),
]


class Program(Keys):
    """The control flow around the modules and tools."""

    inputs: dict[Name, str]
    """Name and type of what a run starts from; columns of the data."""
    steps: list[Step] = Field(min_length=1)
    """What happens, in order."""
    outputs: dict[Name, Any] = {}
    """What a run gives, as expressions over the variables at its end. May be left out when a `return` step says it."""
    max_calls: int = Field(64, gt=0)
    """Most LM calls in one run; a run that wants more is interrupted."""
    timeout: float | None = Field(None, gt=0)
    """Seconds after which a run is interrupted. A clock decides, so the same seed need not give the same runs."""


# --- compile ---------------------------------------------------------------------------------------------------------


class Compile(Keys):
    """How the program is made better."""

    seed: int = 0
    """What all draws depend on: the same seed gives the same build."""
    strategy: list[Literal["prompts", "distill", "weights"]] = ["prompts", "weights"]
    """Stages, in order; each starts from what the last one left."""
    gate: bool = True
    """Whether a stage that does not help on dev is rolled back."""
    prompts: PromptSearch = HalvingSearch()
    """The stage `prompts`: what is tried in the slots, and how it is chosen."""
    distill: Distill = Distill()
    """The stage `distill`: learning from runs that pass."""
    weights: MmGrpo = MmGrpo()
    """The stage `weights`: multi-module GRPO."""


class Origin(Keys):
    """Written by a compile: what this program was made from."""

    parent: str
    """SHA-256 of the spec it was compiled from."""
    stage: str
    """The last stage that changed it."""
    folder: str
    """The folder of that spec, relative to this file; Python functions are imported from there."""


__all__ = [
    "Bm25Tool", "BootstrapSearch", "Clip", "Cluster", "Data", "DataSource", "Distill", "GepaSearch", "Grouping",
    "HalvingSearch", "HttpTool", "Keys", "LiteLlmModel", "LocalModel", "Lora", "McpTool", "MiproSearch", "MmGrpo",
    "OpenAiModel", "Price", "PythonTool", "Record", "RemoteModel", "SandboxTool", "Teacher", "Tuning", "VllmSampler",
]  # fmt: skip
"""Defined beside this file, and part of what a spec is made of."""


class Spec(Keys):
    """One LM program: its models, tools, modules, control flow, data, metric, and how to make it better."""

    mmc: Literal[1]
    """Version of this format."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Names the build folder."""
    description: str = ""
    """What the program does, for people."""
    models: dict[Name, Model] = Field(min_length=1)
    """The LMs that modules, teachers and the proposer name."""
    tools: dict[Name, Tool] = {}
    """What steps can call besides modules."""
    modules: dict[Name, Module] = Field(min_length=1)
    """The kinds of LM calls, each with a prompt of its own."""
    program: Program
    """What a run does, from inputs to outputs."""
    data: Data | None = None
    """Examples: needed to compile, evaluate and render."""
    metric: Metric | None = None
    """How good a run is, from 0 to 1: needed to compile and evaluate."""
    shaping: dict[Name, list[WeightedPart]] = {}
    """For each module, metrics of its single calls that training adds to the run's reward: `predicted` names an output or
    input of the module, `gold` a column of the data. They shape training only; scores are the metric's alone."""
    compile: Compile = Compile()
    """The stages that make the program better, and their settings."""
    cluster: Cluster = Cluster()
    """Workers of `mmc compile --cluster`."""
    adapters: dict[Name, str] = {}
    """For each module, the folder of the adapter it runs with; written by a compile."""
    origin: Origin | None = None
    """What a build was made from; written by a compile."""


def value_at(spec: Spec, key: str) -> Any:
    """What stands at ``key`` (``a.0.b``) as plain data, defaults included. Raises LookupError where there is no such key."""
    found: Any = spec.model_dump(mode="json", by_alias=True)
    for part in key.split("."):
        if isinstance(found, list):
            found = found[int(part) if part.isdigit() else len(found)]
        else:
            found = (found if isinstance(found, dict) else {})[part]
    return found


def searched_models(spec: Spec) -> list[str]:
    """Models that a search of this spec's prompts needs beside those of the modules: the proposer, and what a knob may choose."""
    search = spec.compile.prompts
    knobs = getattr(search, "knobs", {}).items()
    chosen = [str(value) for key, values in knobs if key.endswith(".model") for value in values]
    return [*filter(None, [getattr(search, "proposer", None)]), *chosen]


for _model in (IfStep, RepeatStep, ForStep, ParallelStep, Program, Spec):
    _model.model_rebuild()
