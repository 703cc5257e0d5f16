"""Applies cures one by one and keeps what an interleaved A/B proves: `fix(model)` gives the record. Nothing is printed here.

For each cure that `diagnose` proposes, on top of those kept so far: at least 10 interleaved rounds in each of 3 processes, and
in 4 more if those leave it open, the process as the unit of the interval (METHOD 5 and 14), verdict by METHOD 8; a cure that
is FASTER has its numerics checked, in yet another process, and is kept if they hold. What is rejected is a result too. At the
end the whole stack is measured against the original again. The record is written after every trial: interrupted, it keeps
what was proven.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from perfscope import elsewhere, probing
from perfscope.diagnose import Asked, choose, diagnose, spending
from perfscope.errors import PerfscopeError, UsageError
from perfscope.finding import Finding, Numerics, Trial
from perfscope.measure import stats
from perfscope.options import Options, check
from perfscope.record import Warned, save
from perfscope.records.fix import Record

PROCESSES = 3               # METHOD 14
FURTHER = 4                 # if these leave a change that would matter UNCLEAR: processes differ, most of all by where their memory lies,
STRICT = 0.98               # and the second look at them all wants an interval of this confidence to be without 0
LEAST_ROUNDS = 10           # METHOD 14, per process
MOST_ROUNDS = 40            # per process: beyond, what differs between processes is what limits
BUDGET_S = 180.0            # of measuring over all trials, if --budget was not given
TARGET = 0.005              # METHOD 6
CURED = "cured"
CONFIRM_PAIRS = 12          # METHOD 14 asks for 5; the difference of two MNIST accuracies varies by 0.09 points, and the margin is 0.1


def fix(model: Any = "resnet9", *, options: Options | None = None, asked: Asked = Asked(), cures: tuple[str, ...] = (), out=None, run_id: str = "",
        confirm: bool = False, budget_s: float = BUDGET_S, stage: Callable[[str], None] = lambda text: None, **named) -> Record:
    """What cures bring to a training step, each proven or rejected.

    model, options, asked   as for `diagnose`
    cures    only these, in this order ("probe" or "probe:candidate"), whether they were found or not
    out      folder for run.json
    budget_s of measuring, shared by all trials; the least rounds of each and further processes may take it beyond
    confirm  hand the base and the fixed workload to the speedrun protocol at the end
    Interrupted by Ctrl-C it gives what was tried, status "interrupted"; KeyboardInterrupt if that is nothing.
    """
    from perfscope.measure.ranks import Ranks
    from perfscope.provenance import method, new_id, provenance

    by_name = isinstance(model, str)
    name = model if by_name else getattr(model, "name", "") or type(model).__name__
    options = check(replace(options or Options(), **{"model": name, "budget_s": budget_s, **named}))
    chosen = choose(asked)
    for cure in cures:
        _known(cure, chosen)
    found = diagnose(model, options=options, asked=asked, stage=stage)
    options = replace(options, batch_sizes=(found.batch_size,))
    record = Record(run_id or new_id(name), provenance=provenance(options, by_name, Ranks(), "fix"), environment=found.environment, workload=found.workload,
                    method={**method(options), "processes": PROCESSES if by_name else 1, "further": FURTHER if by_name else 0,
                            "least_rounds": LEAST_ROUNDS}, batch_size=found.batch_size,
                    findings=found.findings, warnings=found.warnings, own_cost=dict(found.own_cost))
    lab = Lab(model, by_name, options, asked, chosen, found.step.point if found.step else 0.1)
    lab.device = found.environment.device or lab.device
    order = list(cures) or candidates(found.findings, chosen)
    lab.budget_s = options.budget_s / (PROCESSES * max(1, len(order) + 1))

    def put(**changes) -> None:
        nonlocal record
        record = replace(record, **changes)
        if out is not None:
            save(record, Path(out) / "run.json")
    if found.status == "interrupted":
        put(status="interrupted")
        return record
    try:
        for i, cure in enumerate(order):
            done = next((k for k in record.kept if _probe(k) == _probe(cure)), None)
            if done:
                reason = f"{done} is kept already: another cure of the same"
                put(trials=(*record.trials, Trial(cure, record.kept, "rejected", reason=reason, text=lab.text(cure))))
                continue
            stage(f"{i + 1} of {len(order)}: {cure}")
            with spending(record.own_cost, "trials_s"):
                trial = lab.attempt(cure, record.kept)
            kept = (*record.kept, cure) if trial.outcome == "kept" else record.kept
            put(trials=(*record.trials, trial), kept=kept)
        if record.kept:
            stage("the whole stack against the original")
            with spending(record.own_cost, "final_s"):
                put(**lab.final(record.kept))
        put(**outcome(model, by_name, record, options, chosen, found))
        if confirm:
            stage("training both to the end, in pairs")
            with spending(record.own_cost, "confirm_s"):
                put(confirmed=lab.confirm(record))
        put(status="incomplete" if found.failed else "complete")
    except KeyboardInterrupt:
        if not record.trials and not record.findings:
            raise
        put(status="interrupted")
    return record


def judged(estimates: list, rounds: int) -> tuple[stats.Interval, stats.Verdict]:
    """(the 95 % interval over processes, the verdict on it). With FURTHER processes, at the second look, STRICT has to agree."""
    change, chance = stats.over_processes(estimates), None
    if len(estimates) > PROCESSES:
        strict = stats.over_processes(estimates, STRICT)
        chance = 0.0 if strict.low > 0 or strict.high < 0 else 1.0
    return change, stats.verdict(change, rounds, adjusted_p=chance)


def candidates(findings: tuple[Finding, ...], chosen: dict) -> list[str]:
    """The cures to try: those of the most valuable findings first, those that take long to try after the others."""
    fired = dict.fromkeys(f.probe for f in findings if f.curable and not f.known)
    first = {f.probe: f.extra.get("cure", "") for f in findings}
    names = [(probing.costly(chosen[p], c), i, c != first[p], c) for i, p in enumerate(fired) for c in probing.cure_names(p, chosen[p])]
    return [c for *_, c in sorted(names, key=lambda n: n[:3])]


def _probe(cure: str) -> str:
    return cure.partition(probing.SEPARATOR)[0]


def _known(cure: str, chosen: dict) -> None:
    probe = _probe(cure)
    if probe not in chosen:
        raise UsageError(f"there is no probe {probe!r} (--cures)", f"Known: {', '.join(chosen)}")
    if cure not in probing.cure_names(probe, chosen[probe]):
        raise UsageError(f"the probe {probe} has no cure {cure!r}", f"It has: {', '.join(probing.cure_names(probe, chosen[probe])) or 'none'}")


class Lab:
    """Where trials are made: in processes of their own if a name stands for the workload, else in this one."""

    def __init__(self, model, by_name: bool, options: Options, asked: Asked, chosen: dict, step_s: float):
        self.model, self.by_name, self.options, self.asked, self.chosen = model, by_name, options, asked, chosen
        self.step_s, self.budget_s = step_s, 10.0
        self.size, self.device = options.batch_sizes[0], "cpu"

    def text(self, cure: str) -> str:
        """What a cure does: the probe's heading "Cure", first paragraph."""
        text = probing.text_of(_probe(cure), self.chosen[_probe(cure)]).get("Cure", "")
        return " ".join(text.split("\n\n")[0].split())

    def attempt(self, cure: str, kept: tuple[str, ...]) -> Trial:
        """One cure on top of those kept: measured, judged, its numerics checked."""
        trial = Trial(cure, kept, batch_size=self.size, text=self.text(cure), code=probing.code_of(self.chosen[_probe(cure)], self.device))
        trial = self.measured(trial, kept, (*kept, cure))
        if trial.outcome or trial.verdict != "FASTER":
            return trial if trial.outcome else replace(trial, outcome="rejected")
        numerics = self.numerics(kept, (*kept, cure))
        if not numerics.passed:
            return replace(trial, outcome="rejected", numerics=numerics, reason=f"faster, but the numerics do not hold: {numerics.text}")
        return replace(trial, outcome="kept", numerics=numerics)

    def measured(self, trial: Trial, before: tuple[str, ...], cured: tuple[str, ...]) -> Trial:
        """The trial with the rounds of all processes and the verdict on them."""
        from perfscope.turns import BEFORE, changes
        processes, estimates, turns = [], [], None
        for more in (PROCESSES, FURTHER) if self.by_name else (1,):
            with elsewhere.started(*["perfscope.turns"] * more if self.by_name else ()) as started:
                for process in started or (None,):
                    try:
                        turns = self.turns({BEFORE: before, CURED: cured}, len(processes), process)
                    except PerfscopeError as e:
                        return replace(trial, outcome="not-applicable", error=e.message, reason=e.hint)
                    if CURED in turns.errors:
                        return replace(trial, outcome="not-applicable", error=turns.errors[CURED])
                    if turns.stop == "interrupted" and len(turns.rounds) < stats.EXACT_N // 5:
                        raise KeyboardInterrupt
                    processes.append(turns.rounds)
                    estimates.append(changes(turns.rounds, CURED))
            change, verdict = judged(estimates, sum(map(len, processes)))
            if verdict.word != "UNCLEAR" or abs(change.point) < stats.MATTERS:
                break
        least = min(map(len, processes))
        if least < LEAST_ROUNDS:                # the machine stood still: what is too little proves nothing
            verdict = replace(verdict, word="UNCLEAR", reason=f"a process came to {least} rounds, {LEAST_ROUNDS} are needed: give it more time (--budget)")
        memory = turns.peak_memory_bytes
        return replace(trial, change=change, verdict=verdict.word, reason=verdict.reason, processes=tuple(processes),
                       memory_before_bytes=memory.get(BEFORE), memory_bytes=memory.get(CURED))

    def turns(self, stacks: dict, number: int, process):
        """The rounds of the process of this number; here, where it is None."""
        from perfscope.turns import take_turns, take_turns_elsewhere
        a_round = len(stacks) * (self.step_s + max(self.step_s, 0.02)) + 0.05
        limits = {"budget_s": max(self.budget_s, LEAST_ROUNDS * 1.5 * a_round), "target": TARGET, "max_rounds": MOST_ROUNDS,
                  "seed": self.options.seed + number,
                  "keep_heap": not probing.about_heap((c for s in stacks.values() for c in s), self.chosen)}
        if process is not None:
            return take_turns_elsewhere(process, self.options, stacks, self.size, folders=self.asked.folders, **limits)
        return take_turns(self._make, stacks, device=self.options.device, batch_size=self.size, keep_original=True, **limits)

    def confirm(self, record: Record) -> dict:
        """Base and stack trained to the end by the recipe that fits, in pairs with equal seeds: the speedrun's comparison, JSON-ready.

        {"waived": why} where nothing was kept, the numerics are unchanged, or no recipe trains such a workload.
        """
        from perfscope.speedruns import arms
        from perfscope.record import to_dict
        from perfscope.speedrun import confirm
        if not record.kept:
            return {"waived": "no cure was kept"}
        numerics = record.final.numerics if record.final else None
        if numerics is not None and numerics.curve and numerics.curve == numerics.curve_before:
            return {"waived": "the numerics are unchanged: every loss is the same to the last bit"}
        try:
            made = [arms.from_workload(self._make(stack)) for stack in ((), record.kept)]
            run = confirm(*made, pairs=CONFIRM_PAIRS, device=self.options.device, seed=self.options.seed)
        except PerfscopeError as e:
            return {"waived": f"not possible: {e.message}"}
        return {"pairs": CONFIRM_PAIRS, "recipe": made[0].arm.recipe, "comparison": to_dict(run.comparisons[0]), "words": run.comparisons[0].verdict,
                "split": run.data.split}

    def _make(self, stack):
        from perfscope.workload.resolve import resolve
        from perfscope.workload.step import with_options
        workload = with_options(resolve(self.model, self.options.input_shape, self.options.classes), self.options)
        return probing.apply(workload, stack, self.chosen)

    def numerics(self, before: tuple[str, ...], cured: tuple[str, ...]) -> Numerics:
        """The numerics of the cured workload beside the other's."""
        from perfscope import numerics
        size = min(self.size, 32)               # enough samples for a gradient, and quick in float64
        try:
            if self.by_name:
                return numerics.compare_elsewhere(self.options, before, cured, size, self.asked.folders)
            return numerics.compare(self._make(before), self._make(cured), device=self.options.device, batch_size=size, seed=self.options.seed)
        except PerfscopeError as e:
            return Numerics(False, "", math.nan, math.nan, math.nan, math.nan, math.nan, text=f"could not be compared: {e.message}")

    def final(self, kept: tuple[str, ...]) -> dict:
        """The record's fields about the whole stack."""
        from perfscope.turns import BEFORE
        trial = self.measured(Trial("all", (), batch_size=self.size), (), kept)
        rounds = [r for process in trial.processes for r in process]
        seconds = lambda name: stats.seconds_interval([r.step_s[name] for r in rounds]) if rounds else None  # noqa: E731
        numerics = self.numerics((), kept) if not trial.outcome else None
        return {"final": replace(trial, outcome=trial.outcome or "kept", numerics=numerics), "step_before": seconds(BEFORE), "step_after": seconds(CURED)}


