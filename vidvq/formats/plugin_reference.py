"""References to tokenizers of other packages, which stand in place of a checkpoint path.

- ``NAME``, an entry point of the group ``vidvq.tokenizers``;
- ``module:Class`` or ``path/to/file.py:Class``;
- any of them with ``@PATH``, the path of the weights.
"""

import re
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

from vidvq.formats.checkpoint import BUNDLED, resolve_checkpoint
from vidvq.settings import Located, absolute_path
from vidvq.storage import is_remote

GROUP = "vidvq.tokenizers"
_REFERENCE = re.compile(r"(?P<name>[^@:]+)(?::(?P<attribute>[A-Za-z_]\w*))?(?:@(?P<weights>.+))?")
_MODULE = re.compile(r"[A-Za-z_][\w.]*|.+\.py")


@dataclass(frozen=True)
class PluginReference:
    """A tokenizer of another package.

    Attributes:
        name: name of the entry point, module, or path of a ``.py`` file.
        attribute: name of the class or function in the module; None for an entry point.
        weights: path of the weights; None to call the class without arguments.
    """

    name: str
    attribute: str | None = None
    weights: str | None = None

    def __str__(self) -> str:
        return f"{self.target}@{self.weights}" if self.weights else self.target

    @property
    def target(self) -> str:
        """The reference without weights."""
        return f"{self.name}:{self.attribute}" if self.attribute else self.name

    def absolute(self) -> "PluginReference":
        """The same reference for processes in another folder."""
        name = str(Path(self.name).absolute()) if self.name.endswith(".py") else self.name
        weights = str(Path(self.weights).absolute()) if self.weights else None
        return replace(self, name=name, weights=weights)


def find_plugin(path: Path) -> PluginReference | None:
    """Parse the reference to a plug-in that stands in place of a checkpoint path; None if it is a path.

    Nothing is imported. An existing path is never a reference.
    """
    if is_remote(path) or path.exists():
        return None
    match = _REFERENCE.fullmatch(str(path))
    if not match:
        return None
    name, attribute, weights = match["name"], match["attribute"], match["weights"]
    is_known = bool(_MODULE.fullmatch(name)) if attribute else name in entry_points(group=GROUP).names
    return PluginReference(name, attribute, weights) if is_known else None


def absolute_tokenizer(name: str) -> str:
    """Make a checkpoint path or a reference absolute; ``bundled``, whose path each machine knows, is kept."""
    path = resolve_checkpoint(name)
    if path == BUNDLED:
        return name
    reference = find_plugin(path)
    return str(reference.absolute()) if reference else absolute_path(name)


TokenizerName = Annotated[str, Located(absolute_tokenizer)]
