"""Which cycles are due: tables worked out by hand.

Early cut-off 20 minutes after the hour, final 180 minutes after it, catch-up over 6 hours.
"""

from datetime import UTC, datetime, timedelta

from worker.contract.cycles import CycleRecord, CycleState, parse_cycle_key
from worker.cycling.due import choose, decide, first_considered
from worker.cycling.policy import CyclePolicy

W, D, S, P = CycleState.WAITING, CycleState.DUE, CycleState.SUBMITTED, CycleState.PUBLISHED


def at(hour: int, minute: int = 0) -> datetime:
    """A time of 1 October 2003; hours above 23 are of the next days."""
    return datetime(2003, 10, 1, tzinfo=UTC) + timedelta(hours=hour, minutes=minute)


def policy(**values) -> CyclePolicy:
    catch_up = {"max_age_hours": 6, **values.pop("catch_up", {})}
    return CyclePolicy.model_validate(
        {
            "start": at(0),
            "early_cut_off_minutes": 20,
            "final_cut_off_minutes": 180,
            "catch_up": catch_up,
            **values,
        }
    )


def short(cycles) -> list[str]:
    """`06e` for the early analysis of 06 UTC."""
    return [f"{c.valid_time:%H}{c.flavour[0]}" for c in cycles]


def asked(rules, now, known=None, newest=None):
    keys = {f"20031001T{name[:2]}Z_{'early' if name[2] == 'e' else 'final'}": state
            for name, state in (known or {}).items()}  # fmt: skip
    newest = newest or (max(keys) if keys else None)
    return decide(rules, now, keys, first_considered(rules, now, newest))


def record(name: str, **values) -> CycleRecord:
    flavour = "early" if name[2] == "e" else "final"
    key = f"20031001T{name[:2]}Z_{flavour}"
    return CycleRecord(
        id=key, valid_time=parse_cycle_key(key)[0], flavour=flavour, cut_off=at(0), **values
    )


def test_before_the_start_nothing_is():
    found = asked(policy(), at(-1, 59))
    assert (found.announced, found.ready, found.skipped) == ((), (), ())


def test_a_new_hour_is_announced_before_its_cut_off():
    found = asked(policy(), at(0, 19))
    assert short(found.announced) == ["00e", "00f"]
    assert not found.ready


def test_the_early_one_is_ready_at_its_cut_off_and_the_final_one_at_its_own():
    known = {"00e": W, "00f": W}
    assert short(asked(policy(), at(0, 20), known).ready) == ["00e"]
    known = {"00e": P, "00f": W, "01e": P, "01f": W, "02e": P, "02f": W}
    assert short(asked(policy(), at(2, 59), known).ready) == []
    assert short(asked(policy(), at(3, 0), known).ready) == ["00f"]


def test_nothing_is_asked_twice():
    known = {"00e": D, "00f": S, "01e": P, "01f": CycleState.FAILED, "02e": CycleState.SKIPPED,
             "02f": CycleState.CANCELLED}  # fmt: skip
    found = asked(policy(end=at(2)), at(5, 59), known)
    assert (found.announced, found.ready, found.skipped) == ((), (), ())


def test_after_an_outage_the_missed_ones_are_ready_in_order_of_their_times():
    # all stood still from 01:30 to 04:30
    known = {"00e": P, "00f": W, "01e": P, "01f": W}
    found = asked(policy(), at(4, 30), known)
    assert short(found.ready) == ["00f", "01f", "02e", "03e", "04e"]
    assert short(found.announced) == ["02f", "03f", "04f"]


def test_what_is_too_old_is_skipped_with_the_reason():
    # 6 hours of catch-up at 08:30: cut-offs before 02:30 are too old
    known = {"00e": P, "00f": W, "01e": W, "01f": W}
    found = asked(policy(), at(8, 30), known)
    assert short(cycle for cycle, _ in found.skipped) == ["01e", "02e"]
    assert "7.2 h ago" in found.skipped[0][1] and "6 h" in found.skipped[0][1]
    assert short(found.ready)[:4] == ["00f", "01f", "02f", "03e"]  # 00f: its cut-off was at 03:00


def test_an_outage_longer_than_the_catch_up_leaves_no_hour_without_a_word():
    found = asked(policy(), at(20, 0), {"00e": P, "00f": P})
    assert short(cycle for cycle, _ in found.skipped)[:2] == ["01e", "01f"]
    # final cut-offs up to 13:59 are too old: hours 01 to 10; early ones: hours 01 to 13
    assert len(found.skipped) == 10 + 13


def test_a_start_long_ago_is_no_reason_to_skip_years():
    found = asked(policy(start=datetime(2000, 1, 1, tzinfo=UTC)), at(8, 30))
    assert not found.skipped
    assert short(found.ready) == ["03e", "03f", "04e", "04f", "05e", "05f", "06e", "07e", "08e"]


def test_the_early_one_is_still_made_when_the_final_one_is_due_unless_the_policy_says_skip():
    assert short(asked(policy(), at(3, 1), {"00e": W, "00f": W}).ready)[:2] == ["00e", "00f"]
    found = asked(policy(catch_up={"early": "skip"}), at(3, 1), {"00e": W, "00f": W})
    assert short(cycle for cycle, _ in found.skipped) == ["00e"]
    assert "final" in found.skipped[0][1]
    assert short(found.ready) == ["00f", "01e", "02e"]


def test_the_grid_has_the_step_of_the_policy():
    found = asked(policy(step_hours=3), at(6, 30))
    assert short(found.ready) == ["03e", "03f", "06e"]


def test_after_the_last_cycle_only_what_is_open_is_done():
    known = {"00e": P, "00f": W}
    found = asked(policy(end=at(0)), at(3, 30), known)
    assert (short(found.ready), found.announced) == (["00f"], ())


def names(chosen) -> list[str]:
    return short(chosen)


def test_oldest_first_goes_by_valid_time_the_early_one_before_the_final_one():
    due = [record("02e"), record("00f"), record("00e")]
    assert names(choose(policy(), due, [])) == ["00e"]
    assert names(choose(policy(), due[:2], [])) == ["00f"]


def test_newest_first_turns_the_hours_around():
    rules = policy(catch_up={"order": "newest_first"})
    assert names(choose(rules, [record("00e"), record("02e"), record("02f")], [])) == ["02e"]


def test_no_more_than_allowed_are_in_flight():
    rules = policy(catch_up={"at_once": 2})
    due = [record("01e"), record("04e"), record("08e")]
    assert names(choose(rules, due, [])) == ["01e", "04e"]
    assert names(choose(rules, due, [record("11e")])) == ["01e"]
    assert names(choose(rules, due, [record("11e"), record("13e")])) == []


def test_a_cycle_waits_for_its_background():
    rules = policy(catch_up={"at_once": 4})
    # 01e would start from 00e, 02e from 01e: one after the other; 05e needs none of them
    due = [record("00e"), record("01e"), record("02e"), record("05e")]
    assert names(choose(rules, due, [])) == ["00e", "05e"]
    assert names(choose(rules, due[1:], [record("00f")])) == ["05e"]


def test_a_final_cycle_waits_for_the_early_one_of_its_hour():
    rules = policy(catch_up={"at_once": 4})
    assert names(choose(rules, [record("00f")], [record("00e")])) == []
    assert names(choose(rules, [record("00f")], [record("03e")])) == ["00f"]
