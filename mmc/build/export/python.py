"""One Python file that runs the program without mmc, against any server that speaks OpenAI's chat API; its templates beside it.

Modules, tools and steps are written out as functions, branches and loops; :mod:`mmc.build.export.runtime` is the lower half.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mmc
from mmc.build.export.base import ExportJob, is_lora
from mmc.build.export.expression import arguments, condition, python, variable
from mmc.build.export.layout import assembled
from mmc.build.program import template_files
from mmc.data import read_rows
from mmc.errors import UsageError
from mmc.program.outputs import enum_file, format_of
from mmc.program.steps import called
from mmc.spec import model
from mmc.spec.function import code_folder
from mmc.spec.tools import Tool
from mmc.spec.types import json_schema_of, parse_type

SERVED = "http://localhost:8000/v1"
"""Where a local model is looked for: the address of `mmc export --to vllm`'s server."""
_ENV = re.compile(r"\$\{env:(\w+)\}")
_PATTERNS = {"int": r"-?[0-9]{1,15}", "float": r"-?[0-9]{1,15}(\.[0-9]{1,15})?"}


def export_python(job: ExportJob) -> None:
    """``program.py``, ``templates/``, corpora in ``files/``, Python tools. Raises UsageError for what it cannot express."""
    spec = job.program.spec
    templates = {}
    for name, files in template_files(job.program).items():
        for place, source in files.items():
            (job.out / place).parent.mkdir(parents=True, exist_ok=True)
            (job.out / place).write_text(source, encoding="utf-8")
        templates[name] = next(iter(files)).removeprefix("templates/")
        if len(files) > 1:
            raise UsageError(f"modules.{name}: its template includes others, which a Python file is not given")
    tools = [line for name, tool in spec.tools.items() for line in _tool(job, name, tool)]
    modules = [line for name in spec.modules if _called(job, name) for line in _module(job, name, templates[name])]
    parts = [_settings(job), *_joined(tools), *_joined(modules), "\n".join(_run(spec))]
    (job.out / "program.py").write_text(
        assembled(_head(job), parts, list(spec.program.inputs.items())), encoding="utf-8"
    )


def _joined(lines: Sequence[str]) -> list[str]:
    return ["\n".join(lines)] if lines else []


def _called(job: ExportJob, module: str) -> bool:
    return module in called(job.program.spec.program.steps)


def _head(job: ExportJob) -> str:
    spec = job.program.spec
    about = spec.description or f"The program {spec.name}."
    example = " ".join(f"--{name} ..." for name in spec.program.inputs)
    return f"""{about}

Written by mmc {mmc.__version__} from the program {spec.name}; runs without it:

    python program.py {example}

Models are asked over OpenAI's chat API; `MODELS` says where. What mmc limits in a run (calls, time) is not limited here."""


# --- models --------------------------------------------------------------------------------------------------------


def _settings(job: ExportJob) -> str:
    lines = ["TEMPERATURE = 0.0", "MODELS = {"]
    for name in job.program.spec.modules:
        if _called(job, name):
            lines.append(f"    {name!r}: ({', '.join(_place(job, name))}),")
    return "\n".join([*lines, "}", '"""Module -> address of its server, key, and the name of its model there."""'])


def _place(job: ExportJob, module: str) -> tuple[str, str, str]:
    """Sources of the address, the key and the model's name."""
    spec = job.program.spec
    name = spec.modules[module].model
    config, variable_ = spec.models[name], f"{name.upper()}_URL"
    match config:
        case model.LocalModel():
            adapter = spec.adapters.get(module)
            lora = adapter is not None and is_lora(job.program.loaded.resolve(adapter))
            served = module if lora else name  # as `--to vllm` names them
            return (
                f"os.environ.get({variable_!r}, {SERVED!r})",
                f"os.environ.get({name.upper() + '_KEY'!r}, '')",
                repr(served),
            )
        case model.OpenAiModel():
            return _expanded(config.api_base), _expanded(config.api_key or ""), repr(config.model)
        case model.LiteLlmModel():
            provider, _, rest = config.model.partition("/")
            if provider != "openai":
                raise UsageError(
                    f"models.{name}: LiteLLM speaks to {provider} in its own way; a Python file asks servers of OpenAI's "
                    "chat API alone (`type: openai`)"
                )
            key = _expanded(config.api_key) if config.api_key else "os.environ['OPENAI_API_KEY']"
            return _expanded(config.api_base or "https://api.openai.com/v1"), key, repr(rest)
    raise TypeError(type(config).__name__)


def _expanded(text: str) -> str:
    """Source of a text that may name variables of the environment."""
    if not _ENV.search(text):
        return repr(text)
    if _ENV.fullmatch(text):
        return f"os.environ[{_ENV.fullmatch(text)[1]!r}]"  # type: ignore[index]
    return "f" + repr(_ENV.sub(lambda found: f'{{os.environ["{found[1]}"]}}', text))


