"""Whether what `diagnose` finds on healthy models is true: each cure is measured as `fix` measures it, and once more (issue 4, bar 2).

    python -m benchmarks.claims [--out FILE.jsonl] [--models N,N,...] [--budget 10s] [--processes 1] [--markdown FILE.md]

Per model: `diagnose` with its quick look; then every cure that does not take long against the original, interleaved, >= 10
rounds in a process of its own, all cures of one model in turns with each other; then what was FASTER again in a new process, and
at the end, what was UNCLEAR in that once more in another, for longer. Counted: findings whose cure is measured SLOWER although
the diagnosis did not say that it is or may be (there should be none), and FASTER verdicts that are FASTER again.
A line of JSON per model goes to --out; models that are there already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
from pathlib import Path

from perfscope import elsewhere, probing
from perfscope.diagnose import Asked, diagnose, to_look_at
from perfscope.errors import PerfscopeError
from perfscope.fix import LEAST_ROUNDS, Lab
from perfscope.measure import machine, stats
from perfscope.options import Options, names, seconds
from perfscope.record import to_dict
from perfscope.turns import BEFORE, changes, take_turns_elsewhere

SETTLE_S, SETTLE_ROUNDS = 60.0, 200     # of a longer repetition

#: Small ones first, the families mixed: a pass that was cut short has seen all of them. Name -> batch size.
MODELS = {
    "mnist_cnn": 16, "hf:gpt2": 4, "timm:mobilenetv3_small_050": 4, "hf:bert": 4, "timm:resnet18": 4, "llama_tiny": 2, "timm:ghostnet_050": 4,
    "hf:llama": 4, "timm:regnetx_002": 4, "hf:t5": 4, "timm:convnext_atto": 4, "hf:vit": 4, "timm:seresnet18": 4, "hf:distilbert": 4,
    "timm:efficientnet_b0": 4, "resnet18_cifar": 4, "hf:qwen2": 4, "timm:repvgg_a0": 4, "hf:opt": 4, "timm:convnextv2_atto": 4, "hf:gpt_neox": 4,
    "resnet9": 4, "hf:albert": 4, "timm:vit_tiny_patch16_224": 2, "gpt2:tiny": 2, "hf:roberta": 4, "timm:densenet121": 4, "timm:mixer_s32_224": 2,
    "hf:mistral": 4, "timm:resnet26d": 4, "hf:gemma": 4, "hf:phi": 4, "timm:deit_tiny_patch16_224": 2, "hf:deberta-v2": 4, "timm:nfnet_l0": 4,
}


def spec(name: str) -> str:
    """What --model takes for a model of the zoo."""
    return name if name.partition(":")[0] not in ("timm", "hf") else f"tests.zoo.models:{name}"


def ab(lab: Lab, cures: list[str], processes: range) -> dict[str, dict]:
    """Each cure against the original as `fix` judges it: verdict, change, rounds; or the error."""
    of_heap = [c for c in cures if probing.about_heap((c,), lab.chosen)]
    return {c: result for group in ([c for c in cures if c not in of_heap], of_heap) if group for c, result in _ab(lab, group, processes).items()}


def _ab(lab: Lab, cures: list[str], processes: range) -> dict[str, dict]:
    rounds, errors, out = [], {}, {}
    with elsewhere.started(*["perfscope.turns"] * len(processes)) as started:
        for p, process in zip(processes, started):
            turns = lab.turns({BEFORE: (), **{c: (c,) for c in cures}}, p, process)
            rounds.append(turns.rounds)
            errors |= turns.errors
    for c in cures:
        if c in errors:
            out[c] = {"error": errors[c]}
            continue
        change, n = stats.over_processes([changes(r, c) for r in rounds]), sum(map(len, rounds))
        out[c] = {"verdict": stats.verdict(change, n).word, "change": to_dict(change), "rounds": n}
    return out


def verdict_of(rounds, cure: str) -> dict:
    """One process's verdict on a cure."""
    change = changes(rounds, cure)
    return {"verdict": stats.verdict(change, len(rounds)).word, "change": to_dict(change), "rounds": len(rounds)}


def settled(d: dict, chosen: dict) -> dict[str, dict]:
    """What was FASTER and then UNCLEAR, measured for longer in yet another process."""
    open_ = [c for c, r in d.get("again", {}).items() if r.get("verdict") == "UNCLEAR"]
    if not open_:
        return {}
    options = Options(model=spec(d["model"]), batch_sizes=(d["batch"],))
    with elsewhere.started("perfscope.turns") as (process,):
        turns = take_turns_elsewhere(process, options, {BEFORE: (), **{c: (c,) for c in open_}}, d["batch"], budget_s=SETTLE_S * len(open_),
                                     target=0.005, max_rounds=SETTLE_ROUNDS, seed=d["processes"] + 1, keep_heap=not probing.about_heap(open_, chosen))
    return {c: verdict_of(turns.rounds, c) for c in open_}


