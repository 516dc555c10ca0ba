"""Self-attention with rotary positions of learned frequencies."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Rotation", "SelfAttention", "rotate"]

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary angles, each with shape (H, L, C / 2)."""


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    r"""Rotates interleaved pairs of features: (x_0, x_1), (x_2, x_3), ...

    References:
        | Rotary Position Embedding for Vision Transformer (Heo et al., 2024)
        | https://arxiv.org/abs/2403.13298

    Arguments:
        x: Queries or keys, with shape (*, H, L, C).
        rotation: Cosine and sine of the angles, each with shape (H, L, C / 2).

    Returns:
        The rotated features, with the shape of `x`.
    """
    cosine, sine = rotation
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(dim=-1)
    return torch.stack(
        (real * cosine - imaginary * sine, real * sine + imaginary * cosine), dim=-1
    ).flatten(-2)


class SelfAttention(nn.Module):
    """Multi-head self-attention, softmax(q kᵀ / √d) v, with normalised and rotated q and k.

    azula's layer keeps its rotary frequencies in another place and has no bias in the output
    projection; the names and shapes here are those of the released state dicts.

    Arguments:
        channels: Features of a token.
        heads: Attention heads; divides `channels` into even parts.
        qk_norm: Whether queries and keys are divided by their root mean square per head.
    """

    def __init__(self, channels: int, heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qk_norm = qk_norm
        self.qkv_proj = nn.Linear(channels, 3 * channels, bias=False)
        self.y_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """
        Arguments:
            x: Tokens, with shape (B, L, C).
            rotation: The rotary angles, or None for no rotation.

        Returns:
            Tokens, with shape (B, L, C).
        """
        batch, length, channels = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(dim=0)
        if self.qk_norm:
            q = F.rms_norm(q, q.shape[-1:], eps=1e-5)
            k = F.rms_norm(k, k.shape[-1:], eps=1e-5)
        if rotation is not None:
            q, k = rotate(q, rotation).to(v.dtype), rotate(k, rotation).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.y_proj(y.transpose(1, 2).reshape(batch, length, channels))
