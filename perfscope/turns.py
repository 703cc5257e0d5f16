"""Times whole workloads against each other: interleaved, paired rounds of several versions of one training step (METHOD 4, 14).

`take_turns` runs in this process; `take_turns_elsewhere` in a process of its own, for a workload that a name stands for.
Each version is a stack of cures on the same workload; the empty stack is the original, called BEFORE.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import Any, Callable

from perfscope import elsewhere, probing
from perfscope.errors import PerfscopeError
from perfscope.measure import heap, machine, stats
from perfscope.measure.clock import clock_for, steps_per_sample
from perfscope.measure.rounds import LEAD_IN_STEPS, LEAD_IN_STEPS_CPU, Progress, Timed, measure_rounds
from perfscope.measure.warmup import BUILD_STEPS, cuda_allocations, warm_up
from perfscope.options import Options, options_from
from perfscope.record import Round, Warned, from_dict
from perfscope.workload import Workload, feed, fit, step
from perfscope.workload.resolve import resolve

BEFORE = "before"
WARM_S = 3.0                # of warm-up per version after its build steps, at most


@dataclass(frozen=True)
class Turns:
    """The rounds (variants by version), versions that could not be run and why, peak memory, and why there are no more rounds."""

    rounds: tuple[Round, ...] = ()
    errors: dict[str, str] = field(default_factory=dict)
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    stop: str = ""
    steps_per_sample: int = 0
    warnings: tuple[Warned, ...] = ()


def take_turns(make: Callable[[tuple[str, ...]], Workload], stacks: dict[str, tuple[str, ...]], *, device, batch_size: int, budget_s: float,
               target: float, max_rounds: int, seed: int = 0, keep_original=False, keep_heap=False,
               progress: Callable[[Progress], None] | None = None) -> Turns:
    """Times the versions in turns. `make(stack)` gives the workload with these cures; `stacks`: version -> its cures.

    keep_heap  all versions are timed within heap.steady
    A version that fails is left out, with its error. WorkloadError if the original fails or nothing is left to compare.
    """
    device = step.check_device(device)
    with heap.steady(device.type) if keep_heap else contextlib.nullcontext():
        return _turns(make, stacks, device, batch_size, budget_s, target, max_rounds, seed, keep_original, progress)


def _turns(make, stacks, device, batch_size, budget_s, target, max_rounds, seed, keep_original, progress) -> Turns:
    clock = clock_for(device)
    timed, errors, peaks, losses, k = [], {}, {}, {}, 1
    for name, stack in stacks.items():
        try:
            variant = ready(make(stack), device, batch_size, seed, keep_original)
            machine.reset_peak(device)
            variant = _warm(variant, clock, device)
            if name == BEFORE:
                with variant.entered():
                    k = steps_per_sample(variant.step, clock)
            losses[name] = variant.loss
            if (peak := machine.peak_memory(device)) is not None:
                peaks[name] = peak
            timed.append(Timed(name, variant.step, variant.enter, variant.leave))
            feed.quiet()
        except KeyboardInterrupt:
            raise
        except Exception as e:
            if name == BEFORE:
                raise e if isinstance(e, PerfscopeError) else fit.own_error(e, batch_size) from None
            errors[name] = said(e)
            feed.quiet()
            fit.release()
    if len(timed) < 2:
        return Turns((), errors, peaks, losses, "nothing to compare", k)
    k = feed.whole_bursts(k)
    names = [t.name for t in timed if t.name != BEFORE]

    def half_width(rounds) -> float:
        column = lambda n: [r.step_s[n] for r in rounds]  # noqa: E731
        return max(stats.log_ratio(column(BEFORE), column(n)).half_width for n in names)
    with machine.watch(device) as watch:
        measured = measure_rounds(timed, clock=clock, k=k, rng_seed=seed, budget_s=budget_s, target=target, half_width=half_width,
                                  lead_in=LEAD_IN_STEPS_CPU if device.type == "cpu" else LEAD_IN_STEPS, max_rounds=max_rounds,
                                  canary=machine.canaries(device, None), progress=progress)
    warned = machine.throttled(watch.columns, {}, watch.max_sm_mhz, batch_size) if device.type == "cuda" else machine.contended(watch.columns, batch_size)
    return Turns(measured.rounds, errors, peaks, losses, measured.stop, k, (warned,) if warned else ())


@dataclass
class Ready:
    """A version that can be timed."""

    step: Callable[[], Any]
    enter: Callable[[], Any]
    leave: Callable[[], Any]
    entered: Callable[[], Any]
    loss: float = float("nan")


def ready(workload: Workload, device, batch_size: int, seed: int, keep_original: bool) -> Ready:
    """The whole training step of a workload, every part in, captured in a CUDA graph if it says so."""
    workload = replace(workload, data=workload.data and feed.stoppable(workload.data))
    prepared = step.prepare(workload, device=device, keep_original=keep_original, seed=seed)
    batches = step.load_batches(prepared, batch_size)
    order = step.present_parts(step.eager(prepared), batches)
    variant = step.build(prepared, batches, order, order)
    run = variant.step
    if prepared.cuda_graph:
        with variant:
            run = step.capture(variant, prepared, batches)

    def leave():
        variant.leave()
        feed.quiet()                            # what loads ahead for this version must not do so in another's turn
    return Ready(run, variant.enter, leave, lambda: variant, step.loss_value(variant.loss))


def _warm(variant: Ready, clock, device) -> Ready:
    with variant.entered():
        warm_up(variant.step, clock=clock, build_steps=BUILD_STEPS if device.type == "cuda" else 1, cap_s=WARM_S if device.type == "cuda" else 0.0,
                allocations=cuda_allocations(device) if device.type == "cuda" else None)
    return variant


def said(error: Exception) -> str:
    """An error in one line."""
    text = error.message if isinstance(error, PerfscopeError) else f"{type(error).__name__}: {error}"
    return text.strip().splitlines()[0][:500] if text.strip() else type(error).__name__


# ---------------------------------------------------------------- elsewhere

def maker(options: Options, folders=()) -> Callable[[tuple[str, ...]], Workload]:
    """make(stack) for a workload by name: built anew each time, so that no version sees another's model."""
    found = probing.probes(folders)

    def make(stack) -> Workload:
        import torch
        torch.manual_seed(options.seed)         # every version starts from the same weights
        return probing.apply(step.with_options(resolve(options.model, options.input_shape, options.classes), options), stack, found)
    return make


