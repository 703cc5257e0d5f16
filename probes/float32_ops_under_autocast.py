"""Under autocast, what it keeps in float32 (softmax, norms, losses, powers) takes a large part of the step.

## What it sees
A trace with recorded types in which matmuls or convolutions run in half or bfloat16, and softmax, norms, losses, powers and sums
in float32 take 15 % of the step or more.

## Why it is slow
Autocast runs these in float32 for their range: inputs are cast up, results cast down again, and twice the bytes move.

## Cure
Fused versions take low-precision inputs and add in float32 inside: F.scaled_dot_product_attention instead of softmax by hand,
F.layer_norm or F.rms_norm in the model's type, a chunked cross entropy; or torch.compile. It is a hint: the code is yours.

## Not for
Models whose losses or norms overflow in half.

## References
SLOW_PATHS S21, S27; PyTorch "Autocast Op Reference".
"""

from perfscope.evidence.precision import CONVOLUTION_OPS, MATMUL_OPS, tensors_of
from perfscope.probe import Config, Evidence, Finding, Place

USES = ("trace",)
CODE = "F.scaled_dot_product_attention(q, k, v); F.layer_norm(x, ...) outside of autocast's float32 list; torch.compile(block)"
SHARE = 0.15                # SLOW_PATHS S21
LOW = ("c10::Half", "c10::BFloat16")
#: PyTorch's "CUDA Ops that can autocast to float32", as they are called below autograd, forward and backward
KEPT = tuple("aten::" + n for n in (
    "_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data", "native_layer_norm", "native_layer_norm_backward",
    "native_group_norm", "native_group_norm_backward", "nll_loss_forward", "nll_loss_backward", "nll_loss2d_forward", "nll_loss2d_backward",
    "mse_loss", "mse_loss_backward", "linalg_vector_norm", "norm", "pow", "rsqrt", "exp", "log", "sum", "cumsum", "prod", "softplus",
    "cdist", "_fused_rms_norm", "binary_cross_entropy_with_logits"))
HEAVY = tuple("aten::" + n for n in (*CONVOLUTION_OPS, *MATMUL_OPS))


def detect(evidence):
    trace = evidence.trace
    if trace is None or not any(kind in LOW for r in trace.ops if r.name in HEAVY for _, kind in tensors_of(r)):
        return
    own = lambda r: r.device_self_ns if trace.device_events else r.host_self_ns  # noqa: E731
    total = sum(own(r) for r in trace.ops)
    rows = [r for r in trace.ops if r.name in KEPT and own(r) and any(kind == "float" and shape for shape, kind in tensors_of(r))]
    share = sum(own(r) for r in rows) / total if total else 0.0
    if share < SHARE:
        return
    rows.sort(key=own, reverse=True)
    places = tuple(Place(r.name, f"{r.count} calls in float32 on {r.shapes}, {own(r) / 1e6:.2f} ms") for r in rows[:8])
    yield Finding("", f"operators that autocast keeps in float32 take {share:.0%} of the step", places, "fused versions that take low precision, or compile",
                  share=share, basis="ceiling", evidence={"operators": sorted({r.name for r in rows})})


def examples():
    """A bfloat16 matmul of 1 ms beside a float32 softmax of 1 ms; the same softmax in 0.1 ms."""
    from perfscope.trace.analysis import RankAnalysis
    from perfscope.trace.tables import OpRow

    def seen(ns):
        def row(name, shapes, types, own):
            return OpRow(name, shapes, "", types, 10, own, own, own, own, 10)
        ops = (row("aten::mm", "[[4096, 1024], [1024, 4096]]", '["c10::BFloat16", "c10::BFloat16"]', 1_000_000),
               row("aten::_softmax", "[[64, 16, 512, 512], [], []]", '["float", "Scalar", "Scalar"]', ns))
        return Evidence(Config("cuda"), trace=RankAnalysis(0, 1, "made by hand", {"0": "NVIDIA H100 80GB HBM3"}, device_events=20, ops=ops))
    return seen(1_000_000), seen(100_000)
