"""Adapters for tokenizers of other libraries, with random weights, in the whole pipeline; and the Hugging Face hub."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vidvq import load_pretrained, save_pretrained
from vidvq.formats.token_shard import read_tokenizer_card, read_tokens
from vidvq.pretrained import load_tokenizer
from vidvq.storage import pretty_json


class _Encoder(nn.Module):
    """4x8x8, causal: the mean of each block, in 32 levels; like Cosmos' it returns indices and codes."""

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        first = video[:, :, :1].expand(-1, -1, 4, -1, -1)
        blocks = nn.functional.avg_pool3d(torch.cat([first, video[:, :, 1:]], dim=2).float(), [4, 8, 8]).mean(dim=1)
        codes = ((blocks + 1) * 16).long().clamp(0, 31)
        return codes, blocks


class _Decoder(nn.Module):
    def forward(self, codes: Tensor) -> Tensor:
        video = ((codes.float() + 0.5) / 16 - 1)[:, None].expand(-1, 3, -1, -1, -1)
        return nn.functional.interpolate(video, scale_factor=[4.0, 8.0, 8.0])[:, :, 3:]


class _Latents(nn.Module):
    """The encoder of a continuous tokenizer."""

    def forward(self, video: Tensor) -> Tensor:
        return video[..., ::8, ::8]


