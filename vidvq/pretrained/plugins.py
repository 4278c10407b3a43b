"""Tokenizers of other packages: import, construction, checks and fingerprints. Runs the user's code.

:mod:`vidvq.formats.plugin_reference` describes how they are named. The class, or a function, is called without
arguments, or with the path of the weights, and returns a :class:`vidvq.model.Tokenizer`.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidvq.errors import UsageError
from vidvq.formats.checkpoint import Fingerprints, fingerprint
from vidvq.formats.plugin_reference import GROUP, PluginReference
from vidvq.model import Tokenizer
from vidvq.model.pixels import PREPROCESSING
from vidvq.pretrained.interface_checks import check_declaration, guard_calls
from vidvq.user_code import error_line, import_callable, package_of

_FORMS = "give module:Class or path/to/file.py:Class"
_FILE_PREFIX = "vidvq_tokenizer_"


def load_plugin(reference: PluginReference) -> tuple[Tokenizer, Fingerprints]:
    """Import and build a tokenizer, and check its declaration. Its calls are checked from then on.

    Fingerprints cover the name of the class, its ``version``, its factors and codebooks, and its weights: those that
    ``named_weights()`` returns, under names that start with ``encoder.`` (codes depend on them) or ``decoder.``, or all
    of its state for both.

    Returns:
        The tokenizer in eval mode on the CPU, and its fingerprints.

    Raises:
        UsageError: the class cannot be imported or built, or breaks a rule of the interface; the message names it.
    """
    build = _import(reference)
    arguments = [Path(reference.weights)] if reference.weights else []
    try:
        tokenizer = build(*arguments)
    except UsageError:
        raise
    except Exception as error:
        given = f"({reference.weights})" if reference.weights else "()"
        raise UsageError(f"tokenizer {reference.target}{given} raised {error_line(error)}") from error
    try:
        check_declaration(tokenizer)
        prints = _fingerprint(tokenizer)
    except UsageError as error:
        raise UsageError(f"tokenizer {reference.target}: {error}") from error
    except Exception as error:
        raise UsageError(f"tokenizer {reference.target} raised {error_line(error)}") from error
    guard_calls(tokenizer, reference.target)
    return tokenizer, prints


def _import(reference: PluginReference) -> Callable[..., Any]:
    if reference.attribute:
        return import_callable(reference.name, reference.attribute, _FORMS, _FILE_PREFIX)[0]
    entry = next(iter(entry_points(group=GROUP, name=reference.name)))
    try:
        found = entry.load()
    except Exception as error:
        raise UsageError(
            f"tokenizer {entry.name} of the package {package_of(entry)} cannot be imported: {error_line(error)}"
        ) from error
    if not callable(found):
        raise UsageError(f"tokenizer {entry.name} of the package {package_of(entry)}: {entry.value} is not callable")
    return found


def _fingerprint(tokenizer: Tokenizer) -> Fingerprints:
    kind = type(tokenizer)
    model = {
        "kind": "plugin",
        "class": f"{kind.__module__.removeprefix(_FILE_PREFIX)}.{kind.__qualname__}",
        "version": str(getattr(tokenizer, "version", "")),
        "temporal_factor": tokenizer.temporal_factor,
        "spatial_factor": tokenizer.spatial_factor,
        "codebooks": [[book.name, book.size] for book in tokenizer.codebooks],
    }
    # The decoder of a plug-in may change with its version too.
    model["decoder"] = {"class": model["class"], "version": model["version"]}
    return fingerprint(model, PREPROCESSING, {name: _array(name, each) for name, each in _weights(tokenizer).items()})


def _weights(tokenizer: Tokenizer) -> dict[str, Any]:
    named: Any = getattr(tokenizer, "named_weights", None)
    if named is None:
        state = tokenizer.state_dict()
        return {f"{side}.{name}": tensor for side in ("encoder", "decoder") for name, tensor in state.items()}
    try:
        weights = named()
    except Exception as error:
        raise UsageError(f"named_weights raised {error_line(error)}") from error
    if not isinstance(weights, dict):
        raise UsageError(f"named_weights returned a {type(weights).__name__}; it must return a dict of tensors")
    if strange := [name for name in weights if not str(name).startswith(("encoder.", "decoder."))]:
        raise UsageError(f"named_weights has {strange[0]!r}; names must start with encoder. or decoder.")
    return weights


def _array(name: str, tensor: Any) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy()
        # NumPy has no types of 8-bit floats.
        return (tensor.view(torch.uint8) if "float8" in str(tensor.dtype) else tensor).numpy()
    except Exception as error:
        raise UsageError(f"the weights {name} are not a dense tensor with data: {error_line(error)}") from error
