"""The catalogue says what the folders say, whoever was killed, and whatever was damaged."""

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.worker.retention import results
from worker.contract.layout import Layout
from worker.results import catalogue as module
from worker.results.catalogue import Catalogue
from worker.results.entries import Entry, ResultFilter
from worker.results.manifest import AnalysisManifest, NoSuchAnalysis, describe_file, read_manifest
from worker.results.publication import write_manifest
from worker.results.retention.plan import RetentionItem, RetentionPlan
from worker.results.retention.run import remove_all

HOUR = timedelta(hours=1)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path).create()


def ids(catalogue: Catalogue, **wanted: Any) -> list[str]:
    return [entry.id for entry in catalogue.entries(ResultFilter(**wanted))]


def asked(layout: Layout, **wanted: Any) -> list[str]:
    """What a process that comes new is told."""
    with Catalogue(layout) as catalogue:
        return ids(catalogue, **wanted)


def drop(layout: Layout, what: Literal["analysis", "restart"], name: str) -> None:
    item = RetentionItem(what=what, name=name, size=1, age_days=1.0, reason="test")
    assert remove_all(layout, RetentionPlan((item,), {})) == [item]


def some_results(layout: Layout, count: int = 6) -> list[AnalysisManifest]:
    flavours = ("early", "final", "")
    return [
        results.publish(layout, f"an-{i}", age_days=i, hour=i // 2, flavour=flavours[i % 3])
        for i in range(count)
    ]


def in_process(layout: Layout, program: str) -> "subprocess.Popen[str]":
    """A process that knows `layout`, `Catalogue` and `results`."""
    start = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from tests.worker.retention import results\nfrom worker.contract.layout import Layout\n"
        "from worker.results import catalogue as module\n"
        "from worker.results.catalogue import Catalogue\n"
        f"layout = Layout(Path({str(layout.root)!r}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", start + program],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip


