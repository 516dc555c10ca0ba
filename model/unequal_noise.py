r"""Condition the closed-form prior on blankets whose states carry different noise, exactly.

In a forecast the past is known and the future is not; in filtering the recent past is nearly known and
the newest hour hardly. Both are blankets with one noise level per state (diffusion forcing, arXiv
2407.01392; rolling diffusion, arXiv 2506.20024). With a covariance :math:`\Sigma` and noise :math:`N`
of different variance per state,

.. math:: \mathbb{E}[x \mid x + N^{1/2} \epsilon] = \mu + \Sigma (\Sigma + N)^{-1} (x_t - \mu), \qquad
    \mathrm{Cov} = N - N (\Sigma + N)^{-1} N

is no longer diagonal in the cosines of `ZonalGaussianPrior`: noise couples the frequencies of one
EOF, the prior couples a few EOFs (its dense part). The first coupling is inverted per EOF
(K x K), the second joins by the Woodbury identity (q x q): both once per profile of levels.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.denoiser import Scalings

if TYPE_CHECKING:
    from model.gaussian_prior import ZonalGaussianPrior

__all__ = ["UNKNOWN", "Conditioned", "Factors", "factorise", "forecast_profile"]

UNKNOWN = 100.0
"""Noise level of an unknown state: far above the standard deviation of any EOF."""

Factors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""What the solution needs of one profile: the inverses of each EOF's own part (waves, r, K, K) over
frequencies; Woodbury's middle matrix of the dense coefficients, complex (waves, q, q); their
covariance, complex (waves, q, q); the gain outside the EOFs (waves, K, K) over states; the
prior's and the posterior's mean variance of each state (K,), float64."""


def forecast_profile(blanket: int, known: int, sigma: float) -> Tensor:
    """Return noise levels (K,): `sigma` for the first `known` states, `UNKNOWN` for the others."""
    levels = torch.full((blanket,), UNKNOWN)
    levels[:known] = sigma
    return levels


class Conditioned:
    """The prior given blankets under one profile of noise levels.

    Arguments:
        prior: The closed form.
        sigma: Noise level of each state, with shape (K,), positive.
        factors: Result of `factorise` for the two; computed if None.
    """

    def __init__(
        self, prior: "ZonalGaussianPrior", sigma: Tensor, factors: Factors | None = None
    ) -> None:
        self.prior = prior
        self.sigma = sigma.detach().double()
        self._factors = factorise(prior, sigma) if factors is None else factors

    def __call__(self, x_t: Tensor, date: Tensor) -> Tensor:
        """Return the mean of clean blankets given noisy ones.

        Arguments:
            x_t: Clean blankets plus noise, with shape (B, K, c, h, w).
            date: Year, month, day, hour, with shape (B, K, 4).

        Returns:
            Blankets with the shape of `x_t`.
        """
        mean = self.prior.climatology(date).to(x_t.dtype)
        return mean + self.gain(x_t - mean)

    def scalings(self) -> Scalings:
        """Return scalings of each state, with shape (1, K, 1, 1, 1), float64."""
        variance, left = (v.reshape(1, -1, 1, 1, 1) for v in self._factors[4:])
        noise = self.sigma.square().reshape(1, -1, 1, 1, 1)
        return Scalings(
            c_in=torch.rsqrt(variance + noise),
            c_out=left.sqrt(),
            c_estimate=torch.rsqrt((variance - left).clamp(min=1e-4)),
        )

    def gain(self, x: Tensor) -> Tensor:
        """Apply Σ (Σ + N)⁻¹ to anomalies (B, K, c, h, w)."""
        prior, rest = self.prior, self._factors[3]
        eofs = prior.modes
        waves, size, r = eofs.shape
        b, k, c, h, w = x.shape
        spectrum = torch.fft.rfft(x.float(), norm="ortho").permute(4, 0, 1, 2, 3)
        spectrum = spectrum.reshape(waves, b, k, size)
        modes = torch.matmul(spectrum.reshape(waves, b * k, size), eofs.conj())
        modes = modes.reshape(waves, b, k, r)
        rest = rest.to(spectrum.dtype)[:, None]
        known = torch.matmul(prior.cosines.to(modes.dtype), modes)
        solved = self._times_covariance(self._solve(known))
        solved = torch.matmul(prior.cosines.T.to(modes.dtype), solved)
        out = torch.matmul(rest, spectrum)
        solved = (solved - torch.matmul(rest, modes)).reshape(waves, b * k, r)
        out = torch.baddbmm(out.reshape(waves, b * k, size), solved, eofs.transpose(1, 2))
        out = out.reshape(waves, b, k, c, h).permute(1, 2, 3, 4, 0)
        field: Tensor = torch.fft.irfft(out, n=w, norm="ortho")
        return field.to(x.dtype)

    def _solve(self, known: Tensor) -> Tensor:
        """Apply (Σ + N)⁻¹ to coefficients (waves, B, K, r), complex."""
        single, joint = self._factors[:2]
        alone = _each_eof(single, known)
        index = self.prior.dense_index[:, None].expand(-1, known.shape[1], -1)
        coupled = torch.matmul(alone.flatten(2).gather(2, index), joint.transpose(1, 2))
        spread = torch.zeros_like(known).flatten(2).scatter(2, index, coupled)
        return alone - _each_eof(single, spread.reshape(known.shape))

    def _times_covariance(self, solved: Tensor) -> Tensor:
        """Apply Σ to coefficients (waves, B, K, r)."""
        prior, dense = self.prior, self._factors[2]
        flat = solved.flatten(2)
        index = prior.dense_index[:, None].expand(-1, flat.shape[1], -1)
        scaled = flat * prior.variance[:, None]
        coupled = torch.matmul(flat.gather(2, index), dense.transpose(1, 2))
        return scaled.scatter(2, index, coupled).reshape(solved.shape)


