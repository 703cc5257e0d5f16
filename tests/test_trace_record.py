"""Recording: the trace holds the steps, the parts and what was asked for, in files that every reader knows."""

import gzip
import json
import re
import subprocess
import sys

import pytest
import torch

from perfscope.errors import EnvironmentError_, UsageError
from perfscope.trace import tb
from perfscope.trace.record import marked, missing, record
from tests.small import ConvNet, RMSNorm, Transformer


def train(model, batch, steps, step, optimizer):
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()
        step()


def recorded(out, model, batch, iterations=3, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(out, steps=2, warmup=1, model=model, optimizer=optimizer, **options) as step:
        train(model, batch, iterations, step, optimizer)
    return step


def events(path):
    with gzip.open(path, "rt") as f:
        return json.load(f)["traceEvents"]


def test_loop_of_ones_own_steps_parts_and_files(tmp_path):
    got = recorded(tmp_path, ConvNet(dropout=0.1), torch.randn(2, 3, 8, 8), shapes=True)
    assert not got.problems
    # per step: two norms, two activations, two poolings (one max, one adaptive), one dropout
    assert got.found.parts == {"forward": 2, "norm": 4, "activation": 4, "pooling": 4, "dropout": 2, "backward": 2, "optimizer": 2}
    original, copy = got.files
    assert original.name == "rank_0.trace.json.gz"
    assert re.fullmatch(r"rank_0\.\d+\.pt\.trace\.json\.gz", copy.name) and copy.parent == tmp_path / "tensorboard"
    names = [e["name"] for e in events(original) if e.get("cat") == "user_annotation"]
    assert sum(n.startswith("ProfilerStep#") for n in names) == 2 and names.count("perfscope:norm") == 4
    assert got.found.counts["shapes"] > 0 and got.found.counts["stacks"] == 0 and got.found.counts["memory"] == 0


def test_norm_lies_inside_forward_inside_its_step(tmp_path):
    found = [e for e in events(recorded(tmp_path, ConvNet(), torch.randn(2, 3, 8, 8)).files[0]) if e.get("cat") == "user_annotation"]
    spans = lambda name: [(e["ts"], e["ts"] + e["dur"]) for e in found if e["name"].startswith(name)]  # noqa: E731
    inside = lambda a, outer: any(o[0] <= a[0] and a[1] <= o[1] for o in outer)  # noqa: E731
    assert all(inside(n, spans("perfscope:forward")) for n in spans("perfscope:norm"))
    assert all(inside(f, spans("ProfilerStep#")) for f in spans("perfscope:forward"))


def test_everything_on_request(tmp_path):
    got = recorded(tmp_path, ConvNet(), torch.randn(2, 3, 8, 8), shapes=True, stacks=True, modules=True, memory=True)
    assert not got.problems
    assert all(got.found.counts[k] > 0 for k in ("ops", "shapes", "stacks", "modules", "memory"))


def test_transformer_attention_and_embedding_once_each(tmp_path):
    got = recorded(tmp_path, Transformer(), torch.randint(0, 32, (2, 4)))
    assert got.found.parts["attention"] == 2 and got.found.parts["embedding"] == 2 and got.found.parts["norm"] == 4


def test_handwritten_norm_is_seen_by_its_name(tmp_path):
    got = recorded(tmp_path, torch.nn.Sequential(torch.nn.Linear(4, 4), RMSNorm(4)), torch.randn(2, 4))
    assert got.found.parts["norm"] == 2


def test_marks_change_nothing_and_leave_nothing_behind():
    torch.manual_seed(0)
    model, x = ConvNet(inplace=True), torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(x)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with marked(model, optimizer):
        assert torch.equal(model(x), before)
    with pytest.raises(RuntimeError), marked(model, optimizer):     # the batch does not fit: hooks close all the same
        model(torch.randn(2, 5, 8, 8))
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks == 0
    assert not optimizer._optimizer_step_pre_hooks and torch.equal(model(x), before)


def test_too_short_a_loop_is_said(tmp_path):
    assert [p.code for p in recorded(tmp_path / "a", ConvNet(), torch.randn(2, 3, 8, 8), iterations=0).problems] == ["no-trace"]
    short = recorded(tmp_path / "b", ConvNet(), torch.randn(2, 3, 8, 8), iterations=2)
    assert [p.code for p in short.problems] == ["few-steps"] and "1 of 2 steps" in short.problems[0].text


def test_what_is_missing_is_named():
    empty = tb.Survey(steps=["ProfilerStep#1"], counts=dict.fromkeys(("kernels", "shapes", "stacks", "modules", "memory"), 0))
    asked = dict(steps=1, run=1, kernels=True, shapes=True, stacks=False, modules=True, memory=False)
    assert [w.code for w in missing(empty, asked)] == ["no-kernels", "no-shapes", "no-modules"]


def test_a_second_recording_replaces_the_first(tmp_path):
    for _ in range(2):
        recorded(tmp_path, ConvNet(), torch.randn(2, 3, 8, 8))
    assert len(list(tmp_path.rglob("*.json.gz"))) == 2 and not [p for p in tmp_path.rglob(".*")]


def test_wrong_numbers_and_places(tmp_path):
    with pytest.raises(UsageError, match="at least one step"), record(tmp_path, steps=0):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentError_, match="cannot write"), record(tmp_path / "file" / "below"):
        pass


def command(*words):
    return subprocess.run([sys.executable, "-m", "perfscope", "trace", *words], capture_output=True, text=True, timeout=300)


def test_command_records_a_model_by_name(tmp_path):
    done = command("record", "--model", "mnist_cnn", "--batch", "2", "--steps", "2", "--warmup", "1", "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["steps"] == 2 and said["problems"] == [] and len(said["files"]) == 2
    assert all(said["parts"][p] == 2 for p in ("data", "forward", "loss", "backward", "optimizer"))
    assert "USDT" not in done.stderr + done.stdout


def test_command_says_what_is_wrong(tmp_path):
    two = command("record", "--model", "mnist_cnn", "--batch", "2,4", "--out", str(tmp_path))
    assert two.returncode == 2 and "one batch size" in two.stderr
    unknown = command("record", "--model", "nothing_like_it", "--out", str(tmp_path))
    assert unknown.returncode == 2 and "Traceback" not in unknown.stderr


def test_one_file_per_rank_under_torchrun(tmp_path):
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "perfscope", "trace", "record",
                           "--model", "mnist_cnn", "--batch", "2", "--steps", "1", "--warmup", "1", "--device", "cpu", "--out", str(tmp_path)],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in tmp_path.glob("*.json.gz")) == ["rank_0.trace.json.gz", "rank_1.trace.json.gz"]
    assert len(list((tmp_path / "tensorboard").glob("rank_?.*.pt.trace.json.gz"))) == 2
    assert any(e["name"].startswith("gloo:") for e in events(tmp_path / "rank_1.trace.json.gz"))
    assert done.stdout.count("perfscope trace view") == 1


def test_record_is_a_function_of_the_package_whatever_was_imported_before():
    import perfscope.trace
    import perfscope.trace.record as module

    assert perfscope.trace.record is record and module is record
    from perfscope.trace.record import marked as again
    assert again is marked
