"""Options that mean the same in every command, as types for typer. No torch."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

Model = Annotated[str, typer.Option(help="Built-in name, package.module:function, path/file.py:function, timm:NAME, torchvision:NAME or hf:NAME.")]
Batch = Annotated[str, typer.Option("--batch", help="Batch sizes, e.g. 128,256,512. Default: sizes that fit the device.")]
Dtype = Annotated[str, typer.Option(help="float32, half (model.half(), norms included), bfloat16, amp-half or amp-bfloat16.")]
MemoryFormat = Annotated[str, typer.Option("--memory-format", help="contiguous or channels_last.")]
Compile = Annotated[str, typer.Option(help="off, default, reduce-overhead or max-autotune.")]
CudaGraph = Annotated[bool, typer.Option("--cuda-graph", help="Capture each variant's step in a CUDA graph.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[Optional[str], typer.Option(help="Half-width that every interval must reach, e.g. 0.5%. Exit code 4 if it was not.")]
Budget = Annotated[str, typer.Option(help="Time for measuring, e.g. 60s or 5m.")]
Order = Annotated[str, typer.Option(help="Parts in the order in which the ladder adds them, e.g. activation,norm.")]
Parts = Annotated[str, typer.Option(help="Only these parts; may name residual, pooling, embedding and loss, which the base keeps otherwise.")]
Attribution = Annotated[str, typer.Option(help="auto, ladder, brackets or shapley.")]
Input = Annotated[str, typer.Option("--input", help="Input of a bare model without the batch, e.g. 3x224x224.")]
Classes = Annotated[int, typer.Option(help="Classes of a bare model.")]
Seed = Annotated[int, typer.Option(help="Seed of the data and of the random orders.")]
Out = Annotated[str, typer.Option(help="Folder for run.json and report.html. Default: runs/ID.")]
SecondOpinion = Annotated[bool, typer.Option("--second-opinion", help="Afterwards record a trace in a process of its own, and compare the parts with it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON instead of the table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]

# ---------------------------------------------------------------- diagnose and fix

Size = Annotated[str, typer.Option("--batch", help="One batch size. Default: up to 512 on a GPU, on a CPU one with a step of about 0.1 s.")]
Only = Annotated[str, typer.Option(help="Ask only these probes, e.g. conv_not_channels_last,optimizer_not_fused.")]
Suppress = Annotated[str, typer.Option(help="Do not ask these probes.")]
Probes = Annotated[Optional[list[str]], typer.Option("--probes", metavar="DIR", help="A folder with probes of your own; may be given again.")]
Baseline = Annotated[str, typer.Option(metavar="RUN", help="Findings of this earlier diagnosis (run.json) are known already.")]
NoTrace = Annotated[bool, typer.Option("--no-trace", help="Record no trace: quicker; findings that need one are missing.")]
NoLook = Annotated[bool, typer.Option("--no-look", help="Do not time the cures: findings are ranked by what they might cost.")]


def wanted(model: str, batch: str, dtype: str, memory_format: str, compile: str, cuda_graph: bool, device: str, input: str, classes: int, seed: int):
    """The options of `diagnose` and `fix` as perfscope.options.Options, checked: one batch size, one process. UsageError if wrong."""
    import os

    from perfscope import options
    from perfscope.errors import UsageError

    found = options.check(options.Options(
        model=model, batch_sizes=options.sizes(batch), dtype=dtype, memory_format=memory_format, compile=compile, cuda_graph=cuda_graph,
        device=device, input_shape=options.shape(input) if input else (), classes=classes, seed=seed))
    if len(found.batch_sizes) > 1:
        raise UsageError("this takes one batch size", "For example: --batch 128")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("this measures one process, not the ranks of torchrun",
                         "Start it without torchrun, or record a trace: torchrun ... perfscope trace record")
    return found


def asked(only: str, suppress: str, probes: list[str] | None, baseline: str, no_trace: bool, no_look: bool):
    """Which probes to ask and how, as perfscope.diagnose.Asked. RecordError for a baseline that cannot be read."""
    from perfscope.diagnose import Asked, read_baseline
    from perfscope.options import names

    return Asked(names(only), names(suppress), tuple(probes or ()), read_baseline(baseline) if baseline else (), not no_trace, not no_look)


def again(verb: str, found, asked_for) -> str:
    """What to type for `perfscope VERB` with the same options and probes."""
    import shlex

    from perfscope.provenance import command

    more = [w for flag, names in (("--only", asked_for.only), ("--suppress", asked_for.suppress)) if names for w in (flag, ",".join(names))]
    return shlex.join([*shlex.split(command(found, verb=verb)), *more, *(w for f in asked_for.folders for w in ("--probes", str(f)))])
