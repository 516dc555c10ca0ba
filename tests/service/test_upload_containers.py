"""Formats are told by their first bytes, whatever the file is called."""

import io
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.domain.errors import DecodeError
from worker.observations.formats import recognise


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), sink)
    return sink.getvalue()


def archive() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("BUFR", b"BUFR" * 100)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"BUFR\x00\x00\x60\x04", "bufr"),
        (b"\x01\r\r\n123\r\r\nISMD02 EDZW 010000\r\r\nBUFR\x00\x00\x60\x04\x80\xff", "bufr"),
        (b"GRIB\x00\x00\x00\x02", "grib"),
        (b"\x00" * 100 + b"GRIB\x00\x00\x00\x02", "grib"),
        (b"\x89HDF\r\n\x1a\n\x00", "ioda-netcdf"),
        (b"CDF\x01\x00\x00", "ioda-netcdf"),
        (parquet(), "parquet"),
        (b"\xff\xffODA\x00\x01", "odb2"),
        (b'{"type": "FeatureCollection", "features": []}', "geojson"),
        (b"\xef\xbb\xbftime,lat,lon,variable,obs_value\n", "csv"),
        ("time,lat,lon,name\n2025-01-01,1,2,Zürich".encode()[:-4], "csv"),
        (b"hello, world", None),
        (b"\x89PNG\r\n\x1a\n....BUFR", None),
        (b"\x1f\x8b\x08\x00BUFR", "archive"),
        (archive(), "archive"),
        (b'{"kind": "filtering"}', None),
        (b"\x00" * 64, None),
        # a mark at the first byte counts whatever follows, later ones need an edition
        (b"BUFR\xff\xff\xff\xff", "bufr"),
        (b"\x00BUFR\xff\xff\xff\xff", None),
        (b"\x00GRIB\xff\xff\xff\x03", None),
        (b"\x00GRIB\x00\x00\x00\x02BUFR\x00\x00\x00\x04", "grib"),
        # text that speaks of BUFR is text
        (b"BUFR_id,time,lat,lon\n", "csv"),
        # pictures, programs and pages are refused whatever they contain
        (b"\x7fELF\x00BUFR\x00\x00\x00\x04", None),
        (b"GIF89a\x00GRIB\x00\x00\x00\x02", None),
        (b"<!DOCTYPE html><title>time, lat</title>", None),
        (b"7z\xbc\xaf\x27\x1c", None),
        # text is UTF-8 without control bytes, and a header is the first line
        (b"time,lat,lon,name\n2025-01-01,1,2,Z\xfcrich and more", None),
        (b"time,lat,lon\n\x00", None),
        (b"\ntime,lat,lon\n", None),
        (b'\xef\xbb\xbf \n{"type": "Feature", "geometry": null}', "geojson"),
        (b'{"Features": "time, lat"}', None),
    ],
)
def test_formats_are_recognised_by_first_bytes(head: bytes, name: str | None) -> None:
    try:
        found = recognise(head).name
    except DecodeError:
        found = None
    assert found == name
