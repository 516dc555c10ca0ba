"""Damaged files and bombs: each ends in a counted outcome, none crashes or hangs the process."""

import gzip
import io
import zipfile
import zlib

import eccodes
import numpy as np
import pytest
from bufr_messages import decode, message, sonde, synop

from model.domain.errors import DecodeError
from tests.worker.decoders.accounting import assert_accounted
from worker.observations.decoders.base import MessageLimits
from worker.observations.decoders.decode import decode_limited, decode_many_limited
from worker.sandbox import Limits, run_limited

SEED = 20_260_301


def originals() -> list[bytes]:
    """One message of each kind."""
    many = {"#1#blockNumber": 10, "#1#stationNumber": np.arange(1, 9), "#1#latitude": 50.0,
            "#1#longitude": np.linspace(0, 7, 8), "#1#airTemperature": np.linspace(270, 280, 8)}  # fmt: skip
    levels = [{"pressure": 1e5 - 500.0 * k, "airTemperature": 280.0 - k, "windSpeed": 5.0,
               "windDirection": 90, "dewpointTemperature": 270.0 - k} for k in range(40)]  # fmt: skip
    place = {"#1#latitude": 1.0, "#1#longitude": 2.0, "#1#second": 0}
    aircraft = {"#1#airTemperature": 250.0, "#1#flightLevel": 9_000, "#1#windSpeed": 10.0,
                "#1#aircraftRegistrationNumberOrOtherIdentification": "EU1"}  # fmt: skip
    vector = {"#1#satelliteIdentifier": 57, "#1#pressure": 3e4, "#1#windSpeed": 30.0,
              "#1#windDirection": np.linspace(0, 350, 20)}  # fmt: skip
    return [
        synop(airTemperature=280.0, windSpeed=3.0, windDirection=90),
        message((307_080,), 0, many, subsets=8, counts={"": (0, 0)}),
        message((307_080,), 0, many, subsets=8, counts={"": (0, 0)}, compressed=False),
        sonde(levels),
        message((311_010,), 4, {**place, **aircraft}, counts={"short": (0,) * 6, "": (0, 0)}),
        message((310_077,), 5, {**place, **vector}, subsets=20, counts={"": (0, 0, 0, 0)}),
    ]  # fmt: skip


def truncations(data: bytes, rng: np.random.Generator) -> list[bytes]:
    return [data[: int(n)] for n in rng.integers(1, len(data), 30)]


def bit_flips(data: bytes, rng: np.random.Generator) -> list[bytes]:
    found = []
    for number in range(40):
        other = bytearray(data)
        for at in rng.integers(8, len(data) - 4, 1 + number % 8):
            other[at] ^= 1 << int(rng.integers(8))
        found.append(bytes(other))
    return found


def lying_lengths(data: bytes, rng: np.random.Generator) -> list[bytes]:
    found = []
    for value in (0, 1, 7, 30, len(data) - 1, len(data) + 1, 0xFFFF, 0xFFFFFF):
        other = bytearray(data)
        other[4:7] = value.to_bytes(3, "big")
        found += [bytes(other), bytes(other) + data]
    for at in (8, 30, 31, 32):
        other = bytearray(data)
        other[at : at + 3] = bytes(rng.integers(0, 256, 3, dtype=np.uint8))
        found.append(bytes(other))
    return found


def lying_counts(data: bytes) -> list[bytes]:
    """Numbers of reports and descriptors of section 3 changed."""
    at = 8 + int.from_bytes(data[8:11], "big")
    found = []
    for subsets in (0, 1, 2, 1_000, 65_535):
        other = bytearray(data)
        other[at + 4 : at + 6] = subsets.to_bytes(2, "big")
        found.append(bytes(other))
    for flags in (0, 64, 192, 255):
        other = bytearray(data)
        other[at + 6] = flags
        found.append(bytes(other))
    return found


