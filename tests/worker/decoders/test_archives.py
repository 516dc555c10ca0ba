"""Compressed files and archives: as if each file inside had been sent alone."""

import bz2
import errno
import gzip
import io
import lzma
import random
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from encoded_reports import write_file

from model.domain.errors import DecodeError
from model.domain.observations import validate_table
from tests.conftest import REPOSITORY
from tests.faults.full_disk import can_mount
from tests.worker.decoders.grib_messages import LAT, LON, message
from worker.observations.decoders import archive, table
from worker.observations.decoders.base import DecodeContext, FileBudget
from worker.observations.decoders.decode import decode_file, decode_limited
from worker.sandbox import Limits

CSV = (
    b"report_type,station_id,time,lat,lon,variable,obs_value\n"
    b"synop,10393,2026-01-02T12:00:00Z,52.2,14.1,2m_temperature,281.5\n"
)


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as folder:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            folder.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        folder.addfile(link)
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as folder:
        for name, data in files.items():
            folder.writestr(name, data)
    return out.getvalue()


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    "tar": lambda data: tar({"data/obs.csv": data}),
    "zip": lambda data: zipped({"data/obs.csv": data}),
    "tgz": lambda data: gzip.compress(tar({"data/obs.csv": data})),
}


@pytest.mark.parametrize("ending", PACKED)
def test_the_rows_of_the_file_inside(tmp_path, ending):
    path = tmp_path / f"obs.csv.{ending}"
    path.write_bytes(PACKED[ending](CSV))
    decoded = decode_file(path)
    validate_table(decoded.table)
    assert decoded.table["obs_value"].to_pylist() == [281.5]
    report = decoded.report
    assert report.format == "archive" and not report.rejected
    assert report.size == path.stat().st_size
    (name,) = report.members
    assert name.endswith("obs.csv") and report.members[name] == 1
    assert report.notes["files_csv"] == 1


