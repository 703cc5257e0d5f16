"""diagnose and fix on the command line: what they print and write, exit codes, bad input, Ctrl-C. The verbs are fakes, but for two."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import perfscope.diagnose                       # noqa: F401
import perfscope.fix                            # noqa: F401
from perfscope.cli import main
from perfscope.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_OK, EXIT_REGRESSION, EXIT_UNSURE, EXIT_USAGE
from perfscope.record import load, save
from perfscope.registry import PACKAGE
from tests.records import cures
from tests.test_compare import columns

diagnose, fix = sys.modules["perfscope.diagnose"], sys.modules["perfscope.fix"]

#: A model with a slow path of each of two probes, and a healthy head.
MINE = '''
import torch
from torch import nn
from perfscope.workload import Workload

def net():
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))
    return Workload(model, nn.CrossEntropyLoss(), lambda p: torch.optim.AdamW(p, fused=False),
                    lambda n: (torch.randn(n, 8, 12, 12), torch.zeros(n, dtype=torch.long)), name="mine")
'''


def call(capsys, *argv) -> tuple[int, str, str]:
    code = main([str(a) for a in argv])
    done = capsys.readouterr()
    return code, done.out, done.err


def complains(capsys, *argv, code=EXIT_USAGE) -> str:
    """The one message of a command that fails: no output, no stack trace, a next step."""
    got, out, err = call(capsys, *argv, "--quiet")
    assert got == code and out == "" and err.startswith("perfscope: ") and "\n  -> " in err
    return err


@pytest.fixture
def fake(monkeypatch):
    """fake(verb, record): the verb gives this record, saved as it would be; what it was asked comes back as a dictionary."""
    def put(verb, record, error=None):
        seen = {}

        def run(model, *, out, run_id, **asked):
            seen.update(asked, model=model)
            asked["stage"]("measuring")
            if record is not None:
                save(replace(record, id=run_id), out / "run.json")
            if error is not None:
                raise error
            return replace(record, id=run_id)
        monkeypatch.setattr(sys.modules[f"perfscope.{verb}"], verb, run)
        return seen
    return put


def complete():
    return replace(cures.diagnose(), failed={}, status="complete")


# ---------------------------------------------------------------- diagnose

def test_diagnose_prints_ranks_and_writes(capsys, fake, tmp_path):
    seen = fake("diagnose", complete())
    code, out, err = call(capsys, "diagnose", "--model", "mnist_cnn", "--dtype", "half", "--batch", "64", "--only", "gc_pauses", "--no-trace", "--out", tmp_path)
    assert code == EXIT_OK and "measuring" in err and load(tmp_path).kind == "diagnose" and (tmp_path / "report.html").exists()
    assert seen["model"] == "mnist_cnn" and seen["options"].dtype == "half" and seen["options"].batch_sizes == (64,)
    assert seen["asked"] == diagnose.Asked(only=("gc_pauses",), trace=False)
    assert out.splitlines()[-1] == "next: perfscope fix --model mnist_cnn --batch 64 --dtype half --only gc_pauses"
    assert f"report:{tmp_path / 'report.html'}" in "".join(out.split())


def test_what_a_finding_says(capsys, fake, tmp_path):
    fake("diagnose", complete())
    _, out, _ = call(capsys, "diagnose", "--quiet", "--out", tmp_path)
    whole = " ".join(out.split())
    assert "1. conv_not_channels_last: step -48.1 % (-48.34 to -47.84), quick look: FASTER" in whole
    assert "at conv3:" in whole and "at conv4" not in whole and "and 2 more" in whole
    assert "saves 31 ±3 % of the step, layer alone" in whole and "at most 11 % of the step, ceiling" in whole and "5. gc_pauses: cost unknown" in whole
    assert "by hand: load in workers" in whole and "note: the cure makes the step slower here" in whole and "known already: zero_grad_fills" in whole
    assert "       images = images.contiguous(memory_format=torch.channels_last)\n" in out       # code keeps its lines
    assert "silent: 3 probes looked" in whole and "skipped: 2 probes, not a disease of cpu" in whole and "suppressed: debug_left_on" in whole


def test_nothing_found_leads_on(capsys, fake, tmp_path):
    fake("diagnose", replace(complete(), findings=()))
    code, out, _ = call(capsys, "diagnose", "--model", "vit", "--quiet", "--out", tmp_path)
    assert code == EXIT_OK and "No slow path was found: 3 probes looked." in out and out.splitlines()[-1] == "next: perfscope breakdown --model vit"


def test_json_is_the_record(capsys, fake, tmp_path):
    fake("diagnose", complete())
    _, out, _ = call(capsys, "diagnose", "--json", "--quiet", "--out", tmp_path)
    assert json.loads(out) == json.loads((tmp_path / "run.json").read_text())


def test_a_probe_that_fails_is_named_and_the_code_says_incomplete(capsys, fake, tmp_path):
    fake("diagnose", cures.diagnose())
    code, out, err = call(capsys, "diagnose", "--quiet", "--out", tmp_path)
    assert code == EXIT_UNSURE and "FAILED my_own: KeyError: 'weight'" in out and "incomplete: my_own failed" in err


@pytest.mark.parametrize("known, code", [(True, EXIT_OK), (False, EXIT_REGRESSION)])
def test_fail_on_new(capsys, fake, tmp_path, known, code):
    before = replace(complete(), findings=tuple(f for f in cures.diagnose().findings if not f.known))
    save(before, tmp_path / "before" / "run.json")
    now = replace(before, findings=diagnose.known(before.findings if known else cures.diagnose().findings,
                                                  [] if not known else diagnose.read_baseline(tmp_path / "before")))
    seen = fake("diagnose", now)
    argv = ("diagnose", "--baseline", tmp_path / "before", "--quiet", "--out", tmp_path)
    assert call(capsys, *argv, "--fail-on-new")[0] == code and len(seen["asked"].baseline) == 6
    assert call(capsys, *argv)[0] == EXIT_OK


def test_ctrl_c(capsys, fake, tmp_path):
    fake("diagnose", None, KeyboardInterrupt())
    code, out, err = call(capsys, "diagnose", "--quiet", "--out", tmp_path)
    assert code == EXIT_INTERRUPTED and out == "" and "Nothing had been measured yet" in err
    fake("diagnose", replace(complete(), status="interrupted"))
    code, out, err = call(capsys, "diagnose", "--quiet", "--out", tmp_path)
    assert code == EXIT_INTERRUPTED and "was interrupted" in out and "6 slow paths" in out and str(tmp_path / "run.json") in err


WRONG = {"raises": "1 / 0", "exits": "import sys; sys.exit(3)", "no_detect": '"""Doc."""\nUSES = ("model",)', "syntax": "def :",
         "signature": '"""D.\n\n## What it sees\n## Why it is slow\n## Cure\n## Not for\n## References\n"""\nUSES = ("model",)\n'
                      "def detect(): return ()\ndef plant(w): return w"}
