"""`perfscope breakdown` as a whole: what it prints and writes, and what bad input, Ctrl-C, a kill and a full disk give."""

import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import perfscope.breakdown                      # noqa: F401
from perfscope.registry import PACKAGE
from perfscope import record
from perfscope.cli import complain, main
from perfscope.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_OK, EXIT_UNSURE, EXIT_USAGE
from perfscope.record import load
from perfscope.workload import census, fit, step
from perfscope.workload.resolve import resolve

verb = sys.modules["perfscope.breakdown"]
ROOT = Path(verb.__file__).parents[1]
CEILINGS = functools.lru_cache(verb.floor.ceilings)
QUICK = ["--batch", "2", "--budget", "200ms"]

#: A workload of the user's own. What it does wrong, and when, is said by a file beside it.
MINE = '''
import os, torch
from torch import nn
from perfscope.workload import Workload

print("printed while imported")
HERE = os.path.dirname(os.path.abspath(__file__))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

def data(n):
    return torch.randn(n, 3, 8, 8), torch.zeros(n, dtype=torch.long)

def net():
    return Net()

def full(model=None, batch=data, optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)):
    return Workload(model or Net(), nn.CrossEntropyLoss(), optimizer, batch, name="mine")

class Broken(Net):
    def forward(self, x):
        print("printed in the forward pass")
        return self.head(self.helper(x))
    def helper(self, x):
        raise LookupError("my own [red]mistake[/red]")

class Hungry(Net):
    def forward(self, x):
        if len(x) > 4:
            torch.empty(1 << 42, dtype=torch.uint8)
        return super().forward(x)

class Wide(Net):
    def forward(self, x):
        room = torch.empty(len(x) << 26, dtype=torch.uint8)
        return super().forward(x)

class Quitting(Net):
    def forward(self, x):
        raise SystemExit(0)

def no_batch(n): raise OSError(13, "my data is not mounted")
def broken(): return full(Broken())
def hungry(): return full(Hungry())
def wide(): return full(Wide())
def quitting(): return full(Quitting())
def batchless(): return full(batch=no_batch)
def lbfgs(): return full(optimizer=torch.optim.LBFGS)
def wants(a, *, b): return full()
def nothing(): return 42
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The user's folder, with their file in it; the machine's ceilings are measured once, the census in this process."""
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_9.py").write_text(MINE)
    (tmp_path / "broken_9.py").write_text("import torch\n\ndef f(:\n")
    (tmp_path / "lacks_9.py").write_text("import nowhere_9\n")
    monkeypatch.setattr(verb.floor, "ceilings", CEILINGS)
    monkeypatch.setattr(verb.census, "inspect_elsewhere", inspected)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def inspected(options, batch_size, parts):
    """What the process of its own counts, here: starting it takes seconds. The last tests of this file start it."""
    prepared = step.prepare(resolve(options.model, options.input_shape, options.classes), keep_original=False)
    batches = step.load_batches(prepared, batch_size)
    step.present_parts(prepared, batches, options.parts)
    return census.inspect(prepared, batches, parts, parts)


def call(capsys, *argv) -> tuple[int, str, str]:
    code = main(["breakdown", *map(str, argv)])
    done = capsys.readouterr()
    return code, done.out, done.err


def complaint(err: str) -> tuple[str, str]:
    """The one message and its next step; progress lines and somebody else's text left out."""
    lines = [x for x in err.splitlines() if not x.startswith(("  | ", "  building", "  trying", "  measuring", "  counting", "  batch", "printed"))]
    said = [x for x in lines if x.startswith("perfscope: ")]
    assert len(said) == 1 and len(lines) <= 2, err
    assert "this is a bug" not in err
    return said[0], lines[1].removeprefix("  -> ") if len(lines) == 2 else ""


# ---------------------------------------------------------------- bad input: one message, the right exit code, nothing left behind

BAD = [
    (["--model", "resnet99"], 2, "there is no model 'resnet99'", "resnet9"),
    (["--model", "resnet50:Z"], 2, "no variant 'z'", "resnet50"),
    (["--model", "gone.py:f"], 2, "no file 'gone.py'", "path/to/file.py:function"),
    (["--model", "gone_9:f"], 2, "no module 'gone_9'", "package.module:function"),
    (["--model", "mine_9.py:gone"], 2, "has no 'gone'", "full"),
    (["--model", "mine_9.py:nothing"], 2, "gave a int", "Workload"),
    (["--model", "mine_9.py:wants"], 2, "needs arguments (a, b)", "Wrap it"),
    (["--model", "mine_9.py:lbfgs"], 2, "LBFGS needs a closure", "first-order"),
    (["--model", "mine_9.py:full", "--parts", "attention"], 2, "no part attention", "It has: norm, activation, optimizer"),
    (["--model", "mine_9.py:full", "--order", "attention"], 2, "no part attention", "norm"),
    (["--model", "mnist_cnn", "--classes", "3"], 2, "built in", "--classes"),
    (["--dtype", "float8"], 2, "no dtype 'float8'", "bfloat16"),
    (["--memory-format", "nhwc"], 2, "no memory format 'nhwc'", "channels_last"),
    (["--compile", "yes"], 2, "no compile mode 'yes'", "max-autotune"),
    (["--attribution", "best"], 2, "no attribution 'best'", "shapley"),
    (["--order", "norms"], 2, "no part 'norms'", "norm"),
    (["--parts", "norm,norm"], 2, "twice", None),
    (["--device", "tpu"], 2, "tpu", "cpu"),
    (["--device", "mps"], 2, "mps", "cpu"),
    (["--device", ""], 2, "no device", "cpu"),
    (["--model", "mnist_cnn", "--cuda-graph", "--device", "cpu"], 2, "needs a CUDA device", "--device cuda"),
    (["--batch", "8,x"], 2, "'8,x' is not a list", "128,256"),
    (["--batch", "0"], 2, "at least 1", "128"),
    (["--batch", "-4"], 2, "'-4' is not a list", "128"),
    (["--batch", "4,4"], 2, "twice", "128"),
    (["--budget", "soon"], 2, "'soon' is not a time", "60s"),
    (["--budget", "0"], 2, "above zero", "60s"),
    (["--precision", "exact"], 2, "'exact' is not a share", "0.5%"),
    (["--precision", "0"], 2, "between", "0.5%"),
    (["--input", "3x"], 2, "'3x' is not an input shape", "3x224x224"),
    (["--input", "3x0x8"], 2, "at least 1", "3x224x224"),
    (["--classes", "many"], 2, "--classes", "--help"),
    (["--classes", "-2"], 2, "--classes", "1000"),
    (["--seed", "-1"], 2, "--seed", "1"),
    (["--nonsense"], 2, "--nonsense", "--help"),
    (["extra"], 2, "extra", "--help"),
    (["--model"], 2, "--model", "--help"),
    (["--model", "mine_9.py:full", "--out", "mine_9.py/below"], 3, "cannot write to mine_9.py/below", "--out"),
    (["--model", "mine_9.py:full", "--out", "/proc/perfscope"], 3, "cannot write to /proc/perfscope", "--out"),
    (["--model", "mine_9.py:full", "--out", "x" * 300], 3, "cannot write to", "--out"),
]


@pytest.mark.parametrize("argv, code, says, next_step", BAD, ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else None)
def test_bad_input(place, capsys, argv, code, says, next_step):
    before = sorted(os.listdir(place))
    got, out, err = call(capsys, *([] if "--batch" in argv or "--budget" in argv else QUICK), *argv)
    message, following = complaint(err)
    assert got == code and out == "" and says in message and "Traceback" not in err
    assert next_step is None or next_step in following
    assert sorted(set(os.listdir(place)) - {"__pycache__"}) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_cuda_asked_for_and_absent(place, capsys, device):
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--device", device)
    message, following = complaint(err)
    assert code == EXIT_ENVIRONMENT and "CUDA was asked for, but" in message and torch.__version__ in message and "--device cpu" in following
    assert not (place / "runs").exists()


@pytest.mark.parametrize("model, says, theirs", [
    ("mine_9.py:broken", "batch 2 failed: LookupError: 'my own [red]mistake[/red]'".replace("'", ""), ("in forward", "in helper", "LookupError: my own [red]mistake[/red]")),
    ("mine_9.py:batchless", "batch(2) failed: PermissionError", ("in no_batch", "my data is not mounted")),
    ("broken_9.py:f", "importing broken_9.py failed: SyntaxError", ("def f(:",)),
    ("lacks_9:f", "No module named 'nowhere_9'", ("import nowhere_9",)),
    ("mine_9.py:Broken", "expected input", ("in _conv_forward", "RuntimeError"))])
def test_the_users_own_errors_are_shown_as_theirs(place, capsys, model, says, theirs):
    """Their traceback, marked as such, without a line of perfscope's own."""
    if model.endswith(":Broken"):
        model = "mine_9.py:net"                 # a bare model that is fed with the wrong number of channels
        more = ["--input", "5x8x8", "--classes", "5"]
    else:
        more = []
    code, out, err = call(capsys, "--model", model, *more, *QUICK)
    message, following = complaint(err)
    shown = [x for x in err.splitlines() if x.startswith("  | ")]
    assert code == EXIT_USAGE and out == "" and says in message and following
    assert all(any(t in x for x in shown) for t in theirs) and not any(f"{PACKAGE}/" in x for x in shown)
    assert not (place / "runs").exists()


def test_code_that_ends_the_program(place, capsys):
    code, out, err = call(capsys, "--model", "mine_9.py:quitting", *QUICK)
    assert code == EXIT_USAGE and "sys.exit(0)" in complaint(err)[0] and not (place / "runs").exists()


def test_a_bug_of_ours_is_one_message_and_a_file(place, capsys, monkeypatch, tmp_path):
    def bug(*a):
        raise ZeroDivisionError("nobody thought of it")
    monkeypatch.setattr(verb.design, "ladder_order", bug)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--quiet", *QUICK)
    assert code == 70 and out == "" and err.count("\n") == 3 and "ZeroDivisionError: nobody thought of it" in err
    assert "in ladder_order" not in err and "in bug" in Path(re.search(r"\S+perfscope-bug-\S+", err)[0]).read_text()
    assert not (place / "runs").exists()


# ---------------------------------------------------------------- what it prints and writes

def test_table_record_report_and_the_next_command(place, capsys):
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--batch", "2,4", "--budget", "400ms")
    folder, = (place / "runs").iterdir()
    assert code == EXIT_OK and sorted(p.name for p in folder.iterdir()) == ["report.html", "run.json"]
    run = load(folder)
    assert run.id == folder.name and run.status == "complete" and [b.status for b in run.batches] == ["ok", "ok"]
    assert "mine" in out.splitlines()[0] and "norm" in out and all(len(x) <= 80 for x in out.splitlines() if "report.html" not in x)
    assert out.strip().splitlines()[-1].endswith(f"open runs/{folder.name}/report.html")
    assert "printed while imported" in err and "printed" not in out, "results to stdout, everything else to stderr"
    assert "trying batch 2" in err and "batch 4: warming up" in err
    assert run.provenance.command == "perfscope breakdown --model mine_9.py:full --batch 2,4 --budget 0.4s"


def test_two_runs_in_one_second_are_two_runs(place, capsys, monkeypatch):
    monkeypatch.setattr("perfscope.provenance.new_id", lambda name: "2026-01-01T00-00-00_x")
    for _ in range(2):
        assert call(capsys, "--model", "mine_9.py:full", "--quiet", *QUICK)[0] == EXIT_OK
    ids = sorted(p.name for p in (place / "runs").iterdir())
    assert ids == ["2026-01-01T00-00-00_x", "2026-01-01T00-00-00_x-2"]
    assert [load(place / "runs" / i).id for i in ids] == ids


def test_json_is_all_that_stdout_gets(place, capsys):
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--json", "--out", "here", *QUICK)
    data = json.loads(out)
    assert code == EXIT_OK and data["schema"] == record.SCHEMA and data == json.loads((place / "here" / "run.json").read_text())
    assert "printed while imported" in err


def test_quiet_says_nothing_on_stderr_of_its_own(place, capsys):
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--quiet", *QUICK)
    assert code == EXIT_OK and out and {x for x in err.splitlines()} <= {"printed while imported"}


@pytest.mark.parametrize("asked", [True, False])
def test_precision_that_was_not_reached(place, capsys, asked):
    """Exit 4 is for a precision that the user asked for; the default one is only told."""
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--json", *(["--precision", "0.0001%"] if asked else []), *QUICK)
    run = json.loads(out)
    codes = {w["code"] for w in run["warnings"]}
    if asked:
        assert code == EXIT_UNSURE and "precision-missed" in codes
    else:
        wide = run["batches"][0]["derived"]["half_width"] is None or run["batches"][0]["derived"]["half_width"] > 0.005
        assert code == EXIT_OK and "precision-missed" not in codes and ("wide-intervals" in codes) == wide


def test_order_and_parts(place, capsys):
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--order", "activation,norm", "--attribution", "ladder", "--json", *QUICK)
    assert list(json.loads(out)["batches"][0]["derived"]["parts"]) == ["base", "activation", "norm", "optimizer"]
    code, out, err = call(capsys, "--model", "mnist_cnn", "--parts", "activation,pooling", "--json", *QUICK)
    assert code == EXIT_OK and set(json.loads(out)["batches"][0]["derived"]["parts"]) == {"base", "activation", "pooling"}


def test_too_few_rounds_for_an_interval_is_no_error(place, capsys):
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--batch", "2", "--budget", "1ms")
    run = load(next((place / "runs").iterdir()))
    assert code == EXIT_OK and 1 <= run.batches[0].derived.rounds and "mine" in out


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "[red]x[/nothing]", "a b'c\"d", "ü\u202ex"])
def test_hostile_file_names(place, capsys, name):
    (place / f"{name.replace('/', '_')}.py").write_text(MINE)
    code, out, err = call(capsys, "--model", f"{name.replace('/', '_')}.py:net", "--input", "3x8x8", "--classes", "5", "--out", "o", *QUICK)
    assert code == EXIT_OK and "<script>alert" not in (place / "o" / "report.html").read_text(encoding="utf-8")
    assert "\u202e" not in out


def test_a_name_that_the_terminal_cannot_show(place, capsys):
    code, out, err = call(capsys, "--model", "gone\udcff.py:f")
    assert code == EXIT_USAGE and "gone" in complaint(err)[0]


def test_without_plotly_the_table_and_the_record_are_there(place, capsys, monkeypatch):
    from perfscope import registry

    def missing(*a):
        raise perfscope.errors.EnvironmentError_("plotly is not installed", "pip install plotly")
    monkeypatch.setattr(registry.load("reports", "html"), "render", missing)
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--out", "o", "--quiet", *QUICK)
    assert code == EXIT_OK and out.strip().endswith("perfscope report o") and "plotly is not installed" in complaint(err)[0]
    assert load(place / "o").status == "complete" and not (place / "o" / "report.html").exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_of_a_hostile_name(capsys, monkeypatch, terminal):
    from perfscope.cli.progress import progress
    from perfscope.measure.rounds import Progress

    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with progress(False) as (stage, rounds):
        stage("building [/nothing] \x1b[31m")
        rounds(4, Progress(3, 200, 1.0, 5.0, 0.02, 0.005))
    with progress(True) as (stage, rounds):
        stage("never shown")
        rounds(4, Progress(3, 200, 1.0, 5.0, None, 0.005))
    done = capsys.readouterr()
    assert done.out == "" and "never shown" not in done.err and (terminal or "building [/nothing]" in done.err)


# ---------------------------------------------------------------- memory

def test_a_batch_that_does_not_fit_is_a_row(place, capsys):
    code, out, err = call(capsys, "--model", "mine_9.py:hungry", "--batch", "2,8,16", "--budget", "200ms", "--out", "o")
    run = load(place / "o")
    assert code == EXIT_OK and [b.status for b in run.batches] == ["ok", "out-of-memory", "out-of-memory"] and run.largest_batch == 4
    assert "out of memory" in out or "out-of-memory" in out
    assert re.search(r"largest batch that fits: 4\b|largest.*\b4\b", out)


def test_no_batch_that_fits(place, capsys):
    code, out, err = call(capsys, "--model", "mine_9.py:hungry", "--batch", "8,16")
    message, following = complaint(err)
    assert code == EXIT_ENVIRONMENT and "no batch size fits" in message and "--batch 2" in following and not (place / "runs").exists()


def test_a_machine_with_little_memory(place, capsys, monkeypatch):
    """What is not there is not tried: on a CPU Linux would kill the run."""
    real, tried = fit.pilot, []
    monkeypatch.setattr(fit, "memory_now", lambda device: 1 << 30)
    monkeypatch.setattr(fit, "pilot", lambda p, size, parts: tried.append(size) or replace(real(p, size, parts), bytes=size << 27))
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--batch", "2,1000000", "--budget", "200ms", "--json")
    run = json.loads(out)
    assert code == EXIT_OK and [b["status"] for b in run["batches"]] == ["ok", "out-of-memory"]
    assert max(tried) <= 8 and "GiB are free" in run["batches"][1]["error"] and 6 <= run["largest_batch"] <= 8


# ---------------------------------------------------------------- the disk

class Full(OSError):
    def __init__(self):
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_in_the_middle(place, capsys, monkeypatch):
    """The first batch size is on the disk, then there is no room: all of the table is printed, the exit code says it, the old file is whole."""
    real, done = os.replace, []

    def move(a, b):
        if done:
            raise Full
        real(a, b)
        done.append(Path(b).read_text())
    monkeypatch.setattr(record.os, "replace", move)
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--batch", "2,4", "--budget", "400ms", "--out", "o", "--quiet")
    monkeypatch.undo()
    message, following = complaint(err)
    assert code == EXIT_ENVIRONMENT and "No space left on device" in message and "make room" in following
    assert re.search(r"^ +2 ", out, re.M) and re.search(r"^ +4 ", out, re.M) and "norm" in out
    assert (place / "o" / "run.json").read_text() == done[0] and os.listdir(place / "o") == ["run.json"]
    assert load(place / "o").status == "partial"


def test_room_for_the_record_but_not_for_the_report(place, capsys, monkeypatch):
    real = Path.write_text

    def write_text(self, *a, **k):
        if self.suffix == ".html":
            raise Full
        return real(self, *a, **k)
    monkeypatch.setattr(Path, "write_text", write_text)
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--out", "o", "--quiet", *QUICK)
    assert code == EXIT_ENVIRONMENT and "no report was made" in complaint(err)[0] and out.strip().endswith("perfscope report o")
    assert load(place / "o").status == "complete"


# ---------------------------------------------------------------- Ctrl-C

@pytest.mark.parametrize("stage", ["building", "trying batch", "counting", "measuring this machine", "warming up"])
def test_ctrl_c_before_anything_was_measured(place, capsys, monkeypatch, stage):
    import perfscope.cli.progress as shown
    from contextlib import contextmanager

    @contextmanager
    def progress(quiet):
        def at(text):
            if stage in text:
                raise KeyboardInterrupt
        yield at, lambda size, p: None
    monkeypatch.setattr(shown, "progress", progress)
    code, out, err = call(capsys, "--model", "mine_9.py:full", *QUICK)
    assert code == EXIT_INTERRUPTED and out == "" and complaint(err) == ("perfscope: interrupted", "Nothing had been measured yet.")
    assert not (place / "runs").exists()


def test_ctrl_c_in_the_rounds_of_the_second_batch_size(place, capsys, monkeypatch):
    import perfscope.cli.progress as shown
    from contextlib import contextmanager
    sizes = []

    @contextmanager
    def progress(quiet):
        def rounds(size, p):
            sizes.append(size)
            if len(set(sizes)) == 2 and p.rounds == 1:
                raise KeyboardInterrupt
        yield lambda text: None, rounds
    monkeypatch.setattr(shown, "progress", progress)
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--batch", "2,4", "--budget", "1s", "--out", "o")
    run = load(place / "o")
    first, second = (next(b for b in run.batches if b.batch_size == s) for s in dict.fromkeys(sizes))
    assert code == EXIT_INTERRUPTED and complaint(err) == ("perfscope: interrupted", f"What was measured is in {Path('o') / 'run.json'}")
    assert run.status == "interrupted" and first.status == "ok" and second.status == "partial" and second.stop == "interrupted"
    assert len(second.rounds) == 1 and all(set(r.step_s) == {v.name for v in second.variants} for r in second.rounds)
    assert "norm" in out and (place / "o" / "report.html").exists(), "what was measured is shown"


def test_ctrl_c_while_the_report_is_made(place, capsys, monkeypatch):
    import perfscope.report

    def interrupted(*a):
        raise KeyboardInterrupt
    monkeypatch.setattr(sys.modules["perfscope.report"], "report", interrupted)
    code, out, err = call(capsys, "--model", "mine_9.py:full", "--out", "o", "--quiet", *QUICK)
    assert code == EXIT_INTERRUPTED and "What was measured is in" in err and load(place / "o").status == "complete"


def test_ctrl_c_while_the_command_line_starts(monkeypatch, capsys):
    import perfscope.cli as cli

    def interrupted():
        raise KeyboardInterrupt
    monkeypatch.setattr(cli, "app", interrupted)
    assert main(["breakdown"]) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "perfscope: interrupted\n"


def test_complaints_are_on_stderr(capsys):
    complain("what", "next", "theirs\n  more")
    assert capsys.readouterr() == ("", "perfscope: what\n  | theirs\n  |   more\n  -> next\n")


# ---------------------------------------------------------------- in processes of their own

def start(place, *argv, model="full", **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "perfscope", "breakdown", "--model", f"mine_9.py:{model}", *argv], cwd=place, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def wait_for(what, seconds=120):
    """Until `what()` is true; the bound only ends a test that hangs."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def finished_batches(folder):
    try:
        return [b for b in load(folder).batches if b.status == "ok"]
    except record.RecordError:
        return []


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_in_the_middle_of_a_sweep(place, with_signal):
    """The first batch size is done, the second is being measured: what is on the disk loads, is whole, and says that it is not all."""
    process = start(place, "--batch", "2,3,4", "--budget", "6s", "--precision", "0.0001%", "--out", "o")
    try:
        wait_for(lambda: finished_batches(place / "o") or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        process.send_signal(with_signal)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    run = load(place / "o")
    done = [b for b in run.batches if b.status == "ok"]
    assert done and all(b.rounds and b.stop for b in done) and len(done) < 3
    assert run.inspection is not None and run.inspection.process == "own" and run.inspection.residues == {}
    if with_signal == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL and run.status == "partial"
    else:
        assert process.returncode == EXIT_INTERRUPTED and run.status == "interrupted" and "Traceback" not in err
        assert "perfscope: interrupted" in err and "norm" in out and run.parts[done[0].batch_size]


def test_a_pipe_that_is_closed_and_memory_that_is_limited(place):
    """`perfscope breakdown --json | head -1`, in an address space that the larger batch does not fit into."""
    import resource

    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))  # noqa: E731
    process = start(place, "--batch", "2,128", "--budget", "300ms", "--out", "o", "--json", "--quiet", model="wide", preexec_fn=limit)
    assert process.stdout.readline() == "{\n"
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == EXIT_OK and "Traceback" not in err and "Broken" not in err
    run = load(place / "o")
    assert [b.status for b in run.batches] == ["ok", "out-of-memory"] and run.batches[1].error
