"""From states to a CF-1.11 dataset: the only place where a result gets its CF form.

Dimensions are realization, time, air_pressure, latitude, longitude. Every quantity is one variable
under its short name; `<name>_mean` and `<name>_spread` are the ensemble mean and standard
deviation. See https://cfconventions.org/Data/cf-conventions/cf-conventions-1.11/
"""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from model.domain.variables import Variable
from model.ensemble_spread import Twins
from worker.outputs.attributes import global_attributes
from worker.outputs.bitround import METHOD, round_field
from worker.outputs.coordinates import coordinates
from worker.outputs.fields import Field, fields, mean_and_spread
from worker.outputs.product import Product

__all__ = ["FILL", "round_dataset", "to_dataset"]

FILL = np.float32(9.969209968386869e36)
"""NetCDF's own fill value of float32."""

Float = NDArray[np.float32]

_LONG_NAMES = {
    "t2m": "2 metre temperature",
    "u10": "10 metre eastward wind",
    "v10": "10 metre northward wind",
    "msl": "mean sea level pressure",
    "sst": "sea surface temperature",
    "tp": "precipitation of the hour before",
    "t": "temperature",
    "u": "eastward wind",
    "v": "northward wind",
    "z": "geopotential",
    "q": "specific humidity",
}


def _attributes(variable: Variable) -> dict[str, Any]:
    return {
        "standard_name": variable.standard_name,
        "long_name": _LONG_NAMES.get(variable.short, variable.id.replace("_", " ")),
        "units": variable.units,
        **({"units_metadata": "temperature: on_scale"} if variable.units == "K" else {}),
        "cell_methods": "time: sum" if variable.id == "total_precipitation" else "time: point",
    }


def _encoding(product: Product, variable: Variable) -> dict[str, Any]:
    """Which scalar coordinates belong to the variable, and its fill value."""
    names = []
    if variable.height is not None:
        names.append(f"height_{variable.height:.0f}m")
    if product.job.kind == "forecast":
        names += ["forecast_reference_time", "forecast_period"]
    return {"coordinates": " ".join(names) or None, "_FillValue": FILL}


def _spread_attributes(variable: Variable, twins: Twins) -> dict[str, Any]:
    """What the sum of squares about the mean was divided by, and why if it is not M - 1."""
    found: dict[str, Any] = {"ensemble_divisor": np.float64(twins.divisor)}
    if twins.mirrored:
        found["comment"] = (
            "Members come in pairs of opposite perturbations, whose mean has no sampling error: the "
            "sum of squared deviations is divided by ensemble_divisor, not by members - 1."
        )
    if variable.units == "K":
        found["units_metadata"] = "temperature: difference"
    return found


def _variables(product: Product, field: Field) -> dict[str, xr.Variable]:
    """Members, mean and spread of one quantity, as far as they are asked for."""
    variable, wanted = field.variable, product.job.spec.fields
    level = () if variable.kind == "surface" else ("air_pressure",)
    dims = ("time", *level, "latitude", "longitude")
    base, encoding = _attributes(variable), _encoding(product, variable)
    if variable.nonnegative:
        base["clipped_cells"] = np.int64(field.clipped)
    found: dict[str, xr.Variable] = {}
    if wanted != "mean":
        found[variable.short] = xr.Variable(("realization", *dims), field.values, base, encoding)
    if wanted != "members":
        mean, spread = mean_and_spread(field.values, product.twins)
        for name, values, method in (
            ("mean", mean, "mean"),
            ("spread", spread, "standard_deviation"),
        ):
            if values is None:
                continue
            extra = {
                "long_name": f"{base['long_name']}: ensemble {name}",
                "cell_methods": f"{base['cell_methods']} realization: {method}",
            }
            if name == "spread":
                extra |= _spread_attributes(variable, product.twins)
            found[f"{variable.short}_{name}"] = xr.Variable(
                dims, values, {**base, **extra}, encoding
            )
    return found


def _seeds(product: Product) -> dict[str, xr.Variable]:
    seeds = product.provenance.get("seeds")
    if seeds is None or len(seeds) != product.members:
        return {}
    return {
        "member_seed": xr.Variable(
            "realization",
            np.asarray(seeds, dtype=np.int64),
            {"long_name": "seed of the random numbers of the member", "units": "1"},
            {"_FillValue": None, "coordinates": None},
        )
    }


def to_dataset(product: Product) -> xr.Dataset:
    """The product in CF form, at full float32 precision; humidity and precipitation at least 0.

    Raises:
        InvalidInput: If the channels are not those of a state.
    """
    data: dict[str, xr.Variable] = {}
    for field in fields(product):
        data.update(_variables(product, field))
    data.update(_seeds(product))
    dataset = xr.Dataset(data, coordinates(product), global_attributes(product))
    # Bounds and the window are no coordinates of the fields.
    apart = [
        n for n in dataset.coords if str(n).endswith(("_bnds", "_start", "_end", "cut_off_time"))
    ]
    return dataset.reset_coords(apart)


def _round(values: Float, scale: Float | None, leveled: bool) -> tuple[Float, dict[str, Any]]:
    axis = values.ndim - 3
    if not leveled:
        done = round_field(values, scale)
        bits, errors, rounded = [done.bits], [done.error], done.values
    else:
        rounded, bits, errors = np.empty_like(values), [], []
        for k in range(values.shape[axis]):
            index = (..., k, slice(None), slice(None))
            done = round_field(values[index], None if scale is None else scale[index])
            rounded[index] = done.values
            bits.append(done.bits)
            errors.append(done.error)
    notes = {
        "bit_rounding_keepbits": np.array(bits, dtype=np.int32),
        "bit_rounding_max_error": np.array(errors, dtype=np.float64),
    }
    return rounded, notes


def round_dataset(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with its fields bit-rounded level by level, and how much recorded with each."""
    rounded: dict[str, xr.Variable] = {}
    mirrored = dataset.attrs.get("mirrored_members") == "true"
    twins = Twins.of(range(dataset.sizes["realization"]), mirrored)
    for name, array in dataset.data_vars.items():
        if not {"latitude", "longitude"} <= set(array.dims):
            continue
        short = str(name).removesuffix("_mean")
        spread = dataset.get(f"{short}_spread")
        scale = None if spread is None or name == spread.name else spread.values
        if scale is None and "realization" in array.dims:
            scale = mean_and_spread(array.values, twins)[1]
        values, notes = _round(array.values, scale, "air_pressure" in array.dims)
        rounded[str(name)] = xr.Variable(
            array.dims, values, {**array.attrs, **notes}, array.encoding
        )
    return dataset.assign(rounded).assign_attrs(bit_rounding=METHOD)
