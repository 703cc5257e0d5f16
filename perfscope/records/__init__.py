"""Kinds of records besides the breakdown: one file each, see perfscope.record.kinds. Standard library only."""

from __future__ import annotations


def workload_headline(run) -> list[str]:
    """The pieces of the first line of a record about one workload at one batch size: name, how it is run, batch, machine, torch."""
    w = run.workload
    how = [w.dtype, w.memory_format, *([f"compile {w.compile}"] if w.compile != "off" else []), *(["CUDA graph"] if w.cuda_graph else [])]
    return [w.name or run.id, ", ".join(how), f"batch {run.batch_size}", run.environment.device_name, f"torch {run.environment.software.get('torch', '?')}"]
