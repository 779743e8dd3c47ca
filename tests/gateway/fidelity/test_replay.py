"""Replaying a verifier's samples: retries, resuming after a kill, and figures computed by hand."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from moonlet.gateway.fidelity.client import MAX_ATTEMPTS, Client, open_http
from moonlet.gateway.fidelity.errors import VerifyError
from moonlet.gateway.fidelity.records import CallRecord, Record, RecordFile, read_records
from moonlet.gateway.fidelity.replay import replay
from moonlet.gateway.fidelity.samples import read_samples
from moonlet.gateway.fidelity.scores import finish_reasons, score_schemas, score_triggers

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
NOW = {"retry-after": "0"}


def sample(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "_input", "content": "rules"}, {"role": "user", "content": question}]
    return {"model": "theirs", "messages": messages, "tools": [TOOL], "stream": False, **more}


def write(path: Path, *samples: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in samples))
    return path


def says(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}


def calls(*made: tuple[str, str], finish: str = "tool_calls") -> dict[str, Any]:
    told = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(made)
    ]
    return {"message": {"role": "assistant", "tool_calls": told}, "finish_reason": finish}


class Script:
    """Answers by question; `asked` are the bodies that came. Exceptions are raised, responses sent."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[dict[str, Any]] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        self.asked.append(body)
        answer = self.answers[body["messages"][-1]["content"]]
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx2.Response):
            return answer
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        return httpx2.Response(200, json={"choices": [{"index": 0, **answer}], "usage": usage})


def played(
    script: Callable[[httpx2.Request], httpx2.Response],
    samples: Path,
    output: Path | None = None,
    model: str = "ours",
    extra: dict[str, Any] | None = None,
    concurrency: int = 3,
) -> list[Record]:
    async def run() -> list[Record]:
        records = RecordFile(output)
        try:
            async with open_http(httpx2.MockTransport(script)) as http:
                found = read_samples(samples, model, extra or {})
                client = Client(http, "http://x/v1")
                return await replay(client, found, records, concurrency=concurrency, timeout_s=20)
        finally:
            records.close()

    return asyncio.run(run())


GOOD, LACKS, EXTRA = '{"city":"Rio"}', "{}", '{"city":"Rio","at":1}'
ANSWERS: dict[str, Any] = {
    "one good": calls(("weather", GOOD)),
    "good and bad": calls(("weather", GOOD), ("weather", LACKS)),
    "three wrong": calls(("weather", EXTRA), ("weather", "{"), ("wether", GOOD)),
    "claims only": calls(),
    "cut off": calls(("weather", '{"ci'), finish="length"),
    "talks": says("It is warm."),
}


def test_schema_accuracy_by_hand(tmp_path: Path) -> None:
    """Calls that count: 1 + 2 + 3, and the one that is missing: 7; good ones: 1 + 1."""
    file = write(tmp_path / "s.jsonl", *map(sample, ANSWERS))
    found = score_schemas(played(Script(ANSWERS), file))
    assert (found.answers, found.calls, found.valid, found.unjudged) == (4, 7, 2, 0)
    assert found.accuracy == 2 / 7


def test_f1_by_hand(tmp_path: Path) -> None:
    """Over a to e both ran: TP a b, FP c, FN d: 4 / (4 + 1 + 1). f has no answer here, g none there."""
    call, talk, gone = calls(("weather", GOOD)), says("no"), httpx2.Response(400, json={})
    file = write(tmp_path / "s.jsonl", *map(sample, "abcdefg"))
    ours = dict(zip("abcdefg", [call, call, call, talk, talk, gone, call], strict=True))
    theirs = dict(zip("abcdefg", [call, call, talk, call, talk, call, gone], strict=True))
    this = played(Script(ours), file)
    reference = played(Script(theirs), file, model="another", extra={"temperature": 1})
    found = score_triggers(this, reference)
    assert (found.compared, found.both, found.only_this, found.only_reference) == (5, 2, 1, 1)
    assert found.f1 == 4 / 6
    assert finish_reasons(this) == {"tool_calls": 4, "stop": 2, "no answer": 1}
    assert score_triggers(this, []).f1 is None
    assert score_schemas([]).accuracy is None


