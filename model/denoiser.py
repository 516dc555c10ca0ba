r"""Denoise a blanket of latents: E[x | x_t] for x_t = x + sigma * noise.

A closed-form Gaussian denoiser plus a learned correction,

.. math:: \hat{x}(x_t, \sigma) = \mathrm{base}(x_t, \sigma)
    + c_\mathrm{out}(\sigma) \, b(c_\mathrm{in}(\sigma) \, x_t, 10 \ln \sigma)

In the release the base is that of the standard normal prior, which is the preconditioning of

References:
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
    | https://arxiv.org/abs/2206.00364

with data variance 1. azula's `KarrasDenoiser` has this form too, but takes a time instead of a
noise level, feeds ln sigma to the backbone, and has no other base. Matrix products run in float32,
or in bfloat16 with float32 sums and statistics.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.noise import Schedule
from torch import Tensor, nn

__all__ = [
    "AzulaDenoiser",
    "BaseDenoiser",
    "BlanketDenoiser",
    "Denoises",
    "Precision",
    "Scalings",
    "StandardNormalBase",
    "denoiser_loss",
    "native_precision",
    "noise_time",
    "reduced_precision",
]

Precision = Literal["float32", "bfloat16"]
"""`float32` leaves the type of the parameters alone; `bfloat16` runs products in bfloat16."""


def native_precision(device: torch.device) -> Precision:
    """Return bfloat16 where `device` multiplies it in hardware, else float32.

    Elsewhere bfloat16 is emulated: on a processor with AVX2 alone a product takes ninety times as long
    as in float32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        units = torch.cpu.get_capabilities()
        native = any(units.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    else:
        native = False
    return "bfloat16" if native else "float32"


def reduced_precision(
    device: torch.device, precision: Precision | None = None
) -> AbstractContextManager[None]:
    """Return a context in which products and convolutions on `device` run in `precision`.

    None takes that of `native_precision`. `float32` changes nothing, so that a training loop's own
    autocast stays in force.
    """
    if (precision or native_precision(device)) == "float32":
        return nullcontext()
    # The cache of cast weights would keep stale copies alive across nested guidance passes.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


class Denoises(Protocol):
    """Anything that estimates clean blankets from noisy ones."""

    def __call__(self, x_t: Tensor, sigma: Tensor, date: Tensor) -> Tensor:
        """Arguments:
            x_t: Noisy blankets of standardised latents, with shape (B, K, c, h, w).
            sigma: Noise level, with shape () or (B,), or of each state, with shape (B, K), where
                the denoiser was made for it.
            date: Year, month, day and hour (UTC) of each state, int64 with shape (B, K, 4).

        Returns:
            The posterior mean E[x | x_t], with shape (B, K, c, h, w).
        """
        ...


@dataclass(frozen=True)
class Scalings:
    """Scalings of the backbone's input and output, broadcast against (B, K, c, h, w).

    Attributes:
        c_in: Brings x_t to variance about 1: one over the standard deviation of x_t.
        c_out: Brings the correction to variance about 1: the standard deviation of x given x_t
            under the base. The training loss is weighted by its inverse square.
        c_estimate: If given, the backbone sees the base's estimate times this instead of x_t
            times `c_in`. Under the standard normal base the two are the same; a more accurate base
            relieves the backbone of separating the signal from the noise.
    """

    c_in: Tensor
    c_out: Tensor
    c_estimate: Tensor | None = None


class BaseDenoiser(Denoises, Protocol):
    """A denoiser known in closed form, on top of which the backbone learns a correction."""

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return the scalings at noise levels `sigma` with shape (B, 1 or K, 1, 1, 1), float64."""
        ...


class StandardNormalBase(nn.Module):
    """The denoiser of x ~ N(0, I): x_t / (sigma² + 1); the base of the release."""

    def forward(self, x_t: Tensor, sigma: Tensor, date: Tensor) -> Tensor:
        level = _column(sigma)
        return x_t * (1 / (level.square() + 1)).to(x_t)

    def scalings(self, sigma: Tensor) -> Scalings:
        c_in = torch.rsqrt(sigma.square() + 1)
        return Scalings(c_in=c_in, c_out=sigma * c_in)


class BlanketDenoiser(nn.Module):
    """A preconditioned backbone; implements `Denoises`.

    Arguments:
        backbone: Maps scaled blankets (B, K, c, h, w), noise times () or (B,) and dates
            (B, K, 4) to corrections (B, K, c, h, w).
        base: The closed-form part; None for that of the release.
        precision: Of the products inside the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        base: BaseDenoiser | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.base = StandardNormalBase() if base is None else base
        self.precision: Precision = precision

    def forward(self, x_t: Tensor, sigma: Tensor, date: Tensor) -> Tensor:
        scale = self.scalings(sigma)
        estimate = self.base(x_t, sigma, date)
        if scale.c_estimate is None:
            seen = x_t * scale.c_in.to(x_t)
        else:
            seen = estimate * scale.c_estimate.to(x_t)
        with reduced_precision(x_t.device, self.precision):
            correction = self.backbone(seen, noise_time(sigma).to(x_t), date)
        return torch.addcmul(estimate, scale.c_out.to(x_t), correction.to(x_t.dtype))

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return scalings at noise levels `sigma` with shape (), (B,) or (B, K), in float64."""
        return self.base.scalings(_column(sigma))


class AzulaDenoiser(Denoiser):  # type: ignore[misc]  # azula has no types
    """A blanket denoiser under azula's protocol, for azula's samplers and guidance.

    Arguments:
        denoise: The denoiser.
        schedule: A schedule with alpha(t) = 1.
        date: Dates of the blankets, int64 with shape (B, K, 4) or (1, K, 4).
    """

    def __init__(self, denoise: Denoises, schedule: Schedule, date: Tensor) -> None:
        super().__init__()
        self.denoise = denoise
        self.schedule = schedule
        self.register_buffer("date", date, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Tensor) -> DiracPosterior:
        """Map blankets (B, K, c, h, w) and times () or (B,) to azula's posterior."""
        _, sigma = self.schedule(t)
        date = self.date.expand(x_t.shape[0], -1, -1)
        return DiracPosterior(mean=self.denoise(x_t, sigma, date))


def denoiser_loss(
    denoise: BlanketDenoiser,
    x: Tensor,
    sigma: Tensor,
    date: Tensor,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return the training loss, :math:`\| \hat{x}(x + \sigma \epsilon, \sigma) - x \|^2 / c_\mathrm{out}^2`.

    With the base of the release the weight is :math:`1 / \sigma^2 + 1`.

    Arguments:
        denoise: The denoiser.
        x: Clean blankets, with shape (B, K, c, h, w).
        sigma: Noise levels, with shape (), (B,) or (B, K).
        date: Dates, with shape (B, K, 4).
        noise: Standard normal draws with the shape of `x`; drawn from `generator` if None.
        generator: Source of the noise.

    Returns:
        The mean over all elements, with shape ().
    """
    if noise is None:
        noise = torch.empty_like(x).normal_(generator=generator)
    x_t = x + _column(sigma).to(x) * noise
    weight = denoise.scalings(sigma).c_out.square().reciprocal().to(x)
    loss: Tensor = (weight * (denoise(x_t, sigma, date) - x).square()).mean()
    return loss


def noise_time(sigma: Tensor) -> Tensor:
    """Return the noise time that the backbone takes as input, 10 ln sigma, in float64."""
    return 10 * torch.log(sigma.to(torch.float64))


def _column(sigma: Tensor) -> Tensor:
    """Return noise levels () or (B,) as (B, 1, 1, 1, 1), (B, K) as (B, K, 1, 1, 1), in float64."""
    states = sigma.shape[1] if sigma.ndim == 2 else 1
    return sigma.to(torch.float64).reshape(-1, states, 1, 1, 1)
