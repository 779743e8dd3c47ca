"""Text on its way out, of which what comes next may still take back the end.

Held back are an ending that may grow into a stop string; blanks, which are dropped before a tool
call; and, for the same reason, a section marker that some checkpoints misspell as plain text. All is
decided character by character, in constant time each, so nothing depends on where tokens end.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from moonlet.chat.provider import TokenLogprob

BLANKS = " \t\r\n"
SINGULAR_SECTION = "<|tool_call_section_begin|>"  # no token, in spite of its looks


@dataclass
class _Run:
    """Tokens that share characters, usually one: from where to where, and where each begins."""

    begin: int
    end: int
    tokens: list[tuple[int, TokenLogprob]]


class HeldText:
    """`push` text and get what is decided; `release` or `before_call` gives the rest.

    `met` is the stop string that ended the text, `begun` whether anything but blanks has come. Where
    tokens come with log-probabilities text goes out by whole tokens, and `told` are those of the
    text that went out last: each exactly once, none whose text was taken back entirely.
    """

    def __init__(self, stop: Sequence[str] = (), trims_blanks: bool = False) -> None:
        self.met: str | None = None
        self.begun = False
        self.told: tuple[TokenLogprob, ...] = ()
        self._stops = [_Word(word) for word in stop if word]
        self._section = _Word(SINGULAR_SECTION)
        self._trims_blanks = trims_blanks
        self._held: deque[str] = deque()
        self._seen = 0  # characters that have come in, to which all positions refer
        self._blanks = 0  # of them, blanks at the end
        self._tail = 0  # and all at the end that a tool call would take away, or could
        self._runs: deque[_Run] = deque()

    def push(
        self, text: str, logprob: TokenLogprob | None = None, is_unfinished: bool = False
    ) -> str:
        """What is decided now. `is_unfinished`: the token ends inside a character that comes later."""
        if logprob is not None:
            self._note(self._seen, self._seen + len(text) + is_unfinished, logprob)
        for char in text:
            self._seen += 1
            self._held.append(char)
            self._watch(char)
            if self.met is not None:
                return self._cut(self._seen - len(self.met))
        return self._decided(self._seen - max([self._tail, *(s.matched for s in self._stops)]))

    def release(self) -> str:
        """All that is held: nothing follows."""
        return self._cut(self._seen)

    def before_call(self) -> str:
        """What is held, without what a tool call takes away: a call follows."""
        text = "".join(self._held)
        bare = text.rstrip(BLANKS)
        if bare.endswith(SINGULAR_SECTION):
            text = bare.removesuffix(SINGULAR_SECTION)
        if self._trims_blanks:
            text = text.rstrip(BLANKS)
        return self._cut(self._seen - len(self._held) + len(text))

    def _watch(self, char: str) -> None:
        """Take note of one character: of two stop strings the one that is complete first is met."""
        met = [stop.word for stop in self._stops if stop.feed(char)]
        self.met = max(met, key=len, default=None)
        is_blank, blanks_before = char in BLANKS, self._blanks
        self.begun = self.begun or not is_blank
        self._blanks = blanks_before + 1 if is_blank and self._trims_blanks else 0
        if is_blank and self._section.is_complete:
            self._tail += 1
            return
        self._section.feed(char)
        if self._section.matched > 1:
            self._tail += 1
        elif self._section.matched == 1:
            self._tail = blanks_before + 1
        else:
            self._tail = self._blanks

    def _note(self, begin: int, end: int, logprob: TokenLogprob) -> None:
        if not self._runs or self._runs[-1].end <= begin:
            self._runs.append(_Run(begin, end, []))
        self._runs[-1].end = end
        self._runs[-1].tokens.append((begin, logprob))

    def _decided(self, position: int) -> str:
        """Text up to `position`, or to where a run of tokens begins that ends behind it."""
        told: list[TokenLogprob] = []
        while self._runs and self._runs[0].end <= position:
            told += [logprob for _, logprob in self._runs.popleft().tokens]
        self.told = tuple(told)
        return self._take(min(position, self._runs[0].begin) if self._runs else position)

    def _cut(self, position: int) -> str:
        """The last of the text, up to `position`; what is held behind it is dropped."""
        text = self._take(position)
        tokens = [token for run in self._runs for token in run.tokens]
        self.told = tuple(logprob for begin, logprob in tokens if begin < position)
        self._held.clear()
        self._runs.clear()
        return text

    def _take(self, position: int) -> str:
        count = position - (self._seen - len(self._held))
        return "".join(self._held.popleft() for _ in range(count))


class _Word:
    """How much of `word` the text so far ends in, found as Knuth, Morris and Pratt do."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.matched = 0
        self._shorter = [0]  # [n]: the next shorter match inside the first n + 1 characters
        for char in word[1:]:
            self.feed(char)
            self._shorter.append(self.matched)
        self.matched = 0

    @property
    def is_complete(self) -> bool:
        return self.matched == len(self.word)

    def feed(self, char: str) -> bool:
        while self.matched and (self.is_complete or char != self.word[self.matched]):
            self.matched = self._shorter[self.matched - 1]
        self.matched += char == self.word[self.matched]
        return self.is_complete
