"""Bulletins in text, decoded as they come from the GTS: with CR CR LF, and a list of two stations."""

from datetime import UTC, datetime
from pathlib import Path

from model.domain.observations import validate_table
from worker.observations.decoders.base import DecodeContext, Decoded
from worker.observations.decoders.decode import decode_file

ARRIVAL = datetime(2026, 1, 17, 12, 40, tzinfo=UTC)
STATIONS = {
    "10384": {"lat": 52.47, "lon": 13.4, "elevation": 48.0, "barometer": 49.0},
    "10393": {"lat": 52.21, "lon": 14.12, "elevation": 112.0},
}


def decode(folder: Path, text: str, name="bulletin", received=ARRIVAL, **options) -> Decoded:
    """Decode a file with this text."""
    path = folder / name
    path.write_bytes(text.replace("\n", "\r\r\n").encode("ascii"))
    context = DecodeContext(received_time=received, options={"stations": STATIONS, **options})
    decoded = decode_file(path, context=context)
    assert decoded.report.format == "text"
    validate_table(decoded.table)
    return decoded


def values(decoded: Decoded, station: str | None = None) -> dict:
    """Return the values by variable and level."""
    return {
        (r["variable"], r["vertical"]) if r["vertical"] is not None else r["variable"]: r[
            "obs_value"
        ]
        for r in decoded.table.to_pylist()
        if station in (None, r["station_id"])
    }
