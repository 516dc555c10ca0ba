"""Read the authors' run folders, the layout of the public release.

A run is spread over folders, which `model.checkpoints.discovery` looks for under one root:

* the autoencoder: `config.yaml` with a section `ae`, beside `model*.pth`;
* the denoiser: `config.yaml` with sections `backbone` and `train`, beside `model_best.pth` or
  `model_last.pth`;
* `stats.pth`: mean and standard deviation of each latent channel;
* a zarr store with the mean and standard deviation of each ERA5 variable and level, along a
  dimension `statistic`.

Sizes, levels, blanket length and schedule come from these files, not from the paper; their
settings are translated to those of a card.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import xarray as xr
from torch import Tensor

from model.autoencoder import Autoencoder, AutoencoderConfig
from model.backbone import Backbone, BackboneConfig
from model.card import BlanketCard, Card, GridCard, ScheduleCard
from model.checkpoints.assemble import assemble, load_pickled, load_strictly, sha256
from model.checkpoints.discovery import (
    ReleasedRun,
    find_released,
    open_statistics,
    read_static,
    weights_file,
)
from model.denoiser import Precision
from model.domain.errors import AppaError, CheckpointError, InvalidInput
from model.domain.files import read_yaml
from model.domain.variables import ATMOSPHERIC, LEVELS_ERA5_13, SURFACE, channel_names
from model.latent_model import LatentModel

__all__ = ["ReleasedConfig", "ReleasedRun", "find_released", "load_released"]

Config = TypeVar("Config")

_AE_KEYS = frozenset(AutoencoderConfig.__dataclass_fields__) - {"halo"}
_AE_WITHOUT_EFFECT = frozenset(
    {"name", "latent_shape", "context_channels", "dropout", "checkpointing", "identity_init"}
)
"""Settings that do not change inference: names, settings of training, and context fields, which the
convolutional autoencoder does not read."""

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
        """Return the autoencoder's sizes; the number of state channels is taken from its weights.

        Raises:
            CheckpointError: If a setting is unknown, missing or not supported.
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
        """Return the pressure levels in hPa: the 13 of the release or all those of the statistics.

        Raises:
            CheckpointError: If neither matches the number of channels.
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
        """Return the card of the run, without files.

        Raises:
            CheckpointError: If settings are unknown, missing, not supported or inconsistent.
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
        # YAML 1.1 reads "1e-3" as text: floating-point numbers need a decimal point.
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
        unknown = settings.keys() - {*known, *without_effect, *self.ignore}
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
    def _build(path: Path, kind: type[Config], settings: dict[str, Any]) -> Config:
        try:
            return kind(**settings)
        except (TypeError, AppaError) as error:
            raise CheckpointError(
                f"Expected complete settings in {path}; {error}.", file=str(path)
            ) from error