def one(name: str, chosen: dict, budget_s: float, processes: int) -> dict:
    """What came of one model."""
    begin = time.perf_counter()
    options = Options(model=spec(name), batch_sizes=(MODELS.get(name, 4),))
    found = diagnose(options.model, options=options)
    cures = to_look_at(found.findings, chosen)
    lab = Lab(options.model, True, options, Asked(), chosen, found.step.point if found.step else 0.1)
    lab.budget_s = budget_s
    first = ab(lab, cures, range(processes)) if cures else {}
    faster = [c for c, r in first.items() if r.get("verdict") == "FASTER"]
    again = ab(lab, faster, range(processes, processes + 1)) if faster else {}
    findings = [{"probe": f.probe, "cure": f.extra.get("cure") or (f.probe if f.probe in cures else ""), "look": f.verdict, "change": to_dict(f.change),
                 "note": f.note, "text": f.text, "curable": f.curable} for f in found.findings]
    return {"model": name, "batch": found.batch_size, "step_s": found.step.point if found.step else None, "findings": findings, "ab": first, "again": again,
            "failed": found.failed, "processes": processes, "wall_s": round(time.perf_counter() - begin, 1), "load": round(os.getloadavg()[0], 1)}


# ---------------------------------------------------------------- counting

def judged(done: list[dict]) -> dict[str, list]:
    """The findings by what became of them: (model, finding, result) under "slower unsaid", "slower said", "other"; and the FASTER
    verdicts under "held" and "lost", "held later" and "lost later" those that needed the longer repetition."""
    out: dict[str, list] = {"slower unsaid": [], "slower said": [], "other": [], "held": [], "lost": [], "held later": [], "lost later": []}
    for d in done:
        for f in d.get("findings", ()):
            result = d["ab"].get(f["cure"])
            if result and "verdict" in result:
                said = "slower here" in f["note"]
                key = "other" if result["verdict"] != "SLOWER" else "slower said" if said else "slower unsaid"
                out[key].append((d["model"], f, result))
        for cure, result in d.get("again", {}).items():
            out["held" if result.get("verdict") == "FASTER" else "lost"].append((d["model"], cure, result))
        for cure, result in d.get("settled", {}).items():
            out["held later" if result["verdict"] == "FASTER" else "lost later"].append((d["model"], cure, result))
    return out


def rate(k: int, n: int) -> str:
    """k of n with Wilson's interval."""
    w = stats.wilson(k, n)
    return f"{k} of {n} ({100 * w.low:.1f} to {100 * w.high:.1f} %)" if n else "0 of 0"


def shown(result: dict | None) -> str:
    """A verdict with its change of the step's time in per cent."""
    if not result:
        return ""
    if "error" in result:
        return f"not applicable: {result['error'][:80]}"
    at = lambda x: "?" if x is None or not math.isfinite(x) else f"{100 * math.expm1(x):+.1f}"  # noqa: E731
    c = result["change"]
    return f"{result['verdict']} {at(c['point'])} % ({at(c['low'])} to {at(c['high'])})"


