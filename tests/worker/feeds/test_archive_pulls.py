"""Pulls from trees laid out as the public archives: which files, resumed where, told how."""

import threading
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from model.domain.errors import ConfigurationError, DecodeError, InvalidInput, StorageError
from tests.worker.feeds.wis2 import bulletin
from worker.contract.layout import Layout
from worker.feeds.archives import ARCHIVES, Pull
from worker.observations.formats import recognise

START, END = datetime(2024, 1, 1, 5, tzinfo=UTC), datetime(2024, 1, 1, 13, tzinfo=UTC)


class Receiver:
    """Keeps what it is sent, as a running system would."""

    def __init__(self, states: tuple[str, ...] = ()) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.states = list(states)
        self.waiting = self.peak_waiting = 0

    def send(self, path: Path) -> str | None:
        data = path.read_bytes()
        try:
            recognise(data)
        except DecodeError:
            return None
        self.sent.append((path.name, data))
        self.waiting += 1
        self.peak_waiting = max(self.peak_waiting, self.waiting)
        return f"batch-{len(self.sent)}"

    def outcome(self, batch: str) -> tuple[str, int, str]:
        self.waiting -= 1
        state = self.states.pop(0) if self.states else "ingested"
        return state, 3, "" if state == "ingested" else "why not"


class Flaky(LocalFileSystem):
    """A local folder whose files break off after some bytes, a few times."""

    protocol = "flaky"
    breaks: list[int] = []
    reads: list[int] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("flaky://").rstrip("/")

    def _open(self, path: str, mode: str = "rb", **options: Any):
        file = super()._open(path, mode, **options)
        whole = file.read

        def read(count: int = -1) -> bytes:
            Flaky.reads.append(file.tell())
            if Flaky.breaks:
                limit = Flaky.breaks.pop(0)
                if limit <= 0:
                    raise OSError("connection reset")
                return whole(limit)
            return whole(count)

        file.read = read
        return file


def write(root: Path, *names: str) -> dict[str, bytes]:
    """Bulletins under names below `root`."""
    found = {}
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        found[name] = bulletin(500 + number)
        path.write_bytes(found[name])
    return found


def pull(tmp_path: Path, archive: str, **values) -> Pull:
    layout = Layout(tmp_path / "data").create()
    root = values.pop("root", str(tmp_path / "tree"))
    return Pull(ARCHIVES[archive], root, layout, **values)


def names(files) -> list[str]:
    return [file.relative for file in files]


def test_the_files_of_gdas(tmp_path):
    wanted = [
        "gdas.20240101/00/atmos/gdas.t00z.adpupa.tm00.bufr_d",
        "gdas.20240101/06/atmos/gdas.t06z.adpsfc.tm00.bufr_d",
        "gdas.20240101/06/atmos/gdas.t06z.prepbufr.nr",
        "gdas.20240101/12/atmos/gdas.t12z.1bamua.tm00.bufr_d",
    ]
    others = [
        "gdas.20240101/06/atmos/gdas.t06z.pgrb2.0p25.f000",
        "gdas.20240101/18/atmos/gdas.t18z.adpupa.tm00.bufr_d",
        "gfs.20240101/06/atmos/gfs.t06z.adpupa.tm00.bufr_d",
    ]
    write(tmp_path / "tree", *wanted, *others)
    assert names(pull(tmp_path, "gdas").files(START, END)) == wanted
    chosen = pull(tmp_path, "gdas", only=("*.prepbufr*",)).files(START, END)
    assert names(chosen) == wanted[2:3]


@pytest.mark.parametrize(
    ("archive", "wanted", "other"),
    [
        (
            "nnja",
            "conv/adpsfc/NC000001/OBS_DATE=2024-01-01/gdas.20240101.NC000001.parquet",
            "conv/adpsfc/NC000001/OBS_DATE=2024-01-02/gdas.20240102.NC000001.parquet",
        ),
        (
            "nnja-bufr",
            "atms/atms/2024/01/bufr/gdas.20240101.t06z.atms.tm00.bufr_d",
            "atms/atms/2024/01/bufr/gdas.20240101.t18z.atms.tm00.bufr_d",
        ),
        (
            "nnja-bufr",
            "conv/prepbufr/2024/01/prepbufr/gdas.20240101.t12z.prepbufr.nr",
            "conv/prepbufr/2024/01/prepbufr/gdas.20240102.t12z.prepbufr.nr",
        ),
        ("era5-obs", "2024/01/01/conv.odb", "2024/01/02/conv.odb"),
    ],
)
def test_the_files_of_other_archives(tmp_path, archive, wanted, other):
    write(tmp_path / "tree", wanted, other)
    assert names(pull(tmp_path, archive).files(START, END)) == [wanted]


