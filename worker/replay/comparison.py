"""Compare the files of a result with those of its replay, bit by bit, and state the verdict."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.domain.errors import AppaError
from worker.backgrounds.restarts import RESTART_NAME, read_restart

__all__ = [
    "ArrayComparison",
    "COMPARED",
    "CannotReplay",
    "EXIT_CODES",
    "InputComparison",
    "ReplayOutcome",
    "ReplayVerdict",
    "compare_files",
]


class ReplayOutcome(StrEnum):
    """Whether a replay gave the same result."""

    IDENTICAL = "identical"
    DIFFERENT = "different"
    IMPOSSIBLE = "cannot be replayed"


EXIT_CODES = {ReplayOutcome.IDENTICAL: 0, ReplayOutcome.DIFFERENT: 1, ReplayOutcome.IMPOSSIBLE: 2}


@dataclass(frozen=True)
class InputComparison:
    """An input of the result, as recorded and as found by the replay.

    Attributes:
        name: `checkpoint`, `code`, `observations` …
        same: Whether both agree; None when nothing was recorded.
        recorded: Value in the manifest.
        found: Value found now, or used by the replay.
        note: An explanation of the values, if needed.
    """

    name: str
    same: bool | None
    recorded: Any = ""
    found: Any = ""
    note: str = ""


@dataclass(frozen=True)
class ArrayComparison:
    """The comparison of one array of one file.

    Attributes:
        file: Name of the file.
        name: Name of the variable or column.
        size: Number of values.
        differing: Number of values whose bits differ; all if the shapes differ.
        max_difference: Largest absolute difference of numbers; None if not applicable.
    """

    file: str
    name: str
    size: int
    differing: int
    max_difference: float | None = None

    @property
    def same(self) -> bool:
        """Return whether all bits of the array agree."""
        return self.differing == 0


@dataclass(frozen=True)
class ReplayVerdict:
    """The outcome of a replay, with all comparisons.

    Attributes:
        analysis_id: The result that was replayed.
        outcome: Identical, different, or impossible to replay.
        findings: Comparisons of the inputs.
        arrays: Comparisons of the files.
        missing: Inputs that are gone, one sentence each.
        seconds: Duration of the second run.
    """

    analysis_id: str
    outcome: ReplayOutcome
    findings: tuple[InputComparison, ...] = ()
    arrays: tuple[ArrayComparison, ...] = ()
    missing: tuple[str, ...] = ()
    seconds: float = 0.0
    exit_code: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "exit_code", EXIT_CODES[self.outcome])

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON types."""
        return asdict(self)


class CannotReplay(AppaError):
    """An input of the result is gone.

    Attributes:
        missing: The inputs that are gone, one sentence each.
        findings: Comparisons of the inputs that are there.
    """

    code = "cannot_replay"

    def __init__(self, missing: list[str], findings: list[InputComparison]) -> None:
        super().__init__("; ".join(missing))
        self.missing = missing
        self.findings = findings


COMPARED = (".safetensors", ".nc", ".parquet")
"""Suffixes of the files that are compared; other files hold the same numbers in other formats."""


def compare_files(recorded: Path, found: Path) -> list[ArrayComparison]:
    """Return the comparison of every array of two files of the same name."""
    if recorded.name == RESTART_NAME:
        read = _restart
    elif recorded.suffix == ".nc":
        read = _netcdf
    else:
        read = _parquet
    one, other = dict(read(recorded)), dict(read(found))
    names = [*one, *(name for name in other if name not in one)]
    return [_compare(recorded.name, name, one.get(name), other.get(name)) for name in names]


def _restart(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    restart = read_restart(path)
    yield "latents", restart.latents.numpy()
    yield "times", np.array([time.isoformat() for time in restart.times])


def _netcdf(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    with netCDF4.Dataset(path) as dataset:
        dataset.set_auto_maskandscale(False)
        yield from _variables(dataset, "")


def _variables(group: Any, prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, variable in group.variables.items():
        variable.set_auto_maskandscale(False)
        yield f"{prefix}{name}", np.asarray(variable[...])
    for name, inner in group.groups.items():
        yield from _variables(inner, f"{prefix}{name}/")


def _parquet(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    table = pq.read_table(path)
    for name in table.column_names:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(pa.string())
        if pa.types.is_floating(column.type):
            yield name, column.to_numpy()  # null is NaN
        else:
            yield name, np.array(column.to_pylist(), dtype=object).astype(str)


def _compare(
    file: str, name: str, one: NDArray[Any] | None, other: NDArray[Any] | None
) -> ArrayComparison:
    if (
        one is None
        or other is None
        or one.shape != other.shape
        or one.dtype.kind != other.dtype.kind
    ):
        size = max(array.size for array in (one, other) if array is not None)
        return ArrayComparison(file, name, size, max(size, 1))
    if one.dtype != other.dtype or one.dtype.kind not in "fiu":
        return ArrayComparison(file, name, one.size, int((one != other).sum()))
    differing = int((_bits(one) != _bits(other)).sum())
    return ArrayComparison(file, name, one.size, differing, _largest(one, other))


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """Return the numbers as unsigned integers of the same size: NaN equals NaN, 0 is not -0."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def _largest(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    if not one.size:
        return None
    difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
    finite = difference[np.isfinite(difference)]
    return float(finite.max()) if finite.size else None
