"""A program's steps as a Mermaid flowchart, which GitHub and many editors draw."""

from __future__ import annotations

from collections.abc import Sequence

from mmc.spec import model

_SHAPES = {"call": ("[", "]"), "tool": ("[[", "]]"), "set": ("(", ")"), "test": ("{", "}"), "end": ("([", "])")}
Ends = list[tuple[str, str]]
"""Nodes from which the next step is reached, each with the label of its arrow."""


def mermaid(spec: model.Spec) -> str:
    """The chart: modules as boxes, tools as boxes with double sides, decisions as diamonds."""
    chart = _Chart()
    start = chart.node("end", f"inputs: {', '.join(spec.program.inputs) or 'none'}")
    ends = chart.steps(spec.program.steps, [(start, "")])
    if ends:
        outputs = ", ".join(spec.program.outputs) or "none"
        chart.join(ends, chart.node("end", f"outputs: {outputs}"))
    return "\n".join(["flowchart TD", *(f"    {line}" for line in chart.lines)])


class _Chart:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def node(self, kind: str, text: str) -> str:
        """A new node; its name."""
        self.count += 1
        left, right = _SHAPES[kind]
        # Quotes are what Mermaid cannot hold inside its own.
        shown = " ".join(text.split()).replace('"', "#quot;")
        self.lines.append(f'n{self.count}{left}"{shown}"{right}')
        return f"n{self.count}"

    def join(self, ends: Ends, to: str) -> None:
        for node, label in ends:
            self.lines.append(f'{node} -->|"{label}"| {to}' if label else f"{node} --> {to}")

    def steps(self, steps: Sequence[model.Step], ends: Ends) -> Ends:
        for step in steps:
            ends = self.step(step, ends)
        return ends

    def step(self, step: model.Step, ends: Ends) -> Ends:
        """Draws a step after ``ends``; where its own ends are."""
        match step:
            case model.CallStep():
                return self._plain("call", step.call + (f" as {step.as_}" if step.as_ else ""), ends)
            case model.ToolStep():
                return self._plain("tool", step.tool + (f" as {step.as_}" if step.as_ else ""), ends)
            case model.SetStep():
                return self._plain("set", f"set {', '.join(step.set)}", ends)
            case model.IfStep():
                test = self._plain("test", step.if_, ends)[0][0]
                return [*self.steps(step.steps, [(test, "yes")]), *self.steps(step.else_, [(test, "no")])]
            case model.RepeatStep():
                until = f", until {step.until}" if step.until else ""
                return self._loop(f"up to {step.repeat} times{until}", step.steps, ends)
            case model.ForStep():
                name, items = next(iter(step.for_.items()))
                return self._loop(f"for {name} in {items}", step.steps, ends)
            case model.ParallelStep():
                fork = self._plain("set", "at the same time", ends)[0][0]
                return [end for branch in step.parallel for end in self.steps(branch, [(fork, "")])]
            case model.ReturnStep():
                self._plain("end", f"return {', '.join(step.return_)}", ends)
                return []
        raise TypeError(type(step).__name__)

    def _plain(self, kind: str, text: str, ends: Ends) -> Ends:
        node = self.node(kind, text)
        self.join(ends, node)
        return [(node, "")]

    def _loop(self, text: str, steps: Sequence[model.Step], ends: Ends) -> Ends:
        test = self._plain("test", text, ends)[0][0]
        self.join(self.steps(steps, [(test, "again")]), test)
        return [(test, "then")]
