"""Files in child processes: parts of one file, many files, a message that brings a child down."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from bufr_messages import CONTEXT, decode, sonde, synop, values

from worker.observations.decoders import decode as decode_module
from worker.observations.decoders.base import FileBudget
from worker.observations.decoders.decode import (
    FileToDecode,
    decode_in_one_child,
    decode_limited,
    decode_many_limited,
)
from worker.sandbox import Interrupted, Limits, run_limited


@pytest.fixture
def ascents(tmp_path):
    """Thirty ascents of two levels with headings between."""
    path = tmp_path / "ascents.bufr"
    parts = [
        b"\r\r\nIUSD01 EDZW 010600\r\r\n"
        + sonde(
            [{"pressure": 9e4, "airTemperature": 280.0 + k}, {"pressure": 8e4, "windSpeed": 0.0}]
        )
        for k in range(30)
    ]
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_parts_of_a_file_add_up_to_the_whole(ascents, processes):
    whole = decode(ascents.read_bytes())
    parts = decode_limited(ascents, context=CONTEXT, processes=processes)
    assert parts.report.model_dump(mode="json") == whole.report.model_dump(mode="json")
    assert values(parts.table, "temperature") == [280.0 + k for k in range(30)]
    assert parts.table["observation_id"].to_pylist() == list(range(parts.table.num_rows))
    profiles = parts.table.filter(pc.equal(parts.table["variable"], "temperature"))["profile_id"]
    assert profiles.to_pylist() == list(range(30))


def test_many_files_in_one_child(tmp_path):
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.bufr")
        paths[-1].write_bytes(synop(airTemperature=280.0 + number) if number != 2 else b"")
    found = list(decode_many_limited(paths, CONTEXT))
    assert [path for path, _ in found] == paths
    assert [d.report.rows for _, d in found] == [1, 1, 0, 1, 1]
    assert dict(found[2][1].report.rejected) == {"empty_file": 1}


REAL = decode_module._decode


def crash_at(offset):
    def function(path, format, context, mark):
        skip = context.skip

        def guarded(frames, chosen):
            for frame in real_chosen(frames, chosen):
                if frame.offset == offset and offset not in skip:
                    os.pwrite(os.open(mark, os.O_WRONLY), offset.to_bytes(8, "little"), 0)
                    os.abort()
                yield frame

        from worker.observations.decoders.bufr import decode as module

        real_chosen, module.selected_frames = module.selected_frames, guarded
        return REAL(path, format, context, mark)

    return function


def decode_with_a_fatal_message(path, format, context, mark):
    """In the child: the message at byte 1000 or later of the file ends the process."""
    data = open(path, "rb").read()
    return crash_at(data.index(b"BUFR", 1_000))(path, format, context, mark)


def test_a_message_that_ends_the_child_costs_itself_only(tmp_path, monkeypatch):
    path = tmp_path / "fatal.bufr"
    path.write_bytes(b"".join(synop(airTemperature=270.0 + k) for k in range(12)))
    fatal = path.read_bytes().index(b"BUFR", 1_000)
    monkeypatch.setattr(decode_module, "_decode", decode_with_a_fatal_message)
    decoded = decode_limited(path, limits=Limits(wall_seconds=60.0))
    assert dict(decoded.report.rejected) == {"crashed": 1}
    assert decoded.report.quarantined[0].offset == fatal
    assert len(values(decoded.table, "2m_temperature")) == 11


def test_a_file_that_takes_too_long_is_refused_as_a_whole(ascents, monkeypatch):
    monkeypatch.setattr(decode_module, "_decode", decode_for_ever)
    decoded = decode_limited(ascents, limits=replace(Limits(), cpu_seconds=1, wall_seconds=30.0))
    assert dict(decoded.report.rejected) == {"timeout": 1}
    assert decoded.table.num_rows == 0


def decode_for_ever(path, format, context, mark):
    while True:
        np.zeros(10).sum()


# -- children that are killed from outside


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """Twelve SYNOP reports; the place of the one at byte 1000 or later; a tally children may keep."""
    path = tmp_path / "reports.bufr"
    tally = Path(f"{path}.deaths")
    tally.write_text("0")

    def with_tally(*arguments, writes, **options):
        return run_limited(*arguments, writes=[*writes, tally], **options)

    monkeypatch.setattr(decode_module, "run_limited", with_tally)
    path.write_bytes(b"".join(synop(airTemperature=270.0 + k) for k in range(12)))
    return path, path.read_bytes().index(b"BUFR", 1_000)


def killed(times, held):
    """A decoder whose process is killed at that message, `times` times, holding `held` bytes."""

    def function(path, format, context, mark):
        record = path + ".deaths"
        deaths = int(Path(record).read_text())
        at = Path(path).read_bytes().index(b"BUFR", 1_000)
        if deaths < times and at not in context.skip:
            Path(record).write_text(str(deaths + 1))
            memory = bytearray(held)
            memory[::4096] = b"x" * len(memory[::4096])
            os.pwrite(os.open(mark, os.O_WRONLY), at.to_bytes(8, "little"), 0)
            os.kill(os.getpid(), signal.SIGKILL)
        return REAL(path, format, context, mark)

    return function


def killed_twice(*arguments):
    return killed(2, 0)(*arguments)


def killed_always(*arguments):
    return killed(99, 0)(*arguments)


def killed_for_its_memory(*arguments):
    return killed(99, 200_000_000)(*arguments)


LIMITS = Limits(wall_seconds=60.0)


def test_a_decoder_killed_from_outside_costs_no_message(reports, monkeypatch):
    path, _ = reports
    monkeypatch.setattr(decode_module, "_decode", killed_twice)
    decoded = decode_limited(path, limits=LIMITS)
    assert not decoded.report.rejected
    assert len(values(decoded.table, "2m_temperature")) == 12


def test_a_message_over_which_large_children_are_killed_again_and_again_is_set_aside(
    reports, monkeypatch
):
    path, at = reports
    monkeypatch.setattr("worker.sandbox._LARGE", 0.05)  # of 3 GB
    monkeypatch.setattr(decode_module, "_decode", killed_for_its_memory)
    decoded = decode_limited(path, limits=LIMITS)
    assert dict(decoded.report.rejected) == {"out_of_memory": 1}
    assert decoded.report.quarantined[0].offset == at
    assert len(values(decoded.table, "2m_temperature")) == 11
    assert Path(f"{path}.deaths").read_text() == "3"


def test_a_decoder_that_is_always_killed_rejects_nothing(reports, monkeypatch):
    path, _ = reports
    monkeypatch.setattr(decode_module, "_decode", killed_always)
    with pytest.raises(Interrupted, match="SIGKILL"):
        decode_limited(path, limits=LIMITS)
    assert Path(f"{path}.deaths").read_text() == "3"


@pytest.mark.parametrize("name", ["byte_range", "skip", "mark"])
def test_a_sender_cannot_speak_for_the_service(tmp_path, name):
    """`{"byte_range": [0, 10]}` among the options made messages vanish uncounted."""
    path = tmp_path / "two.bufr"
    path.write_bytes(synop(airTemperature=270.0) + synop(airTemperature=271.0))
    decoded = decode_limited(path, context=replace(CONTEXT, options={name: [0, 10]}))
    assert dict(decoded.report.rejected) == {"invalid_table": 1}
    assert f"got '{name}'" in decoded.report.quarantined[0].detail


# -- budgets


def test_memory_grows_with_the_file_up_to_the_share_of_the_machine(tmp_path, monkeypatch):
    path = tmp_path / "huge.bufr"
    with path.open("wb") as file:
        file.truncate(4 * 2**30)
    monkeypatch.setattr("worker.sandbox._machine_memory", lambda: 16 * 10**9)
    assert decode_module._with_room(Limits(), path).address_space == 8 * 10**9
    monkeypatch.setattr("worker.sandbox._machine_memory", lambda: 10**9)
    assert decode_module._with_room(Limits(), path).address_space == 10**9


def test_messages_beyond_the_values_of_a_file_are_set_aside_and_the_budget_is_told(monkeypatch):
    whole = b"".join(synop(airTemperature=270.0 + k) for k in range(10))
    monkeypatch.setattr(FileBudget, "FLAT", 600)
    monkeypatch.setattr(FileBudget, "PER_BYTE", 0)
    report = decode(whole).report
    assert 0 < report.rejected["too_large"] < 10
    assert report.decoded + report.rejected["too_large"] == 10
    assert "at most 600 values in a file of" in report.quarantined[0].detail


def test_reports_of_any_text_can_be_written(tmp_path):
    path = tmp_path / "half.geojson"  # JSON may escape half of a surrogate pair
    path.write_text('{"type": "Feature", "geometry": {"type": "\\ud800"}, "properties": {}}')
    (found,) = decode_in_one_child([FileToDecode(path, "geojson", CONTEXT)])
    assert found.report.quarantined[0].detail.endswith("expected a Point; got ?).")
    alone = decode_limited(path, "geojson", CONTEXT)
    assert alone.report.model_dump_json() == found.report.model_dump_json()