def test_every_file_is_counted_by_its_name(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    bulletin = write_file(folder, "synop").read_bytes()
    path = tmp_path / "many.zip"
    files = {
        "a/obs.csv": CSV,
        "a/A_ISMD01EDZW021200CCA_C_EDZW_1.bufr": bulletin,
        "again.bufr": bulletin,
        "notes.txt": b"no observations here",
        "inner.tar.gz": gzip.compress(tar({"obs.csv": CSV})),
        "../../etc/odd\x07name.csv": CSV,
    }
    path.write_bytes(zipped(files))
    report = decode_file(path).report
    table = decode_file(path).table
    rows = report.members["again.bufr"]
    assert rows > 0 and report.members["a/A_ISMD01EDZW021200CCA_C_EDZW_1.bufr"] == rows
    assert report.members["a/obs.csv"] == report.members["obs.csv"] == 1
    assert report.members["notes.txt"] == 0
    assert report.rejected == {"unknown_format": 1}
    assert report.quarantined[0].detail.startswith("notes.txt: ")
    assert "../../etc/oddname.csv" in report.members
    assert report.rows == table.num_rows == 2 * rows + 3
    # The heading in the name of a file makes its reports corrections.
    corrected = [n for n in table["update_sequence"].to_pylist() if n == 1]
    assert len(corrected) == rows
    assert not (tmp_path.parent / "etc").exists()


def test_links_are_not_followed(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(tar({"obs.csv": CSV}))
    assert list(decode_file(path).report.members) == ["obs.csv"]


def test_options_of_the_files_by_format(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(zipped({"obs.csv": CSV.replace(b"obs_value", b"wert")}))
    options = {"csv": {"columns": {"wert": "obs_value"}}}
    decoded = decode_file(path, context=DecodeContext(options=options))
    assert decoded.table["obs_value"].to_pylist() == [281.5]
    wrong = decode_file(path, context=DecodeContext(options={"csv": {"colums": {}}}))
    assert wrong.report.rejected == {"invalid_table": 1}


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: gzip.compress(b"0" * 30_000_000, 9),
        lambda: zipped({f"{n}": b"\0" * 30_000_000 for n in range(10)}),
    ],
    ids=["gzip", "zip"],
)
def test_bombs_are_stopped_while_they_unpack(tmp_path, bomb, monkeypatch):
    monkeypatch.setattr(archive, "ALWAYS_ALLOWED_BYTES", 20_000_000)
    path = tmp_path / "bomb"
    path.write_bytes(bomb())
    report = decode_file(path).report
    assert report.rejected["too_large"] == 1
    assert "more came out" in report.quarantined[-1].detail
    assert report.rejected["unknown_format"] <= 1  # a file of zeros that was within the budget


def test_layers_and_numbers_are_bounded(tmp_path, monkeypatch):
    path = tmp_path / "deep.gz"
    data = CSV
    for _ in range(4):
        data = gzip.compress(data)
    path.write_bytes(data)
    assert decode_file(path).report.rejected == {"compressed_archive": 1}
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    path.write_bytes(zipped({f"{n}.csv": CSV for n in range(5)}))
    assert decode_file(path).report.rejected == {"too_large": 1}


@pytest.mark.parametrize("ending", PACKED)
def test_what_is_cut_off_has_a_reason(tmp_path, ending):
    whole = PACKED[ending](CSV * 50)
    path = tmp_path / f"x.{ending}"
    path.write_bytes(whole[: len(whole) // 2])
    report = decode_file(path).report
    assert report.rejected, report
    assert set(report.rejected) <= {"undecodable", "unknown_format", "invalid_table"}


@pytest.mark.parametrize("ending", PACKED)
def test_bytes_set_at_random_end_in_rows_or_a_reason(tmp_path, ending):
    draw = random.Random(5)
    whole = PACKED[ending](CSV * 20)
    path = tmp_path / f"x.{ending}"
    for _ in range(25):
        broken = bytearray(whole)
        for _ in range(4):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        path.write_bytes(bytes(broken))
        report = decode_file(path).report
        assert report.rows or report.rejected


def test_an_encrypted_zip_says_so(tmp_path):
    blob = bytearray(zipped({"obs.csv": CSV}))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = blob.find(mark) + at
        (flags,) = struct.unpack_from("<H", blob, place)
        struct.pack_into("<H", blob, place, flags | 1)
    path = tmp_path / "x.zip"
    path.write_bytes(bytes(blob))
    report = decode_file(path).report
    assert report.rejected == {"undecodable": 1}
    assert "encrypted" in report.quarantined[0].detail


def test_empty_archives(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(zipped({}))
    assert decode_file(path).report.rejected == {"empty_file": 1}


def test_a_limited_child_unpacks_too(tmp_path):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(tar({f"{n}.csv": CSV for n in range(3)})))
    decoded = decode_limited(path, limits=Limits(cpu_seconds=20))
    assert decoded.report.rows == 3
    assert decoded.table["observation_id"].to_pylist() == [0, 1, 2]


def test_messages_to_skip_belong_to_one_file(tmp_path):
    """The mark of a message tells its file, so that a crash costs that message alone."""
    bulletin = write_file(tmp_path, "synop").read_bytes()
    path = tmp_path / "x.zip"
    path.write_bytes(zipped({"a.bufr": bulletin, "b.bufr": bulletin}))
    marks = []
    whole = decode_file(path, context=DecodeContext(mark=marks.append))
    second = [m for m in marks if m >> 40 == 2]
    assert len(second) == len(marks) / 2 > 1
    skip = {second[-1]: "crashed"}
    report = decode_file(path, context=DecodeContext(skip=skip)).report
    assert report.rejected == {"crashed": 1}
    assert report.members["a.bufr"] == whole.report.members["a.bufr"]
    assert report.members["b.bufr"] < whole.report.members["b.bufr"]


_ON_A_SMALL_DISK = """
import sys
import pytest
from model.domain.errors import StorageError
from worker.observations.decoders.decode import decode_limited
from worker.sandbox import Limits
path, folder = sys.argv[1:]
with pytest.raises(StorageError, match="the disk is full"):
    decode_limited(path, limits=Limits(temp_dir=folder))
"""


@pytest.mark.skipif(not can_mount(), reason="file systems cannot be mounted here")
@pytest.mark.parametrize("ending", ["gz", "tar", "tgz", "zip"])
def test_no_room_to_unpack_is_not_the_files_fault(tmp_path, ending):
    path, small = tmp_path / f"obs.{ending}", tmp_path / "small"
    small.mkdir()
    path.write_bytes(PACKED[ending](CSV + CSV.splitlines(keepends=True)[1] * 100_000))
    mounted = f'mount -t tmpfs -o size=4m none {small} && exec "$@"'
    program = [sys.executable, "-c", _ON_A_SMALL_DISK, str(path), str(small)]
    command = ["unshare", "-m", "sh", "-c", mounted, "-", *program]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_a_failing_device_under_a_member_is_not_the_files_fault(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "obs.gz"
    path.write_bytes(gzip.compress(CSV))
    monkeypatch.setattr(table.pacsv, "read_csv", fail)
    with pytest.raises(DecodeError, match="Input/output error"):
        decode_file(path)


@pytest.mark.parametrize("pack", [tar, zipped])
def test_files_of_an_archive_share_the_values_of_one_file(tmp_path, monkeypatch, pack):
    """Constant fields take no bytes for their values, and files of them little in an archive."""
    values = np.full((len(LAT), len(LON)), 250.0)
    size = values.size
    monkeypatch.setattr(FileBudget, "FLAT", 3 * size)
    monkeypatch.setattr(FileBudget, "PER_BYTE", 0)
    path = tmp_path / "fields"
    constant = message(values)
    path.write_bytes(pack({f"{n}.grib": constant for n in range(5)} | {"obs.csv": CSV}))
    report = decode_file(path).report
    assert report.members["2.grib"] > 0
    assert report.rejected == {"too_large": 2}
    assert report.quarantined[0].detail.startswith(f"3.grib: Expected at most {3 * size} values")
    assert report.members["obs.csv"] == 1  # holds no more than its bytes say
