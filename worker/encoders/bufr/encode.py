"""The entry of the encoder: rows of one network to BUFR messages."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.domain.registry import Registry
from worker.encoders.bufr.message import MessageTemplate, build_message
from worker.encoders.bufr.reports import ReportTable, gather
from worker.encoders.bufr.scatterometer import SCATTEROMETER, scatterometer
from worker.encoders.bufr.surface import (
    BUOY,
    DRIFTER,
    SHIP,
    SYNOP,
    drifter,
    moored_buoy,
    ship,
    synop,
)
from worker.encoders.bufr.upper_air import AIRCRAFT, AMV, aircraft, amv, sonde, sonde_template

__all__ = ["ENCODERS", "encode_bufr"]

_RADIOSONDE, _DROPSONDE = 4, 7


@dataclass(frozen=True)
class Encoder:
    """How a network is encoded: its template and the function that makes the columns."""

    template: MessageTemplate
    columns: Callable[[ReportTable], dict]


ENCODERS: Registry[Encoder] = Registry(
    "report type with a BUFR encoder",
    synop=Encoder(SYNOP, synop),
    ship=Encoder(SHIP, ship),
    buoy=Encoder(BUOY, moored_buoy),
    drifter=Encoder(DRIFTER, drifter),
    aircraft=Encoder(AIRCRAFT, aircraft),
    amv=Encoder(AMV, amv),
    scatterometer=Encoder(SCATTEROMETER, scatterometer),
    temp=Encoder(sonde_template(0, _RADIOSONDE), sonde),
    dropsonde=Encoder(sonde_template(0, _DROPSONDE), sonde),
)


def encode_bufr(
    table: pa.Table,
    report_type: str,
    reports_per_message: int = 100,
    compressed: bool = True,
    update_sequence: int = 0,
) -> bytes:
    """Messages of the rows of one network, one after another.

    Values are rounded as the templates prescribe (temperature 0.01 K, pressure 10 Pa, speed
    0.1 m/s, direction 1 degree). Variables that a network does not report are left out.

    Arguments:
        table: Rows in `OBSERVATION_SCHEMA`; those of other networks are ignored.
        report_type: One of `ENCODERS`.
        reports_per_message: 1 gives a message per report. An ascent is always one message.
        compressed: Whether messages of several reports are compressed.
        update_sequence: 0 for original messages, more for corrections.

    Raises:
        UnknownName: If there is no encoder for the network.
        InvalidInput: If a value does not fit into its element.
    """
    encoder = ENCODERS[report_type]
    reports = gather(table.filter(pc.equal(table["report_type"], report_type)))
    messages = []
    groups = (
        _ascents(reports) if encoder.columns is sonde else _chunks(reports, reports_per_message)
    )
    for group in groups:
        template, subsets = encoder.template, len(group)
        if encoder.columns is sonde:
            template, subsets = sonde_template(len(group), encoder.template.subcategory), 1
        messages.append(
            build_message(
                template,
                encoder.columns(group),
                subsets,
                group.time[0],
                compressed,
                update_sequence,
            )
        )
    return b"".join(messages)


def _chunks(reports: ReportTable, size: int) -> Iterator[ReportTable]:
    for start in range(0, len(reports), size):
        yield reports.take(np.arange(start, min(start + size, len(reports))))


def _ascents(reports: ReportTable) -> Iterator[ReportTable]:
    """Levels of each ascent, by decreasing pressure."""
    launched = np.where(reports.profile < 0, reports.time.astype(np.int64), 0)
    names, station = np.unique(reports.station_id.astype(str), return_inverse=True)
    keys = np.rec.fromarrays([reports.profile, launched, station])
    _, first, ascent = np.unique(keys, return_index=True, return_inverse=True)
    for number in np.argsort(first):
        index = np.flatnonzero(ascent == number)
        yield reports.take(index[np.argsort(-reports.vertical[index], kind="stable")])
