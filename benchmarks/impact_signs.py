"""Whether the estimated impact of networks has the sign that an experiment finds.

    python -m benchmarks.impact_signs CYCLE [CYCLE ...] [--url URL] [--key KEY] [--json]

For each CYCLE of a running stack (`20031001T12Z_final`) and each network that its analysis used,
`appa deny` makes the analysis again without the network. The estimate of the cycle says which share
of the squared error of the background at withheld stations the network took away; the experiment
says by how much the error there changes without it. Both are averaged over the cycles; their signs
should agree for nine networks of ten. `appa rehearse --keep` leaves a day to try this on:

    appa up --data rehearsal/data-…/data-0
"""

import argparse
import json
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from appa_client import AppaClient
from deploy.local import python_command


@dataclass
class NetworkSigns:
    """What estimates and experiments say of one network.

    Attributes:
        estimates: By cycle, share of the squared error at withheld stations that it took away.
        changes: By cycle, relative change of the root mean square error there without it.
    """

    estimates: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether the means have the same sign."""
        return fmean(self.estimates) * fmean(self.changes) > 0

    def row(self) -> dict[str, float | int | bool]:
        """Return the figures of the table."""
        count = len(self.changes)
        spread = stdev(self.changes) / count**0.5 if count > 1 else float("nan")
        return {
            "cycles": count,
            "estimate": fmean(self.estimates),
            "change_without": fmean(self.changes),
            "standard_error": spread,
            "agrees": self.agrees,
        }


def deny(network: str, cycle: str, url: str, key: str | None) -> dict[str, Any]:
    """Run `appa deny` and return its answer."""
    options = ["--url", url, *(["--key", key] if key else []), "--json"]
    command = python_command(["appa", "deny", network, cycle, *options])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def compare_signs(cycles: list[str], url: str, key: str | None) -> dict[str, NetworkSigns]:
    """Deny each network of each cycle, and return what was found by network."""
    found: dict[str, NetworkSigns] = defaultdict(NetworkSigns)
    with AppaClient(url, key=key) as client:
        analyses = {cycle: client.cycle(cycle).analysis_id for cycle in cycles}
        impact = {cycle: client.analysis(one).scores["impact"] for cycle, one in analyses.items()}
    for cycle in cycles:
        for network, estimate in impact[cycle].items():
            answer = deny(network, cycle, url, key)
            found[network].estimates.append(estimate)
            found[network].changes.append(answer["change_without"])
    return found


def main() -> None:
    """Compare the signs and print a line a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cycles", nargs="+", metavar="CYCLE", help="keys of `appa cycles list`")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = compare_signs(arguments.cycles, arguments.url, arguments.key)
    rows = {name: network.row() for name, network in sorted(found.items())}
    agreeing = sum(network.agrees for network in found.values())
    if arguments.json:
        print(json.dumps({"networks": rows, "agreeing": agreeing, "of": len(rows)}, indent=1))
        return
    table = Table("network", "cycles", "estimate, %", "error without, %", "agrees")
    for name, row in rows.items():
        change = f"{100 * row['change_without']:+.2f} ± {100 * row['standard_error']:.2f}"
        sign = "yes" if row["agrees"] else "no"
        table.add_row(name, str(row["cycles"]), f"{100 * row['estimate']:+.2f}", change, sign)
    Console().print(table)
    Console().print(f"signs agree for {agreeing} of {len(rows)} networks")


if __name__ == "__main__":
    main()
