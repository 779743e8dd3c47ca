"""Generated token ids to events where no template is spoken: text as it comes, up to a stop string."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from moonlet.chat.held import HeldText
from moonlet.chat.provider import (
    UNKNOWN_PROMPT,
    Event,
    Finish,
    TextDelta,
    TokenLogprob,
    Usage,
)
from moonlet.chat.tokenizer import TextStream, Tokenizer


class PlainParser:
    """Events of one completion, token by token; special tokens are left out of the text.

    `stopped` becomes true when a stop string was met; the caller then ends the generation.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, choice: int = 0) -> None:
        self.stopped = False
        self._special = tokenizer.special_text
        self._stream = TextStream(tokenizer)
        self._held = HeldText(stop)
        self._choice = choice
        self._completion_tokens = 0

    def push(self, token_id: int, logprob: TokenLogprob | None = None) -> list[Event]:
        """Events that this token completes."""
        if self.stopped:
            return []
        self._completion_tokens += 1
        if token_id in self._special:
            return self._text(self._stream.flush())
        return self._text(self._stream.push(token_id), logprob)

    def finish(
        self, reason: Literal["stop", "length"], prompt: Usage = UNKNOWN_PROMPT
    ) -> list[Event]:
        """What was held back, then Finish, whose usage is that of the prompt and the answer's tokens."""
        events: list[Event] = []
        if not self.stopped:
            events += self._text(self._stream.flush())
            events += self._delta(self._held.release())
        usage = replace(prompt, completion_tokens=self._completion_tokens)
        ended = "stop" if self.stopped else reason
        return [*events, Finish(ended, usage, self._choice, self._held.met)]

    def _text(self, text: str, logprob: TokenLogprob | None = None) -> list[Event]:
        events = self._delta(self._held.push(text, logprob, self._stream.is_unfinished))
        self.stopped = self.stopped or self._held.met is not None
        return events

    def _delta(self, text: str) -> list[Event]:
        return [TextDelta(text, self._choice, self._held.told)] if text else []