def spliced(parts: list[bytes], rng: np.random.Generator) -> list[bytes]:
    """The head of one message on the tail of another, with an end mark and a true length."""
    found = []
    for _ in range(30):
        a, b = (parts[int(k)] for k in rng.integers(0, len(parts), 2))
        cut = bytearray(a[: int(rng.integers(40, len(a)))] + b[int(rng.integers(40, len(b))) :])
        cut[4:7] = len(cut).to_bytes(3, "big")
        found.append(bytes(cut))
    return found


def foreign(data: bytes) -> dict[str, bytes]:
    """Files that are something else, whatever they are called."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.bufr", b"\0" * 20_000_000)
    return {
        "empty.bufr": b"",
        "zeros.bufr": b"\0" * 100_000,
        "ones.bufr": b"\xff" * 100_000,
        "picture.bufr": b"\x89PNG\r\n\x1a\n" + zlib.compress(b"x" * 1_000) + b"BUFR",
        "bomb.bufr.gz": gzip.compress(b"\0" * 20_000_000),
        "zipped.bufr": gzip.compress(data),
        "bomb.zip": archive.getvalue(),
        "page.bufr": b"<!DOCTYPE html><html><body>404 BUFR not found</body></html>",
        "only_marks.bufr": b"BUFR" * 5_000,
        "only_ends.bufr": b"7777" * 5_000,
        "bulletin.bufr": b"SMDL01 EDZW 010600\r\r\nAAXX 01061\r\r\n10384 31680 53102 10037=\r\r\n",
        "crex.bufr": b"CREX++\r\r\nT000103 A001 D01001++\r\r\n",
        "text.bufr": b"hello world",
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Paths of all files."""
    folder = tmp_path_factory.mktemp("malformed")
    rng = np.random.default_rng(SEED)
    parts = originals()
    files = []
    for data in parts:
        files += truncations(data, rng) + bit_flips(data, rng) + lying_lengths(data, rng)
        files += lying_counts(data)
    files += spliced(parts, rng)
    paths = []
    for number, data in enumerate(files):
        paths.append(folder / f"{number:04d}.bufr")
        paths[-1].write_bytes(data)
    for name, data in foreign(parts[0]).items():
        paths.append(folder / name)
        paths[-1].write_bytes(data)
    return paths


def test_every_damaged_file_ends_in_a_counted_outcome(corpus):
    assert len(corpus) >= 500
    seen = 0
    for path, decoded in decode_many_limited(
        corpus, limits=Limits(cpu_seconds=20, wall_seconds=40)
    ):
        report = decoded.report
        assert_accounted(decoded, path.name)
        assert not set(report.rejected) & {"timeout", "out_of_memory", "crashed"}, path.name
        seen += 1
    assert seen == len(corpus)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.bufr", "empty_file"),
        ("zeros.bufr", "no_messages"),
        ("picture.bufr", "wrong_format"),
        ("page.bufr", "wrong_format"),
        ("bomb.bufr.gz", "no_messages"),
        ("bomb.zip", "no_messages"),
        ("bulletin.bufr", "no_time"),
        ("crex.bufr", "truncated"),
        ("text.bufr", "no_messages"),
    ],
)
def test_what_the_file_really_is(corpus, name, reason):
    path = next(p for p in corpus if p.name == name)
    assert list(decode_limited(path).report.rejected) == [reason]


# Amplification: legal messages that grow without measure.


