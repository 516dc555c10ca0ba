"""Standardisation over channels, as the released autoencoder does it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ChannelNorm"]


class ChannelNorm(nn.Module):
    r"""Standardises an image over its channels at each grid point, without affine parameters.

    .. math:: y = \frac{x - \mathbb{E}[x]}{\sqrt{\mathbb{V}[x] + \epsilon}}

    with the **unbiased** variance (divided by C - 1). It is computed by the fused layer norm,
    whose variance is the biased one v_b: with :math:`r = (C - 1) / C`,
    :math:`(v_b / r + \epsilon)^{-1/2} = r^{1/2} (v_b + r \epsilon)^{-1/2}`.

    azula's `LayerNorm` has the same formula but no `eps` buffer, which the released state dicts
    list, and takes several passes over the image.

    Arguments:
        eps: Numerical stability term; kept as a float32 buffer, as in the release.
    """

    eps: Tensor

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.register_buffer("eps", torch.tensor(eps, dtype=torch.float32))
        # The layer norm takes a Python number; reading the buffer at each call would stall a GPU.
        self._eps = float(torch.tensor(eps, dtype=torch.float32, device="cpu"))
        self.register_load_state_dict_post_hook(ChannelNorm._read_eps)

    def _read_eps(self, _: object) -> None:
        if not self.eps.is_meta:
            self._eps = float(self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """
        Arguments:
            x: Images, with shape (N, C, H, W), best in channels-last memory format.

        Returns:
            The standardised images, with the shape of `x`.
        """
        count = x.shape[1]
        ratio = (count - 1) / count
        y = F.layer_norm(x.permute(0, 2, 3, 1), (count,), eps=ratio * self._eps)
        return (y * ratio**0.5).permute(0, 3, 1, 2)
