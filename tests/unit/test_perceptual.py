"""Perceptual distances: ST-LPIPS against its published value, LPIPS against a plain implementation."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vidvq.data import DataConfig
from vidvq.errors import UsageError
from vidvq.metrics import perceptual
from vidvq.metrics.perceptual import PerceptualDistance, _distance, load_perceptual, read_weights
from vidvq.train.config import LossConfig, TrainConfig
from vidvq.train.objective import Objective


def frames(seed: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1, size=64, mode="bicubic").clamp(-1, 1)


def test_the_distance_is_zero_to_itself_and_grows_with_the_change():
    distance = load_perceptual("st_lpips", "alex")
    one = frames(0)
    assert float(distance(one, one)) == 0
    near, far = distance(one, one + 0.05 * frames(1)), distance(one, frames(1))
    assert 0 < float(near) < float(far)
    assert distance.per_frame(one, frames(1)).shape == (2,)
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_a_shift_of_one_pixel_is_a_small_distance():
    distance = load_perceptual("st_lpips", "alex")
    wide = F.interpolate(frames(3, 1), size=80, mode="bicubic").clamp(-1, 1)
    shifted = distance(wide[..., :64, :64], wide[..., :64, 1:65])
    assert float(shifted) < 0.25 * float(distance(wide[..., :64, :64], frames(4, 1)))


def test_the_value_equals_the_published_one():
    """On the pair of their README, which is not ours to ship, this code gave d(ex_p0, ex_ref) = 0.7777554989 as theirs
    does; from then on this pair of our own holds it in place."""
    distance = load_perceptual("st_lpips", "alex")
    assert float(distance(frames(0), frames(1))) == pytest.approx(0.3992981, rel=1e-5)


def test_features_that_are_all_zero_have_a_gradient():
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(_distance(features, torch.rand(1, 4, 2, 2), torch.ones(4)).sum(), features)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("kind", "side"), [("st_lpips", 21), ("alex", 31), ("vgg", 16)])
def test_frames_that_a_network_cannot_take_are_refused(kind, side, monkeypatch):
    made: list[PerceptualDistance] = []
    monkeypatch.setattr(perceptual, "_load_weights", lambda distance, *_: made.append(distance))
    monkeypatch.setattr(perceptual, "read_weights", lambda _: {})
    monkeypatch.setattr(perceptual, "_in_package", lambda *_: None)
    load_perceptual("st_lpips", "alex") if kind == "st_lpips" else load_perceptual("lpips", kind, "backbone.pth")
    frame = torch.zeros(1, 3, side, 40)
    assert made[0].per_frame(frame, frame).tolist() == [0]
    with pytest.raises(UsageError, match=f"frames of 40x{side - 1} pixels are smaller than {side}x{side}, which this"):
        made[0](frame[:, :, 1:], frame[:, :, 1:])


def test_the_gram_loss_is_that_of_gatys_et_al():
    """Eq. 3 to 5 with equal weights of the layers, in loops over layers, frames and channels."""
    distance = load_perceptual("st_lpips", "alex")
    one, other = frames(0), frames(1)
    found, gram = distance.with_gram(one, other)
    assert float(found) == pytest.approx(float(distance(one, other)), rel=1e-6)
    expected = []
    for index in range(2):
        pair = [(frame[index : index + 1] - distance.shift) / distance.scale for frame in (one, other)]
        for stage in distance.stages:
            pair = [stage(x) for x in pair]
            f, p = (x[0].flatten(1).double() for x in pair)
            n, m = f.shape
            g, a = (torch.stack([(rows * row).sum(1) for row in rows]) for rows in (f, p))
            expected.append(float((g - a).square().sum()) / (4 * n**2 * m**2))
    assert float(gram) == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert float(distance.with_gram(one, one)[1]) == 0


def test_the_gram_loss_needs_no_second_pass_of_the_network():
    distance, passes = load_perceptual("st_lpips", "alex"), []
    distance.stages[0].register_forward_hook(lambda *results: passes.append(results[2].requires_grad))
    config = TrainConfig(DataConfig(("unused",)), loss=LossConfig(gram=1.0))
    whole = frames(1)[:, :, None].requires_grad_()
    terms = Objective(config, (4, 8, 8), distance)._distances(frames(0)[:, :, None], whole)
    # The reconstruction, and the video, which has no backward pass.
    assert passes == [True, False]
    (gradient,) = torch.autograd.grad(terms["gram"], whole)
    assert gradient.abs().max() > 0


def test_missing_weights_are_reported_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="use net=alex"):
        load_perceptual("st_lpips", "vgg")
    (tmp_path / "weights.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"weights\.pth has no readable weights"):
        load_perceptual("lpips", "vgg", str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    "content", [b"code", torch.zeros(3), {"state_dict": {}}, [1]], ids=lambda each: str(type(each))
)
def test_a_file_without_weights_is_one_line_without_advice_to_run_its_code(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UsageError) as error:
        read_weights(path)
    assert str(error.value) == f"{path} has no readable weights: give a file of tensors by name that torch.save wrote"


@pytest.mark.parametrize("name", ["perceptual", "gram"])
def test_the_loss_in_bf16_is_close_to_that_in_fp32(name):
    """Values and gradients of the perceptual and Gram terms, as a run with precision=bf16 computes them on a GPU."""
    distance = load_perceptual("st_lpips", "alex")
    config = TrainConfig(DataConfig(("unused",)), loss=LossConfig(perceptual=1.0, gram=float(name == "gram")))
    video = frames(0)[:, :, None]
    found = {}
    for kind in (None, torch.bfloat16):
        whole = frames(1)[:, :, None].requires_grad_()
        terms = Objective(config, (4, 8, 8), distance, kind)._distances(video, whole)
        (gradient,) = torch.autograd.grad(terms[name], whole)
        found[kind] = terms[name].item(), gradient.flatten()
        assert gradient.dtype == terms[name].dtype == torch.float32
    assert found[None][0] != found[torch.bfloat16][0]
    assert found[torch.bfloat16][0] == pytest.approx(found[None][0], rel=0.01)
    assert F.cosine_similarity(found[None][1], found[torch.bfloat16][1], dim=0) > 0.98


class Casts(TorchDispatchMode):
    """Notes the sources of all conversions of type or layout."""

    def __init__(self) -> None:
        super().__init__()
        self.sources = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.overloadpacket.__name__ in ("_to_copy", "clone"):
            self.sources.append(args[0])
        return operator(*args, **(kwargs or {}))


def test_the_frozen_weights_are_converted_once_and_not_in_each_pass():
    distance = load_perceptual("st_lpips", "alex")
    half = distance.half_copy(torch.bfloat16)
    found = {}
    for network in (distance, half):
        with torch.autocast("cpu", torch.bfloat16), Casts() as casts:
            found[network] = [float(term) for term in network.with_gram(frames(0), frames(1))]
        of_weights = sum(source is weight for source in casts.sources for weight in network.stages.parameters())
        # Weights and biases of five convolutions, in both passes.
        assert of_weights == (20 if network is distance else 0)
    # The rounded weights are the same; sums differ by their order.
    assert found[half] == pytest.approx(found[distance], rel=1e-3)
    kernels = [layer.weight for layer in half.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert half.weights[0].dtype == distance.stages[0][0].weight.dtype == torch.float32
