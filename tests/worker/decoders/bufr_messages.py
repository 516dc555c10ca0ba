"""BUFR messages made by hand for tests: eccodes writes them, the values are chosen here."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lab.encoders.message import MessageTemplate, build_message
from worker.observations.decoders.base import DecodeContext, Decoded, MessageLimits
from worker.observations.decoders.bufr.decode import decode_bytes

TIME = np.datetime64("2026-03-01T06:00:00")
WHEN = {
    "#1#year": 2026,
    "#1#month": 3,
    "#1#day": 1,
    "#1#hour": 6,
    "#1#minute": 0,
}
CONTEXT = DecodeContext(batch_id="test", received_time=datetime(2026, 3, 1, 6, 30, tzinfo=UTC))


def message(descriptors, category, columns, *, subsets=1, counts=None, when=WHEN, **options):
    """Bytes of one message; `columns` by eccodes key with rank."""
    template = MessageTemplate(
        tuple(descriptors), category, options.pop("subcategory", 0), counts or {}
    )
    return build_message(template, {**when, **columns}, subsets, TIME, **options)


def synop(**columns):
    """A land station (307080) at 50 N 10 E, 100 m; keys without rank mean the first."""
    place = {
        "blockNumber": 10,
        "stationNumber": 384,
        "latitude": 50.0,
        "longitude": 10.0,
        "heightOfStationGroundAboveMeanSeaLevel": 100.0,
    }
    ranked = {k if k.startswith("#") else f"#1#{k}": v for k, v in {**place, **columns}.items()}
    return message((307_080,), 0, ranked, counts={"": (0, 0)})


def sonde(levels, **columns):
    """An ascent (309052); `levels` is a list of dictionaries of eccodes keys without rank."""
    ranked = {f"#1#{k}": v for k, v in columns.items()}
    for number, level in enumerate(levels, start=1):
        ranked |= {f"#{number}#{key}": value for key, value in level.items()}
    place = {"#1#blockNumber": 10, "#1#stationNumber": 384, "#1#latitude": 50.0,
             "#1#longitude": 10.0, "#1#second": 0}  # fmt: skip
    return message(
        (309_052,), 2, {**place, **ranked}, counts={"extended": (len(levels),), "": (0,)},
        subcategory=4,
    )  # fmt: skip


def decode(data: bytes, file_name: str = "", limits: MessageLimits | None = None) -> Decoded:
    """What our decoder makes of the bytes, in this process."""
    context = CONTEXT
    if limits is not None:
        context = DecodeContext("test", CONTEXT.received_time, limits)
    return decode_bytes(data, context, file_name)


def values(table: pa.Table, variable: str) -> list[float]:
    """Values of a variable in the order of the table."""
    return table.filter(pc.equal(table["variable"], variable))["obs_value"].to_pylist()


def value(table: pa.Table, variable: str) -> float:
    """The only value of a variable."""
    found = values(table, variable)
    assert len(found) == 1, (variable, found)
    return found[0]


def row(table: pa.Table, variable: str) -> dict:
    """The only row of a variable."""
    found = table.filter(pc.equal(table["variable"], variable)).to_pylist()
    assert len(found) == 1, (variable, found)
    return found[0]
