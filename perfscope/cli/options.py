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
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON instead of the table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
