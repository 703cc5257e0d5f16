"""Chains of elementwise operators and pools: each writes its result to memory for the next one to read.

## What it sees
In the forward and backward pass, runs of at least two elementwise or pooling operators (three in all), each of which takes the
result of the one before; the bytes of the tensors in between, unless a cache holds all that the operator touches. Not
the optimizer (that is fused=True's business), and not a model that is compiled already.

## Why it is slow
Such an operator computes next to nothing and waits for memory: what lies between two of them is written once and read once
more than needed. On a GPU each of them is a launch as well.

## Cure
torch.compile fuses a chain into one loop. Compiling takes seconds to minutes, and what it makes can be slower too: on a CPU with
few channels it took the place of oneDNN's layouts and cost more than it saved, so this is a lead until `fix` has timed it.

## Not for
Short runs; shapes that change from step to step; models that compile only in pieces.

## References
SLOW_PATHS S36; the tutorial of torch.compile in PyTorch's documentation.
"""

from perfscope.probe import Finding, OpCall, Place, add, replace

USES = ("ops",)
COSTLY = True
CODE = "model = torch.compile(model)"
CACHE = {"cpu": 1 << 20, "cuda": 0}     # bytes: a core's L2 (1 or 2 MB on today's servers); on a GPU a launch is lost, however small the tensor
LEAST = {"cpu": 2 << 20, "cuda": 32 << 20}      # bytes per step that would not be moved: about 0.2 ms at 10 GB/s, and 10 us at 3 TB/s
#: Without a trace: their time at this speed, of the step. Measured beside the operators' share in a trace on a CPU: 0.86 % (42 %)
#: in mnist_cnn, 0.49 % (5.3 %) in resnet9, 0.90 % (5.3 %) in llama_tiny, 0.09 % (0.24 %) in resnet18_cifar.
MOVING, SPEED = 0.002, {"cpu": 10e9, "cuda": 1e12}
SHARE = 0.05                # of the step in a trace: with less, even fusing it all to nothing is hardly worth compiling
ALL, EACH = 3, 2            # operators in all chains together (SLOW_PATHS S36), and in one of them
POINTWISE = set("""relu relu_ gelu silu silu_ mul mul_ add add_ sub sub_ rsub div div_ neg exp log tanh sigmoid pow sqrt rsqrt reciprocal abs clamp clamp_
    clamp_min where masked_fill leaky_relu leaky_relu_ hardtanh hardtanh_ hardswish hardswish_ hardsigmoid elu softplus mish erf sin cos sign maximum minimum
    native_dropout max_pool2d_with_indices avg_pool2d _to_copy square addcmul lerp
    threshold_backward gelu_backward silu_backward tanh_backward sigmoid_backward hardtanh_backward hardswish_backward hardsigmoid_backward elu_backward
    leaky_relu_backward softplus_backward mish_backward max_pool2d_with_indices_backward avg_pool2d_backward native_dropout_backward""".split())
VIEWS = set("detach view _unsafe_view alias t transpose permute expand squeeze unsqueeze slice select as_strided".split())


def detect(evidence):
    c = evidence.config
    if c.compile != "off" or any(m.kind == "OptimizedModule" for m in evidence.modules or ()):
        return
    found = list(chains(evidence.ops or ()))
    bytes_ = {i: moved(chain, CACHE.get(c.device, 0)) for i, chain in enumerate(found)}
    found = [(chain, bytes_[i]) for i, chain in enumerate(found) if bytes_[i]]
    total, count = sum(b for _, b in found), sum(len(chain) for chain, _ in found)
    if count < ALL or total < LEAST.get(c.device, 0):
        return
    elsewhere = {o.name for o in evidence.ops if o.phase in ("optimizer", "data", "clip", "after")}
    share = evidence.time_share(*({o.name for chain, _ in found for o in chain} - elsewhere))
    if share is not None and share < SHARE or share is None and total / SPEED.get(c.device, 10e9) < MOVING * c.step_s:
        return
    places: dict[tuple[str, str], list[int]] = {}
    for chain, b in found:
        where = next((o.line or o.module for o in chain if o.phase == "forward" and (o.line or o.module)), f"the {chain[0].phase} pass")
        places.setdefault((where, " -> ".join(o.name for o in chain)), []).append(b)
    yield Finding("", f"{count} elementwise operators and pools run in {len(found)} chains, each writing to memory what the next one reads",
                  tuple(Place(where, f"{f'{len(b)} x ' * (len(b) > 1)}{names}: {sum(b) / 1e6:.1f} MB moved for nothing")
                        for (where, names), b in places.items()), "compile the model", share=share, basis="ceiling" if share is not None else "",
                  evidence={"operators": count, "chains": len(found), "bytes": total})


def chains(ops) -> list[list[OpCall]]:
    """Runs of at least EACH operators of the forward and backward pass, each taking the result of the one before (by its size)."""
    found, current = [], []
    for o in ops:
        if o.name in VIEWS or "::" in o.name:
            continue
        fits = o.name in POINTWISE and o.phase in ("forward", "loss", "backward") and bool(o.outputs)
        follows = bool(current) and fits and o.phase == current[-1].phase and any(t.numel == current[-1].outputs[0].numel for t in o.inputs)
        if not follows:
            found.append(current)
            current = []
        if fits:
            current.append(o)
    return [chain for chain in (*found, current) if len(chain) >= EACH]


def moved(chain, cache: int) -> int:
    """Bytes that fusing the chain would not move: what lies between two operators is written and read, unless all that the first one
    touches stays in the cache."""
    return sum(2 * o.outputs[0].bytes for o in chain[:-1] if sum(t.bytes for t in (*o.inputs, *o.outputs)) > cache)


def fix(workload):
    return replace(workload, compile="default")


COPIES = 64                 # of the batch in the plant: 4 MB, which no core's L2 holds


def kneaded(model):
    """Doubles and halves many copies of the input in turns before the model sees one of them, unchanged to the last bit."""
    import torch

    def knead(module, args):
        x = torch.cat([args[0]] * COPIES)
        for factor in (2.0, 0.5, 2.0, 0.5):
            x = x * factor
        return (x[:args[0].shape[0]],)
    model.register_forward_pre_hook(knead)


def plant(workload):
    return add(workload, on_model=[kneaded])
