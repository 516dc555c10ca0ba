"""Choose how a plan is carried out: sampler, guidance, starts and memory.

A warm start begins with the trajectory of the previous cycle instead of pure noise. One hour
later all but the newest states have been analysed before. Noise of an intermediate level is
added to them, and sampling continues from there: the large scales are kept, what the new
observations change is drawn again, and the cost is a fraction of a cold start. The published method
has no warm start.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, cast, get_type_hints

import torch
from torch import Tensor

from model.domain.errors import ConfigurationError, InvalidInput
from model.domain.registry import Registry
from model.guidance.base import Conditions, Guidance
from model.guidance.jacobian import MMPS, SDA, MMPSSettings, SDASettings
from model.guidance.prior_covariance import PriorStartSettings, build_prior_covariance
from model.latent_model import LatentModel
from model.samplers.sampling import SAMPLERS, EntrySettings, SamplerSettings
from model.samplers.schedule import NoiseSchedule

__all__ = [
    "AssimilationSettings",
    "EntrySettings",
    "GUIDANCE",
    "GuidanceSettings",
    "WarmStart",
    "available_guidance",
    "guidance_settings",
    "hours_since_epoch",
    "recommended_settings",
    "warm_sampler",
]


class GuidanceSettings(Protocol):
    """Settings of one guidance: a frozen dataclass whose `method` is a name of `GUIDANCE`."""

    @property
    def method(self) -> str:
        """The guidance that these are the settings of."""


Build = Callable[[Conditions, Any], Guidance]
"""Builds a guidance from conditions and its own settings."""


def _mmps(conditions: Conditions, settings: MMPSSettings) -> Guidance:
    report, chunks = conditions.report, conditions.chunks
    return MMPS(conditions.observations(), settings, report, chunks=chunks)


def _sda(conditions: Conditions, settings: SDASettings) -> Guidance:
    return SDA(conditions.observations(), settings, conditions.report, conditions.chunks)


GUIDANCE: Registry[Build] = Registry(
    "guidance",
    "appa.guidance",
    Callable,
    mmps=_mmps,
    sda=_sda,
    prior_covariance=build_prior_covariance,
)
"""Builders of guidances by name (`method`). The annotation of a builder's argument `settings` is the
class of its settings."""


def _settings_kind(method: str) -> Any:
    """Return the dataclass of the settings of a guidance; None if its builder is not annotated."""
    kind = get_type_hints(GUIDANCE[method]).get("settings")
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def guidance_settings(method: str, **values: Any) -> GuidanceSettings:
    """Return the settings of a guidance: its defaults, updated with `values`.

    Raises:
        UnknownName: If there is no such guidance.
        ConfigurationError: If its settings are of no known type, or have no such field.
    """
    kind = _settings_kind(method)
    if kind is None:
        raise ConfigurationError(
            f"Expected the guidance '{method}' to say of what type its settings are; annotate the "
            "argument 'settings' of the function that builds it with their dataclass."
        )
    known = {field.name for field in fields(kind)} - {"method"}
    if unknown := sorted(set(values) - known):
        raise ConfigurationError(
            f"Expected settings of the guidance '{method}' ({', '.join(sorted(known))}); got "
            f"{', '.join(unknown)}."
        )
    return cast(GuidanceSettings, kind(**values))


@dataclass(frozen=True)
class WarmStart:
    """Latents of an earlier trajectory.

    Attributes:
        latents: Standardised latents, with shape (M, T, c, h, w).
        first_time: Valid time of the first state, a full hour in UTC; the others follow hourly.
    """

    latents: Tensor
    first_time: datetime

    def at(self, members: int, hours: list[int]) -> Tensor:
        """Return first guesses of the states at the given hours.

        Arguments:
            members: M; members repeat if there were fewer.
            hours: Hours since 1970 of the T states wanted.

        Returns:
            With shape (M, T, c, h, w). An hour outside the earlier trajectory takes its nearest
            state: the error of an hour's persistence is below the noise that is added.
        """
        first = hours_since_epoch(self.first_time)
        last = self.latents.shape[1] - 1
        index = torch.tensor([min(max(hour - first, 0), last) for hour in hours])
        if not any(0 <= hour - first <= last for hour in hours):
            raise InvalidInput(
                f"Expected a warm start that overlaps the window; its {last + 1} states from "
                f"{self.first_time.isoformat()} do not. Start cold."
            )
        member = torch.arange(members) % self.latents.shape[0]
        return self.latents[member][:, index]


def hours_since_epoch(time: datetime) -> int:
    """Return whole hours since 1970-01-01 00 UTC."""
    return int(time.astimezone(UTC).timestamp() // 3600)


def warm_sampler(
    sampler: SamplerSettings, warm: EntrySettings, schedule: NoiseSchedule
) -> SamplerSettings:
    """Return the sampler from the warm start's noise level on."""
    level = torch.tensor(warm.sigma, dtype=torch.float64)
    return replace(sampler, start=float(schedule.time(level)), steps=warm.steps)


