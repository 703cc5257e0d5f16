"""The protocol with a fake clock; the plan, resuming, interrupting; ladder, ablation, confirmation, on a tiny recipe."""

import contextlib
import dataclasses
import gc
import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from perfscope import tricks
from perfscope.speedruns import arms, words as speedrun_words
from perfscope.speedruns import plan as planning
from perfscope.speedruns.arms import Contender
from perfscope.errors import RecordError, UsageError
from perfscope.measure.clock import Clock
from perfscope.measure.ranks import Ranks
from perfscope.record import load, to_dict
from perfscope.report import render, sections
from perfscope.speedrun import Listener, confirm, speedrun
from perfscope.speedruns.plan import Options
from perfscope.speedruns.run import Log, Times, averaged, curve
from perfscope.workload import datasets
from perfscope.workload.workload import Workload


@dataclass(frozen=True)
class Settings(tricks.Settings):
    epochs: float = 1.0
    batch: int = 32
    lr: float = 0.01
    seconds: float = 2.0                # that a run takes on the fake clock
    accuracy: float = 0.9
    wobble: float = 0.0                 # by seed


class World:
    """A clock that only moves when something says so, and a recipe that uses it up."""

    def __init__(self):
        self.now, self.calls, self.waits = 0.0, [], 0
        self.times = Times(Clock(lambda: round(self.now * 1e9), self.wait, name="fake"), lambda: round(self.now * 0.5e9))
        self.recipe = SimpleNamespace(__doc__="A recipe.", DATASET="mnist", TARGET=0.8, VARIANTS={"": Settings()}, model=lambda s: nn.Linear(784, 10),
                                      train=self.train)

    def wait(self):
        self.waits += 1

    def train(self, data, s, seed, log, ranks):
        self.calls.append((seed, data.test_labels is None, bool(data.train_images.eq(self.real).all()) if hasattr(self, "real") else None))
        log(0.5 * s.epochs, 2.0)
        self.now += s.seconds * (1 + s.wobble * seed)
        log(s.epochs, torch.tensor(1.0))
        log.trained(self.recipe.model(s))
        self.now += 0.5
        out = torch.zeros(len(data.test_images), 10)
        out[torch.arange(len(out)), self.labels] = 1.0
        wrong = round((1 - s.accuracy - 0.01 * (seed % 3)) * len(out))
        out[:wrong] = out[:wrong].roll(1, 1)
        return out

    def contender(self, name="arm", **fields):
        s = Settings(**fields)
        return Contender(arms.describe(self.recipe, s, Settings(), "tiny", name), s, self.recipe)


@pytest.fixture
def world(monkeypatch):
    w, data = World(), datasets.synthetic("mnist", 64, 100, 0)
    w.labels, w.real = data.test_labels, data.train_images
    monkeypatch.setattr(datasets, "load", lambda *a, **k: data)
    monkeypatch.setattr(gc, "collect", lambda: 0)           # 0.1 s each, between the runs
    return w


def go(world, *contenders, **named):
    return speedrun(Options(device="cpu", count=False, **named.pop("options", {})), contenders=contenders or [world.contender()], times=world.times, **named)


def test_the_clock_runs_around_training_and_predictions_alone(world):
    record = go(world, options={"runs": 3})
    assert [(r.wall_s, r.cpu_s) for r in record.runs] == [(2.5, 1.25)] * 3 and record.clock == "cpu"
    assert record.runs[0].evaluation_s == 0.5
    assert [r.accuracy for r in record.runs] == pytest.approx([0.9, 0.91, 0.92])
    assert record.results[0].time.point == 1.25 and record.results[0].accuracy.point == pytest.approx(0.91)
    assert {"import_s", "read_s", "transfer_s", "warm_up_s", "first_run_s"} == set(record.cold)


