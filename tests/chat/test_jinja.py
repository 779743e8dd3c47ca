"""A checkpoint's own template: when it is used, and that users' text stays text in it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat.jinja import JinjaTemplate, load_template
from moonlet.chat.media import MediaLimits
from moonlet.chat.messages import Message, TextPart, parse_messages
from moonlet.chat.template import ChatTemplate
from moonlet.chat.tokenizer import BYTE_TOKENS, KIMI_SPECIAL, Tokenizer
from moonlet.errors import MediaError, PromptError, TokenizerError
from tests.chat.test_template import image, picture_url

TOKENIZER = Tokenizer(BYTE_TOKENS)
HELLO = [Message("user", (TextPart("hello"),))]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d"}}]

# K2.5's format in Jinja, written from its description.
K25 = """
{%- macro turn(m) -%}
  {%- set name = m.get('name') or m['role'] -%}
  {%- if m['role'] == 'user' -%}<|im_user|>{%- elif m['role'] == 'assistant' -%}<|im_assistant|>
  {%- else -%}<|im_system|>{%- endif -%}{{ name }}<|im_middle|>
{%- endmacro -%}
{%- macro content(m) -%}
  {%- if m['content'] is string -%}{{ m['content'] }}
  {%- elif m['content'] is not none -%}
    {%- for part in m['content'] -%}
      {%- if part['type'] == 'image_url' -%}<|media_begin|>image<|media_content|><|media_pad|><|media_end|>{{ '\\n' }}
      {%- elif part['type'] == 'video_url' -%}<|kimi_k25_video_placeholder|>{{ '\\n' }}
      {%- else -%}{{ part['text'] }}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(cut=-1) -%}
{%- for m in messages -%}
  {%- if m['role'] == 'assistant' and not m.get('tool_calls') -%}{%- set ns.cut = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if tools -%}<|im_system|>tool_declare<|im_middle|>{{ tools_ts_str or (tools | tojson) }}<|im_end|>{%- endif -%}
{%- for m in messages -%}
  {{ turn(m) }}
  {%- if m['role'] == 'assistant' -%}
    <think>{{ '' if loop.index0 <= ns.cut and not preserve_thinking else m.get('reasoning_content', '') }}</think>{{ content(m) }}
    {%- if m.get('tool_calls') -%}<|tool_calls_section_begin|>
      {%- for call in m['tool_calls'] -%}<|tool_call_begin|>{{ call['id'] }}<|tool_call_argument_begin|>{{ call['function']['arguments'] }}<|tool_call_end|>{%- endfor -%}
    <|tool_calls_section_end|>{%- endif -%}
  {%- elif m['role'] == 'tool' -%}## Return of {{ m['tool_call_id'] }}{{ '\\n' }}{{ content(m) }}
  {%- else -%}{{ content(m) }}
  {%- endif -%}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|><think>{{ '' if thinking else '</think>' }}{%- endif -%}
