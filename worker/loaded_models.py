"""Load checkpoints once when the worker starts, and warm each up with a tiny job.

The warm-up selects kernels and allocates memory, and a model that cannot assimilate fails before the
worker reports that it is ready.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import structlog
import torch

from model.assimilate import assimilate
from model.assimilation_settings import available_guidance, recommended_settings
from model.backbone import Backbone
from model.card import CARD_NAME
from model.checkpoints.bundle import WEIGHTS, load_checkpoint, resolve
from model.checkpoints.stored_weights import StoredWeights, stored_weights
from model.denoiser import Precision
from model.diagnostics.equivalents import observation_set
from model.domain.errors import ConfigurationError, UnknownName
from model.domain.files import file_digest
from model.domain.windows import WindowPlan
from model.latent_model import LatentModel
from model.samplers.sampling import SAMPLERS
from worker.arithmetic import PRECISIONS, Arithmetic, choose_arithmetic, compile_backbone, install
from worker.contract.queues import ModelInfo, ProcessFigures
from worker.observations.columns import build_table
from worker.observations.decoders.base import DecodeContext
from worker.settings import WorkerSettings

__all__ = [
    "LoadedModel",
    "LoadedModels",
    "choose_device",
    "load_models",
    "open_models",
    "warm_up",
]

_TIME = datetime(2000, 1, 1, tzinfo=UTC)


def warm_up(model: LatentModel) -> None:
    """Run a minimal analysis: one member, one step of everything, one observation at the equator.

    Raises:
        Exception: Any error of the model.
    """
    plan = WindowPlan.filtering(_TIME, model.blanket_size)
    channel = model.channels[0]
    table = build_table(
        DecodeContext(batch_id="warm-up", received_time=_TIME),
        1,
        report_type="synop" if channel.level is None else "temp",
        station_id="warm-up",
        time=np.array([_TIME.replace(tzinfo=None)], "datetime64[ns]"),
        lat=0.0,
        lon=0.0,
        vertical_kind="surface" if channel.level is None else "pressure",
        vertical=None if channel.level is None else 100.0 * channel.level,
        variable=channel.variable,
        obs_value=model.state_normalisation.mean.flatten()[0].item(),
        obs_error=model.state_normalisation.std.flatten()[0].item(),
    )
    observations, _ = observation_set(table, model, plan.times)
    settings = recommended_settings(model)
    guidance: Any = settings.guidance
    if hasattr(guidance, "iterations"):
        guidance = replace(guidance, iterations=1)
    settings = replace(
        settings,
        sampler=replace(settings.sampler, steps=1),
        warm=replace(settings.warm, steps=1),
        entry=replace(settings.entry, steps=1),
        prior_solve=replace(settings.prior_solve, iterations=1, steps=1, member_iterations=1),
        guidance=guidance,
    )
    assimilate(model, observations.to(model.dtype, model.device), plan, 1, 0, settings=settings)


log = structlog.get_logger()


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint loaded on the device of the worker, under the name that jobs use.

    Attributes:
        name: Name of the checkpoint, used in jobs.
        sha256: Digest of its card, which holds the hashes of all its files.
        model: On the device, after a first run.
        folder: Folder of the checkpoint.
        arithmetic: Precision and kernels of its computations.
        weights: What of it need not be in memory while it waits.
    """

    name: str
    sha256: str
    model: LatentModel
    folder: Path
    arithmetic: Arithmetic = Arithmetic()
    weights: StoredWeights = field(default_factory=StoredWeights)

    @property
    def info(self) -> ModelInfo:
        """Return what the worker reports about it to the gateway."""
        card = self.model.card
        settings = recommended_settings(self.model)
        return ModelInfo(
            name=self.name,
            description=card.description,
            sha256=self.sha256,
            grid=card.grid.name,
            shape=self.model.grid.shape,
            levels=list(card.levels),
            channels=list(card.channels),
            blanket=self.model.blanket_size,
            default_steps=settings.own_steps,
            samplers=list(SAMPLERS),
            default_sampler=settings.sampler.name,
            guidance=available_guidance(self.model),
            default_guidance=settings.guidance.method,
            precisions=list(PRECISIONS),
            default_precision=self.model.precision,
        )

    def at(self, precision: Precision | None) -> "LoadedModel":
        """Return the same checkpoint in the precision of a job; None for that of the worker."""
        if precision is None:
            return self
        arithmetic = self.arithmetic.at(precision)
        return replace(self, model=self.model.in_precision(precision), arithmetic=arithmetic)


