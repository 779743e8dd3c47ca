"""What holds for every stream of chat completions."""

from collections.abc import Iterator

from moonlet.gateway.fidelity.answers import Answer, Piece
from moonlet.gateway.fidelity.check import Group, Seen
from moonlet.gateway.fidelity.client import shown

group = Group("stream")


def _answer(seen: Seen) -> Answer:
    assert seen.answer is not None, "a rule about streams sees answers only"
    return seen.answer


def _by_choice(seen: Seen) -> Iterator[tuple[int, list[Piece]]]:
    answer = _answer(seen)
    for index in answer.choices:
        yield index, [piece for piece in answer.pieces if piece.choice == index]


@group.rule("type", "the content type is text/event-stream", "stream")
def content_type(seen: Seen) -> str | None:
    found = seen.reply.headers.get("content-type", "")
    if found.split(";")[0].strip().lower() != "text/event-stream":
        return f"a stream came as {shown(found)}, not as text/event-stream"
    return None


@group.rule("done", "the last event is [DONE], and there is one", "stream")
def done(seen: Seen) -> str | None:
    after = _answer(seen).after_done
    if after is None:
        return "the stream ended without [DONE]"
    return f"{after} events came after [DONE]" if after else None


@group.rule("head", "id, created and model are the same in all chunks", "stream")
def head(seen: Seen) -> str | None:
    chunks = _answer(seen).chunks
    for name in ("id", "created", "model"):
        values = {repr(chunk.get(name)) for chunk in chunks}
        if len(values) > 1:
            return f"{name} changed in the stream: {shown(' and '.join(sorted(values)))}"
    if not chunks or not isinstance(chunks[0].get("id"), str) or not chunks[0]["id"]:
        return "the chunks have no id"
    kinds = {repr(chunk.get("object")) for chunk in chunks}
    if kinds != {"'chat.completion.chunk'"}:
        return f"object is {shown(' and '.join(sorted(kinds)))}, not chat.completion.chunk"
    return None


@group.rule("role", "the first delta of a choice has the role assistant", "stream")
def role(seen: Seen) -> str | None:
    for index, pieces in _by_choice(seen):
        if pieces[0].role != "assistant":
            return f"the first delta of choice {index} has the role {shown(pieces[0].role)}"
    return None


@group.rule("finish", "each choice has one finish_reason, in its last chunk", "stream")
def finish(seen: Seen) -> str | None:
    choices = list(_by_choice(seen))
    if not choices:
        return "the stream has no choice at all"
    for index, pieces in choices:
        count = sum(piece.finish is not None for piece in pieces)
        if count != 1:
            return f"choice {index} has {count} finish reasons"
        last = next(number for number, piece in enumerate(pieces) if piece.finish is not None)
        if any(piece.content or piece.reasoning or piece.calls for piece in pieces[last + 1 :]):
            return f"choice {index} goes on after its finish_reason"
    return None


@group.rule("reasoning-first", "all reasoning comes before the first content or call", "stream")
def reasoning_first(seen: Seen) -> str | None:
    for index, pieces in _by_choice(seen):
        answered = False
        for piece in pieces:
            if piece.reasoning and answered:
                return f"choice {index}: reasoning came after the answer had begun"
            answered = answered or bool(piece.content) or bool(piece.calls)
    return None


@group.rule(
    "calls", "a call begins with index, id, type and name, and goes on with index", "stream"
)
def calls(seen: Seen) -> str | None:
    for index, pieces in _by_choice(seen):
        begun: set[int] = set()
        for piece in (call for whole in pieces for call in whole.calls):
            if piece.index is None:
                return f"choice {index}: a piece of a call has no index"
            if piece.index in begun:
                if piece.id:
                    return f"choice {index}: call {piece.index} told its id twice"
                continue
            if piece.index != len(begun):
                return f"choice {index}: call {piece.index} came as number {len(begun)}"
            if not piece.id or not piece.name or piece.type != "function":
                return f"choice {index}: call {piece.index} began without id, type or name"
            begun.add(piece.index)
    return None


@group.rule("usage", "with include_usage one more chunk, without choices, has the usage", "stream")
def usage(seen: Seen) -> str | None:
    answer, options = _answer(seen), seen.body.get("stream_options") or {}
    whole = [chunk for chunk in answer.chunks if chunk.get("usage") and not chunk.get("choices")]
    if not options.get("include_usage"):
        return "a usage chunk came that nobody asked for" if whole else None
    if len(whole) != 1:
        return f"{len(whole)} chunks without choices have a usage, not one"
    return None if answer.chunks[-1] is whole[0] else "the usage chunk is not the last one"
