"""What `/metrics` says about the quality of the newest cycled analyses."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from service.analysis_index import AnalysisFilter, AnalysisIndex
from worker.jobs.cycle import Flavour
from worker.jobs.verification_series import SCORES_VERSION


class VerificationMetrics:
    """Gauges read from the manifests of the newest early and final analysis."""

    def __init__(self, registry: CollectorRegistry) -> None:
        about = ("flavour", "network", "variable")

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, f"{text}, newest cycle.", labels, registry=registry)

        self.time = gauge("appa_verification_valid_time_seconds", "Valid time", "flavour")
        self.outside = gauge(
            "appa_cycle_outside_limits", "Statistics outside their control limits", "flavour"
        )
        self.chi2 = gauge(
            "appa_verification_chi2", "Innovations over their expected variance", "flavour"
        )
        self.used = gauge("appa_verification_used", "Values used", "flavour", "network")
        self.rmse = gauge(
            "appa_verification_rmse", "Root mean square error at withheld stations", *about, "of"
        )
        self.desroziers = gauge(
            "appa_verification_desroziers_ratio",
            "Observation error estimated from departures over the one assumed",
            *about,
        )
        self.spread_skill = gauge(
            "appa_verification_spread_skill", "Predicted over actual departures", *about
        )

    @property
    def gauges(self) -> tuple[Gauge, ...]:
        """All of them."""
        return tuple(vars(self).values())

    def set(self, analyses: AnalysisIndex) -> None:
        """Fills the gauges anew; there are none for a flavour without analyses."""
        for gauge in self.gauges:
            gauge.clear()
        for flavour in Flavour:
            newest = analyses.latest(AnalysisFilter("filtering", flavour.value))
            if newest is None or newest.scores.get("version") != SCORES_VERSION:
                continue
            self.time.labels(flavour.value).set(newest.valid_time.timestamp())
            self._fill(flavour.value, newest.scores)

    def _fill(self, flavour: str, scores: Mapping[str, Any]) -> None:
        if (control := scores.get("control")) is not None:
            self.outside.labels(flavour).set(len(control["outside"]))
        if scores.get("chi2") is not None:
            self.chi2.labels(flavour).set(scores["chi2"])
        for network, count in scores.get("used", {}).items():
            self.used.labels(flavour, network).set(count)
        for line in scores.get("withheld", ()):
            for side in ("background", "analysis"):
                if (score := line[side]) is not None:
                    about = (flavour, line["network"], line["variable"])
                    self.rmse.labels(*about, side).set(score["rmse"])
        for line in scores.get("departures", ()):
            labels = (flavour, line["network"], line["variable"])
            if line["error_ratio"] is not None:
                self.desroziers.labels(*labels).set(line["error_ratio"])
            if line["spread_skill"] is not None:
                self.spread_skill.labels(*labels).set(line["spread_skill"])
