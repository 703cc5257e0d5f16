"""Makes the golden records of the report's tests and the article's example records: python -m tests.records.make

The golden records are synthetic and say so in their names and warnings: scripted costs, seeded noise, drift and spikes.
`derived` and `scaling` come from `attribution.derive`, as in a real run.
The article's two records are published figures.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from perfscope.measure.attribution import derive
from perfscope.measure.stats import Interval
from perfscope.record import (
    PARTS,
    BatchResult,
    Ceilings,
    Derived,
    Environment,
    Guard,
    Inspection,
    Layer,
    Part,
    Provenance,
    Round,
    Run,
    SecondOpinion,
    Variant,
    WarmUp,
    Warned,
    WorkloadInfo,
    save,
    variant_name,
)
from perfscope.second_opinion import disagreement
from tests.records import cures

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "perfscope" / "examples"
METHOD = {
    "version": 1,
    "rounds_max": 200,
    "rounds_min": 20,
    "look_every": 10,
    "target_half_width": 0.005,
    "confidence": 0.95,
    "clean_spreads": 6.0,
}
HOSTILE = "<script>alert(1)</script>"


def subsets(parts, every: bool) -> list[tuple[str, ...]]:
    """The variants: all 2^p, or ladder and brackets."""
    if every:
        return [c for n in range(len(parts) + 1) for c in combinations(parts, n)]
    ladder = [tuple(parts[:i]) for i in range(len(parts) + 1)]
    return list(dict.fromkeys([*ladder, *((p,) for p in parts), *(tuple(q for q in parts if q != p) for p in parts)]))


def short(x: float) -> float:
    """Six figures: these samples are made up, their records need not be large."""
    return float(f"{x:.6g}")


def batch(
    size: int,
    cost: dict,
    rounds: int,
    rng: random.Random,
    every=False,
    noise=0.004,
    gpu=False,
    hidden=0.0,
    memory=0,
    finish=True,
) -> BatchResult:
    """One batch size: `cost` maps parts to seconds per step; `hidden` seconds of data are overlapped by the rest."""
    parts = [p for p in PARTS if p in cost]
    variants = [Variant(variant_name(s), s) for s in subsets(parts, every)]
    full = variant_name(parts)

    def seconds(v: Variant) -> float:
        t = cost["base"] + sum(cost[p] for p in v.parts)
        return t - (hidden if "data" in v.parts and "norm" in v.parts else 0.0)

    rows = []
    for r in range(rounds):
        order = [v.name for v in variants]
        rng.shuffle(order)
        level = math.exp(0.01 * math.sin(r / 9) + 0.004 * r / rounds + rng.gauss(0, 0.003))
        spike = {v: (1.35 if rng.random() < 0.006 else 1.0) for v in order}
        step = {
            v.name: short(seconds(v) * level * spike[v.name] * math.exp(rng.gauss(0, noise)))
            for v in sorted(variants, key=lambda v: order.index(v.name))
        }
        more = {}
        if gpu:
            mhz = 1980.0 if r < rounds * 0.7 else 1120.0
            more = {
                "device_s": {v: short(t * 0.997) for v, t in step.items()},
                "busy_s": {v: short(t * 0.78) for v, t in step.items() if v == full},
                "telemetry": {full: {"sm_mhz": mhz, "power_w": 612.0}},
            }
        rows.append(
            Round(
                tuple(order),
                step,
                canary_s={
                    "matmul": 0.0107 * level * math.exp(rng.gauss(0, 0.002)),
                    "copy": 0.0031 * level * math.exp(rng.gauss(0, 0.004)),
                },
                **more,
            )
        )
    timed = sum(sum(r.step_s.values()) for r in rows)
    names = [v.name for v in variants]
    return BatchResult(
        size,
        status="ok" if finish else "partial",
        reference=full,
        variants=tuple(variants),
        attribution="shapley" if every else "brackets",
        steps_per_sample=max(1, math.ceil(0.02 / (cost["base"] + 1e-9))),
        lead_in_steps=2 if gpu else 1,
        rounds=tuple(rows),
        warmup={v: WarmUp(6, 6 * cost["base"], rng.gauss(0, 1)) for v in names},
        guards={
            v: Guard(
                loss=2.3 + rng.gauss(0, 0.01),
                activation_std_low=0.41,
                activation_std_high=1.9 + 0.1 * i,
                zero_share=0.18,
                conv_dtypes=("half",) if gpu else ("float32",),
                conv_layouts=("channels_last" if gpu else "contiguous",),
                conv_calls=9,
                rescaled=i % 3,
                overhead_s=2e-5,
                overhead_share=2e-5 / cost["base"] / 10,
            )
            for i, v in enumerate(names)
        },
        peak_memory_bytes={v: int(memory * size * (0.55 + 0.45 * len(v.split("+")) / (1 + len(parts)))) for v in names}
        if memory
        else {},
        telemetry=telemetry(timed, gpu, rng),
        stop=("precision" if rounds < 60 else "budget") if finish else "interrupted",
        own_cost={"wall_s": timed * 1.72, "timed_s": timed, "lead_in_s": timed * 0.4, "warmup_s": timed * 0.1},
    )


def telemetry(seconds: float, gpu: bool, rng: random.Random) -> dict:
    """The columns that the watch records: 10 Hz on a GPU, 1 Hz on a CPU."""
    if not gpu:
        n = max(2, min(60, int(seconds)))
        return {
            "time_s": [float(i) for i in range(n)],
            "own": [0.97 + rng.gauss(0, 0.01) for _ in range(n)],
            "others": [abs(rng.gauss(0.01, 0.01)) for _ in range(n)],
            "steal": [0.0] * n,
            "load": [1.9 + rng.gauss(0, 0.1) for _ in range(n)],
        }
    n = 160
    hot = [i > n * 0.7 for i in range(n)]
    return {
        "time_s": [i / 10 for i in range(n)],
        "sm_mhz": [1120.0 if h else 1980.0 for h in hot],
        "mem_mhz": [3201.0] * n,
        "power_w": [560 + 40 * math.sin(i / 20) - 180 * h + rng.gauss(0, 4) for i, h in enumerate(hot)],
        "temp_c": [min(86.0, 52 + i * 0.32) for i in range(n)],
        "reasons": [64.0 if h else 4.0 for h in hot],
    }


def resnet9_layers(width: int) -> tuple[Layer, ...]:
    """The convolutions of ResNet-9 with the shapes, FLOPs and bytes that they have; `width` is bytes per number."""
    out = []
    for name, ci, co, side in (
        ("prep", 3, 64, 32),
        ("layer1.conv", 64, 128, 32),
        ("layer1.res.0", 128, 128, 16),
        ("layer1.res.1", 128, 128, 16),
        ("layer2.conv", 128, 256, 16),
        ("layer3.conv", 256, 512, 8),
        ("layer3.res.0", 512, 512, 4),
        ("layer3.res.1", 512, 512, 4),
    ):
        flops, moved, fixed = (
            2.0 * ci * co * 9 * side * side,
            float(width * (ci + co) * side * side),
            float(width * ci * co * 9),
        )
        shape = f"{ci}x{side}x{side} * {co}x{ci}x3x3"
        out.append(Layer("convolution", "forward", shape, flops, moved, fixed, module=name))
        out.append(
            Layer(
                "convolution_backward",
                "backward",
                shape,
                flops * (1 if name == "prep" else 2),
                2 * moved,
                2 * fixed,
                module=name,
            )
        )
    out.append(Layer("mm", "forward", "512 * 512x10", 10240.0, width * 522.0, width * 5120.0, module="linear"))
    return tuple(out)


def second(run: Run, size: int, clock: str, waiting: float, odd=()) -> Run:
    """The run with a trace's opinion: what the breakdown says less the waiting, but for the parts in `odd`, which get a share."""
    rng, d = random.Random(9), run.batches[[b.batch_size for b in run.batches].index(size)].derived
    step = [short(1.4 * d.step.point * math.exp(rng.gauss(0, 0.01))) for _ in range(6)]
    shares = {p: v.share.point * (1 - waiting) for p, v in d.parts.items()} | dict(odd)
    seconds = {p: tuple(short(t * s * math.exp(rng.gauss(0, 0.02))) for t in step) for p, s in shares.items()}
    host = {"optimizer": tuple(short(0.2 * t) for t in seconds["optimizer"])} if clock == "operators" else {}
    own = {p: tuple(short(t - h) for t, h in zip(v, host.get(p, (0,) * 6))) for p, v in seconds.items()}
    rest = tuple(short(waiting * t) for t in step)
    return replace(run, second_opinion=SecondOpinion(size, clock, tuple(step), rest, own, host))


