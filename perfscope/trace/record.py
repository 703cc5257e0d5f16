"""Records a trace of a training loop, or of a model by name: steps, parts, kernels; checked for what was asked.

    with perfscope.trace.record("runs/mine", model=model, shapes=True) as step:
        for inputs, target in loader:
            train(inputs, target)
            step()
    print(step.files, step.problems)

`out` gets one Chrome trace per rank (`rank_0.trace.json.gz`: for `perfscope trace analyze`, Perfetto, chrome://tracing) and
a TensorBoard log directory (`tensorboard/rank_0.<time>.pt.trace.json.gz`, repaired for the old plugin, see
perfscope.trace.tb). The parts of a breakdown carry its names on the time line ("perfscope:norm"): norm, activation,
attention, dropout, pooling, embedding, loss, optimizer, data; and the phases forward and backward. A profiled step is
slower than a real one: nothing that is timed here is a measurement of the step, only of what happened within it.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator

from perfscope.errors import EnvironmentError_, PerfscopeError, UsageError
from perfscope.record import Warned
from perfscope.trace import tb

STEPS, WARMUP = 3, 2  # active and warm-up steps: the profiler's own start costs the first ones
BATCH = {"cpu": 16, "cuda": 256}  # of a model by name, if none was given
PHASES = {"backward": "backward"}  # torch functions that are no part, but a phase


@dataclass
class Recorder:
    """Call it at the end of every iteration. Afterwards: `files`, `found` (a Survey of this rank's trace), `problems`; of a model
    by name also `batch_size`."""

    step: Callable[[], Any]
    rank: int = 0
    batch_size: int = 0
    calls: int = 0
    files: list[Path] = field(default_factory=list)
    found: tb.Survey | None = None
    problems: list[Warned] = field(default_factory=list)

    def __call__(self) -> None:
        self.calls += 1
        self.step()


@contextlib.contextmanager
def part(name: str):
    """A part or phase on the time line: a `record_function` named "perfscope:<name>"."""
    import torch

    with torch.profiler.record_function(tb.PREFIX + name):
        yield


@contextlib.contextmanager
def record(
    out,
    *,
    steps: int = STEPS,
    warmup: int = WARMUP,
    shapes: bool = False,
    stacks: bool = False,
    modules: bool = False,
    memory: bool = False,
    model=None,
    optimizer=None,
    rank: int | None = None,
) -> Iterator[Recorder]:
    """Profiles the caller's own loop: `warmup` iterations, then `steps` that are recorded; more are run but not recorded.

    shapes: shapes, strides and dtypes of every operator. stacks: source lines. modules: the module tree (needs the
    stacks, so records them too). memory: every allocation. model, optimizer: mark their parts. Raises UsageError for
    wrong numbers, EnvironmentError_ if `out` cannot be written.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile, schedule

    if steps < 1 or warmup < 0:
        raise UsageError(
            "a recording has at least one step, and no negative warm-up", "For example: --steps 3 --warmup 2"
        )
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    folder = _writable(Path(out))
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its progress is not the user's
    recorder = Recorder(step=lambda: None, rank=rank)

    def ready(profiler) -> None:
        target = folder / f"rank_{rank}.trace.json.gz"
        partial = folder / f".rank_{rank}.{os.getpid()}.json.gz"
        try:
            profiler.export_chrome_trace(str(partial))
            os.replace(partial, target)
        except (OSError, RuntimeError) as e:
            raise EnvironmentError_(
                f"cannot write {target}: {e}", "Make room on the disk, or give another folder with --out."
            ) from None
        finally:
            partial.unlink(missing_ok=True)
        recorder.files[:] = [target]

    profiler = profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=warmup, active=steps, repeat=1),
        on_trace_ready=ready,
        record_shapes=shapes,
        with_stack=stacks or modules,
        with_modules=modules,
        profile_memory=memory,
    )
    recorder.step = profiler.step
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Profiler clears events.*")
        warnings.filterwarnings("ignore", message=".*Warmup not needed.*")
        with contextlib.ExitStack() as stack:
            if model is not None:
                stack.enter_context(marked(model, optimizer))
            stack.enter_context(profiler)
            yield recorder
    finish(
        recorder,
        folder,
        dict(
            steps=steps,
            run=min(steps, recorder.calls - warmup),
            shapes=shapes,
            stacks=stacks,
            modules=modules,
            memory=memory,
            kernels=cuda and _ran_on_cuda(),
        ),
    )


def _ran_on_cuda() -> bool:
    import torch

    return torch.cuda.is_initialized()


