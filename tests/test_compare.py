"""compare: what may be compared, which verdict, and what it looks like. Records are made by scaling scripted ones."""

import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from perfscope.compare import compare
from perfscope.compare_text import to_json, to_markdown, to_terminal
from perfscope.errors import RecordError, UsageError
from perfscope.measure.attribution import derive
from perfscope.record import BatchResult, Environment, Run, Warned, WorkloadInfo, load, save
from tests.records import make

COSTS = {4: {"base": 0.040, "norm": 0.008, "optimizer": 0.004}, 8: {"base": 0.080, "norm": 0.016, "optimizer": 0.004}}


def build(noise=0.003, seed=1, costs=COSTS, rounds=40, **changes) -> Run:
    rng = random.Random(seed)
    run = Run(f"run-{seed}", status="complete", environment=Environment("cpu", "CPU X", "host1", hardware={"threads": 2}, software={"torch": "2.13.0"}),
              method={"version": "2", "processes": 1, "target_half_width": 0.005}, workload=WorkloadInfo("resnet9", "built-in", input_shape=(3, 32, 32), classes=10),
              provenance=make.provenance("perfscope breakdown --model resnet9"),
              batches=tuple(steady(make.batch(n, c, rounds, rng, noise=noise)) for n, c in costs.items()))
    return derive(replace(run, **changes))


def steady(batch: BatchResult) -> BatchResult:
    """The scripted batch without its drift, which its canary shows, and with a canary that stands still."""
    return replace(batch, rounds=tuple(replace(r, step_s={v: t * 0.0107 / r.canary_s["matmul"] for v, t in r.step_s.items()},
                                               canary_s={"matmul": 0.0107, "copy": 0.0031}) for r in batch.rounds))


def drifting(run: Run, level) -> Run:
    """The run with all times of round r times level(r), the canary left as it was."""
    return derive(replace(run, batches=tuple(replace(b, rounds=tuple(replace(r, step_s={v: t * level(i) for v, t in r.step_s.items()})
                                                                     for i, r in enumerate(b.rounds))) for b in run.batches)))


def scaled(run: Run, factor: float, sizes=(4, 8), canary=1.0) -> Run:
    """The run with every sample of these batch sizes times a factor."""
    def round_(r):
        return replace(r, step_s={v: t * factor for v, t in r.step_s.items()}, canary_s={n: t * canary for n, t in r.canary_s.items()})
    return derive(replace(run, batches=tuple(replace(b, rounds=tuple(map(round_, b.rounds))) if b.batch_size in sizes else b for b in run.batches)))


@pytest.fixture(scope="module")
def run() -> Run:
    return build()


def verdicts(c) -> dict[int, str]:
    return {b.batch_size: b.verdict.word for b in c.batches}


@pytest.mark.parametrize("factor, word", [(1.05, "SLOWER"), (1 / 1.05, "FASTER"), (1.0, "SAME"), (1.002, "SAME")])
def test_a_scaled_run_gets_the_verdict_and_its_size(run, factor, word):
    c = compare(run, scaled(run, factor))
    assert verdicts(c) == {4: word, 8: word} and c.word == word
    for b in c.batches:
        assert b.change.point == pytest.approx(math.log(factor), abs=1e-12)
        assert b.change.low < math.log(factor) < b.change.high
        assert b.parts["norm"].seconds.point == pytest.approx((factor - 1) * b.parts["norm"].seconds_a.point, abs=1e-12)
        assert b.parts["norm"].share.point == pytest.approx(0, abs=1e-12)


def test_noise_is_unclear_never_slower(run):
    wide = build(noise=0.3, seed=2)
    c = compare(wide, scaled(wide, 1.02))
    assert set(verdicts(c).values()) == {"UNCLEAR"} == {c.word}
    assert any(w.code == "wide" for w in c.notes)
    assert "UNCLEAR" in to_terminal(c) and "unclear" in to_markdown(c)


