"""Send each file of a plan at its time over HTTP; failed deliveries are retried, in order."""

import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

import httpx

from appa_client import AppaClient, UnavailableError
from lab.rehearsal.content import DeliveryContent
from lab.rehearsal.evidence import DeliveryRecord
from lab.rehearsal.scenario import Outage, PlannedDelivery
from worker.contract.clock import Clock

__all__ = ["ReportSender"]

_PAUSE = 0.2
_TIMEOUT = 30.0


class ReportSender(threading.Thread):
    """Send the files of a plan.

    Arguments:
        url: Of the gateway.
        plan: Deliveries in order.
        contents: Their bytes, by name; those without any are not sent.
        clock: The operational clock.
        outage: When the gateway is down; senders try again once it is over.
    """

    def __init__(
        self,
        url: str,
        plan: Sequence[PlannedDelivery],
        contents: Mapping[str, DeliveryContent],
        clock: Clock,
        outage: Outage | None,
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self.url = url
        self.plan = plan
        self.contents = contents
        self.clock = clock
        self.outage = outage
        self.sendings: list[DeliveryRecord] = []
        self.error: BaseException | None = None
        self._stop_asked = threading.Event()

    def stop(self) -> None:
        """Stop after the current file."""
        self._stop_asked.set()

    def run(self) -> None:
        try:
            with AppaClient(self.url, timeout=_TIMEOUT, attempts=1) as client:
                for delivery in self.plan:
                    if not self.contents[delivery.name].data:
                        continue
                    if not self._wait_until(delivery.arrival):
                        return
                    self._send(client, delivery)
        except BaseException as error:  # raised by the driver, in another thread
            self.error = error

    def _now(self) -> datetime:
        return self.clock.at(time.time())

    def _wait_until(self, moment: datetime) -> bool:
        """Wait for a moment of the operational clock; return False when asked to stop."""
        seconds = (moment - self._now()).total_seconds() / self.clock.speed
        return not self._stop_asked.wait(max(seconds, 0.0))

    def _send(self, client: AppaClient, delivery: PlannedDelivery) -> None:
        doubtful: datetime | None = None
        refused = 0
        while not self._stop_asked.is_set():
            tried = self._now()
            content = self.contents[delivery.name]
            try:
                batch = client.upload(
                    content.data, file_name=delivery.name, report_type=content.report_type
                )
            except UnavailableError as error:
                if isinstance(error.__cause__, httpx.ConnectError):
                    refused += 1
                else:  # the answer was lost, perhaps not the file
                    doubtful = doubtful or tried
                self._pause()
                continue
            first = doubtful or tried
            self.sendings.append(
                DeliveryRecord(delivery.name, batch.id, first, self._now(), refused)
            )
            return

    def _pause(self) -> None:
        if self.outage is not None and self._now() in self.outage:
            self._wait_until(self.outage.end)
        else:
            self._stop_asked.wait(_PAUSE)