def finish(recorder: Recorder, folder: Path, asked: dict) -> None:
    """Checks the trace for what was asked, and writes the TensorBoard log directory beside it."""
    if not recorder.files:
        recorder.problems.append(
            Warned(
                "no-trace",
                "nothing was recorded: the loop ended before the warm-up was over",
                "Call step() after every iteration, for more of them, or give a smaller warm-up.",
            )
        )
        return
    recorder.found = tb.survey(recorder.files[0])
    recorder.problems += missing(recorder.found, asked)
    target = folder / "tensorboard" / f"rank_{recorder.rank}.{time.time_ns()}.pt.trace.json.gz"
    for old in target.parent.glob(f"rank_{recorder.rank}.*.pt.trace.json.gz"):  # of an earlier recording in this folder
        if tb.mark_of(old):
            old.unlink()
    tb.repair(recorder.files[0], target, recorder.found)
    recorder.files.append(target)


def missing(found: tb.Survey, asked: dict) -> list[Warned]:
    """What was asked for and is not in the trace."""
    out, c = [], found.counts
    there = min(len(found.steps), asked["run"])  # the profiler opens one more step, which stays empty
    if there < asked["steps"]:
        out.append(
            Warned(
                "few-steps",
                f"{there} of {asked['steps']} steps are in the trace: the loop ended too early",
                "Run more iterations (warm-up + steps), and call step() after each.",
            )
        )
    if asked["kernels"] and not c["kernels"]:
        out.append(
            Warned(
                "no-kernels",
                "no GPU kernel is in the trace, though CUDA was used: CUPTI could not record",
                "Another profiler may hold the GPU (Nsight, DCGM), or counters are restricted: see ERR_NVGPUCTRPERM.",
            )
        )
    for name, what in (
        ("shapes", "no operator has shapes"),
        ("stacks", "no source lines were recorded"),
        ("modules", "no module is in the trace"),
        ("memory", "no allocation was recorded"),
    ):
        if asked[name] and not c[name]:
            out.append(
                Warned(f"no-{name}", f"--{name} was asked for, but {what}", "Report this with the torch version.")
            )
    if found.damage.events or found.damage.why:
        out.append(
            Warned(
                "damaged",
                f"PyTorch wrote a trace that is not valid JSON: {found.damage.events} events lost ({found.damage.why})",
            )
        )
    return out


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".perfscope-{os.getpid()}"
        trial.write_text("")
        trial.unlink()
    except OSError as e:
        raise EnvironmentError_(
            f"cannot write to {folder}: {e.strerror or e}", "Give another folder with --out."
        ) from None
    return folder


# ---------------------------------------------------------------- parts on the time line


def functions() -> dict[str, str]:
    """Name of a torch function -> its part, as perfscope.workload.parts takes them apart; and the phases."""
    from perfscope.workload import parts

    table = {}
    for name, group in (
        ("norm", parts.NORM),
        ("activation", parts.ACTIVATION + parts.IN_PLACE_ACTIVATION),
        ("dropout", parts.DROPOUT),
        ("attention", ("scaled_dot_product_attention", "multi_head_attention_forward", "softmax")),
        ("pooling", parts.POOLING),
        ("embedding", ("embedding",)),
    ):
        table |= dict.fromkeys(group, name)
    return table | {"silu": "activation", "logsigmoid": "activation"} | PHASES


