"""A layer norm or RMS norm written out by hand: six to nine operators over the whole tensor instead of one.

## What it sees
In the forward pass: a mean over the last dimension, its (reciprocal) square root, and a product of that with the tensor, in one
module, none of it a norm's own operator. With a subtraction of the mean it is a layer norm, else an RMS norm.

## Why it is slow
Each operator reads and writes the whole activation, and most of them keep something for the backward pass. On one core here a
layer norm of (16, 256, 512) forward and backward took 13.9 ms by hand and 3.3 ms as F.layer_norm.

## Cure
F.layer_norm or F.rms_norm. `perfscope fix` puts it in the place of modules of which it has seen on random numbers that they
compute just that, and leaves the others alone.

## Not for
RMS norms on a CPU: PyTorch has no kernel of its own for them there, 15.6 ms by hand and 14.3 ms as F.rms_norm.

## References
SLOW_PATHS S26; torch.nn.functional.layer_norm and rms_norm in PyTorch's documentation.
"""

import torch
import torch.nn.functional as F
from torch import nn

from perfscope.probe import Config, Evidence, Finding, ModuleCall, OpCall, Place, Tensor, add

USES = ("ops",)
SUBJECT = "transformer"
CODE = "x = F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)"
MEANS = {"mean", "var", "var_mean", "std", "sum"}
SIMPLE = MEANS | {"pow", "square", "mul", "add", "add_", "sub", "rsqrt", "sqrt", "div", "reciprocal", "_to_copy", "view", "expand", "detach", "unsqueeze",
                  "squeeze", "clone", "alias"}
NEAR = 5                    # operators after the root within which its product has to come
EPSILONS = ("eps", "epsilon", "variance_epsilon", "norm_eps")


def detect(evidence):
    live = {m.path: m.module for m in evidence.modules or ()}
    builtin = {m.path for m in evidence.modules or () if m.module is not None and type(m.module).__module__.startswith("torch.nn")}
    found = [(o, kind) for o, kind in norms([o for o in evidence.ops or () if o.phase == "forward"])
             if o.module not in builtin and (kind == "layer norm" or evidence.config.device != "cpu")]
    if not found:
        return
    able = [o for o, _ in found if live.get(o.module) is not None and fused(live[o.module]) is not None]
    places = tuple(Place(o.module or o.line or "the model", f"{kind} over {o.outputs[0].shape[:-1]}, {o.outputs[0].dtype}, by hand"
                         + (f"; {o.line}" if o.line else "")) for o, kind in found)
    kinds = " and ".join(sorted({f"{kind}s" for _, kind in found}))
    yield Finding("", f"{len(found)} {kinds} are written out by hand", places, "use F.layer_norm or F.rms_norm",
                  evidence={"norms": len(found), "replaceable": len(able)}, extra={} if able else {"hint": True})


def norms(ops):
    """(its root, "layer norm" or "RMS norm") of each norm that is written out."""
    for i, o in enumerate(ops):
        if o.name not in ("rsqrt", "sqrt") or not o.outputs or not o.outputs[0].shape or o.outputs[0].shape[-1] != 1 or o.outputs[0].numel < 2:
            continue
        shape = o.outputs[0].shape
        before = []
        for p in reversed(ops[:i]):
            if p.name not in SIMPLE or p.module != o.module or p.name in ("rsqrt", "sqrt"):
                break
            before.append(p)
        after = [p for p in ops[i + 1:i + 1 + NEAR] if p.module == o.module]
        mean = any(p.name in MEANS and any(t.shape == shape for t in p.outputs) for p in before)
        product = any(p.name in ("mul", "div") and _both(p, shape) for p in after)
        if mean and product:
            centred = any(p.name == "sub" and _both(p, shape) for p in (*before, *after))
            yield o, "layer norm" if centred else "RMS norm"


def _both(o, shape) -> bool:
    """Whether it takes the full tensor and one number per row of it."""
    shapes = [t.shape for t in o.inputs]
    return shape in shapes and any(len(s) == len(shape) and s[:-1] == shape[:-1] and s[-1] > 1 for s in shapes)


# ---------------------------------------------------------------- the cure

