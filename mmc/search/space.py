"""The candidates of a search: what may stand in each slot, drawing combinations, and making programs of them.

Of a template nothing outside a slot is ever changed, of the spec nothing but the knobs; and a text that changes what a template
expects, or with which the inputs of a real call cannot be rendered, is refused.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, NamedTuple

from mmc.engine.base import seed_of
from mmc.errors import InvalidError, MmcError, RunFailure
from mmc.program.graph import Program
from mmc.prompt import DEMOS, Template, demo_source, demos_source, escape
from mmc.search.demos import Demo, Found, demo_sets
from mmc.spec.model import Spec, value_at

SETS = 6
"""Most different demonstration sets a module has."""
OFFERS = 32
"""Candidates that a draw chooses from."""


@dataclass(frozen=True)
class Option:
    """What a slot may hold: its own text (None), another one (as it is to read, not yet escaped), or demonstrations."""

    what: str
    text: str | None = None
    demos: tuple[Demo, ...] = ()

    @property
    def keeps(self) -> bool:
        """Whether the slot's own text stays."""
        return self.text is None and not self.demos


@dataclass(frozen=True)
class Variant:
    """One template a module may use, and the options of its slots; the first option of each is what stands there."""

    template: Template
    slots: Mapping[str, tuple[Option, ...]]

    @property
    def size(self) -> int:
        """How many ways there are to fill the slots."""
        return prod(len(options) for options in self.slots.values())


@dataclass(frozen=True)
class Pick:
    """The choice for one module: a variant, and for each of its slots an option."""

    module: str
    variant: int
    options: tuple[tuple[str, int], ...] = ()


Turns = tuple[tuple[str, int], ...]
"""Key of the spec -> which of its values, for every knob."""


@dataclass(frozen=True)
class Candidate:
    """A pick for every module, and where every knob is turned to; hashable, so that no combination is tried twice."""

    picks: tuple[Pick, ...]
    turns: Turns = ()


class _Part(NamedTuple):
    """One option of a candidate; its weight is the number of options it was chosen from."""

    place: tuple[str | int, ...]
    weight: int


