"""The lower half of what `mmc export --to python` writes, as it stands there: how a model is asked and its answer is read.

Knows nothing of mmc. The part under a line ``# --- name ---`` goes into the file when its program needs it.
"""

# --- imports ---
import asyncio
import inspect
import json
import math
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from types import GeneratorType
from typing import Any

import httpx
from jinja2 import FileSystemLoader, StrictUndefined, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# --- always ---
HERE = Path(__file__).parent
TIMEOUT = 60.0  # seconds for one answer
COLLECTED: ContextVar[list[dict[str, str]]] = ContextVar("collected")


class MessageBlocks(Extension):
    """`{% user %}...{% enduser %}` and its like become chat messages."""

    tags = {"system", "user", "assistant"}

    def parse(self, parser: Parser) -> nodes.Node:
        token = next(parser.stream)
        body = parser.parse_statements((f"name:end{token.value}",), drop_needle=True)
        call = self.call_method("_collect", [nodes.Const(token.value)], lineno=token.lineno)
        return nodes.CallBlock(call, [], [], body).set_lineno(token.lineno)

    def _collect(self, role: str, caller: Callable[[], str]) -> str:
        COLLECTED.get().append({"role": role, "content": str(caller()).strip()})
        return ""


class Slots(Extension):
    """`{% slot name %}...{% endslot %}` renders as what it holds."""

    tags = {"slot"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        parser.stream.expect("name")
        return parser.parse_statements(("name:endslot",), drop_needle=True)


ENVIRONMENT = ImmutableSandboxedEnvironment(
    loader=FileSystemLoader(HERE / "templates"),
    extensions=[MessageBlocks, Slots],
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,
)


def render(template: str, /, **variables: Any) -> list[dict[str, str]]:
    """The chat messages of a template; all of it is the user's where it has no blocks."""
    messages: list[dict[str, str]] = []
    token = COLLECTED.set(messages)
    try:
        outside = ENVIRONMENT.get_template(template).render(variables)
    finally:
        COLLECTED.reset(token)
    return messages or [{"role": "user", "content": outside.strip()}]


def chat(module: str, messages: list[dict[str, str]], max_tokens: int, **more: Any) -> str:
    """What the model of a module answers."""
    url, key, model = MODELS[module]
    body = {"model": model, "messages": messages, "temperature": TEMPERATURE, "max_tokens": max_tokens, **more}
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    answer = httpx.post(
        f"{url.rstrip('/')}/chat/completions", content=json.dumps(body), headers=headers, timeout=TIMEOUT
    )
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"] or "")


def typed(value: Any, wanted: str) -> Any:
    """The value as a type: `str`, `int`, `float`, `bool`, `object`, `any`, `list[...]`. Raises ValueError."""
    if wanted.startswith("list"):
        if not isinstance(value, list | tuple):
            raise ValueError(f"expected {wanted}, got {value!r}")
        return [typed(item, wanted[5:-1] or "any") for item in value]
    if wanted == "any" or (wanted == "object" and isinstance(value, dict)):
        return value
    if wanted == "str" and not isinstance(value, dict | list | tuple):
        return value if isinstance(value, str) else str(value)
    if wanted == "bool":
        if str(value).strip().lower() in ("true", "yes"):
            return True
        if str(value).strip().lower() in ("false", "no"):
            return False
    if wanted in ("int", "float") and isinstance(value, int | float | str) and not isinstance(value, bool):
        text = str(value).strip().replace(",", "")
        if wanted == "int" and text.removeprefix("-").isdecimal():
            return int(text)
        number = float(text)
        if wanted == "float" and math.isfinite(number):
            return number
        if wanted == "int" and number.is_integer():
            return int(number)
    raise ValueError(f"expected {wanted}, got {value!r}")


# --- jinja ---
def jinja(expression: str, /, **variables: Any) -> Any:
    """The value of a Jinja expression."""
    value = ENVIRONMENT.compile_expression(expression, undefined_to_none=False)(**variables)
    if isinstance(value, StrictUndefined):
        str(value)  # raises what is undefined
    return list(value) if isinstance(value, GeneratorType | map | filter | range) else value


# --- interpolated ---
def interpolated(text: str, /, **variables: Any) -> str:
    """A text with Jinja in it."""
    return ENVIRONMENT.from_string(text).render(**variables)


# --- true ---
def true(value: Any) -> bool:
    """Whether a condition holds; the texts of false do not."""
    return value.strip().lower() not in ("", "false", "no", "0", "none") if isinstance(value, str) else bool(value)


# --- options ---
def options(values: Iterable[Any]) -> tuple[str, ...]:
    """The options of a choice, each once. Raises ValueError when there is none."""
    found = tuple(dict.fromkeys(str(value) for value in values))
    if not found:
        raise ValueError("there are no options to choose from")
    return found


def chosen(text: Any, among: Iterable[str]) -> str:
    """The option that a text names, whatever its case. Raises ValueError when none."""
    said, exact = str(text).strip(), tuple(among)
    known = {option.strip().lower(): option for option in exact}
    if said in exact:
        return said
    if said.lower() not in known:
        raise ValueError(f"{said[:60]!r} is none of the {len(known)} options")
    return known[said.lower()]


# --- fields ---
def fields(text: str) -> Any:
    """The JSON object in an answer. Raises ValueError."""
    start = text.find("{")
    if start < 0:
        raise ValueError(f"no JSON object in {text[:60]!r}")
    found, _ = json.JSONDecoder().raw_decode(text, start)
    return found


# --- called ---
def called(function: Callable[..., Any], /, **arguments: Any) -> Any:
    """What a function gives, async or not."""

    async def waited(value: Any) -> Any:
        return await value

    found = function(**arguments)
    return asyncio.run(waited(found)) if inspect.isawaitable(found) else found


# --- bm25 ---
class Bm25:
    """Full-text search over the documents of a file of JSON lines. Equal scores come in the file's order."""

    def __init__(self, file: str, columns: list[str], k: int) -> None:
        import bm25s
        import Stemmer

        self.rows = [
            json.loads(line) for line in (HERE / file).read_text(encoding="utf-8").splitlines() if line.strip()
        ]
        self.k, self.stemmer = min(k, len(self.rows)), Stemmer.Stemmer("english")
        self.index = bm25s.BM25(k1=0.9, b=0.4)
        texts = [" | ".join(str(row[column]) for column in columns) for row in self.rows]
        self.index.index(self.tokens(texts), show_progress=False)
        self.words = set(self.index.vocab_dict) - {""}

    def tokens(self, texts: list[str]) -> list[list[str]]:
        import bm25s

        found = bm25s.tokenize(
            texts, stopwords="en", stemmer=self.stemmer, return_ids=False, show_progress=False, allow_empty=False
        )
        return list(found)

    def __call__(self, query: Any) -> list[dict[str, Any]]:
        """The best documents with their scores; none for a query without known words."""
        import numpy as np

        known = [token for token in self.tokens([str(query)])[0] if token in self.words]
        if not known:
            return []
        scores = self.index.get_scores(known)
        best = np.argsort(-scores, kind="stable")[: self.k]
        return [{**self.rows[i], "score": round(float(scores[i]), 4)} for i in best.tolist()]


# --- settings ---
TEMPERATURE = 0.0
MODELS: dict[str, tuple[str, str, str]] = {}
