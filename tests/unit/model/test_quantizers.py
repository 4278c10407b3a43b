"""All quantizers: shared properties, and each against a reference implementation or brute force."""

import json
from typing import Any

import pytest
import torch
import vector_quantize_pytorch as reference
from torch import Tensor, nn

from vidvq import config as settings
from vidvq.formats.checkpoint import fingerprint
from vidvq.model import TokenizerConfig, VideoTokenizer
from vidvq.model.encoder import DecoderConfig, StackConfig
from vidvq.model.quantize import (
    DifferentialConfig,
    FiniteScalarQuantizer,
    FSQConfig,
    LFQConfig,
    LookupFreeQuantizer,
    QuantizerConfig,
    ResidualConfig,
    ResidualQuantizer,
    SimVectorQuantizer,
    SimVQConfig,
    SpatiotemporalQuantizer,
    VectorQuantizer,
    VQConfig,
)
from vidvq.model.quantize.spatiotemporal import CODEBOOK_KINDS
from vidvq.model.quantize.vq import estimate_gradient

DIM = 6
KINDS = {
    "vq": VQConfig(size=64, warmup=0),
    "vq-cosine-rotation": VQConfig(size=64, warmup=0, cosine=True, rotation=True),
    "vq-gradient": VQConfig(size=64, warmup=0, update="gradient"),
    "vq-gradient-cosine": VQConfig(size=64, warmup=0, update="gradient", cosine=True, rotation=True),
    "simvq": SimVQConfig(size=64),
    "fsq": FSQConfig(levels=(5, 4, 3)),
    "fsq-as-wide": FSQConfig(levels=(3, 4, 3, 3, 3, 3)),
    "fsq-wider": FSQConfig(levels=(3,) * 7),
    "lfq": LFQConfig(size=64),
    "lfq-projected": LFQConfig(size=32),
    "bsq": LFQConfig(size=64, spherical=True),
    "bsq-projected": LFQConfig(size=256, spherical=True),
    "residual": ResidualConfig(depth=2, layer=VQConfig(size=8, warmup=0)),
    "residual-gradient": ResidualConfig(depth=3, layer=VQConfig(size=4, warmup=0, update="gradient", rotation=True)),
}
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())


def make(config, dim: int = DIM) -> Any:
    torch.manual_seed(0)
    return CODEBOOK_KINDS[config.kind].quantizer(config, dim)


def grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def tokenizer(spatial, temporal) -> VideoTokenizer:
    torch.manual_seed(0)
    small = StackConfig((8, 8), (0, 0))
    return VideoTokenizer(
        TokenizerConfig(
            encoder=small,
            decoder=DecoderConfig(small.channels, small.blocks),
            quantizer=QuantizerConfig(DIM, spatial, temporal),
        )
    )


@every_kind
def test_encode_and_lookup_agree_with_forward(config):
    book = make(config).eval()
    latents = torch.randn(300, DIM)
    quantized, codes, loss = book(latents)
    assert codes.dtype == torch.long
    assert codes.min() >= 0
    assert codes.max() < book.size == config.size
    assert torch.equal(codes, book.encode(latents))
    assert torch.equal(book.lookup(codes), quantized)
    assert book.lookup(codes.view(3, 4, 25)).shape == (3, 4, 25, DIM)
    assert loss.shape == ()
    assert loss.isfinite()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codes, book.encode(latents))
        assert torch.equal(codes, book(latents)[1])
        assert torch.equal(book.lookup(codes), quantized)


@every_kind
def test_empty_latents_give_empty_codes(config):
    book = make(config)
    before = {name: buffer.clone() for name, buffer in book.named_buffers()}
    quantized, codes, loss = book(torch.zeros(0, DIM))
    assert quantized.shape == (0, DIM)
    assert codes.shape == (0,)
    assert loss == 0
    # A batch of images has no latents for a temporal codebook, whose warm-up must not advance.
    assert all(torch.equal(buffer, before[name]) for name, buffer in book.named_buffers())
    if parameters := list(book.parameters()):
        # Some optimizers reject parameters without a gradient.
        (quantized.sum() + loss).backward()
        assert all(parameter.grad is not None for parameter in parameters)


