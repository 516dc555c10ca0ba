"""Build the transformer block of the released denoiser: adaptive norm, attention, MLP and skips.

Self-attention has rotary positions of learned frequencies. Tensors that depend on parameters
alone are cached while these do not change.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.nn.convolution import Conv2d
from model.nn.frozen import is_linearising

__all__ = [
    "ConstantCache",
    "Grid",
    "LocalMixing",
    "Rotation",
    "SelfAttention",
    "TransformerBlock",
    "rotate",
]

T = TypeVar("T")


class ConstantCache:
    """Keep derived tensors between evaluations, outside the state dict.

    An entry is used again only in the same precision, and while the tensors it came from are the
    same storage, of the same type and device, and unmodified since (an optimiser step or
    `load_state_dict` counts as a change). Where a gradient to them is wanted, or under
    `torch.compile` or a functional transform of the parameters, nothing is kept.

    Arguments:
        limit: Bytes kept at most; what does not fit is computed at each call.
    """

    def __init__(self, limit: int = 2**30) -> None:
        self.limit = limit
        self._held = 0
        self._entries: dict[Hashable, tuple[Any, Any, int]] = {}

    def get(self, key: Hashable, sources: Sequence[Tensor], make: Callable[[], T]) -> T:
        """Return the tensors called `key`, computed by `make` from `sources` when not held."""
        if not _constant(sources):
            return make()
        stamp = tuple((s.data_ptr(), s._version, s.dtype, s.device, s.shape) for s in sources)
        key = (key, _product_type(sources))
        entry = self._entries.get(key)
        if entry is not None and entry[0] == stamp:
            return cast(T, entry[1])
        # A tensor made in inference mode could not take part in a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        size = sum(v.nbytes for v in _tensors(value))
        held = self._held - (entry[2] if entry is not None else 0)
        self._entries.pop(key, None)
        if held + size <= self.limit:
            self._entries[key] = (stamp, value, size)
            held += size
        self._held = held
        return value

    def clear(self) -> None:
        """Free the tensors that are held; the next evaluation computes them anew."""
        self._entries.clear()
        self._held = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "ConstantCache":
        return ConstantCache(self.limit)

    def __reduce__(self) -> tuple[type["ConstantCache"], tuple[int]]:
        return ConstantCache, (self.limit,)


def _product_type(sources: Sequence[Tensor]) -> torch.dtype | None:
    """Return the type of products under autocast, else None: cached values are valid for one type."""
    kind = sources[0].device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _constant(sources: Sequence[Tensor]) -> bool:
    if torch.compiler.is_compiling():
        return False
    wanted = torch.is_grad_enabled() and any(s.requires_grad for s in sources)
    plain = all(isinstance(s, Tensor) and not s.is_meta and not s.is_inference() for s in sources)
    return plain and not wanted and not torch._C._functorch.maybe_current_level()


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [v for v in value if isinstance(v, Tensor)] if isinstance(value, tuple) else []


Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary angles, each with shape (H, L, C / 2)."""