def with_data(data: bytes, bits: str, subsets: int = 1, compressed: bool = False) -> bytes:
    """The message with other bits in section 4 and all lengths true."""
    at = 8 + int.from_bytes(data[8:11], "big")
    head = bytearray(data[: at + int.from_bytes(data[at : at + 3], "big")])
    head[at + 4 : at + 6] = subsets.to_bytes(2, "big")
    head[at + 6] = 128 | (64 if compressed else 0)
    bits += "0" * (-len(bits) % 8)
    body = int(bits, 2).to_bytes(len(bits) // 8, "big")
    section = (len(body) + 4).to_bytes(3, "big") + b"\0" + body
    head[4:7] = (len(head) + len(section) + 4).to_bytes(3, "big")
    return bytes(head) + section + b"7777"


def ascent_of(levels: int) -> bytes:
    """A legal ascent (309052) of missing values: 168 bits in each level, 322 before them."""
    bits = "1" * 322 + f"{levels:016b}" + "1" * (168 * levels) + "0" * 8
    return with_data(message((309_052,), 2, {}, counts={"extended": (0,), "": (0,)}, when={}), bits)


def compressed_of(count: int, subsets: int) -> bytes:
    """Temperatures repeated `count` times in each of many equal reports: 22 bits for all of them."""
    descriptors = (301_001, 301_011, 301_012, 301_021, 101_000, 31_002, 12_101)
    widths = (7, 10, 12, 4, 6, 5, 6, 25, 26)
    zero = "0" * 6
    bits = "".join("0" * width + zero for width in widths)
    bits += f"{count:016b}" + zero + ("0" * 16 + zero) * count
    data = message(descriptors, 0, {}, counts={"extended": (0,)}, when={})
    return with_data(data, bits, subsets, compressed=True)


def unpacked_with_attributes(path: str) -> int:
    """What a plain reader does: all keys with all their attributes."""
    with open(path, "rb") as file:
        handle = eccodes.codes_bufr_new_from_file(file)
    eccodes.codes_set(handle, "unpack", 1)
    return len(eccodes.codes_get_array(handle, "airTemperature"))


@pytest.fixture(scope="module")
def bomb(tmp_path_factory):
    """1.4 MB with 65 535 levels, followed by a good message."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.bufr"
    path.write_bytes(ascent_of(65_535) + synop(airTemperature=280.0))
    return path


def test_the_bomb_is_what_it_is_meant_to_be(bomb):
    small = decode(ascent_of(7))
    assert dict(small.report.rejected) == {"no_time": 1}
    assert 1_370_000 < bomb.stat().st_size < 1_400_000


def test_unpacking_the_bomb_plainly_breaks_the_child_not_the_parent(bomb):
    with pytest.raises(DecodeError) as caught:
        limits = Limits(address_space=1_300_000_000)
        run_limited(unpacked_with_attributes, str(bomb), limits=limits, reads=[bomb])
    assert caught.value.context["reason"] in ("out_of_memory", "crashed")


def test_too_many_levels_are_rejected_and_the_next_message_decoded(bomb):
    report = decode_limited(bomb, limits=Limits(address_space=2_000_000_000)).report
    assert dict(report.rejected) == {"too_large": 1}
    assert report.rows_by_variable == {"2m_temperature": 1}
    assert "65535" in report.quarantined[0].detail


def test_many_equal_reports_of_many_values_are_rejected(tmp_path):
    path = tmp_path / "equal.bufr"
    path.write_bytes(compressed_of(60_000, 65_535) + synop(airTemperature=280.0))
    report = decode_limited(path, limits=Limits(address_space=2_000_000_000)).report
    assert dict(report.rejected) == {"too_large": 1}
    assert report.rows_by_variable == {"2m_temperature": 1}


def test_nested_replications_are_counted_before_they_are_expanded():
    # 12 nested replications of 255 would be 255^12 elements from 26 bytes.
    data = bytearray(message((301_001, 12_101), 0, {}, when={}))
    at = 8 + int.from_bytes(data[8:11], "big")
    nested = b"".join(((1 << 14) | (11 - k << 8) | 255).to_bytes(2, "big") for k in range(11))
    section = data[at : at + 7] + nested + (12 * 256 + 101).to_bytes(2, "big") + b"\0"
    section[0:3] = len(section).to_bytes(3, "big")
    whole = data[:at] + section + data[at + int.from_bytes(data[at : at + 3], "big") :]
    whole[4:7] = len(whole).to_bytes(3, "big")
    assert dict(decode(bytes(whole)).report.rejected) == {"too_large": 1}


def test_a_message_beyond_the_limit_of_bytes():
    limits = MessageLimits(message_bytes=100)
    assert dict(decode(synop(airTemperature=280.0), limits=limits).report.rejected) == {
        "too_large": 1
    }


def test_values_beyond_the_limit():
    limits = MessageLimits(values=50)
    report = decode(synop(airTemperature=280.0), limits=limits).report
    assert dict(report.rejected) == {"too_large": 1}