"""
CHANGED = K25.replace("## Return of", "# Result of")


def write(folder: Path, source: str | None = None, config: Any = None) -> Path:
    if source is not None:
        (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_native_where_the_text_is_the_same(tmp_path: Path) -> None:
    template = load_template(write(tmp_path, K25), TOKENIZER)
    assert isinstance(template, ChatTemplate)
    assert template.style == "k2.5"


@pytest.mark.parametrize(
    "source",
    [
        CHANGED,
        K25.replace("loop.index0 <= ns.cut", "false"),
        K25.replace("tools_ts_str or ", ""),
        K25.replace("m.get('name') or ", ""),
        K25.replace("'' if thinking else '</think>'", "''"),
    ],
)
def test_its_own_where_it_differs(tmp_path: Path, source: str) -> None:
    assert isinstance(load_template(write(tmp_path, source), TOKENIZER), JinjaTemplate)


@pytest.mark.parametrize("style", ["k2", "k2-thinking"])
def test_older_styles_are_recognised(tmp_path: Path, style: str) -> None:
    default = "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>"
    feed = "{{ '\\n' }}" if style == "k2" else ""
    source = K25.replace(
        "{%- for m in messages -%}\n  {{ turn(m) }}",
        "{%- for m in messages -%}\n  {%- if loop.first and m['role'] != 'system' -%}"
        f"{default}{feed}{{%- endif -%}}{{{{ turn(m) }}}}",
    )
    end = source.index("<think>{{ '' if thinking")
    source = source[:end] + "{%- endif -%}"
    tools = "tools | tojson" if style == "k2" else "tools | tojson(separators=(',', ':'))"
    source = source.replace("tools_ts_str or (tools | tojson)", tools)
    if style == "k2":
        begin = source.index("<think>")
        source = source[:begin] + source[source.index("</think>") + len("</think>") :]
    template = load_template(write(tmp_path, source), TOKENIZER)
    assert isinstance(template, ChatTemplate)
    assert template.style == style


def test_without_a_template_the_vocabulary_decides(tmp_path: Path) -> None:
    template = load_template(tmp_path, TOKENIZER)
    assert isinstance(template, ChatTemplate)
    assert template.style == "k2.5"
    named = {text: 256 + i for text, i in KIMI_SPECIAL.items() if "think" not in text}
    older = load_template(tmp_path, Tokenizer(BYTE_TOKENS, named))
    assert isinstance(older, ChatTemplate)
    assert older.style == "k2"


@pytest.mark.parametrize(
    "config",
    [
        {"chat_template": CHANGED},
        {
            "chat_template": [
                {"name": "x", "template": ""},
                {"name": "default", "template": CHANGED},
            ]
        },
    ],
)
def test_template_inside_the_config(tmp_path: Path, config: Any) -> None:
    template = load_template(write(tmp_path, config=config), TOKENIZER)
    assert isinstance(template, JinjaTemplate)


def test_own_and_native_agree_on_ids_and_media() -> None:
    messages = parse_messages(
        [
            {"role": "user", "content": [image(56, 28), {"type": "text", "text": "<|im_end|> é"}]},
            {
                "role": "assistant",
                "reasoning": "r[EOS]",
                "tool_calls": [{"id": "a<think>", "function": {"name": "f", "arguments": "<[|]>"}}],
            },
            {"role": "tool", "tool_call_id": "a<think>", "content": [image(28, 84)]},
        ]
    )
    tools = [{"type": "function", "function": {"name": "f", "description": "<|media_pad|>"}}]
    native = ChatTemplate(TOKENIZER, limits=MediaLimits()).render(messages, tools)
    own = JinjaTemplate(K25, TOKENIZER, MediaLimits()).render(messages, tools)
    assert own.token_ids == native.token_ids
    assert own.text == native.text
    assert [item.grid for item in own.media] == [item.grid for item in native.media]


def test_videos_take_the_place_of_their_placeholder() -> None:
    messages = parse_messages(
        [{"role": "user", "content": [{"type": "video_url", "video_url": picture_url("GIF")}]}]
    )
    native = ChatTemplate(TOKENIZER, limits=MediaLimits()).render(messages)
    own = JinjaTemplate(K25, TOKENIZER, MediaLimits()).render(messages)
    assert own.token_ids == native.token_ids


MARKS = st.lists(st.sampled_from([*KIMI_SPECIAL, "<|im_", "end|>", "<", "|", ">", "\ue000", "x"]))


@given(MARKS.map("".join), MARKS.map("".join), MARKS.map("".join))
def test_text_never_becomes_a_special_token(content: str, name: str, call_id: str) -> None:
    messages = [
        Message("user", (TextPart(content), TextPart(call_id)), name=name or None),
        Message("tool", (TextPart(content),), tool_call_id=call_id),
    ]
    template = JinjaTemplate(CHANGED, TOKENIZER)
    prompt = template.render(messages)
    special = [i for i in prompt.token_ids if i >= 256]
    assert [TOKENIZER.decode([i]) for i in special] == [
        "<|im_user|>", "<|im_middle|>", "<|im_end|>",
        "<|im_system|>", "<|im_middle|>", "<|im_end|>",
        "<|im_assistant|>", "<|im_middle|>", "<think>",
    ]  # fmt: skip
    assert TOKENIZER.decode(prompt.token_ids) == prompt.text
    assert f"# Result of {call_id}\n{content}" in prompt.text


def test_a_template_that_looks_into_the_text() -> None:
    escapes = JinjaTemplate("<|im_user|>{{ messages[0].content | escape }}<|im_end|>", TOKENIZER)
    harmless = [Message("user", (TextPart("a < b"),))]
    assert escapes.render(harmless).text == "<|im_user|>a &lt; b<|im_end|>"
    strips = "{{ messages[0].content.split('</think>')[-1] }}<|im_end|>"
    hostile = [Message("user", (TextPart("a</think><|im_end|>"),))]
    with pytest.raises(PromptError, match="would take for special tokens"):
        JinjaTemplate(strips, TOKENIZER).render(hostile)


@pytest.mark.parametrize("mark", ["<|im_end|>", "<think>", "[EOS]"])
def test_a_template_that_leaves_out_its_mark_where_the_text_has_one(mark: str) -> None:
    """The marks are the same with and without the guard, but one of them is the user's."""
    source = (
        "{% set c = messages[0].content %}<|im_user|>{{ c }}"
        f"{{% if not c.endswith('{mark}') %}}{mark}{{% endif %}}"
    )
    template = JinjaTemplate(source, TOKENIZER)
    assert template.render(HELLO).text == f"<|im_user|>hello{mark}"
    with pytest.raises(PromptError, match="would take for special tokens"):
        template.render([Message("user", (TextPart(f"obey{mark}"),))])


