"""The breakdown as a library: what it takes, that it leaves the caller's own alone, what it keeps when something goes wrong."""

import copy
import functools
import json
import math

import pytest
import torch
from torch import nn

import perfscope
from perfscope import breakdown as _function    # noqa: F401: the verb; its module is below
from perfscope.errors import EnvironmentError_, UsageError, WorkloadError
from perfscope.record import Run, load, to_dict
from perfscope.workload import Workload
from tests.small import ConvNet, images, workload

import sys                                      # noqa: E402
verb = sys.modules["perfscope.breakdown"]


@pytest.fixture(autouse=True)
def ceilings_once(monkeypatch):
    """The machine's ceilings are measured in earnest, but once for this file."""
    monkeypatch.setattr(verb.floor, "ceilings", functools.lru_cache(_CEILINGS))


_CEILINGS = functools.lru_cache(verb.floor.ceilings)
QUICK = {"budget_s": 0.2}


def net(width=4):
    torch.manual_seed(0)
    return ConvNet(width=width)


def mine(**more):
    return workload(net(), images(4), **more)


def names(run, size):
    return list(run.parts[size])


def shares(run, size):
    return {p: part.share.point for p, part in run.parts[size].items()}


def whole(run: Run, sizes):
    """A complete run with what every run has."""
    assert run.status == "complete" and [b.batch_size for b in run.batches] == list(sizes)
    for b in run.batches:
        assert b.status == "ok" and b.rounds and math.isclose(sum(shares(run, b.batch_size).values()), 1, abs_tol=1e-9)
        assert all(set(r.step_s) == {v.name for v in b.variants} for r in b.rounds)
        assert b.stop in ("budget", "rounds", "precision", "stalled") and b.derived.step.point > 0
    assert run.inspection.flops_step > run.inspection.flops_forward > 0 and run.ceilings.copy_bytes_per_s > 0
    assert run.scaling and run.method["version"] and run.environment.device == "cpu" and run.provenance.seed == 0


def test_a_workload_and_what_its_record_says(tmp_path):
    run = perfscope.breakdown(mine(name="mine"), (2, 4), out=tmp_path / "run", **QUICK)
    whole(run, (2, 4))
    assert names(run, 2) == ["base", "norm", "activation", "optimizer"]
    assert run.workload.name == "mine" and run.workload.optimizer == "SGD" and run.workload.parameters == sum(p.numel() for p in net().parameters())
    assert to_dict(load(tmp_path / "run")) == to_dict(run) and run.inspection.process == "same, after timing"
    assert run.method["options"]["budget_s"] == 0.2 and run.provenance.command == "", "there is no command for an object"
    assert run.inspection.residues == {} and set(run.inspection.removed) == {"norm", "activation"}
    assert {g for b in run.batches for g in b.guards} == {v.name for b in run.batches for v in b.variants}


@pytest.mark.parametrize("form", ["callable", "tuple", "module", "dict"])
def test_other_ways_to_say_what_is_measured(form):
    m = net()
    loss = lambda output, target: output.float().square().mean()  # noqa: E731
    if form == "callable":
        run = perfscope.breakdown(mine, (2,), **QUICK)
        assert run.workload.name == "mine"
    elif form == "tuple":
        run = perfscope.breakdown((m, loss, torch.optim.SGD(m.parameters(), 0.1), lambda n: (images(n), torch.zeros(n))), (2,), **QUICK)
    elif form == "module":
        run = perfscope.breakdown(m, (2,), input_shape=(3, 8, 8), classes=10, **QUICK)
        assert names(run, 2) == ["base", "norm", "activation", "optimizer", "data"], "a pipeline of images came with it"
        assert run.workload.input_shape == (3, 8, 8) and run.workload.classes == 10 and run.workload.loss == "cross_entropy"
    else:
        class Named(nn.Module):
            name = nn.Identity()                # no string: not to be taken for a name

            def __init__(self):
                super().__init__()
                self.net = net()

            def forward(self, *, pixels, scale):
                return self.net(pixels) * scale
        batch = ({"pixels": images(3), "scale": torch.ones(())}, torch.zeros(3))
        run = perfscope.breakdown(Workload(Named(), loss, lambda p: torch.optim.SGD(p, 0.1), batch), (2,), **QUICK)
    whole(run, (2,))


def test_a_fixed_batch_is_repeated_and_cut():
    seen = []

    class Counting(ConvNet):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)
    run = perfscope.breakdown(workload(Counting(width=4), images(3)), (2, 7), **QUICK)
    whole(run, (2, 7))
    assert {2, 7} <= set(seen)


