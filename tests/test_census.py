"""Counting what really ran: residues are seen, the work of the variants is compared, in a process of its own."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perfscope.errors import WorkloadError
from perfscope.options import Options
from perfscope.record import Inspection, from_dict, to_dict
from perfscope.workload import census
from tests import small
from tests.small import ConvNet, Transformer, assert_pristine, images, taken, tokens


@pytest.fixture(autouse=True)
def pristine():
    yield
    assert_pristine()


def inspected(model, x, **settings):
    prepared, batches, parts = taken(model, x, **settings)
    return census.inspect(prepared, batches, parts, parts), prepared, parts


def test_count():
    with census.Count() as count:
        torch.relu(torch.ones(2)) + 1
    assert count.calls["relu"] == 1 and count.calls["add"] == 1


@pytest.mark.parametrize("part, mine, not_mine", [
    ("norm", ["native_batch_norm", "native_batch_norm_backward", "cudnn_batch_norm", "native_layer_norm", "_native_batch_norm_legit",
              "native_group_norm_backward", "_fused_rms_norm", "batch_norm_stats", "rsqrt", "miopen_batch_norm"],
     ["linalg_vector_norm", "norm", "sqrt", "convolution"]),
    ("activation", ["relu", "relu_", "gelu", "gelu_backward", "silu_backward", "threshold_backward", "sigmoid", "tanh_backward",
                    "leaky_relu_", "_prelu_kernel", "log_sigmoid_forward", "hardtanh_backward"],
     ["mul", "threshold_of_mine", "sigmoid_of_mine", "atanh"]),
    ("attention", ["_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention_backward", "_softmax",
                   "_softmax_backward_data", "_safe_softmax"], ["_log_softmax", "_log_softmax_backward_data", "bmm"]),
    ("dropout", ["native_dropout", "bernoulli_"], ["rand", "mul"]),
    ("pooling", ["max_pool2d_with_indices", "avg_pool2d_backward", "_adaptive_avg_pool2d", "adaptive_max_pool2d"], ["mean", "max"]),
    ("embedding", ["embedding", "embedding_dense_backward"], ["index_select"]),
])
def test_residue_knows_the_operators_of_each_part(part, mine, not_mine):
    calls = {name: 2 for name in (*mine, *not_mine)}
    assert census.residue(calls, [part]) == {name: 2 for name in mine}
    assert census.residue(calls, []) == {} and census.residue(calls, ["optimizer", "data"]) == {}


def test_inspect_of_a_convolutional_network():
    inspection, prepared, parts = inspected(ConvNet(dropout=0.5), images())
    assert list(inspection.census) == ["base", "base+norm", "base+norm+activation", "base+norm+activation+dropout"]
    assert inspection.residues == {} and census.different_work(inspection) == ""
    assert {"native_batch_norm": 2, "native_batch_norm_backward": 2}.items() <= inspection.removed["norm"].items()
    assert {"relu": 2, "threshold_backward": 2}.items() <= inspection.removed["activation"].items()
    assert inspection.removed["dropout"]["bernoulli_"] == 1
    norms = ("norm1.bias", "norm1.weight", "norm2.bias", "norm2.weight")
    assert inspection.without_gradient == {name: norms if name == "base" else () for name in inspection.census}
    assert inspection.extra["matmul_calls"] == {name: 2 + 2 + 1 + 2 for name in inspection.census}     # conv, its backward; linear, its backward
    per_image = 2 * (8 * 3 * 9 * 64 + 8 * 8 * 9 * 16 + 8 * 10)
    assert inspection.flops_forward == per_image
    assert inspection.flops_step == 3 * per_image - 2 * 8 * 3 * 9 * 64         # the images themselves need no gradient
    assert {len(s) for s in inspection.activation_std.values()} == {3} and inspection.extra["handwritten"] == {}
    assert inspection.extra["batch_size"] == 4 and len(inspection.layers) > 3


def test_inspect_survives_the_way_into_a_record():
    inspection, *_ = inspected(Transformer(norm=small.RMSNorm, act=small.NewGELU), tokens())
    assert inspection.extra["handwritten"] == {"norm1": "RMSNorm (norm)", "norm2": "RMSNorm (norm)", "mlp.1": "NewGELU (activation)"}
    again = from_dict(Inspection, json.loads(json.dumps(to_dict(inspection))))
    assert again.census == inspection.census and again.removed == inspection.removed and again.residues == {}


class Functional(nn.Module):
    """A norm written by hand in a plain function, beside one that is an operator where asked."""

    def __init__(self, norm):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 8), norm, nn.Linear(8, 8)

    def forward(self, x):
        x = self.norm(self.a(x))
        return self.b(F.relu(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)))


def test_a_norm_written_by_hand_in_a_function_is_a_residue_of_the_norm_part():
    inspection, _, parts = inspected(Functional(nn.LayerNorm(8)), torch.randn(4, 8))
    assert parts == ("norm", "activation", "optimizer") and inspection.residues == {"base": {"rsqrt": 1}}


def test_also_where_the_step_has_no_norm_part_at_all():
    inspection, _, parts = inspected(Functional(nn.Identity()), torch.randn(4, 8))
    assert parts == ("activation", "optimizer") and inspection.residues == {"base": {"rsqrt": 1}}


@pytest.mark.parametrize("model", [lambda: Functional(nn.Identity()).a, lambda: ConvNet(), lambda: Transformer(norm=small.RMSNorm)],
                         ids=["linear", "batch norm", "module by hand"])
def test_norms_that_only_were_not_asked_for_are_no_residue(model):
    model = model()
    x = torch.randn(4, 8) if isinstance(model, nn.Linear) else images() if isinstance(model, ConvNet) else tokens()
    inspection, _, parts = inspected(model, x, wanted=("activation",))
    assert inspection.residues == {}


def test_a_residue_is_seen(monkeypatch):
    """If overriding missed an operator, the census says so."""
    monkeypatch.setattr(census.taking, "ACTIVATION", tuple(a for a in census.taking.ACTIVATION if a != "gelu"))
    class Gated(nn.Linear):
        def forward(self, x):
            return F.gelu(F.silu(super().forward(x)))
    inspection, *_ = inspected(nn.Sequential(Gated(8, 8), nn.LayerNorm(8)), torch.randn(4, 8))
    assert inspection.residues == {name: {"gelu": 1, "gelu_backward": 1} for name in ("base", "base+norm")}


def test_different_work():
    counted = lambda **kernels: Inspection(extra={"matmul_calls": kernels.pop("calls"), **kernels})  # noqa: E731
    same = {"base": 5, "base+norm": 5, "base+norm+attention": 9, "base+attention": 9}
    assert census.different_work(counted(calls=same)) == "" == census.different_work(Inspection())
    assert "base: 4" in census.different_work(counted(calls={**same, "base": 4}))
    assert "base+attention: 8" in census.different_work(counted(calls={**same, "base+attention": 8}))
    assert census.different_work(counted(calls=same, kernels={"base": ["gemm_a"], "full": ["gemm_a"]})) == ""
    words = census.different_work(counted(calls=same, kernels={"base": ["gemm_a", "conv"], "full": ["gemm_b", "conv"]}))
    assert "gemm_a, gemm_b" in words and "conv," not in words.partition(": ")[2]


def test_attention_on_the_math_backend_takes_its_own_matmuls_with_it():
    class Narrow(nn.Module):                    # values narrower than keys: PyTorch multiplies with bmm itself
        def __init__(self):
            super().__init__()
            self.q, self.v, self.out, self.norm = nn.Linear(8, 16), nn.Linear(8, 4), nn.Linear(4, 2), nn.LayerNorm(2)

        def forward(self, x):
            return self.norm(self.out(F.scaled_dot_product_attention(self.q(x), self.q(x), self.v(x))))
    inspection, *_ = inspected(Narrow(), torch.randn(2, 5, 8))
    calls = inspection.extra["matmul_calls"]
    assert calls["base"] == calls["base+norm"] < calls["base+norm+attention"] and census.different_work(inspection) == ""


def test_a_norm_on_the_raw_input_is_found_out():
    """Without it the first layer's input needs no gradient, and one matmul less runs: said, not hidden."""
    inspection, *_ = inspected(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), torch.randn(4, 8))
    assert census.different_work(inspection) == "base: 2, base+norm: 3"


def test_elsewhere_the_same_is_counted():
    options = Options(model="mnist_cnn", device="cpu")
    elsewhere = census.inspect_elsewhere(options, 2, ("norm", "activation", "optimizer"))
    assert elsewhere.process == "own" and elsewhere.residues == {} and round(elsewhere.flops_step / 1e6, 2) == 6.77
    assert list(elsewhere.census) == ["base", "base+norm", "base+norm+activation"]


def test_what_goes_wrong_elsewhere_is_said_here(tmp_path):
    (tmp_path / "broken.py").write_text("def workload():\n    raise ZeroDivisionError('my own fault')\n")
    with pytest.raises(WorkloadError, match="my own fault") as e:
        census.inspect_elsewhere(Options(model=f"{tmp_path}/broken.py:workload", device="cpu"), 2, ("optimizer",))
    assert "broken.py" in e.value.detail and "callable's own error" in e.value.hint