def test_what_is_sent(tmp_path: Path) -> None:
    file = write(
        tmp_path / "s.jsonl", sample("talks", temperature=0.3), sample("one good", stream=None)
    )
    script = Script(ANSWERS)
    played(script, file, extra={"temperature": 0.6, "chat_template_kwargs": {"thinking": False}})
    first = next(body for body in script.asked if body["messages"][-1]["content"] == "talks")
    assert first["model"] == "ours"
    assert first["temperature"] == 0.6
    assert first["chat_template_kwargs"] == {"thinking": False}
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert first["tools"] == [TOOL]


def test_streams_are_put_together(tmp_path: Path) -> None:
    chunks: list[Any] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant"}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [
            {"index": 0, "id": "x", "type": "function", "function": {"name": "weather", "arguments": '{"city"'}}]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": ':"Rio"}'}}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    ]  # fmt: skip
    raw = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    whole = httpx2.Response(200, text=f"{raw}data: [DONE]\n\n")
    broken_off = httpx2.Response(200, text=raw, headers=NOW)
    request = sample("q")
    del request["stream"]
    script = Script({"q": [broken_off, whole]})
    [record] = played(script, write(tmp_path / "s.jsonl", request))
    assert script.asked[0]["stream"] is True
    assert script.asked[0]["stream_options"] == {"include_usage": True}
    assert record.calls == (CallRecord("weather", GOOD, None),)
    assert len(script.asked) == 2  # a stream that broke off is asked for again


def test_what_is_temporary_is_asked_again_and_the_rest_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moonlet.gateway.fidelity.replay.delay_s", lambda headers, attempt: 0.0)
    busy, down = httpx2.Response(429, headers=NOW), httpx2.Response(503)
    money = httpx2.Response(
        429, json={"error": {"type": "exceeded_current_quota_error", "message": "m"}}
    )
    script = Script(
        {
            "busy": [busy, down, httpx2.ConnectError("gone"), says("there")],
            "never": [down] * MAX_ATTEMPTS,
            "wrong": [httpx2.Response(400, json={"error": {"message": "no such thing"}})],
            "poor": [money],
        }
    )
    found = played(
        script, write(tmp_path / "s.jsonl", *map(sample, ["busy", "never", "wrong", "poor"]))
    )
    errors = [record.error for record in found]
    assert errors[0] is None
    assert f"{MAX_ATTEMPTS} times" in (errors[1] or "")
    assert "no such thing" in (errors[2] or "")
    assert "429" in (errors[3] or "")
    assert len(script.asked) == 4 + MAX_ATTEMPTS + 1 + 1


def test_what_would_be_refused_for_all_ends_the_run(tmp_path: Path) -> None:
    gone = httpx2.Response(404, json={"error": {"message": "no such model"}})
    file = write(tmp_path / "s.jsonl", *map(sample, "abcdefgh"))
    script = Script(dict.fromkeys("abcdefgh", gone))
    with pytest.raises(VerifyError, match="no such model"):
        played(script, file)
    assert len(script.asked) <= 3
    script = Script({**dict.fromkeys("bcdefgh", gone), "a": says("yes")})
    errors = [record.error for record in played(script, file, concurrency=1)]
    assert errors[0] is None
    assert None not in errors[1:]  # one of them at least was served, so that the rest may be


def test_retry_after_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("moonlet.gateway.fidelity.replay.asyncio.sleep", sleep)
    script = Script({"q": [httpx2.Response(429, headers={"retry-after": "17"}), says("ok")]})
    played(script, write(tmp_path / "s.jsonl", sample("q")))
    assert waited == [17.0]


def test_a_run_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    names = ["one good", "talks", "good and bad", "cut off"]
    file, output = write(tmp_path / "s.jsonl", *map(sample, names)), tmp_path / "out.jsonl"
    whole = played(Script(ANSWERS), file)
    played(Script(ANSWERS), write(tmp_path / "first.jsonl", *map(sample, names[:2])), output)
    kept = output.read_bytes()
    output.write_bytes(
        kept + kept.splitlines()[0][:70]
    )  # as a kill in the middle of a line leaves it
    script = Script(ANSWERS)
    found = played(script, file, output)
    assert [body["messages"][-1]["content"] for body in script.asked] == names[2:]
    assert output.read_bytes().startswith(kept)
    assert {record.request for record in read_records(output)} == {r.request for r in whole}
    assert score_schemas(found) == score_schemas(whole)
    assert [record.request for record in found] == [record.request for record in whole]


