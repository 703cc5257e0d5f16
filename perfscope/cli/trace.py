"""perfscope trace: record a profiler trace, analyse one, compare two, open them in TensorBoard or Perfetto."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from perfscope.cli import options as o
from perfscope.errors import EXIT_ENVIRONMENT, EXIT_OK, EXIT_UNSURE, EnvironmentError_, UsageError

application = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Record a profiler trace, analyse any PyTorch trace, compare two, open them in a browser.",
)

BatchSize = Annotated[str, typer.Option("--batch", help="One batch size. Default: 256 on a GPU, 16 on a CPU.")]
Steps = Annotated[int, typer.Option(help="Steps to record.")]
Warmup = Annotated[int, typer.Option(help="Steps before those, with the profiler on.")]
Shapes = Annotated[bool, typer.Option("--shapes", help="Shapes, strides and dtypes of every operator.")]
Stacks = Annotated[bool, typer.Option("--stacks", help="Source lines (Python functions).")]
Modules = Annotated[bool, typer.Option("--modules", help="The module tree; needs the stacks, so records them too.")]
Memory = Annotated[bool, typer.Option("--memory", help="Every allocation.")]
Out = Annotated[str, typer.Option(help="Folder for the trace. Default: runs/ID/trace.")]
Path_ = Annotated[
    str, typer.Argument(metavar="RUN|FILE|DIR", help="A trace (.json, .json.gz), a run.json, or a folder of them.")
]
Trace = Annotated[
    str, typer.Argument(metavar="TRACE", help="A trace, a folder or tar of ranks, or - for standard input.")
]
Port = Annotated[int, typer.Option(help="0: a free one; for Perfetto: 9001, the only one it may read from.")]
Perfetto = Annotated[
    bool, typer.Option("--perfetto", help="Serve the trace to ui.perfetto.dev instead of starting TensorBoard.")
]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Print the address only.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="As Markdown.")]
HtmlOut = Annotated[str, typer.Option("--html", metavar="OUT", help="Write a page with the time line of a step.")]
DiffOut = Annotated[str, typer.Option("--html", metavar="OUT", help="Write a page with figures and sortable tables.")]
RankNumber = Annotated[
    int,
    typer.Option(
        "--rank", help="The rank to show. Default: the one the others wait for, else the first.", show_default=False
    ),
]
LimitGb = Annotated[
    float, typer.Option("--limit-gb", help="Refuse a file that unpacks to more. Default: 64 GiB.", show_default=False)
]
Diagnose = Annotated[bool, typer.Option("--diagnose", help="Name its slow paths: asks the probes that can work from a trace.")]
Summary = Annotated[bool, typer.Option("--summary", help="Without operators: half the time and memory.")]


@application.command("record")
def record(
    model: o.Model = "resnet9",
    batch: BatchSize = "",
    dtype: o.Dtype = "float32",
    memory_format: o.MemoryFormat = "contiguous",
    compile: o.Compile = "off",
    cuda_graph: o.CudaGraph = False,
    device: o.Device = "auto",
    steps: Steps = 3,
    warmup: Warmup = 2,
    shapes: Shapes = False,
    stacks: Stacks = False,
    modules: Modules = False,
    memory: Memory = False,
    input: o.Input = "",
    classes: o.Classes = 0,
    seed: o.Seed = 0,
    out: Out = "",
    as_json: Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Record the training step of a model: steps and parts on the time line; one file per rank under torchrun.

    Nothing is timed: a profiled step is slower than a real one. Writes a Chrome trace and a TensorBoard log directory,
    and checks that the trace has what was asked for: exit code 4 if not.
    """
    from perfscope import options

    wanted = options.check(
        options.Options(
            model=model,
            batch_sizes=options.sizes(batch),
            dtype=dtype,
            memory_format=memory_format,
            compile=compile,
            cuda_graph=cuda_graph,
            device=device,
            input_shape=options.shape(input) if input else (),
            classes=classes,
            seed=seed,
        )
    )
    if len(wanted.batch_sizes) > 1:
        raise UsageError("a trace is of one batch size", "For example: --batch 128")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is loaded: its progress is not the user's
    from perfscope.breakdown import new_id
    from perfscope.measure.ranks import leave, world
    from perfscope.trace.record import record_model

    rank, size = world()
    folder = Path(out) if out else Path("runs") / (new_id(model) if size == 1 else _shared_id(model)) / "trace"
    say = (lambda text: None) if quiet or rank else (lambda text: print(f"perfscope: {text}", file=sys.stderr))
    recorder = record_model(
        wanted,
        folder,
        steps=steps,
        warmup=warmup,
        stage=say,
        shapes=shapes,
        stacks=stacks,
        modules=modules,
        memory=memory,
    )
    leave()
    for p in recorder.problems:
        print(
            f"perfscope: {f'rank {rank}: ' if size > 1 else ''}{p.text}" + (f"\n  -> {p.hint}" if p.hint else ""),
            file=sys.stderr,
        )
    if rank == 0:
        _say(recorder, folder, as_json)
    return EXIT_UNSURE if recorder.problems else EXIT_OK


