"""The rules behind `advice`: each looks at one rank's steady steps and gives (the share of their time that it is about, a sentence).

A share of 0 stands for a finding whose time is not known or is part of another one's.
"""

from __future__ import annotations

from perfscope.sections import amount, percent
from perfscope.trace.typical import main_device, median

# a finding is said from these shares on. Of the steps' time:
LOADING = WAITING = EXPOSED = 0.05
COPYING = 0.01
SHORT = 0.5  # of all kernels: shorter than a launch takes (tables.SHORT_NS)
# of the kernels' time:
LAYOUT = 0.03  # three conversions of the V100 traces' worth (0.2 %) are no finding, the A100's 9 % are
ELIGIBLE = 0.05
NORM = 0.15
# others:
ITEMS = 5  # aten::item per step
IMBALANCE = 0.05  # of the mean compute time of a rank
GROWTH = 0.001  # of the peak, in every step


def per_step(ns: float, steps: list) -> str:
    """Nanoseconds over all these steps, in words per step."""
    return f"{ns / len(steps) / 1e6:.2f} ms per step"


def _loading(rank, steps, whole):
    bare = sum(s.loader_exposed_ns if main_device(rank) >= 0 else s.loader_ns for s in steps)
    if bare < LOADING * whole:
        return []
    what = "the GPU waits for loading" if main_device(rank) >= 0 else "the step waits for loading"
    return [
        (
            bare / whole,
            f"Load faster: {what} {per_step(bare, steps)} ({percent(bare / whole)}); raise num_workers of the DataLoader, or move "
            "the work off the step, then `perfscope trace diff`.",
        )
    ]


def _waiting(rank, steps, whole):
    if main_device(rank) < 0:
        return []
    host = sum(s.idle_host_ns - min(s.loader_exposed_ns, s.idle_host_ns) for s in steps)
    gaps = sum(s.idle_launch_ns for s in steps)
    idle = host + gaps
    if idle < WAITING * whole:
        return []
    path, f = rank.critical, rank.launches
    count = sum(k.count for k in rank.kernels)
    short = (
        f" ({percent(f.short_kernels / count)} of the kernels are shorter than 10 µs)"
        if f and count and f.short_kernels >= SHORT * count
        else ""
    )
    busiest = next((p for p in path.by_name if p.kind == "host_operator"), None) if path else None
    most = (
        f"; the longest on its path: {busiest.name[:60]} ({busiest.count}x, {busiest.duration_ns / 1e6:.2f} ms of {path.step})"
        if busiest and path.by_kind.get("host_operator", 0) > 0.25 * path.duration_ns
        else ""
    )
    return [
        (
            idle / whole,
            f"Launch less: the GPU waits {per_step(idle, steps)} ({percent(idle / whole)}) for the host to launch "
            f"work{short}{most}; try a larger batch, torch.compile or CUDA graphs.",
        )
    ]


def _communication(rank, steps, whole):
    bare = sum(s.communication_exposed_ns for s in steps)
    if bare < EXPOSED * whole:
        return []
    hidden = sum(s.communication_overlapped_ns for s in steps)
    return [
        (
            bare / whole,
            f"Hide communication: {per_step(bare, steps)} ({percent(bare / whole)}) of collectives run beside no compute, "
            f"{per_step(hidden, steps)} beside some; "
            "try other bucket sizes, gradient accumulation (no_sync), or gradients of half the size. Waiting for a slower rank counts here too.",
        )
    ]


def _copies(rank, steps, whole):
    pageable = [c for c in rank.copies if "Pageable" in c.kind and c.kind.startswith(("HtoD", "DtoH"))]
    ns, length = (
        sum(c.total_ns for c in pageable),
        sum({(s.name, s.start_ns): s.duration_ns for s in rank.steps}.values()),
    )
    if not length or ns < COPYING * length:
        return []
    top = max(pageable, key=lambda c: c.total_ns)
    rate = f" at {top.gb_per_s:.1f} GB/s" if top.gb_per_s else ""
    return [
        (
            ns / length,
            f"Pin the host's memory: copies from or to pageable memory take {ns / 1e6:.2f} ms ({percent(ns / length)} of the "
            f"steps){rate}; use pin_memory=True and non_blocking=True.",
        )
    ]


