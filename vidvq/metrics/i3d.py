"""I3D, the network whose logits are the features of FVD.

Carreira and Zisserman 2017, "Quo Vadis, Action Recognition?", figure 3; FVD is from Unterthiner et al. 2018, "Towards
Accurate Generative Models of Video". Weights are not included: tensors of PyTorch ports of the Kinetics-400 RGB network
load by the names that these ports share.
"""

from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.metrics.perceptual import read_weights

FEATURES = 400
# Shortest video that the last pooling layer takes (frames).
MIN_FRAMES = 9
_SIDE = 224
_EPSILON = 1e-3


class _Branches(NamedTuple):
    """Output channels of an Inception module: each branch, and the bottleneck before a 3x3x3 convolution."""

    point: int
    middle_1: int
    branch_1: int
    middle_2: int
    branch_2: int
    pooled: int

    @property
    def total(self) -> int:
        return self.point + self.branch_1 + self.branch_2 + self.pooled


# Layers in order: kernel and stride of a max pooling, or the branches of an Inception module.
_POOL_2 = ((1, 3, 3), (1, 2, 2))
_STACK: tuple[tuple[str, _Branches | tuple[tuple[int, int, int], tuple[int, int, int]]], ...] = (
    ("MaxPool3d_3a_3x3", _POOL_2),
    ("Mixed_3b", _Branches(64, 96, 128, 16, 32, 32)),
    ("Mixed_3c", _Branches(128, 128, 192, 32, 96, 64)),
    ("MaxPool3d_4a_3x3", ((3, 3, 3), (2, 2, 2))),
    ("Mixed_4b", _Branches(192, 96, 208, 16, 48, 64)),
    ("Mixed_4c", _Branches(160, 112, 224, 24, 64, 64)),
    ("Mixed_4d", _Branches(128, 128, 256, 24, 64, 64)),
    ("Mixed_4e", _Branches(112, 144, 288, 32, 64, 64)),
    ("Mixed_4f", _Branches(256, 160, 320, 32, 128, 128)),
    ("MaxPool3d_5a_2x2", ((2, 2, 2), (2, 2, 2))),
    ("Mixed_5b", _Branches(256, 160, 320, 32, 128, 128)),
    ("Mixed_5c", _Branches(384, 192, 384, 48, 128, 128)),
)


def _pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad ``b c t h w`` with zeros so that each output size is the input size over the stride, rounded up."""
    padding: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


class _Convolution(nn.Module):
    """Convolution with ``SAME`` padding, batch norm and ReLU; the last one has only a bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, last: bool = False) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(outputs, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3d(_pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return out if self.bn is None else F.relu(self.bn(out))


class _MaxPool(nn.Module):
    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class _Inception(nn.Module):
    def __init__(self, inputs: int, branches: _Branches) -> None:
        super().__init__()
        self.b0 = _Convolution(inputs, branches.point, 1)
        self.b1a = _Convolution(inputs, branches.middle_1, 1)
        self.b1b = _Convolution(branches.middle_1, branches.branch_1, 3)
        self.b2a = _Convolution(inputs, branches.middle_2, 1)
        self.b2b = _Convolution(branches.middle_2, branches.branch_2, 3)
        self.b3a = _MaxPool((3, 3, 3), (1, 1, 1))
        self.b3b = _Convolution(inputs, branches.pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))]
        return torch.cat(parts, dim=1)


class I3D(nn.Module):
    """I3D for RGB video. Layer names are those of its published PyTorch ports."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleDict(
            {
                "Conv3d_1a_7x7": _Convolution(3, 64, 7, 2),
                "MaxPool3d_2a_3x3": _MaxPool(*_POOL_2),
                "Conv3d_2b_1x1": _Convolution(64, 64, 1),
                "Conv3d_2c_3x3": _Convolution(64, 192, 3),
            }
        )
        inputs = 192
        for name, layer in _STACK:
            if isinstance(layer, _Branches):
                self.stem[name] = _Inception(inputs, layer)
                inputs = layer.total
            else:
                self.stem[name] = _MaxPool(*layer)
        self.logits = _Convolution(inputs, FEATURES, 1, last=True)

    def forward(self, video: Tensor) -> Tensor:
        """Map videos to logits.

        Args:
            video: ``b c t h w`` in [-1, 1]; t is at least ``MIN_FRAMES``, h and w are 224.

        Returns:
            Logits ``b 400``, means over time.
        """
        for layer in self.stem.values():
            video = layer(video)
        pooled = F.avg_pool3d(video, (2, 7, 7), stride=1)
        return self.logits(pooled).mean(dim=(2, 3, 4))

    @torch.inference_mode()
    def features(self, video: Tensor) -> Tensor:
        """Return the features ``b 400`` of videos ``b c t h w`` in [-1, 1], with each frame resized to 224x224."""
        frames = video.transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
        return self(frames.unflatten(0, (video.shape[0], -1)).transpose(1, 2))


def load_i3d(path: Path) -> I3D:
    """Load I3D with the weights of a file.

    Args:
        path: ``.safetensors``, or a file of tensors by PyTorch (``.pt``, ``.pth``).

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        UsageError: the file cannot be read, or has weights of another network.
    """
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else read_weights(path)
    network = I3D()
    renamed = {name if name.startswith("logits.") else f"stem.{name}": tensor for name, tensor in dict(tensors).items()}
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items() if "num_batches" not in name}
    found = {name: tensor.shape for name, tensor in renamed.items() if "num_batches" not in name}
    if wanted != found:
        name = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise UsageError(
            f"{path} has weights of another network: {name.removeprefix('stem.')} is {_shape(found.get(name))}, and "
            f"{_shape(wanted.get(name))} in I3D for Kinetics-400"
        )
    network.load_state_dict(renamed, strict=False)
    return network.eval().requires_grad_(False)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:
        raise UsageError(f"{path} has no readable weights: {str(error).splitlines()[0]}") from error


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else str(tuple(shape))
