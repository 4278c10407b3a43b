"""One call on each machine of a Ray cluster, all at once."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True)
class Answer:
    """Of one machine: its name, and what the call returned; or, where it did not, what went wrong."""

    host: str
    result: Any
    problem: str | None


def on_each_node(function: Callable[[int], Any], limit_s: float) -> list[Answer]:
    """Call ``function(number)`` on each machine of the cluster that this one belongs to; this machine has number 0.

    Args:
        function: importable on every machine.
        limit_s: a machine that has not answered by then is one that went wrong.
    """
    ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    here = ray.get_runtime_context().get_node_id()
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"] != here)
    if not nodes:
        return []
    # First, alone: what it leaves behind is what the others look for.
    asked = [_ask(function, 0, nodes[0])]
    ray.wait(asked, timeout=limit_s)
    asked += [_ask(function, number, node) for number, node in enumerate(nodes[1:], 1)]
    ray.wait(asked, num_returns=len(asked), timeout=limit_s)
    return [_answer(node["NodeManagerHostname"], call) for node, call in zip(nodes, asked, strict=True)]


def _ask(function: Callable[[int], Any], number: int, node: dict[str, Any]) -> Any:
    there: Any = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_call).remote(function, number)


def _call(function: Callable[[int], Any], number: int) -> Any:
    return function(number)


def _answer(host: str, call: Any) -> Answer:
    try:
        return Answer(host, ray.get(call, timeout=0), None)
    except RayError as error:
        return Answer(host, None, str(error).strip().splitlines()[-1])
