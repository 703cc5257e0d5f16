"""The whole data set fits on the GPU, and yet its batches are made on the CPU and copied over.

## What it sees
A DataLoader over a TensorDataset whose tensors take less than a fifth of the GPU's free memory, while loading takes at
least 5 % of the step.

## Why it is slow
Python picks samples one by one, puts them together and copies them over, every step, what a single indexing kernel does on the
device in microseconds.

## Cure
Put the tensors on the device once and cut the batches there, in the order of the same sampler; augment there too.

## Not for
Data sets that grow, transforms that only exist on the CPU, memory that a larger batch needs more.

## References
SLOW_PATHS S47; Myrtle, "How to train your ResNet 4" (2018): the data set on the GPU.
"""

from perfscope.probe import Config, Evidence, Finding, Place, replace
from perfscope.sections import percent
from perfscope.workload import feed

USES = ("config",)
DEVICES = ("cuda",)
CODE = "images, labels = images.to(device), labels.to(device)     # once; then images[index], labels[index] per batch"
OF_FREE, SHARE = 0.20, 0.05     # of the free memory, of the step: SLOW_PATHS S47


def detect(evidence):
    c = evidence.config
    size, free = c.loader.get("dataset_bytes"), c.memory.get("free", 0)
    if not size or c.loader.get("device") != "cpu" or size >= OF_FREE * free or not c.step_s:
        return
    t = evidence.trace
    if t is not None and t.steps:
        moved = sum(row.total_ns for row in t.copies if row.kind.startswith("HtoD"))
        share = (moved + sum(s.loader_exposed_ns for s in t.steps)) / sum(s.duration_ns for s in t.steps)
    else:
        share = c.loader.get("batch_s", 0.0) / c.step_s if c.loader.get("in_process") else 0.0
    if share < SHARE:
        return
    yield Finding("", f"the data set ({size / 1e6:.0f} MB) fits on the GPU ({free / 1e9:.1f} GB free), and making its batches on the CPU takes "
                  f"{percent(share, 3)} of the step",
                  (Place("data", f"{c.loader.get('samples')} samples in a {c.loader.get('dataset')}, {c.loader.get('workers')} workers"),),
                  "keep the data set on the device and cut the batches there", share=min(share, 1.0), basis="ceiling",
                  evidence={"dataset_bytes": size, "free_bytes": free})


def fix(workload):
    return replace(workload, data=feed.resident(workload.data, "cuda"))


def examples():
    """CIFAR-10 as float32 tensors behind a DataLoader without workers, on a GPU; and with the tensors on the device."""
    facts = {"in_process": True, "batch_s": 0.011, "batch_bytes": 6_295_552, "pinned": True, "device": "cpu", "workers": 0, "pin_memory": True,
             "persistent": False, "prefetch": None, "dataset": "TensorDataset", "samples": 50_000, "dataset_bytes": 614_800_000}
    ill = Config(device="cuda", torch="2.13", step_s=0.025, batch_size=512, loader=facts, memory={"total": 80 << 30, "free": 70 << 30})
    healthy = replace(ill, loader={**facts, "device": "cuda", "batch_s": 0.0002}, step_s=0.014)
    return Evidence(ill), Evidence(healthy)


ALSO = ("loading_in_step",)     # a data set whose batches are made in the training process is loaded in the step
