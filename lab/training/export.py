"""Make a checkpoint bundle of finished training runs, and training runs of a bundle.

A bundle comes from a denoiser run and its autoencoder (`export_bundle`), or from another bundle whose
denoiser is replaced by that of a training session (`adopt_session`). `unpack_bundle` is the way back:
fine-tuning needs the statistics as well as the weights, because latents and states must be scaled as in
training. It writes finished runs of the autoencoder and the denoiser without optimisers, the statistics,
and configurations that refer to these:

    appa train unpack my-bundle tuning --set data.store=gs://...
    appa train denoiser tuning/run --config tuning/denoiser.yaml
"""

import json
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from lab.training.datasets import ChannelStatistics, StateStore
from lab.training.gpu_session import load_weights
from lab.training.loop import averaged_weights
from lab.training.train_autoencoder import AutoencoderTraining
from lab.training.train_denoiser import (
    DenoiserTraining,
    build_denoiser,
    fitted_prior,
    load_autoencoder,
)
from model.autoencoder import AutoencoderConfig
from model.backbone import Backbone, BackboneConfig
from model.card import (
    BaseCard,
    BlanketCard,
    Card,
    GridCard,
    RecommendedCard,
    ScheduleCard,
)
from model.checkpoints.assemble import assemble
from model.checkpoints.bundle import load_checkpoint, save_checkpoint
from model.denoiser import BlanketDenoiser
from model.domain.errors import CheckpointError, ConfigurationError
from model.domain.files import code_version, open_atomic, write_atomic
from model.domain.variables import channels
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel
from model.operators.composite import reconstruction_residual

__all__ = ["adopt_session", "export_bundle", "unpack_bundle"]


