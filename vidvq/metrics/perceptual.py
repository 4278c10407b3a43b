"""Perceptual distances of frames: weighted differences of network features, and differences of their Gram matrices.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (LPIPS), eq. 1; Ghildyal
and Liu 2022, "Shift-tolerant Perceptual Similarity Metric" (ST-LPIPS), whose network pools without aliasing. They
are different metrics; their values are not comparable. Gatys et al. 2016, "Image Style Transfer Using Convolutional
Neural Networks": the Gram loss.

Packages only provide weight files: their code is not executed, and nothing is unpickled.
"""

from collections.abc import Iterator
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.config import is_mapping
from vidvq.errors import UsageError

Kind = Literal["st_lpips", "lpips"]
Net = Literal["alex", "vgg"]
_EPSILON = 1e-10
_NO_WEIGHTS = "give a file of tensors by name that torch.save wrote"
# Mean and standard deviation of ImageNet pixels in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# The convolution of each stage as (inputs, outputs, kernel, padding).
_ALEX = ((3, 64, 11, 2), (64, 192, 5, 2), (192, 384, 3, 1), (384, 256, 3, 1), (256, 256, 3, 1))
_ALEX_WIDTHS = [outputs for _, outputs, *_ in _ALEX]
# Inputs, and outputs of each 3x3 convolution; the last output of a stage is compared.
_VGG = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))