@every_kind
def test_all_codes_round_trip_through_lookup_and_encode(config):
    """Every code's vector is that code; greedy residual layers may find another sum nearer, and are left out."""
    book = make(config).eval()
    if isinstance(book, ResidualQuantizer):
        assert book.lookup(torch.arange(book.size)).unique(dim=0).shape[0] == book.size
        return
    if hasattr(book, "projection"):
        # The grid itself; what a learned map to it and back keeps is up to the training.
        book.projection.inward = book.projection.outward = None
    codes = torch.arange(book.size)
    vectors = book.lookup(codes)
    if isinstance(book, FiniteScalarQuantizer):
        levels = book.levels
        half = (levels - 1) * 1.001 / 2
        offset = 0.5 * (levels % 2 == 0)
        inside = ((vectors.detach() * (levels // 2) + offset) / half).clamp(-0.9999, 0.9999)
        vectors = torch.atanh(inside) - torch.atanh(offset / half)
    assert torch.equal(book.encode(vectors), codes)


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_gradient_reaches_latents_and_parameters(config, training):
    book = make(config).train(training)
    latents = torch.randn(200, DIM, requires_grad=True)
    quantized, _, loss = book(latents)
    (quantized.square().sum() + loss).backward()
    assert grad(latents).isfinite().all()
    assert (grad(latents).abs().sum(dim=1) > 0).float().mean() > 0.9
    for name, parameter in book.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_kind
def test_precision_is_fp32_in_bf16_modules(config):
    exact, book = make(config).eval(), make(config).eval()
    book.to(torch.bfloat16)
    assert not [name for name, buffer in book.named_buffers() if buffer.dtype in (torch.bfloat16, torch.float16)]
    # Where the parameters are the same numbers, so are the codes.
    with torch.no_grad():
        for mine, theirs in zip(exact.parameters(), book.parameters(), strict=True):
            mine.copy_(theirs.float())
    latents = torch.randn(2000, DIM).bfloat16()
    quantized, codes, _ = book(latents)
    expected, expected_codes, _ = exact(latents.float())
    assert quantized.dtype == torch.bfloat16
    assert torch.equal(codes, expected_codes)
    assert torch.equal(codes, book.encode(latents))
    assert torch.equal(quantized, expected.bfloat16())
    assert book.lookup(codes).dtype == torch.float32


@every_kind
def test_most_codes_are_used_on_gaussian_latents(config):
    book = make(config).train()
    for _ in range(30):
        codes = book(torch.randn(4000, DIM))[1]
    # The outer corners of a wide grid are rare, and cosine codes are started at random.
    assert codes.unique().numel() > 0.75 * min(book.size, 1000) * (0.5 if book.size > 1000 else 1)


@pytest.mark.parametrize("differential", [False, True], ids=["each", "differences"])
@pytest.mark.parametrize("temporal", [None, *KINDS], ids=["joint", *KINDS])
@pytest.mark.parametrize("spatial", ["vq", "fsq", "bsq", "residual"])
def test_kinds_mix(spatial, temporal, differential):
    torch.manual_seed(0)
    coding = DifferentialConfig() if differential and temporal else None
    books = QuantizerConfig(DIM, KINDS[spatial], KINDS[temporal] if temporal else None, coding)
    book = SpatiotemporalQuantizer(books).eval()
    latents = torch.randn(2, DIM, 4, 2, 5)
    done = book(latents)
    parts, found, past, known = [], [], (), ()
    for start, stop in ((0, 1), (1, 2), (2, 4)):
        codes, past = book.encode(latents[:, :, start:stop], start == 0, past)
        vectors, known = book.lookup(codes, start == 0, known)
        parts.append(codes)
        found.append(vectors)
        assert len(past) == len(known) == book.num_state_tensors
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(past, known, strict=True))
    assert torch.equal(torch.cat(parts, dim=1), done.codes)
    # Products of other shapes are rounded differently.
    torch.testing.assert_close(torch.cat(found, dim=2), done.latents, atol=1e-5, rtol=0)
    assert [entry.offset for entry in book.codebooks] == [0, KINDS[spatial].size][: len(book.codebooks)]


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_of_all_kinds_round_trip(kind):
    config = KINDS[kind]
    mine = tokenizer(config, VQConfig(size=32)).train()
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    out = mine(video)
    (out.reconstruction.square().mean() + out.commitment_loss).backward()
    assert all(p.grad is not None for name, p in mine.named_parameters() if name.startswith("encoder."))
    mine.eval()
    codes = mine.encode(video)
    assert mine.decode(codes).shape == (1, 3, 5, 16, 16)
    other = VideoTokenizer(TokenizerConfig.from_dict(json.loads(json.dumps(mine.config.to_dict())))).eval()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_()
    weights = mine.inference_state_dict()
    other.load_inference_state_dict(weights)
    assert torch.equal(other.encode(video), codes)
    assert torch.equal(other.decode(codes), mine.decode(codes))
    assert not [name for name in weights if name.endswith(("ema_count", "ema_sum", "step", "reservoir"))]
    assert {name for name, _ in mine.named_parameters()} <= weights.keys()


@pytest.mark.parametrize("kind", ["vq-gradient", "fsq", "bsq-projected", "residual-gradient"])
def test_quantizer_parameters_affect_only_the_token_fingerprint(kind):
    mine = tokenizer(KINDS[kind], None)

    def prints():
        arrays = {name: tensor.detach().numpy().copy() for name, tensor in mine.inference_state_dict().items()}
        return fingerprint(mine.config.to_dict(), {}, arrays)

    before = prints()
    for name, parameter in mine.quantizer.named_parameters():
        with torch.no_grad():
            parameter += 0.01
        after = prints()
        assert after.token != before.token, name
        assert after.decoder == before.decoder
        before = after


@pytest.mark.parametrize("kind", KINDS)
def test_configs_round_trip_by_kind(kind, tmp_path):
    config = TokenizerConfig(quantizer=QuantizerConfig(DIM, KINDS[kind], KINDS["fsq"]))
    assert TokenizerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    path = tmp_path / "model.yaml"
    path.write_text(settings.dump(config))
    assert settings.load(TokenizerConfig, path, []) == config
    assert settings.load(TokenizerConfig, path, ["quantizer.temporal=null"]).quantizer.temporal is None


def test_a_mapping_without_a_kind_is_vq():
    data = {"quantizer": {"spatial": {"size": 16}, "temporal": None}}
    assert settings.validate(TokenizerConfig, data) == TokenizerConfig.from_dict(data)
    assert TokenizerConfig.from_dict(data).quantizer.spatial == VQConfig(size=16)


@pytest.mark.parametrize(
    ("spatial", "message"),
    [
        ({"kind": "fsq", "colour": 3}, "1 wrong field: quantizer.spatial.colour=3 is not a known field"),
        ({"kind": "fsq", "levels": ["a"]}, "1 wrong field: quantizer.spatial.levels.0='a': must be an integer"),
        ({"kind": "fsq", "levels": [2, 8]}, r"levels=\[2, 8\] must each be from 3 to 1000.*kind=lfq"),
        ({"kind": "fsq", "levels": [3, 1001]}, r"levels=\[3, 1001\] must each be from 3 to 1000"),
        ({"kind": "lfq", "size": 1000}, "size=1000 must be a power of two from 2 to 16777216; nearest: 512 or 1024"),
        ({"kind": "lfq", "temperature": 0}, "must have temperature > 0"),
        ({"kind": "pq"}, "quantizer.spatial={'kind': 'pq'}: must be a mapping of kind vq, simvq, fsq, lfq or residual"),
        ({"kind": ["vq"]}, "must be a mapping of kind vq, simvq, fsq, lfq or residual"),
        (7, "quantizer.spatial=7: must be a mapping of kind"),
        ({"kind": "residual", "layer": {"size": 1 << 20}}, "depth=2 of size=1048576 must"),
        ({"kind": "residual", "layer": {"cosine": True, "size": 8}}, "layer.cosine=True must be False"),
        ({"kind": "residual", "layer": {"kind": "fsq"}}, "quantizer.spatial.layer.kind='fsq'"),
        ({"kind": "vq", "update": "sgd"}, "quantizer.spatial.update='sgd': must be ema or gradient"),
    ],
)
def test_an_invalid_field_is_reported_in_one_line(spatial, message):
    with pytest.raises(settings.ConfigError, match=message) as caught:
        settings.validate(TokenizerConfig, {"quantizer": {"spatial": spatial}})
    assert "\n" not in str(caught.value)
    assert "1 wrong field:" in str(caught.value)


def test_an_unknown_kind_is_reported_without_pydantic_too():
    with pytest.raises(ValueError, match="kind='pq' must be one of vq, simvq, fsq, lfq, residual"):
        TokenizerConfig.from_dict({"quantizer": {"spatial": {"kind": "pq"}}})


@pytest.mark.parametrize(
    "quantizer",
    [
        {"spatial": {"kind": "residual", "layer": {"kind": "fsq", "levels": [3, 3]}}},
        {"differential": {"refresh": {"kind": "fsq", "levels": [3, 3]}}},
    ],
    ids=["layer", "refresh"],
)
def test_parts_of_a_codebook_are_of_kind_vq(quantizer):
    with pytest.raises(ValueError, match="VQConfig has no field levels"):
        TokenizerConfig.from_dict({"quantizer": quantizer})


def copy_projection(ours: Any, theirs: Any) -> None:
    for mine, other in ((ours.inward, theirs.project_in), (ours.outward, theirs.project_out)):
        if mine is not None:
            assert isinstance(other, nn.Linear)
            with torch.no_grad():
                mine.weight.copy_(other.weight)
                mine.bias.copy_(other.bias)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3, 4, 5, 6, 7, 8), (16,), (7, 7, 7, 7, 7, 5, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fsq_agrees_with_vector_quantize_pytorch(levels, dtype):
    ours = make(FSQConfig(levels=levels))
    theirs = reference.FSQ(levels, dim=DIM)
    copy_projection(ours.projection, theirs)
    latents = (torch.randn(3000, DIM) * 2).to(dtype).requires_grad_()
    quantized, codes, loss = ours(latents)
    # Theirs does not project bf16 latents by fp32 weights; the rounding is what is compared, in fp32 both.
    same = latents.detach().float().requires_grad_()
    expected, expected_codes = theirs(same[None])
    assert loss == 0
    assert torch.equal(codes, expected_codes[0].long())
    torch.testing.assert_close(quantized, expected[0].to(dtype))
    mask = torch.randn(3000, DIM)
    (quantized.float() * mask).sum().backward()
    (expected[0].to(dtype).float() * mask).sum().backward()
    torch.testing.assert_close(grad(latents).float(), grad(same).to(dtype).float(), atol=1e-5, rtol=1e-2)
    sample = torch.randint(ours.size, (2000,))
    torch.testing.assert_close(ours.lookup(sample), theirs.indices_to_codes(sample))


def test_fsq_in_bf16_agrees_with_vector_quantize_pytorch_in_bf16():
    """Without projections theirs takes bf16 latents too, and rounds them in fp32."""
    ours, theirs = make(FSQConfig(levels=(8, 6, 5)), 3).bfloat16(), reference.FSQ([8, 6, 5]).bfloat16()
    latents = torch.randn(5000, 3).bfloat16()
    quantized, codes, _ = ours(latents)
    expected, expected_codes = theirs(latents[None])
    assert torch.equal(codes, expected_codes[0].long())
    assert torch.equal(quantized, expected[0])


@pytest.mark.parametrize("levels", [999, 1000])
def test_fsq_codes_of_saturated_latents_are_in_range(levels):
    book = make(FSQConfig(levels=(levels,)), 1)
    assert book.encode(torch.tensor([[-99.0], [99.0]])).tolist() == [0, levels - 1]


@pytest.mark.parametrize("levels", [(8, 8, 8, 6, 5), (3,) * 9])
def test_fsq_codes_and_indices_are_the_same_over_the_whole_codebook(levels):
    book = make(FSQConfig(levels=levels), len(levels))
    codes = torch.arange(book.size)
    vectors = book.lookup(codes)
    digits = (vectors * (book.levels // 2)).round()
    assert torch.equal(book._pack(digits), codes)
    assert vectors.unique(dim=0).shape[0] == book.size
    assert vectors.abs().max() <= 1


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize(("size", "dim"), [(64, 6), (512, 6)])
def test_lfq_agrees_with_vector_quantize_pytorch(spherical, size, dim):
    temperature = 0.5
    ours = make(LFQConfig(size=size, spherical=spherical, temperature=temperature, entropy=0.0), dim).train()
    theirs = reference.LFQ(
        dim=dim, codebook_size=size, spherical=spherical, entropy_loss_weight=0.0, commitment_loss_weight=1.0
    ).train()
    copy_projection(ours.projection, theirs)
    latents = torch.randn(400, dim, requires_grad=True)
    quantized, codes, loss = ours(latents)
    same = latents.detach().clone().requires_grad_()
    (expected, expected_codes, aux), terms = theirs(
        same[None], inv_temperature=1 / temperature, return_loss_breakdown=True
    )
    assert torch.equal(codes, expected_codes[0].long())
    torch.testing.assert_close(quantized, expected[0])
    torch.testing.assert_close(loss, terms.commitment)
    (quantized.sum() + loss).backward()
    (expected.sum() + aux).backward()
    torch.testing.assert_close(grad(latents), grad(same))
    own, batch = ours.entropies(ours._prepare(latents.detach()))
    # Theirs clamps probabilities inside the logarithm at 1e-5.
    torch.testing.assert_close(own, terms.per_sample_entropy, atol=5e-3, rtol=5e-3)
    if spherical:
        assert batch >= terms.batch_entropy - 1e-3
    else:
        torch.testing.assert_close(batch, terms.batch_entropy, atol=5e-3, rtol=5e-3)
    everything = torch.arange(size)
    torch.testing.assert_close(ours.lookup(everything), theirs.indices_to_codes(everything))


def brute_entropies(book: LookupFreeQuantizer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In float64 over the whole codebook: both entropies, and the sum of the entropies of the mean bits."""
    corners = book._corners((torch.arange(book.size)[:, None] & book.bit_weights) != 0).double()
    shares = (-torch.cdist(x.double(), corners).square() / book.config.temperature).softmax(dim=1)

    def entr(p: Tensor) -> Tensor:
        # torch's own has an infinite slope at the zeros that the softmax underflows to.
        return -p * p.clamp(min=1e-300).log()

    bits = shares.mean(dim=0) @ (corners > 0).double()
    return entr(shares).sum(dim=1).mean(), entr(shares.mean(dim=0)).sum(), (entr(bits) + entr(1 - bits)).sum()


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 5, 10])
@pytest.mark.parametrize("temperature", [0.01, 0.3, 3.0])
def test_entropies_agree_with_brute_force(spherical, bits, temperature):
    book = make(LFQConfig(size=1 << bits, spherical=spherical, temperature=temperature), bits)
    x = book._prepare(torch.randn(300, bits) * 0.3 + 0.1).requires_grad_()
    own, batch = book.entropies(x)
    same = x.detach().double().requires_grad_()
    expected_own, over_codes, over_bits = brute_entropies(book, same)
    expected = over_bits if spherical else over_codes
    torch.testing.assert_close(own.double(), expected_own, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch.double(), expected, atol=1e-4, rtol=1e-4)
    assert over_bits >= over_codes - 1e-9
    (own - batch).backward()
    (expected_own - expected).backward()
    torch.testing.assert_close(grad(x).double(), grad(same), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("spherical", [False, True])
def test_the_loss_weighs_the_entropies_as_configured(spherical):
    latents, losses = torch.randn(50, 4), []
    for entropy, diversity in ((0.0, 1.0), (0.5, 0.0), (0.5, 3.0)):
        book = make(LFQConfig(size=16, spherical=spherical, temperature=0.3, entropy=entropy, diversity=diversity), 4)
        losses.append(float(book(latents)[2]))
    sample, batch = (float(each) for each in book.entropies(book._prepare(latents)))
    commitment, sharp, diverse = losses
    assert sharp == pytest.approx(commitment + 0.5 * sample, rel=1e-4)
    assert diverse == pytest.approx(commitment + 0.5 * (sample - 3 * batch), rel=1e-4)


@pytest.mark.parametrize("spherical", [False, True])
def test_entropy_of_a_dead_bit_has_a_finite_gradient(spherical):
    book = make(LFQConfig(size=64, spherical=spherical), 6)
    latents = (torch.randn(50, 6).abs() * 10).requires_grad_()
    book(latents)[2].backward()
    assert grad(latents).isfinite().all()


@pytest.mark.parametrize("spherical", [False, True])
def test_memory_of_the_entropies_does_not_grow_with_the_codebook(spherical):
    """2^24 codes for 2000 latents: held whole, their soft codes would be 134 GB."""
    bits = 24 if spherical else 16
    book = make(LFQConfig(size=1 << bits, spherical=spherical), bits)
    latents = torch.randn(2000, bits, requires_grad=True)
    largest = 0

    def seen(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        book(latents)[2].backward()
    assert largest <= (2000 * bits if spherical else 2000 << (bits // 2))
    assert grad(latents).isfinite().all()


@pytest.mark.parametrize("dim", [2, 8])
def test_rotation_agrees_with_vector_quantize_pytorch(dim):
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    latents, codes, mask = torch.randn(100, dim, requires_grad=True), torch.randn(100, dim), torch.randn(100, dim)
    done = estimate_gradient(latents, codes, rotation=True)
    assert torch.equal(done, codes)
    (done * mask).sum().backward()
    same = latents.detach().clone().requires_grad_()
    (rotate_to(same, codes) * mask).sum().backward()
    torch.testing.assert_close(grad(latents), grad(same), atol=1e-4, rtol=1e-4)
    # The paper's point: the gradient keeps its angle to the vector it is at.
    before = torch.cosine_similarity(mask, codes)
    torch.testing.assert_close(torch.cosine_similarity(grad(latents), latents.detach()), before, atol=1e-3, rtol=1e-3)


def test_rotation_of_zero_and_opposite_vectors_is_finite():
    codes = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    latents = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    done = estimate_gradient(latents, codes, rotation=True)
    assert torch.equal(done, codes)
    done.sum().backward()
    assert grad(latents).isfinite().all()


@pytest.mark.parametrize("cosine", [False, True])
def test_codebook_gradient_agrees_with_vector_quantize_pytorch(cosine):
    ours = make(VQConfig(size=32, warmup=0, update="gradient", cosine=cosine, revive_below=0.0), 8).train()
    codebook, latents = ours.codebook.clone(), torch.randn(500, 8)
    loss = ours(latents)[2]
    loss.backward()
    # The definition (van den Oord et al. 2017, eq. 3), by autograd over the plain distances.
    x = torch.nn.functional.normalize(latents, dim=1) if cosine else latents
    vectors = codebook.clone().requires_grad_()
    there = torch.nn.functional.normalize(vectors, dim=1) if cosine else vectors
    nearest = there[torch.cdist(x, there).argmin(dim=1)]
    expected = (x - nearest.detach()).square().mean() + 4.0 * (x - nearest).square().mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.offset.grad, grad(vectors), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("rotation", [False, True])
def test_simvq_agrees_with_vector_quantize_pytorch(rotation):
    book = make(SimVQConfig(size=64, codebook=4.0, rotation=rotation))
    theirs = reference.SimVQ(
        DIM, 64, rotation_trick=rotation, input_to_quantize_commit_loss_weight=0.25, commitment_weight=4.0
    )
    with torch.no_grad():
        theirs.frozen_codebook.copy_(book.codebook)
        book.map.weight.copy_(torch.randn(DIM, DIM) / DIM**0.5)
        theirs.code_transform.weight.copy_(book.map.weight)
    latents = torch.randn(500, DIM)
    mine, other = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    quantized, codes, loss = book(mine)
    expected, indices, expected_loss = theirs(other[None])
    assert torch.equal(codes, indices[0])
    torch.testing.assert_close(quantized, expected[0])
    torch.testing.assert_close(loss, expected_loss)
    target = torch.randn(500, DIM)
    ((quantized - target).square().sum() + loss).backward()
    ((expected[0] - target).square().sum() + expected_loss).backward()
    torch.testing.assert_close(grad(mine), grad(other), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grad(book.map.weight), grad(theirs.code_transform.weight))


def test_simvq_learns_a_map_and_no_code():
    book = make(SimVQConfig(size=64)).train()
    frozen = book.codebook.clone()
    optimizer = torch.optim.Adam(book.parameters(), lr=0.02)
    shape = torch.randn(DIM, DIM)
    errors = []
    for _ in range(150):
        optimizer.zero_grad()
        latents = torch.randn(1000, DIM) @ shape
        quantized, _, loss = book(latents)
        loss.backward()
        optimizer.step()
        errors.append((quantized - latents).square().mean().item())
    assert isinstance(book, SimVectorQuantizer)
    assert torch.equal(book.codebook, frozen)
    assert errors[-1] < 0.6 * errors[0]


def test_gradients_train_a_codebook_as_well_as_moving_averages():
    torch.manual_seed(0)
    centres = torch.randn(32, 8) * 3

    def batch() -> Tensor:
        return centres[torch.randint(32, (400,))] + 0.1 * torch.randn(400, 8)

    errors = {}
    for update in ("ema", "gradient"):
        book = make(VQConfig(size=32, warmup=3, update=update, decay=0.9), 8).train()
        parameters = list(book.parameters())
        optimizer = torch.optim.Adam(parameters, lr=1e-2) if parameters else None
        for _ in range(60):
            loss = book(batch())[2]
            if optimizer:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        latents = batch()
        errors[update] = float((book.eval()(latents)[0] - latents).square().mean())
    assert errors["ema"] < 1.5
    assert errors["gradient"] < max(1.5 * errors["ema"], 0.02)


def test_initialization_and_code_replacement_write_no_parameter():
    book = make(VQConfig(size=16, warmup=2, update="gradient", revive_below=0.1, decay=0.5), 8).train()
    with torch.no_grad():
        book.offset.fill_(3.0)
    for _ in range(2):
        loss = book(torch.randn(400, 8) + 5)[2]
    assert loss.requires_grad
    assert (book._vectors().mean() - 5).abs() < 0.5
    with torch.no_grad():
        book.codebook[8:] = 100.0
    for _ in range(20):
        book(torch.randn(400, 8) + 5)
    # Latents' own place: a revival that forgot the offset would be 3 beside it.
    assert (book._vectors()[8:].mean() - 5).abs() < 1
    assert torch.equal(book.offset, torch.full_like(book.offset, 3.0))


def test_residual_agrees_with_vector_quantize_pytorch():
    ours = make(ResidualConfig(depth=3, layer=VQConfig(size=16, warmup=0)), 8).eval()
    theirs = reference.ResidualVQ(dim=8, codebook_size=16, num_quantizers=3).eval()
    layers: Any = theirs.layers
    for mine, other in zip(ours.layers, layers, strict=True):
        assert isinstance(mine, VectorQuantizer)
        other._codebook.embed.data.copy_(mine.codebook[None])
        other._codebook.initted.data.fill_(True)
    latents = torch.randn(1000, 8)
    quantized, codes, _ = ours(latents)
    expected, digits, _ = theirs(latents[None])
    assert torch.equal(codes, (digits[0].long() * torch.tensor([256, 16, 1])).sum(dim=1))
    torch.testing.assert_close(quantized, expected[0])


def test_residual_layers_warm_up_one_after_another_and_each_helps():
    book = make(ResidualConfig(depth=3, layer=VQConfig(size=16, warmup=4)), 8).train()
    torch.manual_seed(1)
    for step in range(12):
        latents = torch.randn(500, 8)
        quantized, codes, _ = book(latents)
        torch.testing.assert_close(quantized, latents)
        assert (codes % 16 == 0).all() == (step < 8)
    for _ in range(20):
        book(torch.randn(500, 8))
    book.eval()
    latents, left, errors = torch.randn(500, 8), None, []
    left = latents
    for layer in book.layers:
        left = left - layer.lookup(layer.encode(left))
        errors.append(float(left.square().mean()))
    assert errors[2] < 0.85 * errors[1] < 0.85**2 * errors[0]


def test_every_residual_layer_contributes_to_the_commitment_loss():
    book = make(ResidualConfig(depth=2, layer=VQConfig(size=8, warmup=0))).eval()
    latents = torch.randn(20, DIM, requires_grad=True)
    book(latents)[2].backward()
    x, expected = latents.detach(), torch.zeros(20, DIM)
    left = x
    for layer in book.layers:
        left = left - layer.lookup(layer.encode(left))
        expected += 2 * left / left.numel() / 2
    torch.testing.assert_close(grad(latents), expected)


def test_residual_gradient_passes_once():
    latents = torch.randn(20, DIM, requires_grad=True)
    make(ResidualConfig(depth=3, layer=VQConfig(size=8, warmup=0))).eval()(latents)[0].sum().backward()
    assert torch.equal(grad(latents), torch.ones_like(latents))
