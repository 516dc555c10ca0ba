"""The audit passes a sound day and names every fault that is planted into it."""

from dataclasses import replace
from datetime import timedelta

import pytest
from planted import HOUR, MINUTE, SCENARIO, make_case, with_analysis, with_cycle

from lab.rehearsal.audit import alike, audit, late_cut_offs, same_day
from lab.rehearsal.evidence import BatchUse, DeliveryRecord


@pytest.fixture(scope="module")
def case():
    return make_case()


def named(case) -> set[str]:
    return {finding.check for finding in audit(case)}


def key(number: int, flavour: str) -> str:
    return f"{SCENARIO.start + number * HOUR:%Y%m%dT%H}Z_{flavour}"


def place(case, number: int, flavour: str) -> int:
    return next(i for i, a in enumerate(case.evidence.analyses) if a.key == key(number, flavour))


def test_a_sound_day_has_no_findings(case):
    assert audit(case) == ()
    # and it is a day in which something happens
    assert any(c.caught_up for c in case.evidence.cycles.values())
    assert any("zero_observations" in a.flags for a in case.evidence.analyses)
    early, final = (case.evidence.analyses[place(case, 2, f)] for f in ("early", "final"))
    assert len(early.batches) < len(final.batches)


def test_a_missing_and_a_doubled_analysis(case):
    analyses = case.evidence.analyses
    for changed in (analyses[1:], (*analyses, replace(analyses[3], analysis_id="an-other"))):
        assert "complete" in named(replace(case, evidence=replace(case.evidence, analyses=changed)))


def test_an_analysis_of_no_cycle(case):
    other = replace(case.evidence.analyses[0], valid_time=SCENARIO.start - HOUR)
    evidence = replace(case.evidence, analyses=(*case.evidence.analyses, other))
    assert "complete" in named(replace(case, evidence=evidence))


def test_a_cycle_left_behind(case):
    assert "complete" in named(with_cycle(case, key(3, "final"), state="submitted"))


def test_revisions_in_the_wrong_order(case):
    assert named(with_analysis(case, place(case, 2, "final"), revision=3)) == {"revisions"}
    early = case.evidence.cycles[key(2, "early")]
    swapped = with_cycle(
        case,
        key(2, "final"),
        decided=early.decided - MINUTE,
        behind_seconds=(early.decided - MINUTE - (SCENARIO.cut_off(SCENARIO.cycles[2], "final")))
        / timedelta(seconds=1),
    )
    assert "revisions" in named(swapped)


def test_another_cut_off_or_window(case):
    analysis = case.evidence.analyses[4]
    for changes in (
        {"cut_off": analysis.cut_off + MINUTE},
        {"window_start": analysis.window_start + MINUTE},
        {"window_end": None},
    ):
        assert named(with_analysis(case, 4, **changes)) == {"deadlines"}


def uses(case, number, flavour):
    at = place(case, number, flavour)
    return at, dict(case.evidence.analyses[at].batches)


def test_a_file_that_was_not_sent_or_not_stored_whole(case):
    name = case.evidence.sendings[-1].name
    evidence = replace(case.evidence, sendings=case.evidence.sendings[:-1])
    assert name in {
        f.cycle for f in audit(replace(case, evidence=evidence)) if f.check == "storage"
    }
    batch = case.evidence.sendings[3].batch_id
    for values in (-1, 5):
        stored = {**case.evidence.stored, batch: values}
        assert named(replace(case, evidence=replace(case.evidence, stored=stored))) == {"storage"}


def test_an_upload_that_is_missing(case):
    at, batches = uses(case, 2, "early")
    batches.pop(next(iter(batches)))
    assert named(with_analysis(case, at, batches=batches)) == {"observations"}


def test_an_upload_with_a_value_too_few_or_one_called_late(case):
    at, batches = uses(case, 2, "early")
    name, use = next(iter(batches.items()))
    for wrong in (
        replace(use, rows=use.rows - 1),
        replace(use, late=1),
        replace(use, entered=0),
    ):
        assert named(with_analysis(case, at, batches=batches | {name: wrong})) == {"observations"}


def test_an_upload_from_after_the_cut_off(case):
    at, batches = uses(case, 2, "early")
    _, later = uses(case, 2, "final")
    name = next(iter(set(later) - set(batches)))
    too_late = with_analysis(case, at, batches=batches | {name: later[name]})
    assert named(too_late) == {"observations"}
    marked = BatchUse(later[name].rows, late=later[name].rows)
    assert not audit(with_analysis(case, at, batches=batches | {name: marked}))
    unknown = with_analysis(case, at, batches=batches | {"batch-other": later[name]})
    assert named(unknown) == {"observations"}


def test_an_upload_on_its_way_at_the_cut_off_may_be_in_or_out(case):
    at, batches = uses(case, 2, "early")
    cut_off = case.evidence.analyses[at].cut_off
    name = next(iter(batches))
    sendings = tuple(
        replace(s, tried=cut_off - MINUTE, acknowledged=cut_off + MINUTE)
        if s.batch_id == name
        else s
        for s in case.evidence.sendings
    )
    racing = replace(case, evidence=replace(case.evidence, sendings=sendings))
    batches.pop(name)
    for possible in (racing, with_analysis(racing, at, batches=batches)):
        assert not [f for f in audit(possible) if f.cycle == key(2, "early")]


