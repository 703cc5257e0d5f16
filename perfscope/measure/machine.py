"""The machine: what it is (fingerprint), what it does meanwhile (watch), and a yardstick (canaries). METHOD 4 and 10.

Nothing here locks clocks or changes a setting. Records get shared, so hosts and GPUs appear only as hashes,
environment variables only by an allow-list, and no path, host or user name is kept. Torch and pynvml are imported
where they are used.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
import threading
import time
import uuid
from pathlib import Path
from statistics import fmean, median
from typing import Any, Callable, Sequence

from perfscope.measure.stats import spread_of
from perfscope.record import Environment, Warned

SALT = "perfscope/1:"               # fixed, so that the same machine gives the same hash in every record
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",   # x86 in /proc/cpuinfo
                    "asimd", "asimdhp", "bf16", "i8mm", "sve")                                # arm
PACKAGES = ("perfscope", "numpy", "plotly", "rich", "typer", "nvidia-ml-py", "msgspec", "isal", "pooch", "triton",
            "torchvision", "timm", "transformers")
#: Variables that change how fast a step runs and hold no path or name. A value with a slash in it is not kept.
VARIABLES = ("OMP_NUM_THREADS OMP_PROC_BIND OMP_PLACES OMP_SCHEDULE OMP_WAIT_POLICY OMP_DYNAMIC GOMP_CPU_AFFINITY "
             "KMP_AFFINITY KMP_BLOCKTIME KMP_HW_SUBSET KMP_TPAUSE MKL_NUM_THREADS MKL_DYNAMIC MKL_CBWR "
             "MKL_ENABLE_INSTRUCTIONS ONEDNN_MAX_CPU_ISA ONEDNN_DEFAULT_FPMATH_MODE ATEN_CPU_CAPABILITY "
             "MALLOC_CONF PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF PYTORCH_NO_CUDA_MEMORY_CACHING "
             "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE TORCH_BLAS_PREFER_CUBLASLT TORCH_COMPILE_DISABLE "
             "TORCHDYNAMO_DISABLE TORCHINDUCTOR_MAX_AUTOTUNE TORCHINDUCTOR_FREEZING "
             "TORCH_NCCL_ASYNC_ERROR_HANDLING TORCH_NCCL_BLOCKING_WAIT TORCH_DISTRIBUTED_DEBUG "
             "CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_LAUNCH_BLOCKING CUDA_DEVICE_MAX_CONNECTIONS "
             "CUDA_MODULE_LOADING CUDA_FORCE_PTX_JIT CUBLAS_WORKSPACE_CONFIG CUBLASLT_WORKSPACE_SIZE "
             "NVIDIA_TF32_OVERRIDE NCCL_ALGO NCCL_PROTO NCCL_P2P_DISABLE NCCL_P2P_LEVEL NCCL_SHM_DISABLE "
             "NCCL_IB_DISABLE NCCL_NVLS_ENABLE NCCL_NTHREADS NCCL_BUFFSIZE NCCL_MIN_NCHANNELS NCCL_MAX_NCHANNELS "
             "NCCL_CUMEM_ENABLE NCCL_DEBUG").split()

NVML_PERIOD_S = 0.1                 # METHOD 10: 10 Hz
CPU_PERIOD_S = 1.0                  # /proc/stat counts in 10 ms: a second gives 1 %
SLOWDOWNS = {0x08: "hardware slowdown", 0x20: "thermal slowdown", 0x40: "hardware thermal slowdown",
             0x80: "power brake"}   # nvmlClocksThrottleReasons; 0x04, the software power cap, is normal under load
IDLE = 0x01                         # nvmlClocksThrottleReasonGpuIdle: such a reading says nothing about work
SLOWDOWN_SHARE = 0.05               # METHOD 10
MEDIAN_CLOCK = 0.75                 # METHOD 10
CANARY_SPREAD = 0.03                # METHOD 10
OTHERS_SHARE = 0.05                 # of the usable cores: in noise about what one step varies by on a quiet machine
STEAL_SHARE = 0.02


# ---------------------------------------------------------------- fingerprint

def _hash(text: str) -> str:
    return hashlib.sha256((SALT + text).encode()).hexdigest()[:12]


def _try(get: Callable[[], Any]) -> Any:
    """What a query gives, or None: an old torch, a driver without rights, a mixed use of the TF32 switches."""
    try:
        return get()
    except Exception:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _cgroup(root: Path, controller: str, *files: str) -> str:
    """The first of these files in this process's control group or one above it (version 2, then 1); "" if none."""
    lines = [line.split(":", 2) for line in _text(root / "proc/self/cgroup").splitlines() if line.count(":") >= 2]
    for base, own in [(root / "sys/fs/cgroup", [p for i, c, p in lines if i == "0"]),
                      (root / "sys/fs/cgroup" / controller, [p for _, c, p in lines if controller in c.split(",")])]:
        place = Path((own or ["/"])[0].lstrip("/"))
        for folder in [place, *place.parents]:
            for name in files:
                if text := _text(base / folder / name).strip():
                    return text
    return ""


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many cores' worth of time the control group grants; None if it sets no limit."""
    text = _cgroup(root, "cpu", "cpu.max")
    quota, _, period = text.partition(" ")
    if not text:
        quota, period = _cgroup(root, "cpu", "cpu.cfs_quota_us"), _cgroup(root, "cpu", "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def memory_limit(root: Path = Path("/")) -> tuple[int, int]:
    """(bytes this process may use in all, bytes of it still free), by the machine and by the control group."""
    info = {name: int(rest.split()[0]) * 1024 for name, _, rest in
            (line.partition(":") for line in _text(root / "proc/meminfo").splitlines()) if rest.split()}
    total, free = info.get("MemTotal", 0), info.get("MemAvailable", 0)
    limit = _cgroup(root, "memory", "memory.max", "memory.limit_in_bytes")
    used = _cgroup(root, "memory", "memory.current", "memory.usage_in_bytes")
    if limit.isdigit() and (not total or int(limit) < total):
        total, free = int(limit), min(free or int(limit), max(0, int(limit) - int(used if used.isdigit() else 0)))
    return total, free


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cpu(root: Path = Path("/")) -> dict[str, Any]:
    """The processor: name, cores and how many of them may be used, instruction sets, memory."""
    fields: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    quota, usable = cpu_quota(root), len(_cores())
    return {"cpu": fields.get("model name") or platform.processor() or platform.machine(), "cores": os.cpu_count() or 1,
            "cores_usable": usable if quota is None else min(usable, quota), "cpu_quota": quota,
            "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
            "memory_bytes": memory_limit(root)[0]}


def variables(environ: dict[str, str] | None = None) -> dict[str, str]:
    """The environment variables that change speed, by an allow-list; values that could name something are not kept."""
    environ = os.environ if environ is None else environ
    found = {name: environ[name] for name in VARIABLES if name in environ}
    return {name: "(not kept)" if "/" in v or "GPU-" in v or "MIG-" in v else v for name, v in found.items()}


def switches() -> dict[str, Any]:
    """Torch's global switches that change speed."""
    import torch

    cudnn = torch.backends.cudnn
    return {name: _try(get) for name, get in {
        "cudnn.enabled": lambda: cudnn.enabled, "cudnn.benchmark": lambda: cudnn.benchmark,
        "cudnn.deterministic": lambda: cudnn.deterministic, "cudnn.allow_tf32": lambda: cudnn.allow_tf32,
        "matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
        "matmul.fp32_precision": lambda: torch.backends.cuda.matmul.fp32_precision,        # since torch 2.9
        "cudnn.conv.fp32_precision": lambda: cudnn.conv.fp32_precision,
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
        "anomaly_mode": torch.is_anomaly_enabled, "default_dtype": lambda: str(torch.get_default_dtype()),
        "num_threads": torch.get_num_threads, "num_interop_threads": torch.get_num_interop_threads,
        "mkldnn.enabled": lambda: torch.backends.mkldnn.enabled}.items()}


def tf32() -> bool:
    """Whether a GPU's float32 matmuls may run in TF32. PyTorch's newer switch (2.9) knows what the older one was set to; where the
    newer one was set itself, reading the older one is an error.
    """
    import torch

    newer = _try(lambda: torch.backends.cuda.matmul.fp32_precision)
    return newer == "tf32" if newer is not None else torch.backends.cuda.matmul.allow_tf32


def versions() -> dict[str, str]:
    """Python, torch, CUDA, cuDNN, the platform, and the packages that a run may use."""
    from importlib.metadata import version

    import torch

    found = {name: _try(lambda name=name: version(name)) for name in PACKAGES}
    cuda, cudnn = torch.version.cuda, _try(torch.backends.cudnn.version)
    return {"python": platform.python_version(), "torch": torch.__version__,
            "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
            **({"cuda": cuda} if cuda else {}), **({"cudnn": str(cudnn)} if cudnn else {}),
            **{name: v for name, v in found.items() if v}}


def git_state(folder: str | os.PathLike = ".") -> dict[str, Any]:
    """`commit` and `dirty` of the repository around a folder; empty where there is none, or no git."""
    def git(*argv: str) -> str:
        done = subprocess.run(["git", *argv], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "--verify", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def fingerprint(device="cpu", *, nvml: Any = None, world_size: int = 1) -> Environment:
    """What the record says about the machine. `nvml`: the pynvml module, injected by tests."""
    import torch

    hardware = {**cpu(), "threads": torch.get_num_threads(),
                "cpu_capability": _try(torch.backends.cpu.get_cpu_capability)}
    name, device_id = hardware["cpu"], ""
    kind = "cuda" if str(device).startswith("cuda") else "cpu"
    if kind == "cuda":
        p = torch.cuda.get_device_properties(device)
        name, device_id = p.name, str(getattr(p, "uuid", ""))
        hardware |= {"gpu": name, "vram_bytes": p.total_memory, "sm_count": p.multi_processor_count,
                     "capability": f"{p.major}.{p.minor}", "l2_bytes": getattr(p, "L2_cache_size", None),
                     "gpus": torch.cuda.device_count()}
        with Nvml(device, nvml) as gpu:
            hardware |= gpu.facts()
    machine_id = _text(Path("/etc/machine-id")).strip() or f"{platform.node()} {uuid.getnode()}"
    gpu_hash = _hash("gpu " + device_id) if device_id else ""
    return Environment(kind, name, _hash("host " + machine_id), gpu_hash, hardware, versions(), switches(), variables(),
                       world_size)


# ---------------------------------------------------------------- watch

class Nvml:
    """One GPU seen through NVML, or, in `note`, why it is not. Each query that does not work is left out."""

    def __init__(self, device="cuda", module: Any = None):
        self.queries: dict[str, Callable[[], float]] = {}
        self.note: Warned | None = None
        self.nvml = module or _try(lambda: __import__("pynvml"))
        self.handle = None
        try:
            if self.nvml is None:
                raise ImportError("the module pynvml is not installed")
            self.nvml.nvmlInit()
            self.handle = self._find(device)
        except Exception as e:              # no driver, no rights, a container without the library: all the same to us
            self.note = Warned("no-telemetry", f"no-telemetry: NVML gave nothing ({type(e).__name__}: {e}). Clocks, "
                               "power and temperature are missing; throttling is watched by the canary alone.",
                               "Install nvidia-ml-py, or start the container with the driver's utility libraries.")
            return
        n, h = self.nvml, self.handle
        reasons = (getattr(n, "nvmlDeviceGetCurrentClocksThrottleReasons", None)
                   or n.nvmlDeviceGetCurrentClocksEventReasons)
        queries = {"sm_mhz": lambda: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM),
                   "mem_mhz": lambda: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_MEM),
                   "power_w": lambda: n.nvmlDeviceGetPowerUsage(h) / 1e3,
                   "temp_c": lambda: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU),
                   "reasons": lambda: reasons(h)}
        self.queries = {name: get for name, get in queries.items() if _try(get) is not None}

    def _find(self, device) -> Any:
        """The handle by the GPU's UUID, because CUDA_VISIBLE_DEVICES renumbers; by index if torch does not tell it."""
        import torch

        index = torch.device(device).index or 0
        uid = _try(lambda: torch.cuda.get_device_properties(index).uuid)
        handle = _try(lambda: self.nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uid}")) if uid else None
        return handle if handle is not None else self.nvml.nvmlDeviceGetHandleByIndex(index)

    def __call__(self) -> dict[str, float]:
        """One reading; NaN where a query failed this time."""
        return {name: math.nan if (value := _try(get)) is None else float(value) for name, get in self.queries.items()}

    def facts(self) -> dict[str, Any]:
        """What does not change: driver, greatest clocks, power limit, PCIe."""
        n, h = self.nvml, self.handle
        facts = {} if self.note else {
            "driver": _try(lambda: n.nvmlSystemGetDriverVersion()),
            "sm_max_mhz": _try(lambda: n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_SM)),
            "mem_max_mhz": _try(lambda: n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_MEM)),
            "power_limit_w": _try(lambda: n.nvmlDeviceGetEnforcedPowerLimit(h) / 1e3),
            "pcie_generation": _try(lambda: n.nvmlDeviceGetMaxPcieLinkGeneration(h)),
            "pcie_width": _try(lambda: n.nvmlDeviceGetMaxPcieLinkWidth(h))}
        return {key: value for key, value in facts.items() if value is not None}

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.handle is not None:
            _try(self.nvml.nvmlShutdown)