@contextlib.contextmanager
def marked(model, optimizer=None):
    """While entered, the parts of `model` and `optimizer` are on the time line; nothing that they compute changes.

    Calls of torch functions are seen by a TorchFunctionMode, modules that somebody wrote by hand (named like a norm, an
    activation or a dropout) by hooks. A compiled model is left alone: its parts are fused, and marks would break its graph.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    from perfscope.workload import parts

    table, opened, handles = functions(), [], []

    class Marks(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            name = table.get(getattr(function, "__name__", ""))
            if name is None or name in (n for n, _, _ in opened):
                return function(*args, **(kwargs or {}))
            with torch.profiler.record_function(tb.PREFIX + name):
                return function(*args, **(kwargs or {}))

    def before(name):
        def hook(owner, *_):
            mark = torch.profiler.record_function(tb.PREFIX + name)
            mark.__enter__()
            opened.append((name, owner, mark))

        return hook

    def after(owner, *_):
        if opened and opened[-1][1] is owner:
            opened.pop()[2].__exit__(None, None, None)

    def bracket(module, name):
        handles.extend(
            [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after, always_call=True)]
        )

    compiled = any(type(m).__name__ == "OptimizedModule" for m in model.modules())
    if not compiled:
        bracket(model, "forward")
        inner = getattr(model, "module", model)
        for name, module in parts.candidates(inner).values():
            bracket(module, name)
    if optimizer is not None:
        handles.extend(
            [optimizer.register_step_pre_hook(before("optimizer")), optimizer.register_step_post_hook(after)]
        )
    try:
        with contextlib.nullcontext() if compiled else Marks():
            yield
    finally:
        for handle in handles:
            handle.remove()
        while opened:
            opened.pop()[2].__exit__(None, None, None)


# ---------------------------------------------------------------- a model by name


def record_model(
    options,
    out,
    *,
    steps=STEPS,
    warmup=WARMUP,
    stage: Callable[[str], None] = lambda text: None,
    default_batch: Callable[[Any], int] = lambda prepared: BATCH[prepared.device.type],
    **wanted,
) -> Recorder:
    """Records the training step of a model by name; `options`: perfscope.options.Options with at most one batch size.

    default_batch(prepared) gives the batch size if there is none.

    Under torchrun every rank writes its own file, with DDP. The step is that of a breakdown, every part in.
    """
    from dataclasses import replace

    from perfscope import variants
    from perfscope.measure.ranks import join
    from perfscope.workload import step
    from perfscope.workload.resolve import resolve

    device = step.check_device(options.device)
    ranks = join(device.type)
    device = step.check_device(options.device)
    stage(f"building {options.model}")
    workload = resolve(options.model, options.input_shape, options.classes)

    def within(name, function):
        def inside(*args):
            with part(name):
                return function(*args)

        return function and inside

    after = {n: within("optimizer", getattr(workload, n)) for n in ("clip", "after_step")}  # as in a breakdown
    prepared = step.prepare(
        step.with_options(replace(workload, loss=within("loss", workload.loss), **after), options),
        device=device,
        keep_original=False,
        world_size=ranks.size,
        seed=options.seed,
    )
    size = options.batch_sizes[0] if options.batch_sizes else default_batch(prepared)
    batches = step.load_batches(prepared, size)
    order = variants.ladder_order(step.present_parts(prepared, batches), ())
    variant = step.build(prepared, batches, order, order)

    def run():
        inputs, target = batches.inputs, batches.target
        if batches.pipeline is not None:
            with part("data"):
                inputs, target = next(batches.pipeline)
                inputs, target = step.convert(inputs, prepared, True), step.convert(target, prepared, True)
        compute(inputs, target)

    with variant:
        compute = variant.compute
        if prepared.cuda_graph:
            captured = step.capture(variant, prepared, batches)
            compute, batches = (lambda inputs, target: captured()), batches
        stage(f"recording {steps} steps of batch {size} after {warmup} to warm up")
        visible = None if prepared.compile != "off" or prepared.cuda_graph else prepared.distributed or prepared.model
        with record(
            out, steps=steps, warmup=warmup, model=visible, optimizer=prepared.optimizer, rank=ranks.rank, **wanted
        ) as recorder:
            for _ in range(warmup + steps):
                run()
                recorder()
    recorder.batch_size = size
    return recorder


# ---------------------------------------------------------------- elsewhere

def record_elsewhere(process, options, out, *, steps: int, warmup: int, shapes: bool) -> tuple[str | None, int, list[Warned]]:
    """(the file, its batch size, what to say if there is no file): `record_model` in a process that was started for it
    (elsewhere.started("perfscope.trace.record")). Without a batch size it is that of a diagnosis."""
    request = {"options": options.as_dict(), "out": str(out), "steps": steps, "warmup": warmup, "shapes": shapes}
    try:
        answer = process.ask(request, "recording a trace")
    except PerfscopeError as e:
        why = (e.detail.strip().splitlines() or [""])[-1]
        return None, 0, [Warned("no-trace", f"no trace could be recorded: {e.message} {why}".rstrip(), "Findings that need one are missing.")]
    return answer["file"], answer["batch_size"], []


def answer(request: dict) -> dict:
    """What the process of its own does."""
    from perfscope.options import options_from
    from perfscope.workload.fit import one_size

    wanted = {n: request[n] for n in ("steps", "warmup", "shapes")}
    recorder = record_model(options_from(request["options"]), request["out"], default_batch=one_size, **wanted)
    return {"file": str(recorder.files[0]), "batch_size": recorder.batch_size}


if __name__ == "__main__":
    from perfscope import elsewhere

    elsewhere.serve(answer)
