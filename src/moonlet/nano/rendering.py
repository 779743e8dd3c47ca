"""Cases to token ids, by the very parser and template that serve requests."""

from dataclasses import dataclass
from pathlib import Path

from moonlet.chat.media import MediaItem, MediaLimits
from moonlet.chat.messages import parse_messages
from moonlet.chat.template import ChatTemplate
from moonlet.chat.tokenizer import Tokenizer
from moonlet.nano.skills import Case

_THINK_END, _TURN_END = "</think>", "<|im_end|>"


@dataclass(frozen=True)
class Conversation:
    """Token ids with their images; the first `prompt_length` ids are what the model is given."""

    token_ids: list[int]
    prompt_length: int
    media: list[MediaItem]


class Renderer:
    """Turns cases into what the model reads, and what it writes back into answers."""

    def __init__(self, tokenizer: Tokenizer, limits: MediaLimits) -> None:
        self.tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, limits=limits)
        self._think_end = tokenizer.id_of(_THINK_END)

    @classmethod
    def from_folder(cls, folder: Path) -> "Renderer":
        """With the tokenizer and the image limits of a checkpoint. Raises TokenizerError, ConfigError."""
        return cls(Tokenizer.from_folder(folder), MediaLimits.from_folder(folder) or MediaLimits())

    def prompt(self, case: Case) -> Conversation:
        """The prompt of the case alone."""
        prompt = self._template.render(parse_messages(case.messages), thinking=case.thinking)
        return Conversation(prompt.token_ids, len(prompt.token_ids), prompt.media)

    def example(self, case: Case) -> Conversation:
        """The prompt and the reply to learn: reasoning, `</think>`, answer, `<|im_end|>`.

        In instant mode the prompt already ends in `</think>`.
        """
        prompt = self.prompt(case)
        reply = self.tokenizer.encode(case.answer)
        if case.thinking:
            reply = [*self.tokenizer.encode(case.reasoning), self._think_end, *reply]
        reply = [*reply, self.tokenizer.id_of(_TURN_END)]
        return Conversation([*prompt.token_ids, *reply], prompt.prompt_length, prompt.media)

    def answer(self, case: Case, reply: list[int]) -> str:
        """The final answer in a generated reply; empty when the model never stopped thinking."""
        if not case.thinking:
            return self.tokenizer.decode(reply)
        if self._think_end not in reply:
            return ""
        return self.tokenizer.decode(reply[reply.index(self._think_end) + 1 :])
