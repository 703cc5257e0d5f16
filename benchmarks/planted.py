"""Known costs planted in a real step on this CPU, and found again (METHOD section 15, V2 and V5).

The clock is this process's CPU time: wall time on a busy machine cannot see a few per cent. One thread.
"""

from __future__ import annotations

import time
from contextlib import contextmanager

import torch
from torch import nn

from perfscope.measure import heap, stats
from perfscope.measure.clock import process_clock, steps_per_sample
from perfscope.measure.rounds import Timed, measure_rounds
from perfscope.workload import Workload, step
from perfscope.workload.data import image_batch, image_pipeline

ROUNDS = 12             # of one trial
CALIBRATION_ROUNDS = 60
SAMPLE_S = 0.008        # of one sample; shorter than METHOD 2's, so that 25 trials take seconds, not minutes


def spin(seconds: float) -> None:
    """Uses that much CPU time of this process."""
    end = time.process_time_ns() + int(seconds * 1e9)
    while time.process_time_ns() < end:
        pass


class SpinningReLU(nn.Module):
    """A ReLU that takes `delay_s` longer in the forward pass."""

    delay_s = 0.0

    def forward(self, x):
        if self.delay_s:
            spin(self.delay_s)
        return torch.relu(x)


def small_net() -> Workload:
    """A step of a few milliseconds with every part: convolution, norm, activation, optimizer, data."""
    shape, classes = (3, 16, 16), 10
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), SpinningReLU(), nn.Conv2d(32, 32, 3, padding=1),
                          nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 256, classes))
    return Workload(model, nn.functional.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
                    image_batch(shape, classes), image_pipeline(shape, classes, samples=256), "planted", "benchmarks", shape, classes)


@contextmanager
def still():
    """Torch on one thread inside, as before afterwards; and a steady heap, as all steps are timed in."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with heap.steady("cpu"):
            yield
    finally:
        torch.set_num_threads(before)


class Bench:
    """The small net taken apart, its ladder's steps ready to be timed, plain or with a delay in its first activation."""

    def __init__(self):
        self.prepared = step.prepare(small_net(), keep_original=False)
        self.batches = step.load_batches(self.prepared, 8)
        self.order = step.present_parts(self.prepared, self.batches)
        full = step.build(self.prepared, self.batches, self.order, self.order)
        expected = step.with_gradient(self.prepared)
        self.ladder = [step.build(self.prepared, self.batches, self.order[:i], self.order, expected)
                       for i in range(len(self.order))] + [full]
        self.relu = next(m for m in self.prepared.model.modules() if isinstance(m, SpinningReLU))
        self.clock = process_clock()
        with full:
            for _ in range(20):
                full.step()
            self.k = steps_per_sample(full.step, self.clock, SAMPLE_S)
            begin = time.process_time_ns()
            for _ in range(20):
                full.step()
        self.step_s = (time.process_time_ns() - begin) / 20 / 1e9

    def timed(self, name, variant, delay_s=0.0, fails=False) -> Timed:
        def enter():
            self.relu.delay_s = delay_s
            variant.enter()

        def leave():
            self.relu.delay_s = 0.0
            variant.leave()
        return Timed(name, variant.step, enter, leave)

    def rounds(self, variants, seed, n=ROUNDS) -> dict[str, list[float]]:
        """Seconds by variant over n interleaved rounds."""
        measured = measure_rounds(variants, clock=self.clock, k=self.k, rng_seed=seed, budget_s=600, target=1e-9,
                                  half_width=lambda done: 1.0, lead_in=1, max_rounds=n)
        return {v.name: [r.step_s[v.name] for r in measured.rounds] for v in variants}


def v2_trials(trials: int, share: float = 0.10, seed: int = 0):
    """Per trial (A/A interval, planted interval, rounds): the full step twice, and once with `share` of it planted."""
    with still():
        bench, found = Bench(), []
        full = bench.ladder[-1]
        for trial in range(trials):
            times = bench.rounds([bench.timed("a", full), bench.timed("a again", full),
                                  bench.timed("planted", full, share * bench.step_s)], seed + trial)
            found.append((stats.log_ratio(times["a"], times["a again"]), stats.log_ratio(times["a"], times["planted"])))
        return found


def v5_trials(trials: int, share: float = 0.20, seed: int = 1000):
    """Per trial a dict part -> (interval of its change as a share of the plain step, true change).

    The ladder is timed plain and with a delay in the activation, both in the same rounds. What the delay costs the whole
    step is measured beforehand in rounds of its own, because it is not the spin's own time: on the machine this was
    written on the step grew by about 11 % more than that (0.5, 1 and 2 ms alike; nobody knows why). So V5 shows that the
    ladder puts a delay where it belongs, not that a spin has the length that was asked for.
    """
    with still():
        bench, found = Bench(), []
        delay_s = share * bench.step_s
        full = bench.ladder[-1]
        times = bench.rounds([bench.timed("plain", full), bench.timed("slow", full, delay_s)], seed - 1, CALIBRATION_ROUNDS)
        cost_s = stats.hodges_lehmann([slow - plain for plain, slow in zip(times["plain"], times["slow"])])
        for trial in range(trials):
            names = [f"{i}" for i in range(len(bench.ladder))]
            times = bench.rounds([bench.timed(n, v) for n, v in zip(names, bench.ladder)]
                                 + [bench.timed(f"slow {n}", v, delay_s) for n, v in zip(names, bench.ladder)], seed + trial)
            level = stats.levels(times)
            true = cost_s / stats.seconds_interval(times[names[-1]]).point
            changes = {"base": (stats.linear_share(level, {"slow 0": 1, "0": -1}, names[-1]), 0.0)}
            for part, below, above in zip(bench.order, names, names[1:]):
                change = {f"slow {above}": 1, f"slow {below}": -1, above: -1, below: 1}
                changes[part] = stats.linear_share(level, change, names[-1]), true if part == "activation" else 0.0
            found.append(changes)
        return found