def load_released(
    root: Path | ReleasedRun,
    *,
    weights: str | None = None,
    autoencoder_weights: str | None = None,
    name: str | None = None,
    licence: str = "unspecified",
    precision: Precision = "float32",
    ignore: frozenset[str] = frozenset(),
    static: Sequence[Path] = (),
) -> LatentModel:
    """Load a run of the authors' implementation.

    Arguments:
        root: The folder that holds it, or its parts.
        weights: `best` or `last`: which of the denoiser's weights; best by default if there.
        autoencoder_weights: The same for the autoencoder, which may also have `model`.
        name: Name of the card; by default that of the folder.
        licence: The weights' licence, for the card.
        precision: Of the products inside the networks.
        ignore: Settings in the configs that are known not to matter.
        static: Files of orography and land-sea mask; see `model.checkpoints.discovery`.

    Raises:
        CheckpointError: If anything is absent or does not match.
        InvalidInput: If a file of `static` cannot be used.
    """
    run = root if isinstance(root, ReleasedRun) else find_released(root)
    ae_file = weights_file(run.autoencoder, autoencoder_weights, option="--autoencoder-weights")
    vit_file = weights_file(run.denoiser, weights, option="--weights")
    ae_tensors, vit_tensors = load_pickled(ae_file), load_pickled(vit_file)
    config = ReleasedConfig(
        run.autoencoder / "config.yaml",
        read_yaml(run.autoencoder / "config.yaml", CheckpointError),
        run.denoiser / "config.yaml",
        read_yaml(run.denoiser / "config.yaml", CheckpointError),
        ignore,
    )
    ae_config = config.autoencoder(ae_tensors)
    with open_statistics(run.state_statistics) as store:
        levels = config.levels(ae_config.in_channels, store)
        card = config.card(
            ae_config,
            levels,
            name=name or _plain(run),
            licence=licence,
            provenance=_provenance(ae_file, vit_file),
        )
        states = _state_statistics(store, card, run.state_statistics)
    latents = _latent_statistics(run.latent_statistics, card)
    fields = _static_fields(static, card)
    with torch.device("meta"):
        autoencoder, backbone = Autoencoder(card.autoencoder), Backbone(card.backbone)
    load_strictly(autoencoder, ae_tensors, ae_file)
    load_strictly(backbone, vit_tensors, vit_file)
    statistics = {**states, **latents}
    try:
        return assemble(card, autoencoder, backbone, statistics, static=fields, precision=precision)
    except AppaError as error:
        raise CheckpointError(f"{run.state_statistics}: {error.message}") from error


def _provenance(autoencoder: Path, backbone: Path) -> dict[str, Any]:
    """Return the provenance for the card: the files that the weights were read from."""
    return {
        "layout": "run folders of the public implementation",
        "autoencoder": {"file": autoencoder.name, "sha256": sha256(autoencoder)},
        "backbone": {"file": backbone.name, "sha256": sha256(backbone)},
    }


def _static_fields(files: Sequence[Path], card: Card) -> dict[str, Tensor]:
    """Read static fields, and note in the card's provenance where each comes from."""
    fields: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for path in files:
        for name, field in read_static(path, card.grid.grid()).items():
            if name in fields:
                raise InvalidInput(
                    f"Expected one source of {name}; {sources[name]} and {path.name} both hold it. "
                    "Give one of them.",
                    file=str(path),
                )
            fields[name], sources[name] = field, path.name
    card.provenance["static"] = sources or "none given: see --static of `appa checkpoint import`"
    return fields


def _plain(run: ReleasedRun) -> str:
    # The autoencoder of a dump is called `ae`: the run's name is that of the dump.
    dumped = run.autoencoder.name == "ae"
    name = run.autoencoder.parent.name if dumped else run.autoencoder.name
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("._-")
    return kept or "imported"


def _state_statistics(store: xr.Dataset, card: Card, path: Path) -> dict[str, Tensor]:
    rows = []
    for channel in card.parsed_channels():
        try:
            chosen = store[channel.variable].sel(statistic=["mean", "std"])
            if channel.level is not None:
                chosen = chosen.sel(level=channel.level)
            rows.append([float(v) for v in chosen.values])
        except KeyError as error:
            raise CheckpointError(
                f"Expected the mean and standard deviation of {channel.name} in {path}; "
                f"there is no {error}.",
                file=str(path),
                channel=channel.name,
            ) from error
    values = torch.tensor(rows, dtype=torch.float64)
    return {"state_mean": values[:, 0], "state_std": values[:, 1]}


def _latent_statistics(path: Path, card: Card) -> dict[str, Tensor]:
    values = load_pickled(path)
    wanted = card.latent_shape[0]
    got = {name: tuple(value.shape) for name, value in values.items()}
    if got != {"mean": (wanted,), "std": (wanted,)}:
        raise CheckpointError(
            f"Expected 'mean' and 'std' with shape ({wanted},) in {path}; got {got}.",
            file=str(path),
        )
    return {"latent_mean": values["mean"], "latent_std": values["std"]}