def export_bundle(
    run: Path, output: Path, *, name: str, description: str, simulated: bool, licence: str
) -> Card:
    """Write the bundle of a denoiser run and the autoencoder it was trained on.

    Arguments:
        run: Folder of the denoiser run; without a checkpoint in it the correction is zero, and the
            bundle is the closed-form prior alone.
        output: Folder of the bundle; must not exist.
        name: Of the checkpoint.
        description: One sentence for people.
        simulated: Whether the training data came from a simulation.
        licence: SPDX identifier of the weights.

    Raises:
        CheckpointError: If the run has no configuration.
    """
    path = run / "config.yaml"
    if not path.exists():
        raise CheckpointError(f"Expected a training run in {run}; {path} is absent.")
    config = DenoiserTraining(**yaml.safe_load(path.read_text()))
    latents = config.latents("train")
    prior = fitted_prior(config, latents)
    backbone, step = _backbone(config, run, prior is not None)
    autoencoder = load_autoencoder(config.autoencoder_run)
    store = config.data.open()
    statistics = config.data.statistics(store)
    card = Card(
        name=name,
        description=description,
        licence=licence,
        simulated=simulated,
        grid=GridCard(**config.data.grid.model_dump()),
        levels=config.data.levels,
        channels=tuple(c.name for c in channels(config.data.levels)),
        blanket=BlanketCard(size=latents.blanket, stride=max(latents.blanket // 2, 1)),
        schedule=ScheduleCard(sigma_min=config.sigma_min, sigma_max=config.sigma_max),
        autoencoder=AutoencoderConfig(**_plain(autoencoder.config)),
        backbone=backbone.config,
        base=None
        if config.prior is None
        else BaseCard(kind="zonal_gaussian", modes=config.prior.modes, dense=config.prior.dense),
        recommended=RecommendedCard()
        if config.prior is None
        else RecommendedCard.with_closed_form(),
        latent_shape=autoencoder.latent_shape,
        code_version=code_version(),
        provenance=_provenance(config, step),
    )
    arrays: dict[str, Tensor] = {
        "state_mean": torch.tensor(statistics.mean),
        "state_std": torch.tensor(statistics.std),
        "latent_mean": latents.mean,
        "latent_std": latents.scale,
    }
    static = {k: torch.from_numpy(v.copy()) for k, v in store.static().items()}
    model = assemble(card, autoencoder, backbone, arrays, static=static, base=prior)
    model.static["reconstruction_residual"] = _residual(model, config, store)
    return save_checkpoint(model, output, stored="float16")


def adopt_session(checkpoint: str, session: Path, output: Path, share: float = 1.0) -> Card:
    """Write a bundle again with the denoiser of a training session (`lab.training.gpu_session`).

    Arguments:
        checkpoint: The bundle whose autoencoder and closed form the session was trained on.
        session: Folder of a finished session.
        output: Folder of the new bundle; must not exist.
        share: Weight of the session's network in the mean with that of the bundle, from which the
            session started: after training on few years, the mean generalises better to unseen years
            than either (arXiv 2109.01903).

    Raises:
        CheckpointError: If the session has not finished, or was trained on other latents, or
            networks that are to be averaged differ.
    """
    model = load_checkpoint(checkpoint)
    weights, about = load_weights(session)
    config = BackboneConfig(**_tuples(about["backbone"]))
    if (config.in_channels, *config.shape) != model.card.latent_shape:
        raise CheckpointError(
            f"Expected a session on latents {model.card.latent_shape}, those of {checkpoint}; got "
            f"{(config.in_channels, *config.shape)}."
        )
    backbone = Backbone(config)
    backbone.load_state_dict(weights)
    if share < 1.0:
        if config != model.card.backbone:
            raise CheckpointError(
                "Expected a session on the network of the bundle to average both."
            )
        former = model.denoise.backbone.state_dict()
        mean = {k: torch.lerp(former[k].float(), w.float(), share) for k, w in weights.items()}
        backbone.load_state_dict(mean)
    kept = {k: v for k, v in model.card.provenance.items() if not k.startswith("denoiser")}
    kept.pop("noise_levels_per_blanket", None)
    trained = {k: about[k] for k in ("settings", "steps", "samples", "relative_error")}
    if share < 1.0:  # errors are those of the session's network by itself
        trained = {k: v for k, v in trained.items() if k != "relative_error"}
        trained |= {"share": share, "averaged_with": model.card.provenance.get("denoiser")}
    model.card = model.card.model_copy(
        # Removed: the background errors were those of forecasts by the former network.
        update={
            "backbone": config,
            "background": None,
            "provenance": {**kept, "denoiser": trained},
        }
    )
    model.denoise = BlanketDenoiser(backbone, model.denoise.base)
    return save_checkpoint(model, output, stored="float16")


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings read from JSON, with its lists as tuples again."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


@torch.no_grad()
def _residual(model: LatentModel, config: DenoiserTraining, store: StateStore) -> Tensor:
    """Return the reconstruction residual of training states, by channel and row, with shape (C, Y).

    It is correlated between neighbouring points and hours, so it does not average out over many
    observations as independent errors do; `residual_inflation` accounts for that.
    """
    period = list(chain(*store.within(config.data.splits.bounds("train"))))
    chosen = np.linspace(0, len(period) - 1, min(48, len(period))).astype(int)
    states = torch.cat([torch.from_numpy(store.read([period[i]])) for i in chosen])
    restored = torch.cat([model.decode(model.encode(part)) for part in states.split(8)])
    return config.residual_inflation * reconstruction_residual(states, restored)


def _backbone(config: DenoiserTraining, run: Path, corrects: bool) -> tuple[Backbone, int]:
    """Return the averaged weights of the run, or a zero correction where it has not begun."""
    checkpoint = run / "last.pt"
    backbone = Backbone(BackboneConfig(**config.backbone))
    if not checkpoint.exists():
        if not corrects:
            raise CheckpointError(f"Expected trained weights in {checkpoint}; train first.")
        return cast(Backbone, build_denoiser(config, object()).backbone), 0  # type: ignore[arg-type]
    weights, step = averaged_weights(checkpoint)
    backbone.load_state_dict(weights)
    return backbone, step


def _autoencoder_runs(folder: Path) -> list[dict[str, Any]]:
    """Return how the autoencoder was trained: first the run of both halves, then that of its decoder."""
    run = AutoencoderTraining(**yaml.safe_load((folder / "config.yaml").read_text()))
    this = {
        "trained": "both" if run.decoder_of is None else "decoder",
        "training_periods": _periods(run.data.splits.bounds("train")),
        "every_hours": run.data.every_hours,
        "spectral_weight": run.spectral_weight,
        "amplitude_weight": run.amplitude_weight,
        "optimisation": json.loads(run.optimisation.model_dump_json()),
    }
    return [this] if run.decoder_of is None else [*_autoencoder_runs(run.decoder_of), this]


def _periods(bounds: list[tuple[str, str]]) -> list[list[str]]:
    return [list(period) for period in bounds]


def _plain(config: AutoencoderConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def _provenance(config: DenoiserTraining, step: int) -> dict[str, Any]:
    """Return what a reader must know to judge or repeat the training; no paths of this machine."""
    splits = config.data.splits
    return {
        "training_periods": _periods(splits.bounds("train")),
        "validation_periods": _periods(splits.bounds("validation")),
        "test_periods": _periods(splits.bounds("test")),
        "autoencoder": _autoencoder_runs(config.autoencoder_run),
        "denoiser_optimisation": json.loads(config.optimisation.model_dump_json()),
        "denoiser_steps": step,
        "residual_inflation": config.residual_inflation,
        "noise_levels_per_blanket": config.noise_levels,
        "prior": None if config.prior is None else config.prior.model_dump(),
    }


def unpack_bundle(
    checkpoint: str, folder: Path, autoencoder: AutoencoderTraining, denoiser: DenoiserTraining
) -> tuple[Path, Path]:
    """Write the runs, statistics and configurations that training continues from.

    Arguments:
        checkpoint: A bundle, by name or folder.
        folder: Where to write; must not exist.
        autoencoder: Settings for further training of the autoencoder; data and networks are replaced
            by those of the bundle, except the store and its periods.
        denoiser: Likewise for the denoiser.

    Returns:
        The configurations of autoencoder and denoiser.

    Raises:
        ConfigurationError: If the folder exists.
        CheckpointError: If there is no such bundle.
    """
    if folder.exists():
        raise ConfigurationError(f"Expected a folder that does not exist; {folder} does.")
    model = load_checkpoint(checkpoint)
    card = model.card
    about = {"cache": folder / "cache", "grid": card.grid.model_dump(), "levels": card.levels}
    for part in ("cache", "autoencoder", "denoiser"):
        (folder / part).mkdir(parents=True)
    _statistics(model).save(folder / "cache" / "statistics.json")
    first = AutoencoderTraining.model_validate(
        autoencoder.model_dump()
        | {
            "data": {**autoencoder.data.model_dump(), **about},
            "autoencoder": asdict(model.autoencoder.config),
            "starts_from": folder / "autoencoder",
            "decoder_of": None,
        }
    )
    second = DenoiserTraining.model_validate(
        denoiser.model_dump()
        | {
            "data": {**denoiser.data.model_dump(), **about},
            "autoencoder_run": folder / "autoencoder",
            "starts_from": folder / "denoiser",
            "backbone": asdict(card.backbone),
            "prior": _prior(model, folder / "autoencoder"),
            "sigma_min": card.schedule.sigma_min,
            "sigma_max": card.schedule.sigma_max,
        }
    )
    _write_run(folder / "autoencoder", model.autoencoder, first)
    _write_run(folder / "denoiser", model.denoise.backbone, second)
    scaling = model.latent_normalisation
    latents = {"mean": scaling.mean.flatten().tolist(), "scale": scaling.std.flatten().tolist()}
    write_atomic(folder / "autoencoder" / "latent-statistics.json", json.dumps(latents))
    return _write(folder / "autoencoder.yaml", first), _write(folder / "denoiser.yaml", second)


def _statistics(model: LatentModel) -> ChannelStatistics:
    mean, std = (
        np.asarray(getattr(model.state_normalisation, name).flatten().double().cpu().numpy())
        for name in ("mean", "std")
    )
    return ChannelStatistics(tuple(channel.name for channel in model.channels), mean, std)


def _prior(model: LatentModel, run: Path) -> dict[str, Any] | None:
    """Save the closed form where training looks for it; None if the bundle has none."""
    base, card = model.denoise.base, model.card.base
    if card is None or not isinstance(base, ZonalGaussianPrior):
        return None
    path = run / f"prior-{model.card.blanket.size}-{card.modes}-{card.dense}.pt"
    torch.save(base.state_dict(), path)
    return {"modes": card.modes, "dense": card.dense}


def _write_run(
    folder: Path, module: nn.Module, config: AutoencoderTraining | DenoiserTraining
) -> None:
    """Write a run whose averaged weights are those of a module."""
    _write(folder / "config.yaml", config)
    weights = {f"module.{name}": value for name, value in module.state_dict().items()}
    with open_atomic(folder / "last.pt") as file:
        torch.save({"step": 0, "parts": [{}, weights]}, file)


def _write(path: Path, config: AutoencoderTraining | DenoiserTraining) -> Path:
    write_atomic(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return path
