"""What becomes of real files: rows, networks and reasons of each, as a table in Markdown.

    python -m benchmarks.real_files FOLDER [--stations LIST] [--json] > docs/real-files.md

The folder is one of files from outside, in folders by kind; everything in it that is not a list of
stations is decoded in limited processes, as an upload is.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from worker.observations.decoders.base import DecodeReport
from worker.observations.decoders.decode import decode_many_limited
from worker.sandbox import Limits

SKIPPED = {"stations", "tle", "reanalysis"}
"""Folders of no observations."""
HEAD = """# Real files

Files of archives and of the test suites of other projects, decoded as uploads are. Each ends in rows or in a
named reason; reasons are those of the decode report (`appa observations inspect FILE --explain` says more).
`python -m benchmarks.real_files FOLDER` prints this page. The files themselves are not part of this project.
"""


def outcomes(folder: Path) -> Iterator[tuple[str, DecodeReport]]:
    """Yield the name of each file below the folder and the report of its decoding."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.parent != folder
        and path.relative_to(folder).parts[0] not in SKIPPED
    ]
    limits = Limits(cpu_seconds=60, wall_seconds=240)
    for path, decoded in decode_many_limited(files, limits=limits):
        yield path.relative_to(folder.resolve()).as_posix(), decoded.report


def reasons(report: DecodeReport) -> str:
    """Return the reasons with their counts, and in words where the first of them tells more."""
    named = ", ".join(f"{count} {reason}" for reason, count in report.rejected.most_common())
    first = report.quarantined[0].detail if report.quarantined and not report.rows else ""
    words = first.partition("; got ")[2] or first
    words = words.replace("|", "/").replace("\n", " ").replace("\r", "")[:110]
    return f"{named}: {words}" if words else named


def listed(counts: Counter[str]) -> str:
    """Return names with counts, the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def page(found: list[tuple[str, DecodeReport]]) -> Iterator[str]:
    """Yield the lines of the page."""
    yield HEAD
    yield "| folder | files | with rows | messages | reports | rows | flagged |"
    yield "|---|---|---|---|---|---|---|"
    folders = dict.fromkeys(name.rpartition("/")[0] for name, _ in found)
    for folder in (*folders, ""):
        of = [r for name, r in found if folder in ("", name.rpartition("/")[0])]
        numbers = [len(of), sum(r.rows > 0 for r in of)]
        numbers += [sum(getattr(r, n) for r in of) for n in ("messages", "reports", "rows")]
        numbers.append(sum(r.flagged.total() for r in of))
        yield f"| {folder or '**all**'} | {' | '.join(map(str, numbers))} |"
    for folder in folders:
        yield f"\n## {folder}\n"
        yield "| file | form | messages | rows | networks | set aside |"
        yield "|---|---|---|---|---|---|"
        for name, r in found:
            if name.rpartition("/")[0] == folder:
                short = name.rpartition("/")[2].replace("|", "/")
                cells = (
                    short,
                    r.format,
                    r.messages,
                    r.rows,
                    listed(r.rows_by_report_type),
                    reasons(r),
                )
                yield f"| {' | '.join(str(cell) for cell in cells)} |"


def main() -> int:
    """Print the table; return 1 if a file ended in neither rows nor a reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stations", help="list of stations for text, CSV")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.stations:
        os.environ["APPA_STATIONS"] = options.stations
    found = list(outcomes(options.folder.resolve()))
    if options.json:
        print(json.dumps({name: r.model_dump(mode="json") for name, r in found}, indent=1))
    else:
        print("\n".join(page(found)))
    silent = [name for name, r in found if not r.rows and not r.rejected]
    for name in silent:
        print(f"neither rows nor a reason: {name}", file=sys.stderr)
    return bool(silent)


if __name__ == "__main__":
    sys.exit(main())
