"""What the configs of the authors' run folders mean, as the settings of a card."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from torch import Tensor

from model.autoencoder import AutoencoderConfig
from model.backbone import BackboneConfig
from model.checkpoints.card import BlanketCard, Card, GridCard, ScheduleCard
from model.domain.errors import AppaError, CheckpointError
from model.domain.variables import ATMOSPHERIC, LEVELS_ERA5_13, SURFACE, channel_names

__all__ = ["ReleasedConfig"]

_AE_KEYS = frozenset(AutoencoderConfig.__dataclass_fields__) - {"halo"}
_AE_WITHOUT_EFFECT = frozenset(
    {"name", "latent_shape", "context_channels", "dropout", "checkpointing", "identity_init"}
)
"""Names, training settings, and context fields that the convolutional autoencoder does not read."""

_VIT_KEYS = frozenset(BackboneConfig.__dataclass_fields__)
_VIT_WITHOUT_EFFECT = frozenset({"name", "arch", "checkpointing"})


@dataclass(frozen=True)
class ReleasedConfig:
    """The two configs of a run.

    Attributes:
        ae_path: The autoencoder's `config.yaml`, for error texts.
        ae: Its content.
        vit_path: The denoiser's `config.yaml`.
        vit: Its content.
        ignore: Settings that are known not to matter.
    """

    ae_path: Path
    ae: Mapping[str, Any]
    vit_path: Path
    vit: Mapping[str, Any]
    ignore: Collection[str] = frozenset()

    def autoencoder(self, tensors: Mapping[str, Tensor]) -> AutoencoderConfig:
        """The autoencoder's sizes; the number of state channels is taken from its weights.

        Raises:
            CheckpointError: If a setting is unknown, missing or not carried.
        """
        settings = dict(self._section(self.ae_path, self.ae, "ae"))
        name = str(settings.get("name", "cae"))
        if "ico" in name:
            raise CheckpointError(
                f"Expected a convolutional autoencoder in {self.ae_path}; got '{name}' on an "
                "icosahedral grid.",
                file=str(self.ae_path),
            )
        settings = self._known(self.ae_path, settings, _AE_KEYS, _AE_WITHOUT_EFFECT)
        first = tensors.get("encoder.descent.0.0.weight")
        if first is not None:
            patch = settings.get("patch_size", (1, 1))
            settings.setdefault("in_channels", first.shape[1] // (int(patch[0]) * int(patch[1])))
        return self._build(self.ae_path, AutoencoderConfig, settings)

    def levels(self, in_channels: int, statistics: xr.Dataset) -> tuple[int, ...]:
        """The pressure levels in hPa: the 13 of the release or all those of the statistics.

        Raises:
            CheckpointError: If neither gives the number of channels.
        """
        every = tuple(int(v) for v in statistics["level"].values) if "level" in statistics else ()
        reduced = self.ae.get("train", {}).get("sub_pressure_levels")
        candidates = {True: [LEVELS_ERA5_13], False: [every]}.get(reduced, [LEVELS_ERA5_13, every])
        for levels in candidates:
            if len(SURFACE) + len(ATMOSPHERIC) * len(levels) == in_channels:
                return levels
        counts = ", ".join(str(len(SURFACE) + len(ATMOSPHERIC) * len(c)) for c in candidates)
        raise CheckpointError(
            f"Expected {counts} channels for the levels of {self.ae_path}; the autoencoder has "
            f"{in_channels}.",
            file=str(self.ae_path),
            got=in_channels,
        )

    def card(
        self,
        autoencoder: AutoencoderConfig,
        levels: tuple[int, ...],
        *,
        name: str,
        licence: str,
        provenance: dict[str, Any],
    ) -> Card:
        """The card of the run, without files.

        Raises:
            CheckpointError: If a setting is unknown, missing or not carried, or they disagree.
        """
        train = self._section(self.vit_path, self.vit, "train")
        settings = dict(self._section(self.vit_path, self.vit, "backbone"))
        if settings.get("arch", "vit") != "vit":
            raise CheckpointError(
                f"Expected a backbone 'vit' in {self.vit_path}; got '{settings['arch']}'.",
                file=str(self.vit_path),
            )
        settings = self._known(self.vit_path, settings, _VIT_KEYS, _VIT_WITHOUT_EFFECT)
        size = self._number(train, "blanket_size", int)
        channels, high, wide = autoencoder.latent_shape
        settings |= {"in_channels": channels, "blanket_size": size, "shape": (high, wide)}
        backbone = self._build(self.vit_path, BackboneConfig, settings)
        nlat, nlon = autoencoder.shape
        grid = "era5-0p25" if (nlat, nlon) == (721, 1440) else f"regular-{nlat}x{nlon}"
        try:
            return Card(
                name=name,
                description="Weights imported from run folders of the public implementation.",
                licence=licence,
                simulated=False,
                grid=GridCard(name=grid, kind="regular", nlat=nlat, nlon=nlon),
                levels=levels,
                channels=channel_names(levels),
                time_step_hours=self._number(train, "blanket_dt", int, 1),
                blanket=BlanketCard(size=size, stride=max(size // 2, 1)),
                schedule=ScheduleCard(
                    name=str(train.get("noise_schedule", "rectified")),
                    sigma_min=self._number(train, "sigma_min", float, 1e-3),
                    sigma_max=self._number(train, "sigma_max", float, 1e3),
                ),
                autoencoder=autoencoder,
                backbone=backbone,
                latent_shape=autoencoder.latent_shape,
                code_version="imported",
                provenance=provenance,
            )
        except ValueError as error:
            raise CheckpointError(
                f"Expected consistent settings in {self.vit_path}; {error}.",
                file=str(self.vit_path),
            ) from error

    def _number(self, values: Mapping[str, Any], key: str, kind: type, *default: Any) -> Any:
        # YAML reads "1e-3" as text: its numbers need a point.
        try:
            return kind(values.get(key, *default))
        except (TypeError, ValueError):
            raise CheckpointError(
                f"Expected a number for train.{key} in {self.vit_path}; got {values.get(key)!r}.",
                file=str(self.vit_path),
            ) from None

    def _known(
        self,
        path: Path,
        settings: dict[str, Any],
        known: Collection[str],
        without_effect: Collection[str],
    ) -> dict[str, Any]:
        unknown = settings.keys() - known - without_effect - set(self.ignore)
        harmful = sorted(k for k in unknown if settings[k])  # None, 0 and false switch things off
        if harmful:
            raise CheckpointError(
                f"Expected only known settings in {path}; got {', '.join(harmful)}. If they do not "
                "change the network's output, name them as ignored.",
                file=str(path),
                unknown=harmful,
            )
        return {k: v for k, v in settings.items() if k in known and k not in self.ignore}

    @staticmethod
    def _section(path: Path, values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        section = values.get(name)
        if not isinstance(section, Mapping):
            raise CheckpointError(
                f"Expected a section '{name}' in {path}; got {', '.join(values) or 'nothing'}.",
                file=str(path),
            )
        return section

    @staticmethod
    def _build(path: Path, kind: type, settings: dict[str, Any]) -> Any:
        try:
            return kind(**settings)
        except (TypeError, AppaError) as error:
            raise CheckpointError(
                f"Expected complete settings in {path}; {error}.", file=str(path)
            ) from error
