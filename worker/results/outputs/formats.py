"""Register the output formats and write their files atomically.

A writer takes a `Product` and the folder to write into, and returns the files with their roles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from model.domain.errors import StorageError
from model.domain.files import replaced_file, sync_file
from model.domain.registry import Registry
from worker.contract.disk import disk_errors, free_bytes
from worker.contract.layout import analysis_file_name
from worker.results.outputs.product import Product, Written

__all__ = ["OUTPUTS", "OutputFormat", "Writer", "product_file", "put_file"]

Writer = Callable[[Product, Path], Written]


@dataclass(frozen=True)
class OutputFormat:
    """One output format; its writer is imported when first used.

    Attributes:
        name: Name in the registry and the API.
        description: One line for the user.
        writer: `"package.module:function"`.
    """

    name: str
    description: str
    writer: str

    def load(self) -> Writer:
        """Import the module of the writer and return the writer."""
        module, _, function = self.writer.partition(":")
        found: Writer = getattr(import_module(module), function)
        return found

    @property
    def present(self) -> bool:
        """Return whether the module of the writer is part of this installation."""
        return find_spec(self.writer.partition(":")[0]) is not None


_FORMATS = (
    OutputFormat("netcdf", "NetCDF-4, CF-1.11", "worker.results.outputs.cf:write_netcdf_product"),
    OutputFormat("zarr", "Zarr, one zip archive", "worker.results.outputs.cf:write_zarr_product"),
    OutputFormat(
        "background",
        "mean and spread of the background, NetCDF, for increments",
        "worker.results.outputs.background:write_product",
    ),
    OutputFormat("grib2", "GRIB edition 2", "worker.results.outputs.grib2:write_product"),
    OutputFormat(
        "feedback",
        "observations with O-B, O-A, outcome: Parquet, IODA",
        "worker.results.outputs.feedback:write",
    ),
    OutputFormat("odb", "the feedback as ODB-2", "worker.results.outputs.feedback:write_odb"),
    OutputFormat(
        "quicklook", "a picture of the result", "worker.results.outputs.quicklook:write_product"
    ),
)
OUTPUTS: Registry[OutputFormat] = Registry(
    "output format",
    "appa.outputs",
    OutputFormat,
    **{f.name: f for f in _FORMATS if f.present},
)


def product_file(product: Product, folder: Path, extension: str, tag: str | None = None) -> Path:
    """Return the path of a file of the product.

    Arguments:
        product: The product.
        folder: Folder of the result.
        extension: File name extension without the dot.
        tag: Part of the name; by default the tag of the job's kind.
    """
    name = analysis_file_name(
        tag or product.kind.tag,
        product.reference_time,
        revision=product.job.revision,
        flavour=product.job.flavour,
        extension=extension,
    )
    return folder / name


def put_file(
    path: Path, write: Callable[[Path], None], check: Callable[[Path], None] | None = None
) -> Path:
    """Write under a temporary name, sync to disk, read back, then rename to the final name.

    Arguments:
        path: The final path; an existing file is replaced.
        write: Writes the file to a given path.
        check: Reads the file at a given path and raises if the content is not as intended.

    Returns:
        `path`.

    Raises:
        StorageError: If the file could not be written by its library.
        OSError: If the disk is full.
    """
    try:
        with replaced_file(path) as partial, disk_errors(path.parent):
            write(partial)
            sync_file(partial)
            if check is not None:
                check(partial)
    except (RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # netCDF's and HDF5's errors for any failed write, including a full disk
        free = free_bytes(path.parent)
        raise StorageError(
            f"Expected to write {path.name}; the library says '{error}'. {free} bytes are free.",
            file=path.name,
        ) from error
    return path