def test_a_pull_goes_on_where_it_stopped(tmp_path):
    data = write(
        tmp_path / "tree",
        *[f"gdas.20240101/06/atmos/gdas.t06z.{kind}.tm00.bufr_d" for kind in "abcd"],
    )
    page = "gdas.20240101/06/atmos/gdas.t06z.page.tm00.bufr_d"
    (tmp_path / "tree" / page).write_text("<html>no data</html>")
    first = pull(tmp_path, "gdas", ahead=2)
    files = first.files(START, END)
    receiver = Receiver(("ingested", "rejected", "failed"))
    run = first.run(first.left(files), receiver, lambda *_: None)
    ended = [next(run) for _ in range(3)]
    assert [o.state for o in ended] == ["ingested", "rejected", "failed"]
    assert receiver.peak_waiting == 2
    del run, first  # interrupted
    ledger = tmp_path / "data" / "pulls" / "gdas.jsonl"
    ledger.write_text(ledger.read_text() + '{"key": "cut o')
    second = pull(tmp_path, "gdas")
    left = second.left(second.files(START, END))
    assert [f.relative[-13] for f in left[:2]] == ["c", "d"]  # the failed one, and the rest
    receiver = Receiver()
    outcomes = list(second.run(left, receiver, lambda *_: None))
    assert {one for _, one in receiver.sent} <= set(data.values())
    assert {o.file: o.state for o in outcomes}[page] == "not_decoded"
    third = pull(tmp_path, "gdas")
    assert names(third.left(third.files(START, END))) == [page]  # until a decoder reads it


def test_a_changed_file_is_pulled_again(tmp_path):
    name = "2024/01/01/conv.odb"
    write(tmp_path / "tree", name)
    first = pull(tmp_path, "era5-obs")
    list(first.run(first.files(START, END), Receiver(), lambda *_: None))
    assert first.left(first.files(START, END)) == []
    (tmp_path / "tree" / name).write_bytes(bulletin(1) + bulletin(2))
    assert len(first.left(first.files(START, END))) == 1


def test_a_download_that_breaks_off_goes_on_from_there(tmp_path):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    name = "2024/01/01/conv.odb"
    data = write(tmp_path / "tree", name)[name]
    one = pull(tmp_path, "era5-obs", root=f"flaky://{tmp_path / 'tree'}")
    files = one.files(START, END)
    Flaky.breaks, Flaky.reads = [40, 0, 60, 0], []
    seen: list[int] = []
    receiver = Receiver()
    outcomes = list(one.run(files, receiver, lambda file, here: seen.append(here)))
    assert [o.state for o in outcomes] == ["ingested"]
    assert receiver.sent == [("conv.odb", data)]
    assert seen == [40, 100, len(data)]
    assert Flaky.reads[:5] == [0, 40, 40, 100, 100]  # nothing is read twice
    assert not [p for p in (tmp_path / "data" / "pulls").iterdir() if p.is_dir()]


def test_an_archive_that_stays_away_ends_with_a_sentence(tmp_path, monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr("worker.feeds.archives._TRIES", 2)
    write(tmp_path / "tree", "2024/01/01/conv.odb")
    one = pull(tmp_path, "era5-obs", root=f"flaky://{tmp_path / 'tree'}")
    files = one.files(START, END)
    Flaky.breaks = [0] * 10
    with pytest.raises(StorageError, match="Run the same command again"):
        list(one.run(files, Receiver(), lambda *_: None))


def test_what_cannot_be_pulled(tmp_path):
    with pytest.raises(ConfigurationError, match="Expected --root"):
        pull(tmp_path, "era5-obs", root="")
    with pytest.raises(InvalidInput, match="Expected END after START"):
        pull(tmp_path, "gdas").files(END, START)
    with pytest.raises(ConfigurationError, match="reads"):
        pull(tmp_path, "gdas", root="nonsense://x")
    with pytest.raises(ConfigurationError, match=r"appa-service\[archives\]"):
        pull(tmp_path, "nnja", root=ARCHIVES["nnja"].root)
    assert pull(tmp_path, "gdas").files(START, END) == []


@pytest.fixture
def website(tmp_path):
    """The tree over HTTP, with listings of its folders and without byte ranges."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(tmp_path / "tree"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_web_server_is_an_archive_too(tmp_path, website):
    name = "gdas.20240101/06/atmos/gdas.t06z.adpsfc.tm00.bufr_d"
    data = write(tmp_path / "tree", name, "gdas.20240101/06/atmos/gdas.t06z.pgrb2.f000")[name]
    one = pull(tmp_path, "gdas", root=website)
    files = one.files(START, END)
    assert [(f.relative, f.size) for f in files] == [(name, len(data))]
    receiver = Receiver()
    part = one._place(files[0])  # what an earlier pull left behind
    part.parent.mkdir(parents=True)
    part.write_bytes(data[:50])
    outcomes = list(one.run(files, receiver, lambda *_: None))
    assert [o.state for o in outcomes] == ["ingested"]
    assert receiver.sent == [(Path(name).name, data)]
