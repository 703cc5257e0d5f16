"""Tensors are made on the CPU at every step, and then copied to the GPU.

## What it sees
In the forward pass, the loss or what follows the optimizer, on a GPU: a copy of a CPU tensor to the GPU, together with the
operator that made the tensor just before (arange, zeros, ones, full, tril, randn, ...), its size, and the line of your source.

## Why it is slow
The copy comes from pageable memory, and for such a copy the CUDA driver synchronises the stream first: the host waits for the GPU,
then the GPU waits for the host. Making it on the GPU is one small kernel, and nobody waits.

## Cure
device=x.device where the tensor is made; a buffer (register_buffer) if it is the same at every step.

## Not for
The batch itself, which is the probes about data; tensors that are made once, before training.

## References
SLOW_PATHS S39; PyTorch performance tuning guide, "Create tensors directly on the target device".
"""

from perfscope.probe import Config, Evidence, Finding, OpCall, Place, Tensor, add

USES = ("ops",)
DEVICES = ("cuda",)
CODE = "positions = torch.arange(n, device=x.device)"
MAKES = {"arange", "zeros", "ones", "full", "empty", "eye", "linspace", "rand", "randn", "randint", "randperm", "scalar_tensor", "zeros_like", "ones_like",
         "full_like", "rand_like", "randn_like", "tril", "triu", "lift_fresh", "logspace", "hann_window", "tril_indices", "triu_indices", "new_zeros",
         "new_ones", "new_full"}
BETWEEN = 8                 # operators on the CPU between making a tensor and copying it, at most (arange -> view -> mul -> ...)
PHASES = ("forward", "loss", "after")


def detect(evidence):
    found: dict[tuple, list] = {}
    ops = [o for o in evidence.ops or () if o.phase in PHASES]
    for i, o in enumerate(ops):
        if copied(o):
            source = o.inputs[-1] if o.name == "copy_" else o.inputs[0]
            maker = next((p.name for p in reversed(ops[max(0, i - BETWEEN):i]) if p.name in MAKES and any(t.device == "cpu" for t in p.outputs)), "")
            if maker and not source.parameter:
                found.setdefault((o.line, o.module, maker, source.shape, source.dtype), []).append(source.bytes)
    if not found:
        return
    places = tuple(Place(line or module or "the step", f"{maker} {shape} {dtype} is made on the CPU and copied to the GPU, {len(sizes)} x per step")
                   for (line, module, maker, shape, dtype), sizes in found.items())
    count = sum(map(len, found.values()))
    yield Finding("", f"{count} tensor{'s' * (count > 1)} per step {'are' if count > 1 else 'is'} made on the CPU and copied to the GPU", places,
                  "make them with device=x.device, or keep them as buffers", evidence={"copies": count, "bytes": sum(map(sum, found.values()))})


def copied(o) -> bool:
    """Whether this operator copies from the CPU to the GPU."""
    if o.name == "_to_copy":
        return bool(o.inputs and o.outputs) and o.inputs[0].device == "cpu" and o.outputs[0].device == "cuda"
    return o.name == "copy_" and len(o.inputs) > 1 and o.inputs[0].device == "cuda" and o.inputs[1].device == "cpu"


def shifted(model):
    """Adds zeros that are made on the CPU to every output of the model."""
    import torch

    def forward_hook(module, args, output):
        return output + torch.zeros(output.shape[-1]).to(output.device, output.dtype)
    model.register_forward_hook(forward_hook)


def plant(workload):
    return add(workload, on_model=[shifted])


def examples():
    """Positions made on the CPU, and on the GPU."""
    def seen(device):
        made = Tensor((1024,), "int64", (1,), device)
        there = Tensor((1024,), "int64", (1,), "cuda")
        made_op = OpCall("arange", (), (made,), {"end": 1024}, module="", line="model.py:71")
        copy = OpCall("_to_copy", (made,), (there,), {"device": "cuda:0"}, line="model.py:71")
        weight = Tensor((1024, 768), "float32", (768, 1), "cuda", "positions.weight")
        use = OpCall("embedding", (weight, there), (Tensor((1024, 768), "float32", (768, 1), "cuda"),), module="positions", line="model.py:72")
        return Evidence(Config("cuda", "NVIDIA H100 80GB HBM3", (9, 0), torch="2.13.0"), (), (made_op, copy, use) if device == "cpu" else (made_op, use))
    return seen("cpu"), seen("cuda")
