"""Ancestral sampling (DDPM) with seeded noise."""

__all__ = ["DDPM"]

import torch
from azula.sample import DDPMSampler
from torch import Tensor

from model.samplers.control import Controlled


class DDPM(Controlled, DDPMSampler):
    """azula's DDPM step, but with noise from `control.noise` instead of the global generator."""

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, **kwargs: object) -> Tensor:
        """From time t to s < t."""
        alpha_s, sigma_s = self.denoiser.schedule(s)
        alpha_t, sigma_t = self.denoiser.schedule(t)
        tau = 1 - (alpha_t / alpha_s * sigma_s / sigma_t) ** 2
        x = self.denoiser(x_t, t, **kwargs).mean
        x_s = alpha_s * x + sigma_s * torch.sqrt(1 - tau) / sigma_t * (x_t - alpha_t * x)
        return x_s + sigma_s * torch.sqrt(tau) * self.control.noise(x_t)
