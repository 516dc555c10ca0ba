r"""Deterministic sampling (DDIM) in increment form, and its rewinding variant."""

__all__ = ["DDIM", "RewindDDIM"]

from typing import Any

from azula.denoise import Denoiser
from azula.sample import Sampler
from torch import Tensor

from model.samplers.control import Controlled


class DDIM(Controlled, Sampler):
    r"""The Euler step :math:`x_s = x_t - (1 - \sigma_s / \sigma_t) (x_t - d(x_t))`, for alpha = 1.

    azula's `DDIMSampler` writes it as a sum of the denoised state and the shrunk noise. The
    increment form is the release's, and differs in the last digits of a float32 clock.

    References:
        | Denoising Diffusion Implicit Models (Song et al., 2021)
        | https://arxiv.org/abs/2010.02502

    Arguments:
        denoiser: The denoiser.
        arguments: Those of :class:`Controlled`.
    """

    def __init__(self, denoiser: Denoiser, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.denoiser = denoiser

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, **kwargs: object) -> Tensor:
        """From time t to s < t."""
        alpha_s, sigma_s = self.denoiser.schedule(s)
        alpha_t, sigma_t = self.denoiser.schedule(t)
        shrink = 1 - (sigma_s / alpha_s) / (sigma_t / alpha_t)
        x = self.denoiser(x_t, t, **kwargs).mean
        y = x_t / alpha_t
        return alpha_s * (y - shrink * (y - x))


class RewindDDIM(DDIM):
    r"""Each step goes `rewind_after` steps of the grid ahead, then back to the next one.

    Going back adds the noise that the difference of noise levels asks for. Every noise level
    is so denoised from states that have seen cleaner ones.

    Arguments:
        denoiser: The denoiser.
        rewind_after: How many steps of the grid are taken before going back; 1 is DDIM.
        jump: Take them as one long DDIM step, otherwise one by one.
        arguments: Those of :class:`Controlled`.
    """

    def __init__(
        self, denoiser: Denoiser, *, rewind_after: int = 2, jump: bool = True, **arguments: Any
    ) -> None:
        super().__init__(denoiser, **arguments)
        self.rewind_after = rewind_after
        self.jump = jump

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, **kwargs: object) -> Tensor:
        """From time t to s < t, by way of cleaner ones."""
        grid = self.control.times.tolist()
        start = grid.index(float(t))
        stop = min(start + self.rewind_after, len(grid) - 1)
        path = [start, stop] if self.jump else list(range(start, stop + 1))
        x = x_t
        for i, j in zip(path[:-1], path[1:], strict=True):
            x = super().step(x, self.control.times[i], self.control.times[j], **kwargs)
        return self._back(x, self.control.times[stop], s)

    def _back(self, x: Tensor, clean: Tensor, noisy: Tensor) -> Tensor:
        """Noise added from a clean time back to a noisier one (or the same)."""
        alpha_c, sigma_c = self.denoiser.schedule(clean)
        alpha_n, sigma_n = self.denoiser.schedule(noisy)
        scale = alpha_n / alpha_c
        added = (sigma_n**2 - (scale * sigma_c) ** 2).clamp(min=0).sqrt()
        return scale * x + added * self.control.noise(x)
