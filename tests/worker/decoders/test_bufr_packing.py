"""Reports read bit by bit: against hand-made bits, and against eccodes on real files."""

import eccodes
import numpy as np
import pytest
from bufr_messages import decode, message, synop, values

from model.domain.errors import DecodeError
from worker.observations.decoders.base import MessageLimits
from worker.observations.decoders.bufr.elements import TableVersion, elements_of
from worker.observations.decoders.bufr.framing import read_header, scan
from worker.observations.decoders.bufr.message import Unpacker
from worker.observations.decoders.bufr.packing import (
    describe_storage,
    gather_bits,
    make_packing,
    read_bits,
)


def test_numbers_of_any_width_at_any_bit():
    rng = np.random.default_rng(1)
    widths = np.array([1, 7, 8, 0, 13, 26, 32, 56])
    numbers = np.array(
        [[int(rng.integers(0, 1 << int(w))) if w else 0 for w in widths] for _ in range(9)]
    )
    places, bits, starts = [], "101", np.concatenate([[0], np.cumsum(widths)[:-1]])
    for line in numbers:
        places.append(len(bits) + starts)
        bits += "".join(f"{int(n):0{w}b}" if w else "" for n, w in zip(line, widths, strict=True))
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    buffer = np.frombuffer(data + b"\0" * 8, dtype=np.uint8)
    np.testing.assert_array_equal(
        gather_bits(buffer, np.array(places), widths), numbers.astype(np.uint64)
    )
    assert read_bits(data, int(places[3][4]), 13) == numbers[3][4]
    assert read_bits(b"\x00", 4, 8) == 255


def test_many_messages_of_one_layout_keep_their_values_and_gaps():
    given = [270.0 + 0.01 * k for k in range(60)]
    data = b"".join(
        synop(airTemperature=np.nan if k % 7 == 3 else t, stationNumber=k, windSpeed=0.1 * k,
              windDirection=180)
        for k, t in enumerate(given)
    )  # fmt: skip
    table = decode(data).table
    expected = [t for k, t in enumerate(given) if k % 7 != 3]
    assert values(table, "2m_temperature") == pytest.approx(expected, abs=1e-9)
    assert values(table, "10m_v_component_of_wind") == pytest.approx(
        [0.1 * k for k in range(60)], abs=1e-9
    )
    stations = list(dict.fromkeys(table["station_id"].to_pylist()))
    assert stations == [f"10{k:03d}" for k in range(60)]


def test_layouts_may_alternate():
    def with_layers(count, temperature):
        columns = {"#1#blockNumber": 10, "#1#stationNumber": count, "#1#latitude": 50.0,
                   "#1#longitude": 1.0, "#1#airTemperature": temperature}  # fmt: skip
        return message((307_080,), 0, columns, counts={"": (count, 0)})

    given = [(k % 3, 270.0 + k) for k in range(15)]
    table = decode(b"".join(with_layers(*pair) for pair in given)).table
    assert values(table, "2m_temperature") == pytest.approx([t for _, t in given])
    assert table["station_id"].to_pylist() == [f"10{c:03d}" for c, _ in given]


def test_texts_are_read():
    def ship(name):
        columns = {"#1#shipOrMobileLandStationIdentifier": name, "#1#latitude": 50.0,
                   "#1#longitude": 1.0, "#1#airTemperature": 280.0}  # fmt: skip
        return message((308_009,), 1, columns, counts={"": (0,)})

    names = ["ABC", "DEFGHIJKL", "", "XY1", "Z"]
    table = decode(b"".join(map(ship, names))).table
    assert table["station_id"].to_pylist() == [name or "unknown" for name in names]


def test_a_report_that_ends_too_early_is_set_aside():
    good = synop(airTemperature=280.0)
    head = read_header(good)
    short = bytearray(good[: head.data_at + 20] + b"7777")
    short[4:7] = len(short).to_bytes(3, "big")
    short[head.data_at - 4 : head.data_at - 1] = (24).to_bytes(3, "big")
    report = decode(good * 4 + bytes(short) + good).report
    assert (report.messages, report.decoded) == (6, 5)
    assert sum(report.rejected.values()) == 1


def test_every_real_layout_read_so_gives_what_eccodes_gives(realdata_dir):
    learnt, same = {}, 0
    for path in sorted((realdata_dir / "bufr").rglob("*")):
        data = path.read_bytes() if path.is_file() and path.stat().st_size < 300_000 else b""
        for frame in scan(data):
            if not frame.reason:
                same += _compare(data[frame.offset : frame.offset + frame.length], learnt)
    assert sum(packing is not None for packing, _ in learnt.values()) > 50
    assert same > 200


def _compare(data: bytes, learnt: dict) -> int:
    """Compares one message of a known layout; learns the layout of a new one."""
    unpacker = Unpacker(MessageLimits())
    try:
        header = read_header(data)
        if header.compressed or header.subsets > 1:
            return 0
        unpacker._packed = lambda *_: None  # always by eccodes
        part = next(iter(unpacker.unpack(data, header)))
    except DecodeError:
        return 0
    layout, expected = part.layout, part.values[0]
    if layout.size > 1_000:
        return 0
    if id(layout) not in learnt:
        storage = describe_storage(data, header, layout, expected)
        learnt[id(layout)] = storage and make_packing(layout, storage), layout
        return 0
    packing, _ = learnt[id(layout)]
    if packing is None:
        return 0
    only = np.zeros(1, dtype=np.int64)
    found = packing.values([header.data(data)], only, only)[0]
    shown = packing.widths > 0
    np.testing.assert_array_equal(found[shown], expected[shown])
    for code in packing.texts:
        assert packing.text(code, [header.data(data)], only, only) == part.texts[code]
    return 1


def test_elements_are_those_of_eccodes_tables():
    codes = [1_001, 1_015, 4_001, 5_001, 10_004, 12_101, 13_011, 31_001, 31_021, 31_031, 33_007]
    handle = eccodes.codes_bufr_new_from_samples("BUFR4")
    eccodes.codes_set(handle, "masterTablesVersionNumber", 36)
    eccodes.codes_set_array(handle, "unexpandedDescriptors", codes)
    expected = zip(
        *(
            eccodes.codes_get_array(handle, f"expanded{name}")
            for name in ("Abbreviations", "OriginalWidths", "OriginalScales", "OriginalReferences")
        ),
        strict=True,
    )
    eccodes.codes_release(handle)
    found = elements_of([*codes, 12_253, 307_080], TableVersion(36))  # the last two are no elements
    assert [found.pop(code)[:4] for code in codes] == list(expected)
    assert not found
