"""States as they are drawn: read once, ahead, within bounds, by one process or two alike."""

import multiprocessing
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import xarray as xr
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry, known_implementations

from benchmarks.denoiser_flops import CONFIGS
from deploy.commands.train import read_config
from lab.tiny_model import LEVELS as TINY_LEVELS
from lab.tiny_model import tiny_model
from lab.training.datasets import ChannelStatistics, StateStore, build_cache
from lab.training.export import unpack_bundle
from lab.training.loop import prefetched
from lab.training.streaming import StateStream, batch_positions
from lab.training.train_autoencoder import AutoencoderTraining, train_autoencoder
from lab.training.train_denoiser import DenoiserTraining, Latents, train_denoiser
from model.autoencoder import Autoencoder, AutoencoderConfig
from model.backbone import BackboneConfig
from model.checkpoints.bundle import save_checkpoint
from model.domain.errors import ConfigurationError
from model.domain.grids import Grid
from model.domain.variables import channels
from model.nn.convolution import ResidualBlock
from tests.model.training.tiny_runs import denoiser_training

GRID = Grid("tiny", "gaussian", 8, 16)
LEVELS = (500, 850)
HOURS = 72


class CountedFiles(LocalFileSystem):
    """Local files that tell what was read of them."""

    protocol = "counted"
    reads: Counter = Counter()
    size = 0
    lock = threading.Lock()

    def cat_file(self, path, start=None, end=None, **kwargs):
        content = super().cat_file(path, start=start, end=end, **kwargs)
        with self.lock:
            type(self).reads[Path(path).parent.name] += 1
            type(self).size += len(content)
        return content


fsspec.register_implementation("counted", CountedFiles, clobber=True)


def write_store(path: Path, grid: Grid, levels=LEVELS, hours=HOURS) -> Path:
    """Write waves that travel, a chunk an hour with a level more than is asked for."""
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    clock = np.arange(hours)[:, None, None]
    data: dict[str, list] = {}
    for number, channel in enumerate(channels((*levels, 925))):
        wave = np.cos(lat) * np.sin((1 + number % 3) * lon - 0.1 * number - clock / (4 + number))
        data.setdefault(channel.variable, []).append((280 + number + wave).astype(np.float32))
    variables, encoding = {}, {}
    for name, fields in data.items():
        single = len(fields) == 1
        dims = (
            ("time", "latitude", "longitude")
            if single
            else ("time", "level", "latitude", "longitude")
        )
        variables[name] = dims, fields[0] if single else np.stack(fields, 1)
        encoding[name] = {"chunks": (1, *variables[name][1].shape[1:]), "compressors": None}
    times = np.datetime64("2000-01-01", "ns") + np.arange(hours).astype("timedelta64[h]")
    coords = {"time": times, "level": [*levels, 925]}
    coords |= {"latitude": grid.latitude, "longitude": grid.longitude}
    xr.Dataset(variables, coords).to_zarr(path, zarr_format=2, encoding=encoding, consolidated=True)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("store") / "states.zarr", GRID)


def training(store, cache, grid=GRID, levels=LEVELS, **changes) -> AutoencoderTraining:
    optimisation = {
        "steps": 4,
        "batch": 4,
        "accumulate": 2,
        "precision": "float32",
        "warmup": 2,
        "log_every": 100,
        "learning_rate": 1e-3,
    }
    return AutoencoderTraining.model_validate(
        {
            "data": {
                "store": str(store),
                "cache": str(cache),
                "grid": {
                    "name": grid.name,
                    "kind": grid.kind,
                    "nlat": grid.nlat,
                    "nlon": grid.nlon,
                },
                "levels": levels,
                "every_hours": 1,
                "sample_states": 3,
                "splits": {
                    "train": {"start": "2000-01-01", "end": "2000-01-03"},
                    "validation": {"start": "2000-01-03", "end": "2000-01-04"},
                    "test": {"start": "2000-01-04", "end": "2000-01-05"},
                    "gap_days": 0,
                },
            },
            "autoencoder": {
                "in_channels": len(channels(levels)),
                "lat_channels": 6,
                "shape": grid.shape,
                "resize": 4,
                "patch_size": (4, 4),
                "hid_channels": (12,),
                "hid_blocks": (1,),
                "halo": 1,
            },
            "optimisation": optimisation | changes,
        }
    )