def test_two_seeds_of_the_same_costs_are_not_called_different():
    words = [compare(build(seed=i), build(seed=i + 100)).word for i in range(10)]
    assert words.count("SLOWER") + words.count("FASTER") <= 1


def test_one_slow_part_shows_in_its_own_row_only(run):
    slow = {n: {**c, "norm": c["norm"] * 1.5} for n, c in COSTS.items()}
    c = compare(run, build(costs=slow, seed=1))
    assert c.word == "SLOWER"
    b = c.batches[1]
    assert b.parts["norm"].seconds.low > 0.006 and b.parts["norm"].seconds.high < 0.010      # 8 ms were added
    assert b.parts["base"].seconds.low < 0 < b.parts["base"].seconds.high
    assert b.parts["norm"].share.low > 0


def test_slower_at_one_batch_size_is_slower(run):
    c = compare(run, scaled(run, 1.05, sizes=(8,)))
    assert verdicts(c) == {4: "SAME", 8: "SLOWER"} and c.word == "SLOWER"


def test_holm_over_the_batch_sizes():
    """A change that one batch size alone would show is not beyond chance among many."""
    many = {n: COSTS[4] for n in range(1, 13)}
    a = build(costs=many, seed=4, noise=0.02)
    one = a.batches[0]
    half = math.sqrt(2) * one.derived.step.half_width / one.derived.step.point
    b = scaled(a, math.exp(1.15 * half), sizes=(1,))                  # its own interval holds 0 no longer: p about 0.024
    alone = compare(replace(a, batches=a.batches[:1]), replace(b, batches=b.batches[:1]), smallest=half)
    among = compare(a, b, smallest=half)
    assert verdicts(alone)[1] == "SLOWER" and verdicts(among)[1] == "UNCLEAR"
    assert "so many comparisons" in among.batches[0].verdict.reason


def test_the_smallest_change_that_matters(run):
    slower = scaled(run, 1.03)
    assert compare(run, slower, smallest=0.01).word == "SLOWER"
    assert compare(run, slower, smallest=0.05).word == "SAME"
    for bad in (0, -1, 1, float("nan")):
        with pytest.raises(UsageError):
            compare(run, slower, smallest=bad)


# ---------------------------------------------------------------- identity

def refused(a, b) -> RecordError:
    with pytest.raises(RecordError) as e:
        compare(a, b)
    assert e.value.hint
    return e.value


@pytest.mark.parametrize("change, said", [
    ({"workload": {"name": "vgg"}}, "model resnet9 and vgg"), ({"workload": {"source": "timm 1.0"}}, "source built-in and timm 1.0"),
    ({"workload": {"input_shape": (3, 64, 64)}}, "input 3x32x32 and 3x64x64"), ({"workload": {"classes": 100}}, "classes 10 and 100"),
    ({"method": {"version": "1"}}, "version 2 and 1"), ({"kind": "speedrun"}, "speedrun")])
def test_other_things_are_refused(run, change, said):
    changed = {k: replace(run.workload, **v) if k == "workload" else {**run.method, **v} if k == "method" else v for k, v in change.items()}
    assert said in refused(run, replace(run, **changed)).message


def test_every_difference_is_named(run):
    message = refused(run, replace(run, workload=replace(run.workload, name="x", classes=3))).message
    assert "model" in message and "classes" in message


def test_no_common_batch_size_says_which_to_measure(run):
    other = build(costs={16: COSTS[8], 32: COSTS[8]})
    assert "--batch 4,8" in refused(run, other).hint


def test_nothing_measured_and_published(run):
    empty = replace(run, batches=(BatchResult(4, "out-of-memory", "no"),), status="partial")
    assert "nothing was measured in B (batch 4: out of memory)" in refused(run, empty).message
    assert "no batch size was started" in refused(replace(run, batches=()), run).message
    assert "did not measure" in refused(make.article("before"), make.article("after")).message


