"""The golden records of `diagnose` and `fix`: python -m tests.records.make writes them. Synthetic: scripted costs, seeded noise.

The times are near to those of the MNIST net on two cores; whatever is said in them was never measured.
"""

from __future__ import annotations

import math
import random

from perfscope.finding import Finding, Numerics, Place, Trial
from perfscope.measure import stats
from perfscope.measure.stats import Interval
from perfscope.record import Environment, Provenance, Round, Warned, WorkloadInfo
from perfscope.records import diagnose as diagnosis
from perfscope.records import fix as treatment

SYNTHETIC = Warned("synthetic", "This record was generated for tests: its times are scripted, no machine was measured.", "Measure: perfscope diagnose --model mnist_cnn")
STEP = 0.1021
LAYOUT, FUSED, LOW, COMPILED, GONE = "conv_not_channels_last", "optimizer_not_fused", "no_mixed_precision", "pointwise_chains", "zero_grad_fills"
#: Cure -> the factor that it multiplies the step by.
FACTORS = {LAYOUT: 0.52, FUSED: 0.93, LOW: 0.71, COMPILED: 1.0313}


def rounds(factors: dict[str, float], n: int, rng: random.Random, level: float = STEP, noise: float = 0.01) -> tuple[Round, ...]:
    """Rounds of versions with these factors on the step, in random order, with a common drift."""
    out = []
    for i in range(n):
        order = list(factors)
        rng.shuffle(order)
        drift = level * (1 + 0.03 * math.sin(i / 4))
        out.append(Round(tuple(order), {v: float(f"{drift * factors[v] * math.exp(rng.gauss(0, noise)):.6g}") for v in order}))
    return tuple(out)


def change(found: tuple[Round, ...], version: str) -> Interval:
    """ln(version/before), as the verbs compute it."""
    return stats.log_ratio([r.step_s["before"] for r in found], [r.step_s[version] for r in found])


def common(verb: str) -> dict:
    """What both records say of themselves."""
    command = f"perfscope {verb} --model mnist_cnn --batch 256"
    return {"provenance": Provenance("2026-11-25T10:11:12+00:00", tuple(command.split()), command, {"perfscope": "0.1.0"}, {"commit": "0" * 40, "dirty": False}),
            "environment": Environment("cpu", "Intel Xeon Processor (synthetic)", "a1b2c3", "", {"cores": 2}, {"torch": "2.13.0"}, {}, {}),
            "workload": WorkloadInfo("mnist_cnn", "built-in", parameters=215_000, optimizer="Adam", loss="cross_entropy", input_shape=(1, 28, 28), classes=10),
            "batch_size": 256, "warnings": (SYNTHETIC,)}


def findings(seen: tuple[Round, ...]) -> tuple[Finding, ...]:
    """One of each kind: looked at, alone, a ceiling, a hint, unknown, known before."""
    def look(cure):
        c = change(seen, cure)
        return {"change": c, "verdict": stats.verdict(c, len(seen)).word, "extra": {"cure": cure}}
    convs = tuple(Place(f"conv{i}", f"Conv2d input (256, {8 * i}, 24, 24) and weight (32, {8 * i}, 3, 3), float32, both contiguous") for i in range(1, 6))
    return (
        Finding(LAYOUT, "5 of 5 convolutions run on contiguous tensors", convs, "put model and input in channels_last",
                "model = model.to(memory_format=torch.channels_last)\nimages = images.contiguous(memory_format=torch.channels_last)",
                share=0.57, basis="ceiling", curable=True, evidence={"convolutions": 5, "of": 5}, **look(LAYOUT)),
        Finding(LOW, "matmuls and convolutions run in float32, although this processor multiplies bfloat16 in hardware", (Place("conv1", "float32, AMX is there"),),
                "run the forward pass under autocast", 'with torch.autocast("cpu", torch.bfloat16):\n    loss = criterion(model(images), labels)',
                saves=Interval(0.31, 0.28, 0.34), basis="alone", curable=True),
        Finding("loading_in_step", "the training process loads its own batches", (Place("train.py:31", "DataLoader, num_workers=0"),), "load in workers",
                share=0.11, basis="ceiling"),
        Finding(FUSED, "the optimizer's step is not fused", (Place("optimizer", "Adam ran 72 operators in its step"),), "make the optimizer with fused=True",
                "torch.optim.Adam(..., fused=True)", share=0.07, basis="ceiling", curable=True, **look(FUSED)),
        Finding("gc_pauses", "the garbage collector ran within the steps", (Place("gc", "2 collections in 10 steps"),), "gc.freeze() after the warm-up",
                note="not tried here"),
        Finding(COMPILED, "a chain of elementwise operators: 3 operators over the same numbers", (Place("act1", "relu, mul, add"),), "compile the model",
                curable=True, note="the cure makes the step slower here: do not apply it", **look(COMPILED)),
        Finding(GONE, "zero_grad fills the gradients with zeros", (Place("optimizer.zero_grad", "10 gradients, 0.9 MB, are filled with zeros"),),
                "call zero_grad() without set_to_none=False", "optimizer.zero_grad()", curable=True, known=True))


