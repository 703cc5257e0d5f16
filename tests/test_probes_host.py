"""Probes of attention, optimizer, gradients and host: conditions that decide, thresholds from both sides, real traces."""

import os
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from perfscope import contract, evidence, probing, registry
from perfscope.evidence import backends
from perfscope.probe import Config, Evidence, ModuleCall, OpCall, Tensor, add
from perfscope.trace.analysis import RankAnalysis, analyze_files
from perfscope.trace.compiled import Compiled
from perfscope.trace.steps import Step
from perfscope.trace.tables import KernelRow, Launches, OpRow, Sync
from perfscope.workload import step

TRANSFORMER = partial(contract.subject, "transformer")


def probe(name):
    return registry.load("probes", name)


# ---------------------------------------------------------------- the evidence

def test_attention_is_recorded_with_its_backend_and_leaves_no_trace():
    before = F.scaled_dot_product_attention
    seen = contract.evidence_of(TRANSFORMER())
    assert F.scaled_dot_product_attention is before
    (call,) = seen.calls("scaled_dot_product_attention")
    assert (call.args["backend"], call.args["why_not"], call.args["is_causal"]) == ("flash", {}, True)
    assert len(call.inputs) == 3 and call.outputs[0].shape == call.inputs[0].shape
    assert [o.name for o in seen.ops if "sdp_choice" in o.name] == []


@pytest.mark.parametrize("change, reason", [
    ({}, None), ({"dropout": 0.1}, "dropout"), ({"mask": torch.zeros(16, 16, requires_grad=True)}, "gradient"),
    ({"v": torch.randn(2, 4, 16, 16)}, "widths: 8, 8, 16"), ({"q": torch.randn(2, 4, 8, 16).transpose(2, 3)}, "not contiguous"),
    ({"q": torch.randn(4, 16, 8)}, "4 dimensions"), ({"dropout": 0.1, "mask": torch.zeros(16, 16, requires_grad=True)}, "not 0; the mask"),
    ({"mask": torch.zeros(16, 16)}, None)])
def test_the_reasons_on_a_cpu_are_those_that_torch_acts_on(change, reason):
    given = {"q": torch.randn(2, 4, 16, 8), "k": torch.randn(2, 4, 16, 8), "v": torch.randn(2, 4, 16, 8), "mask": None, "dropout": 0.0} | change
    why = backends.why_not(*given.values())
    assert ("flash" in why) == (reason is not None) and (reason is None or reason in why["flash"])
    assert (backends.ask("attention", *given.values()) == "math") == (reason is not None)


def test_attention_that_is_switched_off():
    q = torch.randn(2, 4, 16, 8)
    with sdpa_kernel(SDPBackend.MATH):
        assert backends.why_not(q, q, q) == dict.fromkeys(("flash", "efficient", "cudnn"), "switched off")


def test_a_finding_may_be_a_hint_though_its_probe_has_a_cure():
    from types import SimpleNamespace

    from perfscope.diagnose import to_look_at
    from perfscope.probe import Finding

    ill = SimpleNamespace(USES=("config",), detect=lambda e: [Finding("", "curable"), Finding("", "not", extra={"hint": True})], fix=lambda w: w)
    findings, _, _ = probing.detect({"ill": ill}, Evidence(Config(torch="2.13")))
    assert [f.curable for f in findings] == [True, False]
    assert to_look_at(findings, {"ill": ill}) == ["ill"] and to_look_at(findings[1:], {"ill": ill}) == []


# ---------------------------------------------------------------- cures change nothing but the time

def one_step(workload):
    """(loss, gradients) of the first step in float32."""
    prepared = step.prepare(replace(workload, dtype="float32"))
    batches = step.load_batches(prepared, 4)
    variant = evidence.full_step(prepared, batches)
    return float(variant.loss), {n: p.grad.clone() for n, p in prepared.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["attention_on_math", "attention_returns_weights", "optimizer_single_tensor", "optimizer_not_fused", "zero_grad_fills",
                                  "gc_pauses", "debug_left_on", "unfused_norm", "page_faults"])
