"""Perceptual distances of frames: differences of a network's features, weighed channel by channel.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (LPIPS), eq. 1; Ghildyal
and Liu 2022, "Shift-tolerant Perceptual Similarity Metric" (ST-LPIPS), whose network pools without aliasing. The two
are different metrics, and their values do not compare.

Only weights are taken from the packages that carry them; their code is not run, and nothing is unpickled.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidvq.errors import UsageError

Kind = Literal["st_lpips", "lpips"]
Net = Literal["alex", "vgg"]
_EPSILON = 1e-10
# Mean and deviation of ImageNet's pixels in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Convolutions by stage as (inputs, outputs, kernel, padding); a stage's last output is compared.
_ALEX = (((3, 64, 11, 2),), ((64, 192, 5, 2),), ((192, 384, 3, 1),), ((384, 256, 3, 1),), ((256, 256, 3, 1),))
_VGG_WIDTHS = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))


class _Blur(nn.Module):
    """Half the height and width without aliasing: a 3x3 binomial filter, stride 2 (Zhang 2019)."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filter", taps[:, None] * taps[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.filter.to(x.dtype).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


class PerceptualDistance(nn.Module):
    """Two batches of frames ``n c h w`` in [-1, 1] to their mean distance, a scalar; frozen.

    Args:
        stages: layers up to each compared output.
        widths: channels of these outputs.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, stages: list[nn.Sequential], widths: list[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.weights = nn.ParameterList(torch.ones(width) for width in widths)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, frames: Tensor, others: Tensor) -> Tensor:
        """The mean over frames."""
        return self.each(frames, others).mean()

    def each(self, frames: Tensor, others: Tensor) -> Tensor:
        """The distance of each pair of frames, ``n``."""
        x = (torch.cat([frames, others]) - self.shift) / self.scale
        total = x.new_zeros(len(frames), dtype=torch.float32)
        for stage, weight in zip(self.stages, self.weights, strict=True):
            x = stage(x)
            features = x.float()
            unit = features / (features.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)
            one, other = unit.chunk(2)
            difference = (one - other).square() * weight[:, None, None]
            total = total + difference.sum(dim=1).mean(dim=(1, 2))
        return total


def load_perceptual(kind: Kind, net: Net, backbone: str | None = None) -> PerceptualDistance:
    """A perceptual distance with its trained weights.

    Args:
        kind: ``st_lpips`` (of the package ``stlpips_pytorch``) or ``lpips`` (version 0.1, of the package ``lpips``).
        net: ``alex`` or, for ``lpips``, ``vgg``.
        backbone: for ``lpips``, torchvision's ImageNet weights of the network, a .pth file.

    Raises:
        ValueError: a package or a file is missing or not what it should be; says how to get it.
    """
    if kind == "st_lpips":
        if net != "alex":
            raise UsageError(f"net={net} has no shift-tolerant form here; take net=alex, or kind=lpips")
        distance = PerceptualDistance(_alex(shift_tolerant=True), [64, 192, 384, 256, 256])
        tensors = _read(_in_package("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth"))
        _fill(distance, tensors, [name for name in tensors if name.startswith("net.") and ".filt" not in name])
        return distance
    stages, widths = (_alex(False), [64, 192, 384, 256, 256]) if net == "alex" else (_vgg(), [64, 128, 256, 512, 512])
    distance = PerceptualDistance(stages, widths)
    if backbone is None:
        raise UsageError("kind=lpips needs the network's ImageNet weights; give backbone=FILE.pth")
    tensors = _read(Path(backbone))
    names = [name for name in tensors if name.startswith("features.")]
    _fill(distance, tensors | _read(_in_package("lpips", f"weights/v0.1/{net}.pth")), names)
    return distance


def _alex(shift_tolerant: bool) -> list[nn.Sequential]:
    stages: list[nn.Sequential] = []
    for index, ((inputs, outputs, kernel, padding),) in enumerate(_ALEX):
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
    for index, (first, *widths) in enumerate(_VGG_WIDTHS):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
        for width in widths:
            layers += [nn.Conv2d(first, width, 3, padding=1), nn.ReLU()]
            first = width
        stages.append(nn.Sequential(*layers))
    return stages


def _fill(distance: PerceptualDistance, tensors: dict[str, Tensor], names: list[str]) -> None:
    """Copy convolutions, which come in the order of the network, and the weights of each channel."""
    mine = [tensor for stage in distance.stages for tensor in stage.parameters()]
    theirs = [tensors[name] for name in names]
    linear = [tensors[name] for name in sorted(tensors) if name.startswith("lin") and name.endswith("model.1.weight")]
    if [tensor.shape for tensor in mine] != [tensor.shape for tensor in theirs] or len(linear) != len(distance.weights):
        raise UsageError("the weights of the perceptual distance are of another network; give those of its net")
    with torch.no_grad():
        for tensor, given in zip(mine, theirs, strict=True):
            tensor.copy_(given)
        for weight, given in zip(distance.weights, linear, strict=True):
            weight.copy_(given.flatten())


def _in_package(package: str, name: str) -> Path:
    # Finding a package does not run it.
    spec = find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UsageError(f"the perceptual loss reads its weights from {package}; pip install --no-deps {package}")
    return path


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{path} holds no readable weights: {str(error).splitlines()[0]}") from error