def inspection(width: int, parts) -> Inspection:
    """Counts as they are for ResNet-9 (REFERENCES 2)."""
    gone = {
        "norm": {"aten::native_batch_norm": 8, "aten::native_batch_norm_backward": 8},
        "activation": {"aten::relu": 8, "aten::threshold_backward": 8},
        "optimizer": {"aten::_foreach_add_": 2, "aten::_foreach_mul_": 1},
        "attention": {"aten::scaled_dot_product_attention": 2},
        "data": {"aten::copy_": 1},
    }
    gone = {p: ops for p, ops in gone.items() if p in parts}
    full = {
        "aten::convolution": 8,
        "aten::convolution_backward": 8,
        "aten::mm": 3,
        **{op: n for ops in gone.values() for op, n in ops.items()},
    }
    base = {"aten::convolution": 8, "aten::convolution_backward": 8, "aten::mm": 3}
    return Inspection(
        758.5e6, 2272e6, resnet9_layers(width), {"base": base, variant_name(gone): full}, {}, gone, process="own"
    )


def provenance(command: str) -> Provenance:
    return Provenance(
        "2026-11-22T10:11:12Z",
        tuple(command.split()),
        command,
        {"perfscope": "0.1.0", "torch": "2.13.0", "plotly": "7.1.0"},
        {"commit": "0" * 40, "dirty": False},
        7,
        61.3,
        {"synthetic": "scripted costs, no machine was measured"},
    )


