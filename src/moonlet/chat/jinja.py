"""A checkpoint's own chat template, used only where it differs from the native styles.

`load_template` renders probe conversations with both; equal text means that the native renderer
serves. Otherwise the template runs in the sandbox, and what users wrote is kept apart from what the
template wrote: characters that special tokens need are exchanged for private ones before rendering,
so that every special token in the output is the template's own, and changed back afterwards.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moonlet.chat.attachments import open_media
from moonlet.chat.media import MediaItem, MediaLimits
from moonlet.chat.media_cache import MediaCache
from moonlet.chat.messages import ImagePart, Message, TextPart, parse_messages
from moonlet.chat.sandbox import MAX_SOURCE, SandboxedTemplate, SandboxError
from moonlet.chat.sources import DATA_URLS_ONLY, MediaAccess
from moonlet.chat.template import (
    MEDIA_PAD,
    STYLES,
    ChatTemplate,
    Prompt,
    Segment,
    Special,
    Template,
    check_thinking,
    continuation,
    encode_segments,
    media_segments,
    partial_ends_in_reasoning,
    split_partial,
    tools_text,
)
from moonlet.chat.tokenizer import Tokenizer
from moonlet.errors import MediaError, MoonletError, PromptError, TokenizerError

VIDEO_PLACEHOLDER = "<|kimi_k25_video_placeholder|>"


def load_template(
    folder: str | Path,
    tokenizer: Tokenizer,
    max_tokens: int | None = None,
    access: MediaAccess = DATA_URLS_ONLY,
) -> Template:
    """The template of a checkpoint folder: native where that gives the same text, else its own.

    `max_tokens` is the model's context: media that take more are refused before decoding them. `access`
    says where media may come from.
    Raises PromptError for a template that cannot be compiled, TokenizerError or ConfigError for
    damaged files beside it.
    """
    folder = Path(folder)
    limits = MediaLimits.from_folder(folder)
    if limits is not None and max_tokens is not None:
        limits = replace(limits, max_tokens=max_tokens)
    source = read_source(folder)
    if source is None:
        style = "k2.5" if "<think>" in tokenizer.special else "k2"
        return ChatTemplate(tokenizer, style, limits, access)
    own = JinjaTemplate(source, tokenizer, limits, access)
    natives = [ChatTemplate(tokenizer, style, limits, access) for style in STYLES]
    for probe in _PROBES:
        text = _probe(own, *probe)
        natives = [native for native in natives if _probe(native, *probe) == text]
        if not natives:
            return own
    return natives[0]


class JinjaTemplate:
    """A template in Jinja. Raises PromptError when it cannot be compiled."""

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        limits: MediaLimits | None = None,
        access: MediaAccess = DATA_URLS_ONLY,
    ) -> None:
        try:
            self._template = SandboxedTemplate(source)
        except SandboxError as error:
            raise PromptError(f"The checkpoint's chat template is not usable: {error}.") from error
        self.tokenizer = tokenizer
        self.limits = limits
        self._access, self._cache = access, MediaCache()
        self.reads_images = limits is not None and MEDIA_PAD in source
        self.reads_video = limits is not None and VIDEO_PLACEHOLDER in source
        # Only K2.5's templates know TypeScript; their tool lists have sorted keys.
        self._wants_typescript = "tools_ts_str" in source
        longest_first = sorted(tokenizer.special, key=len, reverse=True)
        marks = [*longest_first, VIDEO_PLACEHOLDER]
        self._marks = re.compile("(" + "|".join(map(re.escape, marks)) + ")")
        # Letters and digits stay: templates look at names, and no mark consists of them alone.
        self._guarded = sorted({c for mark in marks for c in mark if not c.isalnum() and c != "_"})
        self.reasons = "<think>" in tokenizer.special and "<think>" in source
        self.has_instant_mode = True  # so that the probe below is not refused
        texts = {thinking: _probe(self, _HELLO, None, thinking) for thinking in (True, False)}
        self.has_instant_mode = not self.reasons or texts[True] != texts[False]
        self._opened = {
            thinking: self.reasons and (text or "").rstrip().endswith("<think>")
            for thinking, text in texts.items()
        }

    def render(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None = None,
        thinking: bool = True,
        preserve_thinking: bool = False,
        *,
        stop: threading.Event | None = None,
    ) -> Prompt:
        """A partial message is not shown to the template, which would end it: it goes on with the
        generation prompt, and so leaves untouched what comes before.

        Raises PromptError or MediaError, with `param`, for what cannot be rendered.
        """
        check_thinking(self, thinking)
        history, begun = split_partial(messages)
        opens = thinking or bool(begun and begun.reasoning)
        opened = open_media(messages, self.limits, self._access, self._cache, stop)
        media = [media_segments(file) for file in opened]
        variables = {
            "messages": [_as_dict(message) for message in history],
            "tools": tools or None,
        }
        if self._wants_typescript and tools:
            variables["tools_ts_str"] = tools_text(tools, "k2.5")
        flags = {
            "add_generation_prompt": True,
            "thinking": opens,
            "enable_thinking": opens,
            "preserve_thinking": preserve_thinking,
            "bos_token": "[BOS]",
            "eos_token": "[EOS]",
        }
        try:
            pieces = self._pieces(variables, flags)
        except RecursionError as error:
            raise PromptError("tools are nested too deeply.", "tools") from error
        if begun and begun.name:
            pieces = _renamed(pieces, begun.name, f"messages[{len(history)}].name")
        rest = continuation(self, begun, thinking) if begun else []
        return encode_segments([*self._segments(pieces, media), *rest], self.tokenizer)

    def starts_in_reasoning(self, thinking: bool, messages: Sequence[Message] = ()) -> bool:
        """Whether the prompt ends inside an open think block. `messages` count if one is partial."""
        ends_in_reasoning = partial_ends_in_reasoning(messages)
        return self._opened[thinking] if ends_in_reasoning is None else ends_in_reasoning

    def _pieces(self, variables: dict[str, Any], flags: dict[str, Any]) -> list[str]:
        """The output cut at its marks: text, mark, text, ..., text."""
        plain = self._run(variables | flags)
        guard = _private_characters(variables, self._guarded)
        back = {ord(private): char for char, private in guard.items()}
        table = str.maketrans(guard)
        guarded = self._run(_map_strings(variables, lambda text: text.translate(table)) | flags)
        pieces = [piece.translate(back) for piece in self._marks.split(guarded)]
        if "".join(pieces) == plain:
            return pieces
        # The template looked into the text, for example to escape it. Then the plain output counts,
        # provided that users' text added no mark to it; equal marks alone would not tell whose
        # they are, as in a template that leaves out its own where a text ends in one.
        harmless = not any(map(self._marks.search, _strings(variables)))
        if harmless and self._marks.findall(plain) == self._marks.findall(guarded):
            return self._marks.split(plain)
        raise PromptError(
            "The conversation holds text that the checkpoint's chat template would take for "
            "special tokens; remove it.",
            "messages",
        )

    def _run(self, variables: dict[str, Any]) -> str:
        try:
            return self._template.render(**variables)
        except SandboxError as error:
            raise PromptError(
                f"The checkpoint's chat template refused the conversation: {error}.", "messages"
            ) from error

    def _segments(self, pieces: list[str], media: list[list[Segment]]) -> Iterator[Segment]:
        """Pieces as segments, each pad or placeholder replaced by the next opened media."""
        waiting = iter(media)
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                yield piece
            elif piece in (MEDIA_PAD, VIDEO_PLACEHOLDER):
                opened = next(waiting, None)
                if opened is None:
                    raise PromptError("The chat template has more media marks than media.")
                if piece == VIDEO_PLACEHOLDER:  # the line feed after it is the template's
                    yield from opened[:-1]
                else:
                    yield from (item for item in opened if isinstance(item, MediaItem))
            else:
                yield Special(piece)
        if next(waiting, None) is not None:
            raise MediaError("The checkpoint's chat template has no place for images here.")


def _renamed(pieces: list[str], name: str, where: str) -> list[str]:
    """The pieces with another display name in the generation prompt at their end."""
    at = max((index for index in range(0, len(pieces), 2) if pieces[index]), default=0)
    if pieces[at] != "assistant":
        raise PromptError(
            "The checkpoint's chat template has no place for the name of a partial message; leave "
            "it out.",
            where,
        )
    return [*pieces[:at], name, *pieces[at + 1 :]]


def _as_dict(message: Message) -> dict[str, Any]:
    """A message in the shape that templates expect; pictures are named, not passed."""
    media = [part for part in message.parts if not isinstance(part, TextPart)]
    content: Any = [_part(part) for part in message.parts] if media else message.text
    result: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        result["name"] = message.name
    if message.reasoning is not None:
        result["reasoning_content"] = message.reasoning
    if message.tool_call_id is not None:
        result["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        result["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return result


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    kind = "image_url" if isinstance(part, ImagePart) else "video_url"
    return {"type": kind, kind: {"url": ""}}


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        # Keys too: names of properties are free text. The format's own keys hold no such signs.
        return {change(key): _map_strings(item, change) for key, item in value.items()}
    return value


def _strings(value: Any) -> list[str]:
    """Every string in it, keys too."""
    found: list[str] = []
    _map_strings(value, lambda text: found.append(text) or text)
    return found


def _private_characters(variables: Any, guarded: list[str]) -> dict[str, str]:
    """For each guarded character one of the private use areas that no string contains."""
    used = set().union(*_strings(variables))
    free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)
    found = dict(zip(guarded, free, strict=False))
    if len(found) < len(guarded):
        raise PromptError("The conversation uses too many private characters.", "messages")
    return found


def read_source(folder: Path) -> str | None:
    """chat_template.jinja, or the default one of tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    try:
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                return file.read(MAX_SOURCE + 1)
        path = folder / "tokenizer_config.json"
        if not path.is_file():
            return None
        with path.open(encoding="utf-8") as file:
            config = json.loads(file.read(16 * MAX_SOURCE))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not readable.") from error
    template = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _probe(
    template: Template, messages: list[Message], tools: list[dict[str, Any]] | None, thinking: bool
) -> str | None:
    """The text of a prompt, None where the template refuses."""
    try:
        return template.render(messages, tools, thinking).text
    except MoonletError:
        return None


