"""Gather observation rows into reports, and encode reports as one BUFR message with eccodes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import eccodes
import numpy as np
import pyarrow as pa

from model.domain.errors import InvalidInput
from worker.observations.units import wind_direction

__all__ = [
    "MessageTemplate",
    "ReportTable",
    "build_message",
    "calendar",
    "gather",
    "reported_direction",
]


@dataclass(frozen=True)
class ReportTable:
    """Reports with their values side by side.

    Attributes:
        station_id, platform: Texts, N each.
        time: datetime64[s], (N,).
        lat, lon, elevation: (N,); elevation NaN where unknown.
        vertical: Pa or m, (N,), NaN at the surface.
        values: By variable, (N,), NaN where not observed.
        profile: Number that reports of one ascent share, (N,).
    """

    station_id: np.ndarray
    platform: np.ndarray
    time: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    elevation: np.ndarray
    vertical: np.ndarray
    values: dict[str, np.ndarray]
    profile: np.ndarray

    def __len__(self) -> int:
        return len(self.time)

    def get(self, variable: str) -> np.ndarray:
        """Return values of a variable, NaN where absent."""
        return self.values.get(variable, np.full(len(self), np.nan))

    def take(self, index: np.ndarray) -> "ReportTable":
        """Return the reports at some places, in their order."""
        own = {k: v[index] for k, v in vars(self).items() if k != "values"}
        return ReportTable(**own, values={k: v[index] for k, v in self.values.items()})


def gather(table: pa.Table) -> ReportTable:
    """Return reports of a table, in the order of their first rows.

    Rows with the same station, time, position and level are one report; of several values of a
    variable the first counts.
    """
    column = {name: table[name].combine_chunks() for name in table.column_names}
    station = column["station_id"].cast(pa.string()).to_numpy(zero_copy_only=False)
    platform = column["platform"].cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False)
    time = column["time"].cast(pa.int64()).to_numpy() // 1_000_000_000
    lat, lon = column["lat"].to_numpy(), column["lon"].to_numpy()
    vertical = column["vertical"].to_numpy(zero_copy_only=False).astype(np.float64)
    ascent = column["profile_id"].fill_null(-1).to_numpy()
    names, codes = np.unique(station.astype(str), return_inverse=True)
    keys = np.rec.fromarrays([codes, time, lat, lon, np.nan_to_num(vertical, nan=-1.0), ascent])
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    report, lead = order[inverse], np.sort(first)
    variable = column["variable"].cast(pa.string()).to_numpy(zero_copy_only=False)
    value = column["obs_value"].to_numpy(zero_copy_only=False)
    values = {}
    for name in np.unique(variable.astype(str)):
        rows = np.flatnonzero(variable == name)[::-1]
        values[str(name)] = found = np.full(len(lead), np.nan)
        found[report[rows]] = value[rows]
    elevation = column["elevation"].to_numpy(zero_copy_only=False).astype(np.float64)
    return ReportTable(
        station[lead],
        platform[lead],
        time[lead].astype("datetime64[s]"),
        lat[lead],
        lon[lead],
        elevation[lead],
        vertical[lead],
        values,
        ascent[lead],
    )


def reported_direction(u: np.ndarray, v: np.ndarray, decimals: int = 0) -> np.ndarray:
    """Return the direction the wind comes from in rounded degrees: 360 for north, 0 for calm alone."""
    exact = wind_direction(u, v)
    rounded = np.round(exact, decimals)
    return np.where((rounded == 0.0) & (exact > 0.0), 360.0, rounded)


_MASTER_TABLES = 36


@dataclass(frozen=True)
class MessageTemplate:
    """Descriptors and counts of a message.

    Attributes:
        descriptors: Unexpanded descriptors.
        category, subcategory: Data category (table A) and its international split (table C-13).
        counts: Delayed replication counts by their width: "short" (1 bit), "" (8), "extended" (16).
    """

    descriptors: tuple[int, ...]
    category: int
    subcategory: int
    counts: Mapping[str, Sequence[int]]


def calendar(time: np.ndarray, rank: int = 1) -> dict[str, np.ndarray]:
    """Return the keys of a date group from datetime64 values, (N,)."""
    time = time.astype("datetime64[s]")
    day = time.astype("datetime64[D]")
    month = time.astype("datetime64[M]")
    seconds = (time - day).astype(np.int64)
    return {
        f"#{rank}#year": time.astype("datetime64[Y]").astype(np.int64) + 1970,
        f"#{rank}#month": month.astype(np.int64) % 12 + 1,
        f"#{rank}#day": (day - month.astype("datetime64[D]")).astype(np.int64) + 1,
        f"#{rank}#hour": seconds // 3600,
        f"#{rank}#minute": seconds // 60 % 60,
        f"#{rank}#second": seconds % 60,
    }


def build_message(
    template: MessageTemplate,
    columns: Mapping[str, np.ndarray | list[str] | float | str],
    subsets: int,
    time: np.datetime64,
    compressed: bool = True,
    update_sequence: int = 0,
) -> bytes:
    """Return the bytes of an edition-4 message.

    Arguments:
        template: Descriptors and counts.
        columns: By eccodes key with rank (`#1#airTemperature`): arrays of `subsets`, NaN where
            missing, or one value for all. Keys that the template lacks are an error; keys that no
            column names stay missing.
        subsets: Number of reports.
        time: Typical time of section 1.
        compressed: Whether several reports are compressed; one never is.
        update_sequence: Of section 1; 0 for an original message.

    Raises:
        InvalidInput: If a value does not fit into its element.
    """
    handle = eccodes.codes_bufr_new_from_samples("BUFR4")
    try:
        _describe(handle, template, subsets, time, compressed and subsets > 1, update_sequence)
        ragged = subsets > 1 and not compressed
        occurrences = _occurrences(handle, subsets) if ragged else {}
        for key, values in columns.items():
            try:
                if ragged:
                    _set_each(handle, key, values, subsets, occurrences)
                else:
                    _set(handle, key, values, subsets)
            except eccodes.CodesInternalError as error:
                raise InvalidInput(
                    f"Expected values that fit the element '{key}'; {error}.", key=key
                ) from error
        try:
            eccodes.codes_set(handle, "pack", 1)
        except eccodes.CodesInternalError as error:
            raise InvalidInput(f"Expected values that fit their elements; {error}.") from error
        return bytes(eccodes.codes_get_message(handle))
    finally:
        eccodes.codes_release(handle)


def _describe(
    handle: int,
    template: MessageTemplate,
    subsets: int,
    time: np.datetime64,
    compressed: bool,
    update_sequence: int,
) -> None:
    header = {
        "edition": 4,
        "masterTablesVersionNumber": _MASTER_TABLES,
        "localTablesVersionNumber": 0,
        "dataCategory": template.category,
        "internationalDataSubCategory": template.subcategory,
        "updateSequenceNumber": update_sequence,
        "observedData": 1,
        "compressedData": int(compressed),
        "numberOfSubsets": subsets,
    }
    moment = calendar(np.array([time]))
    for name in ("year", "month", "day", "hour", "minute", "second"):
        header[f"typical{name.capitalize()}"] = int(moment[f"#1#{name}"][0])
    for key, value in header.items():
        eccodes.codes_set(handle, key, value)
    for width, counts in template.counts.items():
        if len(counts):
            key = f"input{width.capitalize()}DelayedDescriptorReplicationFactor"
            # Uncompressed reports each have their own counts.
            each = list(counts) * (1 if compressed else subsets)
            eccodes.codes_set_array(handle, key, each)
    eccodes.codes_set_array(handle, "unexpandedDescriptors", list(template.descriptors))


def _set(handle: int, key: str, values: np.ndarray | list[str] | float | str, subsets: int) -> None:
    if isinstance(values, str):
        values = [values] * subsets
    if isinstance(values, list):
        if subsets == 1:
            eccodes.codes_set_string(handle, key, values[0])
        else:
            eccodes.codes_set_string_array(handle, key, values)
        return
    numbers = np.broadcast_to(np.asarray(values, dtype=np.float64), (subsets,))
    numbers = np.where(np.isnan(numbers), eccodes.CODES_MISSING_DOUBLE, numbers)
    if subsets == 1:
        eccodes.codes_set_double(handle, key, float(numbers[0]))
    else:
        eccodes.codes_set_double_array(handle, key, numbers)


def _set_each(
    handle: int,
    key: str,
    values: np.ndarray | list[str] | float | str,
    subsets: int,
    occurrences: Mapping[str, int],
) -> None:
    """Set an element of uncompressed reports, whose ranks continue from report to report."""
    _, rank, name = key.split("#")
    for number in range(subsets):
        one = values
        if isinstance(values, list):
            one = values[number]
        elif np.ndim(values):
            one = float(np.asarray(values)[number])
        _set(handle, f"#{int(rank) + number * occurrences[name]}#{name}", one, 1)


def _occurrences(handle: int, subsets: int) -> dict[str, int]:
    """Return how often each element occurs in one report."""
    counts: Counter[str] = Counter()
    iterator = eccodes.codes_bufr_keys_iterator_new(handle)
    try:
        while eccodes.codes_bufr_keys_iterator_next(iterator):
            key = eccodes.codes_bufr_keys_iterator_get_name(iterator)
            if key.startswith("#") and "->" not in key:
                counts[key.split("#")[2]] += 1
    finally:
        eccodes.codes_bufr_keys_iterator_delete(iterator)
    return {name: count // subsets for name, count in counts.items()}