@torch.no_grad()
def factorise(prior: "ZonalGaussianPrior", sigma: Tensor) -> Factors:
    """Return the factors of a prior and a noise level per state (K,), computed in double precision."""
    waves, size, r = prior.modes.shape
    k = prior.blanket_size
    cosines, levels = prior.cosines.double(), sigma.double()
    noise = cosines * levels.square() @ cosines.T
    dense = _dense_covariance(prior)
    diagonal = torch.diagonal(dense, dim1=1, dim2=2).real
    variance = prior.variance.double().scatter(1, prior.dense_index, diagonal)
    each = torch.diag_embed(variance.reshape(waves, k, r).transpose(1, 2))  # (waves, r, K, K)
    single = torch.linalg.inv(each + noise)
    frequency, eof = prior.dense_index // r, prior.dense_index % r
    wave = torch.arange(waves, device=single.device)[:, None, None]
    coupled = single[wave, eof[:, :, None], frequency[:, :, None], frequency[:, None, :]]
    coupled = coupled * (eof[:, :, None] == eof[:, None, :])
    cross = dense - torch.diag_embed(diagonal).to(dense.dtype)
    identity = torch.eye(dense.shape[-1], dtype=dense.dtype, device=dense.device)
    system = identity + cross @ coupled.to(dense.dtype)
    # One by one: batched complex LU of some MKL builds fails when torch runs several threads.
    joint = torch.stack([torch.linalg.solve(*pair) for pair in zip(system, cross, strict=True)])
    rest_variance = torch.diag_embed(prior.rest_variance.double())
    rest = torch.linalg.inv(rest_variance + noise)
    own = (frequency, eof, (r, k))
    inverse = (single - single @ _own_blocks(joint, *own) @ single).sum(1) + (size - r) * rest
    covariance = (each + _own_blocks(cross, *own)).sum(1) + (size - r) * rest_variance
    before, after = (_each_state(prior, cosines.T @ m @ cosines) for m in (covariance, inverse))
    left = levels.square() - levels.square().square() * after
    gain = cosines.T @ rest_variance @ rest @ cosines
    narrow = (single.float(), joint.to(torch.complex64), dense.to(torch.complex64), gain.float())
    return *narrow, before, left.clamp(min=1e-12)


def _each_state(prior: "ZonalGaussianPrior", sums: Tensor) -> Tensor:
    """Average sums over EOFs (waves, K, K) to a mean of each state (K,)."""
    c, h, w = prior.latent_shape
    return (prior.wave_weights * torch.diagonal(sums, dim1=1, dim2=2)).sum(0) / (c * h * w)


def _dense_covariance(prior: "ZonalGaussianPrior") -> Tensor:
    """Return the covariance of the dense coefficients, complex128 with shape (waves, q, q)."""
    rotation = prior.rotation.to(torch.complex128)
    variance = prior.dense_variance.to(torch.complex128)
    return rotation * variance[:, None] @ rotation.mH


def _each_eof(matrices: Tensor, coefficients: Tensor) -> Tensor:
    """Apply matrices (waves, r, K, K) to the frequencies of coefficients (waves, B, K, r)."""
    waves, b, k, r = coefficients.shape
    pairs = torch.view_as_real(coefficients.permute(0, 3, 2, 1).contiguous())
    out = torch.matmul(matrices, pairs.reshape(waves, r, k, 2 * b)).reshape(waves, r, k, b, 2)
    return torch.view_as_complex(out).permute(0, 3, 2, 1)


def _own_blocks(matrix: Tensor, frequency: Tensor, eof: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the blocks of a matrix of dense coefficients within each EOF, (waves, r, K, K).

    Arguments:
        matrix: Complex, with shape (waves, q, q).
        frequency: Of each dense coefficient, with shape (waves, q).
        eof: Of each dense coefficient, with shape (waves, q).
        shape: (r, K).
    """
    r, k = shape
    blocks = torch.zeros(len(matrix), r, k, k, dtype=torch.float64, device=matrix.device)
    wave, a, b = (eof[:, :, None] == eof[:, None, :]).nonzero().unbind(1)
    blocks[wave, eof[wave, a], frequency[wave, a], frequency[wave, b]] = matrix[wave, a, b].real
    return blocks
