"""Compressed messages read as arrays: what eccodes gives, report by report, gaps and texts included."""

import subprocess
import sys

import eccodes
import numpy as np
import pytest
from bufr_messages import decode, message, values

from model.domain.errors import DecodeError
from worker.observations.decoders.base import MessageLimits
from worker.observations.decoders.bufr import message as module
from worker.observations.decoders.bufr.framing import read_header, scan
from worker.observations.decoders.bufr.message import Unpacker
from worker.observations.decoders.bufr.template import Template

PLACE = {"#1#latitude": 50.0, "#1#longitude": 1.0}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(Unpacker, "_templates", {})


@pytest.fixture
def by_eccodes(monkeypatch):
    """A decoder that learns nothing about compressed messages."""

    def run(data):
        with monkeypatch.context() as patch:
            patch.setattr(Unpacker, "_templates", {})
            patch.setattr(Template, "wants_compressed", lambda self: False)
            return decode(data)

    return run


def random_ships(rng, subsets, layers=0):
    """Reports with constant, missing, partly missing and varying elements, and texts of any length."""

    def column(low, high, digits):
        kind = rng.integers(4)
        found = rng.uniform(low, high, subsets).round(digits)
        found[rng.random(subsets) < (0.0, 0.3, 1.0, 0.0)[kind]] = np.nan
        return np.full(subsets, found[0]) if kind == 3 else found

    names = ["".join(rng.choice(list("ABC019"), rng.integers(1, 9))) for _ in range(subsets)]
    columns = {
        "#1#shipOrMobileLandStationIdentifier": names
        if rng.random() < 0.8
        else [names[0]] * subsets,
        "#1#latitude": rng.uniform(-80, 80, subsets).round(2),
        "#1#longitude": rng.uniform(-170, 170, subsets).round(2),
        "#1#airTemperature": column(250, 300, 2),
        "#1#nonCoordinatePressure": column(9e4, 1.03e5, -1),
        "#1#windSpeed": column(0, 40, 1),
        "#1#windDirection": column(1, 360, 0),
        "#1#oceanographicWaterTemperature": column(272, 300, 2),
        "#1#horizontalVisibility": column(0, 9_000, -1),
    }
    return message((308_009,), 1, columns, subsets=subsets, counts={"": (layers,)})


def same(one, other):
    assert one.report.model_dump() == other.report.model_dump()
    for name in one.table.column_names:
        assert (
            one.table[name].to_pylist()
            == pytest.approx(other.table[name].to_pylist(), nan_ok=True, abs=0.0)
            if name in ("obs_value", "lat", "lon")
            else (one.table[name].to_pylist() == other.table[name].to_pylist())
        ), name


def test_random_messages_give_what_eccodes_gives(by_eccodes):
    rng = np.random.default_rng(5)
    data = b"".join(
        random_ships(rng, int(rng.integers(2, 40)), int(rng.integers(0, 3))) for _ in range(40)
    )
    same(decode(data), by_eccodes(data))


def test_known_layouts_are_read_without_eccodes(monkeypatch):
    rng = np.random.default_rng(6)
    messages = [random_ships(rng, 20) for _ in range(4)]
    decode(b"".join(messages[:3]))

    def never(*_):
        raise AssertionError("asked eccodes")

    monkeypatch.setattr(module.eccodes, "codes_get_double_array", never)
    assert decode(messages[3]).report.decoded == 1


def test_layouts_may_alternate():
    def ships(count, first):
        temperature = 270.0 + first + 0.5 * np.arange(6)
        columns = {**PLACE, "#1#airTemperature": temperature}
        return message((308_009,), 1, columns, subsets=6, counts={"": (count,)}), temperature

    given = [ships(k % 3, k) for k in range(15)]
    found = values(decode(b"".join(data for data, _ in given)).table, "2m_temperature")
    assert found == pytest.approx(np.concatenate([t for _, t in given]))


def test_hand_made_bits():
    """Two elements of 3 and 4 bits and a text of two characters, for three reports."""
    from worker.observations.decoders.bufr.compressed import CompressedPacking
    from worker.observations.decoders.bufr.packing import Packing

    packing = Packing(
        np.array([0, 3, 7]), np.array([3, 4, 0]), np.array([0.1, 1.0, 1.0]),
        np.array([-2.0, 0.0, 0.0]), np.array([True, True, False]), {}, 23,
    )  # fmt: skip
    layout = CompressedPacking(packing, (3, 4, 16), (False, False, True), {}, {1_011: 2})
    bits = (
        "101" + "000010" + "00" "01" "11"  # reference 5, two bits each: 5, 6, missing
        + "1111" + "000000"  # missing in all
        + "0" * 16 + "000001" + "01000001" "01000010" "00100000"  # A, B, blank
    )  # fmt: skip
    data = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    packed, texts = layout.read(data, 3)
    found = np.empty((3, 3))
    packed.fill(found)
    np.testing.assert_allclose(found[:, 0], [0.3, 0.4, np.nan])
    assert np.isnan(found[:, 1]).all()
    assert texts == {1_011: ["A", "B", ""]}
    assert layout.read(data[:-2], 3) is None


def test_a_message_that_ends_too_early_is_set_aside_as_eccodes_does(by_eccodes):
    rng = np.random.default_rng(7)
    good = [random_ships(rng, 12) for _ in range(5)]
    head = read_header(good[4])
    short = bytearray(good[4][: head.data_at + 40] + b"7777")
    short[4:7] = len(short).to_bytes(3, "big")
    short[head.data_at - 4 : head.data_at - 1] = (44).to_bytes(3, "big")
    data = b"".join(good[:4]) + bytes(short) + good[0]
    found, expected = decode(data), by_eccodes(data)
    assert found.report.decoded == expected.report.decoded == 5
    assert dict(found.report.rejected) == dict(expected.report.rejected)


def test_every_real_compressed_message_gives_what_eccodes_gives(realdata_dir, monkeypatch):
    compared = 0
    for path in sorted((realdata_dir / "bufr").rglob("*")):
        data = path.read_bytes() if path.is_file() and path.stat().st_size < 300_000 else b""
        for frame in scan(data):
            if not frame.reason:
                compared += _compare(data[frame.offset : frame.offset + frame.length])
    assert compared > 20


def _compare(data):
    """Reads a message by eccodes until it is learnt, then without it."""
    unpacker = Unpacker(MessageLimits())
    Unpacker._templates.clear()
    try:
        header = read_header(data)
        if not header.compressed:
            return 0
        (expected,) = unpacker.unpack(data, header)
        list(unpacker.unpack(data, header))
        (found,) = unpacker.unpack(data, header)
    except (DecodeError, eccodes.CodesInternalError):
        return 0
    if found.layout.compressed is None:
        return 0
    shown = found.layout.compressed.packing.widths > 0
    values = np.empty(expected.values.shape)
    found.compressed.fill(values)
    np.testing.assert_array_equal(values[:, shown], expected.values[:, shown])
    assert found.texts == expected.texts
    return 1


def test_decoding_needs_no_pandas(tmp_path):
    """44 MB in each process, which Arrow would take to see whether it is given one of its objects."""
    path = tmp_path / "ships.bufr"
    path.write_bytes(random_ships(np.random.default_rng(8), 12))
    code = (
        "import sys; from worker.observations.decoders.decode import decode_file; "
        f"assert len(decode_file({str(path)!r}).table); print('pandas' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
