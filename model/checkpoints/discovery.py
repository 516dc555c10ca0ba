"""Find the parts of a training run in the folders that the authors' scripts write.

The layout, at any depth below one root:

    <statistics>.zarr                                  mean and std along a dimension `statistic`
    <masks>.zarr                                       other stores, left alone
    autoencoders/<run>/config.yaml                     section `ae`; with or without weights
    autoencoders/<run>/latents/<dump>/stats.pth        mean and std of each latent channel
    autoencoders/<run>/latents/<dump>/ae/              config.yaml and model.pth
    autoencoders/<run>/latents/<dump>/denoisers/<run>/ config.yaml, model_best.pth, model_last.pth

A dump is a training set encoded to latents. Folders without weights and stores without statistics are
left out. A denoiser was trained on the latents of the dump whose folder it lies in, encoded by that
dump's `ae`, so the denoiser determines the other parts unless they are given. If several candidates
remain, that is an error.

Static fields come from a file of ERA5: NetCDF, GRIB 1 or 2, and zarr (also in a zip file), on any
global rectilinear grid. Finer fields are averaged over the model's cells, coarser ones interpolated.
Surface geopotential becomes height by division by standard gravity; a percentage becomes a fraction.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import eccodes
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from zarr.storage import ZipStore

from model.domain.errors import CheckpointError, InvalidInput
from model.domain.files import read_yaml
from model.domain.grids import Grid
from model.domain.physics import GRAVITY
from model.domain.regrid import regrid_rows

__all__ = [
    "Candidate",
    "NAMES",
    "ReleasedRun",
    "find_released",
    "open_statistics",
    "read_static",
    "survey",
    "weights_file",
]

Float = NDArray[np.float64]

NAMES: Mapping[str, tuple[str, ...]] = {
    "orography": ("geopotential_at_surface", "z", "geopotential", "orog", "orography"),
    "land_sea_mask": ("land_sea_mask", "lsm", "sftlf"),
}
"""Names of each static field in files, the preferred one first."""

_LIMITS = {"orography": (-600.0, 9000.0), "land_sea_mask": (-0.01, 1.01)}
_UNITS = {"orography": "height in m or geopotential in m2 s-2", "land_sea_mask": "fraction or %"}
_GEOPOTENTIAL = {"m2s-2", "m^2s^-2", "m**2s**-2", "m2/s2", "m^2/s^2", "m**2/s**2"}
_LATITUDES, _LONGITUDES = ("latitude", "lat"), ("longitude", "lon")


@dataclass(frozen=True, eq=False)
class _Plane:
    """A field as read from a file: name and units of the file, values (n,) at points in degrees."""

    name: str
    units: str
    values: Float
    latitude: Float
    longitude: Float


def read_static(path: Path, grid: Grid) -> dict[str, Tensor]:
    """Read the static fields, orography and land-sea mask, from a file.

    Arguments:
        path: NetCDF, GRIB or zarr.
        grid: Grid of the model.

    Returns:
        `orography` in m and `land_sea_mask` as a fraction, or one of them, each with shape
        (nlat, nlon), latitude north to south, float32.

    Raises:
        InvalidInput: If the file is none of these, has neither field, or one does not cover the
            sphere or is out of range.
    """
    found: dict[str, _Plane] = {}
    for plane in _planes(path):
        ours = next(ours for ours, names in NAMES.items() if plane.name in names)
        other = found.get(ours)
        names = NAMES[ours]
        if other is None or names.index(plane.name) < names.index(other.name):
            found[ours] = plane
    if not found:
        wanted = "; ".join(f"{ours}: {', '.join(names)}" for ours, names in NAMES.items())
        raise InvalidInput(
            f"Expected a surface field in {path} ({wanted}); got none of them.", file=str(path)
        )
    return {ours: _on_grid(ours, plane, grid, path) for ours, plane in found.items()}


def _on_grid(ours: str, plane: _Plane, grid: Grid, path: Path) -> Tensor:
    values = _in_our_unit(ours, plane)
    longitude = np.round(plane.longitude % 360.0, 6) % 360.0
    latitude = np.round(plane.latitude, 6)
    rows, columns = np.unique(latitude), np.unique(longitude)
    if min(len(rows), len(columns)) < 2 or len(rows) * len(columns) > len(values):
        raise InvalidInput(
            f"Expected '{plane.name}' on rows of latitude and columns of longitude in {path}; got "
            f"{len(values)} points on {len(rows)} latitudes. Interpolate it to such a grid first.",
            file=str(path),
        )
    field = np.full((len(rows), len(columns)), np.nan)
    field[np.searchsorted(rows, latitude), np.searchsorted(columns, longitude)] = values
    result = regrid_rows(field, rows, columns, grid)
    low, high = _LIMITS[ours]
    # Written so that a missing value is out of range as well.
    outside = ~((result >= low) & (result <= high))
    if outside.any():
        raise InvalidInput(
            f"Expected {ours} ({_UNITS[ours]}) over the whole globe in {path}; '{plane.name}' "
            f"[{plane.units or 'no units'}] gives {float(result[outside][0]):g} in "
            f"{int(outside.sum())} of {result.size} cells, outside {low:g} to {high:g}.",
            file=str(path),
        )
    if ours == "land_sea_mask":
        result = np.clip(result, 0.0, 1.0)
    return torch.from_numpy(np.ascontiguousarray(result, dtype=np.float32))


def _in_our_unit(ours: str, plane: _Plane) -> Float:
    units = plane.units.replace(" ", "")
    if ours == "land_sea_mask":
        return plane.values / 100.0 if units == "%" else plane.values
    geopotential = units in _GEOPOTENTIAL or (not units and not plane.name.startswith("orog"))
    return plane.values / GRAVITY if geopotential else plane.values


def _planes(path: Path) -> Iterator[_Plane]:
    if path.is_dir() or path.suffix == ".zip":
        yield from _of_dataset(path, zarr=True)
        return
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"GRIB":
        yield from _of_grib(path)
    elif start[:3] == b"CDF" or start == b"\x89HDF":
        yield from _of_dataset(path, zarr=False)
    else:
        raise InvalidInput(
            f"Expected NetCDF, GRIB or zarr at {path}; it begins with {start!r}.", file=str(path)
        )


def _of_dataset(path: Path, *, zarr: bool) -> Iterator[_Plane]:
    try:
        if zarr:
            store = ZipStore(path, mode="r") if path.is_file() else path
            dataset = xr.open_zarr(store, chunks=None, consolidated=None, decode_times=False)
        else:
            dataset = xr.open_dataset(path, engine="netcdf4", chunks=None, decode_times=False)
    except (OSError, KeyError, ValueError) as error:
        raise InvalidInput(
            f"Expected NetCDF or zarr at {path}; {error}.", file=str(path)
        ) from error
    with dataset:
        lat = next((n for n in _LATITUDES if n in dataset.coords), None)
        lon = next((n for n in _LONGITUDES if n in dataset.coords), None)
        for name in (n for names in NAMES.values() for n in names if n in dataset):
            field = dataset[name]
            if "time" in field.dims:
                field = field.isel(time=0)
            field = field.squeeze(drop=True)
            if lat is None or lon is None or set(field.dims) != {lat, lon}:
                continue  # on levels: not a surface field
            j, i = np.meshgrid(dataset[lat].values, dataset[lon].values, indexing="ij")
            values = field.transpose(lat, lon).values
            points = (np.asarray(x, dtype=np.float64).ravel() for x in (values, j, i))
            yield _Plane(name, str(field.attrs.get("units", "")), *points)


def _of_grib(path: Path) -> Iterator[_Plane]:
    known = {n for names in NAMES.values() for n in names}
    with path.open("rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
            try:
                name = str(eccodes.codes_get(handle, "shortName"))
                if name in known and not eccodes.codes_get(handle, "typeOfLevel").startswith("iso"):
                    eccodes.codes_set(handle, "missingValue", -1e30)
                    arrays = (
                        np.asarray(eccodes.codes_get_array(handle, key), dtype=np.float64)
                        for key in ("values", "latitudes", "longitudes")
                    )
                    yield _Plane(name, str(eccodes.codes_get(handle, "units")), *arrays)
            finally:
                eccodes.codes_release(handle)


PARTS = ("autoencoder", "denoiser", "latent_statistics", "state_statistics")
_STORE_MARKS = {".zgroup", ".zmetadata", "zarr.json"}


@dataclass(frozen=True)
class Candidate:
    """A folder or file under the root that may be a part of a run.

    Attributes:
        part: Which part it may be: an attribute of `ReleasedRun`.
        path: Folder or file.
        reason: Why it is unusable or was not chosen; empty if it is usable or was chosen.
    """

    part: str
    path: Path
    reason: str = ""

    def as_dict(self) -> dict[str, str | bool]:
        """Return a JSON-serialisable dictionary."""
        return {
            "part": self.part,
            "path": str(self.path),
            "taken": not self.reason,
            "why": self.reason,
        }


@dataclass(frozen=True)
class ReleasedRun:
    """Where the parts of a run are.

    Attributes:
        autoencoder: Folder with `config.yaml` and the autoencoder's weights.
        denoiser: Folder with `config.yaml` and the backbone's weights.
        latent_statistics: The latents' `stats.pth`.
        state_statistics: The zarr store of ERA5 statistics.
        found: All candidates, each with the reason if it was not chosen.
    """

    autoencoder: Path
    denoiser: Path
    latent_statistics: Path
    state_statistics: Path
    found: tuple[Candidate, ...] = ()


def find_released(root: Path, **chosen: Path | None) -> ReleasedRun:
    """Find the parts of a run under `root`.

    Arguments:
        root: A folder that holds the run's folders at any depth.
        chosen: Parts (attributes of `ReleasedRun`) that are given instead of looked for.

    Raises:
        CheckpointError: If a part is not there, or there are several candidates.
    """
    found = tuple(survey(root))
    usable = {part: [c.path for c in found if c.part == part and not c.reason] for part in PARTS}
    parts = {part: path for part, path in chosen.items() if path is not None}
    for part in PARTS:
        if part not in parts and not usable[part]:
            raise _undecided(root, part, found)
    for part in ("denoiser", "latent_statistics", "autoencoder", "state_statistics"):
        if part not in parts:
            candidates = _belonging(part, usable[part], parts)
            if len(candidates) != 1:
                raise _undecided(root, part, found)
            parts[part] = candidates[0]
    return ReleasedRun(**parts, found=tuple(_taken(c, parts) for c in found))


def _belonging(part: str, candidates: list[Path], parts: Mapping[str, Path]) -> list[Path]:
    """Return the candidates that belong to the parts already chosen; all of them if none does."""
    if part == "latent_statistics":
        above = [c for c in candidates if c.parent in parts["denoiser"].parents]
        return _deepest(above) or candidates
    if part == "autoencoder":
        dump = parts["latent_statistics"].parent
        if dump / "ae" in candidates:
            return [dump / "ae"]
        return _deepest([c for c in candidates if c in dump.parents]) or candidates
    return candidates


def _deepest(paths: list[Path]) -> list[Path]:
    return sorted(paths, key=lambda p: len(p.parts))[-1:]


def _taken(candidate: Candidate, parts: Mapping[str, Path]) -> Candidate:
    chosen = parts[candidate.part]
    if candidate.reason or candidate.path == chosen:
        return candidate
    return replace(candidate, reason=f"{chosen} was taken")


def _undecided(root: Path, part: str, found: tuple[Candidate, ...]) -> CheckpointError:
    mine = [c for c in found if c.part == part]
    listed = ", ".join(str(c.path) for c in mine if not c.reason) or "none"
    unusable = ", ".join(f"{c.path} ({c.reason})" for c in mine if c.reason)
    passed = f"; left out: {unusable}" if unusable else ""
    return CheckpointError(
        f"Expected one {part.replace('_', ' ')} under {root} (or a card.yaml in it); found "
        f"{listed}{passed}. Name the one to use with --{part.replace('_', '-')}.",
        file=str(root),
        part=part,
        option=f"--{part.replace('_', '-')}",
        found=[str(c.path) for c in mine if not c.reason],
    )


def survey(root: Path) -> Iterator[Candidate]:
    """Yield all candidates for parts of a run under `root`, in the order of paths."""
    for folder, names in _folders(root):
        if folder.suffix == ".zarr" or _STORE_MARKS & set(names):
            yield Candidate("state_statistics", folder, _why_no_statistics(folder))
            continue
        if "stats.pth" in names:
            yield Candidate("latent_statistics", folder / "stats.pth")
        if "config.yaml" not in names:
            continue
        weighted = any(n.startswith("model") and n.endswith(".pth") for n in names)
        part = _part(folder / "config.yaml", strict=weighted)
        if part is not None:
            yield Candidate(part, folder, "" if weighted else "no weights (model*.pth)")


def _part(config: Path, *, strict: bool) -> str | None:
    try:
        sections = read_yaml(config, CheckpointError)
    except CheckpointError:
        if strict:
            raise
        return None
    return "denoiser" if "backbone" in sections else "autoencoder" if "ae" in sections else None


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    for folder, below, names in os.walk(root):
        path = Path(folder)
        if path.suffix == ".zarr" or _STORE_MARKS & set(names):
            below.clear()
        below.sort()
        yield path, names


def _why_no_statistics(store: Path) -> str:
    try:
        with open_statistics(store) as dataset:
            return "" if "statistic" in dataset.dims else "no dimension 'statistic'"
    except CheckpointError as error:
        return f"unreadable: {error.message}"


def open_statistics(path: Path) -> xr.Dataset:
    """Open a zarr store without reading its arrays.

    Raises:
        CheckpointError: If there is no readable zarr store.
    """
    try:
        dataset: xr.Dataset = xr.open_zarr(path, consolidated=None, chunks=None)
        return dataset
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"Expected a zarr store of statistics at {path}; {error}.", file=str(path)
        ) from error


def weights_file(folder: Path, weights: str | None, *, option: str) -> Path:
    """Return the file of weights in a run's folder.

    Arguments:
        folder: Of the autoencoder or the denoiser.
        weights: `best`, `last` or `model`; None takes the first that is there of `model_best.pth`,
            `model.pth` and `model_last.pth`.
        option: Command-line option that chooses the weights, for the error message.

    Raises:
        CheckpointError: If there is none, or not the one that was asked for.
    """
    names = {"best": "model_best.pth", "model": "model.pth", "last": "model_last.pth"}
    there = {key: folder / name for key, name in names.items() if (folder / name).is_file()}
    if not there:
        raise CheckpointError(
            f"Expected weights in {folder}: one of {', '.join(names.values())}; there are none.",
            file=str(folder),
        )
    if weights is None:
        return next(iter(there.values()))
    if weights not in there:
        raise CheckpointError(
            f"Expected the weights '{weights}' in {folder}; got {', '.join(there)}. Choose one of "
            f"these with {option}.",
            file=str(folder),
            option=option,
            found=list(there),
        )
    return there[weights]
