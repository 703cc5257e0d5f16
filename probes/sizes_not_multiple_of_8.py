"""A large matrix product or convolution has sizes that Tensor Cores cannot take in whole pieces.

## What it sees
Matrix products and convolutions on a GPU in half, bfloat16 or TF32 with 1 % or more of the forward pass's arithmetic, of which an inner
or output size (the channels, the features, the vocabulary; not the batch) is no multiple of 16 bytes: 8 elements in half precision, 4 in TF32.

## Why it is slow
Tensor Cores load 16 bytes at a time. For other sizes the library pads inside, takes a kernel with smaller loads, or one without Tensor
Cores.

## Cure
Pad to the next multiple: a vocabulary of 50 257 to 50 304, 3 input channels to 4 or 8. As `fix` does it, weights and inputs are padded with zeros in every
step and the result is cut back, which is exact but not free; in your own code make the layer larger once, that is faster.

## Not for
Small layers: a head with 10 classes does not matter. Grouped convolutions. Libraries have become better at this, so it is a lead until it has
been timed.

## References
SLOW_PATHS S10; NVIDIA, "Matrix Multiplication Background User's Guide" and "Convolutional Layers User's Guide", on alignment.
"""

from functools import partial

from perfscope.evidence import layers
from perfscope.probe import MATMULS, Config, Evidence, Finding, OpCall, Place, Tensor, add

USES = ("ops",)
DEVICES = ("cuda",)
CODE = "vocabulary = -(-vocabulary // 8) * 8         # 8 elements of 2 bytes: 16 bytes"
SMALLEST = 0.01             # of the forward pass's arithmetic: METHOD 8's change that matters
PIECE = {"float16": 8, "bfloat16": 8, "float32": 4}      # elements in 16 bytes
HEAD = 64                   # outputs below which a linear layer is not padded by the cure: more padding than arithmetic


def detect(evidence):
    c = evidence.config
    forward = [o for o in evidence.ops or () if o.phase == "forward" and o.flops]
    total = sum(o.flops for o in forward)
    found = {}
    for o in forward:
        wrong = _wrong(o, c)
        if wrong and o.flops >= SMALLEST * total:
            found.setdefault((o.module or o.line, o.name, tuple(wrong)), []).append(o)
    if not found:
        return
    share = sum(o.flops for ops in found.values() for o in ops) / total
    places = tuple(Place(where or "the model's own forward", f"{name} {' x '.join(str(t.shape) for t in ops[0].inputs[:3])} {_dtype(ops[0])}: "
                         f"{', '.join(wrong)}; {sum(o.flops for o in ops) / total:.1%} of the forward arithmetic".replace("%", " %")
                         + (f", at {ops[0].line}" if ops[0].line else "")) for (where, name, wrong), ops in found.items())
    paths = {o.module for ops in found.values() for o in ops}
    calls = [m for m in evidence.modules or () if m.path in paths and m.module is not None and _paddable(m.module)]
    yield Finding("", f"{len(places)} layers with {share:.1%} of the forward arithmetic have sizes that Tensor Cores cannot take whole".replace("%", " %"),
                  places, "pad these sizes to the next multiple", saves=layers.saved(evidence, calls, _alone) if calls else None,
                  evidence={"layers": len(places), "share_of_flops": share}, extra={} if calls or evidence.modules is None else {"hint": True})


def _wrong(o, config):
    """The sizes of an operator that are no multiple of 16 bytes, in words."""
    piece = PIECE.get(_dtype(o))
    if piece is None or _dtype(o) == "float32" and not _tf32(o, config):
        return []
    if o.name == "convolution":
        weight = o.inputs[1].shape
        sizes = {} if o.args.get("groups", 1) != 1 else {"input channels": weight[1], "output channels": weight[0]}
    else:
        a, b = (o.inputs[i].shape for i in MATMULS[o.name])
        sizes = {"inner size": a[-1], "output size": b[-1]}
    return [f"{what} {n} is no multiple of {piece}" for what, n in sizes.items() if n % piece]


def _dtype(o):
    return o.outputs[0].dtype if o.outputs else ""


def _tf32(o, config):
    if config.capability < (8, 0):
        return False
    if o.name == "convolution":
        return config.switches.get("cudnn.allow_tf32") is not False
    return config.switches.get("matmul.allow_tf32") is True or config.switches.get("float32_matmul_precision") in ("high", "medium")


def _up(n, piece=8):
    return -n % piece


def _paddable(m):
    import torch
    if isinstance(m, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
        return m.groups == 1 and (m.in_channels % 8 or m.out_channels % 8)
    return isinstance(m, torch.nn.Linear) and m.out_features >= HEAD and (m.in_features % 8 or m.out_features % 8)


def _padded(m, x):
    """What this layer gives, computed with sizes that are multiples of 8."""
    import torch
    import torch.nn.functional as F
    conv = not isinstance(m, torch.nn.Linear)
    more_out, more_in = _up(m.weight.shape[0]), _up(m.weight.shape[1])
    rest = (0, 0) * (m.weight.dim() - 2)
    weight = F.pad(m.weight, (*rest, 0, more_in, 0, more_out))
    bias = F.pad(m.bias, (0, more_out)) if m.bias is not None else None
    x = F.pad(x, (*rest, 0, more_in)) if more_in else x
    y = m._conv_forward(x, weight, bias) if conv else F.linear(x, weight, bias)
    return y.narrow(1 if conv else -1, 0, m.weight.shape[0]) if more_out else y


def padded(model):
    """Convolutions and large linear layers compute with sizes that are multiples of 8. ValueError if there are none to pad."""
    found = [m for m in model.modules() if _paddable(m)]
    if not found:
        raise ValueError("no convolution or large linear layer to pad")
    for m in found:
        m.forward = partial(_padded, m)


def _alone(layer, x):
    padded(layer)
    return layer, x


def fix(workload):
    return add(workload, on_model=[padded])


def odd(model):
    """Every convolution between others has 3 channels less."""
    import torch
    head = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    narrow = torch.nn.Conv2d(head.in_channels - 3, head.out_channels, head.kernel_size, head.stride, head.padding, bias=head.bias is not None)
    narrow.to(head.weight.device, head.weight.dtype)
    with torch.no_grad():
        narrow.weight.copy_(head.weight[:, :-3])
    model.register_forward_pre_hook(lambda module, args: (args[0][:, :-3].contiguous(memory_format=torch.channels_last),))
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is head:
                setattr(parent, name, narrow)


def plant(workload):
    return add(workload, on_model=[odd])


def examples():
    def head(vocabulary):
        hidden, weight = Tensor((8192, 768), "bfloat16", (768, 1), "cuda"), Tensor((768, vocabulary), "bfloat16", (1, 768), "cuda")
        logits = Tensor((8192, vocabulary), "bfloat16", (vocabulary, 1), "cuda")
        up = Tensor((768, 3072), "bfloat16", (1, 768), "cuda")
        ops = (OpCall("mm", (hidden, up), (Tensor((8192, 3072), "bfloat16", (3072, 1), "cuda"),), {}, "forward", "block.up", "gpt2.py:60"),
               OpCall("mm", (hidden, weight), (logits,), {}, "forward", "head", "gpt2.py:81"))
        return Evidence(Config("cuda", "NVIDIA H100", (9, 0), torch="2.13.0", dtype="amp-bfloat16"), ops=ops)
    return head(50257), head(50304)
