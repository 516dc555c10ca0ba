"""The reference implementation's tiny networks and observations, read from the parity folder."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.autoencoder import Autoencoder, AutoencoderConfig
from model.backbone import Backbone, BackboneConfig
from model.denoiser import BlanketDenoiser


@dataclass(frozen=True)
class PointObservations:
    """Values of grid points and channels of some states; states are (*, T, C, Y, X)."""

    values: Tensor
    error_std: Tensor
    time: Tensor
    channel: Tensor
    cell: Tensor

    @property
    def time_support(self):
        return self.time.numpy(), self.time.numpy()

    def operator(self, states: Tensor) -> Tensor:
        return states.flatten(-2)[..., self.time, self.channel, self.cell]

    def __len__(self) -> int:
        return len(self.values)


class Reference:
    """Networks, inputs and outputs of the reference run in one precision."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        config = json.loads((folder / "config.json").read_text())
        config = config.get("tiny", config)
        self.config = config if "ae" in config else next(iter(config.values()))
        self.dtype = dtype
        self.inputs = load_file(folder / "golden.safetensors")
        name = "golden_f64" if dtype == torch.float64 else "golden"
        self.outputs = load_file(folder / f"{name}.safetensors")
        self.float_noise = json.loads((folder / "float_noise.json").read_text())
        ae = {k: v for k, v in self.config["ae"].items()}
        self.autoencoder = Autoencoder(AutoencoderConfig(**ae)).requires_grad_(False)
        self.autoencoder.load_state_dict(load_file(folder / "tiny_autoencoder.safetensors"))
        backbone = Backbone(BackboneConfig(**self.config["backbone"])).requires_grad_(False)
        backbone.load_state_dict(load_file(folder / "tiny_backbone.safetensors"))
        self.autoencoder.to(dtype).eval()
        self.denoiser = BlanketDenoiser(backbone).to(dtype).eval()
        self.size = self.config["trajectory"]["blanket_size"]
        self.stride = self.config["trajectory"]["blanket_stride"]

    def array(self, name: str) -> Tensor:
        """An input in this precision."""
        x = self.inputs[name]
        return x.to(self.dtype) if x.is_floating_point() else x

    def states(self, flat: Tensor) -> Tensor:
        """Flattened latents (B, T*h*w*c) as (B, T, c, h, w)."""
        h, w = self.config["backbone"]["shape"]
        c = self.config["backbone"]["in_channels"]
        return flat.reshape(len(flat), -1, h, w, c).movedim(-1, 2)

    def flat(self, states: Tensor) -> Tensor:
        return states.movedim(2, -1).flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        """Standardised latents (P, c, h, w) to standardised states."""
        mean, std = (self.array(f"obs.latent_{n}")[:, None, None] for n in ("mean", "std"))
        return self.autoencoder.decode(z * std + mean)

    def observations(self, blanket: int) -> PointObservations:
        """Stations, then satellite, of each observed state of a blanket; only ten states are."""
        time, channel, cell = [], [], []
        for k in range(self.size):
            for name in ("stations", "sat"):
                step = blanket * self.stride + k
                if step >= 10:
                    continue
                key = "obs.stations_idx" if name == "stations" else f"obs.sat_idx.{step:02d}"
                points = self.inputs[key].numpy()
                channels = np.flatnonzero(self.inputs[f"obs.{name}_vars"].numpy())
                grid_cell, grid_channel = np.meshgrid(points, channels, indexing="ij")
                cell.append(grid_cell.ravel())
                channel.append(grid_channel.ravel())
                time.append(np.full(cell[-1].size, k))
        index = (torch.from_numpy(np.concatenate(x)) for x in (time, channel, cell))
        return PointObservations(
            self.array(f"obs.y.{blanket}"), self.array(f"obs.cov.{blanket}").sqrt(), *index
        )

    def error(self, name: str, ours: Tensor) -> float:
        """Largest difference over its tolerance: at most 1 is a match."""
        theirs = self.outputs[name]
        difference = (ours.reshape(theirs.shape) - theirs).abs().max().item()
        if self.dtype == torch.float64:
            return difference / theirs.abs().max().item()
        return difference / (10 * self.noise(name))

    def noise(self, name: str) -> float:
        entry = self.float_noise[name]
        return entry if isinstance(entry, float) else entry.get("max_abs_diff", entry)
