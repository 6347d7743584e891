"""Reduces predictive features to a few tokens per frame, by learned queries."""

from collections.abc import Sequence

import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn


class VideoFormer(nn.Module):
    """Learned queries that attend over space within their frame, then over time (VPP, arXiv 2412.14803, section 4.2).

    Args:
        feature_size: frames, channels, height and width of the features (F, D, h, w).
        width: channels of the tokens, a multiple of 4.
        num_queries: number of tokens for each frame (Q).
        depth: number of layers.
        num_heads: number of heads of every attention.
    """

    def __init__(
        self, feature_size: Sequence[int], *, width: int, num_queries: int, depth: int, num_heads: int
    ) -> None:
        super().__init__()
        num_frames, channels, height, columns = feature_size
        self.feature_size = tuple(feature_size)
        # no scale and shift: the linear layer has them, and they would cost a gradient of the features, frozen or not
        self.embed = nn.Sequential(nn.LayerNorm(channels, elementwise_affine=False), nn.Linear(channels, width))
        self.queries = nn.Parameter(0.02 * torch.randn(num_frames, num_queries, width))
        position = get_2d_sincos_pos_embed(width, (height, columns), output_type="pt")
        self.register_buffer("position", position.float(), persistent=False)  # [h * w, width]
        self.layers = nn.ModuleList(_FormerLayer(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:  # [B, F, D, h, w] -> [B, F * Q, width]
        """Tokens of each clip, frame by frame.

        Raises:
            ValueError: the features have another size than ``feature_size``.
        """
        if tuple(features.shape[1:]) != self.feature_size:
            raise ValueError(f"features has shape {tuple(features.shape)}, expected [B, *{list(self.feature_size)}]")
        pixels = self.embed(features.flatten(3).transpose(2, 3)) + self.position  # [B, F, h * w, width]
        tokens = self.queries.expand(len(features), -1, -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, pixels)
        return self.norm(tokens).flatten(1, 2)


class _FormerLayer(nn.Module):
    """Cross-attention within each frame, self-attention over the frames of each query, feed-forward; pre-norm."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.space_norm, self.time_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.space = QueryAttention(width, num_heads)
        self.time = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        tokens: Tensor,  # [B, F, Q, width]
        pixels: Tensor,  # [B, F, h * w, width]
    ) -> Tensor:  # [B, F, Q, width]
        batch = tokens.shape[:2]
        attended = self.space(self.space_norm(tokens).flatten(0, 1), pixels.flatten(0, 1))
        tokens = tokens + attended.unflatten(0, batch)
        over_time = self.time_norm(tokens).transpose(1, 2)  # [B, Q, F, width]
        rows = over_time.flatten(0, 1)
        attended = self.time(rows, rows, rows, need_weights=False)[0]
        tokens = tokens + attended.unflatten(0, over_time.shape[:2]).transpose(1, 2)
        return tokens + self.feed_forward(tokens)


class QueryAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762) of a few queries to many pixels.

    A score is linear in the pixel, ``q . (W_k x) = (W_k^T q) . x``, and a head's output is linear in the mean of the
    pixels it attends to. So the few queries are projected instead of the many pixels: the same function with a quarter
    of the multiplications for 4 queries, 4 heads, 64 pixels and width 96. The keys' bias cancels in the softmax and is
    left out.

    Args:
        width: channels of queries and pixels.
        num_heads: number of heads.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self,
        queries: Tensor,  # [N, Q, width]
        pixels: Tensor,  # [N, P, width]
    ) -> Tensor:  # [N, Q, width]
        heads = (self.num_heads, -1)
        query = self.query(queries).unflatten(-1, heads)  # [N, Q, heads, width / heads]
        query = query * query.shape[-1] ** -0.5
        projected = torch.einsum("nqhd,hdw->nqhw", query, self.key.weight.unflatten(0, heads))
        weights = (projected.flatten(1, 2) @ pixels.mT).softmax(dim=-1)  # [N, Q * heads, P]
        seen = (weights @ pixels).unflatten(1, projected.shape[1:3])  # [N, Q, heads, width]
        values = torch.einsum("nqhw,hdw->nqhd", seen, self.value.weight.unflatten(0, heads)).flatten(2)
        return self.output(values + self.value.bias)
