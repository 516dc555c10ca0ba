"""Global attributes of a result: what it is, what went in, how to make it again."""

import json
from typing import Any

from worker.jobs.job import utc_now
from worker.outputs.product import Product

__all__ = ["global_attributes", "title"]

CONVENTIONS = "CF-1.11"
FORECAST_TYPES = {"filtering": "analysis", "forecast": "forecast", "reanalysis": "reanalysis"}
_MANIFEST_ONLY = ("seeds", "batches")
"""Seeds are a variable of the file; the list of uploads may be long."""
SIMULATED = (
    "simulated: the model was trained on the weather of a simulation and must not be used for "
    "real decisions"
)


def title(product: Product) -> str:
    """`Ensemble analysis of 2025-01-01 06 UTC`, with a word in front when it is simulated."""
    kind = FORECAST_TYPES[product.job.kind]
    what = f"nsemble {kind} {'from' if kind == 'forecast' else 'of'}"
    start = f"{product.reference_time:%Y-%m-%d %H} UTC"
    return f"{'Simulated e' if product.simulated else 'E'}{what} {start}"


def _plain(value: Any) -> str | int | float:
    """Numbers and text as they are; the rest as JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return value
    return json.dumps(value, sort_keys=True, default=str)


def _observations(product: Product) -> dict[str, Any]:
    if product.window is None:
        return {}
    return {
        "ranked_members": len(product.twins.ranked),
        "observations_used": product.counts.get("used", 0),
        "observations_by_outcome": json.dumps(product.counts, sort_keys=True),
    }


def global_attributes(product: Product) -> dict[str, Any]:
    """Attributes of the file, in the order in which they are written."""
    created = utc_now().replace(microsecond=0).isoformat().replace("+00:00", "Z")
    background = product.background_info
    provenance = {
        k: v for k, v in product.provenance.items() if k not in _MANIFEST_ONLY and v is not None
    }
    comment = [SIMULATED] if product.simulated else []
    if "zero_observations" in product.flags:
        comment.append("no observation was used: the analysis is the background")
    return {
        "Conventions": CONVENTIONS,
        "title": title(product),
        "institution": "appa-service",
        "source": "latent diffusion data assimilation (Appa, arXiv:2504.18720)",
        "history": f"{created} written by appa-service {provenance.get('code_version', '')}".strip(),
        "references": "https://arxiv.org/abs/2504.18720",
        **({"comment": "; ".join(comment)} if comment else {}),
        "forecast_type": FORECAST_TYPES[product.job.kind],
        "job_id": product.job.id,
        "analysis_id": product.job.analysis_id,
        **({"flavour": product.job.flavour} if product.job.flavour else {}),
        "revision": product.job.revision,
        **({"cycle": _plain(product.job.cycle)} if product.job.cycle else {}),
        "members": product.members,
        "mirrored_members": _plain(product.mirrored),
        "grid": product.grid.name,
        "flags": " ".join(product.flags),
        **_observations(product),
        **(
            {"background": json.dumps(background, sort_keys=True, default=str)}
            if background
            else {}
        ),
        **{k: _plain(v) for k, v in provenance.items()},
    }
