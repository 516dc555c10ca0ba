r"""Train the autoencoder: latitude-weighted and spectral errors of standardised states.

The loop reads top to bottom: data, model, then steps of draw, forward, backward, average, log,
save. The autoencoder starts at the principal components of its patches: a linear code of each
patch is the baseline to beat; starting there, every training step goes into what a linear code
cannot represent.

With error coefficients :math:`e_{lm}` of channel c in spherical harmonics and the mean power
:math:`P_{cl}` of that channel's states at total wavenumber l, the loss is

.. math:: L = \overline{(\hat x - x)^2}
    + \lambda \, \overline{\frac{1}{4\pi P_{cl}} \sum_m |e_{lm}|^2}
    + \alpha \, \overline{\left( \frac{\hat p_{cl} - p_{cl}}{P_{cl}} \right)^2}

The first mean is over channels and where each is defined on the sphere, the others over channels
and wavenumbers; p are the powers of a batch, decoded and given. Squared error alone is dominated by
large variances: the short waves of stratospheric temperature and of geopotential carry a millionth of
it, so a code trained without the second term leaves them out, and the spectra of decoded states fall
short by half. Detail that the code cannot hold is damped by least squares (the double penalty of
Subich et al., arXiv 2501.19374); the third term asks for the right power instead.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lab.training.datasets import StateStore
from lab.training.loop import (
    Optimisation,
    TrainingRun,
    averaged,
    averaged_weights,
    generator,
    gradient_sync,
    prefetched,
    rank_and_world,
    setup_distributed,
)
from lab.training.streaming import DataConfig, StandardisedStates, batch_positions, spread
from model.autoencoder import Autoencoder, AutoencoderConfig
from model.diagnostics.realism import legendre_projection, power_spectrum
from model.domain.grids import Grid
from model.execution import OnStep

__all__ = [
    "AutoencoderTraining",
    "PatchPCA",
    "ReconstructionLoss",
    "fit_patch_pca",
    "start_at_pca",
    "train_autoencoder",
]

START_STD = 0.5
"""Standard deviation of the latents at the start, well inside the saturation's bound of 5."""


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
        """Return the standardised error that `count` components leave on the fitted sample."""
        return float((self.variance[count:].sum() / len(self.variance)).sqrt())


def fit_patch_pca(
    states: Tensor | Iterable[Tensor], patch: tuple[int, int], weights: Tensor
) -> PatchPCA:
    """Fit the area-weighted principal components of patches.

    Arguments:
        states: Standardised, with shape (N, C, Y, X), or several such, which are read one by one.
        patch: (p, q), rows and columns of a patch.
        weights: Area share of each row, with shape (Y,).
    """
    p, q = patch
    row = weights.double().unflatten(0, (-1, p)).sum(1)
    row = row / row.sum()
    first, second, count = torch.zeros(()).double(), torch.zeros(()).double(), 0
    for some in [states] if isinstance(states, Tensor) else states:
        for state in some:
            x = rearrange(state, "c (h p) (w q) -> h w (c p q)", p=p, q=q).double()
            first = first + torch.einsum("h,hwd->d", row, x) / x.shape[1]
            x = (x * (row[:, None, None] / x.shape[1]).sqrt()).flatten(0, 1)
            second = second + x.T @ x
        count += len(some)
    mean = first / count
    variance, vectors = torch.linalg.eigh(second / count - torch.outer(mean, mean))
    return PatchPCA(mean.float(), vectors.T.flip(0).float(), variance.flip(0).clamp(min=0).float())