SYNTHETIC = Warned(
    "synthetic",
    "This record was generated for tests: its times are scripted, no machine was measured.",
    "Measure: perfscope breakdown --model resnet9",
)


def cpu() -> Run:
    """(a) A CPU, three batch sizes, brackets; costs near to those of ResNet-9 on two cores."""
    rng = random.Random(1)
    batches = []
    for size in (4, 8, 16):
        cost = {
            "base": 0.0102 * size + 0.012,
            "norm": 0.00122 * size,
            "activation": 0.00063 * size,
            "optimizer": 0.0071,
            "data": 0.00009 * size,
        }
        batches.append(batch(size, cost, 40, rng, noise=0.012, memory=9 << 20, hidden=0.0))
    run = Run(
        "2026-11-22T10-11-12_resnet9",
        status="complete",
        provenance=provenance("perfscope breakdown --model resnet9 --budget 60"),
        environment=Environment(
            "cpu",
            "Intel Xeon Processor (synthetic)",
            "a1b2c3",
            "",
            {"cores": 2, "memory_bytes": 8 << 30, "avx512": True},
            {"torch": "2.13.0", "python": "3.11.2"},
            {"mkldnn": True},
            {"OMP_NUM_THREADS": "2"},
        ),
        method=METHOD,
        workload=WorkloadInfo(
            "resnet9",
            "synthetic",
            input_shape=(3, 32, 32),
            classes=10,
            parameters=6573120,
            optimizer="SGD, Nesterov, foreach",
            loss="cross entropy",
            data="uint8 images, pad, crop, flip, cutout, normalise",
        ),
        ceilings=Ceilings(2.4e11, 1.9e10, "float32"),
        inspection=inspection(4, ("norm", "activation", "optimizer", "data")),
        batches=tuple(batches),
        warnings=(SYNTHETIC,),
    )
    return second(derive(run), 16, "operators", 0.08)


