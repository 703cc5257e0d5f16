"""Fingerprint, watch, throttling and canaries: a scripted pynvml, a scripted /proc, this machine (METHOD 4, 10)."""

import hashlib
import inspect
import json
import math
import os
import platform
import subprocess
import sys
import threading

import pytest

from tests.fakes import FakeNVML
from perfscope import elsewhere
from perfscope.measure import machine
from perfscope.measure.machine import (Nvml, canaries, contended, cpu, cpu_quota, cpu_reader, fingerprint, git_state,
                                       memory_limit, memory_now, peak_memory, reset_peak, throttled, variables, watch)
from perfscope.record import Environment, from_dict, to_dict

torch = pytest.importorskip("torch")


def files(root, **texts):
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# ---------------------------------------------------------------- fingerprint

def test_the_fingerprint_of_this_machine_is_a_record_and_names_nobody():
    found = fingerprint("cpu")
    text = json.dumps(to_dict(found), allow_nan=False)
    assert from_dict(Environment, json.loads(text)) == found
    assert found.device == "cpu" and found.device_name and len(found.host_hash) == 12 and found.device_hash == ""
    assert 1 <= found.hardware["cores_usable"] <= found.hardware["cores"] == os.cpu_count()
    assert found.hardware["memory_bytes"] > 2 ** 28 and found.software["torch"] == torch.__version__
    assert found.hardware["threads"] == found.switches["num_threads"] == torch.get_num_threads()
    assert os.path.expanduser("~") not in text and (len(platform.node()) < 5 or platform.node() not in text)
    assert fingerprint("cpu").host_hash == found.host_hash


def test_ids_are_salted_hashes():
    assert machine._hash("gpu X") not in (hashlib.sha256(b"gpu X").hexdigest()[:12], machine._hash("gpu Y"))


def test_switches_follow_torch():
    before = torch.backends.cudnn.benchmark
    try:
        for value in (True, False):
            torch.backends.cudnn.benchmark = value
            assert machine.switches()["cudnn.benchmark"] is value
    finally:
        torch.backends.cudnn.benchmark = before
    with torch.autograd.set_detect_anomaly(True):
        assert machine.switches()["anomaly_mode"] is True


TF32 = """
import torch
from perfscope.measure import machine
print(machine.tf32())
torch.set_float32_matmul_precision("high")
print(machine.tf32())
torch.set_float32_matmul_precision("highest")
print(machine.tf32())
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    for value in ("tf32", "ieee"):
        torch.backends.cuda.matmul.fp32_precision = value
        print(machine.tf32())
"""


def test_tf32_by_either_switch():
    """In a process of its own: whoever has used the newer switch gets errors from the older one for good."""
    done = subprocess.run([sys.executable, "-c", TF32], capture_output=True, text=True, env=elsewhere.environment())
    assert done.stdout.split() in (["False", "True", "False", "True", "False"], ["False", "True", "False"]), done.stderr