def test_cured_is_what_it_was(name):
    """The plant's loss and gradients are the healthy step's up to float32 rounding, and so are the cured plant's."""
    module = probe(name)
    loss, gradients = one_step(contract.subject_of(module))
    for cure in (lambda w: w, *probing.cures(module).values()):
        got, theirs = one_step(cure(module.plant(contract.subject_of(module))))
        assert got == pytest.approx(loss, rel=1e-5)
        for n in gradients.keys() & theirs.keys():
            torch.testing.assert_close(theirs[n], gradients[n], rtol=1e-4, atol=1e-5)
        assert len(gradients.keys() & theirs.keys()) >= 5


@pytest.mark.parametrize("name", ["attention_returns_weights", "cast_storm", "channels_last_harmful", "float64_leak", "layout_breaker",
                                  "thread_oversubscription", "worker_restart"])
def test_the_healthy_counterpart_computes_what_the_cured_plant_does(name):
    module = probe(name)
    loss, gradients = one_step(contract.healthy_of(module))
    for cure in probing.cures(module).values():
        got, theirs = one_step(cure(module.plant(contract.subject_of(module))))
        assert got == pytest.approx(loss, rel=1e-5) and gradients.keys() == theirs.keys()
        for n in gradients:
            torch.testing.assert_close(theirs[n], gradients[n], rtol=1e-4, atol=1e-5)


def test_a_healthy_counterpart_that_is_ill_breaks_the_contract():
    from types import SimpleNamespace
    module = SimpleNamespace(**{**vars(probe("zero_grad_fills")), "healthy": probe("zero_grad_fills").plant})
    (wrong,) = contract.check("zero_grad_fills", module, {"zero_grad_fills": module}).wrong
    assert wrong.startswith("zero_grad_fills fires on its healthy counterpart: ")


@pytest.mark.parametrize("name", ["pointwise_chains", "python_loops_over_parameters", "compile_pathologies"])
def test_plants_without_a_quick_cure_change_no_number(name):
    module = probe(name)
    loss, gradients = one_step(contract.subject_of(module))
    got, theirs = one_step(module.plant(contract.subject_of(module)))
    assert got == loss and all(torch.equal(g, theirs.get(n, theirs.get(f"_orig_mod.{n}"))) for n, g in gradients.items())


# ---------------------------------------------------------------- attention

@pytest.mark.parametrize("shapes, mask", [(((2, 4, 9, 8), (2, 4, 7, 8), (2, 4, 7, 16)), None), (((2, 4, 9, 16), (2, 4, 7, 16), (2, 4, 7, 8)), None),
                                          (((4, 9, 8), (4, 7, 8), (4, 7, 8)), (4, 9, 7)), (((4, 9, 8), (4, 7, 8), (4, 7, 8)), (9, 7))])
def test_repaired_attention_gives_the_same_on_a_fused_backend(shapes, mask):
    module, given = probe("attention_on_math"), [torch.randn(s, dtype=torch.float64) for s in shapes]
    mask = None if mask is None else torch.randn(mask, dtype=torch.float64)
    asked = []

    def attention(q, k, v, m, d, causal, **more):
        asked.append(backends.ask("attention", q, k, v, m, d, causal))
        return F.scaled_dot_product_attention(q, k, v, m, d, causal, **more)
    assert backends.ask("attention", *given, mask) == "math"
    with module.repairing():
        inside = F.scaled_dot_product_attention(*given, attn_mask=mask)
    assert F.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"
    plain = F.scaled_dot_product_attention(*given, attn_mask=mask)
    torch.testing.assert_close(module.repaired(attention)(*given, attn_mask=mask), plain)
    torch.testing.assert_close(inside, plain)
    assert asked == ["flash"]


def test_a_stride_is_repaired_and_named():
    module = probe("attention_on_math")
    q = torch.randn(2, 4, 8, 16).transpose(2, 3)
    seen = []
    module.repaired(lambda q, k, v, *rest, **more: seen.append(q.stride(-1)) or v)(q, q, q.contiguous())
    assert seen == [1]


def with_attention(**options):
    """A transformer whose attention is called with these options."""
    def change(model):
        inner = model.forward

        def forward(tokens):
            attention = F.scaled_dot_product_attention
            F.scaled_dot_product_attention = lambda q, k, v, **given: attention(q, k, v, **{**given, **options})
            try:
                return inner(tokens)
            finally:
                F.scaled_dot_product_attention = attention
        model.forward = forward
    return add(TRANSFORMER(), on_model=[change])


