"""A tiny model with random weights, and run folders of the authors' layout made of it."""

import numpy as np
import torch
import xarray as xr
import yaml

from lab.tiny_model import CLOSED_FORM, LEVELS, tiny_card, tiny_model
from model.autoencoder import Autoencoder, AutoencoderConfig
from model.backbone import Backbone, BackboneConfig
from model.domain.variables import ATMOSPHERIC, LEVELS_ERA5_13, SURFACE

__all__ = [
    "CLOSED_FORM",
    "DATE",
    "LEVELS",
    "VIT_YAML",
    "tiny_card",
    "tiny_model",
    "write_layout",
    "write_run",
    "write_statistics",
]

DATE = torch.tensor([[[2021, 3, 4, h] for h in range(4)]])


def write_run(root, *, levels=LEVELS_ERA5_13, seed=0):
    """Run folders as the public implementation leaves them; returns the modules."""
    torch.manual_seed(seed)
    channels = len(SURFACE) + len(ATMOSPHERIC) * len(levels)
    ae_config = AutoencoderConfig(
        in_channels=channels,
        lat_channels=3,
        shape=(9, 14),
        resize=4,
        hid_channels=(4, 6, 8),
        hid_blocks=(1, 0, 1),
    )
    vit_config = BackboneConfig(
        in_channels=3,
        blanket_size=6,
        shape=ae_config.latent_shape[1:],
        mod_features=8,
        hid_channels=16,
        hid_blocks=2,
        attention_heads=2,
    )
    autoencoder, backbone = Autoencoder(ae_config), Backbone(vit_config)
    ae = root / "autoencoders" / "run0"
    vit = ae / "latents" / "dump0" / "denoisers" / "run1"
    vit.mkdir(parents=True)
    (ae / "config.yaml").write_text(yaml.safe_dump(_ae_yaml(levels)))
    (vit / "config.yaml").write_text(VIT_YAML)
    torch.save(autoencoder.state_dict(), ae / "model_best.pth")
    torch.save(backbone.state_dict(), vit / "model_best.pth")
    latents = {"mean": torch.randn(3), "std": 1 + torch.rand(3)}
    torch.save(latents, ae / "latents" / "dump0" / "stats.pth")
    statistics = write_statistics(root / "stats_era5.zarr", LEVELS_ERA5_13)
    return autoencoder, backbone, latents, statistics


def write_layout(root, **options):
    """The whole tree of the authors' scripts: two autoencoder folders, masks beside statistics."""
    parts = write_run(root, **options)
    run = root / "autoencoders" / "run0"
    dump = run / "latents" / "dump0"
    (dump / "ae").mkdir()
    (dump / "ae" / "config.yaml").write_text((run / "config.yaml").read_text())
    (run / "model_best.pth").rename(dump / "ae" / "model.pth")
    vit = dump / "denoisers" / "run1"
    last = torch.load(vit / "model_best.pth", weights_only=True)
    last["in_proj.bias"] = last["in_proj.bias"] + 1
    torch.save(last, vit / "model_last.pth")
    masks = xr.Dataset({"mask": (("latitude", "longitude"), np.ones((9, 14)))})
    masks.to_zarr(root / "masks.zarr", zarr_format=2, consolidated=True)
    return parts


def write_statistics(path, levels):
    generator = np.random.default_rng(0)
    store = xr.Dataset(coords={"statistic": ["mean", "std"], "level": list(levels)})
    for name in SURFACE:
        values = np.array([generator.normal(), 1 + generator.random()])
        store[name] = xr.DataArray(values, dims=("statistic",))
    for name in ATMOSPHERIC:
        values = np.stack([generator.normal(size=len(levels)), 1 + generator.random(len(levels))])
        store[name] = xr.DataArray(values, dims=("statistic", "level"))
    store.to_zarr(path, mode="w", consolidated=True, zarr_format=2)
    return store


def _ae_yaml(levels):
    return {
        "ae": {
            "name": "cae_f4c3",
            "shape": [9, 14],
            "resize": 4,
            "saturation": "softclip2",
            "noise_level": 0.0,
            "lat_channels": 3,
            "hid_channels": [4, 6, 8],
            "hid_blocks": [1, 0, 1],
            "pixel_shuffle": True,
            "ffn_factor": 1,
            "dropout": 0.0,
            "patch_size": [1, 1],
            "checkpointing": False,
            "identity_init": True,
            "context_channels": 1,
        },
        "train": {"sub_pressure_levels": levels == LEVELS_ERA5_13, "precision": "float32"},
    }


VIT_YAML = """
backbone:
  name: "vit_small"
  arch: "vit"
  mod_features: 8
  hid_channels: 16
  hid_blocks: 2
  ffn_factor: 4
  attention_heads: 2
  qk_norm: true
  rope: true
  patch_size: [2, 1, 1]
  window_size: null
  dropout: 0.0
  checkpointing: true
train:
  blanket_dt: 1
  blanket_size: 6
  noise_schedule: rectified
  sigma_min: 1e-3
  sigma_max: 1e3
ae_run: run0
"""
