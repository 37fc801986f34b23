"""Write the table of benchmarks/README.md from benchmarks/results.json, goals beside what was measured.

python benchmarks/table.py [--results PATH] [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: made by benchmarks/table.py -->\n", "<!-- end of results -->\n"
# What each comparison is to reach, and what would be better still; `<name>_1_thread` has the same.
GOALS: dict[str, tuple[float, float | None]] = {
    "train_vs_peft": (2.5, 3.0),
    "train_vs_peft_sorted": (1.15, 1.3),
    "train_vs_paper": (4.0, 6.0),
    "eval_letters_5shot": (10.0, 12.0),
    "eval_letters_0shot": (1.5, 2.0),
    "eval_text": (3.0, 4.0),
    "eval_text_5shot": (10.0, 15.0),
    "memory_5": (5.0, 6.0),
    "memory_growth": (1.0, None),
    "roofline_train": (1.0, 0.90 / 0.85),
    "roofline_evaluate": (1.0, 0.95 / 0.90),
}


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as Markdown: the comparisons with a goal first, in the goals' order."""
    order = list(GOALS)

    def place(line: dict[str, Any]) -> tuple[int, str]:
        name = _plain(line["name"])
        return (order.index(name) if name in order else len(order)), line["name"]

    rows = ["| name | ours | theirs | unit | ratio (lowest to highest round) | goal | stretch | threads |"]
    rows.append("|---|---:|---:|---|---|---:|---:|---:|")
    for line in sorted(results, key=place):
        goal, stretch = GOALS.get(_plain(line["name"]), (None, None))
        ratio = f"**{line['ratio']:.2f}** ({line['ratio_low']:.2f} to {line['ratio_high']:.2f})"
        missed = goal is not None and line["ratio"] < goal
        said = "" if goal is None else f"{goal:.4g}" + (" (missed)" if missed else "")
        cells = [f"`{line['name']}`" + (" (quick)" if line["quick"] else ""), f"{line['ours']:.4g}"]
        cells += [f"{line['theirs']:.4g}", line["unit"], ratio, said]
        cells += ["" if stretch is None else f"{stretch:.3g}", str(line["machine"]["threads"])]
        rows.append("| " + " | ".join(cells) + " |")
    notes = [f"- `{line['name']}`: {line['note']}" for line in sorted(results, key=place) if line["note"]]
    return "\n".join(rows) + "\n\n" + "\n".join(notes) + "\n\n" + _made(results)


def _plain(name: str) -> str:
    return name.removesuffix("_1_thread")


def _made(results: list[dict[str, Any]]) -> str:
    """Say on which machine and with which versions, each once."""
    machines = {json.dumps({k: v for k, v in line["machine"].items() if k != "threads"}) for line in results}
    versions: dict[str, set[str]] = {}
    for line in results:
        for what, version in line["versions"].items():
            if version:
                versions.setdefault(what, set()).add(version)
    said = [f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB" for m in map(json.loads, sorted(machines))]
    of = ", ".join(f"{what} {' and '.join(sorted(found))}" for what, found in versions.items())
    return f"Measured on: {'; '.join(said)}. Versions: {of}.\n"


def main() -> None:
    """Replace what stands between the marks of the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results.json", help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="only say whether the README holds these results")
    args = parser.parse_args()
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    made = before + BEGIN + "\n" + table(json.loads(args.results.read_text(encoding="utf-8"))) + "\n" + END
    made += rest.split(END)[1]
    if args.check:
        sys.exit(0 if made == text else "benchmarks/README.md does not hold these results: run benchmarks/table.py")
    readme.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
