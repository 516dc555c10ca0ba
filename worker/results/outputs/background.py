"""Write the background of an analysis: its mean and spread at the times of the result.

It is needed to show the increment, analysis minus background, as a field. The file is the NetCDF of
`worker.results.outputs.cf` with the first guess in place of the analysis.
"""

from dataclasses import replace
from pathlib import Path

from worker.results.outputs.cf import write_netcdf
from worker.results.outputs.formats import product_file
from worker.results.outputs.product import Product, Written

__all__ = ["write_product"]


def write_product(product: Product, folder: Path) -> Written:
    """Write one file with the mean and spread of the background; none for a job without one."""
    if product.background is None:
        return []
    spec = product.job.spec.model_copy(update={"fields": "mean"})
    # Attributes such as seeds and pairs would be those of the analysis.
    first_guess = replace(
        product,
        job=product.job.model_copy(update={"spec": spec}),
        states=product.background,
        mirrored=False,
    )
    title = f"Background of the {product.kind.noun} of {product.reference_time:%Y-%m-%d %H} UTC"
    path = product_file(product, folder, "nc", "bg")
    return [(write_netcdf(first_guess, path, title=title), "background")]