# --- tools ---------------------------------------------------------------------------------------------------------


def _tool(job: ExportJob, name: str, tool: Tool) -> Iterator[str]:
    """The function ``use_NAME``."""
    loaded = job.program.loaded
    if isinstance(tool, model.Bm25Tool):
        rows = read_rows(loaded.resolve(tool.corpus))
        (job.out / "files").mkdir(exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (job.out / f"files/{name}.jsonl").write_text(lines, encoding="utf-8")
        yield "@cache"
        yield f"def index_{name}() -> Bm25:"
        yield f"    return Bm25({f'files/{name}.jsonl'!r}, {list(tool.fields)!r}, {tool.k})"
        yield from (
            "",
            "",
            f"def use_{name}(query: Any) -> list[dict[str, Any]]:",
            f"    return index_{name}()(query)",
            "",
            "",
        )
    elif isinstance(tool, model.PythonTool):
        module, _, function = tool.function.partition(":")
        _copy_code(code_folder(loaded), module, job.out)
        yield f"def use_{name}(**arguments: Any) -> Any:"
        yield f"    import {module}"
        yield from ("", f"    return called({module}.{function}, **arguments)", "", "")
    else:
        raise UsageError(
            f"tools.{name}: a Python file has no tools of `type: {tool.type}`; `bm25` and `python` it has. Write a function "
            "that asks the same, or serve the program: mmc serve"
        )


def _copy_code(folder: Path, module: str, out: Path) -> None:
    """A module beside the spec goes along; others are installed."""
    top = module.partition(".")[0]
    if (folder / f"{top}.py").is_file():
        shutil.copyfile(folder / f"{top}.py", out / f"{top}.py")
    elif (folder / top).is_dir():
        shutil.copytree(folder / top, out / top, ignore=shutil.ignore_patterns("__pycache__"))


# --- modules -------------------------------------------------------------------------------------------------------


def _module(job: ExportJob, name: str, template: str) -> Iterator[str]:
    """The function ``ask_NAME``: inputs in, outputs out."""
    module = job.program.spec.modules[name]
    inputs = {key: variable(key) for key in module.inputs}
    yield f"def ask_{name}({', '.join(f'{known}: Any' for known in inputs.values())}) -> dict[str, Any]:"
    yield f'    """{template} -> {", ".join(module.outputs)}"""'
    for key, known in inputs.items():
        yield f"    {known} = typed({known}, {module.inputs[key]!r})"
    enums = {key: declared for key, declared in module.outputs.items() if isinstance(declared, model.EnumType)}
    for key, declared in enums.items():
        yield f"    {_options(key)} = options({_enum(job, name, key, declared)})"
    choices = "{" + ", ".join(f"{key!r}: {_options(key)}" for key in enums) + "}"
    passed = ", ".join(arguments({**inputs, "choices": choices}))
    yield f"    messages = render({template!r}, {passed})"
    yield f"    text = chat({name!r}, messages, max_tokens={module.max_tokens}{_constraint(job, name)})"
    yield from _read(name, module)
    yield from ("", "")


def _options(output: str) -> str:
    return f"{output}_options"


def _enum(job: ExportJob, module: str, output: str, declared: model.EnumType) -> str:
    if isinstance(declared.enum, list):
        return repr(declared.enum)
    if "{{" in declared.enum:
        return python(declared.enum)
    return repr(enum_file(job.program.loaded, ("modules", module, "outputs", output, "enum"), declared.enum))


def _read(name: str, module: model.Module) -> Iterator[str]:
    """Reading the answer."""
    match format_of(module):
        case "text":
            ((key, declared),) = module.outputs.items()
            yield f"    return {{{key!r}: {_value('text.strip()', key, declared)}}}"
        case "json":
            yield "    found = fields(text)"
            values = (
                f"{key!r}: {_value(f'found[{key!r}]', key, declared)}" for key, declared in module.outputs.items()
            )
            yield f"    return {{{', '.join(values)}}}"
        case other:
            raise UsageError(
                f"modules.{name}: a Python file does not read `format: {other}`; `text` and `json` it does"
            )


def _value(source: str, key: str, declared: model.OutputType) -> str:
    if isinstance(declared, model.EnumType):
        return f"chosen({source}, {_options(key)})"
    if isinstance(declared, str):
        return f"typed({source}, {declared!r})"
    return "{" + ", ".join(f"{part!r}: typed({source}[{part!r}], {kind!r})" for part, kind in declared.items()) + "}"


def _constraint(job: ExportJob, name: str) -> str:
    """What the request says of the answer's form, as source of more arguments."""
    module, spec = job.program.spec.modules[name], job.program.spec
    if not module.constrain:
        return ""
    config = spec.models[module.model]
    vllm = isinstance(config, model.LocalModel) or (
        isinstance(config, model.OpenAiModel) and config.structured == "vllm"
    )
    if format_of(module) == "json":
        schema = _schema(module)
        if vllm:
            return f", structured_outputs={{'json': {schema}}}"
        inner = f"{{'name': 'output', 'strict': True, 'schema': {schema}}}"
        return f", response_format={{'type': 'json_schema', 'json_schema': {inner}}}"
    ((key, declared),) = module.outputs.items()
    if isinstance(declared, model.EnumType):
        form = f"{{'choice': list({_options(key)})}}"
    else:
        kind = parse_type(str(declared)).kind
        if kind == "bool":
            form = "{'choice': ['true', 'false']}"
        elif kind in _PATTERNS:
            form = f"{{'regex': {_PATTERNS[kind]!r}}}"
        else:
            return ""
    if not vllm:
        raise UsageError(
            f"modules.{name}: its server can be held to JSON alone, unless the model says `structured: vllm`"
        )
    return f", structured_outputs={form}"


def _schema(module: model.Module) -> str:
    """Source of the JSON schema of a module's outputs."""

    def of(key: str, declared: model.OutputType) -> str:
        if isinstance(declared, model.EnumType):
            return f"{{'enum': list({_options(key)})}}"
        if isinstance(declared, str):
            return repr(json_schema_of(parse_type(declared)))
        return _object({part: repr(json_schema_of(parse_type(kind))) for part, kind in declared.items()})

    return _object({key: of(key, declared) for key, declared in module.outputs.items()})


def _object(properties: dict[str, str]) -> str:
    inner = ", ".join(f"{key!r}: {source}" for key, source in properties.items())
    required = repr(list(properties))
    return f"{{'type': 'object', 'properties': {{{inner}}}, 'required': {required}, 'additionalProperties': False}}"


# --- steps ---------------------------------------------------------------------------------------------------------


def _run(spec: model.Spec) -> Iterator[str]:
    """The function ``run``."""
    inputs = spec.program.inputs
    yield f"def run({', '.join(f'{variable(name)}: Any' for name in inputs)}) -> dict[str, Any]:"
    yield f'    """The program {spec.name}."""'
    for name, kind in inputs.items():
        yield f"    {variable(name)} = typed({variable(name)}, {kind!r})"
    yield from _indented(_steps(spec, spec.program.steps))
    yield f"    return {_dictionary(spec.program.outputs)}"


def _steps(spec: model.Spec, steps: Sequence[model.Step]) -> Iterator[str]:
    for step in steps:
        yield from _step(spec, step)


def _step(spec: model.Spec, step: model.Step) -> Iterator[str]:
    match step:
        case model.CallStep():
            given = {name: f"{{{{ {name} }}}}" for name in spec.modules[step.call].inputs} | step.with_
            passed = ", ".join(f"{variable(name)}={python(value)}" for name, value in given.items())
            yield f"{variable(step.as_ or step.call)} = ask_{step.call}({passed})"
        case model.ToolStep():
            passed = ", ".join(arguments({name: python(value) for name, value in step.with_.items()}))
            yield f"{variable(step.as_ or step.tool)} = use_{step.tool}({passed})"
        case model.SetStep():
            names, values = [variable(name) for name in step.set], [python(value) for value in step.set.values()]
            yield f"{', '.join(names)} = {', '.join(values)}"
        case model.IfStep():
            yield f"if {condition(step.if_)}:"
            yield from _block(spec, step.steps)
            if step.else_:
                yield "else:"
                yield from _block(spec, step.else_)
        case model.RepeatStep():
            yield f"for _ in range({step.repeat}):"
            yield from _block(spec, step.steps)
            if step.until is not None:
                yield f"    if {condition(step.until)}:"
                yield "        break"
        case model.ForStep():
            ((name, items),) = step.for_.items()
            source = python(items)
            counted = re.fullmatch(r"list\((range\([\w, ]*\))\)", source)
            yield f"for {variable(name)} in {counted[1] if counted else source}:"
            yield from _block(spec, step.steps)
        case model.ReturnStep():
            yield f"return {_dictionary(step.return_)}"
        case model.ParallelStep():
            raise UsageError(
                "a Python file has no `parallel` steps: write them one after the other, or serve the program"
            )


def _block(spec: model.Spec, steps: Sequence[model.Step]) -> Iterator[str]:
    yield from _indented(_steps(spec, steps)) if steps else ["    pass"]


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return (f"    {line}" for line in lines)


def _dictionary(values: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{name!r}: {python(value)}" for name, value in values.items()) + "}"
