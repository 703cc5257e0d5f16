"""Whether two records may be compared, what differs between them, and what to say with it. DESIGN section 4. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from perfscope import facts
from perfscope.errors import RecordError
from perfscope.measure import digits, stats
from perfscope.measure.attribution import part_order
from perfscope.record import Run, Warned
from perfscope.sections import plain

UNTRUSTED = ("throttled", "busy-machine", "still-drifting", "few-clean-rounds", "different-kernels", "diverged",
             "loss-not-finite", "own-overhead", "clocks-disagree")      # warnings of a run that its reader must know
SOFTWARE = ("python", "torch", "cuda", "cudnn", "triton", "torchvision", "timm", "transformers", "perfscope", "platform")
HARDWARE = ("driver", "threads", "cores_usable", "cpu_capability", "power_limit_w", "sm_max_mhz")


@dataclass(frozen=True)
class Changed:
    """A setting that differs; None where a run does not have it."""

    what: str
    a: Any
    b: Any


def check_one(side: str, run: Run) -> None:
    """RecordError unless this is a breakdown in which something was measured."""
    if run.kind != "breakdown":
        raise RecordError(f"{side} is the record of a {plain(run.kind)}, not of a breakdown", "Compare two of: perfscope breakdown")
    if facts.published(run):
        raise RecordError(f"{side} holds published figures that perfscope did not measure: there is nothing to test",
                          "Draw them beside your own: perfscope report RUN --with-article")
    if not facts.results(run):
        rows = ", ".join(f"batch {r.batch_size}: {facts.note(r) or plain(r.status)}" for r in run.batches) or "no batch size was started"
        raise RecordError(f"nothing was measured in {side} ({rows})", f"Run it again: {plain(run.provenance.command) or 'perfscope breakdown'}")


def _origin(text: str) -> str:
    """A workload's name or source without the folder of its file and without a library's version."""
    return text.rpartition("/")[2].partition(" ")[0] if "/" in text else text.partition(" ")[0]


def check_both(a: Run, b: Run) -> None:
    """RecordError, naming every difference, unless both are about one workload, one method and a common batch size."""
    wa, wb = a.workload, b.workload
    pairs = [("model", wa.name, wb.name, wa.name.rpartition("/")[2] == wb.name.rpartition("/")[2]),
             ("source", wa.source, wb.source, _origin(wa.source) == _origin(wb.source)),
             ("input", wa.input_shape, wb.input_shape, wa.input_shape == wb.input_shape),
             ("classes", wa.classes, wb.classes, wa.classes == wb.classes)]
    differ = [f"{what} {_text(x)} and {_text(y)}" for what, x, y, same in pairs if not same]
    if differ:
        raise RecordError(f"not the same workload: {'; '.join(differ)}", "Measure both with the same --model, --input and --classes.")
    versions = [plain(r.method.get("version", "unknown")) for r in (a, b)]
    if versions[0] != versions[1]:
        raise RecordError(f"not measured by the same method: version {versions[0]} and {versions[1]}",
                          "Measure the older one again with this perfscope: what changed is in CHANGELOG, under Method.")
    sizes = [[r.batch_size for r in facts.results(run)] for run in (a, b)]
    if not set(sizes[0]) & set(sizes[1]):
        shown = [",".join(map(str, s)) for s in sizes]
        raise RecordError(f"no batch size in common: A has {shown[0]}, B has {shown[1]}",
                          f"Measure B again with --batch {shown[0]}")


def other_device(a: Run, b: Run) -> str:
    """Why times must not be divided: the runs were made on different devices. "" if on the same one, as far as known."""
    ea, eb = a.environment, b.environment
    if (ea.device, ea.device_name) != (eb.device, eb.device_name):
        return f"another device: {plain(ea.device_name or ea.device)} and {plain(eb.device_name or eb.device)}"
    known = [(x, y) for x, y in ((ea.device_hash, eb.device_hash), (ea.host_hash, eb.host_hash)) if x and y]
    if known and known[0][0] != known[0][1]:                # a GPU is known by its own id, a CPU by its host's
        kind = "GPU" if ea.device == "cuda" else "machine"
        return f"another {kind} of the same name ({plain(ea.device_name)}): two of a kind differ by several per cent"
    return ""


def _text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "x".join(map(plain, value)) or "unknown"
    return plain(value) or "unknown"


def changes(a: Run, b: Run) -> tuple[Changed, ...]:
    """Every setting that differs and may explain a difference, in words."""
    rows = []
    for run in (a, b):
        w, e, g = run.workload, run.environment, run.provenance.git
        options = run.method.get("options") if isinstance(run.method.get("options"), dict) else {}
        rows.append({
            **{name.replace("_", " "): getattr(w, name) for name in
               ("dtype", "memory_format", "compile", "cuda_graph", "optimizer", "loss", "data", "parameters")},
            "MFLOP per sample": round(run.inspection.flops_step / 1e6, 2) if run.inspection else None,
            "parts": tuple(options.get("parts") or ()) or None, "order": tuple(options.get("order") or ()) or None,
            "ranks": e.world_size,
            **{k: e.software.get(k) or run.provenance.versions.get(k) for k in SOFTWARE},
            **{k: e.hardware.get(k) for k in HARDWARE}, **e.switches, **e.variables,
            "git commit": str(g["commit"])[:10] if g.get("commit") else None, "uncommitted changes": g.get("dirty")})
    return tuple(Changed(k, rows[0].get(k), rows[1].get(k)) for k in dict.fromkeys([*rows[0], *rows[1]])
                 if rows[0].get(k) != rows[1].get(k))


def notes(a: Run, b: Run, common: list[int], felt: list[str], ratios: bool) -> list[Warned]:
    """What has to be said with a comparison: what the runs' own warnings are, and what its intervals do not hold.

    felt    settings that differ and that a canary feels; ratios: whether times are compared at all
    """
    out = []
    if a == b:
        out.append(Warned("same-record", "A and B are the same record."))
    partial, wide = [], []
    for side, run in (("A", a), ("B", b)):
        seen: dict[str, list] = {}
        for w in run.warnings:
            if w.code in UNTRUSTED and w.batch_size in (None, *common):
                seen.setdefault(w.code, []).extend([w.batch_size] if w.batch_size else [])
        if seen:
            told = [code + (f" (batch {', '.join(map(str, dict.fromkeys(at)))})" if at else "") for code, at in seen.items()]
            out.append(Warned("warned", f"{side} carries warnings: {', '.join(told)}.", f"Read them: perfscope report {side}"))
        rows = [r for r in facts.results(run) if r.batch_size in common]
        if run.status != "complete" or any(r.status == "partial" for r in rows):
            partial.append(f"{side} ({run.status})")
        target = run.method.get("target_half_width")
        target = target if isinstance(target, (int, float)) else stats.TARGET
        sizes = [f"{r.batch_size} ({'±' + digits.format_change(half) if math.isfinite(half) else 'unknown'})"
                 for r in rows if not (half := r.derived.half_width) <= target]
        wide += [f"{side} at batch {', '.join(sizes)}"] if sizes else []
    if partial:
        out.append(Warned("partial", f"{' and '.join(partial)} did not come to {'its' if len(partial) == 1 else 'their'} end: what is "
                          "there was measured, with fewer rounds."))
    if wide:
        out.append(Warned("wide", f"wider than the target for a part's share: {'; '.join(wide)}.", "Give it more time with --budget."))
    ladders = {tuple(part_order(r)) for run in (a, b) for r in facts.results(run) if r.batch_size in common}
    if len(ladders) > 1:
        out.append(Warned("other-ladder", "The ladders differ (" + " against ".join(" ".join(x) or "none" for x in sorted(ladders)) +
                          "): a part's change may come from its place in the order.", "Measure both with the same --order and --parts."))
    if ratios:
        if felt:
            out.append(Warned("drift-unknown", f"The canary feels what changed ({', '.join(felt)}): it says nothing about drift between the two runs, "
                              "and the intervals hold none.", "Measure A and B again, in turns."))
        processes = [r.method.get("processes", 1) for r in (a, b)]
        if all(n == 1 for n in processes):
            out.append(Warned("one-process", "A and B are one process each: what differs from process to process (choices of algorithm, layout of "
                              "memory) is not in these intervals.", "Before you rely on a small change, measure A and B again, in turns."))
    return out
