"""One training step: prepared in its dtype and layout, with some of its parts, compiled, distributed, on request without its loss."""

from collections import Counter, namedtuple
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perfscope.errors import EnvironmentError_, UsageError, WorkloadError
from perfscope.workload import Workload, census, step
from tests import small
from tests.small import ConvNet, Transformer, assert_pristine, count, images, taken, tokens


@pytest.fixture(autouse=True)
def pristine():
    yield
    assert_pristine()


# ---------------------------------------------------------------- prepare

@pytest.mark.parametrize("given, error, words", [
    ({"dtype": "float8"}, UsageError, "no dtype 'float8'"), ({"memory_format": "nhwc"}, UsageError, "no memory format"),
    ({"compile": "fast"}, UsageError, "no compile mode"), ({"cuda_graph": True}, UsageError, "needs a CUDA device"),
    ({"device": "gpu"}, UsageError, "no device 'gpu'"), ({"device": "meta"}, UsageError, "not on meta"),
    ({"compile": "default", "world_size": 2}, UsageError, "several ranks"),
])
def test_what_cannot_be_prepared(given, error, words):
    with pytest.raises(error, match=words) as e:
        step.prepare(small.workload(ConvNet(), images()), **given)
    assert e.value.message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_asked_for_and_absent():
    with pytest.raises(EnvironmentError_, match="CUDA was asked for") as e:
        step.check_device("cuda")
    assert "--device cpu" in e.value.hint and step.check_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("optimizer, words", [(lambda p: torch.optim.LBFGS(p), "closure"), (lambda p: "sgd", "is a str")])
def test_optimizers_that_cannot_be_stepped(optimizer, words):
    with pytest.raises(WorkloadError, match=words):
        step.prepare(small.workload(ConvNet(), images(), optimizer=optimizer))


def test_a_model_that_cannot_be_copied():
    class Fixed(ConvNet):
        def __deepcopy__(self, memo):
            raise TypeError("not me")
    with pytest.raises(WorkloadError, match="cannot be copied: TypeError: not me") as e:
        step.prepare(small.workload(Fixed(), images()))
    assert "function that builds" in e.value.hint


def test_the_callers_own_model_and_optimizer_are_left_alone():
    model = ConvNet().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = small.state(model)
    prepared = step.prepare(Workload(model, F.mse_loss, optimizer, (images(), torch.zeros(4))), dtype="bfloat16")
    assert prepared.model is not model and not model.training and small.same(before, small.state(model))
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["params"][0] is model.conv1.weight
    mine = prepared.optimizer.param_groups[0]["params"]
    assert [id(p) for p in mine] == [id(p) for p in prepared.model.parameters()]


@pytest.mark.parametrize("dtype, want", [("float32", torch.float32), ("half", torch.float16), ("bfloat16", torch.bfloat16),
                                         ("amp-half", torch.float32), ("amp-bfloat16", torch.float32)])
def test_dtype_and_layout_of_model_and_batch(dtype, want):
    prepared, batches, _ = taken(ConvNet(norm=nn.Identity), images(), dtype=dtype, memory_format="channels_last")
    assert {p.dtype for p in prepared.model.parameters()} == {want} and batches.inputs.dtype == want
    assert batches.inputs.is_contiguous(memory_format=torch.channels_last) and (prepared.scaler is not None) == (dtype == "amp-half")
    assert prepared.model.conv2.weight.is_contiguous(memory_format=torch.channels_last) and prepared.model.training


def test_convert_goes_into_every_kind_of_batch():
    prepared = step.prepare(small.workload(ConvNet(), images()), dtype="bfloat16")
    Pair = namedtuple("Pair", "x y")
    ids, x = torch.arange(3), torch.randn(2, 2)
    got = step.convert({"a": [x, (ids, 3)], "b": Pair(x, None)}, prepared)
    assert got["a"][0].dtype == torch.bfloat16 and got["a"][1][0].dtype == torch.int64 and got["a"][1][1] == 3
    assert isinstance(got["b"], Pair) and got["b"].x.dtype == torch.bfloat16 and got["b"].y is None