@torch.no_grad()
def start_at_pca(autoencoder: Autoencoder, pca: PatchPCA) -> None:
    """Set a one-level autoencoder to the linear code: identity blocks between PCA projections.

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
    _bias(first).copy_(-project @ pca.mean)
    last.weight.mul_(1e-2)
    last.weight[:, :latent, middle, middle] += torch.eye(latent)
    _bias(last).zero_()
    first, last = _ends(autoencoder.decoder)
    first.weight.mul_(1e-2)
    first.weight[:latent, :, middle, middle] += torch.eye(latent)
    _bias(first).zero_()
    last.weight.mul_(1e-2)
    last.weight[:, :latent, middle, middle] += (pca.components[:latent] / scale[:latent, None]).T
    _bias(last).copy_(pca.mean)


def _bias(convolution: torch.nn.Conv2d) -> Tensor:
    """Return the bias, which all convolutions of an autoencoder have."""
    return cast(Tensor, convolution.bias)


def _ends(module: torch.nn.Module) -> tuple[torch.nn.Conv2d, torch.nn.Conv2d]:
    """Return the first and last convolution; the last convolution of each residual block is set to zero."""
    convolutions = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
    for second in convolutions[2:-1:2]:
        torch.nn.init.zeros_(second.weight)
        torch.nn.init.zeros_(_bias(second))
    return convolutions[0], convolutions[-1]


ROUNDING = 5e-7
"""Share of a channel's power below which a wavenumber is left out: rounding to half precision, in which
states are cached, has 1e-7 of it."""


class ReconstructionLoss(nn.Module):
    """The loss of reconstructed states; its three terms are those of the module's equation.

    Arguments:
        grid: The grid.
        states: Some standardised states, whose mean power errors are compared with, with shape
            (N, C, Y, X); None where there is the squared error alone.
        defined: Where each channel has values (not the sea surface temperature on land), with
            shape (C, Y, X). A channel with gaps has no spectrum and is not in the second term.
        spectral_weight: λ.
        largest: Last total wavenumber of the second and third terms; the mean (0) is not in them.
        amplitude_weight: α. With it and λ at 0 there is the squared error alone.
    """

    weights: Tensor
    projection: Tensor
    relative: Tensor

    def __init__(
        self,
        grid: Grid,
        states: Tensor | None,
        defined: Tensor,
        spectral_weight: float,
        largest: int,
        amplitude_weight: float = 0.0,
    ) -> None:
        super().__init__()
        area = torch.from_numpy(grid.area_weights)[:, None] * defined
        self.register_buffer("weights", (area / area.mean((1, 2), keepdim=True)).float())
        self.spectral_weight, self.amplitude_weight = spectral_weight, amplitude_weight
        if states is None:  # the projection of a large grid takes a minute and gigabytes
            self.register_buffer("projection", torch.zeros(0, 1, grid.nlat))
            self.register_buffer("relative", torch.zeros(len(defined), 0))
            return
        wanted = slice(1, largest + 1)
        projection = legendre_projection(grid)[wanted, : largest + 1]
        self.register_buffer("projection", projection.float())
        spectrum = power_spectrum(states, grid).mean(0)
        power, total = spectrum[:, wanted], spectrum.sum(dim=1, keepdim=True)
        whole = defined.flatten(1).all(dim=1, keepdim=True)
        usable = whole & (power > ROUNDING * total)
        relative = torch.where(usable, 1.0 / power.clamp(min=1e-30), 0.0)
        self.register_buffer("relative", (relative / usable.sum().clamp(min=1)).float())

    def squared(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the first term of the loss, of states (N, C, Y, X)."""
        return ((output - target).float().square() * self.weights).mean()

    def spectral(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the second term of the loss, without λ.

        It is 1 for an error as large as the state at every wavelength.
        """
        return (self._power(output - target).mean(0) * self.relative).sum()

    def amplitude(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the third term of the loss, without α."""
        found, wanted = self._power(output).mean(0), self._power(target).mean(0)
        # Relative to the mean power of all states: that of a batch may be almost zero.
        count = (self.relative > 0).sum().clamp(min=1)
        deviation = (found - wanted) * self.relative * count
        return deviation.square().sum() / count

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of reconstructed states against states, both standardised, (N, C, Y, X)."""
        loss = self.squared(output, target)
        with torch.autocast(output.device.type, enabled=False):
            if self.spectral_weight > 0:
                loss = loss + self.spectral_weight * self.spectral(output, target)
            if self.amplitude_weight > 0:
                loss = loss + self.amplitude_weight * self.amplitude(output, target)
        return loss

    def _power(self, fields: Tensor) -> Tensor:
        """Return the power of fields (N, C, Y, X) at the wavenumbers compared, with shape (N, C, L)."""
        zonal = torch.fft.rfft(fields.float(), dim=-1)[..., : self.projection.shape[1]]
        coefficients = torch.einsum("lmy,ncymr->nclmr", self.projection, torch.view_as_real(zonal))
        power = coefficients.square().sum(-1)
        # A real field has the same power at m and -m.
        return (2.0 * power.sum(-1) - power[..., 0]) / (4.0 * math.pi)


class AutoencoderTraining(BaseModel):
    """Configuration of one training run of the autoencoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataConfig
    autoencoder: dict[str, Any]
    optimisation: Optimisation
    start_at_pca: bool = True
    latent_noise: float = 0.0
    spectral_weight: float = 0.0
    """Weight of the error relative to the power at each wavenumber; see `ReconstructionLoss`."""
    spectral_largest: int = 20
    """Last total wavenumber of that part and the next."""
    amplitude_weight: float = 0.0
    """Weight of the deviation of the power itself."""
    decoder_of: Path | None = None
    """A finished run to start from, whose encoder is frozen, so that latents do not change."""
    starts_from: Path | None = None
    """A finished run, or a bundle that was unpacked, whose weights to start from."""
    checkpointing: bool = False
    """Whether the backward pass recomputes residual blocks instead of storing their activations."""


def train_autoencoder(
    config: AutoencoderTraining, folder: Path, on_step: OnStep = lambda done, total: None
) -> Path:
    """Train until `optimisation.steps`, resuming from `folder` if it holds a checkpoint.

    Arguments:
        config: Settings of the run.
        folder: Of the run.
        on_step: Called after each step; may raise to stop.

    Returns:
        Path of the last checkpoint.
    """
    device = setup_distributed()
    rank, world = rank_and_world()
    settings, grid = config.optimisation, config.data.grid.build()
    store = config.data.open()
    states = config.data.source(store, "train", config.data.every_hours)
    held_out = config.data.source(store, "validation", 97)
    loss_of = _loss(config, store, states).to(device)

    model = _beginning(config, states, grid)
    model.to(device)
    ema = averaged(model, settings.ema_decay)
    optimiser = settings.optimiser(model)
    run = TrainingRun(folder, config)
    first = run.resume(model, ema, optimiser)
    wrapped = DistributedDataParallel(_Reconstruct(model)) if world > 1 else _Reconstruct(model)

    def read(number: int) -> NDArray[np.float32]:
        return states.read(
            batch_positions(number, settings.batch, len(states), settings.seed, rank, world)
        )

    numbers = range(first * settings.accumulate, settings.steps * settings.accumulate)
    batches = prefetched(read, numbers, config.data.ahead)
    total, counted = torch.zeros(2, device=device), 0
    for step in range(first, settings.steps):
        settings.set_rate(optimiser, step)
        random = generator(settings.seed, step, rank)
        for part in range(settings.accumulate):
            x = torch.from_numpy(next(batches)).to(device)
            with gradient_sync(wrapped, last=part + 1 == settings.accumulate):
                with settings.autocast(device.type):
                    restored = wrapped(x, config.latent_noise, random)
                    loss = loss_of(restored, x)
                (loss / settings.accumulate).backward()
            squared = loss_of.squared(restored.detach(), x)
            total += torch.stack([squared, loss.detach() - squared]) / settings.accumulate
        settings.update(model, optimiser, ema)
        counted += 1
        if (step + 1) % settings.log_every == 0:
            samples = settings.log_every * settings.batch * settings.accumulate * world
            squared, spectral = total / counted
            total, counted = torch.zeros_like(total), 0
            extra = {"spectral": spectral} if spectral > 0 else {}
            if (step + 1) % (10 * settings.log_every) == 0 and rank == 0:
                extra |= validate(cast(Autoencoder, ema.module), held_out, loss_of, settings.batch)
            run.log(step + 1, settings.steps, samples, rmse=squared.sqrt(), **extra)
        if run.due(settings.save_minutes):
            run.save(step + 1, model, ema, optimiser)
        on_step(step + 1, settings.steps)
    run.save(settings.steps, model, ema, optimiser)
    return folder / "last.pt"


def _beginning(config: AutoencoderTraining, states: StandardisedStates, grid: Grid) -> Autoencoder:
    """Return the autoencoder that training starts with."""
    torch.manual_seed(config.optimisation.seed)
    model = Autoencoder(AutoencoderConfig(**config.autoencoder))
    if config.decoder_of is not None:
        model.load_state_dict(averaged_weights(config.decoder_of / "last.pt")[0])
        model.encoder.requires_grad_(False)
    elif config.starts_from is not None:
        model.load_state_dict(averaged_weights(config.starts_from / "last.pt")[0])
    elif config.start_at_pca:
        start_at_pca(model, _pca(config, states, model, grid))
    model.recompute_blocks(config.checkpointing)
    return model


class _Reconstruct(torch.nn.Module):
    """decode(encode(x)) as one forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(
        self, x: Tensor, noise: float = 0.0, random: torch.Generator | None = None
    ) -> Tensor:
        z = self.autoencoder.encode(x)
        if noise > 0:
            z = z + noise * torch.randn(z.shape, generator=random).to(z)
        return self.autoencoder.decode(z)


def _pca(
    config: AutoencoderTraining, states: StandardisedStates, model: Autoencoder, grid: Grid
) -> PatchPCA:
    sample = (torch.from_numpy(x) for x in spread(states, config.data.sample_states))
    pca = fit_patch_pca(sample, model.config.patch_size, torch.from_numpy(grid.area_weights))
    latent = model.config.lat_channels
    print(f"linear code of {latent} numbers per patch leaves {pca.residual_rmse(latent):.4f}")
    return pca


def _loss(
    config: AutoencoderTraining, store: StateStore, states: StandardisedStates
) -> ReconstructionLoss:
    """Return the loss, with the power of states spread through the training period."""
    sample = None
    if config.spectral_weight > 0 or config.amplitude_weight > 0:
        most = min(200, config.data.sample_states)
        sample = torch.from_numpy(np.concatenate(list(spread(states, most))))
    first = store.read([store.within(config.data.splits.bounds("train"))[0].start])[0]
    return ReconstructionLoss(
        config.data.grid.build(),
        sample,
        torch.from_numpy(np.isfinite(first)),
        config.spectral_weight,
        config.spectral_largest,
        config.amplitude_weight,
    )


@torch.no_grad()
def validate(
    model: Autoencoder, states: StandardisedStates, loss_of: ReconstructionLoss, batch: int = 16
) -> dict[str, Tensor]:
    """Return the standardised reconstruction error of states, and its relative part.

    Arguments:
        model: The autoencoder.
        states: Of the validation period.
        loss_of: The loss.
        batch: States at once.
    """
    total = torch.zeros(2, device=loss_of.weights.device)
    parts = [np.arange(i, min(i + batch, len(states))) for i in range(0, len(states), batch)]
    for some in prefetched(states.read, parts):
        x = torch.from_numpy(some).to(total.device)
        restored = model.decode(model.encode(x))
        errors = torch.stack([loss_of.squared(restored, x), loss_of.spectral(restored, x)])
        total += len(x) * errors
    squared, spectral = total / len(states)
    return {"validation_rmse": squared.sqrt(), "validation_spectral": spectral}
