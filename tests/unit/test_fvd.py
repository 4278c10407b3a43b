"""Fréchet distances and the network of FVD."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from vidvq.errors import UsageError
from vidvq.metrics import fvd
from vidvq.metrics.frechet import FeatureMoments, frechet_distance
from vidvq.metrics.i3d import I3D, _pad_same, load_i3d


def moments(samples: np.ndarray) -> FeatureMoments:
    found = FeatureMoments(samples.shape[1])
    for part in np.array_split(samples, 3):
        found.add(part)
    return found


def with_moments(mean: np.ndarray, covariance: np.ndarray, seed: int) -> FeatureMoments:
    """Samples of exactly this mean and covariance."""
    samples = np.random.default_rng(seed).normal(size=(200, len(mean)))
    samples -= samples.mean(axis=0)
    whitened = samples @ np.linalg.inv(np.linalg.cholesky(np.cov(samples.T))).T
    return moments(whitened @ np.linalg.cholesky(covariance).T + mean)


def test_moments_are_those_of_all_samples():
    samples = np.random.default_rng(0).normal(3, 2, size=(50, 7))
    found = moments(samples)
    np.testing.assert_allclose(found.mean, samples.mean(axis=0))
    np.testing.assert_allclose(found.covariance, np.cov(samples.T))


def test_the_distance_of_gaussians_that_commute_has_a_closed_form():
    one, other = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    mean = np.array([1.0, -2.0, 0.5])
    distance = frechet_distance(
        with_moments(mean, turn @ np.diag(one) @ turn.T, 2), with_moments(mean + 1, turn @ np.diag(other) @ turn.T, 3)
    )
    assert distance == pytest.approx(3 + np.square(np.sqrt(one) - np.sqrt(other)).sum())


def test_the_distance_is_the_formula_with_a_matrix_root_for_others():
    rng = np.random.default_rng(4)
    roots = [rng.normal(size=(5, 5)) for _ in range(2)]
    first, second = (root @ root.T + np.eye(5) for root in roots)
    # The root of a product of positive matrices, by its eigenvectors, which are not orthogonal.
    values, vectors = np.linalg.eig(first @ second)
    root = vectors @ np.diag(np.sqrt(values)) @ np.linalg.inv(vectors)
    expected = np.trace(first + second - 2 * root.real)
    found = frechet_distance(with_moments(np.zeros(5), first, 5), with_moments(np.zeros(5), second, 6))
    assert found == pytest.approx(expected)


def test_equal_sets_have_no_distance_even_with_fewer_samples_than_features():
    samples = np.random.default_rng(0).normal(size=(20, 60))
    assert frechet_distance(moments(samples), moments(samples)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(UsageError, match="at least 2 samples on both sides; there are 20 and 1"):
        frechet_distance(moments(samples), moments(samples[:1]))


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(16, 7, 2), (17, 7, 2), (8, 3, 2), (7, 2, 2), (5, 3, 1), (4, 1, 1)]
)
def test_padding_keeps_the_rounded_up_size(size, kernel, stride):
    x = torch.ones(1, 1, size, 3, 3)
    padded = _pad_same(x, (kernel, 1, 1), (stride, 1, 1))
    assert (padded.shape[2] - kernel) // stride + 1 == -(-size // stride)
    before = int((padded[0, 0, : kernel // 2 + 1, 0, 0] == 0).sum())
    # One more behind than in front where the number is odd.
    assert padded.shape[2] - size - before in (before, before + 1)


def test_windows_of_fvd_are_consecutive_and_within_minus_1_and_1(monkeypatch):
    seen: list[torch.Tensor] = []

    class Network(torch.nn.Module):
        def features(self, video: torch.Tensor) -> torch.Tensor:
            seen.append(video)
            return torch.zeros(1, 400)

    monkeypatch.setattr(fvd, "load_i3d", lambda _: Network())
    scorer = fvd.FvdScorer("i3d.pt", 9, [20, 9], "cpu")
    frames = np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    frames[0] = 255
    scorer.add(frames)
    scorer.add_other("a", frames[:9])
    assert scorer.windows == 2 and not scorer.distances()
    assert [window.shape for window in seen] == [(1, 3, 9, 1, 1)] * 3
    assert seen[0][0, 0, :2].flatten().tolist() == pytest.approx([1, 1 / 127.5 - 1])
    assert seen[1][0, 0, 0] == pytest.approx(9 / 127.5 - 1)


def noise(count: int) -> torch.Tensor:
    """Values in [-0.5, 0.5) by integer arithmetic, equal on every platform and version of torch."""
    k = torch.arange(1, count + 1)
    return ((k * 2_654_435_761 % 2**32) * k % 65_536).double() / 65_536 - 0.5


# Every 57th logit of another implementation, with the weights and the video of the test: InceptionI3d of
# github.com/piergiaj/pytorch-i3d, commit 05783d1, by torch 2.13. In float64 they differ by less than 2e-6. Frames of
# 200x210 pixels need odd padding at several strides, and 18 of them leave three latent frames for the last pooling.
OTHER_LOGITS = [-0.391081, -0.994624, -0.033288, -0.400181, -1.140517, -1.131739, -0.545006, 0.686679]


def test_logits_are_those_of_another_implementation():
    network = I3D().eval()
    named = {name.removeprefix("stem."): name for name in network.state_dict() if "num_batches" not in name}
    shapes = {name: network.state_dict()[named[name]].shape for name in sorted(named)}
    stream = noise(sum(shape.numel() for shape in shapes.values())).float()
    parts = stream.split([shape.numel() for shape in shapes.values()])
    weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    for name, values in weights.items():
        if name.endswith("conv3d.weight"):
            values *= (24 / values[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            values += 1
    network.load_state_dict({named[name]: values for name, values in weights.items()}, strict=False)
    video = 2 * noise(3 * 18 * 200 * 210).view(1, 3, 18, 200, 210).float()
    with torch.inference_mode():
        logits = network(video)
    assert logits.shape == (1, 400)
    np.testing.assert_allclose(logits[0, ::57], OTHER_LOGITS, atol=1e-4)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name.removeprefix("stem."): tensor for name, tensor in I3D().state_dict().items()}


def test_weights_load_by_the_names_of_the_published_ports(weights, tmp_path):
    assert weights["Mixed_4f.b1b.conv3d.weight"].shape == (320, 160, 3, 3, 3)
    assert weights["Conv3d_1a_7x7.bn.running_var"].shape == (64,)
    assert weights["logits.conv3d.bias"].shape == (400,)
    # 12.7 million weights of the network with 400 classes, without the statistics of batch norms.
    trained = [tensor for name, tensor in weights.items() if "running" not in name and "num_batches" not in name]
    assert sum(tensor.numel() for tensor in trained) == 12_697_264
    save_file(weights, tmp_path / "i3d.safetensors")
    torch.save(weights, tmp_path / "i3d.pt")
    one, other = load_i3d(tmp_path / "i3d.safetensors"), load_i3d(tmp_path / "i3d.pt")
    video = torch.rand(1, 3, 9, 40, 56) * 2 - 1
    features = one.features(video)
    assert features.shape == (1, 400) and features.std() > 0
    assert torch.equal(features, other.features(video))


def test_each_frame_is_resized_to_the_size_of_the_network(monkeypatch):
    monkeypatch.setattr(I3D, "forward", lambda self, video: video)
    video = torch.rand(2, 3, 9, 40, 56)
    expected = [F.interpolate(video[:, :, t], size=(224, 224), mode="bilinear") for t in range(9)]
    torch.testing.assert_close(I3D().features(video), torch.stack(expected, dim=2))


def test_weights_of_another_network_are_one_line(weights, tmp_path):
    fewer = {name: tensor for name, tensor in weights.items() if not name.startswith("logits")}
    save_file(fewer | {"logits.conv3d.weight": torch.zeros(600, 1024, 1, 1, 1)}, tmp_path / "600.safetensors")
    with pytest.raises(UsageError, match=r"logits.conv3d.bias is absent, and \(400,\) in I3D"):
        load_i3d(tmp_path / "600.safetensors")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(UsageError, match="has no readable weights"):
        load_i3d(tmp_path / "text.pt")


def test_sets_of_other_features_are_refused():
    with pytest.raises(UsageError, match=r"features have shape \(3, 2\); it must be n 4"):
        FeatureMoments(4).add(np.zeros((3, 2)))
    with pytest.raises(UsageError, match="samples have 4 and 2 features; both sets must have the same"):
        frechet_distance(moments(np.zeros((3, 4))), moments(np.zeros((3, 2))))