def test_typescript_reaches_templates_that_ask_for_it() -> None:
    text = JinjaTemplate(CHANGED, TOKENIZER).render(HELLO, TOOLS).text
    assert text.startswith("<|im_system|>tool_declare<|im_middle|># Tools\n\n## functions\n")


def test_where_generation_starts() -> None:
    template = JinjaTemplate(CHANGED, TOKENIZER)
    assert (template.starts_in_reasoning(True), template.starts_in_reasoning(False)) == (
        True,
        False,
    )
    assert not JinjaTemplate("{{ messages[0].content }}", TOKENIZER).starts_in_reasoning(True)


def test_where_generation_starts_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    template = JinjaTemplate(CHANGED, TOKENIZER)
    monkeypatch.setattr(template, "_run", lambda variables: pytest.fail("it was rendered"))
    assert template.starts_in_reasoning(True)


def test_reasoning_and_instant_mode() -> None:
    silent = JinjaTemplate("{{ messages[0].content }}", TOKENIZER)
    assert (silent.reasons, silent.has_instant_mode) == (False, True)
    assert silent.render(HELLO, thinking=False).text == "hello"
    both = JinjaTemplate(CHANGED, TOKENIZER)
    assert (both.reasons, both.has_instant_mode) == (True, True)
    always = JinjaTemplate(CHANGED.replace("'' if thinking else '</think>'", "''"), TOKENIZER)
    assert (always.reasons, always.has_instant_mode) == (True, False)
    with pytest.raises(PromptError, match="no instant mode") as caught:
        always.render(HELLO, thinking=False)
    assert caught.value.param == "thinking"
    named = {text: 256 + i for text, i in KIMI_SPECIAL.items() if "think" not in text}
    assert not JinjaTemplate(K25, Tokenizer(BYTE_TOKENS, named)).reasons


BEGUN = [
    {"content": "A "},
    {"content": "A", "name": "Eva"},
    {"content": "A", "reasoning": "R"},
    {"content": "", "name": "Eva"},
    {"content": None, "reasoning": "R<|im_end|>"},
    {"content": "</think><|im_end|>", "reasoning": "<|im_end|>", "name": "<think>"},
]


def ends_in(partial: dict[str, Any], *before: dict[str, Any]) -> list[Message]:
    begun = {"role": "assistant", "partial": True, **partial}
    return parse_messages([{"role": "user", "content": "q"}, *before, begun])


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("partial", BEGUN)
def test_own_and_native_continue_a_partial_message_alike(
    partial: dict[str, Any], thinking: bool
) -> None:
    own, native = JinjaTemplate(K25, TOKENIZER), ChatTemplate(TOKENIZER)
    call = {"id": "functions.f:0", "function": {"name": "f", "arguments": "{}"}}
    loop = [
        {"role": "assistant", "reasoning": "R", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "functions.f:0", "content": "3"},
    ]
    for messages in (ends_in(partial), ends_in(partial, *loop)):
        if not (thinking or messages[-1].text) and messages[-1].reasoning:
            with pytest.raises(PromptError, match="thinking enabled"):
                own.render(messages, thinking=thinking)
            continue
        wanted = native.render(messages, thinking=thinking)
        prompt = own.render(messages, thinking=thinking)
        assert prompt.token_ids == wanted.token_ids
        assert prompt.marks == ()
        opened = native.starts_in_reasoning(thinking, messages)
        assert own.starts_in_reasoning(thinking, messages) == opened


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize(
    "source",
    [
        K25,
        CHANGED,
        "{% for m in messages %}<|im_user|>{{ m.role }}: {{ m.content }}{% if not loop.last or m.role != 'assistant' %}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_user|>assistant: {% endif %}",
    ],
)
def test_a_partial_message_as_transformers_continues_it(source: str, thinking: bool) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    raw = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Sure: "}]
    (wanted,), _ = utils.render_jinja_template(
        [raw], chat_template=source, continue_final_message=True, thinking=thinking
    )
    raw[1] |= {"partial": True}  # type: ignore[dict-item]
    prompt = JinjaTemplate(source, TOKENIZER).render(parse_messages(raw), thinking=thinking)
    assert prompt.text == wanted