def test_copy_into():
    static = {"a": torch.zeros(2), "b": (torch.zeros(1), [torch.zeros(3)]), "c": None}
    step.copy_into(static, {"a": torch.ones(2), "b": (torch.ones(1), [torch.full((3,), 2.0)]), "c": None})
    assert static["a"].sum() == 2 and static["b"][0] == 1 and static["b"][1][0].sum() == 6


@pytest.mark.parametrize("inputs", [torch.ones(1), (torch.ones(1),), {"x": torch.ones(1)}])
def test_call_model(inputs):
    assert step.call_model(lambda x: 2 * x, inputs) == 2


def test_first_tensor():
    x = torch.ones(2)
    assert step.first_tensor(x) is x and step.first_tensor((torch.arange(2), x)) is x
    assert step.first_tensor({"loss": torch.tensor(1.0), "logits": x}) is x
    with pytest.raises(WorkloadError, match="no floating-point tensor"):
        step.first_tensor((torch.arange(2), None))


def test_errors_of_the_batch_are_the_users():
    def batch(n):
        raise ZeroDivisionError("my bad")
    prepared = step.prepare(Workload(ConvNet(), F.mse_loss, lambda p: torch.optim.SGD(p, 0.1), batch))
    with pytest.raises(WorkloadError, match=r"batch\(4\) failed: ZeroDivisionError: my bad") as e:
        step.load_batches(prepared, 4)
    assert "def batch" not in e.value.message and "in batch" in e.value.detail and "perfscope/workload" not in e.value.detail


# ---------------------------------------------------------------- the step

def test_the_full_step_is_the_users_training_step():
    """Loss, gradients and what the optimizer does, against a loop written by hand."""
    torch.manual_seed(0)
    model, x = ConvNet(), images()
    prepared, batches, parts = taken(model, x)
    other = ConvNet()
    other.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(other.parameters(), lr=step.RATE, momentum=0.9)
    full = step.build(prepared, batches, parts, parts)
    with full:
        losses = [full.loss.item()] + [full.step().item() for _ in range(2)]
    for want in losses:
        optimizer.zero_grad()
        loss = other(x).square().mean()
        loss.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(want, rel=1e-6)
    for p, q in zip(prepared.model.parameters(), other.parameters()):
        assert torch.allclose(p.grad, q.grad) and torch.equal(p, q)
        assert torch.allclose(prepared.optimizer.state[p]["momentum_buffer"], optimizer.state[q]["momentum_buffer"])


@pytest.mark.parametrize("optimizer", [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01), lambda p: torch.optim.AdamW(p, weight_decay=0.1),
    lambda p: torch.optim.RMSprop(p, momentum=0.9), lambda p: torch.optim.Adam(p, amsgrad=True), lambda p: torch.optim.Adagrad(p),
    lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)), lambda p: torch.optim.NAdam(p),
], ids=["sgd", "adamw", "rmsprop", "amsgrad", "adagrad", "tensor lr", "nadam"])
@pytest.mark.parametrize("keep", ["full", "base"])
def test_weights_stay_while_the_optimizer_works(optimizer, keep):
    torch.manual_seed(0)
    prepared, batches, parts = taken(ConvNet(norm=lambda c: nn.GroupNorm(2, c)), images(), optimizer=optimizer)
    before = small.state(prepared.model)
    step.build(prepared, batches, parts, parts)
    variant = step.build(prepared, batches, parts if keep == "full" else ("optimizer",), parts, step.with_gradient(prepared))
    states = lambda: [t.clone() for s in prepared.optimizer.state.values() for n, t in s.items()  # noqa: E731
                      if isinstance(t, torch.Tensor) and t.dim()]
    with variant:
        variant.step()
        early = states()
        for _ in range(19):
            variant.step()
        late = states()
    assert len(early) == len(late) > 0 and sum(not torch.equal(a, b) for a, b in zip(early, late)) > 0.6 * len(early)
    for name, now in small.state(prepared.model).items():
        zero = before[name] == 0                            # what is 0 may become 1e-20, nothing else moves by a bit
        assert torch.equal(now[~zero], before[name][~zero])
        assert not zero.any() or now[zero].abs().max() < 1e-17


