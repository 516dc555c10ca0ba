"""Models kept warm: loaded once when the worker starts, tried once, used by every job."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from model.assimilate import recommended_settings
from model.checkpoints.card import CARD_NAME
from model.checkpoints.load import WEIGHTS, load_checkpoint, resolve
from model.domain.errors import ConfigurationError, UnknownName
from model.latent_model import LatentModel
from worker.jobs.workers import ModelInfo
from worker.warm_up import warm_up

__all__ = ["WarmModel", "WarmModels", "choose_device", "load_models"]

log = structlog.get_logger()


@dataclass(frozen=True)
class WarmModel:
    """A loaded checkpoint.

    Attributes:
        name: Used in jobs.
        sha256: Of its card, which holds the hashes of all its files.
        model: On the device, ready.
        folder: Where it was loaded from.
    """

    name: str
    sha256: str
    model: LatentModel
    folder: Path

    @property
    def info(self) -> ModelInfo:
        """What the gateway is told about it."""
        card = self.model.card
        return ModelInfo(
            name=self.name,
            description=card.description,
            sha256=self.sha256,
            grid=card.grid.name,
            shape=self.model.grid.shape,
            levels=list(card.levels),
            channels=list(card.channels),
            blanket=self.model.blanket_size,
            default_steps=_default_steps(self.model),
        )


@dataclass(frozen=True)
class WarmModels:
    """The models of this process; the first is the default."""

    models: tuple[WarmModel, ...]
    device: torch.device

    def get(self, name: str | None) -> WarmModel:
        """The model called `name`, or the default one.

        Raises:
            UnknownName: Naming the models there are.
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
    """The device called `name`; `auto` takes a GPU when there is one.

    Raises:
        ConfigurationError: If the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"Expected a GPU for APPA_DEVICE={name}; this machine shows none.")
    return device


def load_models(names: Sequence[str], device_name: str) -> WarmModels:
    """Loads checkpoints and runs each once, so that the first job finds everything warm.

    Arguments:
        names: Names or folders; empty takes the bundled ones.
        device_name: See `choose_device`.

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
    models = tuple(_load(name, device) for name in names)
    return WarmModels(models, device)


def _load(name: str, device: torch.device) -> WarmModel:
    folder = resolve(name)
    model = load_checkpoint(folder, device)
    warm_up(model)
    card = folder / CARD_NAME
    digest = hashlib.sha256(card.read_bytes()).hexdigest() if card.is_file() else ""
    log.info("model ready", name=model.card.name, device=str(device))
    return WarmModel(model.card.name, digest, model, folder)


def _default_steps(model: LatentModel) -> int:
    settings = recommended_settings(model)
    return settings.warm.steps if settings.start == "prior" else settings.sampler.steps
