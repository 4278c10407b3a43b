"""Compilation of functions to single graphs."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange, repeat
from torch.compiler import config as compiler


def compile_graph(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function to one graph for each shape of its inputs.

    Args:
        function: function of tensors; a graph break is an error.
        **options: further arguments of ``torch.compile``.
    """
    for operation in (rearrange, repeat):
        # If torch traced into einops, the first tensor of another type anywhere would recompile every graph.
        torch.compiler.allow_in_graph(operation)
    # By default, a ninth shape of a function is an error.
    compiler.recompile_limit = compiler.accumulated_recompile_limit = sys.maxsize
    return torch.compile(function, fullgraph=True, dynamic=False, **options)
