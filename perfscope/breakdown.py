"""Takes a training step apart: `breakdown(workload)` gives a Run. Nothing is printed here.

Order of things (METHOD): every batch size is tried once, operations are counted in a process of their own, the ceilings
are measured, then each batch size is one block of interleaved rounds, the blocks in random order. The record is written
after each block, and every few seconds within one, so that whatever ends the run, what was measured stays.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

import torch

from perfscope import variants as design
from perfscope.errors import EnvironmentError_, PerfscopeError, UsageError, WorkloadError
from perfscope.measure import attribution, floor, heap, machine
from perfscope.measure.clock import clock_for
from perfscope.measure.ranks import Ranks, is_lost, join, lost
from perfscope.measure.rounds import LEAD_IN_STEPS, LEAD_IN_STEPS_CPU, Progress
from perfscope.options import PRECISION, Options, check
from perfscope.record import BatchResult, Ceilings, Run, Warned, save
from perfscope.provenance import method, new_id, provenance, workload_info
from perfscope.selfcheck import last as last_selfcheck
from perfscope.workload import census, feed, fit, step
from perfscope.workload.block import Block, measure_block
from perfscope.workload.resolve import resolve

SAVE_EVERY_S = 5.0
RESTART_S = 0.1             # of loader workers, per sample: to the first batch 0.06 to 0.08 s, their end 0.04 (2 workers, 2 busy cores)


@dataclass(frozen=True)
class Listener:
    """Who wants to know how it goes: `stage(text)` once per stage, `rounds(batch_size, Progress)` after each round."""

    stage: Callable[[str], None] = lambda text: None
    rounds: Callable[[int, Progress], None] = lambda batch_size, progress: None


@dataclass
class State:
    """The run so far, and where it is kept. `put` changes it and, with a folder and once there is a round, writes it."""

    run: Run
    folder: Path | None
    started: float = field(default_factory=time.perf_counter)
    saved: float = 0.0
    made: list[Path] = field(default_factory=list)      # folders that were not there before

    @property
    def measured(self) -> bool:
        return any(b.rounds for b in self.run.batches)

    def put(self, write=True, **changes) -> None:
        run = replace(self.run, **changes)
        self.run = replace(run, provenance=replace(run.provenance, wall_s=time.perf_counter() - self.started))
        if write and self.folder is not None and self.measured:
            try:
                save(self.run, self.folder / "run.json")
                self.saved = time.perf_counter()
            except EnvironmentError_ as e:      # a disk that is full now may have room at the end: measure on
                self.warn(Warned("not-saved", f"the record could not be saved while measuring: {e.message}", e.hint))

    def put_batch(self, batch: BatchResult, write=True) -> None:
        others = [b for b in self.run.batches if b.batch_size != batch.batch_size]
        self.put(write, batches=tuple(sorted([*others, batch], key=lambda b: b.batch_size)))

    def close(self) -> None:
        """After an error: writes what was measured; if that is nothing, leaves no empty folder behind."""
        self.put()
        if not self.measured:
            remove_empty(self.made)

    @contextlib.contextmanager
    def spending(self, name: str):
        """Adds the time inside to own_cost[name]."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            cost = self.run.own_cost
            self.put(write=False, own_cost={**cost, name: cost.get(name, 0.0) + time.perf_counter() - begin})

    def warn(self, *warned: Warned | None) -> None:
        new = [w for w in warned if w is not None and w not in self.run.warnings]
        self.run = replace(self.run, warnings=(*self.run.warnings, *new))


