"""Several ranks on torch.distributed: alone none is needed; under torchrun (gloo) there is a communication part, and no rank that dies leaves a hang."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perfscope.errors import EnvironmentError_
from perfscope.measure import ranks
from perfscope.measure.ranks import LOST, Ranks, is_lost, join, leave, lost, world
from perfscope.record import load

ROOT = Path(ranks.__file__).parents[2]
PATIENCE_S = 240        # only ends a test that hangs; a rank that dies is noticed within seconds


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_a_world_of_one_needs_nothing():
    assert world() == (0, 1) and join("cpu") == Ranks() and Ranks().first
    value = object()
    assert Ranks().agree(value) is value and Ranks().gather(value) == [value]
    leave()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE"])
def test_an_environment_that_makes_no_sense(monkeypatch, variable):
    monkeypatch.setenv(variable, "two")
    with pytest.raises(EnvironmentError_, match=f"{variable} is 'two', not a number") as caught:
        world()
    assert "torchrun" in caught.value.hint


def test_ranks_that_cannot_be_joined(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EnvironmentError_, match="the 2 ranks could not be joined") as caught:
        join("cpu")
    assert "torchrun" in caught.value.hint and caught.value.exit_code == 3


@pytest.mark.parametrize("text, yes", [
    ("[/x/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1", True), ("Socket Timeout", True), ("Broken pipe", True),
    ("NCCL communicator was aborted on rank 1", True), ("mat1 and mat2 shapes cannot be multiplied", False)])
def test_what_a_lost_rank_looks_like(text, yes):
    assert is_lost(RuntimeError(text)) is yes and not is_lost(ValueError(text))
    e = lost(RuntimeError(text + "\nmore"))
    assert e.message == LOST and e.exit_code == 3 and "\n" not in e.detail and e.hint


def test_a_collective_that_fails_says_that_a_rank_is_gone(monkeypatch):
    def fail(*a, **k):
        raise RuntimeError("anything")
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", fail)
    monkeypatch.setattr(torch.distributed, "all_gather_object", fail)
    for call in (Ranks(0, 2).agree, Ranks(1, 2).gather):
        with pytest.raises(EnvironmentError_, match="stopped answering"):
            call(1)


# ---------------------------------------------------------------- under torchrun

MINE = '''
import os, signal, torch
from torch import nn
from perfscope.workload import Workload
RANK = int(os.environ.get("RANK", "0"))

class Net(nn.Module):
    def __init__(self, do=None, at=10 ** 9):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.unused = nn.Linear(4, 5)       # DDP waits for its gradient unless it is told
        self.do, self.at, self.calls = do, at, 0

    def forward(self, x):
        self.calls += 1
        if RANK == 1 and self.calls >= self.at:
            self.do()
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(x) + 0 * self.unused(x)

def workload(*more):
    return Workload(Net(*more), nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, 0.1),
                    lambda n: (torch.randn(n, 3, 8, 8), torch.zeros(n, dtype=torch.long)), name="mine")

def fail():
    raise LookupError("rank 1 has its own trouble")
def fails(): return workload(fail, 30)
def dies(): return workload(lambda: os.kill(os.getpid(), signal.SIGKILL), 30)
'''


def torchrun(place, model, *argv):
    (place / "mine_5.py").write_text(MINE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "perfscope", "breakdown",
               "--model", f"mine_5.py:{model}", "--batch", "2,3", "--out", "o", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)


def own_lines(err):
    """What perfscope said, torchrun's own summary left out."""
    return [x for x in err.splitlines() if x.startswith("perfscope: ")]


def test_two_ranks_have_a_communication_part(tmp_path):
    done = torchrun(tmp_path, "workload", "--budget", "4s", "--attribution", "ladder")
    assert done.returncode == 0, done.stderr
    run = load(tmp_path / "o")
    assert run.status == "complete" and run.environment.world_size == 2 and len(run.batches) == 2
    assert done.stdout.count("mine ") == 1 and "comm" in done.stdout, "one rank prints"
    assert done.stderr.count("trying batch 2") == 1 and own_lines(done.stderr) == []
    for b in run.batches:
        assert list(b.derived.parts)[-1] == "communication" and b.reference.endswith("+communication")
        assert abs(sum(p.share.point for p in b.derived.parts.values()) - 1) < 1e-9
        theirs = b.rank_rounds["1"]
        assert set(b.rank_rounds) == {"1"} and len(theirs) == len(b.rounds) >= 1
        assert [r.order for r in theirs] == [r.order for r in b.rounds], "all ranks walk through the same orders"
        assert all(set(a.step_s) == set(c.step_s) and a.step_s != c.step_s for a, c in zip(b.rounds, theirs)), "each has its own clock"
    assert run.inspection is not None and run.inspection.residues == {}


def only_torchruns_own_traceback(err) -> bool:
    """torchrun reports a failed child with a stack trace of its own; there is none with a line of perfscope or of the user in it."""
    files = re.findall(r'^  File "(.+?)"', err, re.M)
    return err.count("Traceback") <= 1 and not [f for f in files if f.startswith(str(ROOT / "perfscope")) or "mine_5" in f]


def test_a_rank_that_fails_says_so_and_ends_the_run(tmp_path):
    done = torchrun(tmp_path, "fails", "--budget", "60s")
    assert done.returncode != 0 and done.stdout == ""
    said = own_lines(done.stderr)
    assert sum("rank 1 of 2: " in x and "LookupError: rank 1 has its own trouble" in x for x in said) == 1
    assert all("rank 1 of 2" in x or LOST in x for x in said) and len(said) <= 2
    assert "  | LookupError: rank 1 has its own trouble" in done.stderr and only_torchruns_own_traceback(done.stderr)


def test_a_rank_that_is_killed_ends_the_run(tmp_path):
    done = torchrun(tmp_path, "dies", "--budget", "60s")
    assert done.returncode != 0 and done.stdout == "" and "SIGKILL" in done.stderr
    assert all(LOST in x for x in own_lines(done.stderr)) and only_torchruns_own_traceback(done.stderr)
