"""Describe a checkpoint by its card: everything about it that is not an array, as YAML.

The card is the only source of information about a model: grid, channels, sizes of the networks, time
step, schedule and the files with their hashes are all here, and the loader checks each of them.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model.autoencoder import AutoencoderConfig
from model.backbone import BackboneConfig
from model.domain.errors import CheckpointError
from model.domain.files import read_yaml_model
from model.domain.grids import Grid
from model.domain.variables import Channel, parse_channel
from model.guidance.prior_covariance import PriorStartSettings
from model.samplers.sampling import EntrySettings, SamplerSettings

__all__ = [
    "BackgroundCard",
    "BaseCard",
    "BlanketCard",
    "CARD_NAME",
    "Card",
    "FileCard",
    "GridCard",
    "RecommendedCard",
    "ScheduleCard",
    "read_card",
    "write_card",
]

CARD_NAME = "card.yaml"

Storage = Literal["float32", "bfloat16", "float16"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _known_keys(value: Any, kind: Any) -> Any:
    """Refuse settings that a dataclass does not have: pydantic would ignore them."""
    names = {field.name for field in fields(kind)}
    unknown = set(value) - names if isinstance(value, Mapping) else ()
    if unknown:
        raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
    return value


class GridCard(_Strict):
    """A horizontal grid as written in a card; see `model.domain.grids.Grid`."""

    name: str
    kind: Literal["regular", "gaussian"]
    nlat: int
    nlon: int

    def grid(self) -> Grid:
        """Return the grid that is described."""
        return Grid(self.name, self.kind, self.nlat, self.nlon)


class BlanketCard(_Strict):
    """States that the denoiser handles together, and the default distance between blankets."""

    size: int = Field(gt=0)
    stride: int = Field(gt=0)


class ScheduleCard(_Strict):
    """The noise schedule of training, the default of sampling."""

    name: str = "rectified"
    sigma_min: float = Field(default=1e-3, gt=0)
    sigma_max: float = Field(default=1e3, gt=0)


class BaseCard(_Strict):
    """The closed-form denoiser under the learned one; absent for the released form."""

    kind: Literal["zonal_gaussian"]
    modes: int = Field(gt=0)
    dense: int = Field(gt=0)


class BackgroundCard(_Strict):
    """Background errors of cycles; absent if they were not estimated.

    Attributes:
        modes, dense: Sizes of their Gaussian; see `model.gaussian_prior.ZonalGaussianPrior`.
        sigma: Noise level that analysed states are taken to have in the forecast of the new hours.
        hours: How many hours older the previous analysis is that a cycle continues from: the lead
            time of the background.
        remainder: rho of `model.background.Propagation`, for errors that grow by the network's tangent
            linear: the model error of the forecast over the part of the errors of new hours that
            the errors of the analysed ones do not explain. None for the average growth.
        spread: Factor on the deviations of members from their mean. The mean is most accurate with a
            covariance larger than its errors; the spread of the members should match these errors.
    """

    modes: int = Field(gt=0)
    dense: int = Field(gt=0)
    sigma: float = Field(gt=0)
    hours: int = Field(default=1, gt=0)
    remainder: float | None = Field(default=None, gt=0)
    spread: float = Field(default=1.0, gt=0)


class RecommendedCard(_Strict):
    """Default settings of analyses; fields that are left out have the values of the release.

    The attributes are those of `model.assimilation_settings.AssimilationSettings`. Which values
    serve a checkpoint depends on its training, so they are part of it.

    Attributes:
        sampler: Of a start from noise.
        start: What a cold start begins with.
        entry: Where a start from the prior enters the diffusion.
        warm: Where a warm start enters it.
        prior_solve: How the systems of a start from the prior are solved.
        guidance: `method`, a name of `model.assimilation_settings.GUIDANCE`, and its settings.
        tie_error_std: One standard deviation of tied states, in latent units.
        forecast_spread: Factor on the deviations of forecast members from the forecast mean, where
            the network takes a noise level per state.
    """

    sampler: SamplerSettings = SamplerSettings()
    start: Literal["noise", "prior"] = "noise"
    entry: EntrySettings = EntrySettings(0.1, 1)
    warm: EntrySettings = EntrySettings(1.0, 6)
    prior_solve: PriorStartSettings = PriorStartSettings()
    guidance: dict[str, Any] = {"method": "mmps"}
    tie_error_std: float = Field(default=0.05, gt=0)
    forecast_spread: float = Field(default=1.0, ge=0)

    @classmethod
    def with_closed_form(cls) -> "RecommendedCard":
        """Return what suits a checkpoint with a closed-form prior: linear algebra first."""
        return cls(
            start="prior",
            guidance={"method": "prior_covariance", "iterations": 8, "tolerance": 0.1},
            # About the analysis error of a member. Error of appa-t31 at +24 h: 0.34 with 0.3 (and
            # 0.52 with 0.1, which 60 iterations do not solve), 0.306 with 0.7, 0.32 with 2;
            # persistence has 0.40.
            tie_error_std=0.7,
        )

    @field_validator("sampler", "entry", "warm", "prior_solve", mode="before")
    @classmethod
    def _known_settings(cls, value: Any, info: Any) -> Any:
        return _known_keys(value, type(cls.model_fields[info.field_name].default))

    @field_validator("guidance")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("method"), str):
            raise ValueError("expected a method and its settings, such as {method: mmps}")
        return value


class FileCard(_Strict):
    """One file of the bundle with its checksum and size."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    stored: Storage = "float32"

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if Path(path).name != path or path in ("", ".", ".."):
            raise ValueError("expected the name of a file beside the card, without a folder")
        return path


