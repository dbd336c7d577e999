"""What a GRPO step costs as the group grows: seconds and tokens from 8 to 64 rollouts an example, as a picture.

    python tests/bench/growth.py [--rollouts 8 16 32 64] [--dtype float32] [--picture growth.png] [--json FILE]

The work ``labels`` of grpo_step.py with 4 examples. Each size is a process of its own that makes three steps; the last is
shown. "Distinct" are the tokens that the trie computes in the update, "all" those that a batch would hold without its padding.
Needs MMC_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from grpo_step import SOURCE, rounded, run

from mmc.engine.weights import find


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = [row["rollouts"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for key, label in (("seconds", "step"), ("sampling", "of it, sampling")):
        left.plot(sizes, [row[key] for row in rows], marker="o", label=label)
    left.set_ylabel("seconds")
    for key, label in (("plain", "all"), ("packed", "distinct")):
        right.plot(sizes, [row[key] for row in rows], marker="o", label=label)
    right.set_ylabel("tokens of the update")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("rollouts an example (4 examples)")
        axes.set_xticks(sizes)
        axes.set_ylim(bottom=0 if axes is left else None)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--picture", type=Path, default=Path("growth.png"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if "MMC_DATA" not in os.environ:
        raise SystemExit("the public data sets are needed: export MMC_DATA=... (the folder that holds banking77/)")
    folder = str(find([SOURCE], Path).folder)
    rows = []
    for rollouts in options.rollouts:
        found = run("mmc", [folder, "labels", "4", str(rollouts), "24", options.dtype])
        rows.append({"rollouts": rollouts, **found["steps"][-1], "peak_gb": found["peak_gb"]})
        print(json.dumps(rounded(rows[-1])), flush=True)
    draw(rows, options.picture)
    if options.json:
        options.json.write_text(json.dumps({"dtype": options.dtype, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
