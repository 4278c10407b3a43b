"""Settings of `vidvq evaluate`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from vidvq.errors import UsageError
from vidvq.evaluate.protocols import ProtocolName
from vidvq.video.reference_codecs import CodecName


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `vidvq evaluate`.

    Attributes:
        codecs: codecs to encode every clip with, at the best constant quality whose size does not exceed the bits of
            the clip's tokens.
        perceptual: compute ST-LPIPS of every frame, which costs as much as encoding dozens of clips.
        lpips_backbone: path of torchvision's ImageNet weights of ``lpips_net`` (.pth), to compute LPIPS of every frame;
            None for no LPIPS.
        lpips_net: network of LPIPS.
        fvd_backbone: path of the weights of I3D for Kinetics-400 (RGB; .safetensors, .pt or .pth), to compute FVD; None
            for no FVD.
        fvd_frames: length of the windows that FVD compares (frames, 9 or more). Clips are cut into consecutive windows.
        static_deviation: largest standard deviation over time of the luma of a static position in the original (levels,
            0 to 255); the other positions are moving.
        protocol: protocol of a published table, which decides the clips and the definitions of PSNR and SSIM; None for
            any clips.
        worst: number of clips in the page of ``--report``.
    """

    codecs: tuple[CodecName, ...] = ()
    perceptual: bool = False
    lpips_backbone: str | None = None
    lpips_net: Literal["alex", "vgg"] = "vgg"
    fvd_backbone: str | None = None
    fvd_frames: Annotated[int, Field(ge=9, le=1024)] = 16
    static_deviation: Annotated[float, Field(ge=0, le=255)] = 4.0
    protocol: ProtocolName | None = None
    worst: Annotated[int, Field(ge=1, le=1000)] = 24

    def __post_init__(self) -> None:
        if len(set(self.codecs)) < len(self.codecs):
            raise UsageError(f"codecs={list(self.codecs)} has a codec twice; give each once")
