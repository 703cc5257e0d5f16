"""What a record says about itself: id, provenance, the command that repeats it, method, workload."""

from __future__ import annotations

import datetime
import os
import re
import sys

from perfscope.measure import machine, stats
from perfscope.measure.ranks import Ranks
from perfscope.options import PRECISION, Options
from perfscope.record import Provenance, WorkloadInfo
from perfscope.workload import step

METHOD_VERSION = "2"        # see CHANGELOG, "Method"


def new_id(name: str) -> str:
    """A run's id: the time and the model's name, safe as a folder's name."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.")[:60] or "run"
    return f"{datetime.datetime.now().strftime('%Y-%m-%dT%H-%M-%S')}_{safe}"


def provenance(options: Options, named_model: bool, ranks: Ranks, verb: str = "breakdown") -> Provenance:
    """Where a run comes from: versions, git, the command that repeats it."""
    return Provenance(started_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                      argv=tuple(sys.argv), command=command(options, ranks.size, verb) if named_model else "", versions=machine.versions(),
                      git=machine.git_state(os.getcwd()), seed=options.seed)


def command(options: Options, world_size: int = 1, verb: str = "breakdown") -> str:
    """What to type to run it again."""
    import shlex
    from decimal import Decimal
    exact = lambda v, times=1: f"{(Decimal(repr(float(v))) * times).normalize():f}"  # noqa: E731: no exponent, no rounding
    start = ["perfscope"] if world_size == 1 else ["torchrun", "--nproc-per-node", str(world_size), "-m", "perfscope"]
    default, words = Options(), [*start, verb, "--model", options.model]
    for flag, name, show in (("--batch", "batch_sizes", lambda v: ",".join(map(str, v))), ("--dtype", "dtype", str),
                             ("--memory-format", "memory_format", str), ("--compile", "compile", str),
                             ("--device", "device", str), ("--precision", "precision", lambda v: f"{exact(v, 100)}%"),
                             ("--budget", "budget_s", lambda v: f"{exact(v)}s"), ("--order", "order", ",".join),
                             ("--parts", "parts", ",".join), ("--attribution", "attribution", str),
                             ("--input", "input_shape", lambda v: "x".join(map(str, v))), ("--classes", "classes", str),
                             ("--seed", "seed", str)):
        value = getattr(options, name)
        if value != getattr(default, name):
            words += [flag, show(value)]
    return shlex.join(words + [f for f, on in (("--cuda-graph", options.cuda_graph), ("--second-opinion", options.second_opinion)) if on])


def method(options: Options) -> dict:
    """The version of the method and every constant that went into a run."""
    return {"version": METHOD_VERSION, "clock": "step", "target_half_width": options.precision or PRECISION,
            "budget_s": options.budget_s, "first_look": stats.FIRST_LOOK, "look_every": stats.LOOK_EVERY,
            "most_rounds": stats.MOST_ROUNDS, "sample_s": 0.020, "confidence": stats.CONFIDENCE, "learning_rate": step.RATE,
            "processes": 1, "options": options.as_dict()}


def workload_info(prepared: step.Prepared, options: Options) -> WorkloadInfo:
    """What is measured, for the record."""
    w = prepared.workload
    loss = getattr(w.loss, "__name__", type(w.loss).__name__)
    return WorkloadInfo(name=w.name or options.model, source=w.source, dtype=prepared.dtype, memory_format=prepared.memory_format,
                        compile=prepared.compile, cuda_graph=prepared.cuda_graph, input_shape=tuple(w.input_shape), classes=w.classes,
                        parameters=sum(p.numel() for p in prepared.model.parameters()),
                        optimizer=type(prepared.optimizer).__name__, loss=loss, data=w.data_words)
