"""One batch size: builds its variants, guards them, warms them up and times them in interleaved rounds."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Callable

import torch

from perfscope.errors import PerfscopeError
from perfscope.measure import attribution, machine, rounds, warmup
from perfscope.measure.clock import Clock, steps_per_sample, timed_steps
from perfscope.measure.ranks import Ranks
from perfscope.record import BatchResult, Guard, Variant, Warned, variant_name
from perfscope.workload import feed, fit
from perfscope.workload import parts as taking
from perfscope.workload.sane import all_finite, make_sane
from perfscope.workload.step import (DTYPES, Batches, Prepared, VariantStep, autocast, build, call_model, capture,
                                     load_batches, loss_value, with_gradient)

OWN_COST = 0.01             # perfscope's own share of a variant's step that is worth a warning (issue 2)
TRIAL_CALLS = 2000          # overridden operator calls that are timed to price one


@dataclass(frozen=True)
class Block:
    """One batch size of the sweep: about what a round of it costs, and its part of the budget."""

    batch_size: int
    weight: float
    budget_s: float


def measure_block(prepared: Prepared, block: Block, order, sets, *, attribution: str, clock: Clock, lead_in: int, seed: int,
                  target: float, ranks: Ranks = Ranks(), on_batch: Callable[[BatchResult], None] = lambda batch: None,
                  progress: Callable[[Any], None] | None = None) -> tuple[BatchResult, list[Warned]]:
    """Measures the variants `sets` at one batch size and gives its result with what has to be said about it.

    Ctrl-C and out of memory in the middle give a result with the complete rounds so far (`stop` "interrupted" or
    "out-of-memory"); out of memory before the first round gives a row with the status "out-of-memory".
    """
    size, start = block.batch_size, time.perf_counter()
    batch = BatchResult(size, "partial", reference=variant_name(order), attribution=attribution, lead_in_steps=lead_in,
                        variants=tuple(Variant(variant_name(s), tuple(s)) for s in sets))
    warnings: list[Warned] = []

    def seen(so_far: BatchResult) -> None:
        nonlocal batch
        batch = so_far
        on_batch(so_far)
    try:
        batches = load_batches(prepared, size)
        steps, batch = _ready(prepared, batches, block, order, sets, batch, clock, ranks, warnings)
        warm_s = time.perf_counter() - start
        batch, measured = _timed(prepared, batches, block, steps, batch, clock, lead_in, seed, target, ranks, warm_s, seen,
                                 progress, warnings)
        warnings = [w for w in warnings if w is not None]
        status = "partial" if measured.stop == "interrupted" else "ok"
        return replace(batch, status=status, stop=measured.stop), warnings
    except KeyboardInterrupt:
        return replace(batch, stop="interrupted"), warnings
    except Exception as e:
        if not fit.is_out_of_memory(e):
            raise fit.own_error(e, size) from None
        message = str(e).splitlines()[0] if str(e) else "out of memory"
    fit.release()
    if batch.rounds:
        return replace(batch, status="partial", error=message, stop="out-of-memory"), warnings
    return replace(batch, status="out-of-memory", error=message, variants=(), reference=""), warnings


def _ready(prepared, batches, block, order, sets, batch, clock, ranks, warnings) -> tuple[list[VariantStep], BatchResult]:
    """The variants built, sane and warm; those that cannot be timed left out, and said so."""
    kept = _snapshot(prepared)
    full = build(prepared, batches, order, order)
    expected = with_gradient(prepared)
    cap_s = warmup.cap(block.budget_s, len(sets),
                       warmup.CAP_SHARE if prepared.device.type == "cuda" else warmup.CAP_SHARE_CPU)
    build_steps = warmup.BUILD_STEPS_DDP if ranks.size > 1 else warmup.BUILD_STEPS if prepared.device.type == "cuda" else 1
    allocations = warmup.cuda_allocations(prepared.device) if prepared.device.type == "cuda" else None
    price_s = price_of_override(prepared.device.type)
    steps, guards, warmups, peaks = [], {}, {}, {}
    for parts in sets:
        variant = full if tuple(parts) == tuple(order) else build(prepared, batches, parts, order, expected)
        guard = make_sane(prepared, batches, variant, variant is full)
        machine.reset_peak(prepared.device)
        with variant:
            warm = warmup.warm_up(variant.step, clock=clock, build_steps=build_steps, cap_s=cap_s, allocations=allocations,
                                  agree=ranks.agree)
            step_s = ranks.agree(timed_steps(variant.step, 1, clock))
            loss = loss_value(variant.step())
        peak = machine.peak_memory(prepared.device)
        finite = all_finite(prepared.model) and _state_finite(prepared.optimizer)
        if not finite:
            _restore(prepared, kept)
        guard = replace(guard, loss=loss, finite=finite and loss == loss and abs(loss) != float("inf"))
        own_s = 0.0 if prepared.compile != "off" or prepared.cuda_graph else \
            price_s * _calls(prepared, batches, variant, order) + _fill_s(variant)
        guards[variant.name] = replace(guard, overhead_s=own_s, overhead_share=own_s / step_s if step_s else 0.0)
        warmups[variant.name] = warm
        if peak is not None:
            peaks[variant.name] = peak
        warnings += _said(variant, guards[variant.name], warm, finite, block.batch_size, batch.reference)
        if finite or variant is full:
            steps.append(variant)
    names = {v.name for v in steps}
    with full:
        k = ranks.agree(feed.whole_bursts(steps_per_sample(full.step, clock, agree=ranks.agree)))
    return steps, replace(batch, variants=tuple(v for v in batch.variants if v.name in names), steps_per_sample=k, guards=guards,
                          warmup=warmups, peak_memory_bytes=peaks)


def _timed(prepared, batches, block, steps, batch, clock, lead_in, seed, target, ranks, warm_s, on_batch, progress, warnings):
    """The rounds of the ready variants, with the machine watched meanwhile."""
    full = next(v for v in steps if v.name == batch.reference)
    timed = [_timed_variant(prepared, batches, v, v is full, warnings, block.batch_size) for v in steps]
    so_far = lambda done: replace(batch, rounds=tuple(done))  # noqa: E731
    feed.quiet()
    with machine.watch(prepared.device) as watch:
        measured = rounds.measure_rounds(
            timed, clock=clock, k=batch.steps_per_sample, rng_seed=seed * 1_000_003 + block.batch_size,
            budget_s=max(block.budget_s - warm_s, 0.25 * block.budget_s), target=target,
            half_width=lambda done: attribution.headline_half_width(so_far(done)), lead_in=lead_in,
            canary=machine.canaries(prepared.device, DTYPES[prepared.dtype]), warmup_s=warm_s,
            progress=progress if ranks.first else None, on_round=lambda done: on_batch(so_far(done)),
            telemetry_read=watch.read if prepared.device.type == "cuda" else None, agree=ranks.agree)
    batch = replace(so_far(measured.rounds), telemetry=dict(watch.columns), own_cost=measured.own_cost)
    canary = {n: [r.canary_s[n] for r in measured.rounds] for n in ("matmul", "copy")} if measured.rounds else {}
    if prepared.device.type == "cuda":
        warnings.append(machine.throttled(watch.columns, canary, watch.max_sm_mhz, block.batch_size))
        if watch.note:
            warnings.append(Warned("no-telemetry", f"no clocks, power or temperature: {watch.note}",
                                   "Only the canary watches for throttling. Try: pip install nvidia-ml-py"))
    elif ranks.size == 1:
        warnings.append(machine.contended(watch.columns, block.batch_size))
    if ranks.size > 1 and measured.stop != "interrupted":
        others = ranks.gather(measured.rounds)
        batch = replace(batch, rank_rounds={str(i): tuple(r) for i, r in enumerate(others) if i})
    return batch, measured


def _timed_variant(prepared, batches, variant, is_full, warnings, size) -> rounds.Timed:
    step, replay = variant.step, None
    if prepared.cuda_graph or prepared.device.type == "cuda" and is_full and prepared.compile == "off" and prepared.distributed is None:
        try:
            with variant:
                replay = capture(variant, prepared, batches)
        except Exception as e:                  # not every step can be captured; the step clock does not need it
            torch.cuda.synchronize()
            if prepared.cuda_graph:
                raise PerfscopeError(f"the variant {variant.name} cannot be captured in a CUDA graph: {type(e).__name__}: {e}",
                                     "Leave --cuda-graph out, or remove what synchronises from the step.") from None
            warnings.append(Warned("no-busy-clock", f"the step cannot be captured in a CUDA graph ({type(e).__name__}): no busy clock",
                                   "The launch-bound share is missing; everything else stands.", size))
    if prepared.cuda_graph:
        step, replay = replay, None

    def leave() -> None:
        variant.leave()
        feed.quiet()                            # what loads ahead for this variant must not do so in the turn of one without data
    return rounds.Timed(variant.name, step, variant.enter, leave, replay)


def _said(variant, guard: Guard, warm, finite, size, reference) -> list[Warned]:
    """The warnings of one variant."""
    out = [warmup.drifting(variant.name, warm, size)]
    if not finite and variant.name == reference:
        out.append(Warned("diverged", "the full step made weights or optimizer state infinite: it is timed all the same, and it does so "
                          "to all variants", "Try a wider dtype (--dtype bfloat16, amp-bfloat16).", size))
    elif not finite:
        out.append(Warned("diverged", f"the variant {variant.name} made weights or optimizer state infinite: it is left out",
                          "Try a wider dtype (--dtype bfloat16, amp-bfloat16), or fewer parts at once.", size))
    elif not guard.finite:
        out.append(Warned("loss-not-finite", f"the loss of the variant {variant.name} is {guard.loss}: its time may not be typical",
                          "Try a wider dtype (--dtype bfloat16, amp-bfloat16).", size))
    elif variant.name != reference and not (guard.activation_std_low >= 0.01 and guard.activation_std_high <= 100):
        out.append(Warned("odd-activations", f"activations of the variant {variant.name} have standard deviations from "
                          f"{guard.activation_std_low:.2g} to {guard.activation_std_high:.2g}", "Values change speed by a few per "
                          "cent at most on a GPU; on a CPU very small ones can be slow.", size))
    if guard.extra.get("copied"):
        out.append(Warned("copied", f"in the variant {variant.name} operations that are taken away still copy, because the model "
                          "writes in place: their cost is underestimated", "Use inplace=False in the model to see it all.", size))
    elif guard.extra.get("out_of_place"):
        out.append(Warned("out-of-place", f"in the variant {variant.name} the activations write to new tensors, because the model "
                          "overwrites in place what is still needed without its norms", "", size))
    if guard.overhead_share > OWN_COST:
        out.append(Warned("own-overhead", f"perfscope's own work is {guard.overhead_share:.1%} of the variant {variant.name}: "
                          "what it takes away is underestimated by that much", "Use a larger batch, --cuda-graph or --compile.", size))
    return [w for w in out if w is not None]


def price_of_override(device_type: str) -> float:
    """Seconds that one overridden operator call costs here: dispatch, the Python function, and back."""
    x = torch.randn(8, device=device_type, requires_grad=True)
    with taking.Overrides((), device_type, parts=("activation",)):
        torch.relu(x)
        begin = time.perf_counter()
        for _ in range(TRIAL_CALLS):
            torch.relu(x)
        return (time.perf_counter() - begin) / TRIAL_CALLS


def _calls(prepared: Prepared, batches: Batches, variant: VariantStep, order) -> int:
    """Overridden calls in one step of a variant."""
    removed = [p for p in order if p in taking.OPERATOR_PARTS and p not in variant.parts]
    if not removed:
        return 0
    counts: dict[str, int] = {}
    with torch.no_grad(), autocast(prepared), taking.Overrides((), prepared.device.type, parts=removed, counts=counts):
        call_model(prepared.model, batches.inputs)
    return sum(counts.values())


def _fill_s(variant: VariantStep) -> float:
    """Seconds that setting the stored gradients takes."""
    begin = time.perf_counter()
    for _ in range(10):
        for parameter, gradient in variant.fill:
            parameter.grad = gradient
    return (time.perf_counter() - begin) / 10


def _state_finite(optimizer) -> bool:
    tensors = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    return all(bool(torch.isfinite(t).all()) for t in tensors)


def _snapshot(prepared: Prepared) -> list:
    return [t.detach().clone() for t in (*prepared.model.parameters(), *prepared.model.buffers())]


def _restore(prepared: Prepared, kept: list) -> None:
    """Weights and buffers as they were, and a fresh optimizer state."""
    with torch.no_grad():
        for tensor, old in zip((*prepared.model.parameters(), *prepared.model.buffers()), kept):
            tensor.copy_(old)
    prepared.optimizer.state.clear()
