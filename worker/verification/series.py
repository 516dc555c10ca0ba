"""Adding a published result to the time series."""

import os
import secrets
import shutil

from model.domain.errors import StorageError
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest
from worker.jobs.verification_series import SERIES_NAME, SeriesEntry

__all__ = ["append_to_series"]


def append_to_series(layout: Layout, manifest: AnalysisManifest) -> bool:
    """Puts the result's statistics into the series; safe to run twice.

    Arguments:
        layout: The data folder.
        manifest: Of a published result.

    Returns:
        Whether the result has statistics; a forecast has none.

    Raises:
        StorageError: If the file cannot be copied.
    """
    if not any(file.name == SERIES_NAME for file in manifest.files):
        return False
    entry = SeriesEntry(manifest.valid_time, manifest.flavour, manifest.revision, manifest.id)
    target = entry.path(layout)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            layout.analysis_file(manifest.id, SERIES_NAME).open("rb") as source,
            temporary.open("xb") as copy,
        ):
            shutil.copyfileobj(source, copy)
            copy.flush()
            os.fsync(copy.fileno())
        temporary.replace(target)
    except OSError as error:
        raise StorageError(
            f"Expected to add '{manifest.id}' to the verification series; {error}."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True