class Card(_Strict):
    """A checkpoint's description.

    Attributes:
        name: Short name; a bundled checkpoint is loaded by it.
        description: One sentence for people.
        licence: SPDX identifier of the weights' licence.
        simulated: Whether the training data came from a simulation rather than observations.
        grid: Horizontal grid of the states.
        levels: Pressure levels in hPa, top down.
        channels: Names of the channels in order.
        time_step_hours: Hours between the states of a blanket.
        blanket: Its length and default stride.
        schedule: Noise schedule.
        autoencoder: Sizes of the autoencoder.
        backbone: Sizes of the denoiser's backbone.
        base: Closed-form part of the denoiser.
        background: Errors of backgrounds of hourly cycles.
        recommended: How analyses are made with it.
        latent_shape: (c, h, w).
        files: By role: autoencoder, backbone, statistics; optionally static, base, background, tangent.
        code_version: Version of this package that wrote the bundle.
        provenance: Where the weights come from and how they were trained.
    """

    format: Literal["appa-checkpoint-1"] = "appa-checkpoint-1"
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str
    licence: str
    simulated: bool
    grid: GridCard
    levels: tuple[int, ...]
    channels: tuple[str, ...]
    time_step_hours: int = Field(default=1, gt=0)
    blanket: BlanketCard
    schedule: ScheduleCard = ScheduleCard()
    autoencoder: AutoencoderConfig
    backbone: BackboneConfig
    base: BaseCard | None = None
    background: BackgroundCard | None = None
    recommended: RecommendedCard = RecommendedCard()
    latent_shape: tuple[int, int, int]
    files: dict[str, FileCard] = {}
    code_version: str
    provenance: dict[str, Any] = {}

    @field_validator("autoencoder", "backbone", mode="before")
    @classmethod
    def _known_keys(cls, value: Any, info: Any) -> Any:
        kinds = {"autoencoder": AutoencoderConfig, "backbone": BackboneConfig}
        return _known_keys(value, kinds[info.field_name])

    @model_validator(mode="after")
    def _consistent(self) -> "Card":
        ae, vit = self.autoencoder, self.backbone
        parsed = [parse_channel(c) for c in self.channels]
        levels = {c.level for c in parsed if c.level is not None}
        pairs: list[tuple[str, Any, Any]] = [
            ("autoencoder.shape and grid", tuple(ae.shape), (self.grid.nlat, self.grid.nlon)),
            ("autoencoder.in_channels and channels", ae.in_channels, len(self.channels)),
            ("channels without repetition", len(self.channels), len(set(self.channels))),
            ("levels of the channels and levels", levels, set(self.levels)),
            ("latent_shape and autoencoder", self.latent_shape, ae.latent_shape),
            ("backbone.in_channels and latent_shape", vit.in_channels, self.latent_shape[0]),
            ("backbone.shape and latent_shape", tuple(vit.shape), self.latent_shape[1:]),
            ("backbone.blanket_size and blanket.size", vit.blanket_size, self.blanket.size),
        ]
        for what, left, right in pairs:
            if left != right:
                raise ValueError(f"{what} do not agree: {left} and {right}")
        if self.blanket.stride > self.blanket.size:
            raise ValueError(f"blanket.stride {self.blanket.stride} leaves states uncovered")
        return self

    def parsed_channels(self) -> tuple[Channel, ...]:
        """Return the channels in the order of the states."""
        return tuple(parse_channel(c) for c in self.channels)


def read_card(path: Path) -> Card:
    """Read and check a card.

    Raises:
        CheckpointError: If the file is absent, not YAML, or not a consistent card.
    """
    return read_yaml_model(path, Card, "a consistent checkpoint card", error=CheckpointError)


def write_card(card: Card, path: Path) -> None:
    """Write a card as YAML, keys in the order of the class."""
    text = yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
