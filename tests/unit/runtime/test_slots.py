"""How many workers fit a cluster, and which share of its CPUs each of them has for decoding."""

from types import SimpleNamespace

import pytest
import ray

from vidvq.runtime import RuntimeConfig, cgroup, cores_per_worker, runtime
from vidvq.runtime.ray_pool import RayPool
from vidvq.runtime.ray_start import count_slots


@pytest.fixture
def cluster(monkeypatch):
    """``cluster(nodes)``: a cluster of nodes of so many CPUs and GPUs. This process is on the first, with 16 cores."""

    def install(*nodes: tuple[int, int]) -> None:
        alive = [
            {"NodeID": f"node{number}", "Alive": True, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}
            for number, (cpus, gpus) in enumerate(nodes)
        ]
        dead = {"NodeID": "dead", "Alive": False, "Resources": {"CPU": 64, "GPU": 64}}
        here = SimpleNamespace(get_node_id=lambda: "node0")
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", lambda: [*alive, dead])
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": sum(cpus for cpus, _ in nodes)})
        monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
        monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(16)))

    return install


@pytest.mark.parametrize(
    ("gpus", "expected"), [(0, [8, 4]), (1, [3, 1]), (2, [1, 0]), (0.5, [6, 2]), (0.3, [9, 3]), (0.6, [3, 1])]
)
def test_a_worker_has_its_gpus_on_one_node_and_a_fraction_on_one_gpu(cluster, gpus, expected):
    cluster((8, 3), (4, 1))
    assert count_slots(gpus) == {"node0": expected[0], "node1": expected[1]}


@pytest.mark.parametrize(
    ("workers", "gpus", "expected"), [(None, 0.3, 12), (20, 1, 20), (3, 1, 3), (None, 4, 1), (7, 0, 5)]
)
def test_as_many_workers_are_started_as_are_configured_or_fit(cluster, workers, gpus, expected):
    cluster((8, 3), (4, 1))
    assert RayPool(5, workers).count_workers(gpus) == expected


def test_a_cluster_without_a_gpu_yet_gets_one_worker(cluster):
    cluster((8, 0))
    assert RayPool(8).count_workers(1) == 1


@pytest.mark.parametrize(
    ("settings", "on_gpu", "expected"),
    [
        ({}, False, 2),  # 8 workers on 16 cores.
        ({"workers": 3}, False, 8),  # Two of them here, on 16 cores.
        ({}, True, 5),  # One for each of 3 GPUs.
        ({"gpus_per_worker": 0.3}, True, 1),  # 9 workers.
        ({"gpus_per_worker": 2}, True, 16),
        ({"address": "auto", "decode_on": "cluster"}, True, 3),  # 12 CPUs, of which 4 workers occupy none.
        ({"address": "auto", "decode_on": "cluster"}, False, 1),  # None is left.
        ({"address": "auto", "decode_on": "cluster", "workers": 2}, False, 5),
        ({"address": "auto", "decode_on": "cluster", "workers": 2}, True, 6),
    ],
)
def test_cores_are_shared_by_the_workers_of_a_node(cluster, settings, on_gpu, expected):
    cluster((8, 3), (4, 1))
    assert cores_per_worker(RuntimeConfig(**settings), on_gpu) == expected


@pytest.mark.parametrize(("content", "expected"), [("250000 100000\n", 2), ("50000 100000", 1), ("max 100000\n", 16)])
def test_a_container_has_the_cores_of_its_limit(cluster, monkeypatch, tmp_path, content, expected):
    cluster((8, 3))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cgroup, "_CGROUPS", tmp_path)
    (tmp_path / "cpu.max").write_text(content)
    assert cores_per_worker(RuntimeConfig(), on_gpu=True) == expected


def test_without_ray_a_worker_has_all_cores(cluster, monkeypatch):
    cluster((8, 3))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert cores_per_worker(RuntimeConfig(), on_gpu=True) == 16
