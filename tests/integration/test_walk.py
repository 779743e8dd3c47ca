"""The walk of one request from `moonlet serve` to the logits is a straight line: no file twice."""

import json
import os
import queue
import signal
import threading
import traceback
import urllib.request
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

import moonlet
from moonlet.cli import main as cli_main
from moonlet.cli import serve as cli_serve
from moonlet.engine import Engine
from moonlet.model import Model
from tests.tiny_checkpoint import write_tiny_checkpoint

SRC = Path(moonlet.__file__).parent


def files_on_the_stack() -> list[str]:
    """Files of moonlet that lead to the caller, from the outermost inwards, runs collapsed."""
    paths = [Path(frame.filename) for frame in traceback.extract_stack()]
    ours = [str(path.relative_to(SRC)) for path in paths if path.is_relative_to(SRC)]
    return [name for name, _ in groupby(ours)]


def spied(function: Callable[..., Any], seen: list[list[str]]) -> Callable[..., Any]:
    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(files_on_the_stack())
        return function(*args, **kwargs)

    return spy


@pytest.mark.parametrize("stream", [False, True])
def test_no_file_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    submits: list[list[str]] = []
    logits: list[list[str]] = []
    announced: queue.Queue[dict[str, Any]] = queue.Queue()
    answers: list[bytes] = []
    monkeypatch.setattr(Engine, "submit", spied(Engine.submit, submits))
    monkeypatch.setattr(Model, "logits", spied(Model.logits, logits))
    monkeypatch.setattr(cli_serve, "print_json", announced.put)

    def client() -> None:
        try:
            url = announced.get(timeout=60)["url"]
            body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
            data = json.dumps({**body, "max_tokens": 3, "stream": stream}).encode()
            with urllib.request.urlopen(f"{url}/chat/completions", data, timeout=60) as answer:
                answers.append(answer.read())
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    folder = write_tiny_checkpoint(tmp_path / "tiny")
    asking = threading.Thread(target=client)
    asking.start()
    assert cli_main.main(["serve", str(folder), "--port", "0", "--json"]) == 130
    asking.join()
    assert answers
    # Server and engine have threads of their own: the engine's stack goes on where submit handed over.
    [to_engine], to_logits = submits, logits[0]
    walk = [*to_engine, *to_logits]
    assert walk[0] == "cli/serve.py"
    assert to_logits[0] == "engine/engine.py"
    assert to_engine[-1] == "engine/provider.py"
    assert len(walk) == len(set(walk)), walk