def breakdown(model: Any = "resnet9", batch_sizes=(), *, out=None, listener: Listener = Listener(), run_id: str = "",
              options: Options | None = None, **named) -> Run:
    """Takes the training step of `model` apart and gives the record of it.

    model        a name, a perfscope.Workload, a module, or a callable that gives one (see perfscope.workload.resolve)
    batch_sizes  e.g. (128, 512); empty: sizes that fit the device
    out          folder for run.json; None: nothing is written
    options      perfscope.options.Options; or its fields by name (dtype="half", budget_s=120, ...)

    Interrupted by Ctrl-C it returns what was measured, with status "interrupted"; KeyboardInterrupt if that is nothing.
    Raises PerfscopeError for what the user can put right. Shares: `run.parts[512]["norm"].share`.
    """
    named_model = isinstance(model, str)
    names = [model] if named_model else [getattr(model, "name", ""), getattr(model, "__name__", ""), type(model).__name__]
    name = next(n for n in names if isinstance(n, str) and (n or named_model))
    options = check(replace(options or Options(), **{"model": name, **({"batch_sizes": tuple(batch_sizes)} if batch_sizes else {}), **named}))
    device = step.check_device(options.device)
    ranks = join(device.type)
    device = step.check_device(options.device)
    state = State(Run(run_id or new_id(name)), Path(out) if out is not None and ranks.first else None)
    state.made += claim(state.folder)
    environment = machine.fingerprint(device, world_size=ranks.size)
    state.put(write=False, provenance=provenance(options, named_model, ranks), environment=environment,
              selfcheck=last_selfcheck(environment), method=method(options))
    try:
        _measure(model, named_model, options, device, ranks, state, listener)
        status = "complete"
    except BaseException as e:
        if not isinstance(e, KeyboardInterrupt) or not state.measured:
            state.close()
            if ranks.size > 1 and is_lost(e):
                raise lost(e) from None
            raise
        status = "interrupted"
    state.put(write=False, status=status)
    run = finish(state.run, options)
    if options.second_opinion and status == "complete" and ranks.first:
        run = _second(run, options, named_model, ranks, listener)
    if state.folder is not None:
        try:
            save(run, state.folder / "run.json")
        except EnvironmentError_ as e:
            e.run = run                         # the command still shows what cannot be stored
            raise
    return run


def _second(run: Run, options: Options, named_model: bool, ranks: Ranks, listener: Listener) -> Run:
    from perfscope import second_opinion
    if ranks.size > 1 or not named_model:
        why = "it is of one process, not of several ranks" if ranks.size > 1 else "a process of its own can only build a model that has a name"
        return second_opinion.said(run, why, "Record a trace yourself: perfscope trace record --help")
    listener.stage("a second opinion: recording a trace in a process of its own")
    return second_opinion.ask(run, options)