def test_labels_stay_outside_and_the_warm_up_sees_random_images(world):
    go(world, options={"runs": 2, "seed": 7})
    assert world.calls == [(10 ** 6, True, False), (7, True, True), (8, True, True)]
    world.calls.clear()
    record = go(world, world.contender(early_stop=0.5), options={"runs": 1})
    assert [hidden for _, hidden, _ in world.calls] == [True, False] and "fitted to the answer" in record.arms[0].leaks[0]
    assert any(w.code == "leak" for w in record.warnings)


def test_the_plan_is_written_before_the_first_run_and_kept(world, tmp_path):
    seen = []
    record = go(world, options={"runs": 4}, out=tmp_path, listener=Listener(run=lambda r: seen.append(load(tmp_path))))
    assert [len(r.runs) for r in seen] == [1, 2, 3, 4] and all(r.plan == record.plan for r in seen) and len(record.plan) == 4
    assert [r.seed for r in record.runs] == [p.seed for p in record.plan] and record.status == "complete"
    assert seen[0].status == "partial" and load(tmp_path).runs == record.runs
    assert json.loads((tmp_path / "run.json").read_text())["kind"] == "speedrun"


def test_a_curve_leaves_no_step_out():
    log = Log()
    for i in range(150):
        log(i + 1, float(i))
    points = curve(log)
    assert len(points) == 38 and points[0] == (4, 1.5) and points[-1] == (150, 148.5)
    assert averaged([[(1, 2.0)], [(1, 4.0)]]) == ((1, 3.0),)


def stop_after(n):
    def run(record):
        if len(record.runs) == n:
            raise KeyboardInterrupt
    return Listener(run=run)


def test_interrupted_it_keeps_what_it_had_and_goes_on(world, tmp_path, monkeypatch):
    monkeypatch.setattr(arms, "again", lambda arm: world.contender())
    part = go(world, options={"runs": 5, "certify": True}, out=tmp_path, listener=stop_after(2))
    assert part.status == "interrupted" and len(part.runs) == 2 and not part.results[0].certified
    assert "INTERRUPTED after 2 of 5" in speedrun_words.verdict(part)
    whole = speedrun(Options(device="cpu", count=False, resume=str(tmp_path)), times=world.times)
    assert whole.status == "complete" and whole.runs[:2] == part.runs and [r.seed for r in whole.runs] == [0, 1, 2, 3, 4]
    assert load(tmp_path).runs == whole.runs and whole.results[0].certified
    with pytest.raises(UsageError, match="complete: 5 of 5"):
        speedrun(Options(device="cpu", resume=str(tmp_path)))
    with pytest.raises(KeyboardInterrupt):
        go(world, out=tmp_path / "new", listener=Listener(stage=lambda text: (_ for _ in ()).throw(KeyboardInterrupt) if "run 1" in text else None))
    assert not (tmp_path / "new").exists()


def test_a_changed_recipe_or_other_data_is_not_gone_on_with(world, tmp_path, monkeypatch):
    record = speedrun("mnist,epochs=0.5", runs=2, synthetic=64, device="cpu", count=False, out=tmp_path, listener=stop_after(1))
    assert arms.again(record.arms[0]).settings.epochs == 0.5
    with pytest.raises(UsageError, match="not what it was"):
        arms.again(dataclasses.replace(record.arms[0], settings={**record.arms[0].settings, "lr": 9.0}))
    with pytest.raises(UsageError, match="other data"):
        speedrun(Options(device="cpu", resume=str(tmp_path), synthetic=32))
    (tmp_path / "run.json").write_text((tmp_path / "run.json").read_text().replace(record.environment.host_hash, "0123456789ab"))
    with pytest.raises(UsageError, match="another machine"):
        speedrun(Options(device="cpu", resume=str(tmp_path)))
    with pytest.raises(RecordError):
        speedrun(Options(resume=str(tmp_path / "nothing")))


def test_certified_means_complete_significant_and_without_a_leak(world):
    assert go(world, options={"runs": 6, "certify": True}).results[0].certified
    assert not go(world, options={"runs": 6}).results[0].certified
    low = go(world, world.contender(accuracy=0.795), options={"runs": 6, "certify": True})
    assert not low.results[0].certified and low.results[0].more_runs and "--runs" in speedrun_words.verdict(low)
    assert "No number of runs" in speedrun_words.verdict(go(world, world.contender(accuracy=0.5), options={"runs": 3, "certify": True}))
    with pytest.raises(UsageError, match="cannot be certified"):
        go(world, world.contender(checkpoint="x.pt"), options={"certify": True})