Grid = tuple[int, int, int]
"""Tokens along time, latitude and longitude."""


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    r"""Rotate interleaved pairs of features: (x_0, x_1), (x_2, x_3), ...

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


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √d) v; fused kernels, which are faster, have first derivatives only.

    Products of a few hundred tokens are limited by copies: with contiguous factors, products with the
    Jacobian take three fifths of the time that torch's own kernel of elementary operations takes. In
    half precision that kernel is used, since it keeps the scores in float32.
    """
    if torch.compiler.is_compiling() or not is_linearising():
        return F.scaled_dot_product_attention(q, k, v)
    if q.dtype in (torch.float16, torch.bfloat16):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)
    scores = (q / math.sqrt(q.shape[-1])).contiguous() @ k.contiguous().transpose(-1, -2)
    return torch.softmax(scores, dim=-1) @ v.contiguous()


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
        """Arguments:
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
        y = _attention(q, k, v)
        mixed: Tensor = self.y_proj(y.transpose(1, 2).reshape(batch, length, channels))
        return mixed


class LocalMixing(nn.Module):
    """Mix each token with its neighbours by a depthwise convolution.

    Attention has to learn from data which tokens are neighbours, and within an hour a token's weather
    depends mostly on them. Longitude is periodic; beyond the poles there are zeros.

    Arguments:
        channels: Features of a token.
        kernel_size: Rows and columns that are mixed; odd.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, kernel_size, groups=channels)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Map tokens (B, L, C) on a grid to tokens (B, L, C); states do not mix."""
        batch, length, channels = x.shape
        pad = self.conv.kernel_size[0] // 2
        images = x.reshape(-1, *grid[1:], channels).permute(0, 3, 1, 2)
        images = F.pad(F.pad(images, (pad, pad, 0, 0), mode="circular"), (0, 0, pad, pad))
        mixed: Tensor = self.conv(images).permute(0, 2, 3, 1).reshape(batch, length, channels)
        return mixed


class TransformerBlock(nn.Module):
    r"""A block modulated by the noise level, with a residual and a long skip of learned weight.

    With :math:`(a, b, c, d)` from the modulation,

    .. math::
        y & = (1 + a) \, \mathrm{norm}(x) + b \\
        y & = \mathrm{FFN}(y + \mathrm{attention}(y) + \mathrm{local}(y)) \\
        x & \leftarrow (x + c \, y) / \sqrt{1 + c^2} \\
        x & \leftarrow (x + d \, s) / \sqrt{1 + d^2}

    where s are the tokens before the first block. The released blocks have no local mixing.

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
        local: Rows and columns that are mixed beside the attention; 0 for none.
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
        local: int = 0,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.local = LocalMixing(channels, local) if local else None
        self.ada_zero = nn.Sequential(
            nn.Linear(mod_features, mod_features),
            nn.SiLU(),
            nn.Linear(mod_features, 4 * channels),
        )
        cast(nn.Linear, self.ada_zero[-1]).weight.data.mul_(1e-2)
        self.msa = SelfAttention(channels, heads, qk_norm)
        self.ffn = nn.Sequential(
            nn.Linear(channels, ffn_factor * channels),
            nn.SiLU(),
            nn.Dropout(dropout) if dropout > 0 else nn.Identity(),
            nn.Linear(ffn_factor * channels, channels),
        )
        if rope:
            # Random directions; wavelengths from about 6 tokens to ten times that. Drawn on the CPU:
            # on the device "meta", where checkpoints are laid out, the norm imports all of dynamo.
            size = torch.exp(math.log(1e-1) * torch.rand(channels // 2, device="cpu"))
            direction = torch.randn(axes, channels // 2, device="cpu")
            direction = direction / torch.linalg.vector_norm(direction, dim=0)
            here = cast(nn.Linear, self.ffn[0]).weight.device
            self.theta = nn.Parameter((size * direction).to(here))
        else:
            self.register_parameter("theta", None)

    def rotation(self, coordinates: Tensor) -> Rotation | None:
        """Return cosine and sine of the rotary angles of tokens at `coordinates` (L, axes)."""
        if self.theta is None:
            return None
        angle = coordinates.to(self.theta.dtype) @ self.theta
        angle = angle.unflatten(-1, (self.msa.heads, -1)).transpose(0, 1)
        return torch.cos(angle), torch.sin(angle)

    def forward(
        self,
        x: Tensor,
        mod: Tensor,
        skip: Tensor,
        rotation: Rotation | None = None,
        grid: Grid | None = None,
    ) -> Tensor:
        """Arguments:
            x: Tokens, with shape (B, L, C).
            mod: Modulation vectors, with shape (B, D) or (1, D).
            skip: Tokens before the first block, with shape (B, L, C).
            rotation: Result of `rotation` for the tokens' coordinates.
            grid: How the tokens lie, needed for local mixing.

        Returns:
            Tokens, with shape (B, L, C).
        """
        a, b, c, d = self.ada_zero(mod)[:, None].chunk(4, dim=-1)
        y = F.layer_norm(x, (self.channels,), eps=1e-5)
        y = torch.addcmul(b, 1 + a, y)
        mixed = self.msa(y, rotation)
        if self.local is not None and grid is not None:
            mixed = mixed + self.local(y, grid)
        y = self.ffn(y + mixed)
        x = (x + c * y) * torch.rsqrt(1 + c * c)
        joined: Tensor = (x + d * skip) * torch.rsqrt(1 + d * d)
        return joined