def write_emu3(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Emu3VQVAEConfig(
        codebook_size=64,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        hidden_size=32,
        attn_resolutions=[],
    )
    model = transformers.Emu3VQVAE(config)
    with torch.no_grad():
        model.quantize.embedding.weight.normal_()
    model.save_pretrained(folder)


def write_published_emu3(folder: Path) -> None:
    """The network of ``write_emu3`` with attention in the last stage, as BAAI publishes it."""
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import save_file

    sizes = {"codebook_size": 64, "num_res_blocks": 1, "attn_resolutions": [1]}
    config = transformers.Emu3VQVAEConfig(base_channels=32, channel_multiplier=[1, 2], hidden_size=64, **sizes)
    model = transformers.Emu3VQVAE(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "num_batches" not in name:
                tensor.add_(torch.rand_like(tensor) * 0.1)
    model.save_pretrained(folder.parent / "emu3-transformers")
    folder.mkdir()
    tensors = {publish_name(name): tensor for name, tensor in model.state_dict().items()}
    shaped = {
        name: tensor[:, :, None, None] if tensor.ndim == 2 and ".attn" in name else tensor
        for name, tensor in tensors.items()
    }
    save_file({name: tensor.contiguous() for name, tensor in shaped.items()}, folder / "model.safetensors")
    fields = {"model_type": "Emu3VisionVQ", "architectures": ["Emu3VisionVQModel"], "ch": 32, "ch_mult": [1, 2]}
    (folder / "config.json").write_bytes(pretty_json(fields | sizes | {"z_channels": 4, "embed_dim": 4}))


def publish_name(name: str) -> str:
    """The name of a tensor of transformers' network in the published weights."""
    parts = name.split(".")
    if "middle_block" in parts:
        parts[1:3] = ["mid", "attn_1", "norm"] if parts[2] == "attn_norm" else ["mid", parts[2]]
    for side in ("down", "up"):
        if parts[1] == f"{side}_block":
            del parts[1]
            if parts[3] == "attn_norms":
                parts[3:5] = ["attn", parts[4], "norm"]
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "proj_out"}
    return ".".join(names.get(part, part) for part in parts)


def write_cosmos(folder: Path) -> None:
    """A pair as NVIDIA publishes it, whose config.json says nothing of the factors."""
    write_script(folder)
    (folder / "autoencoder.jit").write_bytes(b"not needed")
    (folder / "config.json").write_bytes(pretty_json({"architectures": ["CosmosTokenizer"]}))


def write_vqmodel(folder: Path, norm_type: str = "group") -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.VQModel(
        # Spatial norms have 32 groups.
        block_out_channels=(32, 32) if norm_type == "spatial" else (8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        num_vq_embeddings=32,
        norm_type=norm_type,
    )
    with torch.no_grad():
        model.quantize.embedding.weight.normal_()
    model.save_pretrained(folder)


VIDTOK = {"ch": 8, "ch_mult": [1, 1, 1], "z_channels": 3, "num_res_blocks": 1, "codebook_size": 512}


def write_vidtok(folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderVidTok(**VIDTOK, double_z=False, regularizer="fsq")
    with torch.no_grad():
        model.encoder.conv_out.conv.weight.mul_(10)
    model.save_pretrained(folder)


def write_script(folder: Path) -> None:
    folder.mkdir(parents=True)
    torch.jit.trace(_Encoder(), torch.zeros(1, 3, 5, 16, 16)).save(str(folder / "encoder.jit"))
    torch.jit.trace(_Decoder(), torch.zeros(1, 2, 2, 2, dtype=torch.long)).save(str(folder / "decoder.jit"))
    fields = {"temporal_factor": 4, "spatial_factor": 8, "codebook_size": 32, "dtype": "float32"}
    (folder / "config.json").write_bytes(pretty_json({"format": "vidvq.torchscript/1"} | fields))


WRITERS = {
    "emu3": write_emu3,
    "emu3-published": write_published_emu3,
    "vqmodel": write_vqmodel,
    "vidtok": write_vidtok,
    "torchscript": write_script,
    "cosmos": write_cosmos,
}
every_kind = pytest.mark.parametrize("kind", WRITERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("foreign")
    for name, write in WRITERS.items():
        write(root / name)
    return {name: root / name for name in WRITERS}


@every_kind
def test_the_whole_pipeline_runs_with_an_adapter(kind, folders, clips_dir, tmp_path, vidvq):
    """Shard, tokenize, decode, evaluate, verify, as with a tokenizer of our own."""
    tokens, frames = tmp_path / "tokens", tmp_path / "frames"
    checkpoint = folders[kind]
    assert vidvq("tokenize", clips_dir, "--checkpoint", checkpoint, "--out", tokens, "runtime.workers=0").code == 0
    assert vidvq("verify", tokens).code == 0
    assert vidvq("decode", tokens, "--checkpoint", checkpoint, "--out", frames, "format=png").code == 0
    ran = vidvq("evaluate", clips_dir, frames, "--tokens", tokens)
    assert ran.code == 0, ran.err
    card = read_tokenizer_card(tokens)
    assert [book.name for book in card.codebooks] == ["joint"]
    _, codes, info = next(read_tokens(tokens / "tokens-000000.tar", card))
    assert len(np.unique(codes)) > 2
    assert codes.shape[0] == 1 + -(-(info.num_frames - 1) // card.temporal_factor)


@every_kind
@pytest.mark.parametrize("size", [(1, 8, 8), (6, 19, 33)], ids=str)
def test_any_size_round_trips_in_any_batch(kind, folders, size):
    tokenizer, _ = load_tokenizer(folders[kind])
    t, h, w = size
    video = torch.rand(2, 3, t, h, w) * 2 - 1
    codes = tokenizer.encode(video)
    assert tuple(codes.shape[1:]) == tokenizer.latent_shape(t, h, w)
    assert codes.dtype == torch.long
    assert torch.equal(tokenizer.encode(video[1:]), codes[1:])
    decoded = tokenizer.decode(codes, num_frames=t, size=(h, w))
    assert decoded.shape == video.shape
    assert decoded.abs().max() <= 1


def test_emu3_codes_and_frames_equal_those_of_transformers(folders):
    transformers = pytest.importorskip("transformers")
    tokenizer, _ = load_tokenizer(folders["emu3"])
    model = transformers.Emu3VQVAE.from_pretrained(folders["emu3"])
    image = torch.rand(1, 3, 1, 16, 24) * 2 - 1
    with torch.no_grad():
        expected = model.encode(image[:, :, 0], image_sizes=torch.tensor([[16, 24]])).image_tokens[0]
        assert torch.equal(tokenizer.encode(image)[0, 0], expected)
        codes = torch.randint(64, (1, 3, 8, 12))
        frames = model.decode(codes)[0]
    expected = torch.cat([frames[:4].mean(dim=0, keepdim=True), frames[4:]])
    torch.testing.assert_close(tokenizer.decode(codes)[0].transpose(0, 1), expected.clamp(-1, 1))


def test_published_emu3_has_the_codes_and_frames_of_the_converted_one(folders):
    published, _ = load_tokenizer(folders["emu3-published"])
    converted, _ = load_tokenizer(folders["emu3-published"].parent / "emu3-transformers")
    video = torch.rand(1, 3, 5, 16, 24) * 2 - 1
    codes = converted.encode(video)
    assert len(codes.unique()) > 2
    assert torch.equal(published.encode(video), codes)
    assert torch.equal(published.decode(codes), converted.decode(codes))


@pytest.mark.parametrize("config", ["of its own", "absent"])
def test_a_published_cosmos_folder_needs_no_config_of_ours(config, folders, tmp_path):
    folder = shutil.copytree(folders["cosmos"], tmp_path / "cosmos")
    if config == "absent":
        (folder / "config.json").unlink()
    tokenizer, card = load_tokenizer(folder)
    assert (tokenizer.temporal_factor, tokenizer.spatial_factor) == (4, 8)
    assert [(book.size, book.offset) for book in card.codebooks] == [(64000, 0)]


def test_a_continuous_tokenizer_is_one_clear_error(tmp_path):
    write_cosmos(tmp_path / "latents")
    latents = torch.jit.trace(_Latents(), torch.zeros(1, 3, 17, 16, 16).bfloat16())
    latents.save(str(tmp_path / "latents/encoder.jit"))
    with pytest.raises(ValueError, match=r"gives bfloat16 \(1, 3, 17, 8, 8\) for 17 frames; only discrete") as caught:
        load_tokenizer(tmp_path / "latents")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("norm_type", ["group", "spatial"])
def test_vqmodel_codes_and_frames_equal_those_of_diffusers(norm_type, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    write_vqmodel(tmp_path, norm_type)
    tokenizer, _ = load_tokenizer(tmp_path)
    model = diffusers.VQModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    video = torch.rand(1, 3, 3, 16, 24) * 2 - 1
    codes = tokenizer.encode(video)
    decoded = tokenizer.decode(codes)
    for index in range(3):
        with torch.no_grad():
            expected = model(video[:, :, index]).sample
        torch.testing.assert_close(decoded[:, :, index], expected.clamp(-1, 1))


def test_vidtok_codes_and_frames_equal_those_of_diffusers(folders):
    diffusers = pytest.importorskip("diffusers")
    tokenizer, card = load_tokenizer(folders["vidtok"])
    assert (tokenizer.temporal_factor, tokenizer.spatial_factor, card.codebooks[0].size) == (4, 4, 512)
    model = diffusers.AutoencoderVidTok.from_pretrained(folders["vidtok"])
    video = torch.rand(1, 3, 9, 16, 24) * 2 - 1
    with torch.no_grad():
        expected = model(video, encoder_mode=True)[1]
        frames = model(video).sample
    codes = tokenizer.encode(video)
    assert torch.equal(codes, expected) and len(codes.unique()) > 8
    torch.testing.assert_close(tokenizer.decode(codes), frames.clamp(-1, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"double_z": True, "regularizer": "kl"}, "regularizer=kl in config.json; only causal models with FSQ"),
        ({"double_z": False, "regularizer": "fsq", "is_causal": False}, "is_causal=False in config.json; only causal"),
    ],
)
def test_a_vidtok_without_codes_or_with_chunks_is_one_clear_error(settings, message, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    diffusers.AutoencoderVidTok(**VIDTOK, **settings).save_pretrained(tmp_path / "vidtok")
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer(tmp_path / "vidtok")
    assert "\n" not in str(caught.value)


@every_kind
def test_fingerprints_identify_the_weights(kind, folders, tmp_path):
    before = load_tokenizer(folders[kind])[1]
    assert load_tokenizer(folders[kind])[1] == before
    torch.manual_seed(1)
    if kind not in {"torchscript", "cosmos"}:
        WRITERS[kind](tmp_path / "other")
        after = load_tokenizer(tmp_path / "other")[1]
        assert after.token_fingerprint != before.token_fingerprint
        assert after.decoder_fingerprint != before.decoder_fingerprint
        return
    other = shutil.copytree(folders[kind], tmp_path / "other")
    torch.jit.trace(_Decoder().double(), torch.zeros(1, 1, 2, 2, dtype=torch.long)).save(str(other / "decoder.jit"))
    after = load_tokenizer(other)[1]
    assert after.token_fingerprint == before.token_fingerprint
    assert after.decoder_fingerprint != before.decoder_fingerprint


def test_fingerprints_do_not_cover_the_version_of_a_library(folders, tmp_path):
    before = load_tokenizer(folders["vqmodel"])[1]
    other = shutil.copytree(folders["vqmodel"], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_bytes(pretty_json(config | {"_diffusers_version": "0.1", "_name_or_path": "mine"}))
    assert load_tokenizer(other)[1] == before


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("emu3", "model.safetensors"),
        ("emu3-published", "model.safetensors"),
        ("vqmodel", "diffusion_pytorch_model.safetensors"),
        ("vidtok", "diffusion_pytorch_model.safetensors"),
    ],
)
def test_pickled_missing_or_unexpected_weights_are_rejected(kind, file, folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders[kind], tmp_path / kind)
    weights = load_file(folder / file)
    (folder / file).unlink()
    torch.save(weights, folder / file.replace("safetensors", "bin").replace("model.bin", "pytorch_model.bin"))
    with pytest.raises(ValueError, match="is not a readable") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
    lost = next(name for name in weights if name.startswith("encoder.conv_in."))
    save_file(weights | {"encoder.extra": torch.zeros(1)}, folder / file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="unexpected keys: encoder.extra"):
        load_tokenizer(folder)
    weights.pop(lost)
    save_file(weights, folder / file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing keys: {lost}"):
        load_tokenizer(folder)


@pytest.mark.parametrize("kind", ["emu3", "emu3-published", "vqmodel", "vidtok"])
def test_damaged_weights_are_one_clear_error(kind, folders, tmp_path):
    folder = shutil.copytree(folders[kind], tmp_path / kind)
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"is not a readable {kind} tokenizer: ") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temporal_factor": 0}, "temporal_factor=0 must be an integer, 1 or more"),
        ({"spatial_factor": 8.0}, "spatial_factor=8.0 must be an integer"),
        ({"codebook_size": "32"}, "an integer size of 1 or more"),
        ({"dtype": "load"}, "dtype='load' in config.json must be a type of torch"),
    ],
    ids=str,
)
def test_wrong_fields_of_a_script_are_one_clear_error(change, message, folders, tmp_path):
    folder = shutil.copytree(folders["torchscript"], tmp_path / "script")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_bytes(pretty_json(fields | change))
    with pytest.raises(ValueError, match=f"is not a readable torchscript tokenizer: .*{message}"):
        load_tokenizer(folder)


def test_a_mistake_is_one_clear_error(folders, tmp_path):
    script = shutil.copytree(folders["torchscript"], tmp_path / "script")
    (script / "decoder.jit").unlink()
    with pytest.raises(ValueError, match="decoder.jit is missing"):
        load_tokenizer(script)
    tokenizer, _ = load_tokenizer(folders["torchscript"])
    with pytest.raises(ValueError, match="does not support streaming"):
        tokenizer.encode_step(torch.zeros(1, 3, 1, 8, 8))
    with pytest.raises(ValueError, match="does not support streaming"):
        tokenizer.decode_step(torch.zeros(1, 1, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="code 32 is out of range; the joint codebook has codes 0 to 31"):
        tokenizer.decode(torch.full((1, 2, 2, 2), 32))


@every_kind
def test_load_pretrained_reads_an_adapter_from_its_folder(kind, folders):
    tokenizer = load_pretrained(folders[kind])
    assert not tokenizer.training and not tokenizer.supports_streaming
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert torch.equal(tokenizer.encode(video), load_tokenizer(folders[kind])[0].encode(video))


def test_save_and_load_pretrained_round_trip(checkpoint_dir, tmp_path):
    pytest.importorskip("huggingface_hub")
    tokenizer = load_pretrained(checkpoint_dir)
    save_pretrained(tokenizer, tmp_path / "saved")
    again = load_pretrained(str(tmp_path / "saved"))
    assert load_tokenizer(tmp_path / "saved")[1] == load_tokenizer(checkpoint_dir)[1]
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert torch.equal(again.encode(video), tokenizer.encode(video))
    assert {path.name for path in (tmp_path / "saved").iterdir()} >= {"model.safetensors", "config.json", "fingerprint"}
    assert not again.training


def test_saving_keeps_the_other_files_of_a_folder(checkpoint_dir, tmp_path):
    pytest.importorskip("huggingface_hub")
    tokenizer, folder = load_pretrained(checkpoint_dir), tmp_path / "clone"
    (folder / ".git").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    for _ in range(2):
        save_pretrained(tokenizer, folder)
    files = {".git", "notes.txt", "README.md", "config.json", "fingerprint", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == files
    assert load_tokenizer(folder)[1] == load_tokenizer(checkpoint_dir)[1]


@pytest.mark.parametrize(("dtype", "device"), [(torch.bfloat16, "cpu"), (torch.float32, "meta")], ids=str)
def test_the_defaults_of_the_callers_torch_change_no_weight(checkpoint_dir, dtype, device):
    expected = load_pretrained(checkpoint_dir).inference_state_dict()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            loaded = load_pretrained(checkpoint_dir).inference_state_dict()
            assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    for name, weights in expected.items():
        assert loaded[name].dtype == weights.dtype and torch.equal(loaded[name], weights)


def test_a_trainable_tokenizer_keeps_its_codebooks_and_has_gradients(checkpoint_dir):
    frozen, tokenizer = load_pretrained(checkpoint_dir), load_pretrained(checkpoint_dir, trainable=True)
    assert not any(parameter.requires_grad for parameter in frozen.parameters()) and not frozen.training
    assert all(parameter.requires_grad for parameter in tokenizer.parameters()) and tokenizer.training
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = tokenizer(video)
    assert torch.equal(result.codes, frozen.encode(video))
    assert result.commitment_loss > 0
    (result.reconstruction.square().mean() + result.commitment_loss).backward()
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())


def test_load_pretrained_downloads_only_the_files_of_a_checkpoint(checkpoint_dir, monkeypatch):
    hub = pytest.importorskip("vidvq.pretrained.hub")
    asked = {}

    def snapshot(name, **options):
        asked.update(options, name=name)
        return str(checkpoint_dir)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert load_pretrained("someone/tokenizer", revision="v1").supports_streaming
    assert asked == {
        "name": "someone/tokenizer",
        "revision": "v1",
        "allow_patterns": ["model.safetensors", "config.json", "fingerprint"],
    }


def test_a_name_that_is_neither_folder_nor_repository_is_one_clear_error(tmp_path, monkeypatch):
    hub = pytest.importorskip("vidvq.pretrained.hub")
    with pytest.raises(ValueError, match="missing does not exist; give a checkpoint or a training run"):
        load_pretrained(tmp_path / "missing")
    with pytest.raises(ValueError, match="some one/tokenizer is not a local folder"):
        load_pretrained("some one/tokenizer")

    def unreachable(name, **options):
        raise OSError("Repository Not Found\nfor url: ...")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(
        ValueError, match="runs/trian is not a local folder, and not a repository .*: Repository Not Found$"
    ):
        load_pretrained("runs/trian")
