"""Asks a vLLM server what mmc was asked, and compares: python smoke.py [--address URL] [--at-least SHARE].

Standard library alone. Exits with 1 when fewer than SHARE of the answers are equal, or a model is not served.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any


def ask(address: str, body: dict[str, Any] | None = None) -> Any:
    """The server's answer: the models it serves, or one completion."""
    path = "/v1/models" if body is None else "/v1/chat/completions"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="http://127.0.0.1:8000")
    parser.add_argument("--at-least", type=float, default=0.9, help="share of the answers that must be equal")
    options = parser.parse_args()
    lines = (Path(__file__).parent / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    served = {model["id"] for model in ask(options.address)["data"]}
    missing = {row["body"]["model"] for row in rows} - served
    if missing:
        print(f"not served: {', '.join(sorted(missing))}; there are {', '.join(sorted(served))}")
        return 1
    equal = 0
    for row in rows:
        got = ask(options.address, row["body"])["choices"][0]["message"]["content"]
        equal += got == row["expected"]
        if got != row["expected"]:
            print(f"{row['module']}: mmc {row['expected']!r}, vLLM {got!r}")
    print(f"{equal} of {len(rows)} answers are equal")
    return 0 if equal >= options.at_least * len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