def test_dropout_in_the_attention_is_a_hint_and_switched_off_backends_are_not():
    module = probe("attention_on_math")
    (dropout,) = module.detect(contract.evidence_of(with_attention(dropout_p=0.1)))
    (off,) = module.detect(contract.evidence_of(module.plant(TRANSFORMER())))
    assert "dropout is not 0" in dropout.text and dropout.extra == {"hint": True} and dropout.saves is None
    assert "switched off" in off.text and off.extra == {} and off.evidence["calls"] == 1
    assert off.saves is not None and off.saves.low <= off.saves.point <= off.saves.high
    assert "query (8, 2, 16, 16)" in off.places[0].saw and "causal" in off.places[0].saw


def test_math_attention_is_seen_without_its_call():
    """`from torch.nn.functional import scaled_dot_product_attention`: the operators are there, the call is not."""
    module = probe("attention_on_math")
    seen = contract.evidence_of(module.plant(TRANSFORMER()))
    found = list(module.detect(replace(seen, ops=tuple(o for o in seen.ops if o.name != "scaled_dot_product_attention"))))
    assert [f.evidence["calls"] for f in found] == [1]


HAND = {"scaled": lambda q, k, v: ((q @ k.mT) / 4).softmax(-1) @ v,
        "masked": lambda q, k, v: ((q @ k.mT) * 0.25).masked_fill(torch.ones(16, 16, dtype=torch.bool).triu(1), -1e9).softmax(-1) @ v,
        "biased, in float32, with dropout": lambda q, k, v: F.dropout((q @ k.mT + torch.zeros(1, 1, 16, 16)).float().softmax(-1).to(v.dtype), 0.1) @ v}
NOT_ATTENTION = {"over another dimension": lambda q, k, v: (q @ k.mT).softmax(-2) @ v, "no second product": lambda q, k, v: (q @ k.mT).softmax(-1) * v,
                 "no first product": lambda q, k, v: q.softmax(-1) @ v, "linear attention": lambda q, k, v: q.softmax(-1) @ (k.mT @ v)}


@pytest.mark.parametrize("name", [*HAND, *NOT_ATTENTION])
def test_what_is_attention_by_hand(name):
    function = {**HAND, **NOT_ATTENTION}[name]

    def change(model):
        inner = model.forward

        def forward(tokens):
            attention, F.scaled_dot_product_attention = F.scaled_dot_product_attention, lambda q, k, v, **_: function(q, k, v)
            try:
                return inner(tokens)
            finally:
                F.scaled_dot_product_attention = attention
        model.forward = forward
    seen = contract.evidence_of(add(TRANSFORMER(), on_model=[change]))
    assert len(list(probe("handwritten_attention").detect(seen))) == (name in HAND)


# ---------------------------------------------------------------- optimizer and gradients

@pytest.mark.parametrize("kind, options, fires", [
    ("AdamW", {"fused": True}, None), ("AdamW", {}, "optimizer_not_fused"), ("AdamW", {"foreach": True}, "optimizer_not_fused"),
    ("SGD", {}, "optimizer_not_fused"), ("AdamW", {"foreach": False}, "optimizer_single_tensor"), ("RMSprop", {}, "optimizer_single_tensor"),
    ("RMSprop", {"foreach": True}, None)])
def test_one_of_the_two_optimizer_probes_at_most(kind, options, fires):
    seen = contract.evidence_of(replace(contract.subject("conv"), optimizer=partial(getattr(torch.optim, kind), lr=1e-3, **options)))
    fired = [n for n in ("optimizer_not_fused", "optimizer_single_tensor") if list(probe(n).detect(seen))]
    assert fired == ([fires] if fires else [])


def test_making_an_optimizer_anew_keeps_its_options():
    weights = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    old = torch.optim.SGD([{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:]}], lr=0.1, momentum=0.9, nesterov=True, foreach=False)
    new = probe("optimizer_single_tensor").fused(old)
    assert [(g["weight_decay"], g["momentum"], g["nesterov"], g["fused"]) for g in new.param_groups] == [(0.1, 0.9, True, True), (0, 0.9, True, True)]
    with pytest.raises(ValueError, match="RMSprop has no fused"):
        probe("optimizer_single_tensor").fused(torch.optim.RMSprop(weights, lr=0.1))


def row(name, count, shapes="", host=0, device=0):
    return OpRow(name, shapes, "", "", count, host, host, device, device, 0)


