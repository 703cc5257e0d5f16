"""Finds the slow paths of a training step: `diagnose(model)` gives the record. Nothing is printed here.

Nothing is measured in the caller's process: a trace is recorded in one, evidence is gathered and probes are asked in a
second, and the cures that they propose are looked at in a third, in which no profiler ever ran (METHOD 13): a few interleaved
rounds of the whole step, so that findings are ranked by what their cure brought here, not by what it should. The three import
torch at the same time, and do the rest one after the other.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable

from perfscope import elsewhere, probing
from perfscope.errors import EnvironmentError_, PerfscopeError, UsageError
from perfscope.finding import Finding, ranked
from perfscope.measure import stats
from perfscope.options import Options, check, options_from
from perfscope.record import Environment, Warned, WorkloadInfo, from_dict, save
from perfscope.records.diagnose import Record

LOOK_S = 4.0                # of the quick look at all cures together
LOOK_ROUNDS = 20
LOOK_TARGET = 0.02          # half-width; a look need not see what a proof has to
TRACED = 2                  # steps of the trace
EVIDENCE, TRACE, LOOK = "perfscope.diagnose", "perfscope.trace.record", "perfscope.turns"


@dataclass(frozen=True)
class Asked:
    """Which probes to run and how: names to leave out, folders of private ones, the baseline's keys, whether to look at cures."""

    only: tuple[str, ...] = ()
    suppress: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    baseline: tuple[str, ...] = ()
    trace: bool = True
    look: bool = True


def diagnose(model: Any = "resnet9", *, options: Options | None = None, asked: Asked = Asked(), out=None, run_id: str = "",
             stage: Callable[[str], None] = lambda text: None, **named) -> Record:
    """The slow paths of a training step, the most valuable first.

    model    a name, as for breakdown, or a workload (then everything runs in this process, without a trace)
    options  perfscope.options.Options, or its fields by name; at most one batch size
    out      folder for run.json
    Raises PerfscopeError for what the user can put right. A probe that fails is in `failed`; status "incomplete" then.
    Ctrl-C in the quick look gives what was found, status "interrupted"; before that there is nothing, and KeyboardInterrupt.
    """
    by_name = isinstance(model, str)
    name = model if by_name else getattr(model, "name", "") or type(model).__name__
    options = check(replace(options or Options(), **{"model": name, **named}))
    if len(options.batch_sizes) > 1:
        raise UsageError("a diagnosis is of one batch size", "For example: --batch 128")
    cost: dict[str, float] = {}
    with elsewhere.started(*processes(asked) if by_name else ()) as started:    # first of all: they import while this process does
        from perfscope.measure.ranks import Ranks
        from perfscope.provenance import new_id, provenance

        chosen = choose(asked)
        record = Record(run_id or new_id(name), provenance=provenance(options, by_name, Ranks(), "diagnose"), suppressed=asked.suppress)
        if by_name:
            record, findings = _elsewhere(dict(zip(processes(asked), started)), options, asked, chosen, record, cost, stage)
        else:
            record, findings = _here(model, options, asked, chosen, record, cost, stage)
    ended = "incomplete" if any(f in chosen for f in record.failed) else "complete"
    record = replace(record, findings=known(ranked(findings), asked.baseline), own_cost=cost,
                     status="interrupted" if record.status == "interrupted" else ended)
    if out is not None:
        save(record, Path(out) / "run.json")
    return record


def choose(asked: Asked) -> dict:
    """The probes to run by name. UsageError for a name in `only` or `suppress` that there is not."""
    found = probing.probes(asked.folders)
    for what, names in (("--only", asked.only), ("--suppress", asked.suppress)):
        unknown = [n for n in names if n not in found]
        if unknown:
            raise UsageError(f"there is no probe {unknown[0]!r} ({what})", f"Known: {', '.join(sorted(found))}")
    return {n: m for n, m in found.items() if (not asked.only or n in asked.only) and n not in asked.suppress}


def known(findings, baseline) -> tuple[Finding, ...]:
    """The findings, those of the baseline marked and last."""
    return ranked(replace(f, known=f.known or f.key in baseline) for f in findings)


def read_baseline(path) -> tuple[str, ...]:
    """The keys of the findings in a baseline file: a record of `diagnose`. UsageError if it cannot be read."""
    from perfscope.record import load
    record = load(path)
    if record.kind != "diagnose":
        raise UsageError(f"{path} is the record of a {record.kind}, not of a diagnosis", "Make one: perfscope diagnose ... --out FOLDER")
    return tuple(f.key for f in record.findings)


# ---------------------------------------------------------------- by name: in processes of their own