@dataclass(frozen=True)
class LoadedModels:
    """The models of this process; the first is the default."""

    models: tuple[LoadedModel, ...]
    device: torch.device

    @property
    def window_bytes(self) -> int:
        """Return the size of the states of the largest window, a blanket."""
        return max(loaded.model.window_bytes for loaded in self.models)

    def measure_device(self, figures: ProcessFigures) -> None:
        """Set memory and utilisation of the device, where it is a GPU."""
        if self.device.type != "cuda":
            return
        free, total = torch.cuda.mem_get_info(self.device)
        figures.device_used_bytes, figures.device_total_bytes = total - free, total
        try:
            figures.device_utilisation = torch.cuda.utilization(self.device) / 100
        except Exception:  # no NVML in some containers; its errors depend on the version
            figures.device_utilisation = None

    def rest(self) -> None:
        """Free the weights, which nothing may use before `wake`."""
        for model in self.models:
            model.weights.rest()

    def wake(self) -> None:
        """Read the freed weights again, before anything computes with them.

        Raises:
            CheckpointError: If a file of a bundle was written to since it was loaded.
        """
        for model in self.models:
            model.weights.wake()

    def get(self, name: str | None) -> LoadedModel:
        """Return the model called `name`, or the default one.

        Raises:
            UnknownName: Naming the loaded models.
        """
        if name is None:
            return self.models[0]
        for model in self.models:
            if model.name == name:
                return model
        known = [model.name for model in self.models]
        raise UnknownName(
            f"Unknown model '{name}'. This worker has: {', '.join(known)}.", name=name, known=known
        )


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` takes a GPU when there is one.

    Raises:
        ConfigurationError: If this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"Expected a GPU for APPA_DEVICE={name}; this machine shows none.")
    return device


def open_models(settings: WorkerSettings) -> LoadedModels:
    """Load the models of a worker, and set the arithmetic of its process.

    Raises:
        AppaError: As `choose_device` and `load_models`.
    """
    arithmetic = choose_arithmetic(
        choose_device(settings.device),
        settings.precision,
        tf32=settings.tf32,
        attention=settings.attention,
        compiled=settings.compile,
    )
    install(arithmetic)
    return load_models(settings.models, settings.device, arithmetic)


def load_models(
    names: Sequence[str], device_name: str, arithmetic: Arithmetic | None = None
) -> LoadedModels:
    """Load checkpoints and run each once, so that the first job is not slower than others.

    Arguments:
        names: Names or folders; empty takes the bundled ones.
        device_name: See `choose_device`.
        arithmetic: How they compute; the caller has set the process to it.

    Raises:
        ConfigurationError: If there is no checkpoint at all.
        CheckpointError: If one cannot be loaded.
    """
    names = list(names) or sorted(p.parent.name for p in WEIGHTS.glob(f"*/{CARD_NAME}"))
    if not names:
        raise ConfigurationError(
            "Expected a checkpoint in APPA_MODELS (or `appa up --model FOLDER`); none is bundled."
        )
    device = choose_device(device_name)
    models = tuple(_load(name, device, arithmetic or Arithmetic()) for name in names)
    return LoadedModels(models, device)


def _load(name: str, device: torch.device, arithmetic: Arithmetic) -> LoadedModel:
    folder = resolve(name)
    model = load_checkpoint(folder, device, arithmetic.precision)
    if arithmetic.compiled:
        compile_backbone(cast(Backbone, model.denoise.backbone))
    warm_up(model)
    card = folder / CARD_NAME
    digest = file_digest(card) if card.is_file() else ""
    if model.inactive_features:
        log.warning(
            "checks without effect",
            name=model.card.name,
            inert="; ".join(model.inactive_features),
            remedy="import the checkpoint again with --static and --states",
        )
    log.info("model ready", name=model.card.name, device=str(device))
    weights = stored_weights(folder, model)
    return LoadedModel(model.card.name, digest, model, folder, arithmetic, weights)