def killed(process: "subprocess.Popen[str]") -> None:
    """Waits for a process that kills itself."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors


def test_an_entry_says_what_the_manifest_says(layout: Layout) -> None:
    made = results.publish(layout, "an-1", age_days=2, flavour="early", hour=5)
    with Catalogue(layout) as catalogue:
        [entry] = catalogue.entries()
    time = results.BASE + 5 * HOUR
    assert entry == Entry(
        id="an-1", stamp=layout.manifest("an-1").stat().st_mtime_ns, kind="filtering",
        flavour="early", revision=1, valid_time=time, first_time=time, last_time=time,
        created=made.created, cycle="", suite="", checkpoint="", restart_bytes=len(results.RESTART),
        dataset="a.nc",
    )  # fmt: skip


def test_following_step_by_step_and_filling_anew_agree(layout: Layout) -> None:
    """Results come and go in any order; the folder itself is the judge."""
    draw = random.Random(4)
    present: set[str] = set()
    stripped: set[str] = set()
    with Catalogue(layout) as follower:
        for step in range(40):
            if present and draw.random() < 0.3:
                name = draw.choice(sorted(present))
                drop(layout, "analysis", name)
                present.remove(name)
            elif present - stripped and draw.random() < 0.3:
                name = draw.choice(sorted(present - stripped))
                drop(layout, "restart", name)
                stripped.add(name)
            else:
                name = f"an-{step}"
                hour, flavour = draw.randrange(9), draw.choice(("early", "final", ""))
                results.publish(layout, name, age_days=draw.random(), hour=hour, flavour=flavour)
                present.add(name)
            if draw.random() < 0.7:
                assert set(ids(follower)) == present
                assert set(ids(follower, with_restart=True)) == present - stripped
        followed = follower.entries()
        assert follower.rebuild() == len(present)
        assert follower.entries() == followed
    with Catalogue(layout) as other:
        assert other.entries() == followed
    layout.catalogue_file.unlink()
    with Catalogue(layout) as new:
        assert new.entries() == followed
    manifests = [read_manifest(layout, name) for name in present]
    newest = max(manifests, key=lambda m: (m.valid_time, m.revision, m.created))
    assert followed[0].id == newest.id


FILTERS: dict[str, tuple[ResultFilter, Callable[[AnalysisManifest], bool]]] = {
    "kind": (ResultFilter("forecast"), lambda m: m.kind == "forecast"),
    "kinds": (ResultFilter(["forecast", "reanalysis"]), lambda m: m.kind == "forecast"),
    "no kind": (ResultFilter([]), lambda m: False),
    "early": (ResultFilter(flavour="early"), lambda m: m.flavour == "early"),
    "manual": (ResultFilter(flavour=""), lambda m: m.flavour == ""),
    "ids": (ResultFilter(ids=["an-3", "fc-0", "none"]), lambda m: m.id in ("an-3", "fc-0")),
    "all": (ResultFilter(), lambda m: True),
    "challenger": (ResultFilter(flavour="challenger"), lambda m: False),
    "with challengers": (ResultFilter(challengers=True), lambda m: True),
    "from": (
        ResultFilter(valid_from=results.BASE + 2 * HOUR),
        lambda m: m.valid_time >= results.BASE + 2 * HOUR,
    ),
    "to": (
        ResultFilter(valid_to=results.BASE + HOUR),
        lambda m: m.valid_time <= results.BASE + HOUR,
    ),
    "meets": (
        ResultFilter(start=results.BASE + HOUR, end=results.BASE + 2 * HOUR),
        lambda m: max(m.times) >= results.BASE + HOUR and min(m.times) <= results.BASE + 2 * HOUR,
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_accept_what_they_describe(layout: Layout, name: str) -> None:
    wanted, accepts = FILTERS[name]
    made = some_results(layout)
    made += [results.publish(layout, f"fc-{i}", age_days=1, kind="forecast") for i in range(2)]
    tried = results.publish(layout, "an-tried", age_days=1, flavour="challenger", hour=1)
    expected = {m.id for m in made if accepts(m)} | ({tried.id} if "challenger" in name else set())
    with Catalogue(layout) as catalogue:
        assert {entry.id for entry in catalogue.entries(wanted)} == expected
        page = catalogue.select(wanted, None, 100)
        assert ({m.id for m in page.items}, page.total) == (expected, len(expected))


def test_pages_hold_everything_once_newest_first(layout: Layout) -> None:
    made = some_results(layout, 7)
    order = sorted(made, key=lambda m: (m.valid_time, m.created), reverse=True)
    with Catalogue(layout) as catalogue:
        found, cursor = [], None
        while True:
            page = catalogue.select(ResultFilter(), cursor, 3)
            assert page.total == 7
            found.append([m.id for m in page.items])
            if (cursor := page.next_cursor) is None:
                break
        assert [len(p) for p in found] == [3, 3, 1]
        assert sum(found, []) == [m.id for m in order]
        assert catalogue.latest(ResultFilter()) == order[0]


def test_a_process_killed_right_after_publishing_loses_nothing(layout: Layout) -> None:
    """The folder has its public name; nothing else was done."""
    some_results(layout, 2)
    with Catalogue(layout) as catalogue:
        assert len(catalogue.entries()) == 2
        program = (
            "results.update_latest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "results.publish(layout, 'an-last', age_days=0, hour=9)\n"
        )
        killed(in_process(layout, program))
        assert ids(catalogue)[0] == "an-last"


@pytest.mark.parametrize("rows", [0, 3, 5])
def test_a_process_killed_while_filling_leaves_a_sound_catalogue(layout: Layout, rows: int) -> None:
    some_results(layout)
    layout.catalogue_file.unlink()
    program = (
        "index, done = Catalogue._index, []\n"
        "def stop(self, *args):\n"
        f"    if len(done) == {rows}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    done.append(index(self, *args))\n"
        "Catalogue._index = stop\n"
        "Catalogue(layout).entries()\n"
    )
    killed(in_process(layout, program))
    assert len(asked(layout)) == 6
    with sqlite3.connect(layout.catalogue_file) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()


def test_processes_that_publish_delete_and_ask_at_once_agree(layout: Layout) -> None:
    program = """
from tests.worker.test_catalogue import drop
name = sys.argv[1]
with Catalogue(layout) as catalogue:
    for i in range(12):
        results.publish(layout, f"an-{name}-{i}", age_days=1, hour=i)
        mine = {e.id for e in catalogue.entries() if e.id.startswith(f"an-{name}-")}
        assert f"an-{name}-{i}" in mine, (i, mine)
        if i % 3 == 2:
            drop(layout, "analysis", f"an-{name}-{i - 1}")
            mine = {e.id for e in catalogue.entries() if e.id.startswith(f"an-{name}-")}
        assert len(mine) == i + 1 - (i + 1) // 3, (i, mine)