@dataclass(frozen=True)
class Refusal:
    """An option or a candidate that cannot be used, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Space:
    """Every candidate: the cross product of all modules' variants and options, and of all knobs' values."""

    program: Program
    variants: Mapping[str, tuple[Variant, ...]]
    samples: Mapping[str, Mapping[str, Any]]
    knobs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Key of the spec -> its values; the first is what stands there."""
    _turned: dict[Turns, Program | str] = field(default_factory=dict, repr=False, compare=False)
    """Programs by the knobs of a candidate, or why there is none: a tool is opened once for each of its settings."""

    @property
    def size(self) -> int:
        """How many candidates there are, the start included."""
        ways = prod(sum(variant.size for variant in variants) for variants in self.variants.values())
        return ways * prod(len(values) for values in self.knobs.values())

    @property
    def start(self) -> Candidate:
        """The candidate that changes nothing."""
        return self.candidate(lambda count, *place: 0)

    def draw(self, seed: int) -> Iterator[Candidate]:
        """All candidates but the start, in an order given by ``seed``.

        Every next one is, of a few at random, the one whose options have come up least: few draws see all options.
        """
        seen, counts = {self.start}, Counter(self._parts(self.start))
        while True:
            offers = [self.candidate(partial(_at_random, seed, len(seen), i)) for i in range(OFFERS)]
            fresh = [candidate for candidate in offers if candidate not in seen]
            if not fresh:
                break
            chosen = min(fresh, key=lambda c: sum(counts[part] * part.weight for part in self._parts(c)))
            seen.add(chosen)
            counts.update(self._parts(chosen))
            yield chosen
        yield from (candidate for candidate in self._all() if candidate not in seen)

    def _parts(self, candidate: Candidate) -> Iterator[_Part]:
        for pick in candidate.picks:
            variants = self.variants[pick.module]
            yield _Part((pick.module, pick.variant), len(variants))
            for slot, i in pick.options:
                yield _Part((pick.module, pick.variant, slot, i), len(variants[pick.variant].slots[slot]))
        for key, i in candidate.turns:
            yield _Part((key, i), len(self.knobs[key]))

    def candidate(self, choose: Callable[..., int]) -> Candidate:
        """The one that ``choose`` makes, a function of the number of options and of the place: a module, then its variant
        and a slot; or a knob's key.
        """
        picks = []
        for module, variants in self.variants.items():
            number = choose(len(variants), module)
            slots = variants[number].slots.items()
            options = tuple((slot, choose(len(options), module, number, slot)) for slot, options in slots)
            picks.append(Pick(module, number, options))
        return Candidate(tuple(picks), tuple((key, choose(len(values), key)) for key, values in self.knobs.items()))

    def _all(self) -> Iterator[Candidate]:
        modules = [list(_picks(module, variants)) for module, variants in self.variants.items()]
        knobs = [[(key, i) for i in range(len(values))] for key, values in self.knobs.items()]
        for picks in itertools.product(*modules):
            for turns in itertools.product(*knobs):
                yield Candidate(picks, turns)

    def describe(self, candidate: Candidate) -> str:
        """The candidate in words: what differs from the start."""
        words = []
        for pick in candidate.picks:
            variant = self.variants[pick.module][pick.variant]
            changes = [variant.slots[slot][i].what for slot, i in pick.options if i]
            if pick.variant:
                changes.insert(0, f"template {variant.template.name}")
            if changes:
                words.append(f"{pick.module}: {', '.join(changes)}")
        words += [f"{key} {self.knobs[key][i]}" for key, i in candidate.turns if i]
        return "; ".join(words) or "the start"

    def build(self, candidate: Candidate) -> Program | Refusal:
        """The candidate's program."""
        program = self._with_knobs(candidate.turns)
        if isinstance(program, str):
            return Refusal(self.describe(candidate), program)
        templates = {}
        for pick in candidate.picks:
            variant = self.variants[pick.module][pick.variant]
            chosen = {slot: variant.slots[slot][i] for slot, i in pick.options if i}
            made = filled(program, pick.module, variant.template, chosen, self.samples.get(pick.module))
            if isinstance(made, str):
                return Refusal(self.describe(candidate), f"{pick.module}: {made}")
            templates[pick.module] = made
        return program.with_templates(templates)

    def _with_knobs(self, turns: Turns) -> Program | str:
        """The start with other values at the knobs that differ, or why it cannot have them."""
        if turns not in self._turned:
            try:
                self._turned[turns] = self.program.with_settings({key: self.knobs[key][i] for key, i in turns if i})
            except (MmcError, KeyError) as error:
                self._turned[turns] = " ".join(str(error).split())
        return self._turned[turns]


def _at_random(seed: int, draw: int, offer: int, count: int, *place: str | int) -> int:
    return seed_of(seed, "draw", draw, offer, *place) % count


def _picks(module: str, variants: Sequence[Variant]) -> Iterator[Pick]:
    for number, variant in enumerate(variants):
        for options in itertools.product(*(range(len(o)) for o in variant.slots.values())):
            yield Pick(module, number, tuple(zip(variant.slots, options, strict=True)))


