"""The formats a result may be written in: one line each.

A writer takes a `Product` and the folder to write into, and returns the files with their roles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from model.domain.registry import Registry
from worker.outputs.product import Product, Written

__all__ = ["OUTPUTS", "OutputFormat", "Writer"]

Writer = Callable[[Product, Path], Written]


@dataclass(frozen=True)
class OutputFormat:
    """A format as it appears in the registry; its writer is imported when first used.

    Attributes:
        name: In the registry and the API.
        description: One line for the user.
        writer: `"package.module:function"`.
    """

    name: str
    description: str
    writer: str

    def load(self) -> Writer:
        """The writer."""
        module, _, function = self.writer.partition(":")
        found: Writer = getattr(import_module(module), function)
        return found

    @property
    def present(self) -> bool:
        """Whether the module of the writer is part of this installation."""
        return find_spec(self.writer.partition(":")[0]) is not None


_FORMATS = (
    OutputFormat("netcdf", "NetCDF-4, CF-1.11", "worker.outputs.netcdf:write_product"),
    OutputFormat("zarr", "Zarr, one zip archive", "worker.outputs.zarr:write_product"),
    OutputFormat("grib2", "GRIB edition 2", "worker.outputs.grib2:write_product"),
    OutputFormat(
        "feedback",
        "observations with O-B, O-A, outcome: Parquet, IODA",
        "worker.outputs.feedback:write",
    ),
    OutputFormat("odb", "the feedback as ODB-2", "worker.outputs.feedback_odb:write"),
    OutputFormat("quicklook", "a picture of the result", "worker.outputs.quicklook:write_product"),
)
OUTPUTS: Registry[OutputFormat] = Registry(
    "output format", **{f.name: f for f in _FORMATS if f.present}
)
