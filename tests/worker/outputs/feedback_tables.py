"""Feedback tables with known counts: sondes, stations, a duplicate, rejected and late values."""

import numpy as np
import pyarrow as pa

from model.domain.observations import FEEDBACK_SCHEMA, QC_FLAGS, validate_table
from tests.worker.tables import make_table
from worker.observations.columns import float_column, set_column


def _departures(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    count = len(table)
    value = float_column(table, "obs_value")
    background = value - rng.normal(0, 1, count)
    analysis = value - rng.normal(0, 0.5, count)
    columns = {
        "obs_bias": np.full(count, None),
        "hofx_background": background,
        "hofx_analysis": analysis,
        "background_departure": value - background,
        "analysis_departure": value - analysis,
        "background_spread": rng.uniform(0.5, 1, count),
        "analysis_spread": rng.uniform(0.2, 0.5, count),
        "rank": rng.integers(0, 5, count),
    }
    for name, values in columns.items():
        kind = FEEDBACK_SCHEMA.field(name).type
        table = table.append_column(FEEDBACK_SCHEMA.field(name), pa.array(values).cast(kind))
    return table


def _sondes(stations: int, rng: np.random.Generator) -> list[pa.Table]:
    levels = np.array([92500.0, 85000, 70000, 50000, 30000, 20000])
    lat, lon = rng.uniform(-60, 70, stations), rng.uniform(-180, 180, stations)
    count = stations * len(levels)
    found = []
    for variable, value in (("temperature", 260.0), ("u_component_of_wind", 12.0)):
        found.append(
            make_table(
                count,
                batch_id=f"sondes-{variable}",
                report_type="temp",
                station_id=np.repeat([f"0-20000-0-{i:05d}" for i in range(stations)], len(levels)),
                time=np.datetime64("2025-03-20T11:31:07", "ns"),
                lat=np.repeat(lat, len(levels)),
                lon=np.repeat(lon, len(levels)),
                elevation=120.0,
                vertical_kind="pressure",
                vertical=np.tile(levels, stations),
                variable=variable,
                obs_value=value + rng.normal(0, 3, count),
                obs_error=np.full(count, 1.0),
            )
        )
    return found


def make_feedback(stations: int = 40, sondes: int = 5, seed: int = 0) -> pa.Table:
    """`stations` + 1 surface values (one duplicate) and 12 values for each sonde; 4 rejected."""
    rng = np.random.default_rng(seed)
    surface = make_table(
        stations + 1,
        time=np.datetime64("2025-03-20T11:50", "ns"),
        station_id=[f"{i:05d}" for i in range(stations)] + ["00000"],
        lat=np.append(lat := rng.uniform(-75, 80, stations), lat[0]),
        lon=np.append(lon := rng.uniform(-180, 180, stations), lon[0]),
        obs_error=np.full(stations + 1, 1.5),
        obs_value=285 + rng.normal(0, 8, stations + 1),
    )
    table = pa.concat_tables([surface, *_sondes(sondes, rng)]).unify_dictionaries()
    names = np.full(len(table), None, dtype=object)
    names[[1, 2]] = "background_check"
    names[3] = "withheld"
    names[stations] = "duplicate"
    flags = np.array([0 if n is None else QC_FLAGS[n].number for n in names])
    table = set_column(table, "rejected_by", pa.array(names.tolist(), pa.string()))
    table = set_column(table, "qc_flag", flags)
    return validate_table(_departures(table, rng), FEEDBACK_SCHEMA)
