"""`moonlet serve` in a process of its own, whose memory can be told from that of the test."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WAIT_S = 60


@dataclass
class Child:
    """A server that answers at `port`."""

    pid: int
    port: int

    def peak_bytes(self) -> int:
        """The most memory that the process had at any time."""
        return self._status("VmHWM")

    def memory_bytes(self) -> int:
        """The memory that it has now."""
        return self._status("VmRSS")

    def _status(self, line: str) -> int:
        for text in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if text.startswith(f"{line}:"):
                return int(text.split()[1]) * 1024
        raise AssertionError(f"/proc has no {line}")


@contextmanager
def child_server(*arguments: str) -> Iterator[Child]:
    """`moonlet serve ARGUMENTS` on a free port, from the moment that its model is loaded."""
    code = "import sys; from moonlet.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", *arguments, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = ""
            while not told.endswith("}\n"):
                line = process.stdout.readline()
                assert line, "the server did not start"
                told += line
            port = int(json.loads(told)["url"].rsplit(":", 1)[1].split("/")[0])
            yield Child(process.pid, port)
        finally:
            process.kill()