def processes(asked: Asked) -> tuple[str, ...]:
    """What runs in a process of its own, in the order in which it does."""
    return (TRACE,) * asked.trace + (EVIDENCE,) + (LOOK,) * asked.look


def _elsewhere(started, options, asked, chosen, record, cost, stage):
    """(the record so far, the findings) of a name. `started`: process by what it does."""
    from perfscope.trace.record import record_elsewhere
    from perfscope.turns import BEFORE, take_turns_elsewhere

    wanted = asked.trace and any("trace" in m.USES for m in chosen.values())
    stage(f"gathering evidence{' and a trace' * wanted}, asking the probes")
    with tempfile.TemporaryDirectory() as folder, spending(cost, "evidence_s"):
        trace, said = None, []
        if wanted:
            with spending(cost, "trace_s"):
                trace, size, said = record_elsewhere(started[TRACE], options, folder, steps=TRACED, warmup=1, shapes=True)
            options = replace(options, batch_sizes=options.batch_sizes or ((size,) if size else ()))
        answer = started[EVIDENCE].ask({"options": options.as_dict(), "only": list(chosen), "trace": trace, "folders": [str(f) for f in asked.folders]},
                                         "gathering evidence")
    seen = from_dict(Seen, answer)
    record = replace(record, environment=seen.environment, workload=seen.workload, batch_size=seen.batch_size, failed=seen.failed,
                     skipped=seen.skipped, silent=seen.silent, warnings=(*record.warnings, *said, *seen.warnings))
    stacks = to_look_at(seen.findings, chosen)
    if not (asked.look and stacks):
        return record, seen.findings
    stage(f"a quick look at {len(stacks)} cure{'s' * (len(stacks) > 1)}, in turns with the original")
    try:
        with spending(cost, "look_s"):
            turns = take_turns_elsewhere(started[LOOK], options, {BEFORE: (), **{c: (c,) for c in stacks}}, seen.batch_size, folders=asked.folders,
                                         budget_s=LOOK_S, target=LOOK_TARGET, max_rounds=LOOK_ROUNDS, seed=options.seed,
                                         keep_heap=not probing.about_heap(stacks, chosen))
    except PerfscopeError as e:
        return replace(record, warnings=(*record.warnings, Warned("no-look", f"the cures could not be looked at: {e.message}", e.hint))), seen.findings
    except KeyboardInterrupt as e:
        return looked(record, seen.findings, cut_short(getattr(e, "answer", None)), chosen)
    return looked(record, seen.findings, turns, chosen)


def cut_short(answer: dict | None):
    """The turns of a look that Ctrl-C ended: what its process still answered, or none."""
    from perfscope.turns import Turns
    return replace(from_dict(Turns, answer) if answer and "error" not in answer else Turns(), stop="interrupted")


@dataclass(frozen=True)
class Seen:
    """What the process that gathers evidence answers."""

    environment: Environment = Environment()
    workload: WorkloadInfo = WorkloadInfo()
    batch_size: int = 0
    findings: tuple[Finding, ...] = ()
    failed: dict[str, str] = None
    skipped: dict[str, str] = None
    silent: tuple[str, ...] = ()
    warnings: tuple[Warned, ...] = ()


def answer(request: dict) -> Seen:
    """What the process of its own does: builds the workload, gathers evidence, asks the probes."""
    from perfscope.workload import step
    from perfscope.workload.resolve import resolve

    options = options_from(request["options"])
    everything = probing.probes(request["folders"])
    workload = step.with_options(resolve(options.model, options.input_shape, options.classes), options)
    return look_into(workload, options, {n: everything[n] for n in request["only"]}, request["trace"], keep_original=False)


def look_into(workload, options: Options, chosen: dict, trace: str | None, keep_original: bool) -> Seen:
    """Evidence of a workload, with a trace that another process recorded, and what the probes say about it. No profiler runs here."""
    from perfscope import evidence as gathering
    from perfscope.measure import machine
    from perfscope.provenance import workload_info
    from perfscope.workload import fit, step

    device = step.check_device(options.device)
    prepared = step.prepare(workload, device=device, keep_original=keep_original, seed=options.seed)
    try:
        size = options.batch_sizes[0] if options.batch_sizes else fit.one_size(prepared)
        evidence = gathering.gather(prepared, step.load_batches(prepared, size))
    except (PerfscopeError, KeyboardInterrupt):
        raise
    except Exception as e:
        if fit.is_out_of_memory(e):
            raise EnvironmentError_(f"the step does not fit: {fit.out_of_memory_text(e)}", "Give a smaller batch: --batch 8") from None
        raise fit.own_error(e, options.batch_sizes[0] if options.batch_sizes else 0) from None
    warnings = []
    if trace is not None:
        from perfscope.trace.analysis import analyze_files
        try:
            evidence = replace(evidence, trace=analyze_files(trace, cache=False).ranks[0])
        except PerfscopeError as e:
            warnings = [Warned("no-trace", f"the recorded trace cannot be read: {e.message}", e.hint)]
    findings, failed, skipped = probing.detect(chosen, evidence)
    fired = {f.probe for f in findings}
    silent = tuple(n for n in chosen if n not in fired and n not in failed and n not in skipped)
    return Seen(machine.fingerprint(device), workload_info(prepared, options), size, tuple(findings), failed, skipped, silent, tuple(warnings))


