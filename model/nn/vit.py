"""The transformer block of the released denoiser: adaptive norm, attention, MLP, skips."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.nn.attention import Rotation, SelfAttention

__all__ = ["TransformerBlock"]


class TransformerBlock(nn.Module):
    r"""A block modulated by the noise level, with a residual and a long skip of learned weight.

    With :math:`(a, b, c, d)` from the modulation,

    .. math::
        y & = (1 + a) \, \mathrm{norm}(x) + b \\
        y & = \mathrm{FFN}(y + \mathrm{attention}(y)) \\
        x & \leftarrow (x + c \, y) / \sqrt{1 + c^2} \\
        x & \leftarrow (x + d \, s) / \sqrt{1 + d^2}

    where s are the tokens before the first block.

    References:
        | Scalable Diffusion Models with Transformers (Peebles et al., 2022)
        | https://arxiv.org/abs/2212.09748

    Arguments:
        channels: C, features of a token.
        mod_features: Features of the modulation vector.
        axes: Number of coordinates of a token.
        heads: Attention heads.
        qk_norm: See `SelfAttention`.
        rope: Whether positions rotate queries and keys.
        ffn_factor: Width of the MLP over C.
        dropout: Dropout rate inside the MLP.
    """

    def __init__(
        self,
        channels: int,
        mod_features: int,
        axes: int = 3,
        heads: int = 1,
        qk_norm: bool = True,
        rope: bool = True,
        ffn_factor: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.ada_zero = nn.Sequential(
            nn.Linear(mod_features, mod_features),
            nn.SiLU(),
            nn.Linear(mod_features, 4 * channels),
        )
        self.ada_zero[-1].weight.data.mul_(1e-2)
        self.msa = SelfAttention(channels, heads, qk_norm)
        self.ffn = nn.Sequential(
            nn.Linear(channels, ffn_factor * channels),
            nn.SiLU(),
            nn.Dropout(dropout) if dropout > 0 else nn.Identity(),
            nn.Linear(ffn_factor * channels, channels),
        )
        if rope:
            # Random directions; wavelengths from about 6 tokens to ten times that.
            size = torch.exp(math.log(1e-1) * torch.rand(channels // 2))
            direction = torch.randn(axes, channels // 2)
            direction = direction / torch.linalg.vector_norm(direction, dim=0)
            self.theta = nn.Parameter(size * direction)
        else:
            self.register_parameter("theta", None)

    def rotation(self, coordinates: Tensor) -> Rotation | None:
        """Cosine and sine of the rotary angles of tokens at `coordinates` (L, axes)."""
        if self.theta is None:
            return None
        angle = coordinates.to(self.theta.dtype) @ self.theta
        angle = angle.unflatten(-1, (self.msa.heads, -1)).transpose(0, 1)
        return torch.cos(angle), torch.sin(angle)

    def forward(
        self, x: Tensor, mod: Tensor, skip: Tensor, rotation: Rotation | None = None
    ) -> Tensor:
        """
        Arguments:
            x: Tokens, with shape (B, L, C).
            mod: Modulation vectors, with shape (B, D) or (1, D).
            skip: Tokens before the first block, with shape (B, L, C).
            rotation: Result of `rotation` for the tokens' coordinates.

        Returns:
            Tokens, with shape (B, L, C).
        """
        a, b, c, d = self.ada_zero(mod)[:, None].chunk(4, dim=-1)
        y = F.layer_norm(x, (self.channels,), eps=1e-5)
        y = torch.addcmul(b, 1 + a, y)
        y = self.ffn(y + self.msa(y, rotation))
        x = (x + c * y) * torch.rsqrt(1 + c * c)
        return (x + d * skip) * torch.rsqrt(1 + d * d)
