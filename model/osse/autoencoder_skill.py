"""How much of a state the autoencoder keeps: errors by channel, and spectra."""

from collections.abc import Callable, Sequence
from datetime import datetime

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from model.latent_model import LatentModel
from model.osse.scorer import standardised_rmse
from model.osse.spectral_error import SpectralDeviation, SpectralError
from model.progress import OnStep, no_progress

__all__ = ["AutoencoderSkill", "score_autoencoder"]


class AutoencoderSkill(BaseModel):
    """Of reconstructed states against the states themselves.

    Attributes:
        times: Valid times of the states (UTC).
        errors: Standardised RMSE by channel, mean over states, with C entries.
        spectra: Largest spectral deviation of each variable.
        largest_wavenumber: Last total wavenumber compared.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    times: tuple[datetime, ...]
    errors: tuple[float, ...]
    spectra: tuple[SpectralDeviation, ...]
    largest_wavenumber: int

    @property
    def mean(self) -> float:
        """Over channels."""
        return sum(self.errors) / len(self.errors)


@torch.no_grad()
def score_autoencoder(
    model: LatentModel,
    truth_at: Callable[[datetime, int], Tensor],
    times: Sequence[datetime],
    *,
    largest: int = 20,
    on_step: OnStep = no_progress,
) -> AutoencoderSkill:
    """Encodes and decodes the states of `times`.

    Arguments:
        model: A checkpoint.
        truth_at: (first time UTC, count) to physical states (count, C, Y, X).
        times: Of the states.
        largest: Last total wavenumber of the spectra.
        on_step: Called before every state.
    """
    spectra, total = SpectralError(model.grid, largest), torch.zeros(len(model.channels)).double()
    for number, time in enumerate(times):
        on_step(number, len(times))
        state = truth_at(time, 1)
        again = model.decode(model.encode(state))[0].float().cpu()
        total += standardised_rmse(model, again, state[0])
        spectra.add(again, state[0])
    return AutoencoderSkill(
        times=tuple(times),
        errors=tuple((total / len(times)).tolist()),
        spectra=spectra.by_variable(model.channels),
        largest_wavenumber=min(largest, spectra.deviations().shape[1]),
    )
