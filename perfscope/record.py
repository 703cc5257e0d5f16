"""The record of a run: frozen dataclasses, to JSON and back. Standard library only.

Schema `perfscope/run/1` (DESIGN section 4). Units are in the names: `_s` seconds, `_bytes`, `_flops`,
`_mhz`, `_w`, `_c`. Raw samples are never rewritten and never rounded; everything under `derived` can be
deleted and rebuilt from them (`perfscope.measure.attribution.derive`). Keys that this version does not
know are kept in `extra` and written back. Shares are fractions of 1 (0.131 = 13.1 %).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfscope.errors import EnvironmentError_, RecordError
from perfscope.measure.stats import Interval
from perfscope.warned import Warned

SCHEMA = "perfscope/run/1"

#: Parts of a step in the order of the ladder: "base" is what is left when every other part is taken away.
BASE = "base"
PARTS = ("norm", "activation", "attention", "dropout", "residual", "pooling", "embedding", "loss",
         "optimizer", "data", "communication")
#: Parts that the base keeps unless they are asked for by name (the article's base had them too).
ON_REQUEST = ("residual", "pooling", "embedding", "loss")


def variant_name(parts) -> str:
    """The name of the variant with these parts: "base", "base+norm", ... in the order of PARTS."""
    return "+".join([BASE, *(p for p in PARTS if p in parts)])


@dataclass(frozen=True)
class Provenance:
    """Where a run comes from."""

    started_utc: str = ""                       # ISO 8601
    argv: tuple[str, ...] = ()
    command: str = ""                           # what to type to run it again
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)   # commit, dirty
    seed: int = 0
    wall_s: float = 0.0                         # of the whole command so far, start-up excluded
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """The machine. Host and GPU ids only as hashes, because records get shared."""

    device: str = ""                            # "cpu" or "cuda"
    device_name: str = ""                       # "NVIDIA H200", or the processor's name
    host_hash: str = ""
    device_hash: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)   # cores, threads, instruction sets, memory, driver, clocks
    software: dict[str, Any] = field(default_factory=dict)   # torch, cuda, cudnn, python, platform
    switches: dict[str, Any] = field(default_factory=dict)   # cudnn.benchmark, tf32, deterministic, ...
    variables: dict[str, str] = field(default_factory=dict)  # OMP_NUM_THREADS, PYTORCH_ALLOC_CONF, CUDA_..., ...
    world_size: int = 1
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class WorkloadInfo:
    """What was measured."""

    name: str = ""                              # "resnet9"; shown to people, may hold anything: escape it
    source: str = ""                            # "built-in", "mypkg.train:workload", "hf:gpt2", ...
    dtype: str = "float32"                      # float32 half bfloat16 amp-half amp-bfloat16
    memory_format: str = "contiguous"           # or channels_last
    compile: str = "off"                        # off default reduce-overhead max-autotune
    cuda_graph: bool = False
    input_shape: tuple[int, ...] = ()           # of one sample
    classes: int = 0
    parameters: int = 0
    optimizer: str = ""
    loss: str = ""
    data: str = ""                              # the input pipeline, in words
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """One convolution or matmul of the step, per image or per sequence (forward and backward counted apart)."""

    op: str                                     # "convolution", "addmm", ...
    direction: str                              # "forward" or "backward"
    shape: str                                  # "64x32x32 * 128x64x3x3", in words
    flops: float                                # per sample
    bytes: float                                # fewest bytes moved, per sample, weights not counted
    fixed_bytes: float = 0.0                    # bytes per step that do not grow with the batch (weights)
    count: int = 1                              # how many identical ones
    module: str = ""                            # module path where known
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """What ran, counted in a process of its own: operations, FLOPs and bytes, nothing timed."""

    flops_forward: float = 0.0                  # per sample
    flops_step: float = 0.0                     # per sample, forward and backward
    layers: tuple[Layer, ...] = ()
    census: dict[str, dict[str, int]] = field(default_factory=dict)   # variant -> ATen op -> calls in one step
    residues: dict[str, dict[str, int]] = field(default_factory=dict)  # variant -> op that should be gone -> calls
    removed: dict[str, dict[str, int]] = field(default_factory=dict)   # part -> ATen op -> calls that it took away
    without_gradient: dict[str, tuple[str, ...]] = field(default_factory=dict)  # variant -> parameters left without one
    activation_std: dict[str, dict[str, float]] = field(default_factory=dict)  # variant -> layer -> std
    process: str = ""                           # "own" or "same, after timing"
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Ceilings:
    """This machine's two ceilings, measured: a large matmul or convolution in the step's dtype, a large copy (read + write)."""

    flops_per_s: float = 0.0
    copy_bytes_per_s: float = 0.0
    dtype: str = ""
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """A training step with some of its parts; `parts` leaves out "base", which is always there.

    The full variant names its parts in the order in which the ladder adds them.
    """

    name: str
    parts: tuple[str, ...]
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """Every variant once, in random order; seconds per step of each sample."""

    order: tuple[str, ...]
    step_s: dict[str, float]
    device_s: dict[str, float] = field(default_factory=dict)
    busy_s: dict[str, float] = field(default_factory=dict)
    canary_s: dict[str, float] = field(default_factory=dict)   # "matmul", "copy"
    telemetry: dict[str, dict[str, float]] = field(default_factory=dict)  # variant -> one NVML read (sm_mhz, ...)
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class WarmUp:
    """How a variant was warmed up: unmeasured steps, and whether it still drifted at the end."""

    steps: int
    seconds: float
    drift_z: float = 0.0                        # Mann-Kendall
    settled: bool = True
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Guard:
    """What was checked about a variant, so that its time means what it says."""

    loss: float = 0.0
    finite: bool = True
    activation_std_low: float = 1.0             # least and greatest over the layers
    activation_std_high: float = 1.0
    zero_share: float = 0.0                     # of the inputs of convolutions and matmuls
    conv_dtypes: tuple[str, ...] = ()
    conv_layouts: tuple[str, ...] = ()
    conv_calls: int = 0                         # convolutions and matmuls in the forward pass
    rescaled: int = 0                           # weights rescaled by a power of two
    filled_gradients: int = 0                   # parameters that were given a gradient by perfscope
    overhead_s: float = 0.0                     # perfscope's own time inside one step of this variant, measured
    overhead_share: float = 0.0                 # the same as a fraction of the step
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One part's row in the breakdown of one batch size. Shares are of the full step."""

    share: Interval                             # ladder: parts added in order
    seconds: Interval                           # share x step
    first: Interval | None = None               # seconds, added to the base alone
    last: Interval | None = None                # seconds, taken from the full step
    interaction: Interval | None = None         # last - first
    depends_on_order: bool = False
    shapley: Interval | None = None             # share
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Derived:
    """What follows from the raw samples of one batch size."""

    step: Interval                              # seconds per full step
    parts: dict[str, Part]                      # "base" first, then in ladder order; shares sum to 1
    rounds: int = 0
    clean_rounds: int = 0
    stall: float = 0.0                          # mean(all)/mean(clean) - 1
    half_width: float = 0.0                     # widest headline half-width, as a share of the step
    resolution: float = 0.0                     # smallest change this run can see (80 % power), as a share
    samples_per_s: float = 0.0
    floor_s: float = 0.0
    efficiency: float = 0.0                     # floor/step
    device: Interval | None = None
    busy: Interval | None = None
    launch_bound: float | None = None           # 1 - busy/step
    outliers: dict[str, int] = field(default_factory=dict)    # Tukey labels over all samples: "mild", "far"
    canary_spread: float = 0.0
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class BatchResult:
    """One batch size of the sweep; out of memory is a row like any other."""

    batch_size: int
    status: str = "ok"                          # ok partial out-of-memory failed
    error: str = ""
    reference: str = ""                         # name of the full variant
    variants: tuple[Variant, ...] = ()
    attribution: str = "ladder"                 # ladder brackets shapley
    steps_per_sample: int = 0
    lead_in_steps: int = 0
    rounds: tuple[Round, ...] = ()
    rank_rounds: dict[str, tuple[Round, ...]] = field(default_factory=dict)   # the other ranks' own samples
    warmup: dict[str, WarmUp] = field(default_factory=dict)
    guards: dict[str, Guard] = field(default_factory=dict)
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)
    telemetry: dict[str, list[float]] = field(default_factory=dict)   # 10 Hz columns: time_s, sm_mhz, power_w, ...
    stop: str = ""                              # precision rounds budget stalled interrupted
    own_cost: dict[str, float] = field(default_factory=dict)   # wall_s, timed_s, lead_in_s, warmup_s
    derived: Derived | None = None
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """How a part scales: seconds per sample t(B)/B = per_step_s/B + per_sample_s + growth_s * log2(B/extra["b_min"])."""

    per_step_s: float
    per_sample_s: float
    growth_s: float
    kind: str                                   # "per step", "per sample", "grows", "mixed", "too few points"
    words: str
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Scaling:
    """Over the batch sizes: t(B) = max(h, a + b B) of the full step, and a fit per part."""

    h_s: float = 0.0
    a_s: float = 0.0
    b_s: float = 0.0
    b_half: float | None = None                 # batch at which half of the step is overhead
    knee: int | None = None                     # least batch within 5 % of the best throughput
    parts: dict[str, Fit] = field(default_factory=dict)
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class SecondOpinion:
    """What a trace of the same step says, recorded in a process of its own after measuring: seconds, one figure per traced step.

    On a CPU `parts` is the time inside operators, and `host` the time between them inside a part's mark; on a GPU `parts` is the
    time of the kernels, copies and memsets that the step launched. `waiting_s` is the rest of the step: on a CPU the host's
    own time between operators, on a GPU what is left idle (step - busy, over all steps).
    """

    batch_size: int
    clock: str                                  # "operators" (CPU) or "kernels" (GPU)
    step_s: tuple[float, ...]
    waiting_s: tuple[float, ...]
    parts: dict[str, tuple[float, ...]] = field(default_factory=dict)     # "base" and every part of the breakdown
    host: dict[str, tuple[float, ...]] = field(default_factory=dict)
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run of one command. `batches` is in the order of the batch sizes."""

    id: str
    kind: str = "breakdown"
    status: str = "partial"                     # partial interrupted complete
    schema: str = SCHEMA
    provenance: Provenance = field(default_factory=Provenance)
    environment: Environment = field(default_factory=Environment)
    method: dict[str, Any] = field(default_factory=dict)      # version and every constant
    workload: WorkloadInfo = field(default_factory=WorkloadInfo)
    base_label: str = "conv"                    # what people call the base: "conv", "matmul", "conv, matmul"
    ceilings: Ceilings | None = None
    inspection: Inspection | None = None
    batches: tuple[BatchResult, ...] = ()
    largest_batch: int | None = None            # found by search after an out-of-memory
    scaling: Scaling | None = None
    second_opinion: SecondOpinion | None = None
    warnings: tuple[Warned, ...] = ()
    own_cost: dict[str, float] = field(default_factory=dict)  # seconds outside the blocks: trial_s, inspection_s, ceilings_s
    selfcheck: dict[str, Any] = field(default_factory=dict)   # what `perfscope selfcheck` last found on this machine
    extra: dict = field(default_factory=dict)

    @property
    def parts(self) -> dict[int, dict[str, Part]]:
        """`run.parts[512]["norm"].share`: the parts of every batch size that was measured."""
        return {b.batch_size: b.derived.parts for b in self.batches if b.derived}

    def save(self, directory) -> Path:
        """Writes `directory/run.json` atomically and returns its path; makes the directory."""
        return save(self, Path(directory) / "run.json")


def label(run: Run, part: str) -> str:
    """What people call a part: the base is called after what it is made of."""
    return run.base_label if part == BASE else part


# ---------------------------------------------------------------- JSON

def to_dict(value: Any) -> Any:
    """A record, or any part of it, as JSON-ready dictionaries and lists. NaN and infinities become None."""
    if dataclasses.is_dataclass(value):
        data = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "extra"}
        extra = to_dict(getattr(value, "extra", {}))
        return {**data, **{k: v for k, v in extra.items() if k not in data}}
    if isinstance(value, dict):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_dict(cls: type, data: dict) -> Any:
    """The dataclass `cls` from a dictionary; keys it does not know go to `extra`. Raises TypeError or KeyError."""
    return _build(cls, data, cls.__name__)


def _build(kind: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or data is None and (kind is float or type(None) in args):
        return math.nan if kind is float and data is None else data
    if origin in (types.UnionType, typing.Union):
        return _build(next(a for a in args if a is not type(None)), data, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, dict):
            raise TypeError(f"{where} should be an object, is {type(data).__name__}")
        hints = typing.get_type_hints(kind)
        known = {f.name for f in dataclasses.fields(kind)}
        values = {k: _build(hints[k], v, f"{where}.{k}") for k, v in data.items() if k in known and k != "extra"}
        extra = {k: v for k, v in data.items() if k not in known}
        return kind(**values, **({"extra": extra} if extra and "extra" in known else {}))
    if origin is tuple:
        if not isinstance(data, list):
            raise TypeError(f"{where} should be a list, is {type(data).__name__}")
        return tuple(_build(args[0], v, f"{where}[{i}]") for i, v in enumerate(data))
    if origin is list:
        if not isinstance(data, list):
            raise TypeError(f"{where} should be a list, is {type(data).__name__}")
        return [_build(args[0], v, f"{where}[{i}]") for i, v in enumerate(data)]
    if origin is dict or kind is dict:
        if not isinstance(data, dict):
            raise TypeError(f"{where} should be an object, is {type(data).__name__}")
        return {k: _build(args[1], v, f"{where}[{k!r}]") for k, v in data.items()} if args else data
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or isinstance(data, bool) and kind is not bool:
        raise TypeError(f"{where} should be {kind.__name__}, is {type(data).__name__}")
    return data


def save(run: Run, path) -> Path:
    """Writes the record atomically: a crash, a full disk or a kill leaves the previous file whole."""
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    text = json.dumps(to_dict(run), indent=1, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException as e:                  # Ctrl-C too: no half-written file is left behind
        with contextlib.suppress(OSError):
            part.unlink()
        if not isinstance(e, OSError):
            raise
        raise EnvironmentError_(f"cannot write {path}: {e.strerror or e}",
                                "Give another folder with --out, or make room on the disk.") from e
    return path


def kinds() -> dict[str, type]:
    """Every kind of record and its class: "breakdown" is `Run`; any other kind is a file `perfscope/records/<kind>.py`.

    Such a file, standard library only, has a frozen dataclass `Record` with at least id, kind, status, schema, provenance,
    environment, warnings and extra as in `Run`, and `headline()`, the pieces of its first line, the name first.
    """
    from importlib import import_module

    from perfscope import registry

    return {"breakdown": Run, **{name: import_module(f"perfscope.records.{name}").Record for name in registry.names("records")}}


def load(path) -> Any:
    """Reads a record from `run.json`, or from the folder that holds it: a `Run`, or another kind's Record.

    Raises RecordError with the reason.
    """
    path = Path(path)
    if os.path.isdir(path):                     # unlike Path.is_dir it never raises, however long the name
        path = path / "run.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"there is no record at {path}", "Give a run.json, or the folder that holds one.") from None
    except OSError as e:
        raise RecordError(f"cannot read {path}: {e.strerror or e}") from None
    except UnicodeDecodeError as e:
        raise RecordError(f"{path} is not a record: not UTF-8 text (byte {e.start})", "Give a run.json written by perfscope.") from None
    except RecursionError:
        raise RecordError(f"{path} is not a record: nested too deeply", "Give a run.json written by perfscope.") from None
    except json.JSONDecodeError as e:
        raise RecordError(f"{path} is not whole JSON: {e.msg} at line {e.lineno}, column {e.colno}",
                          "The file was truncated or edited. Records are written atomically, so an older copy may exist.") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str) or not schema.startswith("perfscope/run/"):
        raise RecordError(f"{path} is JSON, but not a perfscope record (its schema is {schema!r})",
                          "Give a run.json written by perfscope.")
    if schema != SCHEMA:
        raise RecordError(f"{path} was written by a newer perfscope: schema {schema}, this one reads {SCHEMA}",
                          "Update perfscope: pip install -U perfscope")
    kind = data.get("kind", "breakdown")
    found = kinds().get(kind if isinstance(kind, str) else "", None)
    if found is None:
        raise RecordError(f"{path} is the record of a {kind!r}: this perfscope knows {', '.join(kinds())}", "Update perfscope: pip install -U perfscope")
    try:
        return from_dict(found, data)
    except (TypeError, KeyError, ValueError) as e:
        raise RecordError(f"{path} is damaged: {e}", "Records are written whole; this one was changed afterwards.") from None
