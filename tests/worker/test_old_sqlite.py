"""The files of the service under the SQLite that eccodes brings: whichever is imported first is in use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PREPARE = """
import json, sys, time
import eccodes, sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from worker.contract.layout import Layout
layout = Layout(Path(sys.argv[1])).create()
found = {"version": sqlite3.sqlite_version_info}
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
"""

BACKLOG = """
from tests.worker.feeds.wis2 import notification
from worker.feeds.backlog import Backlog, Received
from worker.feeds.notification import parse
from worker.feeds.sources import Source
source = Source(name="gb", broker="mqtt://h", topics=["cache/#"])
backlog = Backlog(layout.backlog_file)
told = [
    Received(parse(json.dumps(notification(b"x", f"https://h/{n}", f"id/{n}")).encode()), 1.0)
    for n in (1, 2, 3, 3)
]
found["fresh"] = backlog.take(source, told, {"invalid_message": 2})
first, second, third = backlog.due("gb", 9, (), time.time())
backlog.finish("gb", first, "b" * 64, 5, created=True)
backlog.refuse("gb", second, "integrity", "a checksum")
backlog.postpone(source, third, "404", 60.0)
backlog.store_connection(backlog.status(source))
status = backlog.line(backlog.status(source))
found["counts"] = [status.received, status.duplicates, status.accepted, status.size, status.backlog,
                   status.failures, status.refused]
found["refusals"] = backlog.refusals("gb")
found["later"] = backlog.next_due("gb") > time.time() + 30.0
found["queued"] = backlog.queue("seen", "7", [("e1", "t", "one"), ("e2", "t", "two")])
found["queued again"] = backlog.queue("seen", "8", [("e1", "t", "one")])
found["not begun"] = backlog.echoed("one")
backlog.begin("e1")
found["echo"] = [backlog.echoed("one"), backlog.echoed("one")]
found["unsent"] = [(a.event, a.begun) for a in backlog.unsent()]
found["sent"] = [backlog.sent("e2"), backlog.sent("e2"), backlog.unconfirmed()[0], backlog.mark("seen")]
backlog.drop_others(())
found["gone"] = [backlog.waiting("gb"), backlog.forget(-1.0)]
backlog.close()
"""

SUITES = """
from worker.contract.suites import Outcome, PairedSquares, Suite, SuiteStore, Trial, TrialCycle
suites = SuiteStore(layout.suites_file)
suite = Suite(name="wider")
trial = suites.begin(Trial(id=0, suite=suite, suite_id=suite.id, champion_id="", begun=NOON,
                           first_time=NOON, counted_from=NOON, least_cycles=1))
pair = PairedSquares(network="synop", variable="2m_temperature", count=2, champion=1.0, challenger=0.5)
for state in ("submitted", "published"):
    cycle = TrialCycle("k", NOON, state, 1, "j", "an", "ch", "")
    suites.note_cycle(trial, cycle, [pair])
found["cycles"] = [suites.counts(trial), suites.newest(trial, state="published").key,
                   len(suites.pairs(trial)[NOON])]
suites.update(trial, note="soon")
ended = suites.end(trial, Outcome.PROMOTED)
found["suites"] = [ended.note, suites.champion().name, suites.trial() is None, len(suites.trials())]
suites.revert()
found["reverted"] = [suites.champion() is None, len(suites.champion_periods()),
                     suites.last_trial_of(suite).id]
"""

RECORDS = """
from worker.contract.archive import ArchivedRecord, RecordArchive
archive = RecordArchive(layout)
def kept(name, state, **more):
    return ArchivedRecord("job", name, state, "filtering", {"id": name}, 5.0, False, **more)
archive.put([kept("a", "done", names={"n": "v"}), kept("b", "failed", events=[["1", "x", "{}"]])])
archive.put([kept("a", "failed")])
found["records"] = [archive.count("job"), archive.count("job", state="failed"),
                    [k.id for k in archive.select("job", state="failed")], archive.states("job", "a"),
                    archive.names("job", ["n", "m"]), sorted(archive.known("job", ["a", "b", "c"]))]
archive.set_present("job", ["a"], True)
found["present"] = [archive.count("job"), [k.id for k in archive.in_redis("job")]]
found["expired"] = [archive.expire("job", 9.0), archive.count("job")]
archive.close()
"""

RESULTS = """
from tests.worker.retention import results
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter
for n in range(3):
    results.publish(layout, f"an-{n}", age_days=n, hour=n, flavour="final")
with Catalogue(layout) as catalogue:
    found["all"] = sorted(entry.id for entry in catalogue.entries())
    some = ResultFilter(kind="filtering", ids={"an-0", "an-2", "an-9"}, flavour="final")
    found["some"] = sorted(entry.id for entry in catalogue.entries(some))
    found["page"] = catalogue.select(ResultFilter(), None, 2).total
"""

COPIED = """
from worker.backup.backup import _copy_database
_copy_database(layout.suites_file, layout.root / "copy.sqlite")
found["copied"] = len(SuiteStore(layout.root / "copy.sqlite").trials())
print(json.dumps(found))
"""


def test_all_files_work_under_the_sqlite_of_eccodes(tmp_path):
    program = PREPARE + BACKLOG + SUITES + RECORDS + RESULTS + COPIED
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "data")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    if found.pop("version") >= [3, 35, 0]:
        pytest.skip("this build of eccodes brings no old SQLite")
    assert found == {
        "fresh": 3,
        "counts": [6, 1, 1, 5, 1, 1, {"integrity": 1, "invalid_message": 2}],
        "refusals": [["id/2", "integrity", "a checksum"]],
        "later": True,
        "queued": 2,
        "queued again": 0,
        "not begun": None,
        "echo": ["e1", None],
        "unsent": [["e2", False]],
        "sent": [True, False, 0, "8"],
        "gone": [0, 2],
        "cycles": [{"published": 1}, "k", 1],
        "suites": ["", "wider", True, 1],
        "reverted": [True, 2, 1],
        "records": [2, 2, ["b", "a"], {"a": "failed", "b": "failed"}, {"n": "v"}, ["a", "b"]],
        "present": [1, ["a"]],
        "expired": [1, 0],
        "all": ["an-0", "an-1", "an-2"],
        "some": ["an-0", "an-2"],
        "page": 3,
        "copied": 1,
    }
