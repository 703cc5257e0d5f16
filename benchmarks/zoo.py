"""Takes every model of the zoo apart and prints what was removed from each, and what was left behind (issue 2, bar 3).

    python -m benchmarks.zoo [--markdown]
"""

from __future__ import annotations

import sys

from perfscope.workload import census
from tests.zoo.models import ZOO
from tests.zoo.test_zoo import take_apart


def main() -> int:
    """One line per model; 1 if any has a residue or lost a convolution or matmul."""
    markdown, bad, done = "--markdown" in sys.argv, 0, 0
    print("| model | removed | by hand | parameters given a gradient | residue |\n|---|---|---|---|---|" if markdown
          else f"{'model':<34} removed operations per part")
    for name in ZOO:
        try:
            inspection, _, _ = take_apart(name)
        except ModuleNotFoundError as e:
            print(f"{name}: {e.name} is not installed")
            continue
        done += 1
        problem = inspection.residues or census.different_work(inspection)
        bad += bool(problem)
        removed = ", ".join(f"{part} {sum(n for op, n in ops.items() if op != 'detach')}" for part, ops in inspection.removed.items())
        hand = sorted({kind.split(" ")[0] for kind in inspection.extra["handwritten"].values()})
        filled = max(len(v) for v in inspection.without_gradient.values())
        if markdown:
            print(f"| {name} | {removed} | {', '.join(hand) or '-'} | {filled} | {problem or 'none'} |", flush=True)
        else:
            print(f"{name:<34} {removed}; by hand: {', '.join(hand) or '-'}; gradients given: {filled}; residue: {problem or 'none'}", flush=True)
    print(f"\n{done} models, {bad} with a residue or other work")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
