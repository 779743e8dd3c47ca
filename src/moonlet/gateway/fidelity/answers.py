"""One chat answer, plain or streamed, in one form that checks can look at and compare.

Reading is lenient about everything that a rule looks at (order, repetition, what is missing) and
strict about types only, so that one fault of an endpoint breaks one rule and not every check.
"""

from dataclasses import dataclass, field
from typing import Any

from moonlet.gateway.fidelity.client import Reply, parse_json, shown
from moonlet.gateway.fidelity.errors import Failed
from moonlet.gateway.fidelity.shape import member, needed, objects

DONE = "[DONE]"


@dataclass
class Call:
    """One tool call; of a stream the pieces joined."""

    id: str = ""
    type: str = ""
    name: str = ""
    arguments: str = ""


@dataclass
class Choice:
    """One choice. `content` and `reasoning` are empty where there is none; so is `calls`."""

    role: str | None = None
    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    finish: str | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class CallPiece:
    """What one chunk says of one call; None is what it does not mention."""

    index: int | None
    id: str | None
    type: str | None
    name: str | None
    arguments: str | None


@dataclass(frozen=True)
class Piece:
    """What one chunk says of one choice."""

    chunk: int
    choice: int
    role: str | None
    content: str | None
    reasoning: str | None
    calls: tuple[CallPiece, ...]
    finish: str | None


@dataclass
class Answer:
    """A whole answer. chunks, pieces: of a stream, in order. usages: every one that was told.

    after_done: how many events came after [DONE]; None when it never came.
    """

    body: dict[str, Any]
    choices: dict[int, Choice] = field(default_factory=dict)
    usages: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    after_done: int | None = None

    @property
    def first(self) -> Choice:
        """The choice of an answer that has one. Raises Failed."""
        if 0 not in self.choices:
            raise Failed("the answer has no choice number 0")
        return self.choices[0]

    @property
    def usage(self) -> dict[str, Any]:
        """The last usage that was told. Raises Failed."""
        if not self.usages:
            raise Failed("the answer has no usage")
        return self.usages[-1]

    @property
    def prompt_tokens(self) -> int:
        return needed(self.usage, "prompt_tokens", int, "usage")

    @property
    def completion_tokens(self) -> int:
        return needed(self.usage, "completion_tokens", int, "usage")

    @property
    def reasoning_tokens(self) -> int | None:
        details = member(self.usage, "completion_tokens_details", dict, "usage")
        return member(details or {}, "reasoning_tokens", int, "usage.completion_tokens_details")


def read_plain(reply: Reply) -> Answer:
    """Raises Failed when the body is not of the shape of a chat completion."""
    body = reply.json
    answer = Answer(body)
    for number, raw in enumerate(objects(body, "choices")):
        where = f"choices[{number}]"
        index = member(raw, "index", int, where)
        message = needed(raw, "message", dict, where)
        choice = answer.choices.setdefault(number if index is None else index, Choice())
        choice.role = member(message, "role", str, f"{where}.message")
        choice.content = member(message, "content", str, f"{where}.message") or ""
        choice.reasoning = _reasoning(message, f"{where}.message") or ""
        choice.calls = [
            Call(piece.id or "", piece.type or "", piece.name or "", piece.arguments or "")
            for piece in _calls(message, f"{where}.message")
        ]
        choice.finish = member(raw, "finish_reason", str, where)
        choice.logprobs = _logprobs(raw, where)
        _take_usage(answer, raw, where)
    _take_usage(answer, body, "the answer")
    return answer


def read_stream(reply: Reply, *, keep_chunks: bool = True) -> Answer:
    """Raises Failed when an event is no chunk of a chat completion, or tells an error.

    Without `keep_chunks` only what they say together is kept.
    """
    answer = Answer({})
    calls: dict[tuple[int, int], Call] = {}
    for number, event in enumerate(reply.events):
        if event.data.strip() == DONE:
            answer.after_done = len(reply.events) - number - 1
            break
        _add_chunk(answer, _chunk(event.data, number), calls)
        if not keep_chunks:
            answer.chunks.clear()
            answer.pieces.clear()
    if answer.chunks:
        answer.body = answer.chunks[0]
    return answer


def _chunk(data: str, number: int) -> dict[str, Any]:
    try:
        chunk = parse_json(data)
    except ValueError:
        raise Failed(f"event {number} of the stream is no JSON: {shown(data)}") from None
    if not isinstance(chunk, dict):
        raise Failed(f"event {number} of the stream is {shown(data)}, not an object")
    if chunk.get("error") is not None:
        raise Failed(f"the stream broke off with the error {shown(chunk['error'])}")
    return chunk


def _add_chunk(answer: Answer, chunk: dict[str, Any], calls: dict[tuple[int, int], Call]) -> None:
    number = len(answer.chunks)
    answer.chunks.append(chunk)
    for raw in objects(chunk, "choices", f"chunk {number}"):
        where = f"chunk {number}"
        index = member(raw, "index", int, where) or 0
        delta = member(raw, "delta", dict, where) or {}
        piece = Piece(
            number,
            index,
            member(delta, "role", str, where),
            member(delta, "content", str, where),
            _reasoning(delta, where),
            tuple(_calls(delta, where)),
            member(raw, "finish_reason", str, where),
        )
        answer.pieces.append(piece)
        choice = answer.choices.setdefault(index, Choice())
        choice.role = choice.role or piece.role
        choice.content += piece.content or ""
        choice.reasoning += piece.reasoning or ""
        choice.finish = choice.finish or piece.finish
        choice.logprobs += _logprobs(raw, where)
        for call in piece.calls:
            _add_call(choice, index, call, calls)
        _take_usage(answer, raw, where)
    _take_usage(answer, chunk, f"chunk {number}")


def _add_call(
    choice: Choice, index: int, piece: CallPiece, calls: dict[tuple[int, int], Call]
) -> None:
    key = (index, piece.index or 0)
    if key not in calls:
        calls[key] = Call()
        choice.calls.append(calls[key])
    call = calls[key]
    call.id = call.id or piece.id or ""
    call.type = call.type or piece.type or ""
    call.name = call.name or piece.name or ""
    call.arguments += piece.arguments or ""


def _reasoning(parent: dict[str, Any], where: str) -> str | None:
    """Under Kimi's name, or vLLM's."""
    official = member(parent, "reasoning_content", str, where)
    return official if official is not None else member(parent, "reasoning", str, where)


def _calls(parent: dict[str, Any], where: str) -> list[CallPiece]:
    pieces = []
    for raw in objects(parent, "tool_calls", where):
        function = member(raw, "function", dict, where) or {}
        pieces.append(
            CallPiece(
                member(raw, "index", int, where),
                member(raw, "id", str, where),
                member(raw, "type", str, where),
                member(function, "name", str, where),
                member(function, "arguments", str, where),
            )
        )
    return pieces


def _logprobs(choice: dict[str, Any], where: str) -> list[dict[str, Any]]:
    return objects(member(choice, "logprobs", dict, where) or {}, "content", f"{where}.logprobs")


def _take_usage(answer: Answer, parent: dict[str, Any], where: str) -> None:
    """Kimi tells it inside the last choice as well."""
    usage = member(parent, "usage", dict, where)
    if usage is not None:
        answer.usages.append(usage)
