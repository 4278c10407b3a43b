"""Video transformer over a latent grid of codes. Imports torch and einops.

Positions are rotary in time, height and width, so one model takes every grid up to the size it was trained on.
Attention covers the whole grid (``full``), or alternates between space and time (``axial``), which costs less.

A forward pass processes one or two *streams* of the same grid. ``masked`` has one stream of masked codes, in which
every position attends to every other. ``next`` has two: in the complete stream, a latent frame attends to itself and
earlier frames; in the masked stream, it attends to itself and to earlier frames of the complete stream. So one pass
trains all latent frames, and sampling can cache the keys and values of complete frames (:class:`KVCache`).
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from vidvq.generate.network.block import Block, KVCache, Rotary, TransformerConfig
from vidvq.generate.network.previous import UNKNOWN, PreviousInput, neighbors, previous_codes
from vidvq.generate.network.text_attention import TextContext, TextProjection
from vidvq.generate.network.vocabulary import CodebookEmbedding, CodebookHead
from vidvq.model.device_copy import copy_to_device


class VideoTransformer(nn.Module):
    """Transformer over latent grids.

    Args:
        codebooks: sizes of the codebooks of latent frame 0 and of later latent frames; one size for a shared codebook.
        labels: number of classes; 0 without a class condition.
        actions: length of the action condition of a latent frame; 0 without one.
        sees_blanked: whether codes of a blanked video can be a condition (``interpolate``, ``fill``).
        text_width: length of a state of the text encoder; 0 without a text condition.
    """

    def __init__(
        self,
        config: TransformerConfig,
        codebooks: tuple[int, ...],
        labels: int = 0,
        actions: int = 0,
        sees_blanked: bool = False,
        text_width: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.codebooks = config, codebooks
        width = config.width
        self.embeddings = nn.ModuleList([CodebookEmbedding(size, width) for size in codebooks])
        # Learned vectors are entries of embeddings, because ZeRO 3 gathers the weights of modules that are called.
        # ``holes`` is the embedding of a hidden code; checkpoints store it under this name.
        self.holes = _small_embedding(len(codebooks), width)
        self.blocks = nn.ModuleList([Block(config, index, text_width > 0) for index in range(config.depth)])
        self.norm = nn.RMSNorm(width)
        # Number of codes that a position can copy.
        self.copies = 0
        if config.copy_radius is not None:
            self.copies = (2 * config.copy_radius + 1) ** 2 + sees_blanked
            self.previous = PreviousInput(width, config.copy_radius)
        self.heads = nn.ModuleList([CodebookHead(size, width, copies=self.copies) for size in codebooks])
        # Entry 0 means no class.
        self.labels = _small_embedding(labels + 1, width) if labels else None
        self.actions = nn.Linear(actions, width) if actions else None
        self.no_action = _small_embedding(1, width) if actions else None
        self.blanked = nn.Linear(width, width, bias=False) if sees_blanked else None
        self.visible = nn.Linear(1, width) if sees_blanked else None
        self.no_blanked = _small_embedding(1, width) if sees_blanked else None
        self.text = TextProjection(text_width, width) if text_width else None
        self.rotary = Rotary(width // config.heads)
        self._half: torch.dtype | None = None

    def use_half(self, dtype: torch.dtype) -> None:
        """Compute the blocks in half precision, for sampling; residuals, embeddings and heads stay fp32.

        Args:
            dtype: ``torch.bfloat16`` or ``torch.float16``.
        """
        self._half = dtype
        # Autocast would convert frozen weights in every call.
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                layer.to(dtype)

    def embed(self, codes: Tensor, mask: Tensor | None, first: int = 0, previous: Tensor | None = None) -> Tensor:
        """Embed codes, and with ``copy_radius`` those around each in the previous latent frame.

        Args:
            codes: ``b t h w`` int64, indices into the codebook of their latent frame.
            mask: ``b t h w`` bool, True for hidden codes; None hides none.
            first: index of the first latent frame.
            previous: :func:`previous_codes` of these codes; None leaves them out.

        Returns:
            ``b t h w c``.
        """
        vectors = self._embed(codes, mask, first)
        if previous is None or not self.copies:
            return vectors
        parts, unknown = [], previous == UNKNOWN
        # No latent frame comes before latent frame 0.
        start = 0 if first else 1
        if start:
            parts.append(self._embed(previous[:, :1].clamp(min=0), unknown[:, :1], 0))
        if codes.shape[1] > start:
            parts.append(self._embed(previous[:, start:].clamp(min=0), unknown[:, start:], first - 1 + start))
        return vectors + self.previous(torch.cat(parts, dim=1))

    def _embed(self, codes: Tensor, mask: Tensor | None, first: int) -> Tensor:
        parts = []
        for book, frames in self._by_codebook(codes.shape[1], first):
            vectors = self.embeddings[book](codes[:, frames])
            if mask is not None:
                hidden = self.holes(codes.new_full((), book)).to(vectors.dtype)
                vectors = torch.where(mask[:, frames, ..., None], hidden, vectors)
            parts.append(vectors)
        return torch.cat(parts, dim=1)

    def given_codes(
        self, blanked: Tensor | None = None, visible: Tensor | None = None, kept: Tensor | None = None
    ) -> Tensor | None:
        """Return the codes of the blanked video where pixels are visible, ``UNKNOWN`` elsewhere.

        Args:
            blanked: see :meth:`condition`.
            visible: see :meth:`condition`.
            kept: see :meth:`condition`.

        Returns:
            ``b t h w`` int64; None without a blanked video.
        """
        if blanked is None or visible is None:
            return None
        given = torch.where(visible > 0, blanked, UNKNOWN)
        return given if kept is None else given.masked_fill(~kept[:, None, None, None], UNKNOWN)

    def candidates(self, previous: Tensor, given: Tensor | None = None, first: int = 0) -> Tensor | None:
        """Return the codes that each position can copy.

        Args:
            previous: :func:`previous_codes`, ``b t h w``.
            given: :meth:`given_codes`.
            first: index of the first latent frame.

        Returns:
            ``b t h w m`` int64, ``UNKNOWN`` for none; None without ``copy_radius``.
        """
        if not self.copies:
            return None
        assert self.config.copy_radius is not None
        found = neighbors(previous, self.config.copy_radius)
        if len(self.codebooks) > 1:
            # Latent frame 1 has another codebook than latent frame 0.
            found[:, : max(2 - first, 0)] = UNKNOWN
        if self.blanked is None:
            return found
        given = torch.full_like(previous, UNKNOWN) if given is None else given
        return torch.cat([found, given[..., None]], dim=-1)

    def condition(
        self,
        like: Tensor,
        labels: Tensor | None = None,
        actions: Tensor | None = None,
        blanked: Tensor | None = None,
        visible: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Embed conditions, to be added to the embeddings of codes.

        Args:
            like: codes ``b t h w``, for their shape and device.
            labels: class of each sample, ``b`` int64 from 1, 0 for none; None for no class.
            actions: actions ``b t a`` float, NaN where missing; None for no actions.
            blanked: codes ``b t h w`` of the video with its hidden pixels blanked; None for none.
            visible: visible fraction of the pixels of each latent, ``b t h w`` (0 to 1); None for none.
            kept: ``b`` bool, False for samples whose conditions are dropped; None keeps all.

        Returns:
            ``b t h w c``, or a shape that broadcasts to it.
        """
        b, t = like.shape[:2]
        keep = torch.ones(b, dtype=torch.bool, device=like.device) if kept is None else kept
        zero = torch.zeros((), dtype=torch.int64, device=like.device)
        total = torch.zeros(b, 1, 1, 1, self.config.width, device=like.device)
        if self.labels is not None:
            known = like.new_zeros(b) if labels is None else labels
            total = total + self.labels(known * keep)[:, None, None, None]
        if self.actions is not None and self.no_action is not None:
            rows = total.new_full((b, t, self.actions.in_features), torch.nan) if actions is None else actions
            missing = rows.isnan().any(-1, keepdim=True) | ~keep[:, None, None]
            vectors = torch.where(missing, self.no_action(zero), self.actions(rows.nan_to_num()))
            total = total + vectors[:, :, None, None]
        if self.blanked is not None and self.visible is not None and self.no_blanked is not None:
            none = self.no_blanked(zero)
            if blanked is None or visible is None:
                # Zero times the unused layers, so that every rank has a gradient for every weight.
                total = total + none + 0 * self.visible(total[..., :1]) + 0 * self.blanked(none)
            else:
                seen = self.blanked(self.embed(blanked, None)) + self.visible(visible[..., None].to(total.dtype))
                total = total + torch.where(keep[:, None, None, None, None], seen, none)
        return total

    def forward(self, codes: Tensor, mask: Tensor, two_streams: bool, **conditions: Tensor | None) -> Tensor:
        """Compute the negative log-likelihood (nats) of the hidden codes.

        Args:
            codes: ``b t h w`` int64.
            mask: ``b t h w`` bool, True for hidden codes; on the CPU if the device should not be waited for.
            two_streams: True for ``next``: a latent frame sees complete earlier frames only. False for ``masked``: it
                sees all codes that are not hidden.
            **conditions: arguments of :meth:`condition`, and ``text`` and ``text_mask`` of :meth:`context`.

        Returns:
            ``n`` float, in raster order by codebook.
        """
        text = self.context(
            len(codes), conditions.pop("text", None), conditions.pop("text_mask", None), conditions.get("kept")
        )
        extra = self.condition(codes, **conditions)
        given = self.given_codes(conditions.get("blanked"), conditions.get("visible"), conditions.get("kept"))
        hidden = copy_to_device(mask, codes.device)
        previous = previous_codes(codes, None if two_streams else hidden, given=given)
        copies = self.candidates(previous, given)
        noisy = self.embed(codes, hidden, previous=previous) + extra
        clean = self.embed(codes, None, previous=previous) + extra if two_streams else None
        return self.nll(self.hidden(noisy, clean, text), codes, mask, copies)

    def context(
        self, batch: int, text: Tensor | None = None, text_mask: Tensor | None = None, kept: Tensor | None = None
    ) -> TextContext | None:
        """Project the texts of a batch; see :class:`TextProjection`. None without a text condition."""
        return None if self.text is None else self.text(batch, text, text_mask, kept)

    def hidden(self, noisy: Tensor, clean: Tensor | None = None, text: TextContext | None = None) -> Tensor:
        """Compute the hidden vectors of all positions.

        Args:
            noisy: embeddings of the masked codes plus conditions, ``b t h w c``.
            clean: embeddings of the complete codes plus conditions, for ``next``; None for ``masked``.
            text: result of :meth:`context`.

        Returns:
            ``b t h w c``, normalized.
        """
        x = noisy[:, None] if clean is None else torch.stack([clean, noisy], dim=1)
        t, h, w = noisy.shape[1:4]
        rotation = self.rotary(torch.arange(t, device=x.device), h, w)
        with self._autocast(x):
            for block in self.blocks:
                x = block(x, rotation, text)
        return self.norm(x[:, -1])

    def forward_cached(self, x: Tensor, cache: KVCache, append: bool, text: TextContext | None = None) -> Tensor:
        """Compute the hidden vectors of the latent frames that follow those in a cache.

        Args:
            x: embeddings plus conditions, ``b t h w c``: complete frames with ``append``, otherwise one masked frame.
            cache: keys and values of the earlier frames.
            append: whether to add the keys and values of these frames to the cache.
            text: result of :meth:`context`.

        Returns:
            ``b t h w c``, normalized.
        """
        t, h, w = x.shape[1:4]
        rotation = self.rotary(torch.arange(cache.frames, cache.frames + t, device=x.device), h, w)
        with self._autocast(x):
            for block in self.blocks:
                x = block.forward_cached(x, rotation, cache, append, text)  # type: ignore[operator]
        if append:
            cache.frames += t
        return self.norm(x)

    def _autocast(self, x: Tensor) -> AbstractContextManager[object]:
        # Without a type of its own, the network runs in that of the training engine.
        return torch.autocast(x.device.type, self._half) if self._half else nullcontext()

    def nll(self, hidden: Tensor, codes: Tensor, chosen: Tensor, copies: Tensor | None = None) -> Tensor:
        """Compute the negative log-likelihood (nats) of chosen codes.

        Args:
            hidden: hidden vectors ``b t h w c``.
            codes: ``b t h w`` int64.
            chosen: ``b t h w`` bool, True for the codes to score; on the CPU if the device should not be waited for.
            copies: result of :meth:`candidates`.

        Returns:
            ``n`` float, in raster order by codebook.
        """
        _, t, h, w = codes.shape
        vectors, flat = hidden.flatten(0, 3), codes.flatten()
        candidates = None if copies is None else copies.flatten(0, 3)
        positions, parts = chosen.flatten().nonzero()[:, 0], []
        latent_frames = positions // (h * w) % t
        for book, frames in self._by_codebook(t):
            in_book = (latent_frames >= frames.start) & (latent_frames < frames.stop)
            here = copy_to_device(positions[in_book], codes.device)
            copied = None if candidates is None else candidates[here]
            # Not by a mask, which would be searched again, and whose gradient is sorted before it is added.
            parts.append(self.heads[book].nll(vectors.index_select(0, here), flat[here], copied))  # type: ignore[union-attr,operator]
        return torch.cat(parts)

    @property
    def digits(self) -> list[tuple[int, ...]]:
        """Number of values of each digit of a code, by codebook."""
        return [embedding.digits for embedding in self.embeddings]  # type: ignore[misc]

    def _by_codebook(self, t: int, first: int = 0) -> list[tuple[int, slice]]:
        """Return the codebooks of ``t`` latent frames from frame ``first``, each with its frames (from 0 to ``t``)."""
        last = len(self.codebooks) - 1
        if first:
            return [(last, slice(0, t))]
        if not last or t == 1:
            return [(0, slice(0, t))]
        return [(0, slice(0, 1)), (last, slice(1, t))]


def _small_embedding(count: int, width: int) -> nn.Embedding:
    table = nn.Embedding(count, width)
    nn.init.normal_(table.weight, std=0.02)
    return table
