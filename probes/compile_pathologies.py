"""torch.compile breaks the model into pieces, or compiles again and again.

## What it sees
Dynamo's own counters: the reasons of graph breaks and skipped CUDA graphs since the step was first compiled, frames that it
still compiled during the steps after the warm-up. In a trace: compilation inside the recorded steps.

## Why it is slow
Between two graphs the interpreter runs, nothing is fused across the break, and every graph has its own guards to check and its
own launch. A frame that is compiled again costs seconds each time, until the limit is reached and it runs uncompiled.

## Cure
Take out what breaks the graph: .item(), print, data-dependent control flow, calls into C extensions; keep numbers that change from
step to step in tensors, and shapes constant, or mark them dynamic. torch.compile(..., fullgraph=True) makes every break an error.
It is a hint: what breaks is in your code.

## Not for
One break around something that is slow anyway. Compiling pays from some number of steps on: (time to compile) / (time saved per
step); a short run may be over before.

## References
SLOW_PATHS S37; TORCH_LOGS=graph_breaks,recompiles; "torch.compile troubleshooting" in PyTorch's documentation.
"""

from perfscope.probe import Finding, Place, add

USES = ("config", "trace")
CODE = "model = torch.compile(model, fullgraph=True)          # an error at the first graph break, with its line"


def detect(evidence):
    seen, compiled = evidence.config.observed, getattr(evidence.trace, "compiled", None)
    places = []
    if seen.get("graph_breaks"):
        reasons = [r.strip() for r in seen.get("graph_break_reasons", ())] or ["reasons: TORCH_LOGS=graph_breaks"]
        places += [Place("graph break", r) for r in reasons]
    if seen.get("compilations"):
        places.append(Place("recompiling", f"{seen['compilations']} frames compiled in {seen.get('steps', 0)} steps after the warm-up"))
    if seen.get("cudagraph_skips"):
        places.append(Place("CUDA graphs skipped", f"{seen['cudagraph_skips']} times: TORCH_LOGS=perf_hints says why"))
    within = compiled.compiling if compiled is not None and not seen else 0       # one's own recording is watched by `observed`
    if within:
        places.append(Place("compiling", f"{within} times within the recorded steps, {compiled.compiling_ns / 1e6:.1f} ms"))
    if not places:
        return
    kinds, again = sum(p.where == "graph break" for p in places), seen.get("compilations", 0) or within
    what = [f"breaks into pieces for {kinds} reason{'s' * (kinds > 1)}"] * bool(kinds) + ["is compiled again during the steps"] * bool(again) \
        + ["runs without its CUDA graphs"] * bool(seen.get("cudagraph_skips"))
    yield Finding("", f"the compiled model {', '.join(what)}", tuple(places), "take out what breaks or changes the graph",
                  evidence={"graph_break_reasons": kinds, "compilations": again, "cudagraph_skips": seen.get("cudagraph_skips", 0)})


def broken(model):
    """The model compiled (traced by Dynamo, run as it is: no Inductor), with a graph break behind one of its layers."""
    import torch

    def peek(module, args, output):
        torch._dynamo.graph_break()
    torch._dynamo.reset()           # planted eight times in a process, Dynamo would give the model up: its limit for one piece of code
    layer = next(m for m in reversed(list(model.modules())) if not any(True for _ in m.children()))
    layer.register_forward_hook(peek)
    return torch.compile(model, backend="eager")


def plant(workload):
    return add(workload, on_model=[broken])