def diagnose() -> diagnosis.Record:
    """A diagnosis with every kind of finding, one probe that failed, several that could not look."""
    seen = rounds({"before": 1.0, LAYOUT: 0.52, FUSED: 0.93, COMPILED: 1.0313}, 20, random.Random(3), noise=0.006)
    return diagnosis.Record(
        "2026-11-25T10-11-12_mnist_cnn", status="incomplete", step=stats.seconds_interval([r.step_s["before"] for r in seen]), findings=findings(seen),
        silent=("attention_on_math", "mixed_layouts", "thread_oversubscription"), failed={"my_own": "KeyError: 'weight'"},
        skipped={"half_batch_norm_off_cudnn": "not a disease of cpu", "pageable_copies": "not a disease of cpu", "layout_conversions": "needs trace, which this evidence lacks"},
        suppressed=("debug_left_on",), rounds=seen, own_cost={"trace_s": 3.1, "evidence_s": 5.2, "look_s": 6.0}, **common("diagnose"))


def trial(cure: str, on_top_of: tuple[str, ...], rng: random.Random, text: str, code: str = "", batch: int = 256) -> Trial:
    """A trial in three processes, with its verdict; kept if it is FASTER."""
    level = STEP * math.prod(FACTORS[c] for c in on_top_of)
    processes = tuple(rounds({"before": 1.0, "cured": FACTORS[cure] * math.exp(rng.gauss(0, 0.004))}, 14, rng, level) for _ in range(3))
    found = stats.over_processes([change(p, "cured") for p in processes])
    verdict = stats.verdict(found, 42)
    kept = verdict.word == "FASTER"
    return Trial(cure, on_top_of, "kept" if kept else "rejected", found, verdict.word, verdict.reason, processes,
                 numerics(rng, cure == LOW) if kept else None, batch_size=batch, text=text, code=code)


def numerics(rng: random.Random, coarse: bool) -> Numerics:
    """Errors as of float32, or of bfloat16, and two loss curves that end at the same place."""
    error = 4e-3 if coarse else 2e-7
    before = [2.30 * math.exp(-i / 14) + 0.05 for i in range(30)]
    return Numerics(True, "float64", error / 4, 6e-8, error, 2.1e-7, 3 * error, "conv2.weight",
                    "3 times the original's error, or what one rounding of the cured precision does; the middle one of 3 batches",
                    tuple(b * (1 + rng.gauss(0, 0.004)) for b in before), tuple(before), True, "loss off by 1.0e-07, gradients by 2.0e-07 at most")


PATCH = """--- a/train.py
+++ b/train.py
@@ -1,4 +1,4 @@
 model = Net()
-optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
+optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
 for images, labels in loader:
     optimizer.zero_grad()
"""


def fix() -> treatment.Record:
    """A treatment that keeps three cures, rejects one, and cannot apply another."""
    rng, kept, trials = random.Random(5), (), []
    for cure, text in ((LAYOUT, "model.to(memory_format=torch.channels_last), and the same for the input."), (LOW, "autocast to bfloat16."), (FUSED, "fused=True.")):
        trials.append(trial(cure, kept, rng, text, code=f"# {text}"))
        kept = (*kept, cure)
    trials.append(trial(COMPILED, kept, rng, "torch.compile(model)."))
    trials.append(Trial("my_own:candidate", kept, "not-applicable", error="RuntimeError: the shapes (3, 4) and (5, 6) do not match", batch_size=256))
    factor = math.prod(FACTORS[c] for c in kept)
    processes = tuple(rounds({"before": 1.0, "cured": factor * 1.02 * math.exp(rng.gauss(0, 0.004))}, 14, rng) for _ in range(3))
    found = stats.over_processes([change(p, "cured") for p in processes])
    every = [r for p in processes for r in p]
    final = Trial("all", (), "kept", found, "FASTER", "", processes, numerics(rng, True), 536870912, 402653184, 256)
    seconds = {v: stats.seconds_interval([r.step_s[v] for r in every]) for v in ("before", "cured")}
    base = diagnose()
    return treatment.Record("2026-11-25T10-20-00_mnist_cnn", status="complete", method={"processes": 3, "least_rounds": 10}, findings=base.findings,
                            trials=tuple(trials), kept=kept, final=final, step_before=seconds["before"], step_after=seconds["cured"], floor_s=0.0124,
                            code="model = model.to(memory_format=torch.channels_last)\ntorch.optim.Adam(..., fused=True)", patch=PATCH,
                            extra={"patch_file": "train.py", "not_patched": [LOW]}, own_cost={"trials_s": 160.0, "final_s": 40.0}, **common("fix"))