def test_a_kill_loses_nothing_that_was_added(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from moonlet.gateway.fidelity.records import Record, RecordFile
file = RecordFile(Path({str(tmp_path / "out")!r}))
file.add(Record("s", "r", "m"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert read_records(tmp_path / "out") == [Record("s", "r", "m")]


def test_what_was_not_answered_is_asked_again_later(tmp_path: Path) -> None:
    file, output = write(tmp_path / "s.jsonl", sample("q")), tmp_path / "out.jsonl"
    [failed] = played(Script({"q": httpx2.Response(400, json={})}), file, output)
    assert failed.error is not None
    [record] = played(Script({"q": says("now")}), file, output)
    assert record.error is None
    assert len(output.read_bytes().splitlines()) == 2
    assert read_records(output) == [record]


def test_another_model_is_another_request_but_the_same_sample(tmp_path: Path) -> None:
    file, output = write(tmp_path / "s.jsonl", sample("talks")), tmp_path / "out.jsonl"
    [first] = played(Script(ANSWERS), file, output)
    [second] = played(Script(ANSWERS), file, output, model="another")
    assert first.sample == second.sample
    assert first.request != second.request
    renamed = write(tmp_path / "t.jsonl", sample("talks", model="somebody else's"))
    [third] = played(Script(ANSWERS), renamed)
    assert (third.sample, third.request) == (first.sample, first.request)


def test_equal_samples_are_asked_once(tmp_path: Path) -> None:
    twice = {"tools": [TOOL], **sample("talks")}  # in another order of members
    script = Script(ANSWERS)
    assert len(played(script, write(tmp_path / "s.jsonl", sample("talks"), twice))) == 1
    assert len(script.asked) == 1


def test_a_tool_whose_schema_is_none_is_not_judged(tmp_path: Path) -> None:
    odd = {"type": "function", "function": {"name": "weather", "parameters": {"type": "word"}}}
    request = {**sample("one good"), "tools": [odd]}
    found = score_schemas(played(Script(ANSWERS), write(tmp_path / "s.jsonl", request)))
    assert (found.answers, found.calls, found.unjudged, found.accuracy) == (1, 0, 1, None)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 of .* is no JSON"),
        ("[1]", "is no JSON object"),
        ('{"tools":[]}', "no list of messages"),
        ('{"messages":["x"],"tools":[]}', "no list of messages"),
        ('{"messages":[{}]}', "has no tools"),
        ('{"messages":[{}],"tools":[{"type":"function"}]}', "a tool without a name"),
        ('{"messages":[{}],"tools":[3]}', "a tool without a name"),
    ],
)
def test_a_bad_sample_is_named_by_its_line(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text(f"{json.dumps(sample('q'))}\n{line}\n")
    with pytest.raises(VerifyError, match=says):
        list(read_samples(file, "m", {}))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="cannot read"):
        list(read_samples(tmp_path / "no", "m", {}))
    with pytest.raises(VerifyError, match="cannot write"):
        RecordFile(tmp_path / "no" / "out")
    (tmp_path / "other").write_text("hello\nworld\n")
    with pytest.raises(VerifyError, match=r"line 1 of .+ is no result"):
        RecordFile(tmp_path / "other")
    assert (tmp_path / "other").read_text() == "hello\nworld\n"


@pytest.mark.parametrize(
    "line", ["{}", "[]", "7", '{"calls":[{}]}', '{"calls":[],"sample":1,"request":"","model":""}']
)
def test_lines_that_are_no_results(tmp_path: Path, line: str) -> None:
    (tmp_path / "r").write_text(f"{line}\n")
    with pytest.raises(VerifyError, match="is no result"):
        read_records(tmp_path / "r")