def test_a_file_in_another_folder_and_another_library_version_are_the_same_workload(run):
    def at(path, source):
        return replace(run, workload=replace(run.workload, name=path, source=source))
    assert compare(at("/old/train.py:net", "/old/train.py:net"), at("new/train.py:net", "new/train.py:net")).word == "SAME"
    assert compare(at("timm:x", "timm 1.0.1"), at("timm:x", "timm 1.0.2")).word == "SAME"
    refused(at("a/train.py:net", "a/train.py:net"), at("a/train.py:other", "a/train.py:other"))


def test_settings_forbid_nothing_and_are_listed(run):
    other = replace(run, workload=replace(run.workload, dtype="bfloat16", memory_format="channels_last", compile="default", cuda_graph=True, optimizer="Adam"),
                    environment=replace(run.environment, software={"torch": "2.14.0", "cudnn": "9"}, switches={"cudnn.benchmark": True},
                                        variables={"OMP_NUM_THREADS": "1"}),
                    provenance=replace(run.provenance, git={"commit": "abcdef0123456789", "dirty": True}))
    c = compare(run, other)
    assert {x.what: (x.a, x.b) for x in c.changed} == {
        "dtype": ("float32", "bfloat16"), "memory format": ("contiguous", "channels_last"), "compile": ("off", "default"), "cuda graph": (False, True),
        "optimizer": ("", "Adam"), "torch": ("2.13.0", "2.14.0"), "cudnn": (None, "9"), "cudnn.benchmark": (None, True), "OMP_NUM_THREADS": (None, "1"),
        "git commit": ("0000000000", "abcdef0123"), "uncommitted changes": (False, True)}
    assert c.batches[0].change is not None
    for text in (to_terminal(c), to_markdown(c).replace("\\", "")):
        assert "dtype: float32 → bfloat16" in text and "torch: 2.13.0 → 2.14.0" in text and "git commit" in text


@pytest.mark.parametrize("environment, said", [
    ({"device_name": "CPU Y"}, "another device: CPU X and CPU Y"), ({"device": "cuda", "device_name": "H200"}, "another device: CPU X and H200"),
    ({"host_hash": "host2"}, "another machine of the same name")])
def test_another_device_gives_shares_and_canaries_never_ratios_of_milliseconds(run, environment, said):
    c = compare(run, scaled(replace(run, environment=replace(run.environment, **environment)), 1.3))
    assert said in c.shares_only
    for b in c.batches:
        assert b.change is None and b.verdict is None and b.step_a is None and b.canary == {}
        assert b.parts["norm"].seconds_a is None and b.parts["norm"].seconds is None
        assert b.parts["norm"].share.point == pytest.approx(0, abs=1e-9)
        if c.b.device == "cpu":
            a, other = b.in_canaries["matmul"]
            assert other.point / a.point == pytest.approx(1.3, rel=1e-6)
        else:
            assert b.in_canaries == {}                                # the canaries of a CPU and of a GPU differ
    text, page = to_terminal(c), to_markdown(c)
    for shown in (text, page):
        assert " ms" not in shown and "SLOWER" not in shown and "No verdict on speed" in shown
    assert json.loads(to_json(c))["word"] is None


def test_the_same_gpu_is_known_by_its_own_hash(run):
    gpu = replace(run.environment, device="cuda", device_name="H200", device_hash="g1")
    a = replace(run, environment=gpu)
    assert compare(a, replace(run, environment=replace(gpu, host_hash="host2"))).shares_only == ""
    assert "another GPU" in compare(a, replace(run, environment=replace(gpu, device_hash="g2"))).shares_only


