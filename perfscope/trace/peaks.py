"""What data sheets promise: arithmetic by input type and memory bandwidth of the GPUs whose names are known. FLOP/s and bytes/s, dense."""

from __future__ import annotations

import re
from dataclasses import dataclass

# NVIDIA data sheets: V100 (2020), A100 (2021), H100 SXM (2023); AMD data sheet: MI300X (2023). Dense; float32 is TF32 where there is one.
# name -> TFLOP/s of float16 and bfloat16, of float32, of 8-bit floats, of float64; GB/s. None: not on the sheet
_SHEETS = (
    (r"V100", 125, 15.7, None, 7.8, 900),
    (r"A100.*80GB", 312, 156, None, 19.5, 2039),
    (r"A100", 312, 156, None, 19.5, 1555),
    (r"H100.*HBM3|H100.*SXM", 989.4, 494.7, 1978.9, 67, 3352),
    (r"MI300X", 1307.4, 653.7, 2614.9, 163.4, 5300),
)
_KINDS = {"c10::Half": 0, "c10::BFloat16": 0, "float": 1, "c10::Float8_e4m3fn": 2, "c10::Float8_e5m2": 2, "double": 3}


@dataclass(frozen=True)
class Peak:
    """FLOP/s by the profiler's name of a type, and bytes/s."""

    flop_per_s: dict[str, float]
    bytes_per_s: float


def peak(device: str) -> Peak | None:
    """What the data sheet of the GPU of this name says, None for one that is not listed."""
    for pattern, *rates, bandwidth in _SHEETS:
        if re.search(pattern, device):
            known = {t: rates[i] * 1e12 for t, i in _KINDS.items() if rates[i]}
            if "V100" in pattern:
                del known["c10::BFloat16"]  # it has none
            return Peak(known, bandwidth * 1e9)
    return None