def cpu_reader(root: Path = Path("/"), own_s: Callable[[], float] = time.process_time
               ) -> Callable[[], dict[str, float]]:
    """A reader of who used the cores that this process may run on, since its last reading, as shares of their time.

    `own` this process, `others` everything else (other ranks and loader workers too; NaN under a quota, where the
    host's cores are not ours), `steal` taken by the hypervisor, `load` the 1-minute load average.
    """
    cores = {f"cpu{i}" for i in _cores()}
    quota = cpu_quota(root)

    def totals() -> tuple[float, float, float, float]:
        rows = [line.split() for line in _text(root / "proc/stat").splitlines()]
        rows = [[float(x) for x in row[1:9]] for row in rows if row and row[0] in cores]
        user, nice, system, idle, wait, irq, soft, steal = map(sum, zip(*rows)) if rows else [0.0] * 8
        busy = user + nice + system + irq + soft
        return busy, steal, busy + idle + wait + steal, own_s() * 100      # USER_HZ is 100 on every Linux we know

    last = totals()

    def read() -> dict[str, float]:
        nonlocal last
        now = totals()
        (busy, steal, total, own), last = (b - a for a, b in zip(last, now)), now
        load = _text(root / "proc/loadavg").split()
        share = lambda ticks: ticks / total if total > 0 else math.nan  # noqa: E731
        others = math.nan if quota is not None and quota < len(cores) else max(share(busy - own), 0.0)
        return {"own": share(own), "others": others, "steal": share(steal),
                "load": float(load[0]) if load else math.nan}

    return read