def test_rounds_have_every_arm_once_in_random_order_with_equal_seeds():
    plan = planning.plan(4, 10, 3)
    for r in range(10):
        part = plan[4 * r:4 * r + 4]
        assert sorted(p.arm for p in part) == [0, 1, 2, 3] and {p.seed for p in part} == {3 + r}
    assert len({tuple(p.arm for p in plan[4 * r:4 * r + 4]) for r in range(10)}) > 3
    assert [p.arm for p in planning.plan(3, 2, 0, in_order=True)] == [0, 1, 2, 0, 1, 2] and plan == planning.plan(4, 10, 3)


def test_an_ablation_pairs_its_runs(world):
    base, slow = world.contender("base", wobble=0.1), world.contender("without x", wobble=0.1, seconds=4.0, accuracy=0.85)
    record = go(world, base, slow, options={"runs": 6, "off": ("x",)})
    (c,) = record.comparisons
    assert record.mode == "ablation" and c.pairs == 6 and c.verdict == "SLOWER" and c.settle is None
    assert c.accuracy.point == pytest.approx(-0.05, abs=0.005) and c.time.low > 0.5
    assert speedrun_words.trick(record, c) == "x"


def test_a_confirmation_says_faster_and_not_worse(world):
    before, after = world.contender("before", seconds=4.0), world.contender("after", seconds=1.5, wobble=1e-6)
    record = confirm(before, after, times=world.times, device="cpu", count=False)
    (c,) = record.comparisons
    assert (record.mode, c.pairs, c.verdict, c.not_worse, c.margin) == ("confirm", 5, "FASTER", True, planning.MARGIN)
    assert "FASTER: a full run takes 2.25 x less" in speedrun_words.verdict(record)
    worse = confirm(before, world.contender("after", seconds=1.5, accuracy=0.8), times=world.times, device="cpu", count=False)
    assert worse.comparisons[0].not_worse is False and "WORSE" in speedrun_words.verdict(worse)
    with pytest.raises(UsageError, match="at least 5 pairs"):
        confirm(before, after, pairs=4)
    assert confirm(before, after, numerics_unchanged=True) is None


def test_a_ladder_is_shortened_by_a_stated_factor(world):
    long, short = world.contender("long", seconds=40.0, epochs=8.0), world.contender("short", seconds=1.0)
    ticking = Times(Clock(world.times.clock.now_ns, world.wait, name="fake"), world.times.cpu_ns)
    verb = sys.modules["perfscope.speedruns.run"]
    real, verb.time = verb.time, SimpleNamespace(perf_counter=lambda: world.now, process_time_ns=None, perf_counter_ns=None)
    try:
        record = speedrun(Options(device="cpu", count=False, ladder=True, budget_s=30.0), contenders=[long, short], times=ticking)
    finally:
        verb.time = real
    first, second = record.arms
    assert 0 < first.shortened < 1 and first.settings["epochs"] == pytest.approx(8 * first.shortened) and second.shortened == 1.0
    assert "shortened to" in speedrun_words.verdict(record)
    part = record.runs[0].evaluation_s / record.runs[0].wall_s
    assert speedrun_words.all_epochs(record, 0) == pytest.approx(record.results[0].time.point * ((1 - part) / first.shortened + part))


@pytest.mark.parametrize("options, reason", [
    ({"certify": True, "ladder": True}, "different questions"), ({"ladder": True, "on": ("ema",)}, "go with a plain run"), ({"before": "mnist"}, "come together"),
    ({"before": "a", "after": "b", "runs": 3}, "at least 5"), ({"budget_s": 5.0}, "is for --ladder"), ({"margin": 0.0}, "--margin"),
    ({"holdout": -1}, "numbers of images"), ({"dtype": "fp8"}, "no dtype"), ({"seed": -1}, "--seed")], ids=str)
