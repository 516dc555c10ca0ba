"""Run folders of the public layout: read as they are, imported, refused when inconsistent."""

import pickle

import pytest
import torch
import yaml
from checkpoint_parts import write_run, write_statistics

from model.checkpoints.bundle import load_checkpoint, save_checkpoint
from model.checkpoints.released import find_released, load_released
from model.domain.errors import CheckpointError
from model.domain.variables import LEVELS_ERA5_13

DATE = torch.tensor([[[2021, 3, 4, h] for h in range(6)]])


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path)
    return tmp_path


def edit(path, change):
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values))


def test_weights_statistics_and_sizes_come_from_the_folders(tmp_path):
    autoencoder, backbone, latents, statistics = write_run(tmp_path)
    model = load_checkpoint(tmp_path)
    assert model.blanket_size == 6
    assert model.card.levels == LEVELS_ERA5_13
    assert len(model.channels) == 71
    assert model.schedule.sigma_min == 1e-3  # written as text "1e-3" in YAML
    z = torch.randn(1, *model.latent_shape)
    restored = z * latents["std"].reshape(3, 1, 1) + latents["mean"].reshape(3, 1, 1)
    states = model.decode(z)
    standard = autoencoder.decode(restored)
    sst = float(statistics["sea_surface_temperature"].sel(statistic="mean"))
    scale = float(statistics["sea_surface_temperature"].sel(statistic="std"))
    assert torch.allclose(states[0, 4], standard[0, 4] * scale + sst, atol=1e-5)
    z500 = statistics["geopotential"].sel(level=500)
    channel = [c.name for c in model.channels].index("geopotential_500hPa")
    expected = standard[0, channel] * float(z500[1]) + float(z500[0])
    assert torch.allclose(states[0, channel], expected, atol=1e-5)
    x, t = torch.randn(1, 6, *model.latent_shape), torch.tensor(0.3)
    with torch.no_grad():
        assert torch.equal(model.denoise.backbone(x, t, DATE), backbone(x, t, DATE))


def test_import_gives_an_equal_bundle(run, tmp_path):
    model = load_released(run, name="imported", licence="MIT")
    save_checkpoint(model, tmp_path / "bundle")
    loaded = load_checkpoint(tmp_path / "bundle")
    x = torch.randn(1, 6, *model.latent_shape)
    sigma = torch.tensor(2.0)
    assert loaded.card.licence == "MIT"
    assert torch.equal(loaded.denoise(x, sigma, DATE), model.denoise(x, sigma, DATE))
    assert torch.equal(loaded.decode(x), model.decode(x))


def test_best_is_preferred_and_last_can_be_asked_for(run):
    part = find_released(run)
    weights = torch.load(part.denoiser / "model_best.pth", weights_only=True)
    weights["in_proj.bias"] = weights["in_proj.bias"] + 1
    torch.save(weights, part.denoiser / "model_last.pth")
    best = load_released(run).denoise.backbone.in_proj.bias
    last = load_released(run, weights="last").denoise.backbone.in_proj.bias
    assert torch.allclose(best + 1, last)


def test_all_levels_of_the_statistics_when_the_run_uses_them(tmp_path):
    levels = (10, *LEVELS_ERA5_13)
    write_run(tmp_path, levels=levels)
    write_statistics(tmp_path / "stats_era5.zarr", levels)
    assert load_released(tmp_path).card.levels == levels


def test_code_in_a_pickle_does_not_run(run):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    path = find_released(run).autoencoder / "model_best.pth"
    path.write_bytes(pickle.dumps({"a": Bomb()}))
    with pytest.raises(CheckpointError, match="without running code"):
        load_released(run)


def test_two_denoisers_need_a_choice(run):
    first = find_released(run).denoiser
    second = first.parent / "run2"
    second.mkdir()
    for name in ("config.yaml", "model_best.pth"):
        (second / name).write_bytes((first / name).read_bytes())
    with pytest.raises(CheckpointError, match="one denoiser .*run2"):
        load_released(run)
    assert find_released(run, denoiser=first).denoiser == first


@pytest.mark.parametrize(
    ("part", "section", "key", "value", "text"),
    [
        ("autoencoder", "ae", "hid_channels", [4, 6, 10], "shape"),
        ("autoencoder", "ae", "lat_channels", 4, "shape"),
        ("autoencoder", "ae", "hid_blocks", [1, 1, 1], "missing"),
        ("autoencoder", "ae", "mystery", 3, "known settings .* mystery"),
        ("autoencoder", "ae", "name", "ico7to3", "icosahedral"),
        ("autoencoder", "ae", "periodic", True, "not carried"),
        ("autoencoder", "train", "sub_pressure_levels", "no", "channels for the levels|71"),
        ("denoiser", "backbone", "hid_blocks", 3, "missing"),
        ("denoiser", "backbone", "window_size", [3, 3, 3], "not carried"),
        ("denoiser", "backbone", "arch", "graph", "'vit'"),
        ("denoiser", "train", "blanket_size", 8, "in_proj.weight"),
        ("denoiser", "train", "sigma_min", "small", "train.sigma_min"),
    ],
)
def test_configs_that_do_not_fit_the_weights_are_refused(run, part, section, key, value, text):
    folder = getattr(find_released(run), part)
    edit(folder / "config.yaml", lambda c: c[section].update({key: value}))
    if key == "sub_pressure_levels":
        # Neither true nor false: both readings are tried, and 13 levels give the 71 channels.
        assert len(load_released(run).channels) == 71
        return
    with pytest.raises(CheckpointError, match=text):
        load_released(run)


def test_an_unknown_setting_can_be_declared_harmless(run):
    path = find_released(run).autoencoder / "config.yaml"
    edit(path, lambda c: c["ae"].update(mystery=3))
    assert load_released(run, ignore=frozenset({"mystery"})).blanket_size == 6


def test_statistics_that_lack_a_level_are_refused(run):
    write_statistics(run / "stats_era5.zarr", LEVELS_ERA5_13[1:])
    with pytest.raises(CheckpointError, match="temperature_50hPa"):
        load_released(run)


def test_latent_statistics_of_another_size_are_refused(run):
    path = find_released(run).latent_statistics
    torch.save({"mean": torch.zeros(4), "std": torch.ones(4)}, path)
    with pytest.raises(CheckpointError, match=r"'std' with shape \(3,\)"):
        load_released(run)


def test_an_empty_folder_is_explained(tmp_path):
    with pytest.raises(CheckpointError, match="card.yaml"):
        load_checkpoint(tmp_path)
