"""`vidvq convert`: a folder of safetensors and a config from a pickled PyTorch checkpoint.

The checkpoint is read with ``torch.load(weights_only=True)``, which builds tensors and containers and runs no code.
"""

import re
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors.torch import save
from torch import Tensor

from vidvq.errors import UsageError
from vidvq.pretrained.adapters import adapter_kind, load_adapter
from vidvq.storage import attempt_path, is_remote, pretty_json, sync_folder, write_atomic

_WEIGHTS = "model.safetensors"
# diffusers has another name for the weights.
_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
# Where training frameworks keep the weights, tried in this order; the whole file if there is none.
_ENTRIES = ("state_dict", "model_state_dict", "model", "module", "generator", "ema", "params")

# Copies of each element that tensors which share memory may need, and bytes that are never refused.
_MOST_COPIES, _FREE_BYTES = 4, 64 << 20


@dataclass(frozen=True)
class KeyMap:
    """Content of the file of ``--keys``.

    Attributes:
        entry: dotted path of the state dict in the checkpoint; None to find it.
        drop: regular expressions; tensors whose name matches one from the start are left out.
        rename: regular expressions to their replacements, applied in this order, each to every name.
        config: content of ``config.json``; None to leave it to ``--model-config``.
    """

    entry: str | None = None
    drop: tuple[str, ...] = ()
    rename: dict[Annotated[str, Field(min_length=1)], str] = field(default_factory=dict[str, str])
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class Converted:
    """Result of a conversion.

    Attributes:
        out: the folder.
        tensors: number of tensors.
        parameters: number of their elements.
        dropped: number of entries that were left out.
        entry: path of the state dict in the checkpoint; empty for the whole file.
        tokenizer: class that `--checkpoint` loads the folder as; None if vidvq knows no tokenizer like it.
    """

    out: Path
    tensors: int
    parameters: int
    dropped: int
    entry: str
    tokenizer: str | None

    def lines(self) -> list[str]:
        """The result in lines of text."""
        source = f" of {self.entry}" if self.entry else ""
        found = [f"{self.tensors} tensors{source} with {self.parameters:,} elements written to {self.out}"]
        if self.dropped:
            found.append(f"{self.dropped} entries left out")
        known = f"it is loaded as {self.tokenizer}" if self.tokenizer else "it is not a tokenizer that vidvq knows"
        return [*found, f"as a --checkpoint, {known}"]


def convert(source: Path, out: Path, keys: KeyMap, model_config: dict[str, Any] | None = None) -> Converted:
    """Convert a pickled checkpoint.

    Args:
        source: checkpoint that ``torch.save`` wrote (.ckpt, .pth, .pt, .bin).
        out: folder to write; must not exist.
        keys: the state dict in it, and the names of the tensors.
        model_config: content of ``config.json``; None for that of ``keys``.

    Raises:
        UsageError: the checkpoint needs code to be loaded, is damaged or has no dense tensors of a type of safetensors,
            two tensors get one name, they are far larger than the file, a regular expression is wrong, or ``out``
            exists or is not local.
    """
    if is_remote(out):
        raise UsageError(f"--out {out} is not a local folder; convert to one, and copy it")
    if out.exists():
        raise UsageError(f"{out} exists; give another --out")
    if model_config and keys.config:
        raise UsageError("the config is given twice, by --model-config and in --keys; give it once")
    entry, state = _find_state(_load(source), keys.entry, source)
    tensors, dropped = _rename(state, keys)
    # A view may repeat the elements of a small storage without end.
    size, most = sum(tensor.nbytes for tensor in tensors.values()), _MOST_COPIES * source.stat().st_size + _FREE_BYTES
    if size > most:
        raise UsageError(
            f"the tensors of {source} repeat elements to {size:,} bytes, {most:,} at most for a file of its size; "
            "leave them out with drop: in --keys"
        )
    # Tensors may share memory, which safetensors refuses.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    # Not needed while the copies are serialized, which takes as much memory once more.
    del state
    settings = model_config or keys.config
    tokenizer = _write(out, tensors, settings)
    return Converted(out, len(tensors), sum(map(Tensor.numel, tensors.values())), dropped, entry, tokenizer)