def test_variables_are_an_allow_list_without_paths_and_ids():
    found = variables({"OMP_NUM_THREADS": "2", "HOME": "/home/alice", "CUDA_HOME": "/opt/alice",
                       "NCCL_DEBUG": "/tmp/alice.log", "CUDA_VISIBLE_DEVICES": "GPU-8a1b", "CUDA_LAUNCH_BLOCKING": "1",
                       "NCCL_SOCKET_IFNAME": "eth-alice", "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                       "AWS_SECRET": "x"})
    assert found == {"OMP_NUM_THREADS": "2", "NCCL_DEBUG": "(not kept)", "CUDA_VISIBLE_DEVICES": "(not kept)",
                     "CUDA_LAUNCH_BLOCKING": "1", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}


CPUINFO = ("processor\t: 0\nmodel name\t: Fast CPU @ 3GHz\nflags\t\t: fpu sse avx2 avx512f amx_bf16 amx_tile\n"
           "processor\t: 1\n")
MEMINFO = "MemTotal:       32000000 kB\nMemFree: 1 kB\nMemAvailable:   16000000 kB\n"


def test_cpu_of_a_scripted_proc(tmp_path):
    root = files(tmp_path, proc__cpuinfo=CPUINFO, proc__meminfo=MEMINFO)
    found = cpu(root)
    assert found["cpu"] == "Fast CPU @ 3GHz"
    assert found["instruction_sets"] == ["avx2", "avx512f", "amx_tile", "amx_bf16"]
    assert found["cpu_quota"] is None and found["memory_bytes"] == 32_000_000 * 1024


@pytest.mark.parametrize("texts, quota", [
    ({"sys__fs__cgroup__cpu_DOT_max": "150000 100000\n"}, 1.5),
    ({"sys__fs__cgroup__cpu_DOT_max": "max 100000\n"}, None),
    ({"proc__self__cgroup": "0::/a/b\n", "sys__fs__cgroup__a__cpu_DOT_max": "50000 100000"}, 0.5),       # its parent's
    ({"proc__self__cgroup": "4:cpu,cpuacct:/job\n", "sys__fs__cgroup__cpu__job__cpu_DOT_cfs_quota_us": "300000",
      "sys__fs__cgroup__cpu__job__cpu_DOT_cfs_period_us": "100000"}, 3.0),                               # version 1
    ({"proc__self__cgroup": "4:cpu:/\n", "sys__fs__cgroup__cpu__cpu_DOT_cfs_quota_us": "-1",
      "sys__fs__cgroup__cpu__cpu_DOT_cfs_period_us": "100000"}, None),
    ({"sys__fs__cgroup__cpu_DOT_max": "garbage"}, None),
    ({}, None),
])
def test_cpu_quota(tmp_path, texts, quota):
    assert cpu_quota(files(tmp_path, **texts)) == quota


def test_memory_is_what_the_control_group_leaves(tmp_path):
    root = files(tmp_path, proc__meminfo=MEMINFO)
    assert memory_limit(root) == (32_000_000 * 1024, 16_000_000 * 1024) and memory_now("cpu", root) == 16_000_000 * 1024
    files(tmp_path, sys__fs__cgroup__memory_DOT_max="4000000000", sys__fs__cgroup__memory_DOT_current="1000000000")
    assert memory_limit(root) == (4_000_000_000, 3_000_000_000)
    files(tmp_path, sys__fs__cgroup__memory_DOT_max="9223372036854771712")         # how version 1 says "no limit"
    assert memory_limit(root) == (32_000_000 * 1024, 16_000_000 * 1024)
    assert memory_limit(tmp_path / "nothing") == (0, 0)


def git(folder, *argv):
    argv = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com", *argv]
    return subprocess.run(argv, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_git_state(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {}                                    # no repository
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == {}                                    # no commit
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "one")
    assert git_state(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path)["dirty"] is True
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {}                                    # no git


# ---------------------------------------------------------------- NVML

def test_a_reading_has_all_columns():
    with Nvml("cuda:0", FakeNVML(reasons=[4])) as gpu:
        assert gpu.note is None
        assert gpu() == {"sm_mhz": 1980, "mem_mhz": 3201, "power_w": 412.3, "temp_c": 61, "reasons": 4}
        assert gpu.facts()["sm_max_mhz"] == 1980 and gpu.facts()["mem_max_mhz"] == 3201
    assert gpu.nvml.calls[-1] == "nvmlShutdown"


@pytest.mark.parametrize("error", ["NVMLError_LibraryNotFound", "NVMLError_NoPermission"])
def test_without_driver_or_rights_there_is_one_note_and_no_error(error):
    fake = FakeNVML(init_error=error)
    with watch("cuda", nvml=fake) as seen:
        seen.tick()
        assert seen.read() == {}
    assert seen.columns == {} and seen.max_sm_mhz is None
    assert seen.note.code == "no-telemetry" and error in seen.note.text
    assert fake.calls == ["nvmlInit"]                    # nothing more is asked, no shutdown of what never began


def test_without_pynvml_there_is_one_note(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert "pynvml is not installed" in Nvml("cuda").note.text


def test_a_query_that_is_not_supported_is_left_out():
    gpu = Nvml("cuda", FakeNVML(missing={"nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksThrottleReasons"}))
    assert set(gpu()) == {"sm_mhz", "mem_mhz", "temp_c"} and gpu.note is None


def test_a_query_that_fails_later_is_a_hole_in_the_column():
    fake = FakeNVML()
    seen = watch("cuda", nvml=fake)
    seen.tick()
    fake.missing = {"nvmlDeviceGetTemperature"}
    seen.tick()
    assert seen.columns["temp_c"][0] == 61 and math.isnan(seen.columns["temp_c"][1])
    assert len({len(column) for column in seen.columns.values()}) == 1


def test_the_gpu_is_found_by_its_uuid(monkeypatch):
    props = type("P", (), {"uuid": "8a1b-22"})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: props)
    assert Nvml("cuda:1", FakeNVML()).handle == "GPU-8a1b-22"
    assert Nvml("cuda:1", FakeNVML(missing={"nvmlDeviceGetHandleByUUID"})).handle == 1


def test_the_watch_reads_in_the_background_and_stops(monkeypatch):
    monkeypatch.setattr(machine, "NVML_PERIOD_S", 0.001)
    fake, enough = FakeNVML(), threading.Event()
    count = fake.nvmlDeviceGetTemperature
    fake.nvmlDeviceGetTemperature = lambda *a: (enough.set() if len(fake.calls) > 50 else None) or count(*a)
    with watch("cuda", nvml=fake) as seen:
        assert enough.wait(30)
        assert seen.read()["sm_mhz"] == 1980
    rows = len(seen.columns["time_s"])
    assert rows >= 5 and seen.columns["time_s"] == sorted(seen.columns["time_s"]) and seen.max_sm_mhz == 1980
    assert not [t for t in threading.enumerate() if t.name == "perfscope-watch"] and len(seen.columns["time_s"]) == rows


# ---------------------------------------------------------------- throttling

def columns(sm, reasons):
    seen = watch("cuda", nvml=FakeNVML(sm=[sm[0], *sm], reasons=[reasons[0], *reasons]))    # one for the start
    for _ in range(max(len(sm), len(reasons))):
        seen.tick()
    return seen.columns


def test_the_message_of_the_design():
    warned = throttled(columns([1980] * 86 + [1120] * 14, [0] * 86 + [0x20] * 14), {}, 1980, 256)
    assert warned.code == "throttled" and warned.batch_size == 256
    assert warned.text == ("throttled: SM clock fell to 1120 of 1980 MHz in 14 % of samples (thermal slowdown). "
                           "Shares stay valid, milliseconds do not.")
    assert warned.hint == "Try: --budget 120, or let the GPU cool."


@pytest.mark.parametrize("bit, word", [(0x08, "hardware slowdown"), (0x40, "hardware thermal"), (0x80, "power brake")])
def test_more_than_5_percent_of_slowdowns_is_throttling(bit, word):
    assert throttled(columns([1900] * 100, [0] * 95 + [bit] * 5), None, 1980) is None
    assert word in throttled(columns([1900] * 100, [0] * 94 + [bit] * 6), None, 1980).text


def test_a_software_power_cap_is_normal():
    assert throttled(columns([1700] * 50, [0x04] * 50), None, 1980) is None


@pytest.mark.parametrize("mhz, flagged", [(1485, False), (1484, True)])          # 75 % of 1980 is 1485
def test_a_low_median_clock_is_throttling(mhz, flagged):
    warned = throttled(columns([mhz] * 30, [0x04] * 30), None, 1980)
    assert (warned is not None) is flagged and (not flagged or "1484 of 1980 MHz in the median" in warned.text)
    assert throttled(columns([mhz] * 30, [0] * 30), None, None) is None          # nothing to hold it against


def test_an_idle_gpu_is_not_throttled():
    assert throttled(columns([345] * 80 + [1980] * 20, [1] * 80 + [0] * 20), None, 1980) is None
    assert throttled(columns([345] * 80, [1] * 80), None, 1980) is None


def test_holes_in_the_telemetry_are_no_slowdown():
    assert throttled({"sm_mhz": [math.nan] * 9 + [1980.0], "reasons": [math.nan] * 10}, None, 1980) is None


@pytest.mark.parametrize("spread, flagged", [(0.029, False), (0.031, True)])
def test_the_canary_notices_where_nvml_has_no_rights(spread, flagged):
    canary = {"copy": [1.0] * 60, "matmul": [1.0] * 30 + [1.0 + spread] * 29 + [5.0]}     # one outlier says nothing
    warned = throttled({}, canary, None)
    assert (warned is not None) is flagged and (not flagged or "the same matmul took times 3.1 % apart" in warned.text)
    assert throttled({}, {}, None) is None and throttled({}, {"copy": [1.0]}, 1980) is None


# ---------------------------------------------------------------- a busy CPU

def stat(root, *cores):
    rows = [f"cpu{i} {' '.join(str(x) for x in row)} 0 0" for i, row in enumerate(cores)]
    files(root, proc__stat="cpu 1 2 3\n" + "\n".join(rows) + "\nintr 5\n", proc__loadavg="1.25 0.5 0.1 1/86 6052\n")


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(machine, "_cores", lambda: {0, 1})


def test_shares_of_a_scripted_second(tmp_path, two_cores):
    #             user nice system idle wait irq soft steal
    stat(tmp_path, (100, 0, 50, 1000, 0, 0, 0, 0), (100, 0, 50, 1000, 0, 0, 0, 0), (9, 9, 9, 9, 9, 9, 9, 9))
    own = iter([2.0, 2.9])
    read = cpu_reader(tmp_path, lambda: next(own))
    stat(tmp_path, (180, 0, 60, 1000, 0, 0, 0, 10), (120, 0, 60, 1060, 0, 0, 5, 5), (99, 9, 9, 9, 9, 9, 9, 9))
    seen = read()                       # 200 ticks: 125 busy, of which 90 ours; 15 stolen
    assert seen == pytest.approx({"own": 0.45, "others": 0.175, "steal": 0.075, "load": 1.25})


def test_under_a_quota_the_hosts_cores_say_nothing_about_others(tmp_path, two_cores):
    files(tmp_path, sys__fs__cgroup__cpu_DOT_max="50000 100000")
    stat(tmp_path, (0,) * 8, (0,) * 8)
    read = cpu_reader(tmp_path, lambda: 0.0)
    stat(tmp_path, (50, 0, 0, 50, 0, 0, 0, 0), (50, 0, 0, 50, 0, 0, 0, 0))
    seen = read()
    assert math.isnan(seen["others"]) and seen["own"] == 0


def test_without_proc_there_are_only_holes(tmp_path):
    assert all(math.isnan(x) for x in cpu_reader(tmp_path)().values())


def test_this_machine_can_be_read_and_a_sample_is_not_read_on_a_cpu():
    with watch("cpu") as seen:
        seen.tick()
        assert seen.read() == {}
    assert set(seen.columns) == {"time_s", "own", "others", "steal", "load"} and seen.note is None


@pytest.mark.parametrize("others, steal, expected", [
    ([0.05, 0.05], [0.0, 0.02], ""),
    ([0.02, 0.10], [0.0, 0.0], "other processes used 6 %"),
    ([0.0, 0.0], [0.06, 0.0], "the hypervisor took 3 %"),
    ([0.2, 0.2], [0.1, 0.1], "other processes used 20 % and the hypervisor took 10 %"),
    ([math.nan, 0.3], [math.nan, math.nan], "other processes used 30 %"),
    ([], [], ""),
])
def test_a_busy_machine_is_noticed(others, steal, expected):
    warned = contended({"others": others, "steal": steal}, 8)
    assert (warned is None) == (expected == "")
    if warned:
        assert warned.code == "busy-machine" and f"{expected} of the cores" in warned.text and warned.batch_size == 8


# ---------------------------------------------------------------- yardstick and memory

def test_canaries_are_random_fixed_and_leave_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    calls = canaries("cpu", torch.bfloat16)
    assert set(calls) == {"matmul", "copy"} and torch.equal(torch.get_rng_state(), before)
    cells = {name: inspect.getclosurevars(call).nonlocals for name, call in calls.items()}
    for call in calls.values():
        call()
    a, b, product = (cells["matmul"][n] for n in ("a", "b", "product"))
    assert a.dtype == torch.float32 and a.shape == (512, 512) and torch.equal(product, a @ b)
    source, target = cells["copy"]["source"], cells["copy"]["target"]
    assert torch.equal(source, target) and source.numel() * 4 == 32 << 20 and (source != 0).float().mean() > 0.999
    again = canaries("cpu")["copy"]
    assert torch.equal(inspect.getclosurevars(again).nonlocals["source"], source)


def test_memory_of_a_cpu():
    reset_peak("cpu")
    assert peak_memory("cpu") is None and 0 < memory_now("cpu") <= memory_limit()[0]
