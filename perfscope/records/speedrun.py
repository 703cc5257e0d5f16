"""The record of a speedrun: arms, the plan fixed before the first run, every run, and what follows. Standard library only.

Kind "speedrun" of schema perfscope/run/1. An arm is one way to train (a recipe with its settings); a run is one training
of one arm with one seed. `plan` is written before the first run and never changed; `runs` follows it in order; nothing is
left out. `results` and `comparisons` can be rebuilt from the runs (perfscope.speedruns.plan.derive). Seconds, fractions of 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from perfscope.measure.stats import Interval
from perfscope.record import SCHEMA, Ceilings, Environment, Provenance, Warned


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str                                   # "mnist", "without tta", "before"
    recipe: str                                 # "mnist:thin"; the workload's name where that replaces the recipe's model
    settings: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)      # fields that are not the recipe's variant's
    tricks: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()                 # why this arm cannot be certified, in words
    shortened: float = 1.0                      # epochs here / epochs of the recipe
    parameters: int = 0
    spec: str = ""                              # as it was asked for: "mnist_cnn,dtype=amp-bfloat16"
    workload: str = ""                          # source of a workload that replaces the recipe's model and optimizer
    summary: str = ""                           # first line of the recipe
    published: dict[str, Any] = field(default_factory=dict)    # time_s, accuracy, hardware, source
    warm_up_s: float = 0.0                      # the run on random data, compilation included
    warm_up_epochs: float = 0.0
    flops_forward: float = 0.0                  # per image
    flops_step: float = 0.0                     # per image, forward and backward
    floor_s: float = 0.0                        # of one run
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """One run of the plan."""

    arm: int
    seed: int
    round: int = 0
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One run."""

    arm: int
    seed: int
    round: int
    wall_s: float
    cpu_s: float                                # of this process, all threads
    correct: int
    images: int                                 # evaluated
    evaluation_s: float = 0.0                   # of wall_s, from the last step on, as the host sees it
    epochs: float = 0.0                         # really run: less only where a leaking arm stopped early
    curve: tuple[tuple[float, ...], ...] = ()   # (epoch, loss)
    extra: dict = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of the evaluation images that were recognised."""
        return self.correct / self.images if self.images else 0.0


@dataclass(frozen=True)
class Result:
    """What the runs of one arm say."""

    runs: int
    accuracy: Interval                          # mean, t interval
    spread: float                               # standard deviation from run to run
    p_value: float                              # one-sided, mean against the target; NaN for one run
    certified: bool                             # complete, p < alpha, no leak
    more_runs: int | None                       # runs in all that would certify a mean and spread like these
    passed: int
    pass_rate: Interval                         # Wilson
    time: Interval                              # median, by the record's clock
    wall: Interval
    cpu: Interval
    pass_time_s: float                          # until one run has passed with 95 %
    images_per_s: float = 0.0
    flops: float = 0.0                          # of one run
    efficiency: float = 0.0                     # floor / median time
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One arm against another, paired by seed: what is `b` worth against `a`."""

    a: int
    b: int
    pairs: int
    time: Interval                              # ln(b / a) by the record's clock
    accuracy: Interval                          # b - a
    settle: int | None = None                   # pairs that would tell the difference from 0; None: told already, or hopeless
    verdict: str = ""                           # FASTER SLOWER SAME UNCLEAR, of the time
    margin: float | None = None                 # of a confirmation: how much accuracy may be lost
    not_worse: bool | None = None               # None: neither shown nor ruled out
    settle_margin: int | None = None
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class DataInfo:
    """What was trained and evaluated on."""

    name: str = ""
    split: str = ""
    source: str = ""
    train: int = 0
    test: int = 0
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One speedrun."""

    id: str
    kind: str = "speedrun"
    mode: str = "runs"                          # runs certify ladder ablation confirm
    status: str = "partial"                     # partial interrupted complete
    schema: str = SCHEMA
    provenance: Provenance = field(default_factory=Provenance)
    environment: Environment = field(default_factory=Environment)
    method: dict[str, Any] = field(default_factory=dict)
    data: DataInfo = field(default_factory=DataInfo)
    target: float = 0.0
    alpha: float = 0.01
    clock: str = "wall"                         # what times are compared by: "wall" or "cpu"
    arms: tuple[Arm, ...] = ()
    plan: tuple[Planned, ...] = ()
    runs: tuple[Trial, ...] = ()
    results: tuple[Result | None, ...] = ()     # by arm; None: no run yet
    comparisons: tuple[Change, ...] = ()
    cold: dict[str, float] = field(default_factory=dict)       # import_s, read_s, transfer_s, warm_up_s, first_run_s
    ceilings: Ceilings | None = None
    scaling: dict[str, Any] = field(default_factory=dict)    # ranks, one_rank_s, all_ranks_s, efficiency
    watch: dict[str, list[float]] = field(default_factory=dict)
    warnings: tuple[Warned, ...] = ()
    extra: dict = field(default_factory=dict)

    def headline(self) -> list[str]:
        """The pieces of the first line."""
        env = self.environment
        asked = self.method.get("options", {}).get("recipe", "") if isinstance(self.method.get("options"), dict) else ""
        name = asked or (self.arms[0].recipe if self.arms else "")
        words = {"ladder": "ladder", "ablation": "what each trick is worth", "confirm": "before and after", "certify": "certificate"}
        torch = env.software.get("torch") or self.provenance.versions.get("torch")
        return [f"speedrun {name}", words.get(self.mode, ""), env.device_name or env.device, f"torch {torch}" if torch else "",
                f"{env.world_size} ranks" if env.world_size > 1 else "", f"{len(self.runs)} of {len(self.plan)} runs"]

    def of(self, arm: int) -> list[Trial]:
        """The runs of one arm, in order."""
        return [r for r in self.runs if r.arm == arm]

    def seconds(self, run: Trial) -> float:
        """The time of a run by the record's clock."""
        return run.cpu_s if self.clock == "cpu" else run.wall_s
