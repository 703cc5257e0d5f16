"""Memory: the peak of every variant, what did not fit, and the largest batch that does."""

from __future__ import annotations

from perfscope import facts
from perfscope.record import Run
from perfscope.sections import COLOURS, amount, bar_layout, cell, details, escape, figure, table

TITLE = "Memory"
ORDER = 60
KINDS = ("breakdown",)
GIB = 1024**3
BAR = 46  # pixels per batch size: two bars


def peaks(run: Run) -> dict:
    """Peak of the full step against the batch, and of the base step beside it."""
    have = [b for b in run.batches if b.peak_memory_bytes]
    data = []
    for name, pick, tint in (
        ("full step", lambda b: b.peak_memory_bytes.get(b.reference), COLOURS["base"]),
        ("least of all variants", lambda b: min(b.peak_memory_bytes.values()), COLOURS["data"]),
    ):
        mine = [(b, pick(b)) for b in have if pick(b)]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "y": [str(b.batch_size) for b, _ in mine],
                "x": [v / GIB for _, v in mine],
                "marker": {"color": tint},
                "customdata": [amount(v, "B", 1024) for _, v in mine],
                "hovertemplate": f"{name} at batch %{{y}}: %{{customdata}}<extra></extra>",
            }
        )
    every = [str(b.batch_size) for b in run.batches]
    lost = {i: facts.note(b) for i, b in enumerate(run.batches) if b.status == "out-of-memory"}
    return {"data": data, "layout": bar_layout(every, "peak memory, GiB", row=BAR, notes=lost, barmode="group")}


def render(run: Run) -> str:
    """The figure, the table of variants, and the rows that ran out of memory."""
    have = [b for b in run.batches if b.peak_memory_bytes]
    lost = [b for b in run.batches if b.status == "out-of-memory"]
    if not have and not lost and not run.largest_batch:
        return ""
    words = [f"batch {b.batch_size} ran out of memory{': ' + b.error if b.error else ''}" for b in lost]
    words += [f"the largest batch that fits is {run.largest_batch}"] if run.largest_batch else []
    text = "".join(f"<p>{escape(w[0].upper() + w[1:])}.</p>" for w in words)
    if not have:
        return text
    names = sorted({v for b in have for v in b.peak_memory_bytes}, key=len)
    body = [
        [cell(v), *[cell(amount(b.peak_memory_bytes.get(v), "B", 1024), b.peak_memory_bytes.get(v, "")) for b in have]]
        for v in names
    ]
    every = table(["variant", *(f"batch {b.batch_size}" for b in have)], body)
    return figure(peaks(run), "Peak memory per batch size") + text + details("Peak of every variant", every)
