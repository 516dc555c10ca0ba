"""A file out of a multipart/form-data body, piece by piece, never held in memory."""

from collections.abc import AsyncIterator
from email.message import Message

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError

from service.errors import RequestError

MAX_FIELD_BYTES = 64 * 1024


def _options(value: str) -> dict[str, str]:
    """Parameters of a header such as `form-data; name="file"; filename="a.bufr"`."""
    message = Message()
    message["content-disposition"] = value
    pairs = message.get_params(header="content-disposition", unquote=True) or []
    return {k.lower(): v for k, v in pairs[1:]}


def boundary_of(content_type: str) -> str | None:
    """The boundary, if `content_type` is multipart/form-data."""
    message = Message()
    message["content-type"] = content_type
    if message.get_content_type() != "multipart/form-data":
        return None
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= 70:
        raise RequestError("Expected a boundary of 1 to 70 characters in the Content-Type.")
    return boundary


class FilePart:
    """Collects the data of the one file part; other parts are small form fields."""

    def __init__(self, boundary: str) -> None:
        self.filename: str | None = None
        self.fields: dict[str, str] = {}
        self.files = 0
        self.done = False
        self._pieces: list[bytes] = []
        self._header = [b"", b""]
        self._name: str | None = None
        self._field = bytearray()
        self._in_file = False
        self._parser = MultipartParser(
            boundary.encode("latin-1", "replace"),
            {
                "on_part_begin": self._part_begin,
                "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
                "on_header_end": self._header_end,
                "on_part_data": self._data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> list[bytes]:
        """The pieces of the file in `chunk`."""
        self._pieces = []
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise RequestError(f"Expected a multipart/form-data body; {error}.") from error
        return self._pieces

    def _part_begin(self) -> None:
        self._name, self._in_file, self._field = None, False, bytearray()
        self._header = [b"", b""]

    def _add_header(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            options = _options(self._header[1].decode("utf-8", "replace"))
            self._name = options.get("name")
            if "filename" in options or self._name == "file":
                self.files += 1
                self._in_file = True
                self.filename = options.get("filename") or None
                if self.files > 1:
                    raise RequestError("Expected one file a request; got more. Upload each alone.")
        self._header = [b"", b""]

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pieces.append(data[start:end])
        elif len(self._field) + end - start > MAX_FIELD_BYTES:
            raise RequestError(f"Expected form fields of at most {MAX_FIELD_BYTES} bytes.")
        else:
            self._field += data[start:end]

    def _part_end(self) -> None:
        if self._name and not self._in_file:
            self.fields[self._name] = self._field.decode("utf-8", "replace")

    def _end(self) -> None:
        self.done = True


async def file_chunks(part: FilePart, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The bytes of the file in `stream`.

    Raises:
        RequestError: If the body has no file part, more than one, or ends too early.
    """
    async for chunk in stream:
        for piece in part.feed(chunk):
            yield piece
    if not part.done:
        raise RequestError("Expected a complete multipart body; its closing boundary is missing.")
    if part.files == 0:
        raise RequestError("Expected a part with a filename, or named 'file'; got none.")
