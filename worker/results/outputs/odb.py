"""Write the feedback as ODB-2, ECMWF's format for observations, with the columns of its feedback.

Numbers of variables are ECMWF's varno (https://codes.ecmwf.int/odb/varno/), observation types its
obstype; our own flags and names are in columns of the table `appa`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyodc
from numpy.typing import NDArray
from pyodc.constants import DataType

from model.domain.errors import StorageError
from model.domain.observations import QC_FLAGS
from worker.observations.columns import codes, numbers, times
from worker.observations.lexicons import OBSTYPE, VARNO, VERTCO
from worker.results.outputs.feedback import checked_feedback
from worker.results.outputs.formats import product_file, put_file
from worker.results.outputs.product import Product, Written

__all__ = ["feedback_frame", "write"]

ACTIVE, PASSIVE, REJECTED, BLOCKED = 1, 2, 4, 8

_NUMBERS = {
    "lat@hdr": "lat",
    "lon@hdr": "lon",
    "stalt@hdr": "elevation",
    "vertco_reference_1@body": "vertical",
    "vertco_reference_2@body": "vertical_top",
    "obsvalue@body": "obs_value",
    "fg_depar@body": "background_departure",
    "an_depar@body": "analysis_departure",
    "final_obs_error@errstat": "obs_error",
    "fg_error@errstat": "background_spread",
    "hofx_background@appa": "hofx_background",
    "hofx_analysis@appa": "hofx_analysis",
    "analysis_spread@appa": "analysis_spread",
    "rank@appa": "rank",
}
_TEXTS = {
    "statid@hdr": "station_id",
    "report_type@appa": "report_type",
    "variable@appa": "variable",
    "rejected_by@appa": "rejected_by",
    "batch_id@appa": "batch_id",
}


def _texts(table: pa.Table, column: str) -> NDArray[Any]:
    code, names = codes(table, column)
    return np.array([*names, ""], dtype=object)[code]


def _coded(table: pa.Table, column: str, numbers_of: Mapping[str, int]) -> NDArray[np.int64]:
    code, names = codes(table, column)
    return np.array([*(numbers_of.get(name, 0) for name in names), 0], dtype=np.int64)[code]


def _status(table: pa.Table) -> NDArray[np.int64]:
    """datum_status: active, passive (monitored or withheld), rejected or on the block list."""
    found = {name: REJECTED for name in QC_FLAGS}
    found.update(passive=PASSIVE, withheld=PASSIVE, blocklist=BLOCKED)
    status = _coded(table, "rejected_by", found)
    return np.where(status == 0, ACTIVE, status)


def feedback_frame(table: pa.Table) -> pd.DataFrame:
    """The feedback with the columns of ODB, one row for each value."""
    moment = pd.DatetimeIndex(times(table).astype("datetime64[ns]")).round("s")
    columns: dict[str, Any] = {
        "seqno@hdr": np.arange(len(table), dtype=np.int64),
        "obstype@hdr": _coded(table, "report_type", OBSTYPE),
        "date@hdr": (moment.year * 10000 + moment.month * 100 + moment.day).to_numpy(np.int64),
        "time@hdr": (moment.hour * 10000 + moment.minute * 100 + moment.second).to_numpy(np.int64),
        "varno@body": _coded(table, "variable", VARNO),
        "vertco_type@body": _coded(table, "vertical_kind", VERTCO),
        "datum_status@body": _status(table),
        "qc_flag@appa": numbers(table, "qc_flag").astype(np.int64),
        "observation_id@appa": numbers(table, "observation_id").astype(np.int64),
    }
    columns |= {name: numbers(table, column) for name, column in _NUMBERS.items()}
    columns |= {name: _texts(table, column) for name, column in _TEXTS.items()}
    return pd.DataFrame(columns)


def _write(frame: pd.DataFrame, path: Path) -> None:
    types = {name: DataType.DOUBLE for name in _NUMBERS}
    types |= {name: DataType.STRING for name in _TEXTS}
    with path.open("wb") as stream:
        pyodc.encode_odb(frame, stream, types=types)


def _check(frame: pd.DataFrame, path: Path) -> None:
    with path.open("rb") as stream:  # given a name, pyodc leaves the file open
        found = pyodc.read_odb(stream, single=True)
    for name in frame.columns:
        a, b = frame[name].to_numpy(), found[name].to_numpy()
        same = (
            np.array_equal(a.astype(str), b.astype(str))
            if name in _TEXTS
            else np.array_equal(a.astype(float), b.astype(float), equal_nan=True)
        )
        if not same:
            raise StorageError(f"Expected the feedback as written; column '{name}' differs.")


def write(product: Product, folder: Path) -> Written:
    """One ODB-2 file; nothing when no observation is in the window (ODB-2 has no empty file)."""
    if product.window is None or not len(product.feedback):
        return []
    frame = feedback_frame(checked_feedback(product.feedback))
    path = product_file(product, folder, "odb", "obsfb")
    return [(put_file(path, partial(_write, frame), partial(_check, frame)), "feedback")]