def _shared_id(model: str) -> str:
    """A folder name that all ranks of one torchrun agree on without talking: its run id."""
    from perfscope.breakdown import new_id

    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return (
        new_id(model)
        if job == "none" and "MASTER_PORT" not in os.environ
        else f"{job}-{os.environ.get('MASTER_PORT', '0')}_{new_id(model).split('_', 1)[1]}"
    )


def _say(recorder, folder: Path, as_json: bool) -> None:
    found = recorder.found
    if as_json:
        print(
            json.dumps(
                {
                    "files": [str(f) for f in recorder.files],
                    "steps": len(found.steps) if found else 0,
                    "parts": found.parts if found else {},
                    "counts": found.counts if found else {},
                    "problems": [p.code for p in recorder.problems],
                },
                indent=1,
            )
        )
    elif found:
        kernels = f", {found.counts['kernels']} kernels" if found.counts["kernels"] else ", no GPU"
        print(f"{recorder.files[0]}: {len(found.steps)} steps, {found.counts['ops']} operators{kernels}")
        print(f"parts: {', '.join(f'{k} {n}x' for k, n in found.parts.items()) or 'none marked'}")
        print(f"perfscope trace view {shlex.quote(str(folder))}")


@application.command("view")
def view(
    path: Path_, port: Port = 0, perfetto: Perfetto = False, no_browser: NoBrowser = False, quiet: o.Quiet = False
) -> int:
    """Open runs and traces in TensorBoard, or a trace in Perfetto, on this machine only. Ends on Ctrl-C.

    TensorBoard shows perfscope's own pages, which need no network, and the PyTorch profiler's, on copies that are
    repaired for it. Its charts come from the web.
    """
    from perfscope.trace import view as viewer

    say = (lambda text: None) if quiet else (lambda text: print(f"perfscope: {text}", file=sys.stderr, flush=True))
    viewer.check_port(port)
    found = viewer.look(path)
    with viewer.until_told() as told:
        if perfetto:
            with viewer.perfetto(found, port) as links:
                print(*links, sep="\n", flush=True)
                if port not in (0, viewer.PERFETTO_PORT):
                    say(
                        f"ui.perfetto.dev may only read from port {viewer.PERFETTO_PORT}; on {port} it works with your own copy of it"
                    )
                say("Ctrl-C ends it")
                _show(links[0], no_browser or len(links) > 1)
                told.wait()
            return EXIT_OK
        with viewer.tensorboard(found, port, say) as (url, child):
            url += "#perfscope"
            print(url, flush=True)
            say("Ctrl-C ends it")
            _show(url, no_browser)
            while not told.wait(0.5):
                if child.poll() is not None:
                    print(f"perfscope: TensorBoard stopped by itself (exit code {child.returncode})", file=sys.stderr)
                    return EXIT_ENVIRONMENT
    return EXIT_OK


def _show(url: str, no_browser: bool) -> None:
    """Opens a browser where there is a screen to open it on; a text browser would take the terminal."""
    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not no_browser and screen and sys.stdout.isatty():
        import webbrowser

        webbrowser.open(url)


