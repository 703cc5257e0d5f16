"""Evidence: what one step looks like to a probe, and that gathering it leaves nothing behind."""

import gc
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from perfscope import contract, evidence
from perfscope.probe import Tensor, add
from perfscope.workload import step


@pytest.fixture(scope="module")
def conv():
    w = replace(contract.subject("conv"), clip=lambda ps: nn.utils.clip_grad_norm_(ps, 1.0), after_step=lambda loss: loss.detach() + 1,
                data=lambda n: iter(lambda: (torch.randn(n, 8, 16, 16) * 2, torch.randint(16, (n,))), None))
    return contract.evidence_of(w)


def test_every_operator_has_its_phase(conv):
    phases = [o.phase for o in conv.ops]
    first = {p: phases.index(p) for p in dict.fromkeys(phases)}
    assert list(first) == ["data", "zero", "forward", "loss", "backward", "clip", "optimizer", "after"] or \
        list(first) == ["data", "forward", "loss", "backward", "clip", "optimizer", "after"]
    of = lambda *names: {o.phase for o in conv.ops if o.name in names}  # noqa: E731
    assert of("convolution") == {"forward"} and of("convolution_backward") == {"backward"} and of("nll_loss_forward") == {"loss"}
    assert of("randn") == {"data"} and of("_fused_adamw_") == {"optimizer"} and "clip" in of("linalg_vector_norm", "_foreach_norm")


def test_operators_know_their_module_and_their_weights(conv):
    convolutions = list(conv.calls("convolution"))
    assert [o.module for o in convolutions] == ["conv1", "conv2"]
    norms = [o for o in conv.ops if "batch_norm" in o.name and o.phase == "forward"]
    assert norms and norms[0].module == "norm1" and "norm1.weight" in {t.parameter for t in norms[0].inputs}
    assert convolutions[0].args["groups"] == 1 and convolutions[0].args["padding"] == [1, 1]


def test_modules_in_the_order_of_their_calls(conv):
    assert [m.path for m in conv.modules] == ["", "conv1", "norm1", "conv2", "norm2", "head"]
    first = conv.modules[1]
    assert first.kind == "Conv2d" and first.inputs[0].layout == "channels_last" and first.outputs[0].shape == (8, 16, 16, 16)
    assert first.parameters["weight"].parameter == "conv1.weight" and first.args["kernel_size"] == [3, 3] and first.leaf


def test_the_users_line_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import torch\n\n\ndef loss(output, target):\n    value = torch.nn.functional.cross_entropy(output, target)\n"
                                      "    value.item()\n    return value\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine
    seen = contract.evidence_of(replace(contract.subject("conv"), loss=mine.loss))
    assert [o.line for o in seen.calls("_local_scalar_dense", phase="loss")] == ["mine.py:6"]


def test_gathering_leaves_nothing_behind():
    w = contract.subject("conv")
    prepared = step.prepare(w, device="cpu", keep_original=True)
    batches = step.load_batches(prepared, 4)
    weights = {n: p.detach().clone() for n, p in prepared.model.named_parameters()}
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in prepared.model.modules())  # noqa: E731
    switches, callbacks = evidence.switches(w), list(gc.callbacks)
    evidence.gather(prepared, batches)
    assert hooks() == 0 and gc.callbacks == callbacks and evidence.switches(w) == switches
    assert not prepared.optimizer._optimizer_step_pre_hooks and not prepared.optimizer._optimizer_step_post_hooks
    assert all(torch.allclose(weights[n], p, rtol=0, atol=1e-15) for n, p in prepared.model.named_parameters()), "only zeros become 1e-20"
    assert "torch.profiler" not in sys.modules or not torch.autograd._profiler_enabled()


def test_switches_are_those_within_the_workloads_own_contexts():
    w = add(contract.subject("conv"), contexts=[lambda: torch.autograd.set_detect_anomaly(True, check_nan=False)])
    assert evidence.switches(w)["anomaly"] is True and not torch.is_anomaly_enabled()


@pytest.mark.parametrize("shape, memory, layout", [
    ((2, 8, 4, 4), torch.contiguous_format, "contiguous"), ((2, 8, 4, 4), torch.channels_last, "channels_last"),
    ((2, 1, 4, 4), torch.contiguous_format, "both"), ((2, 8, 1, 1), torch.channels_last, "both"), ((2, 8), torch.contiguous_format, "")])
def test_layouts(shape, memory, layout):
    x = torch.zeros(shape)
    x = x.contiguous(memory_format=memory) if len(shape) == 4 else x
    assert Tensor(shape, "float32", x.stride()).layout == layout


def test_slices_are_neither():
    x = torch.zeros(2, 8, 6, 6)[:, :, 1:-1, 1:-1]
    assert Tensor(tuple(x.shape), "float32", x.stride()).layout == "other"


@pytest.mark.parametrize("step_s, steps", [(10., 1), (1., 2), (.3, 5), (.05, 5), (.01, 10), (.001, 20), (0., 20)])
def test_short_steps_are_watched_for_longer_and_long_ones_for_less(step_s, steps):
    assert evidence.steps_to_observe(step_s) == steps


def test_bytes():
    assert Tensor((2, 3), "bfloat16").bytes == 12 and Tensor((2, 3), "float64").bytes == 48 and Tensor((4,), "bool").bytes == 4


class Ticks:
    """A clock that a function pushes forward."""

    def __init__(self):
        self.ns = 0

    def push(self, ns):
        return lambda: setattr(self, "ns", self.ns + ns)


def test_alone_gives_the_ratio_of_two_functions():
    from perfscope.measure.clock import Clock
    t = Ticks()
    a, b, ratio = evidence.alone(t.push(2_000_000), t.push(1_000_000), Clock(lambda: t.ns, wall_ns=lambda: t.ns))
    assert (a, b) == pytest.approx((0.002, 0.001)) and ratio.high == pytest.approx(ratio.low) == pytest.approx(-0.6931, abs=1e-3)