def take_turns_elsewhere(process: elsewhere.Process, options: Options, stacks: dict[str, tuple[str, ...]], batch_size: int, *, folders=(),
                         budget_s: float, target: float, max_rounds: int, seed: int, keep_heap: bool = False) -> Turns:
    """`take_turns` in a process that was started for it (elsewhere.started("perfscope.turns")). Raises what went wrong there with the original."""
    request = {"options": options.as_dict(), "stacks": {n: list(s) for n, s in stacks.items()}, "batch_size": batch_size,
               "folders": [str(f) for f in folders], "budget_s": budget_s, "target": target, "max_rounds": max_rounds, "seed": seed, "keep_heap": keep_heap}
    return from_dict(Turns, process.ask(request, "timing the versions"))


def answer(request: dict) -> Turns:
    """What the process of its own does."""
    options = options_from(request["options"])
    return take_turns(maker(options, request["folders"]), {n: tuple(s) for n, s in request["stacks"].items()}, device=options.device,
                      batch_size=request["batch_size"], budget_s=request["budget_s"], target=request["target"],
                      max_rounds=request["max_rounds"], seed=request["seed"], keep_heap=request["keep_heap"])


def changes(rounds, version: str):
    """ln(version/before), paired by round."""
    column = lambda name: [r.step_s[name] for r in rounds if version in r.step_s]  # noqa: E731
    return stats.log_ratio(column(BEFORE), column(version))


if __name__ == "__main__":
    elsewhere.serve(answer)
