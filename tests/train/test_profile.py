"""`vidvq train --profile`: a table that accounts for a step, and a trace."""

import gzip
import json

from vidvq.train.profiler import count_requests


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
    assert [float(line.split()[-1]) for line in count_requests(events, steps=1)] == [6, 1, 3, 0.5]
    assert [float(line.split()[-1]) for line in count_requests(events[6:17], steps=1)] == [10, 1, 0, 0]
    assert next(iter(count_requests(events, steps=1))).startswith("kernels launched per step")
