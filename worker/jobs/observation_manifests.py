"""What the observation store says about its files: manifests of batches and of compactions."""

from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict

__all__ = ["BatchManifest", "Compaction", "StoredFile"]


class StoredFile(BaseModel):
    """One file of a batch.

    Attributes:
        path: Relative to the store's root.
        rows: Number of rows.
        sha256: Of its bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    rows: int
    sha256: str


class BatchManifest(BaseModel):
    """The rows of one batch, published as a whole by this file's appearance.

    Attributes:
        batch_id: The upload.
        received_time: Its arrival at the gateway.
        created: When it was published.
        content_hash: SHA-256 over the hashes of its files.
        rows: Number of rows.
        files: Where they are.
        provenance: How they were made: decoder counts, effective parameters, versions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_id: str
    received_time: AwareDatetime
    created: AwareDatetime
    content_hash: str
    rows: int
    files: tuple[StoredFile, ...]
    provenance: dict[str, Any] = {}


class Compaction(BaseModel):
    """One file that takes the place of others in one hour.

    Attributes:
        generation: Rises with each compaction of the hour.
        created: When it was published.
        file: The new file.
        replaces: Names of the files it stands for, in the same folder.
        batches: Whose rows it holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    generation: int
    created: AwareDatetime
    file: StoredFile
    replaces: tuple[str, ...]
    batches: tuple[str, ...]
