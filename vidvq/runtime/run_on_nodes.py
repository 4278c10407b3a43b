"""Calls a function once on every node of a Ray cluster, in parallel."""

# Ray's functions are only partly typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def run_on_nodes(function: Callable[[int], Any], limit_s: float) -> list[tuple[str, Any, str]]:
    """Call ``function(number)`` on every node of this node's cluster; this node is number 0.

    Args:
        function: function importable by name on every node.
        limit_s: time limit for the answers (seconds); a node without one is a problem.

    Returns:
        Host, result, and why there is none ("" if there is one) of each node, in order of their numbers.
    """
    ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    here = ray.get_runtime_context().get_node_id()
    alive: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
    nodes = sorted(alive, key=lambda node: node["NodeID"] != here)
    # Node 0 runs first, alone: the others check for a file that it creates.
    calls = [_call_on(nodes[0], function, 0)]
    ray.wait(calls, timeout=limit_s)
    calls += [_call_on(node, function, number) for number, node in enumerate(nodes[1:], 1)]
    ray.wait(calls, num_returns=len(calls), timeout=limit_s)
    return [_node_result(node["NodeManagerHostname"], call) for node, call in zip(nodes, calls, strict=True)]


def _call_on(node: dict[str, Any], function: Callable[[int], Any], number: int) -> Any:
    affinity: Any = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=affinity)(_call).remote(function, number)


def _call(function: Callable[[int], Any], number: int) -> Any:
    return function(number)


def _node_result(host: str, call: Any) -> tuple[str, Any, str]:
    try:
        return host, ray.get(call, timeout=0), ""
    except RayError as error:
        return host, None, str(error).strip().splitlines()[-1]
