"""The GPU waits for the host to launch its kernels: the step takes as long as Python does.

## What it sees
The GPU is busy for less than 70 % of the step, the data loader's waiting left out, and what it waits for is the host: its kernels
are short (median below 10 us), or each starts as soon as it is launched, so that the queue is empty. In your own run the busy time
of the trace is compared with the step as timed without a profiler, because a profiler slows the host; in somebody else's trace
there is only the trace, which then shows the worst case.

## Why it is slow
Launching a kernel from Python costs the host 5 to 10 us and more. Kernels that run for less than that leave the GPU idle, and
making them faster changes nothing.

## Cure
A larger batch, if the training allows it: the same launches do more work. A CUDA graph launches the whole step at once; compiling
makes fewer kernels out of many. Both are tried by `perfscope fix`.

## Not for
Shapes that change from step to step; steps that read values on the host (sync_in_step comes first).

## References
SLOW_PATHS S35; "CUDA Graphs" in PyTorch's documentation; METHOD 15, V6.
"""

from perfscope.probe import Config, Evidence, Finding, Place, add, replace

USES = ("trace",)
DEVICES = ("cuda",)
COSTLY = True
CODE = "model = torch.compile(model, mode=\"reduce-overhead\")          # CUDA graphs, or a larger batch"
BUSY, SHORT_NS = 0.70, 10_000       # SLOW_PATHS S35
QUEUED = 2                  # kernels in the queue at a launch, median: the GPU takes each as it comes
HOST = 0.5                  # of the idle time: more than anything else


def detect(evidence):
    trace = evidence.trace
    if trace is None or evidence.config.cuda_graph or not trace.kernels or not trace.steps:
        return
    by_device: dict[int, list] = {}
    for s in trace.steps:
        by_device.setdefault(s.device, []).append(s)
    steps = max(by_device.values(), key=lambda some: sum(s.busy_ns for s in some))
    busy, window = sum(s.busy_ns for s in steps), sum(s.duration_ns - s.loader_exposed_ns for s in steps)
    own = evidence.config.step_s > 0
    if own:
        window = int(evidence.config.step_s * 1e9 * len(steps))
    idle = sum(s.idle_ns - s.loader_exposed_ns for s in steps)
    host = sum(s.idle_host_ns + s.idle_launch_ns for s in steps) - sum(s.loader_exposed_ns for s in steps)
    median, queue = median_ns(trace.kernels), trace.launches.queue_median if trace.launches else None
    at_once = queue is not None and queue <= QUEUED
    if window <= 0 or busy >= BUSY * window or host < HOST * idle or not (median < SHORT_NS or at_once):
        return
    count = sum(s.kernels for s in steps) // len(steps)
    saw = [f"busy {busy / window:.0%} of {'the step as timed without a profiler' if own else 'the recorded step'}", f"{count} kernels per step",
           f"median kernel {median / 1e3:.1f} us"] + [f"{queue} kernels in the queue at a launch (median)"] * (queue is not None)
    note = "" if own else "a profiler slows the host: without it the GPU waits less than in this trace"
    yield Finding("", f"the GPU is busy only {busy / window:.0%} of the time: it waits for the host to launch {count} kernels per step",
                  (Place(f"device {steps[0].device}", ", ".join(saw)),), "a larger batch, a CUDA graph, or torch.compile", share=max(0.0, 1 - busy / window),
                  basis="ceiling", note=note, evidence={"busy": busy / window, "kernels_per_step": count, "median_kernel_ns": median, "queue_median": queue})


def median_ns(kernels) -> float:
    """The median length of a kernel, every kernel of one name counted with that name's mean."""
    rows = sorted((k.total_ns / k.count, k.count) for k in kernels if k.count)
    half, seen = sum(n for _, n in rows) / 2, 0
    for length, n in rows:
        seen += n
        if seen >= half:
            return length
    return 0.0


CURES = {"cuda_graph": lambda workload: replace(workload, cuda_graph=True), "compile": lambda workload: replace(workload, compile="default")}


def many_launches(model):
    """Adds zero to the model's output 2000 times, with numbers that stay what they are."""
    def forward_hook(module, args, output):
        for _ in range(2000):
            output = output + 0.0
        return output
    model.register_forward_hook(forward_hook)


def plant(workload):
    return add(workload, on_model=[many_launches])


ALSO = ("pointwise_chains",)        # two thousand additions in a row are one


def examples():
    """900 kernels of 6 us in a step of 20 ms, and the same kernels in a step of 6 ms."""
    from perfscope.trace.analysis import RankAnalysis
    from perfscope.trace.steps import Step
    from perfscope.trace.tables import KernelRow, Launches

    def seen(step_ns, queue):
        busy = 900 * 6_000
        kernel = KernelRow("void at::native::vectorized_elementwise_kernel<4, ...>", "elementwise", 1800, 2 * busy, 4_000, 9_000, 1.0, None, False, False, 1800)
        steps = tuple(Step(f"ProfilerStep#{i}", 0, i * step_ns, step_ns, busy, busy, idle_ns=step_ns - busy, idle_host_ns=step_ns - busy, kernels=900)
                      for i in range(2))
        launches = Launches(1800, 0, 0, 0, 0, 1800, 2 * busy, 6_000 * queue, 9_000 * queue, queue, 2 * queue, 1_000_000)
        return Evidence(Config("cuda"), trace=RankAnalysis(0, 1, "", {"0": "NVIDIA H100 80GB HBM3"}, 1800, 1800, 2 * busy, 2 * busy, steps, (), (kernel,),
                                                           launches=launches))
    return seen(20_000_000, 0), seen(6_000_000, 300)