def traced(*rows, **more):
    steps = tuple(Step(f"ProfilerStep#{i}", 0, i * 10_000_000, 10_000_000, 9_000_000) for i in range(2))
    return Evidence(Config("cuda"), trace=RankAnalysis(0, 1, "", device_events=1, steps=steps, ops=rows, **more))


def test_optimizers_in_a_trace():
    adam = [row("aten::_foreach_addcmul_", 2, device=3), row("aten::_foreach_addcdiv_", 2, device=1), row("aten::mm", 9, device=6)]
    (found,) = probe("optimizer_not_fused").detect(traced(*adam))
    assert found.share == pytest.approx(0.4) and found.evidence == {"operators": 4}
    assert list(probe("optimizer_not_fused").detect(traced(*adam, row("aten::_fused_adamw_", 2)))) == []
    assert list(probe("optimizer_not_fused").detect(traced(row("aten::_foreach_add_", 2), row("aten::_foreach_mul_", 2)))) == []


CLIPS = {"torch's own": (partial(torch.nn.utils.clip_grad_norm_, max_norm=1.0), 0, 0), "checked": (
    partial(torch.nn.utils.clip_grad_norm_, max_norm=1.0, error_if_nonfinite=True, foreach=False), 1, 8),
    "foreach": (partial(torch.nn.utils.clip_grad_norm_, max_norm=1.0, foreach=True), 0, 0)}


@pytest.mark.parametrize("name", CLIPS)
def test_what_clipping_runs(name):
    """The operators that the probe counts on a GPU are those that torch runs, here on CPU tensors."""
    clip, reads, norms = CLIPS[name]
    ops = [o for o in contract.evidence_of(replace(contract.subject("conv"), clip=clip)).ops if o.phase == "clip"]
    assert sum(o.name == "_local_scalar_dense" for o in ops) == reads
    assert sum(o.name in ("linalg_vector_norm", "norm") for o in ops if o.inputs[0].shape != (8,)) == norms
    assert any(o.name == "_foreach_norm" for o in ops) == (norms == 0)


def test_clipping_is_cured_where_it_is_torchs_own():
    module, healthy = probe("clip_synchronises"), contract.subject("conv")
    cured = module.fix(replace(healthy, clip=CLIPS["checked"][0])).clip
    assert cured.func is torch.nn.utils.clip_grad_norm_ and cured.keywords == {"max_norm": 1.0}
    assert module.fix(healthy).clip is None
    with pytest.raises(ValueError, match="your own"):
        module.fix(replace(healthy, clip=lambda parameters: None))
    ill = module.examples()[0]
    assert [f.extra for f in module.detect(replace(ill, workload=replace(healthy, clip=lambda p: None)))] == [{"hint": True}]
    assert [f.extra for f in module.detect(replace(ill, workload=module.plant(healthy)))] == [{}]


# ---------------------------------------------------------------- real traces

def real(name):
    folder = os.environ.get("PERFSCOPE_DATA")
    if not folder:
        pytest.skip("PERFSCOPE_DATA is not set")
    analysis = analyze_files(os.path.join(folder, "traces", name), cache=False)
    return [Evidence(Config("cuda"), trace=r) for r in analysis.ranks]


def fired(seen):
    mine = ("launch_bound", "sync_in_step", "zero_grad_fills", "optimizer_not_fused", "compile_pathologies", "attention_on_math")
    return {f.probe: f for f in probing.detect({n: probe(n) for n in mine}, seen)[0]}


def test_a_trace_of_2021_zeroes_its_gradients():
    (found,) = fired(real("v100-resnet50-loader-4-workers.json.gz")[0]).values()
    assert found.probe == "zero_grad_fills" and found.evidence == {"gradients": 966, "steps": 6} and 0.005 < found.share < 0.01


def test_a_host_bound_trace_is_launch_bound():
    (found,) = fired(real("a100-resnet50-ddp-nchw.json.gz")[0]).values()
    assert found.probe == "launch_bound" and found.evidence["queue_median"] == 1 and found.evidence["kernels_per_step"] == 900
    assert 0.70 < found.share < 0.80 and "profiler" in found.note


def test_a_fast_trace_reads_only_what_is_on_the_cpu():
    """302 aten::item, none of which waits; a busy GPU; regions that were compiled again before the trace, not in it."""
    ranks = real("h100-nanogpt-8ranks")
    assert sum(r.count for r in ranks[0].trace.ops if r.name == "aten::item") == 302
    assert [fired(r) for r in ranks] == [{}] * 8