SAID = {"raises": "cannot be loaded: ZeroDivisionError", "exits": "cannot be loaded: SystemExit", "no_detect": "is not a probe", "syntax": "cannot be loaded: SyntaxError",
        "signature": "detect has to be a function of 1 argument"}


@pytest.mark.parametrize("verb", ["diagnose", "fix"])
@pytest.mark.parametrize("kind", WRONG)
def test_a_private_probe_that_is_none(capsys, tmp_path, verb, kind):
    (tmp_path / "mine.py").write_text(WRONG[kind])
    err = complains(capsys, verb, "--probes", tmp_path, "--out", tmp_path / "out")
    assert SAID[kind] in err and "mine" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["diagnose", "fix"])
def test_bad_options(capsys, tmp_path, monkeypatch, verb):
    out = ("--out", tmp_path / "out")
    assert "no probe 'unicorn' (--suppress)" in complains(capsys, verb, "--suppress", "unicorn", *out)
    assert "no probe 'unicorn' (--only)" in complains(capsys, verb, "--only", "unicorn", *out)
    assert "no folder" in complains(capsys, verb, "--probes", tmp_path / "nowhere", *out)
    assert "no probe in" in complains(capsys, verb, "--probes", tmp_path, *out)
    assert "no record at" in complains(capsys, verb, "--baseline", tmp_path / "nowhere", *out)
    (tmp_path / "run.json").write_text("{")
    assert "not whole JSON" in complains(capsys, verb, "--baseline", tmp_path, *out)
    assert "record of a breakdown, not of a diagnosis" in complains(capsys, verb, "--baseline", PACKAGE.parent / "tests/records/cpu.json", *out)
    assert "one batch size" in complains(capsys, verb, "--batch", "4,8", *out)
    assert "no dtype 'fp8'" in complains(capsys, verb, "--dtype", "fp8", *out)
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "not the ranks of torchrun" in complains(capsys, verb, *out)