def gpu() -> Run:
    """(b) A GPU with telemetry that throttles, attention, Shapley values, an interaction and one that did not fit."""
    rng = random.Random(2)
    batches = []
    for size in (128, 256, 512):
        cost = {
            "base": 11e-6 * size + 3e-4,
            "norm": 4.1e-6 * size * (1 + 0.06 * math.log2(size / 128)),
            "attention": 2.4e-6 * size,
            "optimizer": 5.2e-4,
            "data": 0.6e-6 * size,
        }
        batches.append(
            batch(size, cost, 60, rng, every=True, noise=0.002, gpu=True, hidden=0.25e-6 * size, memory=24 << 20)
        )
    batches.append(BatchResult(1024, "out-of-memory", "tried to allocate 26.4 GiB, 21.0 GiB are free"))
    run = Run(
        "2026-11-22T12-00-00_gpu",
        status="complete",
        provenance=provenance("perfscope breakdown --model resnet9 --dtype half --memory-format channels_last"),
        environment=Environment(
            "cuda",
            "NVIDIA H200 (synthetic)",
            "d4e5f6",
            "0a1b2c",
            {"sm_max_mhz": 1980, "memory_bytes": 139 << 30, "driver": "580.1"},
            {"torch": "2.11.0", "cuda": "12.8", "cudnn": "9.10"},
            {"cudnn.benchmark": True, "tf32": False},
            {},
        ),
        method=METHOD,
        workload=WorkloadInfo(
            "resnet9 with attention (synthetic)",
            "synthetic",
            "half",
            "channels_last",
            "off",
            True,
            (3, 32, 32),
            10,
            6573120,
            "SGD",
            "cross entropy",
        ),
        base_label="conv, matmul",
        ceilings=Ceilings(7.9e14, 4.3e12, "half"),
        inspection=inspection(2, ("norm", "attention", "optimizer", "data")),
        batches=tuple(batches),
        largest_batch=768,
        warnings=(
            SYNTHETIC,
            Warned(
                "throttled",
                "throttled: SM clock fell to 1120 of 1980 MHz in 30 % of samples (hardware thermal slowdown). Shares "
                "stay valid, milliseconds do not.",
                "Try: --budget 120, or let the GPU cool.",
                512,
            ),
        ),
    )
    run = second(derive(run), 512, "kernels", 0.02, {"data": 0.11})      # copies that run beside the kernels cost the step nothing
    return replace(run, warnings=(*run.warnings, *disagreement(run)))


def partial() -> Run:
    """(c) Killed after one batch size and three rounds of the next; nothing derived for that one."""
    rng = random.Random(3)
    cost = {"base": 0.05, "norm": 0.006, "optimizer": 0.007}
    none = replace(batch(4, cost, 3, rng, finish=False), derived=None)
    return Run(
        "2026-11-22T13-00-00_partial",
        status="interrupted",
        provenance=provenance("perfscope breakdown --model resnet9"),
        environment=Environment("cpu", "Intel Xeon Processor (synthetic)"),
        method=METHOD,
        workload=WorkloadInfo("resnet9 (synthetic)", "synthetic"),
        batches=(none,),
        warnings=(SYNTHETIC,),
    )


def hostile() -> Run:
    """(d) Text that wants to be more than text, everywhere; plus residues and lost gradients."""
    rng = random.Random(4)
    evil = [
        HOSTILE,
        "</script><img src=x onerror=alert(2)>",
        "a|b`c*d_e\n# f",
        "\x1b[31mred\x1b[0m\x07",
        "%{x} ${y} {{z}}",
        "\u202egnp.exe",
        "日本語" * 20,
        "x" * 200,
        "\ud800",
        "'\"&<>",
        "]]>",
        "<!--",
        "@everyone #1 https://example.com",
        "theme:text",
    ]
    batches = [
        batch(
            n,
            {
                "base": 0.01 * n,
                "norm": 0.004 * n,
                "dropout": 0.001 * n,
                "embedding": 0.002,
                "loss": 0.001 * n,
                "pooling": 0.001 * n,
                "activation": 0.001 * n,
                "attention": 0.003 * n,
                "optimizer": 0.01,
                "data": 0.001 * n,
                "communication": 0.002 * n,
            },
            20,
            rng,
            noise=0.05,
            memory=1 << 20,
        )
        for n in (2, 100000)
    ]
    batches.append(BatchResult(200000, "failed", evil[1]))
    batches.append(BatchResult(300000, evil[0], evil[4]))
    run = derive(
        Run(
            evil[1],
            kind="breakdown",
            status="partial",
            batches=tuple(batches),
            base_label=evil[0],
            method={evil[0]: evil[1], "nested": {evil[2]: evil}},
        )
    )
    fits = {p: replace(f, words=evil[1], kind=evil[0]) for p, f in run.scaling.parts.items()}
    return replace(
        run,
        provenance=Provenance(
            evil[0],
            tuple(evil),
            f"perfscope breakdown --model '{' '.join(evil)}'",
            {e: e for e in evil} | {"perfscope": evil[0]},
            {"commit": evil[1]},
            0,
            0.0,
        ),
        environment=Environment(
            evil[0],
            evil[1],
            evil[2],
            evil[3],
            {e: e for e in evil},
            {e: e for e in evil} | {"torch": evil[3]},
            {e: e for e in evil},
            {e: e for e in evil},
            8,
        ),
        workload=WorkloadInfo(
            f"{HOSTILE} (synthetic) {' '.join(evil)}",
            evil[1],
            evil[0],
            evil[3],
            evil[6],
            True,
            (3,),
            1,
            1,
            evil[5],
            evil[6],
            evil[7],
        ),
        ceilings=Ceilings(1e12, 1e11, evil[0]),
        scaling=replace(run.scaling, parts=fits),
        inspection=Inspection(
            1e9,
            3e9,
            tuple(Layer(e, "forward", e, 1e8, 1e6, 1e6, 2, e) for e in evil),
            {e: {e: 1} for e in evil},
            {e: {e: 2} for e in evil[:3]},
            {"norm": {e: 1 for e in evil}},
            {e: tuple(evil) for e in evil[:2]},
        ),
        selfcheck={e: e for e in evil},
        warnings=(SYNTHETIC, *(Warned(e, e, e, 2) for e in evil)),
    )


