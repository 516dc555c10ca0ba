"""The operational clock: real by default, shifted and accelerated on request."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from model.domain.errors import ConfigurationError
from worker.contract import clock
from worker.contract.batches import BatchRecord

OCTOBER = datetime(2003, 10, 1, tzinfo=UTC)


def test_it_is_the_real_time_by_default(monkeypatch):
    monkeypatch.delenv("APPA_CLOCK", raising=False)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)
    moment = datetime(2025, 1, 1, tzinfo=UTC)
    assert clock.operational(moment) == moment
    assert clock.speed() == 1.0


def test_it_runs_so_many_times_as_fast_from_its_epoch(monkeypatch):
    monkeypatch.setenv("APPA_CLOCK", "2003-10-01T00:00:00Z@1000x600")
    later = datetime.fromtimestamp(1006, UTC)  # 6 s after the anchor
    assert clock.operational(later) == OCTOBER + timedelta(hours=1)
    assert clock.operational(datetime.fromtimestamp(1000, UTC)) == OCTOBER
    assert clock.speed() == 600.0


def test_arrivals_are_told_by_it(monkeypatch):
    monkeypatch.setenv("APPA_CLOCK", clock.clock_text(OCTOBER, time.time(), 1.0))
    batch = BatchRecord(id="batch-1", sha256="0" * 64, size=1, container="bufr")
    assert OCTOBER <= batch.created < OCTOBER + timedelta(minutes=1)


@pytest.mark.parametrize("text", ["now", "2003-10-01@5", "2003-10-01@5x0", "x@5x1", "@x"])
def test_what_is_no_clock_is_an_error_with_an_example(monkeypatch, text):
    monkeypatch.setenv("APPA_CLOCK", text)
    with pytest.raises(ConfigurationError, match="2003-10-01T00:00:00Z@1760000000x600"):
        clock.now()
