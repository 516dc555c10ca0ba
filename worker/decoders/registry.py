"""The formats a file may come in: one line each, most telling signature first."""

from model.domain.registry import Registry
from worker.decoders.base import FileFormat
from worker.decoders.sniff import (
    is_bufr,
    is_csv,
    is_geojson,
    is_grib,
    is_netcdf,
    is_odb2,
    is_parquet,
)

__all__ = ["FORMATS"]

_FORMATS = (
    FileFormat(
        "parquet",
        "the observation table, or an earth2studio observation frame, as Parquet",
        "worker.decoders.table:decode_parquet",
        is_parquet,
        (".parquet", ".pq"),
    ),
    FileFormat(
        "odb2",
        "ODB-2 with the usual @hdr and @body columns",
        "worker.decoders.odb:decode_odb",
        is_odb2,
        (".odb", ".odb2"),
    ),
    FileFormat(
        "ioda-netcdf",
        "IODA-style NetCDF: MetaData, ObsValue, ObsError, PreQC",
        "worker.decoders.ioda:decode_ioda",
        is_netcdf,
        (".nc", ".nc4"),
    ),
    FileFormat(
        "geojson",
        "GeoJSON points with one or more observed values",
        "worker.decoders.geojson:decode_geojson",
        is_geojson,
        (".geojson", ".json"),
    ),
    FileFormat(
        "bufr",
        "WMO BUFR editions 2 to 4, bulletins included",
        "worker.decoders.bufr.decode:decode_bufr",
        is_bufr,
        (".bufr", ".bufr4", ".bfr", ".buf", ".bin"),
    ),
    FileFormat(
        "grib",
        "GRIB 1 and 2 fields used as observations",
        "worker.decoders.grib:decode_grib",
        is_grib,
        (".grib", ".grib1", ".grib2", ".grb", ".grb2"),
    ),
    FileFormat(
        "csv",
        "the observation table, or an earth2studio observation frame, as CSV",
        "worker.decoders.table:decode_csv",
        is_csv,
        (".csv",),
    ),
)
FORMATS: Registry[FileFormat] = Registry("format", **{f.name: f for f in _FORMATS})