_CALL = {
    "id": "functions.f:0",
    "type": "function",
    "function": {"name": "f", "arguments": '{"a": 1}'},
}
_RESULT = {"role": "tool", "tool_call_id": "functions.f:0", "content": "3 < 4"}
_CYCLE = [
    {"role": "user", "content": "q", "name": "ana"},
    {"role": "assistant", "content": "c", "reasoning_content": "r", "tool_calls": [_CALL]},
    _RESULT | {"name": "f"},
]
_DONE = [*_CYCLE, {"role": "assistant", "content": "a", "reasoning_content": "s"}]
# Keys in alphabetical order, so that sorting them or not makes no difference.
_TOOLS = [
    {
        "function": {
            "description": "d é",
            "name": "f",
            "parameters": {"properties": {"a": {"type": "integer"}}, "type": "object"},
        },
        "type": "function",
    }
]
_HELLO = parse_messages([{"role": "user", "content": "hi"}])
# Conversations that between them use everything in which the styles differ.
_PROBES = [
    (parse_messages(raw), tools, thinking)
    for raw, tools in (
        ([{"role": "user", "content": "hi"}], None),
        ([{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}], _TOOLS),
        (_CYCLE, _TOOLS),
        ([*_DONE, *_CYCLE, _RESULT], _TOOLS),
        ([*_DONE, {"role": "user", "content": "hi"}, *_DONE, *_CYCLE], None),
    )
    for thinking in (True, False)
]