def test_a_gpu_matmul_canary_in_another_dtype_is_no_yardstick(run):
    gpu = replace(run.environment, device="cuda", device_name="H200", device_hash="g1")
    a = replace(run, environment=gpu)
    b = replace(a, workload=replace(run.workload, dtype="half"))
    assert set(compare(a, b).batches[0].in_canaries) == {"copy"}
    assert set(compare(b, replace(b, workload=replace(b.workload, dtype="amp-half"))).batches[0].in_canaries) == {"matmul", "copy"}


# ---------------------------------------------------------------- doubts

def test_a_slower_machine_is_not_a_slower_step(run):
    c = compare(run, scaled(run, 1.06, canary=1.06))
    assert c.word == "UNCLEAR" and "the machine itself was 6% slower" in c.batches[0].verdict.reason
    assert "canary" in to_terminal(c) and "canary" in to_markdown(c)
    assert compare(run, scaled(run, 1.30, canary=1.06)).word == "SLOWER"              # more than the machine
    assert compare(run, scaled(run, 1.0, canary=1.06)).word == "UNCLEAR"              # a gain may be hidden
    other = scaled(run, 1.06, canary=1.06)
    other = replace(other, environment=replace(other.environment, software={"torch": "2.14"}))
    c = compare(run, other)                                                           # the setting may explain the canary
    assert c.word == "SLOWER" and "drift-unknown" in {w.code for w in c.notes}


def test_drift_within_a_run_is_in_the_interval(run):
    calm = compare(run, scaled(run, 1.02))
    drifted = compare(run, drifting(scaled(run, 1.02), lambda r: 1 + 0.12 * (r / 39 - 0.5)))
    assert calm.word == "SLOWER" and drifted.word == "UNCLEAR"
    assert "drifted" in drifted.batches[0].verdict.reason
    assert drifted.batches[0].change.half_width > 2 * drifted.batches[0].rounds_only.half_width


def test_runs_on_a_machine_that_wanders_are_rarely_called_different():
    """Each run at its own level, 2 % apart in the standard deviation, the canary with it: METHOD 4's A n times, then B n times."""
    rng, called, naive, pairs = random.Random(5), 0, 0, 40
    base = build(rounds=24)
    for _ in range(pairs):
        a, b = (scaled(base, level, canary=level * math.exp(rng.gauss(0, 0.005))) for level in (math.exp(rng.gauss(0, 0.02)) for _ in "ab"))
        for x in compare(a, b).batches:
            called += x.verdict.word in ("FASTER", "SLOWER")
            naive += not x.rounds_only.low <= 0 <= x.rounds_only.high
    assert naive >= 40 and called <= 8, (naive, called)


def test_throttled_milliseconds_are_not_judged(run):
    hot = replace(scaled(run, 1.2), warnings=(Warned("throttled", "throttled: hot", "", 8),))
    c = compare(run, hot)
    assert verdicts(c) == {4: "SLOWER", 8: "UNCLEAR"} and c.word == "SLOWER"
    assert "B was throttled" in to_terminal(c) and any(w.code == "warned" for w in c.notes)


def test_partial_and_one_process_are_said(run):
    c = compare(run, replace(run, status="interrupted"))
    assert {"partial", "one-process"} <= {w.code for w in c.notes}
    assert "process to process" in to_markdown(c)
    both = {**run.method, "processes": 3}
    assert "one-process" not in {w.code for w in compare(replace(run, method=both), replace(run, id="other", method=both)).notes}


def test_sizes_in_one_run_only_and_other_ladders(run):
    c = compare(run, build(costs={8: {"base": 0.08, "optimizer": 0.004}, 16: COSTS[8]}))
    assert [b.batch_size for b in c.batches] == [8] and c.only_a == (4,) and c.only_b == (16,)
    assert c.batches[0].parts["norm"].share_b is None and "other-ladder" in {w.code for w in c.notes}
    assert "only in A: batch 4" in to_terminal(c)


def test_records_without_derived_values_are_derived_again(run):
    bare = replace(run, batches=tuple(replace(b, derived=None) for b in run.batches))
    assert compare(bare, scaled(run, 1.05)).word == "SLOWER"


