"""A short random search for bytes that break the decoder: any bytes end in a counted outcome."""

import pytest
from bufr_messages import decode, message, sonde, synop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.domain.errors import DecodeError
from tests.worker.decoders.accounting import assert_accounted
from worker.observations.decoders.base import REASONS
from worker.observations.decoders.bufr.framing import scan

SEEDS = (
    synop(airTemperature=280.0, windSpeed=3.0, windDirection=90),
    sonde([{"pressure": 9e4, "airTemperature": 280.0}, {"pressure": 8e4, "windSpeed": 5.0}]),
    message((307_080,), 0, {"#1#latitude": 1.0}, subsets=3, counts={"": (0, 0)}),
)
QUICK = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def counted(data: bytes) -> None:
    try:
        decoded = decode(data)
    except DecodeError as error:
        assert error.context["reason"] in REASONS
        return
    assert_accounted(decoded)
    framed = sum(f.length for f in scan(data))
    assert decoded.report.bytes_between + framed == len(data)


@QUICK
@given(st.binary(max_size=400))
def test_any_bytes(data):
    counted(data)


@QUICK
@given(st.binary(max_size=200), st.integers(0, 4), st.binary(max_size=20))
def test_anything_inside_a_true_frame(body, edition, before):
    total = 8 + len(body) + 4
    counted(before + b"BUFR" + total.to_bytes(3, "big") + bytes([edition]) + body + b"7777")


@pytest.mark.parametrize("seed", range(len(SEEDS)))
@QUICK
@given(data=st.data())
def test_changed_bytes_of_real_messages(seed, data):
    original = bytearray(SEEDS[seed])
    places = st.integers(8, len(original) - 5)
    for at, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        original[at] = byte
    counted(bytes(original))
