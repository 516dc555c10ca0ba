"""Files of a result: their names, and writing them so that no half file is ever seen."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from model.domain.errors import StorageError
from worker.jobs.layout import ProductKind, analysis_file_name
from worker.outputs.product import Product

__all__ = ["product_file", "put_file"]

_KINDS: dict[str, ProductKind] = {"filtering": "an", "forecast": "fc", "reanalysis": "ra"}


def product_file(
    product: Product, folder: Path, extension: str, kind: ProductKind | None = None
) -> Path:
    """Where a file of the product goes.

    Arguments:
        product: What is written.
        folder: Of the result.
        extension: Without the dot.
        kind: Part of the name; by default that of the job's kind.
    """
    name = analysis_file_name(
        kind or _KINDS[product.job.kind],
        product.reference_time,
        revision=product.job.revision,
        flavour=product.job.flavour,
        extension=extension,
    )
    return folder / name


def put_file(
    path: Path, write: Callable[[Path], None], check: Callable[[Path], None] | None = None
) -> Path:
    """Writes under a temporary name, makes it durable, reads it back, then gives it its name.

    Arguments:
        path: The final name; one that exists is replaced.
        write: Makes the file at the path given.
        check: Reads the file at the path given and raises if it is not what was to be written.

    Returns:
        `path`.

    Raises:
        StorageError: If the file could not be written by its library.
        OSError: If the disk is full.
    """
    partial = path.with_name(f".part-{path.name}")
    try:
        write(partial)
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        if check is not None:
            check(partial)
        partial.replace(path)
    except RuntimeError as error:  # netCDF's word for any failed write, a full disk included
        free = shutil.disk_usage(path.parent).free
        raise StorageError(
            f"Expected to write {path.name}; the library says '{error}'. {free} bytes are free.",
            file=path.name,
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path
