"""Which variants a breakdown times: the ladder, the brackets around it, or all 2^p. Standard library only."""

from __future__ import annotations

from itertools import combinations

from perfscope.errors import UsageError
from perfscope.record import PARTS

MOST_PARTS_FOR_ALL = 4      # METHOD 9: with <= 4 parts, all 2^p variants
ROUNDS_WANTED = 20          # METHOD 6: the first look; an attribution that cannot get there in the budget is not chosen


def ladder_order(present, order=()) -> tuple[str, ...]:
    """The present parts in the order of the ladder: those of `order` first, the others in the usual order after them.

    Raises UsageError for a part in `order` that the step does not have.
    """
    missing = [p for p in order if p not in present]
    if missing:
        raise UsageError(f"this step has no part {', '.join(missing)} (--order)", f"It has: {', '.join(present)}")
    return (*order, *(p for p in PARTS if p in present and p not in order))


def variant_sets(order, attribution: str) -> list[tuple[str, ...]]:
    """The sets of parts to time, each in ladder order, the full step last, none twice.

    "ladder": the base, then one part more each time. "brackets": also the base with each single part, and the full step
    without each. "shapley": every subset.
    """
    order = tuple(order)
    wanted = [order[:i] for i in range(len(order) + 1)]
    if attribution == "brackets":
        wanted += [(p,) for p in order] + [tuple(q for q in order if q != p) for p in order]
    elif attribution == "shapley":
        if len(order) > MOST_PARTS_FOR_ALL:
            raise UsageError(f"{len(order)} parts have {2 ** len(order)} variants: too many for --attribution shapley",
                             f"Use brackets, or name at most {MOST_PARTS_FOR_ALL} parts with --parts.")
        wanted += [s for n in range(len(order) + 1) for s in combinations(order, n)]
    unique = list(dict.fromkeys(s for s in wanted if s != order))
    return [*unique, order]


def affordable(order, step_s: list[float], steps_per_round: int, budget_s: float) -> str:
    """The richest attribution that gets ROUNDS_WANTED rounds at every batch size out of the budget.

    `step_s`: seconds of one full step per batch size; each variant costs `steps_per_round` of about that per round.
    """
    for attribution in ("shapley", "brackets"):
        if attribution == "shapley" and len(order) > MOST_PARTS_FOR_ALL:
            continue
        n = len(variant_sets(order, attribution))
        if ROUNDS_WANTED * n * steps_per_round * sum(step_s) <= budget_s:
            return attribution
    return "ladder"
