"""Decode damaged contents in batches in the sandbox for uploads, while the exercise runs.

This tries thousands of contents in the time in which hundreds can be uploaded. Damaged content may
give rows or be rejected; it must not affect the calling process.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lab.chaos.content import UploadContent, content_of
from lab.chaos.plan import ChaosPlan, PlannedUpload
from model.domain.files import file_digest
from worker.observations.decoders.base import DecodeContext, Decoded
from worker.observations.decoders.decode import FileToDecode, decode_in_one_child, decode_limited
from worker.sandbox import Interrupted

__all__ = ["DamagedBatches", "undisturbed"]

_TOGETHER = 200
_TRIES = 4


def undisturbed(contents: Sequence[UploadContent]) -> dict[str, int]:
    """Return the number of rows of contents, by hash, decoded here without injected faults."""
    return {digest: decoded.table.num_rows for digest, decoded in _decoded(contents)}


def _decoded(contents: Sequence[UploadContent]) -> Iterator[tuple[str, Decoded]]:
    """Yield the hash of each content and what came out of the sandbox, in their order."""
    with TemporaryDirectory(prefix="appa-chaos-") as folder:
        files = []
        for number, content in enumerate(contents):
            path = Path(folder) / f"{number}-{content.name}"
            path.write_bytes(content.data)
            files.append(FileToDecode(path, None, DecodeContext(file_name=content.name)))
        while files:
            decoded = decode_in_one_child(files[:_TOGETHER])
            if not decoded:  # the first file crashed the child process, which is allowed
                decoded = [_decoded_alone(files[0])]
            for file, one in zip(files, decoded, strict=False):
                yield file_digest(file.path), one
            files = files[len(decoded) :]


def _decoded_alone(file: FileToDecode) -> Decoded:
    """Decode a file in its own child process; retry if the machine is too busy."""
    for _ in range(_TRIES - 1):
        try:
            return decode_limited(file.path, file.format, file.context)
        except Interrupted:
            continue
    return decode_limited(file.path, file.format, file.context)


class DamagedBatches:
    """Decode the damaged contents of a plan that are not uploaded, spread over its time.

    Arguments:
        plan: What to decode.

    Attributes:
        count: How many have been decoded.
        findings: Descriptions of errors that escaped the sandbox.
    """

    def __init__(self, plan: ChaosPlan) -> None:
        self.plan = plan
        self.count = 0
        self.findings: list[str] = []
        batched = plan.batched
        self._batches = [batched[i : i + _TOGETHER] for i in range(0, len(batched), _TOGETHER)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="damaged", daemon=True)

    def start(self) -> None:
        """Start the thread that decodes damaged uploads."""
        self._thread.start()

    def finish(self, unsent: Sequence[PlannedUpload]) -> None:
        """Decode the rest without pauses, and the contents that should have been uploaded."""
        self._over.set()
        self._thread.join()
        self._decode(unsent)

    def _work(self) -> None:
        began = time.monotonic()
        for number, batch in enumerate(self._batches):
            due = began + number * self.plan.seconds / len(self._batches)
            self._over.wait(max(0.0, due - time.monotonic()))
            self._decode(batch)

    def _decode(self, uploads: Sequence[PlannedUpload]) -> None:
        contents = [content_of(planned, self.plan.seed) for planned in uploads]
        count = 0
        try:
            for _, decoded in _decoded(contents):
                count += 1
                if decoded.report.rows != decoded.table.num_rows:
                    name = contents[count - 1].name
                    told = f"{decoded.report.rows} rows counted, {decoded.table.num_rows} given"
                    self.findings.append(f"sandbox: {name}: {told}")
        except Exception as error:  # whatever it is, it should have stayed in the child
            name = contents[min(count, len(contents) - 1)].name
            self.findings.append(f"sandbox: {name}: {type(error).__name__}: {error}")
        self.count += count