# ---------------------------------------------------------------- the quick look

def to_look_at(findings, chosen: dict) -> list[str]:
    """The cures of what was found that can be tried quickly, each once."""
    fired = dict.fromkeys(f.probe for f in findings if not f.known and f.curable)
    return [c for n in fired for c in probing.cure_names(n, chosen[n]) if not probing.costly(chosen[n], c)]


def looked(record: Record, findings, turns, chosen: dict) -> tuple[Record, list[Finding]]:
    """The record with the rounds of the look, and the findings with what their best cure brought in it."""
    from perfscope.turns import BEFORE, changes
    out = []
    for f in findings:
        names = [c for c in probing.cure_names(f.probe, chosen[f.probe])]
        seen = {c: changes(turns.rounds, c) for c in names if any(c in r.step_s for r in turns.rounds)}
        broken = {c: turns.errors[c] for c in names if c in turns.errors}
        if seen:
            best = min(seen, key=lambda c: seen[c].point)
            verdict = stats.verdict(seen[best], len(turns.rounds))
            f = replace(f, change=seen[best], verdict=verdict.word, note=caution(verdict) or f.note, extra={**f.extra, "cure": best})
        elif broken:
            f = replace(f, note=f"the cure cannot be applied here: {next(iter(broken.values()))}")
        elif f.curable and any(probing.costly(chosen[f.probe], c) for c in names):
            f = replace(f, note=f.note or "not tried here, because compiling takes long: it may also be slower; `perfscope fix` measures it")
        out.append(f)
    step = stats.seconds_interval([r.step_s[BEFORE] for r in turns.rounds]) if turns.rounds else None
    record = replace(record, status="interrupted") if turns.stop == "interrupted" else record
    return replace(record, rounds=turns.rounds, step=step, warnings=(*record.warnings, *turns.warnings)), out


def caution(verdict: stats.Verdict) -> str:
    """What has to be said of a cure that its quick look did not recommend; "" if it did, or may have."""
    if verdict.word == "SLOWER":
        return "the cure makes the step slower here: do not apply it"
    if verdict.word != "FASTER" and verdict.change.point >= 0:
        return "the quick look saw no gain: the cure may make the step slower here; `perfscope fix` measures it"
    return ""


def _here(model, options, asked, chosen, record, cost, stage):
    """A workload that no name stands for: everything in this process, without a trace."""
    from perfscope.turns import BEFORE, take_turns
    from perfscope.workload import step
    from perfscope.workload.resolve import resolve

    workload = step.with_options(resolve(model, options.input_shape, options.classes), options)
    stage("gathering evidence, asking the probes")
    with spending(cost, "evidence_s"):
        seen = look_into(workload, options, chosen, None, keep_original=True)
    record = replace(record, environment=seen.environment, workload=seen.workload, batch_size=seen.batch_size, failed=seen.failed,
                     skipped=seen.skipped, silent=seen.silent, warnings=(*seen.warnings, Warned(
                         "one-process", "the workload was given as an object: evidence and timing share one process, and there is no trace",
                         "Give its name (package.module:function) to have them apart.")))
    stacks = to_look_at(seen.findings, chosen)
    if not (asked.look and stacks):
        return record, seen.findings
    stage("a quick look at the cures")
    with spending(cost, "look_s"):
        try:
            turns = take_turns(lambda stack: probing.apply(workload, stack, chosen), {BEFORE: (), **{c: (c,) for c in stacks}}, device=options.device,
                               batch_size=seen.batch_size, budget_s=LOOK_S, target=LOOK_TARGET, max_rounds=LOOK_ROUNDS, seed=options.seed, keep_original=True,
                               keep_heap=not probing.about_heap(stacks, chosen))
        except KeyboardInterrupt:
            turns = cut_short(None)
    return looked(record, seen.findings, turns, chosen)


@contextlib.contextmanager
def spending(cost: dict[str, float], name: str):
    """Adds the seconds inside to cost[name]."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        cost[name] = cost.get(name, 0.0) + time.perf_counter() - begin


if __name__ == "__main__":
    elsewhere.serve(answer)