@dataclass(frozen=True)
class AssimilationSettings:
    """How a plan is carried out; the same for every kind of job.

    Attributes:
        sampler: The sampler of a cold start.
        warm: Where a warm start enters, unless it starts from the prior.
        start: What a cold start starts from: `noise`, or `prior`: members of the posterior under
            the checkpoint's closed-form prior, re-noised as `entry` says.
        entry: Where a start from the prior enters.
        diffusion: Whether a start from the prior is re-noised and denoised at all; without, members
            are those of the closed form.
        prior_solve: How the systems of a start from the prior are solved.
        guidance: The guidance and its settings; the type says which method.
        mode: How blankets are composed, one of `model.trajectory.MODES`.
        tie_error_std: One standard deviation of tied states, in latent units.
        forecast_spread: Factor on the deviations of forecast members from the forecast mean
            (`model.forecast`).
        batch_rows: The largest number of blankets evaluated at once; None to measure it.
        decode_states: The largest number of states decoded and differentiated at once, without
            keeping their graphs; None to derive it from the memory budget.
        memory_budget: Bytes that an evaluation may use; None for half of the memory.
    """

    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    warm: EntrySettings = field(default_factory=EntrySettings)
    start: Literal["noise", "prior"] = "noise"
    entry: EntrySettings = field(default_factory=lambda: EntrySettings(0.1, 1))
    diffusion: bool = True
    prior_solve: PriorStartSettings = field(default_factory=PriorStartSettings)
    guidance: GuidanceSettings = field(default_factory=MMPSSettings)
    mode: str = "symmetrical"
    tie_error_std: float = 0.05
    forecast_spread: float = 1.0
    batch_rows: int | None = None
    decode_states: int | None = None
    memory_budget: int | None = None

    @property
    def smallest(self) -> "AssimilationSettings":
        """The same settings with the smallest batches, which need the least memory."""
        return replace(self, batch_rows=1, decode_states=1)

    @property
    def own_steps(self) -> int:
        """Diffusion steps of a cold start."""
        return self.entry.steps if self.start == "prior" else self.sampler.steps

    @property
    def antithetic(self) -> bool:
        """Whether members come in antithetic pairs, of opposite noise."""
        return self.start == "prior" and self.prior_solve.antithetic


def available_guidance(latent_model: LatentModel) -> list[str]:
    """Return the names of the guidances that a checkpoint can be used with."""
    based = latent_model.prior_covariance is not None
    return [
        name
        for name in GUIDANCE
        if (kind := _settings_kind(name)) is not None
        and (based or not getattr(kind, "needs_closed_form", False))
    ]


def recommended_settings(latent_model: LatentModel) -> AssimilationSettings:
    """Return what the card of a checkpoint recommends.

    Raises:
        UnknownName: If it names a sampler or a guidance that is not installed.
        ConfigurationError: If the settings are not those of its guidance.
    """
    card = latent_model.card.recommended
    SAMPLERS[card.sampler.name]
    return AssimilationSettings(
        sampler=card.sampler,
        warm=card.warm,
        start=card.start,
        entry=card.entry,
        prior_solve=card.prior_solve,
        guidance=guidance_settings(**card.guidance),
        tie_error_std=card.tie_error_std,
        forecast_spread=card.forecast_spread,
    )