def make_space(
    program: Program,
    found: Found,
    most_demos: int,
    seed: int,
    proposed: Mapping[tuple[str, str], Sequence[str]] | None = None,
    demos_alone: bool = False,
    knobs: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[Space, tuple[Refusal, ...]]:
    """The space of a program, less the options that cannot be used by themselves.

    ``proposed``: (module, slot) -> more texts for that slot. ``demos_alone`` leaves templates and other slots as they are.
    ``knobs``: key of the spec -> other values.
    """
    variants, refusals = {}, []
    judges = {judge.module for judge in program.judges}
    for name, module in program.spec.modules.items():
        if name in judges:
            continue  # another prompt there would change the scores, not the program
        demos = [demo for demo in found.demos if demo.module == name]
        sets = demo_sets(demos, most_demos, SETS, seed_of(seed, name))
        corner = _Corner(program, name, sets, found.samples.get(name), proposed or {}, demos_alone)
        made = [corner.variant(program.templates[name])]
        for path in () if demos_alone else module.alternatives:
            template = Template.load(program.loaded.resolve(path))
            problem = corner.problem(template, {})
            if problem:
                refusals.append(Refusal(f"{name}: template {template.name}", problem))
            else:
                made.append(corner.variant(template))
        variants[name] = tuple(variant for variant, _ in made)
        refusals += [refusal for _, refused in made for refusal in refused]
    values = {key: _values(program.spec, key, others) for key, others in (knobs or {}).items()}
    return Space(program, variants, found.samples, values), tuple(refusals)


def _values(spec: Spec, key: str, others: Sequence[Any]) -> tuple[Any, ...]:
    """What stands at ``key``, then the ``others`` that are something else, each once."""
    found = [value_at(spec, key)]
    found += [value for i, value in enumerate(others) if value not in found and value not in others[:i]]
    return tuple(found)


@dataclass(frozen=True)
class _Corner:
    """What one module's part of the space is made from."""

    program: Program
    module: str
    sets: Sequence[tuple[Demo, ...]]
    sample: Mapping[str, Any] | None
    proposed: Mapping[tuple[str, str], Sequence[str]]
    demos_alone: bool

    def variant(self, template: Template) -> tuple[Variant, list[Refusal]]:
        """The template with all options that can be used, and those that cannot."""
        slots, refusals = {}, []
        for slot in template.slots:
            usable = []
            for option in self._options(template, slot):
                problem = self.problem(template, {slot: option})
                if problem and not option.keeps:
                    refusals.append(Refusal(f"{self.module}: {option.what}", problem))
                else:
                    usable.append(option)
            slots[slot] = tuple(usable)
        return Variant(template, slots), refusals

    def problem(self, template: Template, chosen: Mapping[str, Option]) -> str:
        made = filled(self.program, self.module, template, chosen, self.sample)
        return made if isinstance(made, str) else ""

    def _options(self, template: Template, slot: str) -> Iterator[Option]:
        yield Option(f"{slot} as it is")
        known = {template.slots[slot].strip()}
        candidates = self.program.spec.modules[self.module].candidates.get(slot, ())
        for text in () if self.demos_alone else (*candidates, *self.proposed.get((self.module, slot), ())):
            if escape(text).strip() not in known:
                known.add(escape(text).strip())
                yield Option(f"{slot} {_short(text)!r}", text)
        if slot != DEMOS:
            return
        if "" not in known and not self.demos_alone:
            yield Option("no demonstrations", "")
        for i, demos in enumerate(self.sets, 1):
            noun = "demonstration" if len(demos) == 1 else "demonstrations"
            yield Option(f"{len(demos)} {noun} (set {i})", demos=demos)


def filled(
    program: Program, module: str, template: Template, chosen: Mapping[str, Option], sample: Mapping[str, Any] | None
) -> Template | str:
    """The template with the chosen options in its slots; or the reason why that cannot be used.

    Demonstrations go in last, so that they look as the rest of the template makes them look. ``sample`` holds inputs of
    a real call to render with; None when the module was never reached.
    """
    made = template
    try:
        for slot in sorted(chosen, key=lambda slot: slot == DEMOS):
            source = _source(program, module, made, chosen[slot])
            made = made if source is None else made.with_slot(slot, source)
        if made.variables != template.variables:
            names = ", ".join(sorted(made.variables ^ template.variables))
            return f"it changes which inputs the template uses: {names}"
        if made.slots.keys() != template.slots.keys():
            return "it changes which slots the template has"
        if sample is not None:
            made.render(program.prompt_variables(module, sample))
    except (InvalidError, RunFailure, ValueError) as error:
        return " ".join(str(error).split())
    return made


def _source(program: Program, module: str, template: Template, option: Option) -> str | None:
    """What is written into the slot, as template source; None to keep what is there."""
    if option.demos:
        shown = [demo_source(template, program.prompt_variables(module, d.inputs), d.answer) for d in option.demos]
        return demos_source(shown)
    return None if option.text is None else escape(option.text)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