def test_a_name_that_is_taken(capsys, tmp_path):
    (tmp_path / "gc_pauses.py").write_text((PACKAGE.parent / "probes" / "gc_pauses.py").read_text())
    assert "two probes named 'gc_pauses'" in complains(capsys, "diagnose", "--probes", tmp_path)


def test_options_of_one_verb_only(capsys):
    assert "--fail-on-new needs" in complains(capsys, "diagnose", "--fail-on-new")
    assert "not a time" in complains(capsys, "fix", "--budget", "soon")
    assert "no probe 'unicorn' (--cures)" in complains(capsys, "fix", "--cures", "unicorn")
    assert "has no cure 'gc_pauses:magic'" in complains(capsys, "fix", "--cures", "gc_pauses:magic")


# ---------------------------------------------------------------- fix

def test_fix_prints_trials_the_stack_and_the_code(capsys, fake, tmp_path):
    seen = fake("fix", cures.fix())
    code, out, err = call(capsys, "fix", "--model", "mnist_cnn", "--budget", "90s", "--cures", "gc_pauses,optimizer_not_fused", "--confirm", "--out", tmp_path)
    assert code == EXIT_OK and "measuring" in err and columns("\n".join(line for line in out.splitlines() if str(tmp_path) not in line)) <= 80
    assert seen["budget_s"] == 90 and seen["cures"] == ("gc_pauses", "optimizer_not_fused") and seen["confirm"] is True
    whole = " ".join(out.split())
    assert "x 2.86 (2.82 to 2.90) with 3 cures: 103.8 ±0.5 ms per step before, 36.3 ±0.2 ms after. 5 cures tried, 3 kept." in whole
    assert "pointwise_chains would cost you 3 % here (+2.0 to +4.2) on top of" in whole
    assert "my_own:candidate is not applicable here: RuntimeError: the shapes (3, 4) and (5, 6) do not match" in whole
    assert "peak memory 512 MiB before, 384 MiB after (-25 %)" in whole and "not in the patch, add by hand: no_mixed_precision" in whole
    assert (tmp_path / "fix.diff").read_text() == cures.PATCH and f"next:gitapply{tmp_path / 'fix.diff'}" in "".join(out.split())
    assert (tmp_path / "report.html").exists()


def test_the_default_budget_is_the_verbs(capsys, fake, tmp_path):
    seen = fake("fix", cures.fix())
    call(capsys, "fix", "--quiet", "--out", tmp_path)
    assert "budget_s" not in seen and seen["cures"] == () and seen["confirm"] is False


def test_patch_goes_where_it_is_asked_for(capsys, fake, tmp_path):
    fake("fix", cures.fix())
    path = tmp_path / "a folder" / "mine.diff"
    code, out, _ = call(capsys, "fix", "--quiet", "--out", tmp_path, "--patch", path)
    assert code == EXIT_OK and path.read_text() == cures.PATCH and f"next: git apply '{path}'" in out.replace("\n  ", " ") and not (tmp_path / "fix.diff").exists()


