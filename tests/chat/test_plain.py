"""Plain completions: text as it comes, special tokens left out, stop strings over token borders."""

import pytest

from moonlet.chat.plain import PlainParser
from moonlet.chat.provider import Finish, TextDelta, Usage
from moonlet.chat.tokenizer import BYTE_TOKENS, Tokenizer

TOKENIZER = Tokenizer(BYTE_TOKENS)


def run(
    text: str, stop: tuple[str, ...] = (), special_after: int | None = None
) -> tuple[str, Finish]:
    parser = PlainParser(TOKENIZER, stop, choice=2)
    ids = TOKENIZER.encode(text)
    if special_after is not None:
        ids.insert(special_after, next(iter(TOKENIZER.special_text)))
    events = [event for token in ids for event in parser.push(token)]
    events += parser.finish("length", Usage(3, 0, 0, 1))
    assert all(event.choice == 2 for event in events)
    finish = events[-1]
    assert isinstance(finish, Finish)
    return "".join(event.text for event in events if isinstance(event, TextDelta)), finish


@pytest.mark.parametrize("special_after", [None, 0, 1])
def test_all_text_comes_out_and_no_special_token(special_after: int | None) -> None:
    text, finish = run("a \u00e7\u00e3o ", special_after=special_after)
    assert text == "a \u00e7\u00e3o "
    assert (finish.reason, finish.stop, finish.usage.prompt_tokens) == ("length", None, 3)


def test_a_stop_string_ends_it_and_is_told() -> None:
    text, finish = run("one END two", ("END", "two"))
    assert (text, finish.reason, finish.stop) == ("one ", "stop", "END")
    assert finish.usage.completion_tokens == len("one END")