@application.command("analyze")
def analyze(
    trace: Trace,
    as_json: Json = False,
    as_markdown: Markdown = False,
    html: HtmlOut = "",
    rank: RankNumber = -1,
    limit_gb: LimitGb = 0.0,
    summary: Summary = False,
    diagnose: Diagnose = False,
) -> int:
    """Analyse any PyTorch trace exactly: steps, busy and idle time, kernels, operators, input, copies, launches, ranks."""
    from perfscope.record import to_dict
    from perfscope.trace.analysis import analyze_files
    from perfscope.trace.blocks import blocks
    from perfscope.trace.text import sources
    from perfscope.trace.typical import chosen

    if as_json and as_markdown:
        raise UsageError("--json and --markdown exclude each other", "Give one of them.")
    if limit_gb < 0:
        raise UsageError(f"a limit of {limit_gb} GB", "Give a positive number, or 0 for the built-in one.")
    detail, limit = "summary" if summary else "full", int(limit_gb * 1e9) or None
    if html and sources(trace)[0].path == "-":
        raise UsageError("the page needs the trace twice, and standard input can be read once", "Give the file itself.")
    with _pool(trace) as pool:
        found = analyze_files(trace, detail, limit, pool)
    try:
        one = chosen(found, rank if rank >= 0 else None)
    except KeyError:
        raise UsageError(
            f"the trace has no rank {rank}", f"It has: {', '.join(str(r.rank) for r in found.ranks)}."
        ) from None
    if html:
        from perfscope.trace.page import write

        print(f"perfscope: {write(trace, html, found, one, limit)}", file=sys.stderr)
    seen = _diagnosed(found, rank) if diagnose else None
    code = EXIT_UNSURE if seen and seen.failed else EXIT_OK
    if as_json:
        json.dump(to_dict(found) | (seen.json if seen else {}), sys.stdout, indent=1, allow_nan=False)
        print()
        return code
    from perfscope.trace import show

    name = "standard input" if trace == "-" else Path(trace).resolve().name
    made = blocks(found, one) + (seen.blocks if seen else [])
    sys.stdout.write(
        show.markdown(made, name)
        if as_markdown
        else show.terminal(made, "" if trace == "-" else f"perfscope trace view {shlex.quote(trace)}")
    )
    return code


def _diagnosed(analysis, rank: int):
    """What --diagnose adds; torch is only needed for it."""
    try:
        from perfscope.trace.diagnose import diagnose
    except ImportError as e:
        raise EnvironmentError_(f"--diagnose needs PyTorch: {e}", "Leave it out, or install torch.") from None
    return diagnose(analysis, rank if rank >= 0 else None)


def _pool(trace: str):
    """Processes for many ranks; nothing for one, or on one CPU."""
    from contextlib import nullcontext

    from perfscope.trace.text import sources

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cpus, len(sources(trace)))
    if workers < 2:
        return nullcontext()
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(workers)


@application.command("diff")
def diff(
    a: Trace,
    b: Trace,
    as_json: Json = False,
    as_markdown: Markdown = False,
    html: DiffOut = "",
    rank: RankNumber = -1,
) -> int:
    """Compare two traces: what got slower, faster, new or gone in A against B, in sums that add up to the difference of the step."""
    from perfscope.record import to_dict
    from perfscope.trace import show
    from perfscope.trace.diff import diff as compare
    from perfscope.trace.diff_blocks import blocks

    if as_json and as_markdown:
        raise UsageError("--json and --markdown exclude each other", "Give one of them.")
    found = compare(a, b, rank if rank >= 0 else None)
    if html:
        from perfscope.trace.diff_page import write

        print(f"perfscope: {write(found, html)}", file=sys.stderr)
    if as_json:
        json.dump(to_dict(found), sys.stdout, indent=1, allow_nan=False)
        print()
    else:
        sys.stdout.write(show.markdown(blocks(found)) if as_markdown else show.terminal(blocks(found)))
    return EXIT_OK