#: What Optimizer.step() says to the profiler, whether there is one or not.
PROFILER = {"profiler::_record_function_enter_new": 1, "profiler::_record_function_exit": 1}


def test_the_optimizer_is_taken_away_whole():
    prepared, batches, parts = taken(Transformer(), tokens())
    inner = [p for p in parts if p != "optimizer"]
    with_it, without = (count(step.build(prepared, batches, keep, parts)) for keep in (parts, inner))
    assert with_it - without == Counter(mul_=18, add_=36, **PROFILER)     # 18 parameters: momentum, gradient, step
    assert without - with_it == Counter()


def test_data_is_taken_from_the_pipeline_only_with_its_part():
    drawn = []

    def data(n):
        while True:
            drawn.append(n)
            yield images(n), torch.zeros(n)
    workload = small.workload(ConvNet(), images(), data=data)
    prepared = step.prepare(workload)
    batches = step.load_batches(prepared, 4)
    parts = step.present_parts(prepared, batches)
    assert parts[-1] == "data" and drawn == []
    step.build(prepared, batches, [p for p in parts if p != "data"], parts)
    assert drawn == []
    variant = step.build(prepared, batches, parts, parts)
    with variant:
        variant.step()
    assert drawn == [4, 4]


@pytest.mark.parametrize("dtype", ["float32", "amp-half"])
def test_the_loss_on_request(dtype):
    prepared, batches, parts = taken(ConvNet(), images(), wanted=("norm", "loss"), dtype=dtype)
    assert parts == ("norm", "loss")
    full = step.build(prepared, batches, parts, parts)
    base = step.build(prepared, batches, ("norm",), parts)
    a, b = count(full), count(base)
    assert full.loss.dim() == 0 and base.loss.shape == (4, 10) and step.loss_value(base.loss) == pytest.approx(base.loss.float().mean().item(), abs=1e-3)
    assert a["pow"] + a["mean"] > b["pow"] + b["mean"] and a["convolution_backward"] == b["convolution_backward"] == 2
    assert len(small.gradients(prepared)) == 10


def test_only_wanted_parts_are_present():
    assert taken(Transformer(dropout=0.1), tokens(), wanted=("activation", "norm"))[2] == ("norm", "activation")
    assert taken(Transformer(dropout=0.1), tokens())[2] == ("norm", "activation", "attention", "dropout", "optimizer")


def test_gradients_that_a_variant_lacks_are_filled():
    prepared, batches, parts = taken(ConvNet(), images())
    step.build(prepared, batches, parts, parts)
    had = step.with_gradient(prepared)
    unfilled = step.build(prepared, batches, ("optimizer",), parts)
    assert unfilled.fill == [] and had - step.with_gradient(prepared) == {f"norm{i}.{w}" for i in (1, 2) for w in ("weight", "bias")}
    filled = step.build(prepared, batches, ("optimizer",), parts, had)
    again = step.build(prepared, batches, ("optimizer",), parts, had)
    assert {id(p) for p, _ in filled.fill} == {id(p) for n, p in prepared.model.named_parameters() if n in had and "norm" in n}
    assert [g is h for (_, g), (_, h) in zip(filled.fill, again.fill)] == [True] * 4          # stored once for all variants
    with filled:
        filled.step()
    assert step.with_gradient(prepared) == had and count(filled)["add_"] == count(step.build(prepared, batches, parts, parts))["add_"] - 2


# ---------------------------------------------------------------- writing in place

class Clash(nn.Module):
    """ReLU in place behind a norm behind a sigmoid, which needs its own output: without the norm the ReLU overwrites it."""

    def __init__(self, relu):
        super().__init__()
        self.a, self.norm, self.relu, self.b = nn.Linear(8, 8), nn.LayerNorm(8), relu, nn.Linear(8, 8)

    def forward(self, x):
        return self.b(self.relu(self.norm(torch.exp(self.a(x)))))