class Watch:
    """Reads the machine in a background thread while its `with` block runs: NVML at 10 Hz, a CPU at 1 Hz.

    `columns` has a list for each quantity and for `time_s` since the start: sm_mhz, mem_mhz, power_w, temp_c, reasons
    (bits) of a GPU, or own, others, steal (shares of the usable cores) and load of a CPU; NaN where a reading failed.
    `read()` gives one reading now, for a sample; nothing on a CPU, whose counters are too coarse for it. `note` says
    why there is no telemetry; `max_sm_mhz` is the GPU's greatest clock, where known.
    """

    def __init__(self, device="cpu", *, nvml: Any = None, root: Path = Path("/"),
                 now: Callable[[], float] = time.perf_counter):
        self.gpu = Nvml(device, nvml) if str(device).startswith("cuda") else None
        self.source = self.gpu or cpu_reader(root)
        self.note = self.gpu.note if self.gpu else None
        self.max_sm_mhz = self.gpu.facts().get("sm_max_mhz") if self.gpu else None
        self.columns: dict[str, list[float]] = {}
        self._now, self._start, self._done, self._thread = now, now(), threading.Event(), None

    def tick(self) -> None:
        """One more row of the columns."""
        if row := self.source():
            for name, value in {"time_s": self._now() - self._start, **row}.items():
                self.columns.setdefault(name, []).append(value)

    def read(self) -> dict[str, float]:
        return self.gpu() if self.gpu else {}

    def _run(self) -> None:
        while not self._done.wait(NVML_PERIOD_S if self.gpu else CPU_PERIOD_S):
            _try(self.tick)

    def __enter__(self) -> Watch:
        if not (self.gpu and self.note):
            self._thread = threading.Thread(target=self._run, name="perfscope-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()
        if self.gpu:
            self.gpu.__exit__()


def watch(device="cpu", **injected: Any) -> Watch:
    """`with watch(device) as w: ...` and then `w.columns`."""
    return Watch(device, **injected)


# ---------------------------------------------------------------- warnings

def throttled(columns: dict[str, Sequence[float]], canary: dict[str, Sequence[float]] | None = None,
              max_clock: float | None = None, batch_size: int | None = None) -> Warned | None:
    """The warning `throttled` by the three rules of METHOD 10, or None. A software power cap is normal under load.

    `columns` of a GPU's `Watch`, `canary` name -> seconds by round, `max_clock` the greatest SM clock in MHz. Readings
    of an idle GPU do not count.
    """
    reasons = [0 if math.isnan(r) else int(r) for r in columns.get("reasons", ())]
    clocks = list(columns.get("sm_mhz", ()))
    busy = [i for i in range(max(len(reasons), len(clocks))) if not (i < len(reasons) and reasons[i] & IDLE)]
    slow = [i for i in busy if i < len(reasons) and any(reasons[i] & bit for bit in SLOWDOWNS)]
    known = lambda rows: [clocks[i] for i in rows if i < len(clocks) and not math.isnan(clocks[i])]  # noqa: E731
    of = f" of {max_clock:.0f}" if max_clock else ""
    if busy and len(slow) / len(busy) > SLOWDOWN_SHARE:
        seen = ", ".join(dict.fromkeys(word for bit, word in SLOWDOWNS.items() if any(reasons[i] & bit for i in slow)))
        fell = f"SM clock fell to {median(known(slow)):.0f}{of} MHz" if known(slow) else "the GPU slowed itself down"
        what = f"{fell} in {100 * len(slow) / len(busy):.0f} % of samples ({seen})"
    elif max_clock and known(busy) and median(known(busy)) < MEDIAN_CLOCK * max_clock:
        what = f"SM clock was {median(known(busy)):.0f}{of} MHz in the median, with no slowdown reported"
    else:
        spreads = {name: spread_of(seconds) for name, seconds in (canary or {}).items() if len(seconds) > 1}
        worst = max(spreads, key=spreads.get, default="")
        if not worst or spreads[worst] <= CANARY_SPREAD:
            return None
        what = f"the same {worst} took times {100 * spreads[worst]:.1f} % apart over the rounds"
    return Warned("throttled", f"throttled: {what}. Shares stay valid, milliseconds do not.",
                  "Try: --budget 120, or let the GPU cool.", batch_size)


def contended(columns: dict[str, Sequence[float]], batch_size: int | None = None) -> Warned | None:
    """The warning `busy-machine` if others used over 5 % of the cores, or the hypervisor took over 2 %, else None.

    Not for several ranks on one machine: each counts the others.
    """
    share = {name: fmean(known) for name in ("others", "steal")
             if (known := [x for x in columns.get(name, ()) if not math.isnan(x)])}
    if share.get("others", 0) <= OTHERS_SHARE and share.get("steal", 0) <= STEAL_SHARE:
        return None
    what = " and ".join(f"{who} {100 * share[name]:.0f} %" for name, who, limit in
                        (("others", "other processes used", OTHERS_SHARE),
                         ("steal", "the hypervisor took", STEAL_SHARE))
                        if share.get(name, 0) > limit)
    return Warned("busy-machine", f"busy-machine: {what} of the cores that this run may use. Intervals get wider and "
                  "milliseconds longer; shares stay valid.",
                  "Try: stop other work here, or OMP_WAIT_POLICY=PASSIVE: waiting threads then sleep instead of spinning. "
                  "That can help a lot on a busy machine, and costs time on an idle one: try both.", batch_size)


# ---------------------------------------------------------------- yardstick and memory

def canaries(device="cpu", dtype=None) -> dict[str, Callable[[], None]]:
    """One fixed "matmul" and one fixed "copy", to be timed once per round: a yardstick in time, and between machines.

    On a CPU 512^3 in float32 and 32 MiB, whatever the step's dtype; on a GPU 4096^3 in the step's dtype, 4 in a row,
    and 128 MiB copied 4 times in a row. The tensors are random, never zero, made once; a call allocates nothing.
    """
    import torch

    gpu = str(device).startswith("cuda")
    n, size, times = (4096, 128 << 20, 4) if gpu else (512, 32 << 20, 1)
    dtype = dtype or torch.float32 if gpu else torch.float32
    rng = torch.Generator(device).manual_seed(0)        # its own: the run's random numbers stay as they are
    a, b = (torch.randn(n, n, generator=rng, device=device).to(dtype) for _ in range(2))
    source = torch.randn(size // 4, generator=rng, device=device)
    product, target = torch.empty_like(a), torch.empty_like(source)

    def matmul() -> None:
        for _ in range(times):
            torch.mm(a, b, out=product)

    def copy() -> None:
        for _ in range(times):
            target.copy_(source)

    return {"matmul": matmul, "copy": copy}


def usage() -> dict[str, float]:
    """What this process has used so far: `page_faults` without disk, `system_s` and `cpu_s` of processor time; zeros where nobody tells."""
    try:
        import resource
    except ImportError:                         # Windows
        return {"page_faults": 0, "system_s": 0.0, "cpu_s": 0.0}
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"page_faults": used.ru_minflt, "system_s": used.ru_stime, "cpu_s": used.ru_utime + used.ru_stime}


def memory_now(device="cpu", root: Path = Path("/")) -> int:
    """Bytes that a new tensor could have: free on the device, or in what torch has reserved and does not use."""
    if not str(device).startswith("cuda"):
        return memory_limit(root)[1]
    import torch

    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def reset_peak(device="cpu") -> None:
    """Forgets the peak of a CUDA device's memory; nothing to do on a CPU."""
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device="cpu") -> int | None:
    """Greatest bytes allocated since `reset_peak`. None on a CPU, where a process never gives its peak back."""
    if not str(device).startswith("cuda"):
        return None
    import torch

    return torch.cuda.max_memory_allocated(device)