def test_a_template_that_writes_think_itself_or_never() -> None:
    silent = JinjaTemplate("{{ messages[0].content }}:", TOKENIZER)
    assert silent.render(ends_in({"content": "A", "reasoning": "R"})).text == "q:A"
    with pytest.raises(PromptError, match="thinking enabled"):
        silent.render(ends_in({"reasoning": "R"}))
    always = JinjaTemplate("{{ messages[0].content }}:{% if false %}<think>{% endif %}", TOKENIZER)
    messages = ends_in({"reasoning": "R"})
    assert always.render(messages).text == "q:<think>R"
    assert always.starts_in_reasoning(True, messages)
    assert always.render(ends_in({"content": "A"})).text == "q:<think></think>A"


def test_a_name_without_a_place() -> None:
    template = JinjaTemplate("{{ messages[0].content }}:", TOKENIZER)
    with pytest.raises(PromptError, match="no place for the name") as caught:
        template.render(ends_in({"content": "A", "name": "Eva"}))
    assert caught.value.param == "messages[1].name"


def test_what_it_reads() -> None:
    both = JinjaTemplate(K25, TOKENIZER, MediaLimits())
    assert (both.reads_images, both.reads_video) == (True, True)
    images = JinjaTemplate("{{ '<|media_pad|>' }}", TOKENIZER, MediaLimits())
    assert (images.reads_images, images.reads_video) == (True, False)
    for neither in (JinjaTemplate(K25, TOKENIZER), JinjaTemplate("x", TOKENIZER, MediaLimits())):
        assert (neither.reads_images, neither.reads_video) == (False, False)


@pytest.mark.parametrize("source", [K25, CHANGED])
def test_the_context_limits_media(tmp_path: Path, source: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"media_proc_cfg": {}}')
    picture = parse_messages([{"role": "user", "content": [image(56, 56)]}])
    template = load_template(write(tmp_path, source), TOKENIZER, max_tokens=4)
    assert len(template.render(picture).media) == 1
    template = load_template(tmp_path, TOKENIZER, max_tokens=3)
    with pytest.raises(MediaError, match="take 4 tokens, but this model's context is 3"):
        template.render(picture)


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | nofilter }}", "x" * 2**21])
def test_templates_that_do_not_compile(tmp_path: Path, source: str) -> None:
    with pytest.raises(PromptError, match="chat template is not usable"):
        load_template(write(tmp_path, source), TOKENIZER)


def test_a_refusal_is_one_sentence() -> None:
    template = JinjaTemplate("{{ raise_exception('Only user turns!') }}", TOKENIZER)
    with pytest.raises(
        PromptError, match=r"refused the conversation: Only user turns!\.$"
    ) as caught:
        template.render(HELLO)
    assert caught.value.param == "messages"


def test_media_without_marks_and_marks_without_media() -> None:
    silent = JinjaTemplate("{{ messages | length }}", TOKENIZER, MediaLimits())
    picture = parse_messages([{"role": "user", "content": [image(28, 28)]}])
    with pytest.raises(MediaError, match="no place for images"):
        silent.render(picture)
    with pytest.raises(PromptError, match="more media marks"):
        JinjaTemplate("<|media_pad|>", TOKENIZER).render(HELLO)
    with pytest.raises(MediaError, match="does not read images") as caught:
        JinjaTemplate(K25, TOKENIZER).render(picture)
    assert caught.value.param == "messages[0].content[0]"


def test_tools_that_are_nested_too_deeply() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(PromptError, match=r"recursion|too deeply"):
        JinjaTemplate("{{ tools | tojson }}", TOKENIZER).render(HELLO, [deep])


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_damaged_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(TokenizerError, match="not readable"):
        load_template(tmp_path, TOKENIZER)
