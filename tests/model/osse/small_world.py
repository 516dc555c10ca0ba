"""A checkpoint of a few numbers whose latents lie on its grid, and a truth it can represent."""

from datetime import UTC, datetime, timedelta

import numpy as np
import torch
import xarray as xr

from lab.osse.network import Network
from model.autoencoder import Autoencoder, AutoencoderConfig
from model.backbone import Backbone, BackboneConfig
from model.card import GridCard
from model.checkpoints.assemble import assemble
from model.domain.variables import channel_names
from model.gaussian_prior import ZonalGaussianPrior
from tests.model.checkpoint_parts import CLOSED_FORM, tiny_card

LEVELS = (500, 850)
FIRST = datetime(2021, 3, 4, tzinfo=UTC)
NETWORK = Network(stations=30, ships=8, sondes=10, scan_lines=4)


def small_model():
    """On 8 x 16 points, with blankets of 4 states."""
    torch.manual_seed(0)
    names = channel_names(LEVELS)
    autoencoder = AutoencoderConfig(
        in_channels=len(names),
        lat_channels=6,
        shape=(8, 16),
        resize=4,
        patch_size=(4, 4),
        hid_channels=(12,),
        hid_blocks=(1,),
        halo=1,
    )
    backbone = BackboneConfig(
        in_channels=6,
        blanket_size=4,
        shape=(2, 4),
        patch_size=(2, 1, 2),
        mod_features=8,
        hid_channels=16,
        hid_blocks=1,
        attention_heads=2,
    )
    card = tiny_card(
        name="small",
        grid=GridCard(name="small", kind="gaussian", nlat=8, nlon=16),
        levels=LEVELS,
        channels=names,
        autoencoder=autoencoder,
        backbone=backbone,
        latent_shape=autoencoder.latent_shape,
        **CLOSED_FORM,
        provenance={"test_periods": [["2021-03-01", "2021-04-01"]]},
    )
    statistics = {
        "state_mean": 100 + 10 * torch.randn(len(names)),
        "state_std": 1 + torch.rand(len(names)),
        "latent_mean": torch.randn(6),
        "latent_std": 1 + torch.rand(6),
    }
    land = torch.zeros(8, 16)
    land[2:5, 3:9] = 1.0
    model = assemble(
        card,
        Autoencoder(autoencoder),
        Backbone(backbone),
        statistics,
        static={"land_sea_mask": land, "orography": 500 * land},
        base=ZonalGaussianPrior(4, card.latent_shape, 3, 2),
    )
    return model.eval().requires_grad_(False)


def true_states(model, first, count):
    """Random states (count, C, Y, X) by their hour; sea surface temperature is NaN on land."""
    hours = [int(first.timestamp()) // 3600 + i for i in range(count)]
    draws = [torch.Generator().manual_seed(hour) for hour in hours]
    z = torch.stack([torch.randn(model.latent_shape, generator=draw) for draw in draws])
    return model.decode(z)


def write_truth(model, path, hours):
    """The states from FIRST on as a store in the layout of WeatherBench2."""
    states = true_states(model, FIRST, hours).numpy()
    names = [c.name for c in model.channels]
    grid = model.grid
    times = [np.datetime64((FIRST + timedelta(hours=i)).replace(tzinfo=None)) for i in range(hours)]
    store = xr.Dataset(
        coords={
            "time": np.array(times, dtype="datetime64[ns]"),
            "level": list(LEVELS),
            "latitude": grid.latitude,
            "longitude": grid.longitude,
        }
    )
    for variable in dict.fromkeys(c.variable for c in model.channels):
        if variable in names:
            field = states[:, names.index(variable)]
            store[variable] = ("time", "latitude", "longitude"), field
        else:
            field = np.stack([states[:, names.index(f"{variable}_{p}hPa")] for p in LEVELS], axis=1)
            store[variable] = ("time", "level", "latitude", "longitude"), field
    store.to_netcdf(path)
