"""Which observations each analysis should have had, worked out from plan and senders' log alone.

Nothing here asks the system that is on trial: an upload must be in if its sender had the answer by
the cut-off, and must not be in if it was sent after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from deploy.rehearsal.content import Content
from deploy.rehearsal.delivery import Delivery
from deploy.rehearsal.evidence import Sending
from deploy.rehearsal.scenario import HOUR, Scenario

__all__ = ["Expectation", "expectation", "slipped"]

HALF_AN_HOUR = timedelta(minutes=30)


@dataclass
class Expectation:
    """What one analysis should be made of: values in its window by upload.

    Attributes:
        start, end: The window (start, end].
        cut_off: Last arrival.
        must: Uploads that were there.
        may: Uploads on their way at the cut-off.
        copies: Uploads that repeat another, whose values may not be used again.
    """

    start: datetime
    end: datetime
    cut_off: datetime
    must: dict[str, int] = field(default_factory=dict)
    may: dict[str, int] = field(default_factory=dict)
    copies: set[str] = field(default_factory=set)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to use for certain."""
        return not any(self.must.values()) and not any(self.may.values())


def expectation(
    scenario: Scenario,
    valid_time: datetime,
    flavour: str,
    plan: Sequence[Delivery],
    contents: Mapping[str, Content],
    sendings: Sequence[Sending],
) -> Expectation:
    """What an analysis should be made of."""
    start = valid_time - scenario.window_hours * HOUR + HALF_AN_HOUR
    wanted = Expectation(start, valid_time, scenario.cut_off(valid_time, flavour))
    deliveries = {d.name: d for d in plan}
    arrived: set[str] = set()
    # The same bytes twice are one upload, there since the first time.
    for sending in sorted(sendings, key=lambda s: s.acknowledged):
        if sending.batch_id in arrived:
            continue
        arrived.add(sending.batch_id)
        delivery = deliveries[sending.name]
        values = contents[sending.name].within(start, valid_time)
        if not values or sending.tried > wanted.cut_off:
            continue
        if sending.acknowledged <= wanted.cut_off:
            wanted.must[sending.batch_id] = values
        else:
            wanted.may[sending.batch_id] = values
        if delivery.copy_of:
            wanted.copies.add(sending.batch_id)
    return wanted


def slipped(
    scenario: Scenario, plan: Sequence[Delivery], sendings: Sequence[Sending]
) -> tuple[str, ...]:
    """Deliveries that the senders did not get in on the planned side of their own cut-offs.

    Those planned for the outage are meant to come late and are not counted.
    """
    deliveries = {d.name: d for d in plan}
    found = []
    for sending in sendings:
        delivery = deliveries[sending.name]
        if scenario.outage is not None and delivery.arrival in scenario.outage:
            continue
        for flavour in ("early", "final"):
            cut_off = scenario.cut_off(delivery.hour, flavour)
            if (delivery.arrival <= cut_off) != (sending.acknowledged <= cut_off):
                found.append(sending.name)
                break
    return tuple(found)
