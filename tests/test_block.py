"""One batch size, from building its variants to its rounds: guards, warnings, own cost, and everything that can break off."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from perfscope import variants
from perfscope.errors import WorkloadError
from perfscope.measure import machine
from perfscope.measure.clock import Clock
from perfscope.workload import block as blocks
from perfscope.workload import feed, step
from tests import small
from tests.small import ConvNet, Transformer, assert_pristine, images, taken, tokens

TICK_NS = 150_000_000


@pytest.fixture(autouse=True)
def pristine(monkeypatch):
    monkeypatch.setattr(machine, "canaries", lambda device, dtype: {"matmul": lambda: None, "copy": lambda: None})
    monkeypatch.setattr(blocks, "TRIAL_CALLS", 50)
    yield
    assert_pristine()


def ticking() -> Clock:
    """A clock on which 0.15 s pass whenever somebody looks: one step per sample, a dozen rounds in 40 s."""
    now = [0]

    def look():
        now[0] += TICK_NS
        return now[0]
    return Clock(look, wall_ns=look, name="fake")


def measured(prepared, parts, *, size=4, budget_s=40.0, attribution="ladder", on_batch=lambda batch: None):
    return blocks.measure_block(prepared, blocks.Block(size, 1.0, budget_s), parts, variants.variant_sets(parts, attribution),
                                attribution=attribution, clock=ticking(), lead_in=1, seed=0, target=1e-6, on_batch=on_batch)


def codes(warnings):
    return [w.code for w in warnings if w.code not in ("still-drifting", "own-overhead", "busy-machine")]


def test_rounds_guards_and_warm_up_of_every_variant():
    prepared, _, parts = taken(ConvNet(), images())
    before = small.state(prepared.model)
    partial = []
    batch, warnings = measured(prepared, parts, on_batch=partial.append)
    names = ["base", "base+norm", "base+norm+activation", "base+norm+activation+optimizer"]
    assert (batch.status, batch.batch_size, batch.reference, batch.attribution, batch.lead_in_steps) == ("ok", 4, names[-1], "ladder", 1)
    assert [v.name for v in batch.variants] == list(batch.guards) == list(batch.warmup) == names and batch.variants[-1].parts == parts
    assert len(batch.rounds) >= 6 and batch.stop and batch.steps_per_sample >= 1 and len(partial) == len(batch.rounds)
    assert all(sorted(r.step_s) == sorted(names) and set(r.canary_s) == {"matmul", "copy"} for r in batch.rounds)
    assert len({r.order for r in batch.rounds}) > 1, "in random order"
    assert partial[2].rounds == batch.rounds[:3] and codes(warnings) == []
    for name, guard in batch.guards.items():
        assert guard.finite and guard.conv_calls == 3 and guard.filled_gradients == (4 if name == "base" else 0)
        assert name == names[-1] or 0.1 <= guard.activation_std_low <= guard.activation_std_high <= 10
        assert guard.overhead_share == pytest.approx(guard.overhead_s / (TICK_NS / 1e9))
    weights = dict(prepared.model.named_parameters())
    after = small.state(prepared.model)
    assert all(torch.equal(after[n][before[n] != 0], before[n][before[n] != 0]) for n in weights)


def test_the_price_of_an_override():
    assert 1e-8 < blocks.price_of_override("cpu") < 1e-3


def test_own_cost_is_price_times_calls(monkeypatch):
    monkeypatch.setattr(blocks, "price_of_override", lambda device: 0.125)
    monkeypatch.setattr(blocks, "_fill_s", lambda variant: 0.0)
    prepared, _, parts = taken(ConvNet(), images())
    batch, warnings = measured(prepared, parts)
    assert [g.overhead_s for g in batch.guards.values()] == [0.125 * 4, 0.125 * 2, 0, 0]        # 2 norms, 2 activations
    assert {w.code for w in warnings} >= {"own-overhead"} and sum(w.code == "own-overhead" for w in warnings) == 2
    words = next(w for w in warnings if w.code == "own-overhead")
    assert "base" in words.text and words.batch_size == 4 and words.hint


def test_brackets_and_the_full_step_alone():
    prepared, _, parts = taken(ConvNet(), images())
    batch, _ = measured(prepared, parts, attribution="brackets")
    assert len(batch.variants) == len(batch.rounds[0].step_s) == 8
    prepared, _, parts = taken(ConvNet(), images(), wanted=("data",))
    assert parts == ()
    batch, _ = measured(prepared, parts)
    assert [v.name for v in batch.variants] == ["base"] == list(batch.rounds[0].step_s) and batch.status == "ok"


def test_the_loss_as_a_part():
    prepared, _, parts = taken(ConvNet(), images(), wanted=("norm", "loss"))
    batch, warnings = measured(prepared, parts)
    assert batch.status == "ok" and [v.name for v in batch.variants] == ["base", "base+norm", "base+norm+loss"]
    assert all(g.finite for g in batch.guards.values()) and codes(warnings) == []


def test_the_input_pipeline_runs_only_where_it_should():
    drawn = []

    def data(n):
        while True:
            drawn.append(n)
            yield images(n), torch.zeros(n)
    prepared = step.prepare(small.workload(ConvNet(), images(), data=data))
    parts = step.present_parts(prepared, step.load_batches(prepared, 4))
    batch, _ = measured(prepared, parts)
    full_steps = batch.warmup[batch.reference].steps
    assert len(drawn) > full_steps and set(drawn) == {4} and "data" in batch.variants[-1].parts


def test_fallbacks_for_writing_in_place_are_said():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.relu, self.b = nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(inplace=True), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(self.relu(self.norm(torch.exp(self.a(x)))))

    class WritesMore(Writes):
        def forward(self, x):
            y = self.norm(torch.exp(self.a(x)))
            y += 1
            return self.b(self.relu(y))
    for model, code, extra, names in ((Writes(), "out-of-place", {"out_of_place": True}, ["base+activation"]),
                                      (WritesMore(), "copied", {"copied": True, "out_of_place": True}, ["base", "base+activation"])):
        prepared, _, parts = taken(model, torch.randn(4, 8))
        batch, warnings = measured(prepared, ("activation", "norm", "optimizer"))
        assert [g.extra for g in batch.guards.values() if g.extra] == [extra] * len(names)
        assert codes(warnings) == [code] * len(names) and all(n in w.text for n, w in zip(names, warnings) if w.code == code)


# ---------------------------------------------------------------- diverging

class Diverges(ConvNet):
    """Its loss is infinite when its norm does nothing: infinite weights are next."""

    def forward(self, x):
        y = self.norm1(self.conv1(x))
        blow = torch.inf if y.grad_fn is not None and "NativeBatchNorm" not in y.grad_fn.name() else 1.0
        return self.head(self.act(y).mean((2, 3))) * blow


def test_a_variant_that_diverges_is_left_out_and_said_so():
    prepared, _, parts = taken(Diverges(), images())
    before = small.state(prepared.model)
    order = ("norm", "optimizer")
    batch, warnings = blocks.measure_block(
        prepared, blocks.Block(4, 1.0, 40.0), order, [("optimizer",), ("norm",), order], attribution="ladder", clock=ticking(),
        lead_in=1, seed=0, target=1e-6)
    assert [v.name for v in batch.variants] == ["base+norm", "base+norm+optimizer"] == sorted(batch.rounds[0].step_s)
    assert codes(warnings) == ["diverged"] and "base+optimizer" in warnings[0].text and "left out" in warnings[0].text
    assert not batch.guards["base+optimizer"].finite and batch.guards["base+norm"].finite and batch.status == "ok"
    after = small.state(prepared.model)
    assert all(torch.equal(after[n][before[n] != 0], before[n][before[n] != 0]) for n, _ in prepared.model.named_parameters())


def test_a_full_step_that_diverges_is_timed_all_the_same():
    prepared, _, parts = taken(ConvNet(), images(), loss=lambda output, target: output.sum() * torch.inf)
    batch, warnings = measured(prepared, parts)
    assert batch.reference in [v.name for v in batch.variants] and batch.rounds and not batch.guards[batch.reference].finite
    said = [w for w in warnings if w.code == "diverged" and "full step" in w.text]
    assert len(said) == 1 and "left out" not in said[0].text


def test_a_loss_that_is_not_finite_without_harm_is_kept_and_said():
    class Loss:
        def __call__(self, output, target):
            loss = output.square().mean()
            return loss + (torch.inf if output.std() > 0 else 0)        # the gradient stays finite
    prepared, _, parts = taken(ConvNet(), images(), loss=Loss())
    batch, warnings = measured(prepared, parts)
    assert len(batch.variants) == len(parts) + 1 and set(codes(warnings)) == {"loss-not-finite"}


def test_odd_activations_are_said():
    class Fixed(nn.Module):             # a weight that is no parameter cannot be rescaled
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.scale = nn.Linear(8, 8), nn.LayerNorm(8), 1e-5 * torch.eye(8)

        def forward(self, x):
            return self.norm(torch.matmul(self.a(x), self.scale))
    prepared, _, parts = taken(Fixed(), torch.randn(4, 8))
    batch, warnings = measured(prepared, parts)
    assert codes(warnings) == ["odd-activations"] * len(parts)             # every variant but the full step
    assert all(batch.reference not in w.text.split() for w in warnings)


# ---------------------------------------------------------------- breaking off

class Trips(ConvNet):
    """Raises `error` in the forward pass number `at`."""

    def __init__(self, error=None, at=10 ** 9):
        super().__init__()
        self.error, self.at, self.passes = error, at, 0

    def forward(self, x):
        self.passes += 1
        if self.passes == self.at:
            raise self.error
        return super().forward(x)


def passes_of_a_whole_block():
    """(forward passes before the first round, in all)."""
    prepared, _, parts = taken(Trips(), images())
    first = []
    measured(prepared, parts, on_batch=lambda batch: first.append(prepared.model.passes))
    per_round = first[1] - first[0]
    return first[0] - per_round, first[-1], per_round


@pytest.mark.parametrize("when", ["building", "warm-up", "rounds"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"), MemoryError()],
                         ids=["ctrl-c", "cuda", "cpu", "host"])
def test_breaking_off_keeps_complete_rounds(when, error):
    before, _, per_round = passes_of_a_whole_block()
    prepared, _, parts = taken(Trips(error, 0), images())
    kept = small.state(prepared.model)
    looked = prepared.model.passes
    model = prepared.model
    model.at = looked + {"building": 1, "warm-up": before // 2, "rounds": before - looked + int(3.5 * per_round)}[when]
    partial = []
    batch, _ = measured(prepared, parts, on_batch=partial.append)
    assert model.passes == model.at
    assert len(batch.rounds) == len(partial) == (3 if when == "rounds" else 0)
    assert batch.rounds == (partial[-1].rounds if partial else ())
    if isinstance(error, KeyboardInterrupt):
        assert (batch.status, batch.stop, batch.error) == ("partial", "interrupted", "")
    elif when == "rounds":
        assert (batch.status, batch.stop) == ("partial", "out-of-memory") and batch.variants
    else:
        assert (batch.status, batch.stop, batch.variants) == ("out-of-memory", "", ())
    if not isinstance(error, KeyboardInterrupt):
        assert batch.error == (str(error).splitlines()[0] if str(error) else "out of memory") and "\n" not in batch.error
    assert all(torch.equal(p[kept[n] != 0], kept[n][kept[n] != 0]) for n, p in prepared.model.named_parameters())
    model.at = 0
    again, _ = measured(prepared, parts)                # and the next batch size is measured as if nothing had been
    assert again.status == "ok" and len(again.rounds) >= 6


@pytest.mark.parametrize("when", ["building", "rounds"])
def test_the_users_own_error_is_shown_as_theirs(when):
    before, _, per_round = passes_of_a_whole_block()
    prepared, _, parts = taken(Trips(IndexError("off by one"), 0), images())
    prepared.model.at = prepared.model.passes + 1 if when == "building" else before + 2 * per_round
    with pytest.raises(WorkloadError, match="one training step at batch 4 failed: IndexError: off by one") as e:
        measured(prepared, parts)
    detail = e.value.detail
    assert "raise self.error" in detail and "test_block.py" in detail and detail.rstrip().endswith("IndexError: off by one")
    assert str(step.PACKAGE) not in detail and e.value.__suppress_context__
    assert e.value.exit_code == 2


def test_a_project_folder_that_is_called_perfscope_too(tmp_path):
    """Only this package's own frames are left out."""
    import importlib.util
    folder = tmp_path / "perfscope"
    folder.mkdir()
    (folder / "train.py").write_text("def fail(x):\n    raise ValueError('here')\n")
    spec = importlib.util.spec_from_file_location("their_train", folder / "train.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    try:
        train.fail(1)
    except ValueError as e:
        assert "raise ValueError('here')" in step.traceback_text(e)


def test_a_batch_that_fails():
    prepared, _, parts = taken(ConvNet(), images())
    workload = step.replace(prepared.workload, batch=lambda n: 1 / 0)
    with pytest.raises(WorkloadError, match=r"batch\(4\) failed: ZeroDivisionError"):
        measured(step.replace(prepared, workload=workload), parts)


def test_a_transformer_with_tokens():
    prepared, _, parts = taken(Transformer(dropout=0.1, kv_heads=2), tokens())
    batch, warnings = measured(prepared, parts, size=2, budget_s=30.0)
    assert batch.status == "ok" and len(batch.variants) == 6 and all(g.finite for g in batch.guards.values())
    assert set(codes(warnings)) <= {"odd-activations"}


# ---------------------------------------------------------------- loading ahead

@pytest.mark.parametrize("load_ahead", [feed.in_thread, lambda data: data])
def test_only_the_variant_with_data_loads(monkeypatch, load_ahead):
    """Otherwise it would get the batches made during the others' turns for nothing, and loading would seem to cost nothing."""
    current, loaded, enter, leave = [None], [], step.VariantStep.enter, step.VariantStep.leave

    def data(n):
        while True:
            loaded.append(current[0])
            time.sleep(0.003)                       # slower than the step: there is always a batch to be made
            yield images(n), torch.zeros(n, dtype=torch.int64)

    def entered(variant):
        current[0] = variant.name
        return enter(variant)

    def left(variant):
        leave(variant)
        current[0] = None
    prepared, _, parts = taken(ConvNet(), images())
    prepared = replace(prepared, workload=replace(prepared.workload, data=feed.stoppable(load_ahead(data))))
    monkeypatch.setattr(step.VariantStep, "enter", entered)
    monkeypatch.setattr(step.VariantStep, "leave", left)
    batch, _ = measured(prepared, (*parts, "data"))
    assert batch.status == "ok" and batch.reference.endswith("+data") and len(batch.rounds) >= 6
    assert loaded.count(batch.reference) >= 6 and set(loaded) <= {batch.reference, None}


def test_a_sample_covers_the_bursts_of_the_workers(monkeypatch):
    monkeypatch.setattr(blocks.feed, "whole_bursts", lambda k: k + 1000)
    prepared, _, parts = taken(ConvNet(), images())
    monkeypatch.setattr(blocks.rounds, "measure_rounds", lambda timed, *, k, **rest: (_ for _ in ()).throw(KeyboardInterrupt(k)))
    batch, _ = measured(prepared, parts)
    assert batch.steps_per_sample > 1000 and batch.stop == "interrupted"
