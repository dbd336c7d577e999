"""What a prompt search has tried: from its result, or meanwhile from its journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mmc.metric import interval
from mmc.view.lines import Lines, Row


@dataclass
class _Candidate:
    number: int
    what: str
    rounds: int = 0
    tokens: int = 0
    scores: dict[str, float] = field(default_factory=dict)


def tried(journal: Sequence[Row]) -> Row:
    """The candidates met so far, as a search's result has them."""
    found: dict[str, _Candidate] = {}
    for row in journal:
        key, value = row.get("key", [None]), row.get("value", {})
        if key[0] == "evaluate":
            name, what, examples = str(key[1]), value["what"], key[4]
        elif key[0] == "run":
            name, what, examples = key[1], f"rewritten texts {key[1][:6]}", key[2]
        else:
            continue
        one = found.setdefault(name, _Candidate(len(found), what))
        one.rounds += 1
        one.tokens += sum(value["tokens"]) if isinstance(value["tokens"], list) else value["tokens"]
        one.scores.update(zip(map(str, examples), value["scores"], strict=False))
    return {"trials": [_trial(one) for one in found.values() if one.scores], "replaced": False, "note": ""}


def _trial(one: _Candidate) -> Row:
    score = interval(list(one.scores.values()))
    return {
        "number": one.number,
        "what": one.what,
        "rounds": one.rounds,
        "tokens": one.tokens / len(one.scores),
        "rejected": "",
        "score": {"mean": score.mean, "low": score.low, "high": score.high, "n": score.n},
    }


def shown_search(result: Row | None, journal: Lines[Row]) -> Row | None:
    """What to show of a search; None when nothing was tried yet."""
    if result is not None and result.get("trials"):
        return result
    found = tried([line.summary for line in journal.all()])
    if result is not None:
        found |= {"note": result["note"], "replaced": result["replaced"]}
    return found if found["trials"] else None
