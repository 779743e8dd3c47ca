"""`/v1/files`: images and videos to name as `ms://ID` in messages, texts to read back.

POST   /v1/files                 multipart, with `file` and `purpose`
GET    /v1/files                 newest first; purpose, limit, order and after as OpenAI has them
GET    /v1/files/{id}
GET    /v1/files/{id}/content
DELETE /v1/files/{id}
"""

import asyncio
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from moonlet.server.errors import ApiError
from moonlet.server.fields import choice
from moonlet.server.file_store import MAX_NAME, PURPOSES, FileStore, StoredFile
from moonlet.server.multipart import read_form
from moonlet.server.openapi import BOOLEAN, COUNT, TEXT, listed, obj, one_of, operation
from moonlet.server.state import State, json_response

MAX_LISTED = 10_000  # OpenAI's page, and more than there can be

_FILE_REQUEST = obj(
    ("file", "purpose"), file={"type": "string", "format": "binary"}, purpose=one_of(*PURPOSES)
)
_FILE = obj(
    ("id", "object", "bytes", "created_at", "filename", "purpose", "status"),
    id=TEXT,
    object=one_of("file"),
    bytes=COUNT,
    created_at={"type": "integer"},
    filename={"type": "string", "minLength": 1, "maxLength": MAX_NAME},
    purpose=one_of(*PURPOSES),
    status=one_of("processed"),
)
_FILES = obj(("object", "data"), object=one_of("list"), data=listed(_FILE), has_more=BOOLEAN)
_FILE_DELETED = obj(("id", "object"), id=TEXT, object=one_of("file"), deleted=BOOLEAN)


def add_files(app: FastAPI, state: State) -> None:
    store = state.files

    @app.post(
        "/v1/files", **operation("Upload a file", _FILE, _FILE_REQUEST, kind="multipart/form-data")
    )
    async def upload(request: Request) -> Response:
        form = await read_form(request, store)
        try:
            purpose = _purpose(form.fields.get("purpose"))
            await asyncio.to_thread(form.finished().check, purpose)
            stored = form.finished().commit(form.filename, purpose)
        finally:
            form.close()
        return json_response(file_object(stored))

    @app.get("/v1/files", **operation("The files", _FILES))
    async def files(request: Request) -> Response:
        return json_response(_page(store, dict(request.query_params)))

    @app.get("/v1/files/{file_id}", **operation("A file", _FILE))
    async def file(file_id: str) -> Response:
        return json_response(file_object(store.get(file_id)))

    @app.get(
        "/v1/files/{file_id}/content",
        **operation("The bytes of a file", ("text/plain", "application/octet-stream")),
    )
    async def content(file_id: str) -> Response:
        stored = store.get(file_id)
        plain = stored.purpose == "file-extract"
        return FileResponse(
            store.path(stored),
            media_type="text/plain; charset=utf-8" if plain else "application/octet-stream",
            filename=stored.filename,
            # It is what a client sent: no browser may take it for a page of this server.
            headers={"x-content-type-options": "nosniff"},
        )

    @app.delete("/v1/files/{file_id}", **operation("Delete a file", _FILE_DELETED))
    async def delete(file_id: str) -> Response:
        store.delete(file_id)
        return json_response({"id": file_id, "object": "file", "deleted": True})


def file_object(file: StoredFile) -> dict[str, Any]:
    """A file as OpenAI's and Kimi's clients know it; there is no waiting until it is processed."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def _purpose(value: str | None) -> str:
    if value is None:
        raise ApiError(f"purpose is missing; it must be {' or '.join(PURPOSES)}", "purpose")
    if value not in PURPOSES:
        shown = value[:40]
        raise ApiError(f"purpose is {shown!r}, but it must be {' or '.join(PURPOSES)}", "purpose")
    return value


def _page(store: FileStore, query: dict[str, Any]) -> dict[str, Any]:
    purpose = query.get("purpose")
    descending = choice(query, "order", ("asc", "desc")) != "asc"
    limit = _limit(query.get("limit"))
    # Files of the same second stay in the order of their coming.
    found = sorted(store.files.values(), key=lambda file: file.created_at)
    if descending:
        found.reverse()
    if purpose:
        found = [file for file in found if file.purpose == purpose]
    if after := query.get("after"):
        ids = [file.id for file in found]
        found = found[ids.index(after) + 1 :] if after in ids else []
    return {
        "object": "list",
        "data": [file_object(file) for file in found[:limit]],
        "has_more": len(found) > limit,
    }


def _limit(value: str | None) -> int:
    if value is None:
        return MAX_LISTED
    if not (
        value.isascii() and value.isdigit() and len(value) <= 5 and 1 <= int(value) <= MAX_LISTED
    ):
        raise ApiError(
            f"limit is {value[:40]!r}, but it must be a whole number within 1 and {MAX_LISTED}",
            "limit",
        )
    return int(value)
