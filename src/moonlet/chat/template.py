"""Conversations to prompts, in the published formats of K2, K2-Thinking and K2.5.

A prompt is first a list of segments: special tokens, plain text, media. Plain text is encoded with
special tokens off, so nothing a user writes can open a turn. One turn is

    ROLE name <|im_middle|> body <|im_end|>

and the three styles differ in tools, in the default system message and in how they think.
"""

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from moonlet.chat.attachments import open_media
from moonlet.chat.media import MediaItem, MediaLimits, Opened
from moonlet.chat.media_cache import MediaCache
from moonlet.chat.messages import Message, TextPart
from moonlet.chat.sources import DATA_URLS_ONLY, MediaAccess
from moonlet.chat.tokenizer import Tokenizer
from moonlet.chat.tools_typescript import declare_tools, sort_keys
from moonlet.errors import NotSupportedError, PromptError

Style = Literal["k2.5", "k2-thinking", "k2"]
STYLES: tuple[Style, ...] = ("k2.5", "k2-thinking", "k2")
DEFAULT_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
MEDIA_PAD = "<|media_pad|>"
MAX_PROMPT_TOKENS = (
    2**20
)  # four times the context of Kimi K2.5; 100 MB of text are some 30 times that
_ROLE_TOKEN = {"user": "<|im_user|>", "assistant": "<|im_assistant|>"}


@dataclass(frozen=True)
class Special:
    """A special token, by its text."""

    text: str


@dataclass(frozen=True)
class Mark:
    """Nothing in the prompt, but a place in it: what begins here."""

    kind: str


Segment = Special | Mark | MediaItem | str


@dataclass(frozen=True)
class Prompt:
    """`token_ids` with every media pad repeated; `media` in the same order; `text` with one pad.

    marks: positions in `token_ids` and what begins there, in order: "tools", "system", "user",
    "assistant", "tool" or "generation". Empty where the template cannot know.
    """

    token_ids: list[int]
    media: list[MediaItem]
    text: str
    marks: tuple[tuple[int, str], ...] = ()


class Template(Protocol):
    """What turns a conversation into a prompt: this file's, or a checkpoint's own (jinja.py)."""

    @property
    def reasons(self) -> bool:
        """Whether the model can think before it answers."""
        ...

    @property
    def has_instant_mode(self) -> bool:
        """Whether it can answer without thinking; if not, render(thinking=False) is refused."""
        ...

    @property
    def reads_images(self) -> bool: ...

    @property
    def reads_video(self) -> bool: ...

    def render(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None = None,
        thinking: bool = True,
        preserve_thinking: bool = False,
        *,
        stop: threading.Event | None = None,
    ) -> Prompt:
        """The prompt for the next assistant turn, or for the rest of one that is partial.

        Raises PromptError or MediaError, with `param`, for what cannot be rendered. `stop`, once set by
        another thread, ends the opening of media early.
        """
        ...

    def starts_in_reasoning(self, thinking: bool, messages: Sequence[Message] = ()) -> bool:
        """Whether the prompt ends inside an open think block. `messages` count if one is partial."""
        ...