def claim(folder: Path | None) -> list[Path]:
    """Makes the folder and makes sure that it can be written, before anything is measured. Raises EnvironmentError_.

    Gives the folders that were not there before, the innermost first.
    """
    if folder is None:
        return []
    made: list[Path] = []
    try:
        made += [f for f in (folder, *folder.parents) if not f.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".perfscope-{os.getpid()}"
        trial.write_text("")
        trial.unlink()
    except OSError as e:
        remove_empty(made)
        raise EnvironmentError_(f"cannot write to {folder}: {e.strerror or e}", "Give another folder with --out.") from None
    return made


def remove_empty(folders: list[Path]) -> None:
    """Removes those of the folders that are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _measure(model, named_model, options, device, ranks, state, listener) -> None:
    listener.stage(f"building {options.model}")
    workload = resolve(model, options.input_shape, options.classes)
    prepared = _prepared(workload, options, device, ranks, keep_original=not named_model)
    state.put(write=False, workload=workload_info(prepared, options))
    order = design.ladder_order(_present(prepared, options), options.order)
    with state.spending("trial_s"):
        pilots = _pilots(prepared, options, order, ranks, listener)
    state.put(largest_batch=ranks.agree(fit.largest_batch(prepared, pilots, order) if ranks.size == 1 else None))
    for p in pilots:
        if p.status != "ok":
            state.put_batch(BatchResult(p.batch_size, p.status, p.error))
    fitting = [p for p in pilots if p.status == "ok"]
    if not fitting:
        raise EnvironmentError_(f"no batch size fits: {pilots[0].error}", f"Try a smaller one: --batch {max(1, pilots[0].batch_size // 4)}")
    if ranks.first and named_model:
        listener.stage("counting operations and FLOPs in a process of its own")
        with state.spending("inspection_s"):
            _count(state, lambda: census.inspect_elsewhere(options, fitting[0].batch_size, order))
    listener.stage("measuring this machine's ceilings")
    dtype = step.DTYPES[prepared.dtype] or torch.float32
    with state.spending("ceilings_s"):
        state.put(ceilings=floor.ceilings(device, dtype))
    ranks.agree(None)
    _sweep(prepared, options, order, fitting, ranks, state, listener)
    with state.spending("ceilings_s"):
        state.put(ceilings=higher(state.run.ceilings, floor.ceilings(device, dtype)))
    if ranks.first and not named_model:
        listener.stage("counting operations and FLOPs")
        batches = step.load_batches(prepared, fitting[0].batch_size)
        local = replace(prepared, distributed=None)
        with state.spending("inspection_s"):
            _count(state, lambda: replace(census.inspect(local, batches, order, order), process="same, after timing"))


def _prepared(workload, options: Options, device, ranks: Ranks, keep_original: bool) -> step.Prepared:
    """`step.prepare`, with the errors of the model's and the optimizer's own code shown as theirs. What loads ahead can be stopped."""
    workload = replace(workload, data=workload.data and feed.stoppable(workload.data))
    try:
        return step.prepare(step.with_options(workload, options), device=device, keep_original=keep_original,
                            world_size=ranks.size, seed=options.seed)
    except (PerfscopeError, KeyboardInterrupt):
        raise
    except Exception as e:
        if fit.is_out_of_memory(e):
            raise EnvironmentError_(f"the model does not fit: {fit.out_of_memory_text(e)}", "Take a smaller one, or --dtype bfloat16.") from None
        if is_lost(e):
            raise lost(e) from None
        raise WorkloadError(f"the workload cannot be put on {device}: {type(e).__name__}: {e}", "This is the model's or the optimizer's own error.",
                            step.traceback_text(e)) from None


def _present(prepared, options: Options) -> tuple[str, ...]:
    """The parts of the step, seen at batch 2, or at the size that was asked for if the model takes no other."""
    asked, errors = min(options.batch_sizes, default=2), {}
    for size in dict.fromkeys((2, asked, 1)):
        try:
            batches = step.load_batches(prepared, size)
            present = step.present_parts(prepared, batches, options.parts)
            _check_loss(prepared, batches)
            missing = [p for p in options.parts if p not in present]
            if missing:
                raise UsageError(f"this step has no part {', '.join(missing)} (--parts)", f"It has: {', '.join(step.present_parts(prepared, batches))}")
            return present
        except Exception as e:
            if isinstance(e, UsageError) and not isinstance(e, WorkloadError):
                raise
            errors[size] = e
    if fit.is_out_of_memory(errors[asked]):
        raise EnvironmentError_(f"no batch size fits: {fit.out_of_memory_text(errors[asked])}", "Take a smaller model, or --dtype bfloat16.")
    raise fit.own_error(errors[asked], asked) from None


def _check_loss(prepared: step.Prepared, batches: step.Batches) -> None:
    with torch.no_grad(), step.autocast(prepared):
        loss = prepared.workload.loss(step.call_model(prepared.model, batches.inputs), batches.target)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        what = f"tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise WorkloadError(f"the loss of {prepared.workload.name} gave a {what}", "loss(output, target) has to give a tensor with one number.")


def higher(a: Ceilings, b: Ceilings) -> Ceilings:
    """The greater of two measurements of each ceiling: a busy machine can only make them lower."""
    return replace(a, flops_per_s=max(a.flops_per_s, b.flops_per_s),
                   copy_bytes_per_s=max(a.copy_bytes_per_s, b.copy_bytes_per_s))


def _count(state: State, inspect) -> None:
    try:
        inspection = inspect()
    except PerfscopeError as e:
        state.warn(Warned("not-counted", e.message, (e.detail or e.hint)[-400:]))
        return
    except Exception as e:                      # times stand without it: never lose them for it
        state.warn(Warned("not-counted", f"operations and FLOPs could not be counted: {type(e).__name__}: {e}",
                          "Times are not affected; FLOPs, floor and census are missing."))
        return
    state.put(inspection=inspection, base_label=base_label(inspection))


def base_label(inspection) -> str:
    """What the base is made of, by FLOPs: "conv", "matmul", or "conv, matmul" if neither is under a tenth."""
    conv = sum(x.flops * x.count for x in inspection.layers if "conv" in x.op)
    other = sum(x.flops * x.count for x in inspection.layers if "conv" not in x.op)
    total = conv + other
    return "conv" if conv >= 0.9 * total else "matmul" if other >= 0.9 * total else "conv, matmul"


def _pilots(prepared, options, order, ranks, listener) -> list[fit.Pilot]:
    trying = lambda size: listener.stage(f"trying batch {size}")  # noqa: E731
    if ranks.size > 1:                          # each by itself, so that one that runs out of memory leaves no other waiting
        sizes = options.batch_sizes or ((4, 8) if prepared.device.type == "cpu" else fit.GPU_DEFAULT)
        each = ranks.gather(fit.try_sizes(replace(prepared, distributed=None), sizes, order, on_try=trying))
        return [max(pilots, key=lambda p: (p.status != "ok", p.step_s)) for pilots in zip(*each)]
    if options.batch_sizes:
        return fit.try_sizes(prepared, options.batch_sizes, order, on_try=trying)
    return fit.default_sizes(prepared, order, on_try=trying)


def _sweep(prepared, options, order, pilots, ranks: Ranks, state: State, listener) -> None:
    clock = clock_for(prepared.device)
    lead_in = LEAD_IN_STEPS_CPU if prepared.device.type == "cpu" else LEAD_IN_STEPS
    per_round = [lead_in * p.step_s + max(p.burst * p.step_s, 0.020) + RESTART_S * (p.burst > 1) for p in pilots]
    chosen = options.attribution
    if chosen == "auto":
        chosen = ranks.agree(design.affordable(order, per_round, 1, options.budget_s * (1 - 0.25)))
    sets = design.variant_sets(order, chosen)
    state.put(write=False, method={**state.run.method, "attribution": chosen, "order": list(order), "lead_in_steps": lead_in,
                                   **({"heap": "kept"} if prepared.device.type == "cpu" else {})})
    blocks = [Block(p.batch_size, cost, 0.0) for p, cost in zip(pilots, per_round)]
    random.Random(options.seed).shuffle(blocks)
    left_s = options.budget_s
    while blocks:
        block = blocks.pop(0)
        weight = sum(b.weight for b in blocks) + block.weight
        block = replace(block, budget_s=ranks.agree(left_s * block.weight / weight))
        begin = time.perf_counter()
        listener.stage(f"batch {block.batch_size}: warming up {len(sets)} variants")

        def partly(batch: BatchResult) -> None:
            state.put_batch(batch, write=time.perf_counter() - state.saved > SAVE_EVERY_S)
        with heap.steady(prepared.device.type):
            batch, warnings = measure_block(
                prepared, block, order, sets, attribution=chosen, clock=clock, lead_in=lead_in, seed=options.seed,
                target=options.precision or PRECISION, ranks=ranks, on_batch=partly,
                progress=lambda p: listener.rounds(block.batch_size, p))
        state.warn(*warnings)
        state.put_batch(batch)
        left_s -= time.perf_counter() - begin
        left_s = max(left_s, 0.05 * options.budget_s * len(blocks))
        fit.release()
        if batch.stop == "interrupted":
            raise KeyboardInterrupt


def finish(run: Run, options: Options) -> Run:
    """The run with its derived values and the warnings that follow from the whole of it."""
    run = attribution.derive(run)
    warnings = list(run.warnings)
    if run.inspection is not None:
        for variant, left in run.inspection.residues.items():
            warnings.append(Warned("residue", f"residue: {', '.join(f'{op} x{n}' for op, n in left.items())} still ran in the variant "
                                   f"{variant}, which should be without; that much is missing from the part's cost",
                                   "Report the model: every residue is a bug of perfscope or an operation of a kind it does not know."))
        different = census.different_work(run.inspection)
        if different:
            warnings.append(Warned("different-kernels", f"the variants did not run the same convolutions and matmuls ({different})",
                                   "Read the affected part as 'what the step would save', not as the part's own time."))
    target = options.precision or PRECISION
    for b in run.batches:
        if b.derived and b.derived.half_width > target:
            half = b.derived.half_width
            size = "too few rounds for an interval" if half == float("inf") else f"the widest interval is ±{half:.1%} of the step"
            warnings.append(Warned("wide-intervals" if options.precision is None else "precision-missed",
                                   f"batch {b.batch_size}: {size}, the target ±{target:.1%} ({b.stop or 'stopped'})",
                                   f"Give it more time: --budget {max(2 * options.budget_s, 60):.0f}s", b.batch_size))
    return replace(run, warnings=tuple(_unique(warnings)))


def _unique(items: list) -> list:
    return [x for i, x in enumerate(items) if x not in items[:i]]