class AddsInPlace(Clash):
    def forward(self, x):
        y = torch.exp(self.a(x))
        z = self.norm(y)
        z += x
        return self.b(self.relu(z))


def test_activations_in_place_that_collide_write_out_of_place():
    prepared, batches, parts = taken(Clash(nn.ReLU(inplace=True)), torch.randn(4, 8))
    full = step.build(prepared, batches, parts, parts)
    variant = step.build(prepared, batches, ("activation",), parts)
    assert (full.out_of_place, full.copied, variant.out_of_place, variant.copied) == (False, False, True, False)
    calls = count(variant)
    assert (calls["relu"], calls["relu_"], calls["threshold_backward"], calls["clone"]) == (1, 0, 1, 0)
    assert prepared.model.relu.inplace is True and count(full)["relu_"] == 1
    seen = []
    prepared.model.b.register_forward_pre_hook(lambda m, args: seen.append(args[0].min().item()))
    with variant:
        variant.step()
    assert seen == [pytest.approx(seen[0])] and seen[0] >= 0 and not step.build(prepared, batches, (), parts).out_of_place


@pytest.mark.parametrize("model", [lambda: AddsInPlace(nn.ReLU()), lambda: Clash(F.relu_)], ids=["add", "functional"])
def test_what_still_collides_is_copied(model):
    prepared, batches, parts = taken(model(), torch.randn(4, 8))
    variant = step.build(prepared, batches, ("activation",), parts)
    assert variant.copied and {"a.weight", "b.weight"} <= small.gradients(prepared)
    calls = count(variant)
    assert calls["clone"] == 1 and calls["threshold_backward"] == 1 and census.residue(calls, ["norm"]) == {}


def test_a_leaf_handed_through_a_norm_and_written_to():
    class Latents(nn.Module):
        def __init__(self):
            super().__init__()
            self.latents, self.norm, self.a = nn.Parameter(torch.randn(4, 8)), nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x):
            y = self.norm(self.latents)
            y += x
            return self.a(y)
    prepared, batches, parts = taken(Latents(), torch.randn(4, 8))
    assert step.build(prepared, batches, (), parts).copied
    assert {"latents", "a.weight"} <= small.gradients(prepared)


def test_attention_whose_result_is_written_to():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x):
            y = F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))
            y += x
            return self.out(y)
    prepared, batches, parts = taken(Writes(), torch.randn(2, 4, 8))
    assert step.build(prepared, batches, (), parts).copied and "qkv.weight" in small.gradients(prepared)


def test_ordinary_models_in_place_need_no_fallback():
    prepared, batches, parts = taken(ConvNet(inplace=True, dropout=0.5), images())
    for keep in [parts, (), ("norm",), ("activation",), ("dropout",), ("norm", "dropout")]:
        variant = step.build(prepared, batches, keep, parts)
        assert not variant.out_of_place and not variant.copied


def test_a_model_that_is_wrong_by_itself_says_so_after_all_fallbacks():
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x):
            y = torch.exp(self.a(x))
            z = y * 1
            y.add_(1)
            return z + y
    prepared, batches, parts = taken(Bad(), torch.randn(4, 8))
    with pytest.raises(RuntimeError, match="inplace operation"):
        step.build(prepared, batches, parts, parts)


# ---------------------------------------------------------------- compiled

