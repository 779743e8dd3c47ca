"""Stop strings and log-probabilities: text that waits, and is sometimes taken back."""

from typing import Any

import pytest

from moonlet.chat.parser import OutputParser
from moonlet.chat.provider import Finish, TextDelta, TokenLogprob, Usage
from moonlet.chat.tokenizer import BYTE_TOKENS, Tokenizer
from tests.chat.completions import (
    ARGS,
    CALL,
    CALL_END,
    ONE,
    SECTION,
    SECTION_END,
    SINGULAR,
    TOKENIZER,
    VOCABULARY,
    ids_of,
    parse,
)

# Stop strings


@pytest.mark.parametrize(
    ("content", "stop", "text", "met"),
    [
        ("one STOP two", ("STOP",), "one ", "STOP"),
        ("one STOP", ("STOP", "one"), "", "one"),
        ("ST STO ST", ("STOP",), "ST STO ST", None),
        ("SSTOP", ("STOP",), "S", "STOP"),
        ("a\n\nb", ("\n\n",), "a", "\n\n"),
        ("STO", ("O", "T"), "S", "T"),
        ("STOP", ("OP", "STOP", "TOP"), "", "STOP"),  # complete at once: the longest
        ("STOP", ("STOP", "TO"), "S", "TO"),  # complete first, wherever tokens end
        ("a\nb\n\n\nc", ("\n\n",), "a\nb", "\n\n"),
        ("aabaabaaab", ("aabaaab",), "aab", "aabaaab"),
        ("é!é?", ("é?",), "é!", "é?"),
        ("é🙂é", ("🙂",), "é", "🙂"),
        ("abc", ("",), "abc", None),
        ("a <|im_end|>b", ("a b",), "", "a b"),
        (f"a \n{ONE}", ("\n",), "a ", "\n"),
        (f"a {SINGULAR}", (SINGULAR[:9],), "a ", SINGULAR[:9]),
    ],
)
def test_stop_strings(content: str, stop: tuple[str, ...], text: str, met: str | None) -> None:
    done = parse("t</think>" + content, stop=stop)
    assert (done.reasoning, done.text, done.finish_reason) == ("t", text, "stop")
    assert (done.stop, done.tool_calls) == (met, ())


def test_stop_strings_spare_reasoning_and_arguments() -> None:
    completion = f"STOP</think>a{SECTION}{CALL}f:0{ARGS}STOP{CALL_END}{SECTION_END}STOP"
    done = parse(completion, stop=("STOP",))
    assert (done.reasoning, done.text, done.stop) == ("STOP", "a", None)
    assert done.tool_calls[0].arguments == "STOP"


def test_after_a_stop_string_the_parser_is_silent() -> None:
    parser = OutputParser(TOKENIZER, False, ("b",))
    events = [e for i in ids_of(f"ab{SECTION}{CALL}f:0{ARGS}c") for e in parser.push(i)]
    assert events == [TextDelta("a")]
    assert parser.stopped
    assert parser.push(ids_of("c")[0]) == []
    assert parser.finish("stop") == [Finish("stop", Usage(0, 2, 0), stop="b")]


def test_a_stop_string_that_only_the_end_completes() -> None:
    """The replacement of an unfinished character is text too; the limit was then not the reason."""
    parser = OutputParser(TOKENIZER, False, ("\ufffd",))
    events = [e for token in (b"a", b"\xc3") for e in parser.push(VOCABULARY.index(token))]
    assert events == [TextDelta("a")]
    assert parser.finish("length") == [Finish("stop", Usage(0, 2, 0), stop="\ufffd")]


# Log-probabilities


def with_logprobs(ids: list[int]) -> list[tuple[int, TokenLogprob]]:
    """Tokens with log-probabilities that tell them apart."""
    return [(i, TokenLogprob(TOKENIZER.decode_bytes([i]), -float(n))) for n, i in enumerate(ids)]


def told(tokens: list[bytes | str], **options: Any) -> list[tuple[str, list[bytes]]]:
    """The text deltas and the tokens that came with them; a string is a marker."""
    ids = [TOKENIZER.id_of(t) if isinstance(t, str) else VOCABULARY.index(t) for t in tokens]
    parser = OutputParser(TOKENIZER, False, **options)
    events = [e for i, logprob in with_logprobs(ids) for e in parser.push(i, logprob)]
    events += parser.finish("stop")
    deltas = [e for e in events if isinstance(e, TextDelta)]
    assert [e for e in events if isinstance(e, TextDelta) and not e.text] == []
    numbers = [logprob.logprob for delta in deltas for logprob in delta.logprobs]
    assert numbers == sorted(numbers, reverse=True)
    return [(delta.text, [logprob.token for logprob in delta.logprobs]) for delta in deltas]


@pytest.mark.parametrize(
    ("tokens", "stop", "wanted"),
    [
        ([b"a", b"b"], (), [("a", [b"a"]), ("b", [b"b"])]),
        ([b"a", b" ", b"th"], (), [("a", [b"a"]), (" th", [b" ", b"th"])]),
        ([b"\xc3", b"\xa9"], (), [("é", [b"\xc3", b"\xa9"])]),
        ([b"\xc3\xa9!", b"a"], (), [("é!", [b"\xc3\xa9!"]), ("a", [b"a"])]),
        ([b"STO", b"th"], ("STOP",), [("STOth", [b"STO", b"th"])]),
        # A token is told with its first letter, even if the rest of it was taken back.
        ([b"a", b"STO", b"P"], ("TOP",), [("a", [b"a"]), ("S", [b"STO"])]),
        ([b"a", b"STO", b"P"], ("STOP",), [("a", [b"a"])]),
        ([b"a", b"\n\n", SECTION, b"x"], (), [("a", [b"a"])]),
        ([b"a", "<think>", b"b"], (), [("a", [b"a"]), ("b", [b"b"])]),
        (["<think>", b"a", "</think>", b"b"], (), [("b", [b"b"])]),
        ([b" ", "<think>", b"a", "</think>", b"b"], (), [(" b", [b" ", b"b"])]),
        ([b"a", b"\xc3", "[EOS]"], (), [("a", [b"a"]), ("\ufffd", [b"\xc3"])]),
    ],
)
def test_logprobs(tokens: Any, stop: Any, wanted: list[tuple[str, list[bytes]]]) -> None:
    assert told(tokens, stop=stop) == wanted


def test_a_token_that_ends_inside_a_character_waits_for_it() -> None:
    tokenizer = Tokenizer([*BYTE_TOKENS, b"a\xc3", b"\xa9b\xc3"])
    parser = OutputParser(tokenizer, False)
    tokens = [(256, b"a\xc3"), (257, b"\xa9b\xc3"), (BYTE_TOKENS.index(b"\xa9"), b"\xa9")]
    steps = [parser.push(i, TokenLogprob(token, -1.0)) for i, token in tokens]
    assert steps[:2] == [[], []]
    (delta,) = steps[2]
    assert isinstance(delta, TextDelta)
    assert delta.text == "aébé"
    assert [logprob.token for logprob in delta.logprobs] == [token for _, token in tokens]


def test_reasoning_and_calls_tell_no_logprobs() -> None:
    parser = OutputParser(TOKENIZER, True)
    ids = ids_of(f"a{ONE}b</think>{ONE}")
    events = [e for i, logprob in with_logprobs(ids) for e in parser.push(i, logprob)]
    assert not any(isinstance(event, TextDelta) for event in [*events, *parser.finish("stop")])
