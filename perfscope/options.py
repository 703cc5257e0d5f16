"""What the user asked for, checked: the options that mean the same in every command. Standard library only."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields

from perfscope.errors import UsageError
from perfscope.record import PARTS

DTYPES = ("float32", "half", "bfloat16", "amp-half", "amp-bfloat16")
LAYOUTS = ("contiguous", "channels_last")
COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune")
ATTRIBUTIONS = ("auto", "ladder", "brackets", "shapley")
PRECISION = 0.005       # METHOD 6: half-width of every headline interval, as a share of the step
BUDGET_S = 60.0         # of measuring, over all batch sizes


@dataclass(frozen=True)
class Options:
    """One breakdown's options. `batch_sizes` empty = fit the device; `precision` None = aim for 0.5 %, demand nothing."""

    model: str = "resnet9"
    batch_sizes: tuple[int, ...] = ()
    dtype: str = "float32"
    memory_format: str = "contiguous"
    compile: str = "off"
    cuda_graph: bool = False
    device: str = "auto"
    precision: float | None = None
    budget_s: float = BUDGET_S
    order: tuple[str, ...] = ()                 # parts in the order in which the ladder adds them
    parts: tuple[str, ...] = ()                 # only these; also names the ones that the base keeps otherwise
    attribution: str = "auto"
    input_shape: tuple[int, ...] = ()
    classes: int = 0
    seed: int = 0
    second_opinion: bool = False                # afterwards, a trace of the same step in a process of its own

    def as_dict(self) -> dict:
        return asdict(self)


def options_from(data: dict) -> Options:
    """Options from what `as_dict` gave, lists turned back into tuples."""
    known = {f.name for f in fields(Options)}
    return Options(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known})


def check(options: Options) -> Options:
    """The same options, or UsageError naming the one that is wrong, and what is known."""
    for what, value, known in (("dtype", options.dtype, DTYPES), ("memory format", options.memory_format, LAYOUTS),
                               ("compile mode", options.compile, COMPILE_MODES),
                               ("attribution", options.attribution, ATTRIBUTIONS)):
        if value not in known:
            raise UsageError(f"there is no {what} {value!r}", f"Known: {', '.join(known)}")
    for what, names in (("order", options.order), ("parts", options.parts)):
        for name in names:
            if name not in PARTS:
                raise UsageError(f"there is no part {name!r} (--{what})", f"Known: {', '.join(PARTS)}")
        if len(set(names)) != len(names):
            raise UsageError(f"--{what} names a part twice: {', '.join(names)}")
    if any(b < 1 for b in options.batch_sizes):
        raise UsageError("a batch size is at least 1", "For example: --batch 128,256,512")
    if len(set(options.batch_sizes)) != len(options.batch_sizes):
        raise UsageError("--batch names a size twice", "For example: --batch 128,256,512")
    if options.classes < 0:
        raise UsageError("--classes is at least 1", "For example: --classes 1000")
    if any(n < 1 for n in options.input_shape):
        raise UsageError("every side of --input is at least 1", "For example: --input 3x224x224 (without the batch)")
    if not 0 <= options.seed < 2 ** 63:
        raise UsageError("--seed is a number from 0 to 2^63 - 1", "For example: --seed 1")
    if not options.budget_s > 0:
        raise UsageError("--budget is a time above zero", "For example: --budget 60s or --budget 5m")
    if options.precision is not None and not 0 < options.precision < 1:
        raise UsageError("--precision is a share of the step between 0 % and 100 %", "For example: --precision 0.5%")
    return options


def seconds(text: str) -> float:
    """"60s", "5m", "1.5h" or "90" in seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|min|h)?\s*", text, re.ASCII)
    if not match:
        raise UsageError(f"{text!r} is not a time", "For example: 60s, 5m or 1h")
    return float(match[1]) * {"ms": 1e-3, None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]


def share(text: str) -> float:
    """"0.5%" or "0.005" as a fraction of 1."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%)?\s*", text, re.ASCII)
    if not match:
        raise UsageError(f"{text!r} is not a share", "For example: 0.5% or 0.005")
    return float(match[1]) / (100 if match[2] else 1)


def sizes(text: str) -> tuple[int, ...]:
    """"128,256,512" as numbers."""
    if not re.fullmatch(r"\s*(\d{1,18}(\s*,\s*\d{1,18})*)?\s*", text, re.ASCII):
        raise UsageError(f"{text!r} is not a list of batch sizes", "For example: --batch 128,256,512")
    return tuple(int(x) for x in text.split(",") if x.strip())


def shape(text: str) -> tuple[int, ...]:
    """"3x224x224" as numbers."""
    if not re.fullmatch(r"\d{1,18}(x\d{1,18})*", text, re.ASCII):
        raise UsageError(f"{text!r} is not an input shape", "For example: --input 3x224x224 (without the batch)")
    return tuple(int(x) for x in text.split("x"))


def names(text: str) -> tuple[str, ...]:
    """"norm,activation" as names."""
    return tuple(x.strip() for x in text.split(",") if x.strip())
