"""Latents of a finished autoencoder: encoded once, kept on disk, read as scaled blankets."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from model.autoencoder import Autoencoder, AutoencoderConfig
from model.domain.errors import CheckpointError
from model.training.latent_scale import decoder_response, latent_scale
from model.training.run import averaged_weights
from model.training.state_cache import ArrayCache, build_cache
from model.training.train_autoencoder import AutoencoderTraining, DataConfig

__all__ = ["Latents", "load_autoencoder"]


def load_autoencoder(folder: Path) -> Autoencoder:
    """The averaged weights of a finished autoencoder run."""
    config = AutoencoderTraining(**yaml.safe_load((folder / "config.yaml").read_text()))
    model = Autoencoder(AutoencoderConfig(**config.autoencoder))
    path = folder / "last.pt"
    if not path.exists():
        raise CheckpointError(f"Expected a trained autoencoder in {path}; train it first.")
    model.load_state_dict(averaged_weights(path)[0])
    return model.eval()


class Latents:
    """Cached latents of one split, scaled per channel by what they do to the state.

    Arguments:
        data: Where states come from.
        run: Folder of the autoencoder that encodes them; latents are kept in it.
        blanket: States of a blanket.
        split: `train`, `validation` or `test`.
    """

    def __init__(self, data: DataConfig, run: Path, blanket: int, split: str) -> None:
        self.cache = _encode(data, run, split)
        self.blanket = blanket
        self.starts = self.cache.windows(blanket)
        self.mean, self.scale = _statistics(run, self.cache, split)
        times = self.cache.times.astype("datetime64[h]")
        years = times.astype("datetime64[Y]").astype(int) + 1970
        months = times.astype("datetime64[M]").astype(int) % 12 + 1
        days = (times.astype("datetime64[D]") - times.astype("datetime64[M]")).astype(int) + 1
        hours = (times - times.astype("datetime64[D]")).astype(int)
        self.dates = torch.from_numpy(np.stack([years, months, days, hours], axis=-1))

    def blankets(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled blankets (B, K, c, h, w) and dates (B, K, 4) at positions of `starts`."""
        first = self.starts[chosen.numpy()]
        index = first[:, None] + np.arange(self.blanket)
        x = torch.from_numpy(self.cache.array[index]).float()
        x = (x - self.mean[:, None, None]) / self.scale[:, None, None]
        return x, self.dates[torch.from_numpy(index)]


def _encode(data: DataConfig, run: Path, split: str) -> ArrayCache:
    folder = run / f"latents-{split}"
    if (folder / "index.json").exists():
        return ArrayCache(folder)
    store, model = data.open(), load_autoencoder(run)
    statistics = data.statistics(store)
    runs = store.within(data.splits.bounds(split))

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for part in (run[i : i + 96] for run in runs for i in range(0, len(run), 96)):
            states = store.read(slice(part.start, part.stop))
            states = torch.from_numpy(statistics.standardise(states))
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                yield model.encode(states).float().numpy(), store.times[part.start : part.stop]

    return build_cache(folder, chunks, sum(map(len, runs)), model.latent_shape)


def _statistics(run: Path, cache: ArrayCache, split: str) -> tuple[Tensor, Tensor]:
    path = run / "latent-statistics.json"
    if split == "train" and not path.exists():
        index = np.linspace(0, len(cache) - 1, min(2000, len(cache))).astype(int)
        sample = np.asarray(cache.array[index], np.float64)
        std = torch.from_numpy(sample.std((0, 2, 3))).float()
        some = torch.from_numpy(sample[:: max(len(sample) // 4, 1)]).float()
        response = decoder_response(load_autoencoder(run), some, std)
        scale = latent_scale(std, response)
        values = {"mean": sample.mean((0, 2, 3)).tolist(), "scale": scale.tolist()}
        path.write_text(json.dumps(values))
    values = json.loads(path.read_text())
    return torch.tensor(values["mean"]), torch.tensor(values["scale"])
