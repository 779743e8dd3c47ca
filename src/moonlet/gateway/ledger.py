"""Every request in one SQLite file: who asked whom, how it went, what it took and cost.

A row is written before the request is made and completed before its end is told, so that whatever a client
has seen is in the file, even if the process is killed the moment after. What a killed process left
open is marked at the next start, at the cost that was estimated when it began.

    sqlite3 ledger.sqlite "SELECT model, count(*), sum(cost) FROM requests GROUP BY model"

| status       | when                                                                     |
| ------------ | ------------------------------------------------------------------------ |
| `running`    | it has not ended yet                                                     |
| `ok`         | the whole answer came                                                    |
| `refused`    | it could not be served as it was: the client's error                     |
| `failed`     | nobody answered, or not to the end                                       |
| `left`       | the client hung up                                                       |
| `broken off` | the server ended before the request did                                  |
"""

import asyncio
import fcntl
import logging
import sqlite3
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moonlet.chat.provider import Usage
from moonlet.errors import ConfigError, EngineError

logger = logging.getLogger(__name__)

_VERSION = 1
_TABLE = """
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    began REAL NOT NULL,          -- Unix seconds
    asked_by TEXT,                -- digest of the API key; NULL without one
    model TEXT NOT NULL,
    upstream TEXT,                -- host that answered, or was asked last; NULL for a model of this process
    attempts INTEGER NOT NULL DEFAULT 0,
    status TEXT NOT NULL,
    prompt_tokens INTEGER,
    cached_tokens INTEGER,
    completion_tokens INTEGER,
    reasoning_tokens INTEGER,
    rough INTEGER NOT NULL,       -- 1: tokens and cost are estimates
    cost REAL,                    -- US dollars; NULL where nobody has said the price
    first_s REAL,                 -- to the first event
    whole_s REAL
)
"""
_BEGIN = """
INSERT INTO requests (id, began, asked_by, model, status, prompt_tokens, rough, cost)
VALUES (?, ?, ?, ?, 'running', ?, 1, ?)
"""
_END = """
UPDATE requests SET upstream = ?, attempts = ?, status = ?, prompt_tokens = ?, cached_tokens = ?,
    completion_tokens = ?, reasoning_tokens = ?, rough = ?, cost = ?, first_s = ?, whole_s = ?
WHERE id = ?
"""


@dataclass(frozen=True)
class End:
    """How a request ended."""

    status: str
    usage: Usage
    cost: float | None
    upstream: str | None = None
    attempts: int = 0
    rough: bool = False
    first_s: float | None = None
    whole_s: float | None = None


class Ledger:
    """The file at `path`, for one process at a time; made, with its folder, if it is not there.

    All writing is done in one thread of its own. Raises ConfigError where the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.path = path.resolve()  # or two processes could write it by two names
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self.path.with_name(self.path.name + ".lock").open("wb")
        except (OSError, RuntimeError) as error:  # the latter for links that go round
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"the ledger {path} cannot be used: {reason}") from error
        try:
            self._alone()
            self._next_id = self._open()
        except BaseException:
            self._lock.close()
            raise
        self._writer = ThreadPoolExecutor(1, "moonlet-ledger")

    def new_id(self) -> int:
        """The id of the next row."""
        row_id, self._next_id = self._next_id, self._next_id + 1
        return row_id

    async def begin(
        self,
        row_id: int,
        model: str,
        asked_by: str | None,
        prompt_tokens: int,
        cost: float | None,
    ) -> None:
        """Returns when the row is in the file. Raises EngineError when it cannot be written.

        prompt_tokens, cost: estimates, which stand if nothing else is ever known.
        """
        row = (row_id, time.time(), asked_by, model, prompt_tokens, cost)
        writing = self._writer.submit(self._database.execute, _BEGIN, row)
        try:
            await asyncio.shield(asyncio.wrap_future(writing))
        except sqlite3.Error as error:
            raise EngineError(
                f"the request was not made, because the ledger {self.path} cannot be written: {error}"
            ) from error

    async def end(self, row_id: int, end: End) -> None:
        """Returns when the row is complete in the file. What goes wrong with it is in the log."""
        await asyncio.shield(asyncio.wrap_future(self.end_later(row_id, end)))

    def end_later(self, row_id: int, end: End) -> "Future[None]":
        """Completes a row, but does not wait for it."""
        usage = end.usage
        row = (
            end.upstream, end.attempts, end.status, usage.prompt_tokens, usage.cached_tokens,
            usage.completion_tokens, usage.reasoning_tokens, end.rough, end.cost, end.first_s,
            end.whole_s, row_id,
        )  # fmt: skip
        return self._writer.submit(self._complete, row)

    def spent(self) -> dict[str, float]:
        """Dollars by digest of the key, over all of the file. Before the first request."""
        rows = self._database.execute(
            "SELECT asked_by, sum(cost) FROM requests "
            "WHERE asked_by IS NOT NULL AND cost IS NOT NULL GROUP BY asked_by"
        )
        return dict(rows.fetchall())

    def close(self) -> None:
        """Writes what is still to be written."""
        self._writer.shutdown()
        self._database.close()
        self._lock.close()

    def _alone(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another server writes the ledger {self.path}; give this one another with --ledger"
            ) from error

    def _open(self) -> int:
        """The first free id. What an earlier process left open is broken off."""
        try:
            # Made here and then used by the writer alone.
            self._database = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False
            )
            try:
                return self._prepared()
            except BaseException:
                self._database.close()
                raise
        except sqlite3.Error as error:
            raise ConfigError(f"the ledger {self.path} cannot be used: {error}") from error

    def _prepared(self) -> int:
        execute = self._database.execute
        (version,) = execute("PRAGMA user_version").fetchone()
        (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version != _VERSION and (version or tables):
            raise ConfigError(
                f"{self.path} is no ledger of this version of moonlet; name another with --ledger"
            )
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")  # the process may be killed; the power may not fail
        if not tables:
            execute("BEGIN")
            execute(_TABLE)
            execute(f"PRAGMA user_version = {_VERSION}")
            execute("COMMIT")
        execute("UPDATE requests SET status = 'broken off' WHERE status = 'running'")
        (last,) = execute("SELECT max(id) FROM requests").fetchone()
        return (last or 0) + 1

    def _complete(self, row: tuple[Any, ...]) -> None:
        try:
            self._database.execute(_END, row)
        except sqlite3.Error:
            logger.exception("the end of request %s is not in the ledger %s", row[-1], self.path)
