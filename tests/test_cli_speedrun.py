"""perfscope speedrun on the command line: exit codes, files, resuming, wrong use, two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perfscope.cli import main
from perfscope.cli.speedrun import code, so_far
from perfscope.record import load, save
from perfscope.records.speedrun import Record
from perfscope.workload import datasets

ROOT = Path(__file__).parent.parent
QUICK = ["--subset", "256", "--device", "cpu", "-q"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """256 training images that a network can learn: bright and dark halves, one per class."""
    data = datasets.synthetic("mnist", 256, 64, 0)
    monkeypatch.setattr(datasets, "load", lambda *a, **k: data)
    monkeypatch.setattr("perfscope.measure.floor.REPEATS_S", 0.0)


def run(*argv):
    return main(["speedrun", *argv])


def test_a_run_writes_record_page_and_markdown(tmp_path, capsys):
    assert run("mnist_ladder:8", "--runs", "2", "--out", str(tmp_path / "r"), *QUICK) == 0
    out = capsys.readouterr().out
    assert "No certificate" in out and "next: open" in out
    assert {p.name for p in (tmp_path / "r").iterdir()} == {"run.json", "report.html", "report.md"}
    record = load(tmp_path / "r")
    assert isinstance(record, Record) and len(record.runs) == 2 and record.data.split.startswith("the first 256 images")
    assert record.provenance.command == "perfscope speedrun mnist_ladder:8 --runs 2 --subset 256 --device cpu"
    assert main(["report", str(tmp_path / "r"), "--format", "markdown"]) == 0 and "official" not in capsys.readouterr().err


def test_json_is_the_record_and_progress_goes_to_stderr(tmp_path, capsys):
    assert run("mnist_ladder:8", "--runs", "1", "--json", "--out", str(tmp_path), *QUICK[:-1]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["kind"] == "speedrun" and "warming up" in err and "0 left" in err


def test_what_is_not_certified_is_exit_code_4(tmp_path, capsys):
    assert run("mnist_ladder:8", "--certify", "--runs", "2", "--out", str(tmp_path), *QUICK) == 4
    assert "NOT CERTIFIED" in capsys.readouterr().out and load(tmp_path).mode == "certify"


def test_without_compares_and_is_unclear_with_few_runs(tmp_path, capsys):
    assert run("mnist", "--without", "tta", "--runs", "2", "--out", str(tmp_path), *QUICK) == 4
    record = load(tmp_path)
    assert record.mode == "ablation" and [a.name for a in record.arms] == ["mnist", "without tta"] and len(record.plan) == 4
    assert "tta" not in record.arms[1].tricks and record.arms[1].changed == {"tta": "off", "tta_share": 1.0}


def test_ablate_all_leaves_out_every_trick_once(tmp_path, capsys):
    assert run("mnist,epochs=1", "--ablate", "all", "--runs", "1", "--out", str(tmp_path), *QUICK) == 0
    record = load(tmp_path)
    left = {a.name.removeprefix("without ") for a in record.arms[1:]}
    assert left == set(record.arms[0].tricks) and len(record.runs) == len(record.arms) == 1 + len(left)
    assert "tricks, 1 pairs" in " ".join(capsys.readouterr().out.split())


def test_ladder_within_a_budget(tmp_path, capsys):
    assert run("mnist", "--ladder", "--budget", "1s", "--out", str(tmp_path), *QUICK) == 0
    record = load(tmp_path)
    assert len(record.runs) == 11 and record.arms[0].shortened < 1 and record.arms[0].settings["epochs"] == pytest.approx(14 * record.arms[0].shortened)
    assert "published" in capsys.readouterr().out


def test_before_and_after_of_a_workload(tmp_path, capsys):
    argv = ["mnist_ladder:8", "--before", "mnist_cnn", "--after", "mnist_cnn,dtype=amp-bfloat16,fused=true", "--margin", "50%"]
    assert run(*argv, "--out", str(tmp_path), *QUICK) in (0, 4)         # FASTER or UNCLEAR: 5 pairs of a tenth of a second
    record = load(tmp_path)
    assert record.mode == "confirm" and record.comparisons[0].pairs == 5 and record.comparisons[0].not_worse
    assert "mnist_cnn,dtype=amp-bfloat16,fused=true" in " ".join(capsys.readouterr().out.split())


def test_resume(tmp_path, capsys):
    assert run("mnist_ladder:8", "--runs", "3", "--out", str(tmp_path), *QUICK) == 0
    record = load(tmp_path)
    import dataclasses
    save(dataclasses.replace(record, runs=record.runs[:1], status="interrupted"), tmp_path / "run.json")
    assert run("--resume", str(tmp_path), *QUICK) == 0
    again = load(tmp_path)
    assert again.runs[0] == record.runs[0] and [r.seed for r in again.runs] == [0, 1, 2]
    assert [r.correct for r in again.runs] == [r.correct for r in record.runs], "equal seeds give equal runs"
    assert run("--resume", str(tmp_path), *QUICK) == 2 and "is complete" in capsys.readouterr().err


def test_saved_weights_are_a_start_that_is_marked(tmp_path, capsys):
    net = tmp_path / "net.pt"
    assert run("mnist_ladder:8", "--runs", "1", "--save", str(net), "--out", str(tmp_path / "a"), *QUICK) == 0
    assert run("mnist_ladder:8", "--with", f"transfer={net}", "--certify", "--runs", "2", *QUICK) == 2
    assert "cannot be certified: it starts from trained weights" in capsys.readouterr().err
    assert run(f"mnist_ladder:8,checkpoint={net}", "--runs", "1", "--out", str(tmp_path / "b"), *QUICK) == 0
    assert load(tmp_path / "b").arms[0].leaks and "leak" in {w.code for w in load(tmp_path / "b").warnings}
    capsys.readouterr()
    assert run(f"mnist_ladder:0,checkpoint={net}", "--runs", "1", "--out", str(tmp_path / "c"), *QUICK) == 2
    assert "no checkpoint of this network" in capsys.readouterr().err and not (tmp_path / "c" / "run.json").exists()


@pytest.mark.parametrize("argv, words", [
    (["nothing"], "no recipe named 'nothing'"), (["mnist:huge"], "no variant 'huge'"), (["mnist", "--with", "magic"], "no trick 'magic'"),
    (["mnist", "--with", "flip"], "another sign"), (["mnist", "--without", "ema"], "ema is not on"), (["mnist", "--certify", "--ladder"], "different questions"),
    (["mnist", "--certify", "--runs", "1"], "one run certifies nothing"), (["mnist", "--budget", "soon"], "not a time"),
    (["mnist", "--before", "mnist"], "come together"), (["mnist", "--resume", "/nowhere"], "no record"), (["mnist,lr=fast"], "is not float"),
    (["mnist_ladder:8", "--before", "resnet9", "--after", "resnet9"], "recipe's images"), (["mnist", "--device", "tpu"], "no device")], ids=str)
def test_wrong_use_is_one_clear_error(argv, words, capsys, tmp_path):
    assert run(*argv, "--out", str(tmp_path / "x")) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err and not (tmp_path / "x" / "run.json").exists()


def test_exit_codes_of_a_confirmation():
    from types import SimpleNamespace as N
    made = lambda verdict, not_worse: N(mode="confirm", comparisons=[N(verdict=verdict, not_worse=not_worse)])  # noqa: E731
    assert [code(made(*x)) for x in (("FASTER", True), ("SAME", True), ("SLOWER", True), ("FASTER", False), ("FASTER", None), ("UNCLEAR", True))] == \
        [0, 0, 1, 1, 4, 4]


def test_progress_says_accuracy_time_and_what_is_left(tmp_path):
    run("mnist_ladder:8", "--runs", "2", "--out", str(tmp_path), *QUICK)
    assert so_far(load(tmp_path)).endswith("0 left")


PROGRAM = """
import sys
from perfscope.workload import datasets
data = datasets.synthetic("mnist", 512, 101, 0)
datasets.load = lambda *a, **k: data
from perfscope.cli import main
sys.exit(main(sys.argv[1:]))
"""


def ranks(n, tmp_path, name, *argv):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    start = [sys.executable] if n == 1 else [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "--master-port", "0", "--standalone"]
    done = subprocess.run([*start, str(script), "speedrun", *argv, "--runs", "1", "--out", str(tmp_path / name), "-q", "--device", "cpu"], cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return load(tmp_path / name)


def test_two_ranks_train_like_one_with_the_same_global_batch(tmp_path):
    one, two = (ranks(n, tmp_path, str(n), "mnist_ladder:8,batch=64,epochs=2,lr=0.002") for n in (1, 2))
    (a,), (b,) = one.runs, two.runs
    assert len(a.curve) == len(b.curve) == 16 and two.environment.world_size == 2
    assert [p[1] for p in b.curve] == pytest.approx([p[1] for p in a.curve], rel=1e-3)
    assert abs(a.correct - b.correct) <= 1 and b.images == 101
    assert two.scaling["ranks"] == 2 and 0 < two.scaling["efficiency"] <= 2 and "torchrun" in two.provenance.command


def test_ghost_norm_on_one_rank_is_batch_norm_on_two(tmp_path):
    """mnist has batch norm: each of two ranks normalises its half of the batch, which is ghost norm with half the batch."""
    fields = "batch=64,epochs=1,lr=0.002,tta=off,tta_share=1,dtype=float32"
    one = ranks(1, tmp_path, "1", f"mnist,{fields},ghost=32")
    two = ranks(2, tmp_path, "2", f"mnist,{fields}")
    assert [p[1] for p in two.runs[0].curve] == pytest.approx([p[1] for p in one.runs[0].curve], rel=1e-3)