def fused(module):
    """A forward with one operator that computes what this module does, tried on random numbers; None if there is none."""
    if type(module).__module__.startswith("torch.nn") or any(True for _ in module.children()):
        return None
    vectors = [p for p in module.parameters(recurse=False)]
    if not 1 <= len(vectors) <= 2 or any(p.dim() != 1 or p.shape != vectors[0].shape for p in vectors):
        return None
    eps = next((getattr(module, n) for n in EPSILONS if isinstance(getattr(module, n, None), float)), None)
    weight, bias = vectors[0], vectors[1] if len(vectors) == 2 else None
    for candidate in (_layer, _rms):
        for value in ((eps,) if eps is not None else (1e-5, 1e-6, 1e-12)):
            function = candidate(weight, bias, value)
            if function is not None and _same(module, function, weight):
                return function
    return None


def _layer(weight, bias, eps):
    return lambda x: F.layer_norm(x, weight.shape, weight, bias, eps)


def _rms(weight, bias, eps):
    def forward(x):
        dtype = torch.promote_types(x.dtype, weight.dtype)
        return F.rms_norm(x.to(dtype), weight.shape, weight.to(dtype), eps)
    return forward if bias is None else None


def _same(module, function, weight) -> bool:
    """On small and on large numbers, so that another epsilon shows; with a weight that is not all ones."""
    generator = torch.Generator().manual_seed(0)
    kept = [p.detach().clone() for p in module.parameters(recurse=False)]
    tolerance = 1e-4 if weight.dtype == torch.float32 else 2e-2     # float32's rounding over thousands of terms; bfloat16's over one
    try:
        with torch.no_grad():
            for p in module.parameters(recurse=False):
                p.copy_(torch.rand(p.shape, generator=generator).add_(0.5))
            for scale in (1.0, 3e-3):
                x = (torch.randn(4, *weight.shape, generator=generator) * scale).to(weight.device, weight.dtype)
                a, b = module(x), function(x)
                if not isinstance(a, torch.Tensor) or a.dtype != b.dtype or not torch.allclose(a, b, rtol=tolerance, atol=tolerance):
                    return False
        return True
    except Exception:       # it is no such module: whatever it does with one tensor
        return False
    finally:
        with torch.no_grad():
            for p, old in zip(module.parameters(recurse=False), kept):
                p.copy_(old)


def one_operator(model):
    """The model, each norm by hand that is known for one in one operator."""
    for module in model.modules():
        function = fused(module)
        if function is not None:
            module.forward = function


def fix(workload):
    return add(workload, on_model=[one_operator])


class ByHand(nn.Module):
    """Layer norm as one would write it out."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x):
        """(..., n) -> (..., n)."""
        centred = x - x.mean(-1, keepdim=True)
        return self.weight * (centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)) + self.bias


def written_out(model):
    """Every nn.LayerNorm that is a direct child of the model, by hand."""
    for name, child in list(model.named_children()):
        if isinstance(child, nn.LayerNorm):
            setattr(model, name, ByHand(child))


def plant(workload):
    return add(workload, on_model=[written_out])


def examples():
    """An RMS norm by hand on a GPU, and nn.RMSNorm's own operator."""
    x, row = Tensor((2, 1024, 768), "bfloat16", (786432, 768, 1), "cuda"), Tensor((2, 1024, 1), "float32", (1024, 1, 1), "cuda")
    wide, weight = Tensor((2, 1024, 768), "float32", (786432, 768, 1), "cuda"), Tensor((768,), "bfloat16", (1,), "cuda", "norm.weight")
    call = lambda name, inputs, output: OpCall(name, inputs, (output,), module="norm", line="model.py:20")  # noqa: E731
    by_hand = (call("_to_copy", (x,), wide), call("pow", (wide,), wide), call("mean", (wide,), row), call("add", (row,), row), call("rsqrt", (row,), row),
               call("mul", (wide, row), wide), call("_to_copy", (wide,), x), call("mul", (weight, x), x))
    config, module = Config("cuda", "NVIDIA H100 80GB HBM3", (9, 0), torch="2.13.0"), (ModuleCall("norm", "RMSNorm", (x,), (x,), {"weight": weight}),)
    return Evidence(config, module, by_hand), Evidence(config, module, (call("_fused_rms_norm", (x, weight), x),))
