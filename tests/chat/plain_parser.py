"""The output parser once more, for whole answers: short, slow, and written to be looked through.

An answer is a list of pieces, texts and markers (`Special`). All of it is at hand, so nothing waits.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moonlet.chat.template import Special

Piece = str | Special
BLANK = " \t\r\n"
SINGULAR = "<|tool_call_section_begin|>"
# Markers as single characters that no text holds.
LETTER = {
    "<|tool_calls_section_begin|>": "\ue000",
    "<|tool_calls_section_end|>": "\ue001",
    "<|tool_call_begin|>": "\ue002",
    "<|tool_call_argument_begin|>": "\ue003",
    "<|tool_call_end|>": "\ue004",
}
S, E, C, A, Z = LETTER.values()
CALL = re.compile(rf"{C}([^{C}{A}{Z}{E}]*)(?:{A}([^{C}{Z}{E}]*)({Z}|{E}|(?={C})|$)|{Z}|{E})")
# What a model means: blanks between calls, headers, at least one call when the section ends.
HEADER = rf"{C}[^{C}{A}{Z}{E}]*"


@dataclass
class Answer:
    """`calls` are (id, name, arguments, whether it ended)."""

    reasoning: str = ""
    text: str = ""
    calls: tuple[tuple[str, str, str, bool], ...] = ()
    finish: str = "stop"
    stop: str | None = None


@dataclass
class Options:
    starts_in_reasoning: bool = True
    stop: tuple[str, ...] = ()
    tools: list[dict[str, Any]] | None = None
    first_index: int = 0
    stop_after_first_call: bool = False


def plain(pieces: Sequence[Piece], reason: str, options: Options) -> Answer:
    """What `OutputParser` must make of the answer."""
    answer, thinks, block = Answer(), options.starts_in_reasoning, 0
    for at, piece in enumerate(pieces):
        mark = piece.text if isinstance(piece, Special) else None
        if mark is None and thinks:
            answer.reasoning += str(piece)
        elif mark is None:
            answer.text += str(piece)
            if (met := first_met(answer.text, options.stop)) is not None:
                answer.text, answer.stop = met
                return answer
        elif mark == "<think>":
            thinks = thinks or not answer.text.strip(BLANK)
        elif mark == "</think>":
            thinks, block = False, len(answer.reasoning)
        elif mark in (*LETTER,) and LETTER[mark] in (S, C):
            rest = pieces[at:]
            if thinks and not is_meant(rest, reason, options):
                continue  # its markers are dropped and its texts are reasoning
            if thinks:
                before, last = answer.reasoning[:block], answer.reasoning[block:]
                answer.reasoning = before + without_singular(last)
            answer.text = without_singular(answer.text.rstrip(BLANK)).rstrip(BLANK)
            answer.calls = calls_of(rest, reason, options)
            one = options.stop_after_first_call and any(ended for *_, ended in answer.calls)
            reason = "stop" if one else reason
            break
    answer.finish = "tool_calls" if reason == "stop" and answer.calls else reason
    return answer


def first_met(text: str, stops: tuple[str, ...]) -> tuple[str, str] | None:
    """The text before the stop string that is complete first, the longest of several, and it."""
    found = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return None
    end, _, stop = min(found)
    return text[: end - len(stop)], stop


def without_singular(text: str) -> str:
    bare = text.rstrip(BLANK)
    return bare.removesuffix(SINGULAR) if bare.endswith(SINGULAR) else text


def written(pieces: Sequence[Piece]) -> str:
    """Texts and the letters of markers; other markers say nothing here."""
    return "".join(LETTER.get(p.text, "") if isinstance(p, Special) else p for p in pieces)


def is_meant(rest: Sequence[Piece], reason: str, options: Options) -> bool:
    """Whether a section that begins in open reasoning, where `rest` begins, is no quotation."""
    if options.tools == [] or Special("</think>") in rest:
        return False
    text = written(rest)
    position, count, is_after = 0, 0, False
    while position < len(text):
        char = text[position]
        if char in BLANK or char in (A, Z):
            position += 1
        elif char == S:
            position, is_after = position + 1, False
        elif char == E:
            if not count and not is_after:
                return False
            position, is_after = position + 1, True
        elif char == C:
            is_after = False
            found = CALL.match(text, position)
            if not found:  # a header that is left by another call, or by the end
                position = re.compile(HEADER).match(text, position).end()  # type: ignore[union-attr]
                continue
            if header_of(found[1].replace(S, ""), options.tools) is None:
                return False
            is_cut = found[3] == "" and found.end() == len(text)
            count += is_cut or bool(calls_in(found[0], "stop", options))
            position, is_after = found.end(), found[0].endswith(E)
            if is_after and not count:
                return False
        elif is_after:
            position += 1
        else:
            return False
    last = text.rpartition(E)[2]
    return count > 0 and not (reason == "length" and is_after and bool(last.strip(BLANK + A + Z)))


def header_of(
    header: str, tools: list[dict[str, Any]] | None
) -> tuple[str | None, str | None] | None:
    """Name and number as far as the header tells them; None when it is none."""
    names = [tool["function"]["name"] for tool in tools or []]
    body = re.sub(r"^functions\.", "", header.strip()).strip()
    if tools == []:
        return None
    if full := re.fullmatch(r"(.*):\s*([0-9]{1,9})", body, re.DOTALL):
        return (full[1].strip(), full[2]) if full[1].strip() else None
    if re.fullmatch("[0-9]{1,9}", body):
        return (names[0] if len(names) == 1 else None), body
    for name in (body, body.rpartition(":")[0].strip()):
        if name in names:
            return name, None
    return None


def calls_of(
    rest: Sequence[Piece], reason: str, options: Options
) -> tuple[tuple[str, str, str, bool], ...]:
    return calls_in(written(rest), reason, options)


def calls_in(text: str, reason: str, options: Options) -> tuple[tuple[str, str, str, bool], ...]:
    calls: list[tuple[str, str, str, bool]] = []
    used: set[int] = set()
    for found in CALL.finditer(text.replace(S, "")):
        header, arguments = header_of(found[1], options.tools), (found[2] or "").replace(A, "")
        arguments = arguments.strip(BLANK)
        is_cut = found[2] is not None and found[3] == "" and found.end() == len(text.replace(S, ""))
        if header is None:
            continue
        name, number = header
        if name is None:
            names = fitting(arguments or "{}", options.tools or [])
            if len(names) != 1 or (is_cut and reason == "length"):
                continue
            name = names[0]
        index = int(number) if number else -1
        if index < options.first_index or index in used:
            index = options.first_index + len(calls)
            while index in used:
                index += 1
        used.add(index)
        ended = not is_cut or reason == "stop"
        arguments = arguments or ("{}" if ended else "")
        calls.append((f"functions.{name}:{index}", name, arguments, ended))
        if options.stop_after_first_call and ended:
            break
    return tuple(calls)


def fitting(arguments: str, tools: list[dict[str, Any]]) -> list[str]:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return []
    if not isinstance(value, dict):
        return []
    found = []
    for tool in tools:
        schema = tool["function"]["parameters"]
        if set(schema["required"]) <= set(value) <= set(schema["properties"]):
            found.append(tool["function"]["name"])
    return found