# ---------------------------------------------------------------- host

def test_waits_in_a_trace():
    module = probe("sync_in_step")
    sync = lambda name, op, count: Sync(name, op, "train.py(7): <module>", count, 1_000_000, 600_000)  # noqa: E731
    (found,) = module.detect(traced(syncs=(sync("cudaStreamSynchronize", "aten::_local_scalar_dense", 2), sync("cudaDeviceSynchronize", "", 1))))
    assert found.share == pytest.approx(0.05) and "train.py(7)" in found.places[0].where
    for healthy in (sync("cudaStreamSynchronize", "aten::_local_scalar_dense", 1), sync("cudaStreamSynchronize", "aten::copy_", 2),
                    sync("aten::item", "", 200), sync("cudaDeviceSynchronize", "", 2), sync("cudaEventSynchronize", "", 20)):
        assert list(module.detect(traced(syncs=(healthy,)))) == []
    assert len(list(module.detect(traced(syncs=(sync("cudaDeviceSynchronize", "", 3),))))) == 1


@pytest.mark.parametrize("name, inputs, output, args, waiting", [
    ("_to_copy", [((4,), "float32", "cuda")], "cpu", {}, True), ("_to_copy", [((4,), "float32", "cuda")], "cpu", {"non_blocking": True}, False),
    ("_to_copy", [((4,), "float32", "cpu")], "cuda", {}, False), ("copy_", [((4,), "float32", "cpu"), ((4,), "float32", "cuda")], "cpu", {}, True),
    ("index", [((4,), "float32", "cuda"), ((4,), "bool", "cuda")], "cuda", {}, True),
    ("index", [((4,), "float32", "cuda"), ((2,), "int64", "cuda")], "cuda", {}, False),
    ("nonzero", [((4,), "bool", "cuda")], "cuda", {}, True), ("nonzero", [((4,), "bool", "cpu")], "cpu", {}, False),
    ("repeat_interleave", [((4,), "int64", "cuda")], "cuda", {}, True), ("repeat_interleave", [((4,), "int64", "cuda")], "cuda", {"output_size": 9}, False)])
def test_what_waits_for_the_gpu(name, inputs, output, args, waiting):
    op = OpCall(name, tuple(Tensor(s, d, (1,), v) for s, d, v in inputs), (Tensor((4,), "float32", (1,), output),), args, line="train.py:3")
    assert bool(probe("sync_in_step").waits(op)) == waiting
    found = list(probe("sync_in_step").detect(Evidence(Config("cuda", torch="2.13"), (), (op,))))
    assert [f.places[0].where for f in found] == [f"{name} at train.py:3"] * waiting


def test_a_scalers_own_read_is_not_the_users():
    """Between the backward pass and the optimizer, with no line but the loop's."""
    read = OpCall("_local_scalar_dense", (Tensor((), "float32", (), "cuda"),), phase="backward", line="loop.py:9")
    zero = OpCall("zero_", (Tensor((4,), "float32", (1,), "cuda"),), phase="zero", line="loop.py:9")
    assert list(probe("sync_in_step").detect(Evidence(Config("cuda", torch="2.13"), (), (zero, read)))) == []


def test_the_line_that_reads_is_the_users():
    """On a CPU nothing waits, but the operator and its line are recorded just so."""
    seen = contract.evidence_of(replace(contract.subject("conv"), after_step=lambda loss: loss.item()))
    (read,) = [o for o in seen.ops if o.name == "_local_scalar_dense" and o.phase == "after"]
    assert read.line.startswith("tests/test_probes_host.py:")
    assert list(probe("sync_in_step").detect(seen)) == [] and probing.detect({"x": probe("sync_in_step")}, seen)[2] == {"x": "not a disease of cpu"}


@pytest.mark.parametrize("change, fires", [({}, True), ({"own_step_s": 0.005}, False), ({"own_step_s": 0.02}, True), ({"queue": 10, "max_ns": 40_000}, False),
                                           ({"queue": 10}, True), ({"queue": 0, "max_ns": 40_000}, True), ({"loader": 0.9}, False),
                                           ({"cuda_graph": True}, False)])
