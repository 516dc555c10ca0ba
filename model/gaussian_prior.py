r"""Model blankets of latents by a Gaussian that is stationary in longitude, in closed form.

Around a mean that follows the season and the hour of day, anomalies are Gaussian with a covariance
that does not depend on longitude. The zonal Fourier transform then decouples wavenumbers; for each,
latitude and channel are expanded in empirical orthogonal functions (EOFs) and time in cosines
(DCT-II). Over the q coefficients of largest variance the full complex covariance is kept, which
carries propagation in time; the others are independent, and the rest, which the EOFs do not span, is
white in space.
Everything is diagonal after a unitary transform :math:`U`,

.. math:: \Sigma = U \Lambda U^*, \qquad
    \mathbb{E}[x \mid x + \sigma \epsilon] = \mu + U \Lambda (\Lambda + \sigma^2)^{-1} U^* (x_t - \mu)

so a denoising costs two transforms whatever the noise level. It serves as the windowed optimal
interpolation baseline, as the base of a learned denoiser, and to precondition guidance.
azula's `GaussianDenoiser` is the dense form of the same idea; it lacks the zonal structure.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from model.denoiser import Scalings
from model.nn.embedding import date_features
from model.nn.transformer import ConstantCache
from model.unequal_noise import Conditioned, factorise

__all__ = ["ZonalGaussianPrior", "fit_zonal_gaussian", "mean_features"]

Gain = Callable[[Tensor], Tensor]
"""Maps variances (1, n) or (B, n) to factors of the same or a broadcast shape."""


def mean_features(date: Tensor) -> Tensor:
    """Return regressors of the mean: 1, two harmonics of the year, two of the day.

    Arguments:
        date: Year, month, day and hour (UTC), int64 with shape (*, 4).

    Returns:
        Features with shape (*, 9).
    """
    flat = date.reshape(-1, 1, 4)
    year_sin, year_cos, day_sin, day_cos = date_features(flat).double().unbind(-1)
    pairs = [torch.ones_like(year_sin)]
    for sine, cosine in ((year_sin, year_cos), (day_sin, day_cos)):
        pairs += [sine, cosine, 2 * sine * cosine, cosine**2 - sine**2]
    return torch.stack(pairs, dim=-1).reshape(*date.shape[:-1], 9)


def _cosines(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix with shape (frequency, time)."""
    k, t = torch.arange(size).double()[:, None], torch.arange(size).double()
    matrix = torch.cos(math.pi * (t + 0.5) * k / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


class ZonalGaussianPrior(nn.Module):
    """The prior; as a denoiser it implements the `Denoises` protocol.

    Arguments:
        blanket_size: K, states of a blanket.
        latent_shape: (c, h, w).
        modes: r, EOFs per zonal wavenumber.
        dense: q, coefficients per wavenumber whose full covariance is kept.
    """

    mean: Tensor
    eofs: Tensor
    dense_index: Tensor
    dense_vectors: Tensor
    dense_variance: Tensor
    variance: Tensor
    rest_variance: Tensor
    cosines: Tensor

    def __init__(
        self, blanket_size: int, latent_shape: Sequence[int], modes: int, dense: int
    ) -> None:
        super().__init__()
        c, h, w = latent_shape
        waves, self.blanket_size = w // 2 + 1, blanket_size
        self.latent_shape = (c, h, w)
        buffers = {
            "mean": torch.zeros(9, c, h, w),
            "eofs": torch.zeros(waves, c * h, modes, 2),
            "dense_index": torch.zeros(waves, dense, dtype=torch.int64),
            "dense_vectors": torch.zeros(waves, dense, dense, 2),
            "dense_variance": torch.ones(waves, dense),
            "variance": torch.ones(waves, blanket_size * modes),
            "rest_variance": torch.ones(waves, blanket_size),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.register_buffer("cosines", _cosines(blanket_size).float(), persistent=False)
        self._profiles = ConstantCache()

    # Complex arrays are kept as pairs of reals, so that they can be stored in half precision.

    @property
    def modes(self) -> Tensor:
        """EOFs in columns, complex with shape (waves, c h, r)."""
        return torch.view_as_complex(self.eofs)

    @property
    def rotation(self) -> Tensor:
        """Eigenvectors of the dense part in columns, complex with shape (waves, q, q)."""
        return torch.view_as_complex(self.dense_vectors)

    @property
    def wave_weights(self) -> Tensor:
        """Multiplicity of each wavenumber in the spectrum of a real field, float64 (waves, 1)."""
        weights = torch.full((len(self.eofs), 1), 2.0, dtype=torch.float64, device=self.eofs.device)
        weights[0] = 1.0
        if self.latent_shape[2] % 2 == 0:
            weights[-1] = 1.0
        return weights

    def climatology(self, date: Tensor) -> Tensor:
        """Return the mean latents (B, K, c, h, w) at dates (B, K, 4)."""
        features = mean_features(date).to(self.mean)
        return torch.einsum("bkf,fchw->bkchw", features, self.mean)

    def forward(self, x_t: Tensor, sigma: Tensor, date: Tensor) -> Tensor:
        """Return the mean of the clean blankets given noisy ones.

        Arguments:
            x_t: Clean blankets plus white noise, with shape (B, K, c, h, w).
            sigma: Standard deviation of that noise, with shape () or (B,), or (B, K) where
                states carry different noise.
            date: Year, month, day, hour, with shape (B, K, 4).

        Returns:
            Blankets with the shape of `x_t`.
        """
        if sigma.ndim == 2:
            out = torch.empty_like(x_t)
            for given, rows in self._by_profile(sigma):
                out[rows] = given(x_t[rows], date[rows])
            return out
        mean = self.climatology(date).to(x_t.dtype)
        noise = sigma.reshape(-1, 1).square().float()
        return mean + self.filter(x_t - mean, lambda v: v / (v + noise))

    def given(self, sigma: Tensor) -> Conditioned:
        """Return the prior given blankets with a noise level per state (K,)."""
        sources = (self.eofs, self.variance, self.dense_variance, self.rest_variance)
        key = tuple(sigma.double().tolist())
        return Conditioned(
            self, sigma, self._profiles.get(key, sources, lambda: factorise(self, sigma))
        )

    def _by_profile(self, sigma: Tensor) -> Iterator[tuple[Conditioned, Tensor]]:
        """Yield each profile of noise levels (B, K) with the rows that have it."""
        profiles, which = torch.unique(sigma, dim=0, return_inverse=True)
        for number, profile in enumerate(profiles):
            yield self.given(profile), (which == number).nonzero().squeeze(-1)

    def covariance_times(self, v: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Return the covariance of x, or of x given x + sigma noise, times vectors (B, K, c, h, w)."""
        if sigma is None:
            return self.filter(v, lambda variance: variance)
        noise = sigma.reshape(-1, 1).square().float()
        return self.filter(v, lambda variance: variance * noise / (variance + noise))

    def conditional_filter(self, x: Tensor, sigma: Tensor, gain: Gain) -> Tensor:
        """Like `filter`, with the covariance of x given x + sigma noise for Λ."""
        noise = sigma.reshape(-1, 1).square().float()
        return self.filter(x, lambda variance: gain(variance * noise / (variance + noise)))

    def scalings(self, sigma: Tensor) -> Scalings:
        """See `model.denoiser.BaseDenoiser`; noise levels (B, 1 or K, 1, 1, 1), float64."""
        if sigma.shape[1] > 1:
            return self._unequal_scalings(sigma)
        _, size, modes = self.modes.shape
        known = self.variance.scatter(1, self.dense_index, self.dense_variance).double()
        twice = self.wave_weights
        total = size * self.blanket_size * self.latent_shape[2]

        def mean(function: Callable[[Tensor], Tensor]) -> Tensor:
            rest = (size - modes) * function(self.rest_variance.double()).sum(-1, keepdim=True)
            each = function(known).sum(-1, keepdim=True) + rest
            return (twice * each).sum() / total

        levels = sigma.flatten().square()
        variance = mean(lambda v: v)

        def shrunk(noise: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda v: v * noise / (v + noise)

        left = torch.stack([mean(shrunk(noise)) for noise in levels])
        left = left.reshape(sigma.shape)
        return Scalings(
            c_in=torch.rsqrt(variance + sigma.square()),
            c_out=left.sqrt(),
            c_estimate=torch.rsqrt((variance - left).clamp(min=1e-12)),
        )

    def _unequal_scalings(self, sigma: Tensor) -> Scalings:
        c_in, c_out, c_estimate = (torch.empty_like(sigma) for _ in range(3))
        for given, rows in self._by_profile(sigma.flatten(1)):
            scale = given.scalings()
            c_in[rows], c_out[rows] = scale.c_in, scale.c_out
            c_estimate[rows] = cast(Tensor, scale.c_estimate)
        return Scalings(c_in, c_out, c_estimate)

    def sample(self, date: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw blankets (B, K, c, h, w) at dates (B, K, 4)."""
        mean = self.climatology(date)
        white = torch.randn(mean.shape, generator=generator).to(mean)
        return mean + self.filter(white, torch.sqrt)

    def power(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean squares of blankets (B, K, c, h, w) along the eigenvectors of the covariance.

        Returns:
            Like `variance`, `dense_variance` and `rest_variance`; equal to them on average over
            draws of mean zero.
        """
        spectrum, modes, rotated = self._coefficients(x)
        waves, size, r = self.eofs.shape[:3]
        shape = (waves, len(x), self.blanket_size, -1)
        left = spectrum.reshape(shape).abs().square().sum(-1)
        left = left - modes.reshape(shape).abs().square().sum(-1)
        means = (v.abs().square().mean(1) for v in (modes, rotated))
        variance, dense = means
        return variance, dense, left.clamp(min=0).mean(1) / max(size - r, 1)

    def _coefficients(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return spectra (waves, B K, c h), EOF coefficients (waves, B, K r), dense ones (waves, B, q)."""
        eofs = self.modes
        waves, _, r = eofs.shape
        b, k, c, h, _ = x.shape
        # Cosines in time come first: they commute with the rest and are cheapest on real fields.
        waved = torch.matmul(self.cosines, x.float().reshape(b, k, -1)).reshape(x.shape)
        spectrum = torch.fft.rfft(waved, norm="ortho").permute(4, 0, 1, 2, 3)
        spectrum = spectrum.reshape(waves, b * k, c * h)
        modes = torch.matmul(spectrum, eofs.conj()).reshape(waves, b, k * r)
        index = self.dense_index[:, None].expand(-1, b, -1)
        return spectrum, modes, torch.matmul(modes.gather(2, index), self.rotation.conj())

    def filter(self, x: Tensor, gain: Gain) -> Tensor:
        """Apply U g(Λ) U*, a function of the covariance.

        Arguments:
            x: Blankets, with shape (B, K, c, h, w).
            gain: Maps variances (1, n) or (B, n) to real factors (1 or B, n).
        """
        spectrum, modes, rotated = self._coefficients(x)
        waves, _, r = self.eofs.shape[:3]
        b, k, c, h, w = x.shape
        scaled = modes * _each(gain, self.variance)
        rotated = rotated * _each(gain, self.dense_variance)
        dense = torch.matmul(rotated, self.rotation.transpose(1, 2))
        index = self.dense_index[:, None].expand(-1, b, -1)
        scaled = scaled.scatter(2, index, dense).reshape(waves, b, k, r)
        rest = _each(gain, self.rest_variance)[..., None]
        scaled = scaled - modes.reshape(waves, b, k, r) * rest
        out = spectrum.reshape(waves, b, k, c * h) * rest
        out = out.reshape(waves, b * k, c * h)
        out = torch.baddbmm(out, scaled.reshape(waves, b * k, r), self.modes.transpose(1, 2))
        out = out.reshape(waves, b, k, c, h).permute(1, 2, 3, 4, 0)
        field = torch.fft.irfft(out, n=w, norm="ortho").reshape(b, k, -1)
        return torch.matmul(self.cosines.T, field).reshape(x.shape).to(x.dtype)


def _each(gain: Gain, variances: Tensor) -> Tensor:
    """Return the gain of each wavenumber's variances (waves, n), with shape (waves, 1 or B, n)."""
    return torch.stack([gain(v[None]) for v in variances])


Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Starts a new iteration over (latents (B, K, c, h, w), dates (B, K, 4)) at each call."""


@torch.no_grad()
def fit_zonal_gaussian(
    prior: ZonalGaussianPrior,
    batches: Batches,
    shrinkage: float = 0.05,
) -> ZonalGaussianPrior:
    """Fit all buffers of `prior` in three passes over sample blankets.

    Arguments:
        prior: The prior to fit, in place.
        batches: Training blankets.
        shrinkage: Share of the off-diagonal covariance that is removed, because it is estimated
            from a finite sample.
    """
    _fit_mean(prior, batches)
    _fit_modes(prior, batches)
    _fit_covariance(prior, batches, shrinkage)
    return prior


def _fit_mean(prior: ZonalGaussianPrior, batches: Batches) -> None:
    gram = torch.zeros(9, 9, dtype=torch.float64)
    moment = torch.zeros(9, prior.mean[0].numel(), dtype=torch.float64)
    for x, date in batches():
        features = mean_features(date).reshape(-1, 9)
        gram += features.T @ features
        moment += features.T @ x.double().reshape(len(features), -1)
    # A short sample need not span all harmonics; the least-norm solution stays finite.
    solution = torch.linalg.pinv(gram, rtol=1e-6, hermitian=True) @ moment
    prior.mean.copy_(solution.reshape(prior.mean.shape))


def _spectra(prior: ZonalGaussianPrior, x: Tensor, date: Tensor) -> Tensor:
    """Return zonal spectra of anomalies with shape (waves, B, K, c h)."""
    anomaly = x.float() - prior.climatology(date)
    spectrum = torch.fft.rfft(anomaly, norm="ortho").permute(4, 0, 1, 2, 3)
    flat: Tensor = spectrum.flatten(3)
    return flat


def _fit_modes(prior: ZonalGaussianPrior, batches: Batches) -> None:
    waves, size, modes = prior.modes.shape
    covariance = torch.zeros(waves, size, size, dtype=torch.complex64)
    count = 0
    for x, date in batches():
        # Neighbouring hours add little to a covariance in space.
        spectrum = _spectra(prior, x, date)[:, :, ::8].flatten(1, 2)
        covariance += torch.matmul(spectrum.transpose(1, 2), spectrum.conj())
        count += spectrum.shape[1]
    for m in range(waves):
        _, vectors = torch.linalg.eigh(covariance[m] / count)
        prior.eofs[m] = torch.view_as_real(vectors[:, -modes:].flip(1))


def _fit_covariance(prior: ZonalGaussianPrior, batches: Batches, shrinkage: float) -> None:
    waves, size, modes = prior.modes.shape
    k, dense = prior.blanket_size, prior.dense_index.shape[1]
    collected, rest, count = [], torch.zeros(waves, k), 0
    for x, date in batches():
        spectrum = _spectra(prior, x, date)
        cosines = prior.cosines.to(spectrum.dtype)
        spectrum = torch.einsum("fk,mbkd->mbfd", cosines, spectrum)
        coefficients = torch.einsum("mbfd,mdr->mbfr", spectrum, prior.modes.conj())
        power = spectrum.abs().square().sum((1, 3)) - coefficients.abs().square().sum((1, 3))
        rest += power / max(size - modes, 1)
        collected.append(coefficients.flatten(2))
        count += x.shape[0]
    values = torch.cat(collected, dim=1)
    prior.rest_variance.copy_((rest / count).clamp(min=1e-6))
    prior.variance.copy_(values.abs().square().mean(1).clamp(min=1e-6))
    prior.dense_index.copy_(prior.variance.topk(dense, dim=1).indices)
    for m in range(waves):
        chosen = values[m][:, prior.dense_index[m]]
        covariance = chosen.T @ chosen.conj() / count
        diagonal = torch.diag_embed(covariance.diagonal())
        covariance = (1 - shrinkage) * covariance + shrinkage * diagonal
        variance, vectors = torch.linalg.eigh(covariance)
        prior.dense_variance[m] = variance.clamp(min=1e-6)
        prior.dense_vectors[m] = torch.view_as_real(vectors)