def test_too_few_rounds_are_unclear_and_still_print(run):
    few = build(rounds=3)
    c = compare(few, few)
    assert c.word == "UNCLEAR" and "too few rounds" in c.batches[0].verdict.reason
    bare = replace(few, batches=tuple(replace(b, derived=replace(b.derived, half_width=float("nan"))) for b in few.batches))   # as it is read from a file
    assert "A at batch 4 (unknown), 8 (unknown)" in next(w.text for w in compare(bare, bare).notes if w.code == "wide")
    assert to_terminal(c) and "unknown %" not in to_markdown(c) and json.loads(to_json(c))["batches"][0]["change"]["low"] is None


# ---------------------------------------------------------------- texts

EVERY = ("cpu", "gpu", "hostile")


def golden(name) -> Run:
    return load(make.HERE / f"{name}.json")


def columns(text: str) -> int:
    import unicodedata
    return max(sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) for line in text.splitlines())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_terminal_has_80_columns_and_no_escapes(name, elsewhere):
    a = golden(name)
    b = replace(scaled(a, 1.05, sizes=[x.batch_size for x in a.batches]), environment=replace(a.environment, device_name="other" if elsewhere else a.environment.device_name))
    text = to_terminal(compare(a, b))
    assert columns(text) <= 80
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)
    assert text.splitlines()[-1].startswith(("next:", "  "))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_markdown_is_well_formed_and_escaped(name, elsewhere):
    a = golden(name)
    b = replace(scaled(a, 1.05, sizes=[x.batch_size for x in a.batches]), environment=replace(a.environment, device_name="other" if elsewhere else a.environment.device_name))
    page = to_markdown(compare(a, b))
    tags = re.findall(r"</?([a-z]+)[^>]*>", page)
    assert set(tags) <= {"details", "summary", "sub"}
    assert page.count("<details>") == page.count("</details>") >= 1
    assert "@everyone" not in page and "https://" not in page and "<!--" not in page and "\x1b" not in page
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", page, re.MULTILINE)
    assert blocks
    for block in blocks:
        cells = [len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()]
        assert len(set(cells)) == 1, block                                 # every row has the columns of its head
        assert re.fullmatch(r"\|:--\|(--:\|)+", block.splitlines()[1])


def test_json_is_json_and_whole(run):
    data = json.loads(to_json(compare(run, scaled(run, 1.05))), parse_constant=lambda c: pytest.fail(c))
    assert data["schema"] == "perfscope/comparison/1" and data["word"] == "SLOWER"
    assert [b["verdict"]["word"] for b in data["batches"]] == ["SLOWER", "SLOWER"]
    assert data["batches"][0]["change"]["point"] == pytest.approx(math.log(1.05))
    json.loads(to_json(compare(golden("hostile"), golden("hostile"))))


def test_both_texts_say_the_same_numbers(run):
    c = compare(run, scaled(run, 1.05))
    for text in (to_terminal(c), to_markdown(c)):
        assert "+5.0 %" in text and "SLOWER" in text and "norm" in text
    assert "\x1b[31m" in to_terminal(c, color=True)


def test_paths_are_accepted_and_torch_is_not_needed(run, tmp_path):
    a, b = save(run, tmp_path / "a" / "run.json"), save(scaled(run, 1.05), tmp_path / "b" / "run.json")
    c = compare(a.parent, b)
    assert c.word == "SLOWER" and c.a.path == str(a.parent)
    code = ("import sys; sys.modules['torch'] = sys.modules['plotly'] = sys.modules['numpy'] = None\n"
            "from perfscope import compare; from perfscope.compare_text import to_terminal, to_markdown, to_json\n"
            f"c = compare({str(a)!r}, {str(b)!r}); to_terminal(c), to_markdown(c), to_json(c); print(c.word)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "SLOWER", done.stderr