def outcome(model, by_name: bool, record: Record, options: Options, chosen: dict, found) -> dict:
    """The record's fields that follow from what was kept: the code, the patch, the floor."""
    code = dict.fromkeys(probing.code_of(chosen[_probe(c)], found.environment.device) for c in record.kept)
    changes: dict[str, Any] = {"code": "\n".join(line for line in code if line)}
    if by_name and record.kept:
        from perfscope.patch import patch_for
        made = patch_for(options.model, record.kept, chosen, found.environment.device)
        changes |= {"patch": made.diff, "extra": {**record.extra, "patch_file": made.file, "not_patched": list(made.missing)}}
    if by_name:
        try:
            changes["floor_s"] = floor_of(options, record.batch_size)
        except PerfscopeError as e:
            changes["warnings"] = (*record.warnings, Warned("not-counted", f"the floor is missing: {e.message}", e.hint))
    return changes


def floor_of(options: Options, batch_size: int) -> float | None:
    """The floor of the original step in seconds (METHOD 12), counted in a process of its own."""
    from perfscope.measure import floor
    from perfscope.measure.attribution import floor_seconds
    from perfscope.workload import census, step
    inspection = census.inspect_elsewhere(options, batch_size, ("optimizer",))
    ceilings = floor.ceilings(step.check_device(options.device), options.dtype)
    return floor_seconds(inspection, ceilings, batch_size) or None