def test_wrong_options_say_why(options, reason):
    with pytest.raises(UsageError, match=reason):
        planning.check(Options(**options))


def test_specs_name_recipes_variants_fields_and_workloads():
    c = arms.contender("mnist_ladder:8,epochs=0.5")
    assert c.settings.epochs == 0.5 and c.arm.changed == {"epochs": 0.5} and c.arm.published["time_s"] == 0.762
    w = arms.contender("mnist_cnn,dtype=amp-bfloat16,fused=true", "after", within="mnist_ladder:8")
    assert (w.arm.name, w.arm.workload, w.settings.dtype, w.settings.fused) == ("after", "mnist_cnn", "amp-bfloat16", True)
    plain = arms.from_workload("mnist_cnn", "mnist")
    assert (plain.settings.dtype, plain.settings.memory_format, plain.settings.fused) == ("float32", "contiguous", False)
    for spec, reason in (("nothing", "no recipe"), ("mnist:huge", "no variant"), ("mnist,epochs", "sets nothing"), ("mnist,epochs=0", "above 0")):
        with pytest.raises(UsageError, match=reason):
            arms.contender(spec)
    with pytest.raises(UsageError, match="no recipe trains inputs"):
        arms.from_workload("resnet50")
    with pytest.raises(UsageError, match="the recipe's images"):
        arms.from_workload("resnet9", "mnist")


def test_every_seed_starts_a_workload_anew():
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    w = Workload(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.5), lambda n: None, input_shape=(1, 28, 28))
    torch.manual_seed(0)
    first, second = arms.fresh(w), arms.fresh(w)
    assert not first[1].weight.equal(second[1].weight) and not first[1].weight.equal(net[1].weight)
    assert arms.optimizer_of(w)(first.parameters()).defaults["lr"] == 0.5

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(2))

    with pytest.raises(UsageError, match="table cannot be set anew"):
        arms.fresh(dataclasses.replace(w, model=Odd()))


def test_workloads_are_confirmed_on_a_recipes_data():
    made = [arms.from_workload("mnist_cnn", **fields) for fields in ({}, {"dtype": "amp-bfloat16", "memory_format": "channels_last", "fused": True})]
    assert made[0].arm.recipe == "mnist_ladder:8"
    data = datasets.synthetic("mnist", 256, 64, 0)
    out = made[1].recipe.train(dataclasses.replace(data, test_labels=None), made[1].settings, 0, Log(), Ranks())
    assert out.shape == (64, 10)
    record = confirm(*made, synthetic=256, device="cpu", margin=0.5)
    assert record.arms[1].workload == "mnist_cnn" and record.comparisons[0].pairs == 5 and record.arms[0].flops_step == pytest.approx(6.774e6, rel=1e-3)


def test_flops_of_rung_8_are_the_published_ones():
    record = speedrun("mnist_ladder:8", runs=1, synthetic=256, device="cpu")
    assert record.arms[0].flops_step == pytest.approx(6.774e6, rel=1e-3) and record.arms[0].parameters == 215194
    assert record.results[0].flops == pytest.approx(256 * 6.774e6 + 64 * record.arms[0].flops_forward, rel=1e-3)
    assert record.arms[0].floor_s > 0 and record.ceilings.flops_per_s > 0


@pytest.mark.parametrize("recipe, spec", [("mnist", "mnist"), *(("mnist_ladder", f"mnist_ladder:{i}") for i in (*range(9), "fast"))])
def test_every_rung_trains(recipe, spec):
    c = arms.contender(spec + ",epochs=0.5")
    data = datasets.synthetic("mnist", 256, 32, 0)
    out = c.recipe.train(dataclasses.replace(data, test_labels=None), c.settings, 0, Log(), Ranks())
    assert out.shape == (32, 10) and bool(out.isfinite().all())