class ChatTemplate:
    """The native renderer. `limits` are None for a model that reads no images."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        style: Style = "k2.5",
        limits: MediaLimits | None = None,
        access: MediaAccess = DATA_URLS_ONLY,
    ) -> None:
        if style not in STYLES:
            raise NotSupportedError(
                f"The prompt style {style!r} is not one of {', '.join(STYLES)}."
            )
        self.tokenizer = tokenizer
        self.style: Style = style
        self.limits = limits if style == "k2.5" else None
        self._access, self._cache = access, MediaCache()
        self.reasons = style != "k2"
        self.has_instant_mode = style != "k2-thinking"
        self.reads_images = self.reads_video = self.limits is not None

    def render(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None = None,
        thinking: bool = True,
        preserve_thinking: bool = False,
        *,
        add_generation_prompt: bool = True,
        stop: threading.Event | None = None,
    ) -> Prompt:
        """The prompt that asks for the next assistant turn (or, for training, ends before it).

        A partial message at the end is that turn, begun. `preserve_thinking` keeps the reasoning of
        finished turns, which is dropped otherwise. `stop`, once set by another thread, ends the
        opening of media early.
        Raises PromptError or MediaError, with `param`, for what cannot be rendered.
        """
        check_thinking(self, thinking)
        segments: list[Segment] = []
        if tools:
            text = tools_text(tools, self.style)
            segments += [Mark("tools"), *_turn("system", "tool_declare", [text])]
        if self.style != "k2.5" and messages and messages[0].role != "system":
            segments += [Mark("system"), *_turn("system", "system", [DEFAULT_SYSTEM])]
            # K2's template file leaves a line feed here, and here only; the model has seen it.
            segments += ["\n"] if self.style == "k2" else []
        history, begun = split_partial(messages)
        cut = -1 if preserve_thinking else _last_final_answer(history)
        media = iter(open_media(messages, self.limits, self._access, self._cache, stop))
        for index, message in enumerate(history):
            body = self._body(message, media, keeps_reasoning=index > cut)
            turn = _turn(message.role, message.name or message.role, body)
            segments += [Mark(message.role), *turn]
        if add_generation_prompt or begun:
            segments += self._generation_prompt(thinking, begun)
        return encode_segments(segments, self.tokenizer)

    def starts_in_reasoning(self, thinking: bool, messages: Sequence[Message] = ()) -> bool:
        """Whether the prompt ends inside an open think block (K2-Thinking opens it itself)."""
        ends_in_reasoning = partial_ends_in_reasoning(messages)
        if ends_in_reasoning is not None:
            return ends_in_reasoning
        return thinking and self.style == "k2.5"

    def _generation_prompt(self, thinking: bool, begun: Message | None) -> list[Segment]:
        name = "assistant" if begun is None else begun.name or "assistant"
        opens = thinking or bool(begun and begun.reasoning)
        segments = [Mark("generation"), *_turn("assistant", name, [])[:-1]]
        if self.style == "k2.5":
            segments += [Special("<think>")] if opens else _think("")
        return segments + (continuation(self, begun, thinking) if begun else [])

    def _body(
        self, message: Message, media: Iterator[Opened], keeps_reasoning: bool
    ) -> list[Segment]:
        content: list[Segment] = []
        for part in message.parts:
            content += [part.text] if isinstance(part, TextPart) else media_segments(next(media))
        if message.role == "tool":
            return [f"## Return of {message.tool_call_id}\n", *content]
        if message.role != "assistant":
            return content
        thought = _think(message.reasoning or "" if keeps_reasoning else "")
        return [*([] if self.style == "k2" else thought), *content, *_calls(message)]


def check_thinking(template: Template, thinking: bool) -> None:
    """Raises PromptError when the model is asked for an instant answer but always thinks."""
    if not thinking and not template.has_instant_mode:
        raise PromptError(
            "This model has no instant mode, it always thinks first; leave thinking enabled.",
            "thinking",
        )


def split_partial(messages: Sequence[Message]) -> tuple[Sequence[Message], Message | None]:
    """The finished messages, and the partial one at the end if there is one."""
    if messages and messages[-1].partial:
        return messages[:-1], messages[-1]
    return messages, None


def partial_ends_in_reasoning(messages: Sequence[Message]) -> bool | None:
    """Whether a partial message leaves its think block open; None when it leaves that undecided."""
    _, begun = split_partial(messages)
    if begun is None or not (begun.text or begun.reasoning):
        return None
    return not begun.text


def continuation(template: Template, begun: Message, thinking: bool) -> list[Segment]:
    """What a partial message adds to the generation prompt, which is one for thinking if it has reasoning.

    Content implies that the thinking is over; reasoning alone leaves it open. Raises PromptError
    for reasoning alone where the model cannot think or must not.
    """
    reasoning, text = begun.reasoning or "", begun.text
    if reasoning and not text and not (thinking and template.reasons):
        raise PromptError(
            "A partial message that ends in its reasoning needs a model that thinks, and thinking "
            "enabled; give it content, too, to go on after the reasoning.",
            "thinking",
        )
    has_open_block = template.reasons and bool(thinking or reasoning)
    if not has_open_block or not (reasoning or text):
        return [text]
    # K2-Thinking writes the mark itself, so its prompt ends before it.
    begin = [] if template.starts_in_reasoning(True) else [Special("<think>")]
    end = [Special("</think>")] if text else []
    return [*begin, reasoning, *end, text]


def media_segments(opened: Opened) -> list[Segment]:
    """An image between its marks, or a video as stamped chunks; a line feed ends both."""
    if isinstance(opened, MediaItem):
        return [*_marked("image", opened), "\n"]
    chunks = [[stamp, *_marked("video", item)] for stamp, item in opened]
    # The line feed after a video is by analogy with images; the published text is not known.
    return [*(segment for chunk in chunks for segment in chunk), "\n"]


def encode_segments(segments: Iterable[Segment], tokenizer: Tokenizer) -> Prompt:
    """Segments as a prompt; neighbouring plain texts are encoded as one. Raises PromptError."""
    ids: list[int] = []
    media: list[MediaItem] = []
    text: list[str] = []
    marks: list[tuple[int, str]] = []
    for segment in _joined(segments):
        match segment:
            case Mark():
                marks.append((len(ids), segment.kind))
            case str():
                ids += tokenizer.encode(segment, MAX_PROMPT_TOKENS)
                text.append(segment)
            case Special():
                ids.append(tokenizer.id_of(segment.text))
                text.append(segment.text)
            case MediaItem():
                ids += [tokenizer.id_of(MEDIA_PAD)] * segment.num_tokens
                media.append(segment)
                text.append(MEDIA_PAD)
        check_length(ids, "messages")
    return Prompt(ids, media, "".join(text), tuple(marks))


def check_length(token_ids: list[int], param: str) -> None:
    """Raises PromptError for a prompt that nobody has to finish counting, since no model could read it."""
    if len(token_ids) > MAX_PROMPT_TOKENS:
        raise PromptError(
            f"The prompt has more than {MAX_PROMPT_TOKENS} tokens, which is beyond the context of any model.",
            param,
        )


def tools_text(tools: list[dict[str, Any]], style: Style) -> str:
    """The body of the tool_declare turn. Raises PromptError when a declaration is malformed."""
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise PromptError(
                f"tools[{index}] must be an object with a function that has a name.",
                f"tools[{index}]",
            )
    try:
        if style == "k2":
            return json.dumps(tools, ensure_ascii=False)
        ordered = sort_keys(tools)
        text = _typescript(ordered) if style == "k2.5" else ""
        return text or json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError("tools cannot be written as JSON.", "tools") from error


def _typescript(tools: list[dict[str, Any]]) -> str:
    try:
        return declare_tools(tools)
    except (ValueError, RecursionError):
        return ""  # one schema without a TypeScript form turns the whole list into JSON


def _turn(role: str, name: str, body: Iterable[Segment]) -> list[Segment]:
    start = Special(_ROLE_TOKEN.get(role, "<|im_system|>"))
    return [start, name, Special("<|im_middle|>"), *body, Special("<|im_end|>")]


def _think(reasoning: str) -> list[Segment]:
    return [Special("<think>"), reasoning, Special("</think>")]


def _calls(message: Message) -> Iterator[Segment]:
    if not message.tool_calls:
        return
    yield Special("<|tool_calls_section_begin|>")
    for call in message.tool_calls:
        yield from (Special("<|tool_call_begin|>"), call.id)
        yield from (Special("<|tool_call_argument_begin|>"), call.arguments)
        yield Special("<|tool_call_end|>")
    yield Special("<|tool_calls_section_end|>")


def _last_final_answer(messages: Sequence[Message]) -> int:
    """Index of the last assistant turn without calls, -1 if none: what came before is finished."""
    finished = (
        index
        for index in reversed(range(len(messages)))
        if messages[index].role == "assistant" and not messages[index].tool_calls
    )
    return next(finished, -1)


def _marked(kind: str, item: MediaItem) -> list[Segment]:
    begin, content, end = map(Special, ("<|media_begin|>", "<|media_content|>", "<|media_end|>"))
    return [begin, kind, content, item, end]


def _joined(segments: Iterable[Segment]) -> Iterator[Segment]:
    text: list[str] = []
    for segment in segments:
        if isinstance(segment, str):
            text.append(segment)
            continue
        if any(text):
            yield "".join(text)
        text.clear()
        yield segment
    if any(text):
        yield "".join(text)
