"""The samples of a vendor's verifier: a file with one chat request with tools in each line.

A role `_input` is a system message. Two hashes name a request: that of the *sample*, without the model,
is the same in the runs of two endpoints that are compared; that of the *request* as it is sent tells a
run that was cut off what it need not ask again.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moonlet.gateway.fidelity.client import parse_json
from moonlet.gateway.fidelity.errors import VerifyError

MAX_LINE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Sample:
    """One request, ready to be sent, and its two hashes."""

    sample: str
    request: str
    body: dict[str, Any]


def read_samples(path: Path, model: str, extra: dict[str, Any]) -> Iterator[Sample]:
    """The requests of a file, for `model` and with the members of `extra`; equal ones come once.

    They are streamed unless they say otherwise. One line is in memory at a time. Raises VerifyError, with
    the number of the line.
    """
    seen: set[str] = set()
    for number, line in read_lines(path):
        where = f"line {number} of {path}"
        request = _request(line, where)
        sample = hash_of({name: value for name, value in request.items() if name != "model"})
        if sample in seen:
            continue
        seen.add(sample)
        body = {"stream": True, **request, **extra, "model": model}
        _check(body, where)
        body["messages"] = [_renamed(message) for message in body["messages"]]
        if body["stream"] is True:
            body.setdefault("stream_options", {"include_usage": True})
        yield Sample(sample, hash_of(body), body)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers. Raises VerifyError."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise VerifyError(f"line {number} of {path} has over {MAX_LINE_BYTES} bytes")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise VerifyError(f"cannot read {path}: {error.strerror}") from error


def hash_of(value: Any) -> str:
    """The same for the same JSON, whatever the order of its members."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _request(line: bytes, where: str) -> dict[str, Any]:
    try:
        request = parse_json(line)
    except ValueError as error:
        raise VerifyError(f"{where} is no JSON: {error}") from error
    if not isinstance(request, dict):
        raise VerifyError(f"{where} is no JSON object")
    return request


def _check(body: dict[str, Any], where: str) -> None:
    """Raises VerifyError for what cannot be sent, or judged afterwards."""
    messages, tools = body.get("messages"), body.get("tools")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise VerifyError(f"{where} is no chat request: it has no list of messages")
    if not isinstance(tools, list) or not tools:
        raise VerifyError(f"{where} has no tools, and tool calls are what is compared")
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise VerifyError(f"{where} has a tool without a name")


def _renamed(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "role": "system"} if message.get("role") == "_input" else message