def test_when_a_step_is_bound_by_launches(change, fires):
    """Busy for 4 of 20 ms: idle for the host, for the loader, with long kernels, with a queue; and as timed without a profiler."""
    long = change.get("max_ns", 9_000)
    busy = 4_000_000
    loader = int(change.get("loader", 0) * 20_000_000)
    steps = tuple(Step(f"ProfilerStep#{i}", 0, i * 20_000_000, 20_000_000, busy, busy, idle_ns=16_000_000, idle_host_ns=16_000_000, kernels=busy // long,
                       loader_ns=loader, loader_exposed_ns=min(loader, 16_000_000)) for i in range(2))
    kernels = (KernelRow("k", "elementwise", busy // long, busy, long, long, 1.0, None, False, False, 1),)
    trace = RankAnalysis(0, 1, "", device_events=1, steps=steps, kernels=kernels, launches=Launches(1, 0, 0, 0, 0, 0, 0, 0, 0, change.get("queue", 0), 0, 0))
    seen = Evidence(Config("cuda", step_s=change.get("own_step_s", 0.0), cuda_graph=change.get("cuda_graph", False)), trace=trace)
    assert len(list(probe("launch_bound").detect(seen))) == fires


def chain(phase, *names, shape=(512, 24, 12, 12), device="cpu"):
    t = Tensor(shape, "float32", (), device)
    return [OpCall(n, (t,), (t,), phase=phase, line="model.py:3") for n in names]


@pytest.mark.parametrize("ops, fires", [
    (chain("forward", "relu", "mul", "add"), True), (chain("forward", "relu", "mul"), False), (chain("forward", "relu", "convolution", "mul"), False),
    (chain("forward", "relu", "view", "mul", "tanh"), True), (chain("forward", "relu", "mul", "add", shape=(8, 24, 12, 12)), False),
    (chain("forward", "max_pool2d_with_indices", "relu") + chain("backward", "threshold_backward", "max_pool2d_with_indices_backward"), True),
    (chain("optimizer", "mul_", "add_", "sqrt", "div"), False), (chain("data", "_to_copy", "sub_", "div_"), False)])
def test_what_is_a_chain(ops, fires):
    seen = Evidence(Config("cpu", torch="2.13", step_s=0.1), (), tuple(ops))
    assert len(list(probe("pointwise_chains").detect(seen))) == fires
    assert list(probe("pointwise_chains").detect(replace(seen, config=replace(seen.config, compile="default")))) == []


def test_chains_need_a_share_of_the_step():
    ops = chain("forward", "relu", "mul", "add") + chain("forward", "convolution")
    for step_s, relu, fires in ((0.1, None, True), (100.0, None, False), (100.0, 6, True), (0.1, 4, False)):
        trace = None if relu is None else RankAnalysis(0, 1, "", ops=(row("aten::relu", 1, host=relu), row("aten::convolution", 1, host=100 - relu)))
        seen = Evidence(Config("cpu", torch="2.13", step_s=step_s), (), tuple(ops), trace)
        assert len(list(probe("pointwise_chains").detect(seen))) == fires


def test_mnist_cnn_has_chains_where_its_batch_leaves_the_cache():
    from perfscope.models.mnist_cnn import workload
    found = {batch: list(probe("pointwise_chains").detect(contract.evidence_of(workload(), batch))) for batch in (8, 128)}
    assert found[8] == [] and [f.evidence["chains"] for f in found[128]] == [4]
    assert found[128][0].evidence["bytes"] == 2 * 2 * 4 * 128 * (24 * 12 * 12 + 32 * 5 * 5)     # pool and ReLU, forward and backward, written and read


def observed(**seen):
    return Evidence(Config("cpu", torch="2.13", observed=seen))


@pytest.mark.parametrize("count, seconds, fires", [(5, 0.05, True), (3, 0.05, True), (2, 0.05, False), (5, 0.02, False), (0, 0.0, False)])
def test_when_collections_are_worth_a_word(count, seconds, fires):
    seen = observed(steps=5, gc_collections=count, gc_s=seconds, step_s=[0.1] * 5)
    assert len(list(probe("gc_pauses").detect(seen))) == fires


def test_the_collector_is_as_it_was_and_collects_every_50_steps(monkeypatch):
    import gc
    module, calls = probe("gc_pauses"), []
    kept, enabled, collect = gc.get_freeze_count(), gc.isenabled(), gc.collect
    with module.frozen():
        assert not gc.isenabled() and gc.get_freeze_count() > kept
        assert gc.collect() == gc.collect(0) == gc.collect(generation=1) == 0 and gc.collect is not collect
    assert (gc.get_freeze_count(), gc.isenabled(), gc.collect) == (kept, enabled, collect)
    monkeypatch.setattr(module.gc, "collect", lambda: calls.append("collect"))
    after = module.Collecting(lambda loss: calls.append("after"))
    for _ in range(100):
        after(None)
    assert calls.count("after") == 100 and [i for i, c in enumerate(calls) if c == "collect"] == [50, 101]


def test_whoever_measures_keeps_what_was_frozen():
    import gc
    module, enabled = probe("gc_pauses"), gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        kept = gc.get_freeze_count()
        with module.frozen():
            pass
        assert gc.get_freeze_count() >= kept and not gc.isenabled()
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def test_compiling_is_watched_from_both_ends():
    module = probe("compile_pathologies")
    (found,) = module.detect(observed(steps=5, graph_breaks=2, graph_break_reasons=["Call to print", "Tensor.item"], compilations=3, cudagraph_skips=0))
    assert [p.where for p in found.places] == ["graph break", "graph break", "recompiling"] and "2 reasons" in found.text and "again" in found.text
    assert list(module.detect(observed(steps=5, graph_breaks=0, graph_break_reasons=[], compilations=0, cudagraph_skips=0))) == []


def test_compiling_inside_a_trace():
    compiled = Compiled(0, 0, 0, 0, (), 0, 0, 2, 3_000_000, 0, 0)
    (found,) = probe("compile_pathologies").detect(traced(compiled=compiled))
    assert "compiled again" in found.text and "3.0 ms" in found.places[0].saw
    assert list(probe("compile_pathologies").detect(traced(compiled=replace(compiled, compiling=0, recompilations=10)))) == []


def test_a_graph_break_is_counted_with_its_reason():
    seen = contract.evidence_of(probe("compile_pathologies").plant(contract.subject("conv"))).config.observed
    assert seen["graph_breaks"] >= 1 and seen["compilations"] == 0
    assert [r for r in seen["graph_break_reasons"] if "graph_break()" not in r] == [] and len(seen["graph_break_reasons"]) == 1
    torch._dynamo.reset()
    whole = contract.evidence_of(add(contract.subject("conv"), on_model=[partial(torch.compile, backend="eager")])).config.observed
    assert (whole["graph_breaks"], whole["compilations"]) == (0, 0)


@pytest.mark.parametrize("more, places", [
    ({"variables": {"CUDA_LAUNCH_BLOCKING": "1"}}, ["CUDA_LAUNCH_BLOCKING"]), ({"variables": {"CUDA_LAUNCH_BLOCKING": "0"}}, []),
    ({"variables": {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}}, []), ({"variables": {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}, "ddp": {}}, ["TORCH_DISTRIBUTED_DEBUG"]),
    ({"variables": {"NCCL_DEBUG": "INFO"}}, []), ({"switches": {"profiler": True, "dev_mode": True, "sync_debug": 1}},
                                                  ["torch.profiler", "python -X dev", "torch.cuda.set_sync_debug_mode"])])
def test_debugging_aids(more, places):
    found = list(probe("debug_left_on").detect(Evidence(Config("cuda", torch="2.13", **more))))
    assert [p.where for f in found for p in f.places] == places and all(f.extra == {"hint": True} for f in found)


@pytest.mark.parametrize("count, fires", [(0, False), (4, False), (10, True)])
def test_hooks_on_most_of_the_model(count, fires):
    layers = [torch.nn.Linear(2, 2) for _ in range(12)]
    for layer in layers[:count]:
        layer.register_forward_hook(lambda module, args, output: None)
    modules = tuple(ModuleCall(f"layers.{i}", "Linear", module=m) for i, m in enumerate(layers))
    assert len(list(probe("debug_left_on").detect(Evidence(Config(torch="2.13"), modules, ())))) == fires


def test_anomaly_mode_ends_with_the_step():
    module = probe("debug_left_on")
    one_step(module.plant(contract.subject("conv")))
    assert not torch.is_anomaly_enabled()
    with torch.autograd.set_detect_anomaly(True):
        assert list(module.detect(contract.evidence_of(contract.subject("conv")))) != []
        assert list(module.detect(contract.evidence_of(module.fix(contract.subject("conv"))))) == []
        assert torch.is_anomaly_enabled()


class RMS(torch.nn.Module):
    def __init__(self, offset=0.0):
        super().__init__()
        self.weight, self.eps, self.offset = torch.nn.Parameter(torch.ones(32)), 1e-6, offset

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight + self.offset) * y.to(x.dtype)


def test_norms_are_replaced_only_where_they_are_known():
    module = probe("unfused_norm")
    rms, odd, byhand = RMS(), RMS(offset=1.0), module.ByHand(torch.nn.LayerNorm(32))
    x = torch.randn(4, 32)
    torch.testing.assert_close(module.fused(rms)(x), rms(x))
    torch.testing.assert_close(module.fused(byhand)(x), byhand(x))
    assert module.fused(odd) is None and module.fused(torch.nn.Linear(32, 32)) is None and module.fused(torch.nn.LayerNorm(32)) is None
    assert torch.equal(rms.weight, torch.ones(32))          # looking changed nothing
    byhand.eps = 0.1                                        # an epsilon that shows
    torch.testing.assert_close(module.fused(byhand)(x), byhand(x))


def test_an_rms_norm_is_no_disease_of_a_cpu():
    def change(model):
        model.norm1 = RMS()
    seen = contract.evidence_of(add(TRANSFORMER(), on_model=[change]))
    module = probe("unfused_norm")
    assert [kind for _, kind in module.norms([o for o in seen.ops if o.phase == "forward"])] == ["RMS norm"]
    assert list(module.detect(seen)) == []


def test_tensors_made_on_the_cpu():
    module = probe("created_on_cpu")
    (ill,) = module.detect(module.examples()[0])
    assert ill.evidence == {"copies": 1, "bytes": 8192} and ill.places[0].where == "model.py:71" and "arange (1024,) int64" in ill.places[0].saw
    far = (module.examples()[0].ops[0],) + (OpCall("add", (Tensor((3,)),), (Tensor((3,)),)),) * 20 + module.examples()[0].ops[1:]
    assert list(module.detect(replace(module.examples()[0], ops=far))) == []
    data = tuple(replace(o, phase="data") for o in module.examples()[0].ops)
    assert list(module.detect(replace(module.examples()[0], ops=data))) == []


@pytest.mark.parametrize("faults, system_s, step_s, cpu_s, share", [
    ([256, 256], .006, .1, .1, .06), ([255, 9999, 9999], .1, .1, .1, None), ([256, 256], .004, .1, .1, None), ([256, 256], .006, 9., .1, .06),
    ([256, 256], .006, .1, 9., .06), ([2560], 3., .1, 9., 1.0), ([0, 0], 0., 0., 0., None), ([256, 256, 512], .008, .1, .1, .06),
    ([256, 256, 9999], .05, .1, .1, None)])
def test_page_faults_from_both_ends(faults, system_s, step_s, cpu_s, share):
    """What every step has counts, and its part of the kernel's time: a heap that grows or a fork is in some steps only."""
    seen = Evidence(Config("cpu", observed={"steps": len(faults), "step_s": [step_s], "page_faults": faults, "system_s": system_s, "cpu_s": cpu_s}))
    found = list(probe("page_faults").detect(seen))
    assert [f.share for f in found] == ([] if share is None else [pytest.approx(share)])
    assert not found or f"{faults[0]} page faults or more in every step" in found[0].places[0].saw


def test_page_faults_without_what_was_observed():
    assert list(probe("page_faults").detect(Evidence(Config("cpu")))) == []


@pytest.mark.parametrize("libc, preload, curable", [("glibc", "", True), ("", "", False), ("glibc", "/usr/lib/libjemalloc.so.2", False)])
def test_another_malloc_does_not_listen(monkeypatch, libc, preload, curable):
    monkeypatch.setattr("platform.libc_ver", lambda: (libc, "2.36"))
    monkeypatch.setenv("LD_PRELOAD", preload)
    seen = Evidence(Config("cpu", torch="2.13", observed={"steps": 1, "step_s": [.1], "page_faults": [999], "system_s": .05, "cpu_s": .1}))
    (found,), _, _ = probing.detect({"page_faults": probe("page_faults")}, seen)
    assert found.curable == curable
