"""The pages that the plugin shows: the report of a run.json, and a page about a trace. No torch, no network."""

from __future__ import annotations

from pathlib import Path

from perfscope import registry
from perfscope.sections import Html, cell, escape, table

#: As the report's own: a page loads nothing but itself.
POLICY = ("default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'self'")
ROWS = 40               # of the kernel and operator tables
BAR = (("compute_ns", "compute", "#3b7dd8"), ("communication_exposed_ns", "communication", "#d8793b"), ("copy_ns", "copies", "#8a63c9"),
       ("idle_host_ns", "waiting for the host", "#c94f4f"), ("idle_launch_ns", "launch gaps", "#d9a441"),
       ("idle_stream_ns", "waiting for a stream", "#8f9aa8"), ("idle_unknown_ns", "idle, unexplained", "#c6ccd4"))


def of_record(path) -> str:
    """The HTML report of a run.json: the same page that `perfscope report` writes."""
    from perfscope.record import load
    from perfscope.report import render

    return render(load(path), "html")


def of_trace(path) -> str:
    """A page about a trace: steps, kernels and operators, from perfscope.trace's exact analysis. PerfscopeError if it is none."""
    from perfscope.trace.analysis import analyze_files

    analysis = analyze_files(path, cache=False)       # nothing is written into somebody's log directory
    body = [f'<header><h1>{escape(Path(path).name)}</h1><p class="facts">{escape(_facts(analysis))}</p></header>']
    body += [f'<p class="alarm">{escape(w.text)}{" " + escape(w.hint) if w.hint else ""}</p>' for w in analysis.warnings]
    for rank in analysis.ranks:
        body += [_steps(rank), _kernels(rank), _ops(rank)]
    return shell(Path(path).name, "".join(body))


def _facts(analysis) -> str:
    events, gpus = sum(r.events for r in analysis.ranks), sorted({n for r in analysis.ranks for n in r.devices.values()})
    return " · ".join([f"{len(analysis.ranks)} rank{'s' * (len(analysis.ranks) != 1)}", f"{events:,} events".replace(",", " "), *(gpus or ["CPU only"])])


def _ms(ns: int | None) -> Html:
    return cell("" if ns is None else f"{ns / 1e6:.3f}", ns)


def _steps(rank) -> str:
    if not rank.steps:
        return "<section><h2>Steps</h2><p>The trace has no ProfilerStep.</p></section>"
    longest = max(s.duration_ns for s in rank.steps) or 1
    on_gpu = any(s.device >= 0 for s in rank.steps)
    parts = BAR if on_gpu else ()
    bars = "".join(f'<div class="step"><span>{escape(s.name)}</span><div class="bar" style="width:{70 * s.duration_ns / longest:.2f}%">' + "".join(
        f'<i style="width:{100 * getattr(s, k) / max(s.duration_ns, 1):.2f}%;background:{c}" title="{escape(n)}: {getattr(s, k) / 1e6:.3f} ms"></i>'
        for k, n, c in parts) + f"</div><b>{s.duration_ns / 1e6:.2f} ms</b></div>" for s in rank.steps)
    legend = "".join(f'<span><i style="background:{c}"></i>{escape(n)}</span>' for k, n, c in parts)
    columns = [("step", None), ("ms", "duration_ns"), ("loader", "loader_ns")] if not on_gpu else [
        ("step", None), ("ms", "duration_ns"), ("GPU busy", "busy_ns"), ("compute", "compute_ns"), ("communication", "communication_ns"),
               ("copies", "copy_ns"), ("idle", "idle_ns"), ("loader", "loader_ns"), ("kernels", "kernels")]
    rows = [[cell(f"{s.name}" + (f" (GPU {s.device})" if s.device >= 0 else "")),
             *(_ms(getattr(s, k)) if k.endswith("_ns") else cell(getattr(s, k), getattr(s, k)) for _, k in columns[1:])] for s in rank.steps]
    return f'<section id="steps"><h2>Steps</h2><div class="bars">{bars}<p class="legend">{legend}</p></div>' + table([h for h, _ in columns], rows) + "</section>"


def _kernels(rank) -> str:
    if not rank.kernels:
        return ""
    rows = [[cell(k.name), cell(k.category), cell(k.count, k.count), _ms(k.total_ns), cell(f"{100 * k.share:.1f} %", k.share)] for k in rank.kernels[:ROWS]]
    return f"<section id=\"kernels\"><h2>Kernels</h2>{table(['kernel', 'kind', 'count', 'ms', 'share'], rows)}{_rest(rank.kernels)}</section>"


def _ops(rank) -> str:
    if not rank.ops:
        return ""
    device = any(o.device_self_ns for o in rank.ops)
    ordered = sorted(rank.ops, key=lambda o: -(o.device_self_ns if device else o.host_self_ns))
    columns = [("host self ms", "host_self_ns"), ("host total ms", "host_total_ns")] + [("GPU self ms", "device_self_ns"), ("GPU total ms", "device_total_ns")] * device
    rows = [[cell(o.name), cell(o.shapes), cell(o.count, o.count), *(_ms(getattr(o, k)) for _, k in columns)] for o in ordered[:ROWS]]
    return f"<section id=\"ops\"><h2>Operators</h2>{table(['operator', 'shapes', 'count', *(h for h, _ in columns)], rows)}{_rest(ordered)}</section>"


def _rest(rows) -> str:
    return f"<p>{len(rows) - ROWS} more: perfscope trace analyze</p>" if len(rows) > ROWS else ""


def problem(message: str, hint: str = "") -> str:
    """A page that says what went wrong."""
    return shell("perfscope", f'<p class="alarm">{escape(message)}</p><p>{escape(hint)}</p>')


STYLE = """
main{max-width:75rem;margin:0 auto;padding:1rem}td{overflow-wrap:anywhere}
.step{display:grid;grid-template-columns:9rem 1fr 6rem;gap:.5rem;align-items:center;margin:.2rem 0}.bar{display:flex;height:1.1rem;background:#8883;border-radius:2px;overflow:hidden}
.bar i{display:block;height:100%}.legend span{margin-right:1rem;white-space:nowrap}.legend i{display:inline-block;width:.8rem;height:.8rem;margin-right:.3rem;border-radius:2px}
"""
SORT = """
for (const head of document.querySelectorAll('th')) head.addEventListener('click', () => {
  const body = head.closest('table').tBodies[0], at = head.cellIndex, down = head.getAttribute('aria-sort') !== 'descending';
  const key = (row) => { const c = row.cells[at], v = c.dataset.v ?? c.textContent, n = Number(v); return v !== '' && !Number.isNaN(n) ? n : v; };
  const sorted = [...body.rows].sort((a, b) => { const x = key(a), y = key(b); return (typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === 'number' ? 1 : -1) * (down ? -1 : 1); });
  for (const other of head.parentNode.cells) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  body.append(...sorted);
});
document.documentElement.dataset.ready = 'true';
"""


def shell(title: str, body: str) -> str:
    """A page with the report's styles."""
    css = (registry.folder("reports") / "_page.css").read_text(encoding="utf-8")
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{css}{STYLE}</style></head>'
            f"<body><main>{body}</main><script>{SORT}</script></body></html>")
