"""The policy file: cut-offs by hour, defaults, and mistakes that are named."""

from datetime import UTC, datetime, timedelta

import pytest

from model.domain.errors import ConfigurationError
from worker.cycling.policy import CyclePolicy, read_policy

SIX = datetime(2003, 10, 1, 6, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def policy(tmp_path, text: str) -> CyclePolicy:
    path = tmp_path / "cycles.yaml"
    path.write_text("start: 2003-10-01T00:00:00Z\n" + text)
    found = read_policy(path)
    assert found is not None
    return found


def test_without_a_file_nothing_is_cycled(tmp_path):
    assert read_policy(tmp_path / "cycles.yaml") is None


def test_one_number_holds_for_every_hour(tmp_path):
    found = policy(tmp_path, "early_cut_off_minutes: 25\nfinal_cut_off_minutes: 90\n")
    assert found.cut_off(SIX, "early") == SIX + 25 * MINUTE
    assert found.cut_off(SIX + timedelta(hours=5), "final") == SIX + timedelta(hours=5, minutes=90)


def test_an_hour_of_the_day_may_have_its_own(tmp_path):
    found = policy(tmp_path, "early_cut_off_minutes: {default: 20, 0: 45, 12: 45}\n")
    assert found.cut_off(SIX, "early") - SIX == 20 * MINUTE
    noon, midnight = SIX.replace(hour=12), SIX.replace(hour=0)
    assert found.cut_off(noon, "early") - noon == 45 * MINUTE
    assert found.cut_off(midnight, "early") - midnight == 45 * MINUTE


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("early_cut_off_minutes: 200", "final cut-off after the early one"),
        ("early_cut_off_minutes: {6: 20}", "'default' for the hours"),
        ("early_cut_off_minutes: {default: 20, 24: 20}", "hours of the day"),
        ("early_cut_off_minutes: -5", "minutes after the valid time"),
        ("catch_up: {order: sideways}", "catch_up.order"),
        ("windows: 3", "windows"),
        ("end: 2003-09-01T00:00:00Z", "'end' at or after 'start'"),
        ("members: [", "readable"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, word):
    with pytest.raises(ConfigurationError, match=word):
        policy(tmp_path, text)


def test_the_digest_names_the_policy_and_not_its_spelling(tmp_path):
    one = policy(tmp_path, "members: 4\nfinal_cut_off_minutes: 120\n")
    same = policy(tmp_path, "final_cut_off_minutes: {default: 120}\nmembers: 4\n")
    other = policy(tmp_path, "members: 5\nfinal_cut_off_minutes: 120\n")
    assert one.digest == same.digest != other.digest
    assert CyclePolicy.model_validate_json(one.model_dump_json()) == one
