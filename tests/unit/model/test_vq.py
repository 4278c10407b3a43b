"""The VQ codebook: search, moving averages, initialization, dead codes, precision, and agreement of ranks."""

import os
import socket
import sys
from types import SimpleNamespace

import pytest
import torch
import vector_quantize_pytorch as reference
from torch import distributed, multiprocessing
from torch.utils._python_dispatch import TorchDispatchMode

from vidvq.model.quantize import VectorQuantizer, VQConfig, collectives, search, vq


def make(size: int = 32, dim: int = 8, **changes) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(VQConfig(size=size, **({"warmup": 0} | changes)), dim)


# 128 places for latents: fewer steps than that, more, and none that divides it.
@pytest.mark.parametrize("warmup", [1, 3, 60, 300])
def test_a_warm_up_of_any_length_fills_its_reservoir(warmup):
    book = make(size=8, dim=2, warmup=warmup).train()
    for _ in range(warmup):
        assert book.warming_up
        book(torch.randn(64, 2))
    assert not book.warming_up
    assert book.reservoir.all(dim=1).all()


def test_nearest_codes_agree_with_brute_force(monkeypatch):
    latents, codebook = torch.randn(1000, 8), torch.randn(50, 8)
    brute = torch.cdist(latents.double(), codebook.double()).argmin(dim=1)
    assert torch.equal(search.nearest_codes(latents, codebook), brute)
    for rows, chunk, block in ((7, 11, 2), (1000, 50, 1), (512, 1, 3)):
        monkeypatch.setattr(search, "_ROWS", rows)
        monkeypatch.setattr(search, "_CHUNK", chunk)
        monkeypatch.setattr(search, "_BLOCK", block)
        assert torch.equal(search.nearest_codes(latents, codebook), brute)


@pytest.mark.parametrize("chunk", [8, 7, 64])
def test_ties_resolve_to_the_first_code(monkeypatch, chunk):
    monkeypatch.setattr(search, "_CHUNK", chunk)
    # Whole numbers, so that no rounding tells equal ones apart.
    codebook = torch.randint(-9, 10, (10, 4)).float().repeat(3, 1)
    assert torch.equal(search.nearest_codes(codebook, codebook), torch.arange(10).repeat(3))


def test_padding_of_the_last_chunk_is_never_returned(monkeypatch):
    monkeypatch.setattr(search, "_CHUNK", 8)
    codebook = torch.randn(11, 4)
    codes = search.nearest_codes(codebook[-1:].repeat(20, 1), codebook)
    assert torch.equal(codes, torch.full((20,), 10))


@pytest.mark.parametrize("size", [8192, 1 << 18])
def test_latents_times_codes_is_never_materialized(size):
    torch.manual_seed(0)
    codebook, chosen = torch.randn(size, 16), torch.randint(size, (1200,))
    latents = codebook[chosen] + 0.01 * torch.randn(1200, 16)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        codes = search.nearest_codes(latents, codebook)
    assert torch.equal(codes, chosen)
    # The largest are the codes beside their norms, and the chunk that each latent chose.
    assert largest <= max(search._ROWS * search._CHUNK * 17, size * 17)


def test_kmeans_finds_clusters():
    centres = torch.randn(16, 4) * 10
    points = (centres[:, None] + torch.randn(16, 50, 4) * 0.01).flatten(0, 1)
    found = search.kmeans(points, 16, seed=0)
    start = points[torch.randperm(len(points))[:16]]

    def spread(codes: torch.Tensor) -> float:
        return float((points - codes[search.nearest_codes(points, codes)]).square().sum(dim=1).mean())

    assert spread(found) < 0.7 * spread(start)
    assert torch.equal(found, search.kmeans(points, 16, seed=0))


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_agree_with_vector_quantize_pytorch(cosine, dtype):
    ours = make(cosine=cosine).eval()
    theirs = reference.VectorQuantize(dim=8, codebook_size=32, use_cosine_sim=cosine).eval()
    theirs._codebook.embed.data.copy_(ours.codebook[None])
    theirs._codebook.initted.data.fill_(True)
    # Latents that hit every code, and noise.
    latents = torch.cat([ours.codebook + 0.01 * torch.randn(32, 8), torch.randn(500, 8)]).to(dtype)
    quantized, codes, _ = ours(latents)
    expected, expected_codes, _ = theirs(latents.float()[None])
    assert set(codes[:32].tolist()) == set(range(32))
    assert torch.equal(codes, expected_codes[0])
    torch.testing.assert_close(
        quantized.float(), expected[0], atol=1e-2 if dtype == torch.bfloat16 else 1e-6, rtol=1e-2
    )


