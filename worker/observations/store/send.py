"""Send an observation store from the data folder to a bucket, once, when an installation moves."""

from collections.abc import Iterator
from pathlib import Path

from worker.contract.buckets import open_bucket
from worker.contract.layout import Layout
from worker.observations.store.commits import hour_of_log
from worker.observations.store.files import StoreFiles

__all__ = ["send_store"]


def send_store(layout: Layout) -> int:
    """Copy the store of the data folder to the bucket; return how many files it had.

    Nobody may write to it meanwhile. Files come first and what makes them count last, as in
    publication, so that it may be cut off anywhere and run again. The folder is renamed to
    `observations-sent` at the end, to be deleted by hand.

    Raises:
        BucketUnavailable: If the bucket does not answer; run it again.
        OSError: If the disk fails.
    """
    source = layout.root / "observations"
    old, new = StoreFiles(str(source)), StoreFiles.of(layout)
    bucket, count = open_bucket(layout.observations_url), 0
    for path in _in_order(source):
        bucket.send(path, str(path.relative_to(source)))
        count += 1
    for log in old.logs():
        target = new.log(hour_of_log(log.name))
        for commit in log.commits():
            manifests = {one["batch_id"]: one for one in log.content(commit)}
            target.append(commit.name, commit.hours, manifests)
        count += 1
    if source.exists():
        source.rename(layout.root / "observations-sent")
    return count


def _in_order(source: Path) -> Iterator[Path]:
    """Yield the files to copy: rows, then what manifests share, then manifests."""
    for pattern in ("date=*/hour=*/[!._]*", "shared/[!.]*", "date=*/hour=*/_*", "batches/[!.]*"):
        yield from sorted(source.glob(pattern))
