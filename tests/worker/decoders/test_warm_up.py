"""What a newly started process knows of the common templates."""

import pytest
from bufr_messages import decode, message, synop

from worker.observations.decoders.bufr import message as module
from worker.observations.decoders.bufr.message import Unpacker
from worker.observations.decoders.bufr.warm import COMMON, VERSIONS, small_message, warm_up


@pytest.fixture
def warm(monkeypatch):
    monkeypatch.setattr(Unpacker, "_templates", {})
    assert warm_up() == len(COMMON) * len(VERSIONS)


def test_the_first_message_of_a_common_template_is_read_by_what_is_known(warm, monkeypatch):
    def never(*_):
        raise AssertionError("asked eccodes")

    single, several = synop(airTemperature=280.0), message(
        (307_080,), 0, {"#1#latitude": 50.0, "#1#longitude": 1.0, "#1#airTemperature": 281.0},
        subsets=3, counts={"": (0, 0)},
    )  # fmt: skip
    monkeypatch.setattr(module.eccodes, "codes_new_from_message", never)
    assert decode(single).table["obs_value"].to_pylist() == [280.0]
    assert decode(several).table["obs_value"].to_pylist() == [281.0] * 3


def test_a_template_that_the_tables_lack_is_left_out(monkeypatch, capfd):
    monkeypatch.setattr(Unpacker, "_templates", {})
    assert warm_up(COMMON[:1], versions=(13,)) == 0  # 3 01 150 came later


def test_centres_share_what_is_known(warm, monkeypatch):
    data = bytearray(small_message(COMMON[1], VERSIONS[0]))
    data[12:14] = (98).to_bytes(2, "big")  # centre, in section 1 after the mark of eight bytes
    before = len(Unpacker._templates)
    decode(bytes(data))
    assert len(Unpacker._templates) == before