def _load(source: Path) -> Any:
    if not source.is_file():
        fault = "is a folder; give the file in it" if source.is_dir() else "does not exist; give a file of torch.save"
        raise UsageError(f"{source} {fault}")
    try:
        # Warnings are about formats that this command refuses anyway.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"(?:GLOBAL|global|Unsupported class) ([\w.]+)", str(error))
        if found:
            raise UsageError(
                f"{source} needs {found[1]} to be loaded, which is code and may do anything; ask its authors for "
                "safetensors, or for a file of tensors alone"
            ) from error
        # PyTorch's own message advises to load it with weights_only=False.
        kind = "a TorchScript file, which is code" if "TorchScript" in str(error) else "damaged, or of another format"
        raise UsageError(f"{source} is {kind}; give a checkpoint of tensors that torch.save wrote") from error


def _find_state(loaded: Any, entry: str | None, source: Path) -> tuple[str, dict[str, Any]]:
    """Return the path and the content of the state dict."""
    if entry is not None:
        for part in entry.split("."):
            if not isinstance(loaded, dict) or part not in loaded:
                there = ", ".join(map(str, loaded)) if isinstance(loaded, dict) else type(loaded).__name__
                raise UsageError(f"{source} has no entry {entry}; at {part!r} there is: {there[:300]}")
            loaded = loaded[part]
        found = entry
    else:
        found = ""
        if isinstance(loaded, dict) and not any(isinstance(value, Tensor) for value in loaded.values()):
            found = next((name for name in _ENTRIES if isinstance(loaded.get(name), dict)), "")
            loaded = loaded[found] if found else loaded
    if not isinstance(loaded, dict) or not any(isinstance(value, Tensor) for value in loaded.values()):
        there = ", ".join(map(str, loaded)) if isinstance(loaded, dict) else type(loaded).__name__
        raise UsageError(
            f"{source} has no tensors in {found or 'its top level'}, only: {there[:300]}; set entry: in --keys"
        )
    return found, loaded


def _rename(state: dict[str, Any], keys: KeyMap) -> tuple[dict[str, Tensor], int]:
    """Return the tensors by their new names, and the number of entries that were left out."""
    try:
        drop = [re.compile(pattern) for pattern in keys.drop]
        rename = [(re.compile(pattern), new) for pattern, new in keys.rename.items()]
    except re.error as error:
        raise UsageError(f"{error.pattern!r} in --keys is not a regular expression: {error}") from error
    tensors: dict[str, Tensor] = {}
    came_from: dict[str, str] = {}
    for key, value in state.items():
        name = str(key)
        if not isinstance(value, Tensor) or any(pattern.match(name) for pattern in drop):
            continue
        new = name
        for pattern, replacement in rename:
            try:
                new = pattern.sub(replacement, new)
            except (re.error, IndexError) as error:
                raise UsageError(f"{replacement!r} in --keys is not a replacement: {error}") from error
        if new in tensors:
            raise UsageError(f"{came_from[new]} and {name} both become {new}; change rename: in --keys")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "quantized" if value.is_quantized else "without data" if value.is_meta else "sparse"
            raise UsageError(f"{name} is {kind}, which safetensors cannot hold; leave it out with drop: in --keys")
        tensors[new], came_from[new] = value, name
    if not tensors:
        raise UsageError("drop: in --keys leaves no tensors")
    return tensors, len(state) - len(tensors)


def _write(out: Path, tensors: dict[str, Tensor], settings: dict[str, Any] | None) -> str | None:
    """Write the folder atomically, and return the class of the tokenizer that it holds."""
    out.parent.mkdir(parents=True, exist_ok=True)
    attempt = attempt_path(out)
    try:
        attempt.mkdir()
        is_diffusers = settings is not None and "_class_name" in settings
        write_atomic(attempt / (_DIFFUSERS_WEIGHTS if is_diffusers else _WEIGHTS), _serialize(tensors))
        if settings is not None:
            write_atomic(attempt / "config.json", pretty_json(settings))
        tokenizer = _tokenizer_in(attempt, out)
        attempt.replace(out)
    except BaseException:
        shutil.rmtree(attempt, ignore_errors=True)
        raise
    sync_folder(out.parent)
    return tokenizer


def _serialize(tensors: dict[str, Tensor]) -> bytes:
    try:
        return save(tensors, metadata={"format": "pt"})
    except KeyError as error:
        raise UsageError(f"safetensors cannot hold tensors of {error}; leave them out with drop: in --keys") from error


def _tokenizer_in(folder: Path, out: Path) -> str | None:
    """Load the folder if its config names a tokenizer, to prove that its names and shapes are right."""
    if not adapter_kind(folder):
        return None
    try:
        return type(load_adapter(folder)[0]).__name__
    except UsageError as error:
        raise UsageError(str(error).replace(str(folder), str(out))) from error
