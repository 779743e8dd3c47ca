"""What came of each sample, in a file that survives whatever ends the run.

A line is written and flushed as soon as its answer is whole. What a kill leaves of the last line is no
line, and is cut away when the run goes on.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moonlet.gateway.fidelity.client import parse_json
from moonlet.gateway.fidelity.errors import VerifyError
from moonlet.gateway.fidelity.samples import read_lines


@dataclass(frozen=True)
class CallRecord:
    """One call. problem: what is wrong with it, or None. judged: False where the sample's own schema
    is none, so that nothing can be said."""

    name: str
    arguments: str
    problem: str | None
    judged: bool = True


@dataclass(frozen=True)
class Record:
    """The answer to one sample. error: why there is none; then all that follows is empty."""

    sample: str
    request: str
    model: str
    error: str | None = None
    finish_reason: str | None = None
    calls: tuple[CallRecord, ...] = ()
    usage: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def triggers(self) -> bool:
        """Whether it finished with tool calls."""
        return self.finish_reason == "tool_calls"


def read_records(path: Path) -> list[Record]:
    """The records of a file; of one request the last. Raises VerifyError for a line that is none.

    A last line without its end was cut off and is left out.
    """
    records: dict[str, Record] = {}
    for number, line in read_lines(path):
        if not line.endswith(b"\n"):
            break
        try:
            record = _record(parse_json(line))
        except (ValueError, TypeError, KeyError) as error:
            raise VerifyError(f"line {number} of {path} is no result of moonlet verify") from error
        records[record.request] = record
    return list(records.values())


def _record(raw: dict[str, Any]) -> Record:
    """Raises ValueError, TypeError or KeyError."""
    calls = tuple(CallRecord(**call) for call in raw["calls"])
    record = Record(**{**raw, "calls": calls})
    texts = (record.sample, record.request, record.model)
    optional = (record.error, record.finish_reason, *(call.problem for call in calls))
    if not all(isinstance(one, str) for one in texts):
        raise TypeError("a hash is no string")
    if not all(one is None or isinstance(one, str) for one in optional):
        raise TypeError("a text is no string")
    return record


class RecordFile:
    """The records of a run, and the file that they are appended to, if there is one.

    `done`: by hash of the request. Raises VerifyError for a file that holds something else.
    """

    def __init__(self, path: Path | None) -> None:
        self.done: dict[str, Record] = {}
        self._file = None
        if path is None:
            return
        if path.exists():
            self.done = {record.request: record for record in read_records(path)}
        try:
            self._file = path.open("ab")
            _cut_torn_line(path)
        except OSError as error:
            raise VerifyError(f"cannot write {path}: {error.strerror}") from error

    def add(self, record: Record) -> None:
        """Raises OSError when the disk is full."""
        self.done[record.request] = record
        if self._file is not None:
            self._file.write(json.dumps(asdict(record)).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _cut_torn_line(path: Path) -> None:
    """Shortens the file to its last whole line."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - 65536)
            file.seek(begin)
            at = file.read(end - begin).rfind(b"\n")
            if at >= 0:
                end = begin + at + 1
                break
            end = begin
        file.truncate(end)