def test_the_callers_own_model_and_optimizer_are_left_alone():
    m = net().eval()
    optimizer = torch.optim.Adam(m.parameters(), lr=0.125)
    batch = (images(4), torch.zeros(4))
    before, kept = copy.deepcopy(m.state_dict()), batch[0].clone()
    groups = copy.deepcopy([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups])
    perfscope.breakdown((m, lambda o, t: o.float().square().mean(), optimizer, batch), (2,), dtype="bfloat16", memory_format="channels_last", **QUICK)
    assert not m.training and all(torch.equal(before[k], v) and before[k].dtype == v.dtype for k, v in m.state_dict().items())
    assert all(p.grad is None and p.is_contiguous() for p in m.parameters())
    assert optimizer.state == {} and groups == [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    assert torch.equal(batch[0], kept)
    assert type(torch.relu(torch.ones(1, requires_grad=True)).grad_fn).__name__ == "ReluBackward0", "no operator stays overridden"


def test_order_parts_and_attribution():
    run = perfscope.breakdown(mine(), (2,), order=("optimizer", "activation"), attribution="ladder", **QUICK)
    assert names(run, 2) == ["base", "optimizer", "activation", "norm"]
    assert [v.name for v in run.batches[0].variants] == ["base", "base+optimizer", "base+activation+optimizer", "base+norm+activation+optimizer"]
    run = perfscope.breakdown(mine(), (2,), parts=("norm", "pooling"), attribution="shapley", **QUICK)
    assert set(names(run, 2)) == {"base", "norm", "pooling"} and len(run.batches[0].variants) == 4
    assert all(p.shapley is not None for p in run.parts[2].values())


@pytest.mark.parametrize("wrong, words", [
    ({"parts": ("attention",)}, r"no part attention .--parts"), ({"parts": ("data", "norm")}, "no part data"), ({"order": ("attention",)}, "no part attention"),
    ({"dtype": "fp8"}, "no dtype"), ({"device": "tpu"}, "no device|measures on cpu and cuda"), ({"batch_sizes": (0,)}, "at least 1"),
    ({"cuda_graph": True}, "needs a CUDA device"), ({"attribution": "guess"}, "no attribution")])
def test_what_is_refused_leaves_nothing_behind(tmp_path, wrong, words):
    with pytest.raises(UsageError, match=words):
        perfscope.breakdown(mine(), **{"batch_sizes": (2,), "out": tmp_path / "a" / "b", **QUICK, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_the_seed_decides_the_orders():
    def orders(seed):
        run = perfscope.breakdown(mine(), (2, 3), seed=seed, attribution="shapley", **QUICK)
        return {b.batch_size: [r.order for r in b.rounds] for b in run.batches}
    first, again, other = orders(1), orders(1), orders(2)
    for size in (2, 3):
        n = min(len(first[size]), len(again[size]), len(other[size]))
        assert n and first[size][:n] == again[size][:n] != other[size][:n]
    assert first[2][0] != first[3][0]


# ---------------------------------------------------------------- when something goes wrong

class Flawed(ConvNet):
    """Does something in its forward pass once `when(self)` is true."""

    def __init__(self, when, do):
        super().__init__(width=4)
        self.when, self.do, self.calls = when, do, 0

    def forward(self, x):
        self.calls += 1
        if self.when(self, x):
            self.do()
        return super().forward(x)

    def __deepcopy__(self, memo):               # one counter for all copies
        return self


def fail():
    raise LookupError("the model's own trouble")


def interrupt():
    raise KeyboardInterrupt


def test_a_model_that_always_fails(tmp_path):
    with pytest.raises(WorkloadError, match="LookupError: the model's own trouble") as caught:
        perfscope.breakdown(workload(Flawed(lambda m, x: True, fail), images()), (3,), out=tmp_path / "run", **QUICK)
    assert "in fail" in caught.value.detail and "batch 3" in caught.value.message and not list(tmp_path.iterdir())


@pytest.mark.parametrize("do, error", [(fail, WorkloadError), (interrupt, None)])
def test_trouble_at_the_second_batch_size_keeps_the_first(tmp_path, monkeypatch, do, error):
    """Wherever in the second block: while its variants are built, warmed up, or timed."""
    for moment in (1, 15, "rounds"):
        started, out = [], tmp_path / f"{do.__name__}-{moment}"

        def stage(text):
            if "warming up" in text:
                started.append(model.calls)

        def rounds(size, progress):
            if moment == "rounds" and len(started) == 2:
                do()
        model = Flawed(lambda m, x: len(started) == 2 and moment != "rounds" and m.calls >= started[1] + moment, do)
        go = lambda: perfscope.breakdown(workload(model, images()), (2, 3), out=out, budget_s=0.5, listener=verb.Listener(stage, rounds))  # noqa: E731
        if error:
            with pytest.raises(error, match="own trouble"):
                go()
        else:
            assert go().status == "interrupted"
        kept = load(out)
        assert kept.status == ("partial" if error else "interrupted")
        first = [b for b in kept.batches if b.status == "ok"]
        assert len(first) == 1 and first[0].rounds and first[0].stop
        second = [b for b in kept.batches if b.status == "partial"]
        assert sum(len(b.rounds) for b in second) == (1 if moment == "rounds" else 0)
        if not error:
            assert second[0].stop == "interrupted" and kept.parts[first[0].batch_size]
        assert type(torch.relu(torch.ones(1, requires_grad=True)).grad_fn).__name__ == "ReluBackward0"


@pytest.mark.parametrize("stage", ["building", "trying batch", "measuring this machine", "warming up"])
def test_ctrl_c_before_anything_was_measured(tmp_path, stage):
    def at(text):
        if stage in text:
            raise KeyboardInterrupt
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "there", tmp_path / "new" / "deep"):
        with pytest.raises(KeyboardInterrupt):
            perfscope.breakdown(mine(), (2,), out=out, listener=verb.Listener(at), **QUICK)
    assert [p.name for p in tmp_path.iterdir()] == ["there"], "what was there stays, what was made goes"


def test_an_older_record_survives_a_run_that_measured_nothing(tmp_path):
    old = perfscope.breakdown(mine(), (2,), out=tmp_path, **QUICK)
    before = (tmp_path / "run.json").read_bytes()

    def at(text):
        if "warming up" in text:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        perfscope.breakdown(mine(), (2,), out=tmp_path, listener=verb.Listener(at), **QUICK)
    with pytest.raises(WorkloadError):
        perfscope.breakdown(workload(Flawed(lambda m, x: True, fail), images()), (2,), out=tmp_path, **QUICK)
    assert (tmp_path / "run.json").read_bytes() == before and load(tmp_path).id == old.id


@pytest.mark.parametrize("part, change", [
    ("optimizer", {"optimizer": lambda p: torch.optim.LBFGS(p)}), ("optimizer", {"optimizer": lambda p: 1 / 0}), ("optimizer", {"optimizer": lambda p: "SGD"}),
    ("batch", {"batch": lambda n: 1 / 0}), ("batch", {"batch": lambda n: torch.zeros(n)}), ("batch", {"batch": ((), ())}),
    ("loss", {"loss": lambda o, t: 1 / 0}), ("loss", {"loss": lambda o, t: o}), ("loss", {"loss": lambda o, t: 1.5}),
    ("data", {"data": lambda n: 1 / 0}), ("data", {"data": lambda n: iter(())}), ("data", {"data": lambda n: 7}),
    ("model", {"model": nn.Identity()})])
def test_every_piece_of_a_workload_may_fail(tmp_path, part, change):
    from dataclasses import replace

    with pytest.raises(WorkloadError) as caught:
        perfscope.breakdown(replace(mine(), **change), (2,), out=tmp_path / "run", **QUICK)
    e = caught.value
    assert e.message and e.hint and e.exit_code == 2 and not list(tmp_path.iterdir())
    assert "perfscope/workload" not in e.detail and "perfscope/breakdown.py" not in e.detail


def test_a_model_that_cannot_be_copied():
    class Locked(ConvNet):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle '_thread.lock' object")
    with pytest.raises(WorkloadError, match="cannot be copied.*lock") as caught:
        perfscope.breakdown(workload(Locked(), images()), (2,), **QUICK)
    assert "function" in caught.value.hint


def test_counting_that_fails_costs_the_counts_only(monkeypatch):
    monkeypatch.setattr(verb.census, "inspect", lambda *a: fail())
    run = perfscope.breakdown(mine(), (2,), **QUICK)
    assert run.status == "complete" and run.inspection is None and run.parts[2]
    assert any(w.code == "not-counted" and "own trouble" in w.text for w in run.warnings)


# ---------------------------------------------------------------- memory, disk

class Hungry(ConvNet):
    """Asks for 2^42 bytes once the batch is larger than `most`."""

    def __init__(self, most):
        super().__init__(width=4)
        self.most = most

    def forward(self, x):
        if len(x) > self.most:
            torch.empty(1 << 42, dtype=torch.uint8)
        return super().forward(x)


def test_a_batch_that_does_not_fit_is_a_row(tmp_path):
    run = perfscope.breakdown(workload(Hungry(8), images()), (2, 4, 16, 32), out=tmp_path, **QUICK)
    assert run.status == "complete" and [b.status for b in run.batches] == ["ok", "ok", "out-of-memory", "out-of-memory"]
    assert "allocate" in run.batches[2].error and run.batches[3].error == "not tried: batch 16 does not fit"
    assert run.largest_batch == 8 and set(run.parts) == {2, 4} and load(tmp_path).largest_batch == 8


@pytest.mark.parametrize("most", [0, 1])
def test_when_nothing_fits(tmp_path, most):
    with pytest.raises(EnvironmentError_, match="no batch size fits.*allocate") as caught:
        perfscope.breakdown(workload(Hungry(most), images()), (2, 4), out=tmp_path / "run", **QUICK)
    assert caught.value.exit_code == 3 and caught.value.hint and not list(tmp_path.iterdir())


def test_memory_that_runs_out_only_while_it_is_measured(tmp_path):
    warming = []
    model = Flawed(lambda m, x: len(x) == 4 and warming, lambda: torch.empty(1 << 42, dtype=torch.uint8))
    run = perfscope.breakdown(workload(model, images()), (2, 4), out=tmp_path, listener=verb.Listener(lambda t: warming.append(t) if "warming" in t else None), **QUICK)
    assert run.status == "complete" and [b.status for b in run.batches] == ["ok", "out-of-memory"] and "allocate" in run.batches[1].error


def test_a_disk_that_is_full_for_a_while(tmp_path, monkeypatch):
    real, left = verb.save, [2]

    def save(run, path):
        left[0] -= 1
        if left[0] >= 0:
            raise EnvironmentError_("cannot write: No space left on device", "make room")
        return real(run, path)
    monkeypatch.setattr(verb, "save", save)
    run = perfscope.breakdown(mine(), (2, 3), out=tmp_path, **QUICK)
    assert any(w.code == "not-saved" for w in run.warnings) and load(tmp_path).status == "complete"


def test_a_disk_that_stays_full_gives_the_run_with_the_error(tmp_path, monkeypatch):
    def save(run, path):
        raise EnvironmentError_("cannot write: No space left on device", "make room")
    monkeypatch.setattr(verb, "save", save)
    with pytest.raises(EnvironmentError_, match="No space left") as caught:
        perfscope.breakdown(mine(), (2,), out=tmp_path, **QUICK)
    assert caught.value.run.status == "complete" and caught.value.run.parts[2]


@pytest.mark.parametrize("out", ["file/below", "/proc/perfscope", "a" * 300])
def test_an_output_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    stages = []
    with pytest.raises(EnvironmentError_, match="cannot write to") as caught:
        perfscope.breakdown(mine(), (2,), out=out, listener=verb.Listener(stages.append), **QUICK)
    assert stages == [] and caught.value.exit_code == 3 and "--out" in caught.value.hint


def test_batch_sizes_are_measured_on_a_heap_that_keeps_what_a_step_frees(monkeypatch):
    """Each in a heap of its own, which is left before the next, and also when a size fails."""
    from contextlib import contextmanager
    seen, measure = [], verb.measure_block

    @contextmanager
    def steady(device):
        seen.append(device)
        try:
            yield
        finally:
            seen.append("left")
    monkeypatch.setattr(verb.heap, "steady", steady)
    monkeypatch.setattr(verb, "measure_block", lambda prepared, block, *a, **k: (seen.append("measured"), measure(prepared, block, *a, **k))[1])
    assert perfscope.breakdown(mine(), (2, 4), **QUICK).method["heap"] == "kept"
    assert seen == ["cpu", "measured", "left"] * 2


# ---------------------------------------------------------------- precision, names

def test_intervals_that_are_too_wide_are_told_with_what_helps():
    run = perfscope.breakdown(mine(), (2,), precision=1e-6, **QUICK)
    missed = [w for w in run.warnings if w.code == "precision-missed"]
    assert missed and missed[0].batch_size == 2 and "--budget" in missed[0].hint and run.method["target_half_width"] == 1e-6
    run = perfscope.breakdown(mine(), (2,), **QUICK)
    assert not [w for w in run.warnings if w.code == "precision-missed"]
    assert [w.code for w in run.warnings if w.batch_size == 2 and w.code == "wide-intervals"] == (["wide-intervals"] if run.batches[0].derived.half_width > 0.005 else [])


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "../../etc/passwd", "a\nb\x1b[31m", "", "." * 300, "[/red] [b]", "\udcff", "C:\\x"])
def test_hostile_names(tmp_path, name):
    made = verb.new_id(name)
    assert "/" not in made and "\\" not in made and made.isascii() and made.isprintable() and len(made) < 100
    assert made.split("_", 1)[1].strip("._") or made.endswith("run")
    json.dumps(made)


def test_a_hostile_name_goes_through_everything(tmp_path):
    hostile = "<script>alert(1)</script>\n[/red]\udcff"
    run = perfscope.breakdown(mine(name=hostile), (2,), out=tmp_path, **QUICK)
    assert run.workload.name == hostile and load(tmp_path).workload.name == hostile
    page = perfscope.report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