class Compilable(nn.Module):
    """Norm, GELU and attention between matmuls; small, so that a compilation takes seconds."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).view(2, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
        return self.out(F.gelu(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 16)))


def outcome(variant, prepared):
    with variant:
        loss = variant.step()
    return loss.item(), {n: p.grad.clone() for n, p in prepared.model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("first", ["full", "base"])
def test_compiled_variants_do_what_the_eager_ones_do(first):
    """In either order of compiling: AOTAutograd's cache and the Python dispatcher's would both mix the variants up."""
    torch.manual_seed(0)
    model, x = Compilable(), torch.randn(2, 5, 16)
    order = ("norm", "activation", "attention")
    eager, compiled = {}, {}
    for mode, found in (("off", eager), ("default", compiled)):
        prepared, batches, parts = taken(model, x, compile=mode)
        assert parts == (*order, "optimizer")
        keeps = [order[:i] for i in ((3, 1, 0) if first == "full" else (0, 1, 3))]
        variants = [step.make_variant(prepared, batches, keep, parts) for keep in keeps]
        for variant in variants:
            found[variant.name] = outcome(variant, prepared)
        for variant in variants:                        # and again, each with the code that is its own
            loss, _ = outcome(variant, prepared)
            assert loss == pytest.approx(found[variant.name][0], rel=1e-6)
    assert len({loss for loss, _ in eager.values()}) == 3, "the three variants differ"
    for name, (loss, gradients) in eager.items():
        got, got_gradients = compiled[name]
        assert got == pytest.approx(loss, rel=1e-4) and gradients.keys() == got_gradients.keys()
        for n, g in gradients.items():
            assert torch.allclose(g, got_gradients[n], rtol=1e-3, atol=1e-6), (name, n)


def test_no_two_variants_share_compiled_code():
    one, other = step.PerVariantBackend("default"), step.PerVariantBackend("default")
    assert one != other and one.options == {} and step.PerVariantBackend("max-autotune").options


@pytest.mark.parametrize("part", ["pooling", "residual", "embedding"])
def test_what_cannot_be_separated_under_compile_is_refused(part):
    prepared, batches, parts = taken(Transformer(), tokens(), wanted=(part,), compile="default")
    with pytest.raises(UsageError, match="cannot be separated under --compile") as e:
        step.make_variant(prepared, batches, (), parts)
    assert "--parts" in e.value.hint
    step.make_variant(prepared, batches, parts, parts)          # the full step itself is fine


# ---------------------------------------------------------------- distributed, in a world of one

@pytest.fixture
def group(tmp_path):
    import torch.distributed as dist
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield dist
    dist.destroy_process_group()


def test_every_gradient_is_reduced_in_every_variant(group):
    """Norms that a variant leaves without a gradient would keep DDP waiting for ever, or raise in the next step."""
    from torch.nn.parallel import DistributedDataParallel
    torch.manual_seed(0)
    prepared, batches, _ = taken(ConvNet(norm=lambda c: nn.GroupNorm(2, c)), images())
    prepared = replace(prepared, distributed=DistributedDataParallel(prepared.model))
    parts = step.present_parts(prepared, batches)
    assert parts == ("norm", "activation", "optimizer", "communication")
    full = step.build(prepared, batches, parts, parts)
    had = step.with_gradient(prepared)
    reduced = []
    hook = lambda state, bucket: (reduced.append(bucket.buffer().numel()), group.all_reduce(bucket.buffer(), async_op=True)  # noqa: E731
                                  .get_future().then(lambda f: f.value()[0]))[1]
    prepared.distributed.register_comm_hook(None, hook)
    base = step.build(prepared, batches, ("optimizer", "communication"), parts, had)
    silent = step.build(prepared, batches, ("optimizer",), parts, had)
    assert len(base.fill) == 4
    for variant in (full, base):
        reduced.clear()
        with variant:
            for _ in range(3):
                variant.step()
        assert sum(reduced) == 3 * sum(p.numel() for p in prepared.model.parameters()), variant.name
        assert step.with_gradient(prepared) == had
    for parameter, stored in base.fill:
        assert torch.equal(parameter.grad, stored) and parameter.grad is not stored
    reduced.clear()
    with silent:
        silent.step()
    assert reduced == [] and step.with_gradient(prepared) == had


def test_a_hook_may_give_a_module_without_a_truth_value():
    """An empty Sequential is falsy, a compiled module refuses `bool`: neither may be taken for nothing."""
    class Odd(torch.nn.Linear):
        def __len__(self):
            raise TypeError("no length")

    given = Odd(4, 2)
    workload = Workload(torch.nn.Linear(4, 2), torch.nn.functional.mse_loss, lambda p: torch.optim.SGD(p, lr=0.1), (torch.randn(4, 4), torch.randn(4, 2)),
                        on_model=(lambda model: None, lambda model: given))
    assert step.prepare(workload).model is given