"""
    both = [in_process(layout, program.replace("sys.argv[1]", repr(n))) for n in ("a", "b")]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "catalogue replaced" not in errors and "kept in memory" not in errors
    expected = {f"an-{n}-{i}" for n in "ab" for i in range(12) if i % 3 != 1}
    assert set(asked(layout)) == expected


def test_threads_share_one_catalogue(layout: Layout) -> None:
    catalogue, faults = Catalogue(layout), []

    def ask() -> None:
        try:
            for _ in range(30):
                page = catalogue.select(ResultFilter(), None, 50)
                assert len(page.items) == page.total
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    some_results(layout, 12)
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(catalogue.entries()) == 12
    catalogue.close()


def test_a_page_and_the_number_of_all_are_of_one_moment(layout, monkeypatch) -> None:
    some_results(layout, 3)
    counted = module._count

    def late(*question: Any) -> int:
        monkeypatch.undo()
        results.publish(layout, "an-late", age_days=0, hour=9, flavour="")
        with Catalogue(layout) as other:
            assert len(other.entries()) == 4
        return counted(*question)

    with Catalogue(layout) as catalogue:
        catalogue.entries()
        monkeypatch.setattr(module, "_count", late)
        page = catalogue.select(ResultFilter(), None, 50)
        assert (len(page.items), page.total) == (3, 3)
        assert catalogue.select(ResultFilter(), None, 50).total == 4


def test_removal_by_retention_is_seen_by_everybody(layout: Layout) -> None:
    some_results(layout, 3)
    with Catalogue(layout) as one, Catalogue(layout) as other:
        for catalogue in (one, other):
            assert set(ids(catalogue)) == {"an-0", "an-1", "an-2"}
        drop(layout, "analysis", "an-1")
        drop(layout, "restart", "an-0")
        for catalogue in (one, other):
            assert set(ids(catalogue)) == {"an-0", "an-2"}
            assert ids(catalogue, with_restart=True) == ["an-2"]
            assert catalogue.find("an-1") is None
            assert catalogue.get("an-0").flags == ["restart_removed"]
            with pytest.raises(NoSuchAnalysis, match="'an-1'"):
                catalogue.get("an-1")


def overwrite(path: Path) -> None:
    path.write_bytes(b"no database at all\n" * 500)


def tear(path: Path) -> None:
    """A file system that lost the second half of every page."""
    content = bytearray(path.read_bytes())
    for page in range(0, len(content), 4096):
        content[page + 2048 : page + 4096] = bytes(2048)
    path.write_bytes(content)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def age(path: Path) -> None:
    """A catalogue of an earlier version of the program."""
    with sqlite3.connect(path) as database:
        database.executescript("DROP TABLE results; CREATE TABLE results (name TEXT)")
        database.execute("PRAGMA user_version = 999")
    database.close()


@pytest.mark.parametrize("damage", [overwrite, tear, halve, empty, age, Path.unlink])
def test_a_damaged_catalogue_is_filled_anew(layout: Layout, damage: Callable[[Path], None]) -> None:
    some_results(layout, 40)
    with Catalogue(layout) as catalogue:
        before = catalogue.entries()
    damage(layout.catalogue_file)
    with Catalogue(layout) as catalogue:
        assert catalogue.entries() == before
    with sqlite3.connect(layout.catalogue_file) as database:
        assert database.execute("SELECT COUNT(*) FROM results").fetchone() == (40,)
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()


def test_a_catalogue_that_is_replaced_while_open_is_opened_again(layout: Layout) -> None:
    some_results(layout, 3)
    with Catalogue(layout) as catalogue:
        assert len(catalogue.entries()) == 3
        for name in ("catalogue.sqlite", "catalogue.sqlite-wal", "catalogue.sqlite-shm"):
            (layout.root / name).unlink(missing_ok=True)
        results.publish(layout, "an-new", age_days=0)
        assert len(catalogue.entries()) == 4
        assert len(asked(layout)) == 4


def test_false_rows_go_with_a_rebuild(layout: Layout) -> None:
    some_results(layout, 3)
    with Catalogue(layout) as catalogue:
        catalogue.entries()
        with sqlite3.connect(layout.catalogue_file) as database:
            database.execute("UPDATE results SET flavour = 'wrong'")
        database.close()
        assert catalogue.rebuild() == 3
        assert {entry.flavour for entry in catalogue.entries()} == {"early", "final", ""}


def test_without_a_place_for_the_file_it_is_kept_in_memory(layout: Layout) -> None:
    layout.catalogue_file.mkdir()  # cannot be opened as a file, nor replaced
    some_results(layout, 3)
    with Catalogue(layout) as catalogue:
        assert len(catalogue.entries()) == 3
        drop(layout, "analysis", "an-1")
        assert len(catalogue.entries()) == 2
    assert list(layout.catalogue_file.iterdir()) == []


def test_a_full_disk_does_not_hide_results(layout: Layout) -> None:
    some_results(layout, 3)
    with Catalogue(layout) as catalogue:
        catalogue.entries()
        limit = catalogue._connect().execute("PRAGMA page_count").fetchone()[0]
        catalogue._connect().execute(f"PRAGMA max_page_count = {limit}")
        for i in range(60):
            results.publish(layout, f"an-more-{i}", age_days=0)
        assert len(catalogue.entries()) == 63


def test_on_a_network_file_system_no_file_is_shared(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_on_network", lambda path: True)
    some_results(layout, 3)
    assert len(asked(layout)) == 3
    assert not layout.catalogue_file.exists()


def test_unreadable_folders_are_named_and_seen_when_mended(layout: Layout) -> None:
    made = results.publish(layout, "an-good", age_days=1)
    for name in ("an-bare", "an-torn", "an-other"):
        layout.analysis(name).mkdir()
    layout.manifest("an-torn").write_text("{")
    layout.manifest("an-other").write_text(made.model_dump_json())
    (layout.analyses / ".hidden").touch()
    with Catalogue(layout) as catalogue:
        assert ids(catalogue) == ["an-good"]
        reasons = catalogue.unreadable()
        assert set(reasons) == {"an-bare", "an-torn", "an-other", ".hidden"}
        assert reasons["an-bare"] == "no manifest"
        assert "'an-good'" in reasons["an-other"]
        assert catalogue.find("an-torn") is catalogue.find("an-other") is None
        settle(layout)
        ids(catalogue)
        mended = made.model_copy(update={"id": "an-torn"}).model_dump_json()
        layout.manifest("an-torn").write_text(mended)  # the folder of results is not touched
        assert set(ids(catalogue)) == {"an-good", "an-torn"}


def settle(layout: Layout) -> None:
    """Nothing has happened for a while."""
    before = layout.analyses.stat().st_mtime_ns - 10**10
    os.utime(layout.analyses, ns=(before, before))


def test_nothing_is_read_while_nothing_changes(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_results(layout, 3)
    settle(layout)
    with Catalogue(layout) as catalogue:
        assert len(catalogue.select(ResultFilter(), None, 10).items) == 3
        read: list[str] = []
        monkeypatch.setattr(module, "read_manifest", lambda layout, name: read.append(name))
        monkeypatch.setattr(os, "listdir", lambda path: read.append(path))
        assert len(catalogue.entries()) == 3
        assert len(catalogue.select(ResultFilter(), None, 10).items) == 3
        assert len(asked(layout)) == 3  # nor by a process that comes new
        assert read == []


def test_names_from_outside_lead_nowhere(layout: Layout) -> None:
    some_results(layout, 1)
    with Catalogue(layout) as catalogue:
        for name in ("..", "../analyses/an-0", "/etc", "", "an-0/..", "an\0"):
            assert catalogue.find(name) is None
        with pytest.raises(NoSuchAnalysis, match="a.nc, restart.safetensors"):
            catalogue.file("an-0", "manifest.json")
        assert catalogue.file("an-0", "a.nc")[1].read_bytes() == results.DATA


def test_no_data_folder_is_no_result(tmp_path: Path) -> None:
    assert asked(Layout(tmp_path / "none")) == []
    assert not (tmp_path / "none").exists()


def test_each_file_is_hashed_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    digest = hashlib.file_digest

    def noted(file: Any, name: str) -> Any:
        hashed.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    made = results.publish(layout, "an-1", age_days=1)
    assert sorted(Path(name).name for name in hashed) == ["a.nc", "restart.safetensors"]
    assert made.files[0].sha256 == hashlib.sha256(results.DATA).hexdigest()


def test_a_file_that_changed_its_size_is_not_published(layout: Layout, tmp_path: Path) -> None:
    made = results.publish(layout, "an-1", age_days=1)
    folder = tmp_path / "stage"
    shutil.copytree(layout.analysis("an-1"), folder)
    assert describe_file(folder / "a.nc") == made.files[0]
    (folder / "a.nc").write_bytes(results.DATA[:-1])
    with pytest.raises(OSError, match=r"changed after it was written: a\.nc"):
        write_manifest(folder, made)
