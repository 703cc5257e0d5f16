"""What every probe has to keep: silent on a healthy step, fires on its own plant, and its cure takes the plant away.

Used by tests/test_probes.py, benchmarks/detection.py and `perfscope list probes --check`. The subjects are small and healthy:
channels_last, a fused optimizer, batches that are loaded already, sizes that are multiples of 8, mixed precision where
the processor has it, a heap that keeps what a step frees. A probe names its subject with SUBJECT ("conv" unless said otherwise).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

from perfscope import probing
from perfscope.measure import heap, machine
from perfscope.probe import Evidence
from perfscope.workload import Workload, step
from perfscope.workload.data import image_batch, token_batch

BATCH = 8
WIDTH, SIDE, CLASSES = 16, 16, 16
CONTEXT, VOCABULARY, HEADS = 16, 64, 2


class Conv(nn.Module):
    """Two blocks of convolution, batch norm and ReLU, a pool, a linear head: (n, 8, side, side) -> (n, 16)."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Transformer(nn.Module):
    """One pre-norm block on tokens (n, 16) -> (n, 16, 64)."""

    def __init__(self, dim=32):
        super().__init__()
        self.embedding, self.norm1, self.norm2 = nn.Embedding(VOCABULARY, dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down, self.head = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim), nn.Linear(dim, VOCABULARY)

    def forward(self, tokens):
        x = self.embedding(tokens)
        n, t, d = x.shape
        q, k, v = (y.view(n, t, HEADS, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, d))
        return self.head(x + self.down(F.gelu(self.up(self.norm2(x)))))


def token_loss(output, target):
    """Cross entropy over all tokens."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def low_precision() -> str:
    """"amp-bfloat16" where this processor multiplies bfloat16 in hardware, else "float32"."""
    sets = machine.cpu()["instruction_sets"]
    return "amp-bfloat16" if {"avx512_bf16", "amx_bf16", "bf16"} & set(sets) else "float32"


def subject(name: str, size: int = 0, seed: int = 0) -> Workload:
    """The healthy workload of this name: "conv" (`size`: its channels), "transformer" (its embedding)."""
    torch.manual_seed(seed)
    adam = partial(torch.optim.AdamW, lr=1e-3, fused=True)
    common = dict(dtype=low_precision(), contexts=(heap.kept,))
    if name == "conv":
        return Workload(Conv(size or WIDTH), nn.CrossEntropyLoss(), adam, image_batch((8, SIDE, SIDE), CLASSES), name="conv", **common,
                        memory_format="channels_last", input_shape=(8, SIDE, SIDE), classes=CLASSES)
    if name == "transformer":
        return Workload(Transformer(size or 32), token_loss, adam, token_batch(CONTEXT, VOCABULARY), name="transformer", **common,
                        input_shape=(CONTEXT,), classes=VOCABULARY)
    raise ValueError(f"there is no subject {name!r}")


SUBJECTS = ("conv", "transformer")


def subject_of(module: ModuleType) -> Workload:
    """The healthy workload that a probe is tried on."""
    return subject(getattr(module, "SUBJECT", "conv"))


def healthy_of(module: ModuleType) -> Workload:
    """What the cured plant of this probe has to be as fast as: the subject, with all that the plant adds to it but the disease."""
    return getattr(module, "healthy", lambda w: w)(subject_of(module))


def evidence_of(workload: Workload, batch: int = BATCH) -> Evidence:
    """Evidence of a workload on this CPU."""
    from perfscope.evidence import gather
    prepared = step.prepare(workload, device="cpu", keep_original=True)
    return gather(prepared, step.load_batches(prepared, batch))


def plantable(module: ModuleType) -> bool:
    """Whether the disease can be had on a CPU."""
    return hasattr(module, "plant") and "cpu" in getattr(module, "DEVICES", ("cpu", "cuda"))


@dataclass(frozen=True)
class Kept:
    """What came of the contract of one probe: what is wrong, in words; and what fired on its plant."""

    wrong: tuple[str, ...] = ()
    fired: dict[str, tuple[str, ...]] = field(default_factory=dict)      # case -> the probes that fired


def ill_cases(name: str, module: ModuleType) -> dict[str, Evidence]:
    """Case -> evidence with the disease of this probe: planted on a CPU, or made by hand."""
    cases = {}
    if plantable(module):
        cases["planted"] = evidence_of(module.plant(subject_of(module)))
    if hasattr(module, "examples"):
        cases["example"] = module.examples()[0]
    return cases


def check(name: str, module: ModuleType, everyone: dict[str, ModuleType]) -> Kept:
    """Holds one probe to the contract, with all the others as witnesses."""
    wrong, fired = list(probing.problems(module)), {}
    also = set(getattr(module, "ALSO", ()))
    for case, evidence in ill_cases(name, module).items():
        seen, failed = _fired(everyone, evidence)
        fired[case] = tuple(seen)
        wrong += [f"{n} failed on its {case} case: {why}" for n, why in failed.items()]
        wrong += [f"silent on its own {case} case"] if name not in seen else []
        wrong += [f"{n} fires on its {case} case too: {saw}" for n, saw in seen.items() if n != name and n not in also]
    if hasattr(module, "healthy"):
        seen, failed = _fired(everyone, evidence_of(healthy_of(module)))
        wrong += [f"{n} fires on its healthy counterpart: {saw}" for n, saw in seen.items()]
        wrong += [f"{n} failed on its healthy counterpart: {why}" for n, why in failed.items()]
    if hasattr(module, "examples"):
        seen, _ = _fired({name: module}, module.examples()[1])
        wrong += [f"fires on its healthy example: {saw}" for saw in seen.values()]
    for label, cure in probing.cures(module).items():
        if plantable(module) and not probing.costly(module, label):
            cured = cure(module.plant(subject_of(module)))
            seen, failed = _fired({name: module}, evidence_of(cured))
            wrong += [f"still fires after its cure {label}".rstrip() + f": {saw}" for saw in seen.values()]
            wrong += [f"fails after its cure: {w}" for w in failed.values()]
    return Kept(tuple(wrong), fired)


def _fired(everyone: dict[str, ModuleType], evidence: Evidence) -> tuple[dict[str, str], dict[str, str]]:
    """Probe -> what it saw first, of those that fired; and probe -> its error."""
    findings, failed, _ = probing.detect(everyone, evidence)
    return {f.probe: f.places[0].saw if f.places else f.text for f in reversed(findings)}, failed