class _Blur(nn.Module):
    """Anti-aliased downsampling: a 3x3 binomial filter with stride 2 (Zhang 2019)."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filter", taps[:, None] * taps[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.filter.to(x.dtype).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


class PerceptualDistance(nn.Module):
    """Perceptual distance between batches of frames, with frozen weights.

    Args:
        stages: network stages; the output of each stage is compared.
        widths: output channels of each stage.
        smallest: smallest height and width of a frame that the stages take (pixels).

    Raises:
        UsageError: on use, if the frames are smaller.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, stages: list[nn.Sequential], widths: list[int], smallest: int) -> None:
        super().__init__()
        self._smallest = smallest
        self.stages = nn.ModuleList(stages)
        self.weights = nn.ParameterList(torch.ones(width) for width in widths)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def half_copy(self, dtype: torch.dtype) -> "PerceptualDistance":
        """Copy the network with convolutions stored as autocast needs them: it converts frozen weights in each pass.

        Args:
            dtype: type of autocast, in which the copy must run.
        """
        copied = deepcopy(self)
        copied.stages.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return copied

    def forward(self, frames: Tensor, others: Tensor) -> Tensor:
        """Compute the mean distance of frames ``n c h w`` in [-1, 1], a scalar."""
        return self.per_frame(frames, others).mean()

    def per_frame(self, frames: Tensor, others: Tensor) -> Tensor:
        """Compute the distance of each pair of frames ``n c h w`` in [-1, 1], ``n``."""
        total = frames.new_zeros(len(frames), dtype=torch.float32)
        for one, other, weight in zip(self._features(frames), self._features(others), self.weights, strict=True):
            total = total + _distance(one, other, weight)
        return total

    def with_gram(self, frames: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the mean distance of frames and their Gram loss in one forward pass.

        Args:
            frames: ``n c h w`` in [-1, 1].
            others: ``n c h w`` in [-1, 1].

        Returns:
            The distance and the Gram loss, scalars. The Gram loss of a frame is the mean over the stages of eq. 4 of
            Gatys et al. 2016.
        """
        total = gram = frames.new_zeros(len(frames), dtype=torch.float32)
        for one, other, weight in zip(self._features(frames), self._features(others), self.weights, strict=True):
            total, gram = total + _distance(one, other, weight), gram + gram_loss(one, other)
        return total.mean(), gram.mean() / len(self.weights)

    def _features(self, frames: Tensor) -> Iterator[Tensor]:
        """Yield the fp32 features ``n c h w`` of each stage.

        Frames and those they are compared with are separate batches: without a gradient, one has no backward pass.
        """
        height, width = frames.shape[2:]
        if min(height, width) < self._smallest:
            raise UsageError(
                f"frames of {width}x{height} pixels are smaller than {self._smallest}x{self._smallest}, which this "
                "perceptual distance needs; use larger frames"
            )
        x = (frames - self.shift) / self.scale
        if x.is_cuda:
            # As tensor cores need it.
            x = x.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
            yield x.float()


def _distance(one: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    # Where all features are 0, the norm has the gradient 0, and the root of a sum of squares none.
    norms = (torch.linalg.vector_norm(features, dim=1, keepdim=True) for features in (one, other))
    one, other = (features / (norm + _EPSILON) for features, norm in zip((one, other), norms, strict=True))
    return ((one - other).square() * weight[:, None, None]).sum(dim=1).mean(dim=(1, 2))


def gram_loss(one: Tensor, other: Tensor) -> Tensor:
    """Compute the mean squared difference of Gram matrices, by Gatys et al. 2016, eq. 3 and 4.

    Args:
        one: fp32 features ``n c h w``.
        other: fp32 features ``n c h w``.

    Returns:
        Loss of each pair, ``n``: a quarter of the mean over pairs of channels. Gram matrices are means over positions.
    """
    # Sums over many positions need fp32, also where autocast is on.
    with torch.autocast(one.device.type, enabled=False):
        grams = [flat @ flat.mT / flat.shape[2] for flat in (one.flatten(2), other.flatten(2))]
    return (grams[0] - grams[1]).square().mean(dim=(1, 2)) / 4


def load_perceptual(kind: Kind, net: Net, backbone: str | None = None) -> PerceptualDistance:
    """Load a perceptual distance with its trained weights.

    Args:
        kind: ``st_lpips`` (package ``stlpips_pytorch``) or ``lpips`` (version 0.1, package ``lpips``).
        net: architecture of the network: ``alex``, or ``vgg`` for ``lpips`` only.
        backbone: path of torchvision's ImageNet weights of the network (.pth); required for ``lpips``.

    Returns:
        The distance, on the CPU.

    Raises:
        UsageError: a package or file is missing, or its weights are of another network.
    """
    if kind == "st_lpips":
        if net != "alex":
            raise UsageError(f"net={net} is not available for kind=st_lpips; use net=alex, or kind=lpips")
        distance = PerceptualDistance(_alex(shift_tolerant=True), _ALEX_WIDTHS, 21)
        tensors = read_weights(_in_package("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth"))
        _load_weights(distance, tensors, [name for name in tensors if name.startswith("net.") and ".filt" not in name])
        return distance
    if net == "alex":
        distance = PerceptualDistance(_alex(shift_tolerant=False), _ALEX_WIDTHS, 31)
    else:
        distance = PerceptualDistance(_vgg(), [widths[-1] for widths in _VGG], 16)
    if backbone is None:
        raise UsageError("kind=lpips needs the ImageNet weights of the network; set backbone=FILE.pth")
    tensors = read_weights(Path(backbone))
    names = [name for name in tensors if name.startswith("features.")]
    _load_weights(distance, tensors | read_weights(_in_package("lpips", f"weights/v0.1/{net}.pth")), names)
    return distance


def _alex(shift_tolerant: bool) -> list[nn.Sequential]:
    stages: list[nn.Sequential] = []
    for index, (inputs, outputs, kernel, padding) in enumerate(_ALEX):
        layers: list[nn.Module] = []
        if index in (1, 2):
            layers += [nn.MaxPool2d(3, stride=1), _Blur()] if shift_tolerant else [nn.MaxPool2d(3, stride=2)]
        stride = 4 if index == 0 and not shift_tolerant else 1
        layers.append(nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding))
        if index == 0 and shift_tolerant:
            layers.append(_Blur())
        stages.append(nn.Sequential(*layers, nn.ReLU()))
    return stages


def _vgg() -> list[nn.Sequential]:
    stages: list[nn.Sequential] = []
    for index, (first, *widths) in enumerate(_VGG):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
        for width in widths:
            layers += [nn.Conv2d(first, width, 3, padding=1), nn.ReLU()]
            first = width
        stages.append(nn.Sequential(*layers))
    return stages


def _load_weights(distance: PerceptualDistance, tensors: dict[str, Tensor], names: list[str]) -> None:
    """Copy the weights of the convolutions, listed in network order, and of the channels."""
    mine = [tensor for stage in distance.stages for tensor in stage.parameters()]
    theirs = [tensors[name] for name in names]
    linear = [tensors[name] for name in sorted(tensors) if name.startswith("lin") and name.endswith("model.1.weight")]
    if [tensor.shape for tensor in mine] != [tensor.shape for tensor in theirs] or len(linear) != len(distance.weights):
        raise UsageError("the weights of the perceptual distance are of another network; use those of its net")
    with torch.no_grad():
        for tensor, given in zip(mine, theirs, strict=True):
            tensor.copy_(given)
        for weight, given in zip(distance.weights, linear, strict=True):
            weight.copy_(given.flatten())


def _in_package(package: str, name: str) -> Path:
    # `find_spec` does not execute the package.
    spec = find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UsageError(f"the perceptual loss needs weights of {package}; run `pip install --no-deps {package}`")
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors by PyTorch, without running code from it.

    Raises:
        UsageError: the file cannot be read, or holds more than tensors.
    """
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{path} has no readable weights: {error.strerror}") from error
    except Exception as error:
        # PyTorch's own message advises to run the code of the file.
        raise UsageError(f"{path} has no readable weights: {_NO_WEIGHTS}") from error
    if not is_mapping(found) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise UsageError(f"{path} has no readable weights: {_NO_WEIGHTS}")
    return found
