"""`vidvq train --profile`: a table that accounts for a step, and a trace."""

import gzip
import json
from types import SimpleNamespace

import torch
from torch._C._autograd import DeviceType
from torch.profiler import profile

from vidvq.train.profiler import BACKWARD, FORWARD, PHASES, device_table, operator_table, phase, phase_table


def test_a_profile_accounts_for_the_time_of_a_step(train, tmp_path):
    run = train(tmp_path / "run", "steps=11", "--profile")
    told = (run.out / "profile.txt").read_text()
    assert told in run.stderr
    parts, operators = told.split("operator, self CPU time")
    shares = {line[:44].strip(): float(line.split()[-1][:-1]) for line in parts.splitlines() if line.endswith("%")}
    assert sum(shares.values()) == 100 or abs(sum(shares.values()) - 100) < 0.5
    # On a busy machine what lies between the parts may take longer than they do.
    assert min(shares.values()) >= 0 and shares["generator, backward and step"] > 1 and shares["discriminator"] > 0
    assert "aten::convolution_backward" in operators
    counts = {line[:44].strip(): float(line.split()[-1]) for line in parts.splitlines() if " per step" in line}
    # The optimizers read their own counters, which are on the CPU on every device.
    assert counts["operators launched per step"] > 500 and counts["reads by the host per step"] > 1
    assert counts["MiB copied to the device per step"] == 0
    with gzip.open(run.out / "profile.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"generator, forward", "aten::convolution_backward"} <= names


def test_a_run_too_short_for_a_profile_warns(train, tmp_path):
    run = train(tmp_path / "run", "steps=2", "--profile")
    assert "warning: no profile was written: the run ended before step 10 after its start" in run.stderr
    assert not (run.out / "profile.txt").exists()


def test_a_trace_of_a_gpu_counts_kernels_and_copies():
    events = [{"name": "gemm", "cat": "kernel"}] * 6 + [{"name": "aten::mm", "cat": "cpu_op"}] * 9
    events += [{"name": "aten::_local_scalar_dense", "cat": "cpu_op"}, {"name": "process_name"}]
    copies = [("Memcpy HtoD (Pinned -> Device)", 3 << 20), ("Memcpy DtoH (Device -> Pageable)", 1 << 19)]
    copies += [("Memcpy DtoD (Device -> Device)", 1 << 30)]
    events += [{"name": name, "cat": "gpu_memcpy", "args": {"bytes": size}} for name, size in copies]
    assert [float(line.split()[-1]) for line in device_table(events, steps=1)] == [6, 1, 3, 0.5]
    assert [float(line.split()[-1]) for line in device_table(events[6:17], steps=1)] == [10, 1, 0, 0]
    assert next(iter(device_table(events, steps=1))).startswith("kernels launched per step")


def test_a_profile_of_a_gpu_counts_each_kernel_once_and_phases_by_the_host():
    def event(key: str, device: DeviceType, host_us: float, device_us: float, mark: bool = False) -> SimpleNamespace:
        times = {"cpu_time_total": host_us, "self_cpu_time_total": host_us, "self_device_time_total": device_us}
        return SimpleNamespace(key=key, device_type=device, is_user_annotation=mark, count=3, **times)

    events = [
        event("ProfilerStep*", DeviceType.CPU, 9000, 0),
        event(FORWARD, DeviceType.CPU, 3000, 0),
        event("aten::mm", DeviceType.CPU, 60, 600),
        event("gemm", DeviceType.CUDA, 0, 600),
        event("relu", DeviceType.CUDA, 0, 200),
        # The marks as the device sees them.
        event("ProfilerStep*", DeviceType.CUDA, 0, 8000, mark=True),
        event(FORWARD, DeviceType.CUDA, 0, 800, mark=True),
        event("Optimizer.step#AdamW.step", DeviceType.CUDA, 0, 500, mark=True),
    ]
    assert [line.split() for line in operator_table(events, cuda=True)[1:]] == [
        ["gemm", "0.2", "75.0%", "1"],
        ["relu", "0.1", "25.0%", "1"],
    ]
    lines = phase_table(events)
    assert lines[0].startswith("a step takes 3.0 ms")
    assert [line.split()[-1] for line in lines if line.startswith((*PHASES, "other"))] == ["33.3%", "66.7%"]


def test_a_phase_lasts_until_the_device_is_done_only_while_a_profile_is_recorded(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    with phase(BACKWARD):
        pass
    assert not waited
    with profile(activities=[torch.profiler.ProfilerActivity.CPU]), phase(BACKWARD):
        pass
    assert waited == [True]
