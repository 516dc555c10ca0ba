"""The disk watermark, tried on the real disk with watermarks around what is free."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from worker.contract.disk import DiskLow, disk_state, require_space
from worker.contract.layout import Layout


@dataclass(frozen=True)
class Watermark:
    disk_low_bytes: int
    disk_low_percent: float = 0.0


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path).create()


def test_below_the_watermark_work_is_refused_with_what_is_free_and_needed(layout: Layout):
    free = shutil.disk_usage(layout.root).free
    with pytest.raises(DiskLow) as caught:
        require_space(layout, Watermark(4 * free))
    error = caught.value
    assert (error.code, error.retryable) == ("disk_low", True)
    assert error.context["needed_bytes"] == 5 * free  # 4 x 1.25
    assert abs(error.context["free_bytes"] - free) < 0.2 * free


def test_a_quarter_more_must_be_free_before_work_is_taken_again(layout: Layout):
    free = shutil.disk_usage(layout.root).free
    nearly = Watermark(int(0.9 * free))
    assert not disk_state(layout, nearly).low
    low = disk_state(layout, Watermark(2 * free))
    assert low.low and low.since is not None
    still = disk_state(layout, nearly)  # 0.9 x 1.25 > 1
    assert still.low and still.since is not None
    assert not disk_state(layout, Watermark(free // 2)).low
    assert not disk_state(layout, nearly).low


def test_the_state_is_shared_by_all_who_use_the_data_folder(layout: Layout):
    free = shutil.disk_usage(layout.root).free
    disk_state(layout, Watermark(2 * free))
    assert disk_state(Layout(layout.root), Watermark(int(0.9 * free))).low


def test_the_larger_of_bytes_and_percent_counts(layout: Layout):
    assert disk_state(layout, Watermark(0, 100.0)).low
    assert not disk_state(layout, Watermark(0, 0.0)).low
    require_space(layout, Watermark(0, 0.0))