def test_the_ladder_has_the_published_steps():
    module, _, _ = arms.recipe("mnist_ladder")
    assert [module.PUBLISHED[str(i)]["time_s"] for i in (0, 8)] == [172.0, 0.762] and len(module.LADDER) == 11
    count = lambda i: sum(p.numel() for p in module.model(module.VARIANTS[str(i)]).parameters())  # noqa: E731
    assert (count(0), count(8)) == (1199882, 215194)        # PyTorch's example; REFERENCES section 4
    assert module.model(module.VARIANTS["2"]).fc1.in_features == 1600 and module.model(module.VARIANTS["0"]).fc1.in_features == 9216


# ---------------------------------------------------------------- reports

@pytest.fixture
def records(world):
    slow = world.contender("without <b>x</b>", seconds=3.0, accuracy=0.88, wobble=0.01)
    return {"certify": go(world, options={"runs": 6, "certify": True}), "runs": go(world, options={"runs": 1}),
            "ablation": go(world, world.contender("base", wobble=0.01), slow, options={"runs": 6, "ablate": ("all",)}),
            "ladder": go(world, world.contender("rung 0"), slow, options={"ladder": True}),
            "confirm": confirm(world.contender("before", seconds=4.0), world.contender("after"), times=world.times, device="cpu", count=False)}


@pytest.mark.parametrize("format", ["html", "terminal", "markdown"])
def test_every_mode_is_reported_in_every_format(records, format):
    for mode, record in records.items():
        text = render(record, format)
        assert "The section" not in text and (format == "terminal" or "<b>x" not in text), (mode, format)
        if format == "terminal":
            assert all(len(line) <= 80 for line in text.splitlines()), mode
        assert {"certify": "CERTIFIED", "runs": "No certificate", "ladder": "2 rungs", "ablation": "over 6 pairs", "confirm": "FASTER"}[mode] in " ".join(text.split())


def test_sections_of_a_speedrun(records):
    names = {n for n, _ in sections("speedrun")}
    assert {"certificate", "runs", "ladder", "ablation", "anchors", "warnings", "provenance", "reproduce"} <= names and "verdict" not in names
    assert "CERTIFIED" in render(records["certify"], "terminal") and "planned before the first" in render(records["certify"], "markdown")
    assert '<section id="anchors"' in render(records["runs"]) and '<section id="ladder"' not in render(records["runs"])


def test_the_words_have_the_digits_that_the_runs_support(records):
    assert speedrun_words.accuracy(records["certify"].results[0].accuracy) == "91.00 ±0.94 %"
    assert speedrun_words.seconds(records["runs"].results[0].time) == "~1.25 s"
    assert speedrun_words.chance(1e-9) == "p < 1e-6" and speedrun_words.chance(float("nan")) == "p not known"
    assert to_dict(records["confirm"])["comparisons"][0]["verdict"] == "FASTER"


def test_a_speedrun_cannot_be_compared_with_a_breakdown(records, tmp_path):
    from perfscope.compare import compare
    with pytest.raises(RecordError, match="of a speedrun"):
        compare(records["runs"], records["runs"])


def test_a_cured_workload_brings_its_cures_along():
    from perfscope import probing
    from perfscope.workload.resolve import resolve

    seen = []
    cured = probing.apply(resolve("mnist_cnn"), ("conv_not_channels_last", "no_mixed_precision", "optimizer_not_fused"))
    cured = dataclasses.replace(cured, contexts=(lambda: contextlib.closing(type("Seen", (), {"close": lambda self: seen.append("left")})()),))
    made = arms.from_workload(cured)
    assert (made.settings.dtype, made.settings.memory_format) == ("amp-bfloat16", "channels_last")
    net = made.recipe.model(made.settings)
    assert arms.optimizer_of(cured)(net.parameters()).defaults["fused"] is True
    data = datasets.synthetic("mnist", 256, 64, 0)
    made.recipe.train(dataclasses.replace(data, test_labels=None), made.settings, 0, Log(), Ranks())
    assert seen == ["left"], "contexts are entered and left"
    with pytest.raises(UsageError, match="has a clip"):
        arms.from_workload(dataclasses.replace(cured, clip=lambda parameters: None))