def _kernels(rank, steps, whole):
    out, total = [], max(rank.kernels_ns, 1)
    busy = sum(s.busy_ns for s in steps) / whole
    lay, cores = rank.layout, rank.tensor_cores
    if lay and lay.total_ns >= LAYOUT * total:
        by = f", {percent(lay.share_of_convolution)} of what convolutions launch" if lay.share_of_convolution else ""
        out.append(
            (
                busy * lay.share,
                f"Keep one layout: {lay.count} layout conversions take {percent(lay.share)} of kernel time{by}; convert model and "
                "input with to(memory_format=torch.channels_last).",
            )
        )
    if cores and cores.eligible_ns >= ELIGIBLE * total:
        types = {u.dtype for u in cores.unused}
        how = (
            "torch.set_float32_matmul_precision('high') or autocast"
            if "float" in types
            else "sizes that are multiples of 8"
        )
        top = cores.unused[0]
        out.append(
            (
                busy * cores.eligible_ns / total,
                f"Use tensor cores: {percent(cores.eligible_ns / total)} of kernel time are matmuls or convolutions that could "
                f"and do not, most in {top.op}; try {how}.",
            )
        )
    norm = sum(k.total_ns for k in rank.kernels if k.norm)
    if norm >= NORM * total:
        out.append(
            (
                busy * norm / total,
                f"Look at the norms: {percent(norm / total)} of kernel time; `perfscope breakdown` measures what they add to a step.",
            )
        )
    return out


def _items(rank, steps, whole):
    n = len({(s.name, s.start_ns) for s in rank.steps})
    items = sum(s.count for s in rank.syncs if s.name in ("aten::item", "aten::is_nonzero")) / n
    if main_device(rank) < 0 or items < ITEMS:
        return []
    named = {
        s.name: s
        for s in sorted(rank.syncs, key=lambda s: s.count)
        if s.where and s.name in ("aten::item", "aten::is_nonzero")
    }
    where = next(iter(named.values())).where if named else ""
    ns = sum(s.total_ns for s in rank.syncs if s.name == "aten::item") / n
    return [
        (
            0.0,
            f"Ask the GPU for fewer numbers: .item() and its kind are called {items:.0f} times per step ({ns / 1e6:.2f} "
            f"ms){f', at {where}' if where else ''}; keep them on the device, or ask every so many steps.",
        )
    ]


def _compiled(rank, steps, whole):
    c = rank.compiled
    if not c:
        return []
    out = []
    if c.compiling_ns:
        out.append(
            (
                0.0,
                f"Compile before the trace: {c.compiling_ns / 1e6:.1f} ms of compilation run inside it; record after more warm-up steps.",
            )
        )
    if c.recompilations:
        out.append(
            (
                0.0,
                f"Find the recompilations: {c.recompiled} frames were compiled again, {c.recompilations} times in all; "
                "TORCH_LOGS=recompiles says why.",
            )
        )
    return out


def _memory(rank, steps, whole):
    for m in rank.memory or ():
        if len(m.steps) >= 3 and all(s.growth > GROWTH * m.peak for s in m.steps[1:]):
            grown = median(s.growth for s in m.steps[1:])
            return [
                (
                    0.0,
                    f"Look for what is kept: every step leaves {amount(grown, 'B', 1024)} more allocated on "
                    f"{'the CPU' if m.device == 'cpu' else 'the GPU'}.",
                )
            ]
    return []


RULES = (_loading, _waiting, _communication, _copies, _kernels, _items, _compiled, _memory)
