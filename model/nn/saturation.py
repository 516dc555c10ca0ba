"""Saturations: functions that keep the latent states of an autoencoder bounded."""

from collections.abc import Callable

import torch
from torch import Tensor

from model.domain.registry import Registry

__all__ = ["SATURATIONS", "Saturation"]

Saturation = Callable[[Tensor, float], Tensor]
"""Maps latents (N, C, H, W) and a bound to latents of the same shape."""


def _none(z: Tensor, bound: float) -> Tensor:
    return z


def _softclip(z: Tensor, bound: float) -> Tensor:
    return z / (1 + z.abs() / bound)


def _softclip2(z: Tensor, bound: float) -> Tensor:
    return z * torch.rsqrt(1 + (z / bound).square())


def _tanh(z: Tensor, bound: float) -> Tensor:
    return bound * torch.tanh(z / bound)


def _asinh(z: Tensor, bound: float) -> Tensor:
    return torch.asinh(z)


def _rmsnorm(z: Tensor, bound: float) -> Tensor:
    return z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-5)


SATURATIONS: Registry[Saturation] = Registry(
    "saturation",
    none=_none,
    softclip=_softclip,
    softclip2=_softclip2,
    tanh=_tanh,
    asinh=_asinh,
    rmsnorm=_rmsnorm,
)
