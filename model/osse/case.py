"""A few days of simulated truth in one small file, shipped beside the weights.

Values are rounded to a fraction of their channel's standard deviation, far below the errors of any
observation, and stored as hourly differences, which are small integers and compress well.
"""

import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from numcodecs import BitRound, Blosc, Delta, FixedScaleOffset

from model.domain.variables import VARIABLES
from model.training.datasets import STATIC_NAMES

__all__ = ["CASE_NAME", "write_case"]

CASE_NAME = "osse_case.zarr.zip"
"""File name within a checkpoint bundle."""

STEPS_PER_STD = 100.0
"""Quantisation: 100 steps per standard deviation leave a standardised RMSE of 0.003."""

MANTISSA_BITS = 7
"""Kept of humidity and rain, whose errors are fractions of their value (0.4 % at most)."""


def write_case(
    source: xr.Dataset, variables: Sequence[str], levels: Sequence[int], path: Path
) -> None:
    """Writes all times of `source` to a zarr store in a zip file.

    Arguments:
        source: A WeatherBench2-layout dataset, cut to the times wanted.
        variables: Ids of the variables to keep; static fields are kept too.
        levels: Pressure levels in hPa.
        path: Of the file; replaced atomically.
    """
    dataset = source[[*variables, *(n for n, _ in STATIC_NAMES.values() if n in source)]]
    dataset = dataset.sel(level=list(levels)).load()
    encoding = {}
    for name in variables:
        # Time runs fastest, so that differences along the stored array are hourly changes.
        dataset[name] = dataset[name].transpose(..., "time")
        encoding[name] = _encoding(dataset[name])
    for variable in dataset.variables.values():
        variable.encoding.clear()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        dataset.to_zarr(f"{folder}/store", zarr_format=2, encoding=encoding, consolidated=False)
        # Already compressed: the zip is only a container.
        with zipfile.ZipFile(f"{folder}/zip", "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(Path(folder, "store").rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(Path(folder, "store")))
        Path(folder, "zip").replace(path)


def _encoding(array: xr.DataArray) -> dict[str, object]:
    values = array.values
    chunks = tuple(1 if d == "level" else n for d, n in zip(array.dims, array.shape, strict=True))
    compressor = Blosc("zstd", clevel=7, shuffle=Blosc.BITSHUFFLE)
    if np.isnan(values).any():
        # Undefined on land, and slow: plain compression suffices.
        return {"chunks": chunks, "compressors": (compressor,)}
    if VARIABLES[str(array.name)].nonnegative:
        filters = [BitRound(MANTISSA_BITS)]
        return {"chunks": chunks, "compressors": (compressor,), "filters": filters}
    # One step per variable: the level of least variance decides.
    axes = tuple(i for i, d in enumerate(array.dims) if d != "level")
    step = float(np.min(values.astype(np.float64).std(axis=axes))) / STEPS_PER_STD
    offset = float(np.round(values.mean() / step) * step)
    filters = [
        FixedScaleOffset(offset=offset, scale=1 / step, dtype="f4", astype="i4"),
        Delta(dtype="i4"),
    ]
    return {"chunks": chunks, "compressors": (compressor,), "filters": filters}