def test_a_wrong_count_in_the_manifest(case):
    assert named(with_analysis(case, 5, counted=1)) == {"counts"}


def test_duplicates_used_twice(case):
    at, batches = uses(case, 4, "final")
    assert named(with_analysis(case, at, repeated=2)) == {"duplicates"}
    name = next(n for n in batches if n.endswith("resent"))
    use = batches[name]
    wrong = BatchUse(use.rows, 0, use.rows, use.rows, 0)
    assert "duplicates" in named(with_analysis(case, at, batches=batches | {name: wrong}))


def test_the_same_bytes_as_two_uploads(case):
    sendings = tuple(
        replace(s, batch_id="batch-other") if s.name.endswith("again") else s
        for s in case.evidence.sendings
    )
    assert "duplicates" in named(replace(case, evidence=replace(case.evidence, sendings=sendings)))


def test_silence_that_is_not_told_and_told_without_reason(case):
    at = place(case, 7, "final")
    assert named(with_analysis(case, at, flags=())) == {"silence"}
    assert named(with_analysis(case, 4, flags=("zero_observations",))) == {"silence"}


def test_catching_up_that_is_hidden_invented_or_impossible(case):
    missed = next(k for k, c in case.evidence.cycles.items() if c.caught_up)
    assert "catching up" in named(with_cycle(case, missed, caught_up=False))
    assert "catching up" in named(with_cycle(case, key(1, "early"), caught_up=True))
    assert "catching up" in named(with_cycle(case, missed, behind_seconds=3.0))
    asleep = case.evidence.outage.killed + 30 * MINUTE
    assert "catching up" in named(with_cycle(case, missed, decided=asleep))
    number = next(i for i, a in enumerate(case.evidence.analyses) if a.key == missed)
    assert named(with_analysis(case, number, cycle={})) == {"catching up"}


def test_impatience(case):
    cut_off = SCENARIO.cut_off(SCENARIO.cycles[1], "early")
    early = with_cycle(case, key(1, "early"), decided=cut_off - MINUTE, behind_seconds=-60.0)
    assert "patience" in named(early)
    at, batches = uses(case, 1, "early")
    slow = {**case.evidence.ingested, next(iter(batches)): cut_off + 5 * MINUTE}
    waiting = replace(case, evidence=replace(case.evidence, ingested=slow))
    assert (key(1, "early")) in {f.cycle for f in audit(waiting) if f.check == "patience"}


def test_a_cycle_that_waited_long_for_an_upload_may_be_caught_up(case):
    cut_off = SCENARIO.cut_off(SCENARIO.cycles[1], "early")
    at, batches = uses(case, 1, "early")
    late = cut_off + HOUR + MINUTE
    slow = {**case.evidence.ingested, next(iter(batches)): late - MINUTE}
    held = with_cycle(case, key(1, "early"), decided=late, behind_seconds=3660.0, caught_up=True)
    held = replace(held, evidence=replace(held.evidence, ingested=slow))
    held = with_analysis(held, at, cycle={"caught_up": True})
    assert not [f for f in audit(held) if f.cycle == key(1, "early")]


def test_backgrounds_that_are_not_told_or_not_warm(case):
    assert named(with_analysis(case, 5, background={})) == {"backgrounds"}
    cold = {"source": "climatology"}
    assert named(with_analysis(case, 5, background=cold)) == {"backgrounds"}
    future = {"source": "previous_analysis", "analysis_id": case.evidence.analyses[9].analysis_id}
    assert named(with_analysis(case, 5, background=future)) == {"backgrounds"}


def test_two_runs_of_a_day_are_compared_by_what_they_used(case):
    assert same_day(case, case) == ()
    renamed = with_analysis(case, 3, analysis_id="an-other", used=7)
    assert same_day(case, renamed) == ()
    for changes in ({"digest": "0"}, {"revision": 5}, {"flavour": "final"}):
        found = same_day(case, with_analysis(case, 2, **changes))
        assert found and {f.cycle for f in found} <= {key(1, "early"), key(1, "final")}


def test_observations_are_compared_where_the_senders_did_the_same(case):
    analysis = case.evidence.analyses[2]
    name = next(iter(analysis.batches))
    late = analysis.cut_off + MINUTE
    sendings = tuple(
        replace(s, tried=late, acknowledged=late) if s.batch_id == name else s
        for s in case.evidence.sendings
    )
    other = with_analysis(case, 2, digest="0")
    other = replace(other, evidence=replace(other.evidence, sendings=sendings))
    assert not alike(case, other, analysis)
    assert same_day(case, other) == ()


def test_slipped_deliveries_are_found_outside_the_outage(case):
    assert late_cut_offs(SCENARIO, case.plan, case.evidence.sendings) == ()
    first = case.plan[0]
    late = SCENARIO.cut_off(first.hour, "early") + MINUTE
    sendings = (DeliveryRecord(first.name, "batch", late, late), *case.evidence.sendings[1:])
    assert late_cut_offs(SCENARIO, case.plan, sendings) == (first.name,)