#: REFERENCES section 1, read off the article's vector charts: seconds per epoch of 50 000 images.
ARTICLE = {
    128: (5.05, 2.42, 0.40, 0.27, 0.14),
    256: (4.37, 2.46, 0.38, 0.13, 0.13),
    512: (4.02, 2.55, 0.36, 0.07, 0.14),
    1024: (3.76, 2.61, 0.35, 0.04, 0.15),
}
AFTER = {128: 1.10, 256: 0.89, 512: 0.70, 1024: 0.62}
SOURCE = (
    "David Page, “How to train your ResNet 3: Regularisation”, Myrtle.ai, November 2018; "
    "seconds per epoch read off its charts"
)


def article(when: str) -> Run:
    """The article's four rows before or after its fix, as a record. Published figures: no rounds, no intervals."""
    batches = []
    for size, (conv, norm, relu, optimizer, data) in ARTICLE.items():
        epoch = {
            "base": conv,
            "norm": AFTER[size] if when == "after" else norm,
            "activation": relu,
            "optimizer": optimizer,
            "data": data,
        }
        total, k = sum(epoch.values()), size / 50_000
        exact = lambda x: Interval(x, x, x)  # noqa: E731
        parts = {p: Part(exact(s / total), exact(s * k)) for p, s in epoch.items()}
        floor = 2.756e9 * size / 125e12
        batches.append(
            BatchResult(
                size,
                reference=variant_name(epoch),
                derived=Derived(
                    exact(total * k), parts, samples_per_s=50_000 / total, floor_s=floor, efficiency=floor / (total * k)
                ),
                extra={"published_epoch_s": epoch},
            )
        )
    fixed = "batch norm weights in float32" if when == "after" else "all in half precision, batch norm weights too"
    return Run(
        f"myrtle3-2018-{when}",
        status="complete",
        provenance=Provenance("2018-11-01T00:00:00Z", extra={"published": SOURCE}),
        environment=Environment("cuda", "NVIDIA V100", software={"torch": "0.4"}),
        method={
            "published": "from the full epoch: preloaded random data, no optimizer step, no ReLU, no batch norm, one "
            "after the other"
        },
        workload=WorkloadInfo(
            f"resnet18_cifar, the article, {when} the fix",
            "published",
            "half",
            input_shape=(3, 32, 32),
            classes=10,
            optimizer="SGD",
            data=fixed,
        ),
        batches=tuple(batches),
        warnings=(
            Warned(
                "published-figures",
                "These figures were read off the charts of the article. perfscope did not measure them; "
                "they carry no intervals.",
                "Measure your own: perfscope breakdown --model resnet18_cifar --dtype half",
            ),
        ),
        extra={"published": SOURCE},
    )


def main() -> None:
    """Writes the golden records and the two examples."""
    for name, run in (("cpu", cpu()), ("gpu", gpu()), ("partial", partial()), ("hostile", hostile()), ("diagnose", cures.diagnose()), ("fix", cures.fix())):
        save(run, HERE / f"{name}.json")
        text = json.dumps(json.loads((HERE / f"{name}.json").read_text()), separators=(",", ":"))
        (HERE / f"{name}.json").write_text(text + "\n")
    for when in ("before", "after"):
        save(article(when), EXAMPLES / f"myrtle3_2018_{when}.json")


if __name__ == "__main__":
    main()