def averaged(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.pt", weights_only=True)["parts"][1]


def test_every_epoch_deals_each_state_once_to_one_rank():
    world, batch, count = 3, 4, 24
    orders = []
    for epoch in range(2):
        seen = [
            position
            for number in (2 * epoch, 2 * epoch + 1)
            for rank in range(world)
            for position in batch_positions(number, batch, count, 7, rank, world)
        ]
        assert sorted(seen) == list(range(count))
        orders.append(seen)
    assert orders[0] != orders[1]
    assert (
        batch_positions(5, batch, count, 7, 1, world).tolist()
        == batch_positions(5, batch, count, 7, 1, world).tolist()
    )


def test_reading_ahead_keeps_the_order_and_no_more_than_it_may():
    begun, given, peak = [], 0, 0

    def read(key):
        begun.append(key)
        return key

    for number, value in enumerate(prefetched(read, range(20), ahead=3)):
        given += 1
        assert value == number
        peak = max(peak, len(begun) - given)
    assert given == 20 and peak <= 3
    begun.clear()
    stopped = prefetched(read, range(100), ahead=2)
    next(stopped)
    stopped.close()
    assert len(begun) <= 3

    def fail(key):
        raise OSError(f"gone: {key}")

    with pytest.raises(OSError, match="gone: 0"):
        list(prefetched(fail, range(3)))


def test_training_reads_what_it_draws_and_caches_nothing(store, tmp_path):
    config = training(f"counted://{store}", tmp_path / "cache")
    CountedFiles.reads.clear()
    CountedFiles.size = 0
    train_autoencoder(config, tmp_path / "run")
    # Statistics and components: 3 states each; the loss: 1; 4 steps of 2 x 4 states.
    states = 3 + 3 + 1 + 4 * 2 * 4
    stored = sum(3 * 4 * 8 * 16 for _ in range(5)) + 6 * 4 * 8 * 16
    assert states * stored <= CountedFiles.size < states * stored * 1.02 + 20_000
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {"statistics.json"}
    # The same run from a local folder ends with the same weights.
    train_autoencoder(training(store, tmp_path / "cache"), tmp_path / "near")
    for name, value in averaged(tmp_path / "run").items():
        assert torch.equal(value, averaged(tmp_path / "near")[name]), name


def test_a_state_at_a_quarter_degree_takes_little_more_memory_than_itself(tmp_path):
    grid = Grid("quarter", "regular", 721, 1440)
    path = write_store(tmp_path / "quarter.zarr", grid, levels=(500,), hours=2)
    reader = StateStore(str(path), channels((500,)))
    one = np.ones(len(reader.channels))
    stream = StateStream(reader, ChannelStatistics(("",), 280 * one, one), np.arange(2))
    size = 4 * len(reader.channels) * 721 * 1440
    tracemalloc.start()
    try:
        states = stream.read(np.array([1]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert states.nbytes == size and states.shape[0] == 1
    # Raw, standardised, and of one channel: the chunk of three levels, as stored and as taken.
    assert peak < 2 * size + 8 * size / len(reader.channels), peak / size


def work(rank: int, world: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    root, changes = Path(folder), {"batch": 4 // world, "save_minutes": 0.0}
    config = training(store, root / "cache", **changes)

    def stop(done: int, total: int) -> None:
        dist.barrier()  # what rank 0 has saved is what all have done
        if done == 2:
            raise InterruptedError

    train_autoencoder(config, root / "whole")
    with suppress(InterruptedError):
        train_autoencoder(config, root / "parts", stop)
    train_autoencoder(config, root / "parts")
    dist.barrier()
    train_denoiser(denoiser_training(config, root / "whole"), root / "denoiser")
    dist.destroy_process_group()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the ranks have it: sums over more threads differ in their last bits, which training enlarges."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_two_ranks_learn_what_one_process_of_twice_the_batch_does(store, tmp_path):
    alone = tmp_path / "alone"
    config = training(store, alone / "cache")
    train_autoencoder(config, alone / "whole")
    train_denoiser(denoiser_training(config, alone / "whole"), alone / "denoiser")
    both = tmp_path / "both"
    both.mkdir()
    multiprocessing.set_forkserver_preload(["torch.distributed", "lab.training.train_denoiser"])
    mp.start_processes(work, (2, str(store), str(both)), nprocs=2, start_method="forkserver")
    whole, parts, single = (averaged(f) for f in (both / "whole", both / "parts", alone / "whole"))
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name  # resumed exactly
        torch.testing.assert_close(value, single[name], rtol=1e-3, atol=2e-5, msg=name)
    # Both ranks encoded their share, of the autoencoder that they learned.
    folder = both / "whole" / "latents-train"
    assert {p.name for p in folder.iterdir()} == {"array.f16", "times.npy", "index.json"}
    once = alone / "again"
    once.mkdir()
    for name in ("config.yaml", "last.pt"):
        (once / name).write_bytes((both / "whole" / name).read_bytes())
    expected = Latents(config.data, once, 4, "train")
    found = Latents(config.data, both / "whole", 4, "train")
    np.testing.assert_array_equal(found.cache.times, expected.cache.times)
    np.testing.assert_array_equal(found.cache.array[:], expected.cache.array[:])
    assert (both / "denoiser" / "last.pt").exists()


def test_an_interrupted_cache_goes_on_with_what_it_lacks(tmp_path):
    times = np.datetime64("2000-01-01T00", "h") + np.arange(10)
    read = []

    def numbers(part, last=10):
        if part.start >= last:
            raise OSError("the network is down")
        read.append(part)
        return np.arange(part.start, part.stop, dtype=np.float32)[:, None]

    with pytest.raises(OSError, match="network"):
        build_cache(tmp_path / "c", times, (1,), 2, lambda part: numbers(part, 4))
    done = len(read)
    cache = build_cache(tmp_path / "c", times, (1,), 2, numbers)
    assert sorted({part.start for part in read}) == [0, 2, 4, 6, 8] and len(read) - done == 3
    np.testing.assert_array_equal(cache.array[:, 0], np.arange(10))
    np.testing.assert_array_equal(cache.times, times)
    assert build_cache(tmp_path / "c", times, (1,), 2, numbers) is not None
    assert len(read) - done == 3


def test_a_store_whose_package_is_missing_names_the_extra(monkeypatch):
    missing = {"class": "absent_package.FileSystem", "err": "Please install gcsfs"}
    monkeypatch.setitem(known_implementations, "gs", missing)
    monkeypatch.delitem(_registry, "gs", raising=False)
    with pytest.raises(ConfigurationError, match=r"gcsfs.*appa-service\[archives\]"):
        StateStore("gs://bucket/store.zarr", channels(LEVELS))


def test_blocks_that_are_computed_again_have_the_same_gradients(monkeypatch):
    torch.manual_seed(0)
    config = AutoencoderConfig(3, 2, (8, 16), 4, hid_channels=(4, 6, 8), hid_blocks=(1, 1, 1))
    model, calls = Autoencoder(config).double(), []
    plain = ResidualBlock._plain
    monkeypatch.setattr(ResidualBlock, "_plain", lambda s, x: (calls.append(1), plain(s, x))[1])
    x, found = torch.randn(2, 3, 8, 16, dtype=torch.float64), []
    for recompute in (False, True):
        model.recompute_blocks(recompute)
        calls.clear()
        model.zero_grad()
        model.decode(model.encode(x)).square().mean().backward()
        found.append(([p.grad.clone() for p in model.parameters()], len(calls)))
    assert (found[0][1], found[1][1]) == (6, 12)
    for kept, again in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(kept, again, rtol=1e-12, atol=1e-14)


def test_the_configurations_of_the_release_are_its_networks():
    autoencoder = read_config(AutoencoderTraining, "era5-0p25-autoencoder", [])
    denoiser = read_config(DenoiserTraining, "era5-0p25-denoiser", ["data.store=/data/era5.zarr"])
    assert AutoencoderConfig(**autoencoder.autoencoder) == CONFIGS["released"][0]
    assert BackboneConfig(**denoiser.backbone) == CONFIGS["released"][1]
    assert denoiser.data.store == "/data/era5.zarr" and not denoiser.data.cached
    assert len(channels(autoencoder.data.levels)) == 71
    assert autoencoder.data.grid.build().latitude[0] == 90.0
    assert autoencoder.optimisation.rate(0) == denoiser.optimisation.rate(400_000) == 1.0


def test_fine_tuning_starts_from_the_weights_and_statistics_of_a_bundle(tmp_path):
    model = tiny_model()
    save_checkpoint(model, tmp_path / "bundle")
    card = model.card
    grid = Grid(card.grid.name, card.grid.kind, card.grid.nlat, card.grid.nlon)
    store = write_store(tmp_path / "states.zarr", grid, TINY_LEVELS)
    changes = {"steps": 1, "learning_rate": 0.0, "ema_decay": 0.0}
    config = training(store, tmp_path / "unused", grid, TINY_LEVELS, **changes)
    tuning = tmp_path / "tuning"
    paths = unpack_bundle(
        str(tmp_path / "bundle"), tuning, config, denoiser_training(config, tuning)
    )
    first = read_config(AutoencoderTraining, str(paths[0]), [])
    second = read_config(DenoiserTraining, str(paths[1]), [])
    train_autoencoder(first, tmp_path / "autoencoder")
    train_denoiser(second, tmp_path / "denoiser")
    for run, module in (("autoencoder", model.autoencoder), ("denoiser", model.denoise.backbone)):
        for name, value in module.state_dict().items():
            torch.testing.assert_close(averaged(tmp_path / run)[f"module.{name}"], value)
    latents, scaling = second.latents("train"), model.latent_normalisation
    torch.testing.assert_close(latents.mean, scaling.mean.flatten())
    torch.testing.assert_close(latents.scale, scaling.std.flatten())
    statistics = first.data.statistics(first.data.open())
    np.testing.assert_allclose(statistics.std, model.state_normalisation.std.flatten())
    with pytest.raises(ConfigurationError, match="does not exist"):
        unpack_bundle(str(tmp_path / "bundle"), tuning, config, second)