def markdown(done: list[dict], command: str) -> str:
    """The summary and a row per cure."""
    good, j, cpu = [d for d in done if "error" not in d], judged(done), machine.cpu()
    measured = len(j["slower unsaid"]) + len(j["slower said"]) + len(j["other"])
    looked = [(d, f) for d in good for f in d["findings"] if f["look"] == "FASTER" and "verdict" in d["ab"].get(f["cure"], {})]
    confirmed = sum(d["ab"][f["cure"]]["verdict"] == "FASTER" for d, f in looked)
    would = [u for u in j["slower unsaid"] if not (u[1]["change"] and u[1]["change"]["point"] is not None and u[1]["change"]["point"] >= 0)]
    short = [(d["model"], c) for d in good for c, r in d["ab"].items() if r.get("rounds", LEAST_ROUNDS) < LEAST_ROUNDS]
    held, total = len(j["held"]) + len(j["held later"]), len(j["held"]) + len(j["lost"])
    opposite = [c for c in j["lost"] if c[2].get("verdict") == "SLOWER"]
    lines = ["# Claims: what diagnose says of healthy models, measured", "",
             f"`{command}`, {time.strftime('%Y-%m-%d')}, {cpu['cpu']}, {cpu['cores']} cores shared with other work (load "
             f"{min((d['load'] for d in good), default=0)} to {max((d['load'] for d in good), default=0)}), {os.environ.get('OMP_NUM_THREADS', 'all')} OpenMP "
             f"thread(s), Python {platform.python_version()}; {sum(d['wall_s'] for d in good) / 60:.0f} min. Each A/B: >= {LEAST_ROUNDS} interleaved rounds "
             f"in {max((d['processes'] for d in good), default=1)} process(es) (`fix` uses 3 to 7); the repetition is one new process.", "",
             f"- models: {len(good)}" + (f", and {len(done) - len(good)} that could not be run" if len(done) > len(good) else ""),
             f"- findings whose cure was measured: {measured}; SLOWER although the diagnosis did not say so: {rate(len(j['slower unsaid']), measured)}; "
             f"SLOWER as the diagnosis said: {len(j['slower said'])}",
             *([f"- of those not said, that a `diagnose` with today's `caution` would not say either: {len(would)}"] if j["slower unsaid"] else []),
             f"- FASTER verdicts that are FASTER again in a new process: {rate(len(j['held']), total)}; SLOWER in the repetition: {len(opposite)}",
             f"- the same where what was UNCLEAR was measured again for up to {SETTLE_S:g} s: {rate(held, total)}",
             f"- quick looks of diagnose that said FASTER and were FASTER in the A/B: {rate(confirmed, len(looked))}", "",
             "| model | batch | step ms | cure | quick look | A/B | rounds | again |", "|---|--:|--:|---|---|---|--:|---|"]
    for d in good:
        looks = {f["cure"]: f for f in d["findings"] if f["cure"]}
        for c, r in d["ab"].items():
            f = looks.get(c)
            look = shown({"verdict": f["look"], "change": f["change"]}) if f and f["change"] else ""
            lines.append(f"| {d['model']} | {d['batch']} | {1e3 * d['step_s']:.1f} | {c} | {look} | {shown(r)} | {r.get('rounds', '')} | "
                         f"{shown(d['again'].get(c))}" + (f"; longer: {shown(d['settled'][c])}" if c in d.get("settled", {}) else "") + " |")
        if not d["ab"]:
            lines.append(f"| {d['model']} | {d['batch']} | | nothing to measure | | | | |")
    lines += ["", *(f"- **SLOWER and not said**: {m}, {f['cure']}: {shown(r)}; quick look {f['look'] or 'none'}" for m, f, r in j["slower unsaid"]),
              *(f"- not FASTER again: {m}, {c}: {shown(r)}" for m, c, r in j["lost"]),
              *(f"- fewer than {LEAST_ROUNDS} rounds, no verdict: {m}, {c}" for m, c in short),
              *(f"- could not be run: {d['model']}: {d['error']}" for d in done if "error" in d)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """1 if a finding was SLOWER without saying so, or less than 95 % of the FASTER verdicts held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="claims.jsonl", help="a line of JSON per model; what is there is not measured again")
    parser.add_argument("--models", default="", help="only these, e.g. mnist_cnn,hf:gpt2")
    parser.add_argument("--budget", default="10s", help="of each process that measures")
    parser.add_argument("--processes", type=int, default=1, help="of each A/B, before the repetition")
    parser.add_argument("--markdown", help="write the summary here too")
    args = parser.parse_args()
    wanted, out, chosen = list(names(args.models)) or list(MODELS), Path(args.out), probing.probes()
    done = {d["model"]: d for d in map(json.loads, out.read_text(encoding="utf-8").splitlines())} if out.exists() else {}
    for name in wanted:
        if name in done:
            continue
        try:
            result = one(name, chosen, seconds(args.budget), args.processes)
        except PerfscopeError as e:
            result = {"model": name, "error": e.message}
        except KeyboardInterrupt:
            break
        done[name] = result
        with out.open("a", encoding="utf-8") as f:
            f.write(json.dumps(result) + "\n")
        said = result.get("error") or "; ".join(f"{c} {shown(r)}, again {shown(result['again'].get(c)) or '-'}" for c, r in result["ab"].items())
        print(f"{name} ({result.get('wall_s')} s): {said}", file=sys.stderr, flush=True)
    mine = [done[n] for n in wanted if n in done]
    for d in [d for d in mine if "error" not in d and "settled" not in d]:
        try:
            d["settled"] = settled(d, chosen)
        except KeyboardInterrupt:
            break
        part = out.with_suffix(".part")
        part.write_text("".join(json.dumps(x) + "\n" for x in done.values()), encoding="utf-8")
        part.replace(out)
    text = markdown(mine, shlex.join(["python", "-m", "benchmarks.claims", *sys.argv[1:]]))
    print(text)
    if args.markdown:
        Path(args.markdown).parent.mkdir(parents=True, exist_ok=True)
        Path(args.markdown).write_text(text, encoding="utf-8")
    j = judged(mine)
    total = len(j["held"]) + len(j["lost"])
    return 1 if j["slower unsaid"] or total and len(j["held"]) + len(j["held later"]) < 0.95 * total else 0


if __name__ == "__main__":
    raise SystemExit(main())