def test_moving_averages_agree_with_vector_quantize_pytorch():
    ours = make(decay=0.9, revive_below=0.0).train()
    theirs = reference.VectorQuantize(dim=8, codebook_size=32, decay=0.9, threshold_ema_dead_code=0).train()
    theirs._codebook.embed.data.copy_(ours.codebook[None])
    theirs._codebook.embed_avg.data.copy_(ours.codebook[None])
    theirs._codebook.cluster_size.data.fill_(1.0)
    theirs._codebook.initted.data.fill_(True)
    for _ in range(5):
        latents = torch.randn(400, 8)
        _, codes, loss = ours(latents)
        _, expected, _ = theirs(latents[None])
        assert torch.equal(codes, expected[0])
        assert loss > 0
    torch.testing.assert_close(ours.codebook, theirs._codebook.embed[0], atol=1e-4, rtol=1e-4)


def test_gradient_passes_straight_through():
    latents = torch.randn(20, 8, requires_grad=True)
    quantized, _, _ = make().eval()(latents)
    quantized.sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))


def test_warmup_passes_latents_then_initializes_the_codes():
    book = make(warmup=3).train()
    for step in range(3):
        latents = torch.randn(200, 8) + 5
        quantized, _, loss = book(latents)
        assert torch.equal(quantized, latents), step
        assert loss == 0
    assert (book.codebook.mean() - 5).abs() < 0.5
    # The averages are those of the codes, and weigh as much as those of a new codebook.
    torch.testing.assert_close(book.ema_sum, book.codebook * book.ema_count[:, None])
    assert book.ema_count.mean() == pytest.approx(1, rel=0.05)
    _, codes, loss = book(torch.randn(2000, 8) + 5)
    assert codes.unique().numel() > 24
    assert loss > 0


def test_the_latents_of_the_early_warmup_are_forgotten():
    book = make(warmup=4).train()
    for place in (-5, -5, 5, 5):
        book(torch.randn(400, 8) + place)
    assert book.codebook.mean(dim=1).min() > 0


def test_dead_codes_are_replaced_by_latents():
    book = make(revive_below=0.1, decay=0.5).train()
    book.codebook[16:] = 100.0
    book.ema_sum.copy_(book.codebook)
    for _ in range(25):
        book(torch.randn(400, 8))
    # Averages alone would let them decay to 0, where they would be near but without use.
    assert book(torch.randn(4000, 8))[1].unique().numel() == 32


def test_a_replaced_code_stays_among_the_latents():
    book = make(revive_below=0.1).train()
    book.ema_count[:16], book.ema_count[16:] = 50, 0
    for _ in range(2):
        book(torch.randn(400, 8) + 5)
    # Averages that do not match the new code would move it in the next step.
    assert (book.codebook[16:] - 5).abs().mean() < 1.2


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_latents_of_a_code_that_is_replaced_are_quantized_to_it_once_more(update):
    book = make(size=2, dim=2, revive_below=0.5, update=update).train()
    book.codebook.copy_(torch.tensor([[0.0, 0.0], [9.0, 0.0]]))
    book.ema_sum.copy_(book.codebook)
    book.ema_count.copy_(torch.tensor([100.0, 1.0]))
    latents = torch.zeros(100, 2)
    latents[0, 0] = 9
    found, codes, loss = book(latents)
    assert codes[0] == 1
    torch.testing.assert_close(found.detach(), latents, atol=1e-3, rtol=0)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    # Almost surely one of the others.
    assert torch.equal(book.codebook[1], torch.zeros(2))


def test_only_used_latents_are_drawn():
    used = torch.tensor([False, True, False, False, True, False])
    assert set(vq._draw(6, 100, used, used.device).tolist()) == {1, 4}
    for everyone in (None, torch.zeros_like(used)):
        assert set(vq._draw(6, 100, everyone, used.device).tolist()) == set(range(6))


