"""Principal components of space-to-depth patches, and an autoencoder that starts at them.

A linear code of each patch is the line the autoencoder must beat; starting there, every training
step goes into what a linear code cannot do.
"""

import torch
from einops import rearrange
from torch import Tensor

from model.autoencoder import Autoencoder

__all__ = ["PatchPCA", "fit_patch_pca", "start_at_pca"]

START_STD = 0.5
"""Standard deviation of the latents at the start: the saturation bends values of 5 and more."""


class PatchPCA:
    """Components of p x q patches of C channels.

    Attributes:
        mean: (C p q,), of the patches.
        components: (C p q, C p q), rows are components, most variance first.
        variance: (C p q,), of each component.
    """

    def __init__(self, mean: Tensor, components: Tensor, variance: Tensor) -> None:
        self.mean, self.components, self.variance = mean, components, variance

    def residual_rmse(self, count: int) -> float:
        """Standardised error that `count` components leave on the fitted sample."""
        return float((self.variance[count:].sum() / len(self.variance)).sqrt())


def fit_patch_pca(states: Tensor, patch: tuple[int, int], weights: Tensor) -> PatchPCA:
    """
    Arguments:
        states: Standardised, with shape (N, C, Y, X).
        patch: (p, q), rows and columns of a patch.
        weights: Area share of each row, with shape (Y,).
    """
    p, q = patch
    x = rearrange(states, "n c (h p) (w q) -> h (n w) (c p q)", p=p, q=q).double()
    row = weights.double().unflatten(0, (-1, p)).sum(1)
    row = row / row.sum()
    mean = torch.einsum("h,hnd->d", row, x) / x.shape[1]
    x = (x - mean) * (row[:, None, None] / x.shape[1]).sqrt()
    flat = x.flatten(0, 1)
    variance, vectors = torch.linalg.eigh(flat.T @ flat)
    return PatchPCA(mean.float(), vectors.T.flip(0).float(), variance.flip(0).clamp(min=0).float())


@torch.no_grad()
def start_at_pca(autoencoder: Autoencoder, pca: PatchPCA) -> None:
    """Sets a one-level autoencoder to the linear code: identity blocks between PCA projections.

    Later residual convolutions start at zero, so that encoder and decoder are exactly linear (but
    for the saturation) at the first step.
    """
    config = autoencoder.config
    hidden, latent = config.hid_channels[0], config.lat_channels
    scale = START_STD / pca.variance[:hidden].sqrt().clamp(min=1e-4)
    scale = torch.minimum(scale, START_STD / pca.variance[latent - 1].sqrt())
    project = scale[:, None] * pca.components[:hidden]
    middle = config.kernel_size // 2
    first, last = _ends(autoencoder.encoder)
    first.weight.mul_(1e-2)
    first.weight[:, :, middle, middle] += project
    first.bias.copy_(-project @ pca.mean)
    last.weight.mul_(1e-2)
    last.weight[:, :latent, middle, middle] += torch.eye(latent)
    last.bias.zero_()
    first, last = _ends(autoencoder.decoder)
    first.weight.mul_(1e-2)
    first.weight[:latent, :, middle, middle] += torch.eye(latent)
    first.bias.zero_()
    last.weight.mul_(1e-2)
    last.weight[:, :latent, middle, middle] += (pca.components[:latent] / scale[:latent, None]).T
    last.bias.copy_(pca.mean)


def _ends(module: torch.nn.Module) -> tuple[torch.nn.Conv2d, torch.nn.Conv2d]:
    """First and last convolution; the last convolution of each residual block is set to zero."""
    convolutions = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
    for second in convolutions[2:-1:2]:
        torch.nn.init.zeros_(second.weight)
        torch.nn.init.zeros_(second.bias)
    return convolutions[0], convolutions[-1]
