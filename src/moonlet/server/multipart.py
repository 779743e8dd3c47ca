"""A form with one file, from the socket to the disk without ever being whole in memory.

The file may come before or after the fields. Everything else of a form is small and bounded: the number
of parts and the length of each field here, the boundary and the head of each part by the parser.
"""

from collections.abc import Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from moonlet.server.body import patience
from moonlet.server.errors import ApiError
from moonlet.server.file_store import FileStore, Upload

MAX_PARTS = 32
MAX_FIELD_BYTES = 1024
_FORM_BYTES = 2**20  # what a form may have beside the file


class Form:
    """One form as it arrives. `fields` are the texts; `upload` is the file, `filename` its name."""

    def __init__(self, content_type: str, store: FileStore) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise ApiError("send the file as multipart/form-data, with the fields file and purpose")
        self.fields: dict[str, str] = {}
        self.upload: Upload | None = None
        self.filename = ""
        self._store = store
        self._parts = 0
        self._disposition = b""
        self._name = ""
        self._value = bytearray()
        self._ended = False
        name, value = self._header = (bytearray(), bytearray())  # of the header that is being read
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: value.extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _not_valid(error) from None

    def feed(self, chunk: bytes) -> None:
        """Raises ApiError for a form that cannot be used, or a file that is too large."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _not_valid(error) from None

    def finished(self) -> Upload:
        """The file, when all has come. Raises ApiError when it has not."""
        if not self._ended:
            raise ApiError("the form broke off before its last boundary")
        if self.upload is None:
            raise ApiError("file is missing from the form", "file")
        return self.upload

    def close(self) -> None:
        """Throws the file away, unless it was committed."""
        if self.upload is not None:
            self.upload.close()

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ApiError(f"the form has more than {MAX_PARTS} parts")
        self._disposition = b""

    def _on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        name.clear()
        value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._value = bytearray()
        if self._name == "file":
            if self.upload is not None:
                raise ApiError("the form has more than one file; upload them one by one", "file")
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace")
            self.upload = self._store.upload()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file" and self.upload is not None:
            self.upload.write(data[start:end])
            return
        if len(self._value) + end - start > MAX_FIELD_BYTES:
            shown = self._name[:40]
            raise ApiError(f"{shown} is longer than {MAX_FIELD_BYTES} bytes", shown)
        self._value += data[start:end]

    def _on_part_end(self) -> None:
        if self._name != "file":
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _on_end(self) -> None:
        self._ended = True


async def read_form(request: Request, store: FileStore) -> Form:
    """The form in the body of `request`; the caller closes it.

    What comes after a refusal is dropped, up to as much again: a client that is still sending when the
    connection closes would see a reset instead of the answer. Raises ApiError.
    """
    most = store.limits.bytes_each + _FORM_BYTES
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and len(stated) < 19 and int(stated) > 2 * most:
        raise ApiError(
            f"the file is larger than the {store.limits.bytes_each} bytes allowed", "file"
        )
    form = Form(request.headers.get("content-type", ""), store)
    try:
        async with patience("file") as came:
            await _fill(form, request, most, came)
        form.finished()
    except BaseException:
        form.close()
        raise
    return form


async def _fill(form: Form, request: Request, most: int, came: Callable[[int], None]) -> None:
    refusal: ApiError | None = None
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        came(size)
        if size > 2 * most:
            break
        try:
            if refusal is None:
                form.feed(chunk)
        except ApiError as error:
            refusal = error
    if refusal is not None:
        raise refusal


def _not_valid(error: FormParserError) -> ApiError:
    return ApiError(f"the form is not valid multipart/form-data: {error}")
