r"""The denoiser and the observation operator linearised at one point, each evaluated once.

Everything that guidance needs follows from one forward evaluation of each:

* :math:`H^\top v` and :math:`J^\top w` by reverse mode on graphs that are kept;
* :math:`H u` by reverse mode on the graph of :math:`H^\top v`, which is linear in :math:`v`
  (the transpose of the transpose). Forward mode would evaluate the primal again for every
  product, and is very slow through convolutions on a CPU. The graph costs nothing extra: it is
  recorded while the first :math:`H^\top v` is computed, which is needed anyway. The layers of
  the decoder take second derivatives at the cost of first ones (:mod:`model.nn.frozen_conv`).
"""

__all__ = ["Linearisation"]

from collections.abc import Callable

import torch
from torch import Tensor

from model.guidance.base import Denoise


class Linearisation:
    """x_hat = denoise(x_t) and y_hat = observe(x_hat), with their derivatives there.

    Arguments:
        denoise: The denoiser of blankets.
        observe: From (B, K, c, h, w) to (B, N); row i must depend on row i alone.
        x_t: Noisy blankets, with shape (B, K, c, h, w).
        sigma: The noise level, with shape ().
        date: With shape (B, K, 4).

    Attributes:
        x_hat: With shape (B, K, c, h, w), without gradient.
        y_hat: With shape (B, N), without gradient.
    """

    def __init__(
        self,
        denoise: Denoise,
        observe: Callable[[Tensor], Tensor],
        x_t: Tensor,
        sigma: Tensor,
        date: Tensor,
    ) -> None:
        with torch.enable_grad():
            self._x_t = x_t.detach().requires_grad_()
            self._x_hat = denoise(self._x_t, sigma, date)
            self._leaf = self._x_hat.detach().requires_grad_()
            self._y_hat = observe(self._leaf)
        self._cotangent: Tensor | None = None
        self._adjoint: Tensor | None = None
        self.x_hat = self._leaf.detach()
        self.y_hat = self._y_hat.detach()

    def observe_vjp(self, v: Tensor) -> Tensor:
        """H^T v, from (B, N) to (B, K, c, h, w)."""
        if self._cotangent is None:
            return self._record_adjoint(v)
        return torch.autograd.grad(self._y_hat, self._leaf, v, retain_graph=True)[0]

    def _record_adjoint(self, v: Tensor) -> Tensor:
        with torch.enable_grad():
            self._cotangent = v.detach().clone().requires_grad_()
            (self._adjoint,) = torch.autograd.grad(
                self._y_hat, self._leaf, self._cotangent, create_graph=True
            )
        return self._adjoint.detach()

    def observe_jvp(self, u: Tensor) -> Tensor:
        """H u, from (B, K, c, h, w) to (B, N)."""
        if self._cotangent is None:
            self._record_adjoint(torch.zeros_like(self._y_hat))
        return torch.autograd.grad(self._adjoint, self._cotangent, u, retain_graph=True)[0]

    def denoise_vjp(self, w: Tensor) -> Tensor:
        """J^T w, from and to (B, K, c, h, w)."""
        return torch.autograd.grad(self._x_hat, self._x_t, w, retain_graph=True)[0]