def test_traced_passes_replace_dead_codes_in_the_same_steps(monkeypatch):
    plain, traced = (make(revive_below=0.9, decay=0.5).train() for _ in range(2))
    for step in range(12):
        latents = torch.randn(40, 8)
        torch.manual_seed(step)
        plain(latents)
        traced.begin_pass()
        with monkeypatch.context() as compiling:
            compiling.setattr(torch.compiler, "is_compiling", lambda: True)
            torch.manual_seed(step)
            traced.run_pass(latents)
        assert torch.equal(plain.codebook, traced.codebook), step


def test_eval_mode_updates_nothing():
    book = make(warmup=2).eval()
    before = {name: buffer.clone() for name, buffer in book.named_buffers()}
    book(torch.randn(100, 8))
    assert all(torch.equal(before[name], buffer) for name, buffer in book.named_buffers())


def test_buffers_stay_fp32():
    book = make().to(torch.bfloat16).half()
    assert {buffer.dtype for buffer in book.buffers()} == {torch.float32, torch.int64}
    exact = make().codebook
    assert torch.equal(book.codebook, exact)


def _rank(rank: int, port: int, changes: dict, latents: torch.Tensor, results) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    book = make(**changes).train()
    # Processes draw different numbers, as after a resume or with data of their own.
    torch.manual_seed(rank)
    # GPUs round the sums of k-means differently.
    find = vq.kmeans
    vq.kmeans = lambda *given, **options: find(*given, **options) + 1e-3 * rank
    for batch in latents:
        book(batch.chunk(2)[rank])
    results.put((rank, book.codebook.clone().numpy(), book.ema_count.clone().numpy()))
    distributed.barrier()
    distributed.destroy_process_group()


def train_on_two_ranks(latents: torch.Tensor, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    """Codebook and counts after training on both halves of each batch; the same on both ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Its forks need not import torch.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, port, changes, latents, results), daemon=True) for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = {rank: (codebook, counts) for rank, codebook, counts in (results.get(timeout=120) for _ in range(2))}
    for process in processes:
        process.join()
    for mine, theirs in zip(found[0], found[1], strict=True):
        assert (mine == theirs).all()
    return torch.from_numpy(found[0][0]), torch.from_numpy(found[0][1])


def test_two_ranks_have_the_codebook_of_one_with_the_joint_batch():
    latents = torch.randn(5, 400, 8)
    codebook, counts = train_on_two_ranks(latents, decay=0.9, revive_below=0.0)
    alone = make(decay=0.9, revive_below=0.0).train()
    for batch in latents:
        alone(batch)
    torch.testing.assert_close(codebook, alone.codebook, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(counts, alone.ema_count, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_two_ranks_initialize_the_same_codes(update):
    codebook, _ = train_on_two_ranks(torch.randn(2, 800, 8) + 5, warmup=2, update=update)
    assert (codebook.mean() - 5).abs() < 0.5


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_two_ranks_replace_dead_codes_alike(update):
    # Latents far from the codes: nearly all die, and are revived in the first step of ten.
    codebook, _ = train_on_two_ranks(torch.randn(11, 400, 8) + 5, decay=0.5, revive_below=0.1, update=update)
    assert (codebook.mean(dim=1) > 2.5).float().mean() > 0.9


def test_the_mean_over_ranks_has_the_gradient_of_the_local_mean(monkeypatch):
    monkeypatch.setattr(collectives, "_is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tensor.add_(3))
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    mean = torch.tensor(1.0, requires_grad=True)
    found = collectives.all_reduce_mean(mean)
    found.backward()
    assert found == 2 and mean.grad == 1


def test_triton_launches_on_the_device_of_the_latents(current_devices, monkeypatch):
    launched = []

    def launch(*_):
        launched.append(len(current_devices))
        return torch.zeros(3, dtype=torch.long)

    kernels = SimpleNamespace(nearest_codes_fused=launch)
    monkeypatch.setitem(sys.modules, "vidvq.model.quantize.search_triton", kernels)
    search._nearest_codes_fused(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(4))
    assert launched == [1]


def test_no_latent_has_no_code():
    codes = search.nearest_codes(torch.zeros(0, 4), torch.randn(64, 4))
    assert codes.shape == (0,) and codes.dtype == torch.long