def test_a_patch_that_cannot_be_written_loses_nothing(capsys, fake, tmp_path):
    fake("fix", cures.fix())
    (tmp_path / "file").write_text("")
    code, out, err = call(capsys, "fix", "--quiet", "--out", tmp_path, "--patch", tmp_path / "file" / "x.diff")
    assert code == EXIT_ENVIRONMENT and "with 3 cures" in out and "cannot write" in err and "run.json" in err


def test_no_patch(capsys, fake, tmp_path):
    fake("fix", replace(cures.fix(), patch="", extra={}))
    code, out, err = call(capsys, "fix", "--quiet", "--out", tmp_path, "--patch", tmp_path / "x.diff")
    assert code == EXIT_OK and "there is no patch" in err and not (tmp_path / "x.diff").exists()
    assert "torch.optim.Adam(..., fused=True)" in out and f"next: open {tmp_path / 'report.html'}" in out.replace("\n  ", " ")


def test_nothing_kept(capsys, fake, tmp_path):
    none = replace(cures.fix(), kept=(), trials=cures.fix().trials[3:], final=None, step_before=None, step_after=None, patch="", code="")
    fake("fix", none)
    code, out, _ = call(capsys, "fix", "--model", "vit", "--budget", "5m", "--quiet", "--out", tmp_path)
    assert code == EXIT_OK and "2 cures tried, 0 kept." in out and out.splitlines()[-1] == "next: perfscope breakdown --model vit"


@pytest.mark.parametrize("status, code", [("incomplete", EXIT_UNSURE), ("interrupted", EXIT_INTERRUPTED), ("complete", EXIT_OK)])
def test_how_fix_ends(capsys, fake, tmp_path, status, code):
    fake("fix", replace(cures.fix(), status=status, final=None))
    got, out, err = call(capsys, "fix", "--quiet", "--out", tmp_path)
    assert got == code and "conv_not_channels_last" in out and ("What was measured is in" in err) == (status == "interrupted")


def test_fix_stopped_before_the_first_trial_was_over(capsys, fake, tmp_path):
    fake("fix", replace(cures.fix(), status="partial"), KeyboardInterrupt())
    code, _, err = call(capsys, "fix", "--quiet", "--out", tmp_path)
    assert code == EXIT_INTERRUPTED and f"What was measured is in {tmp_path / 'run.json'}" in err


# ---------------------------------------------------------------- the real thing

def environment():
    return {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def test_diagnose_for_real_with_a_probe_of_ones_own(capsys, tmp_path):
    """A file of the user's, a probe of the user's, whose plant is not there: it stays silent; the built-in one finds its disease."""
    (tmp_path / "mine.py").write_text(MINE)
    assert call(capsys, "new", "probe", "idle_dropout", "--folder", tmp_path / "own")[0] == EXIT_OK
    code, out, _ = call(capsys, "diagnose", "--model", f"{tmp_path / 'mine.py'}:net", "--batch", "4", "--device", "cpu", "--no-trace", "--no-look",
                        "--only", "idle_dropout,optimizer_not_fused", "--probes", tmp_path / "own", "--quiet", "--out", tmp_path / "run")
    run = load(tmp_path / "run")
    assert code == EXIT_OK and [f.probe for f in run.findings] == ["optimizer_not_fused"] and run.silent == ("idle_dropout",)
    assert "1. optimizer_not_fused" in out and run.provenance.command.startswith("perfscope diagnose --model ")


def test_ctrl_c_in_the_quick_look_keeps_what_was_found(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    argv = [sys.executable, "-m", "perfscope", "diagnose", "--model", f"{tmp_path / 'mine.py'}:net", "--batch", "4", "--device", "cpu", "--no-trace",
            "--only", "optimizer_not_fused", "--out", str(tmp_path / "run")]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True)
    try:
        for line in child.stderr:
            if "a quick look" in line:
                break
        time.sleep(1)
        os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    run = load(tmp_path / "run")
    assert child.returncode == EXIT_INTERRUPTED and "perfscope: interrupted" in err and "Traceback" not in err
    assert run.status == "interrupted" and [f.probe for f in run.findings] == ["optimizer_not_fused"] and "1. optimizer_not_fused" in out
