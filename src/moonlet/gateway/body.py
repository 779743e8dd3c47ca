"""ChatRequest -> the body of a chat completion in OpenAI's dialect, always as a stream.

How to think is the one thing that every server is told in another way, and none says which:

| `Thinking` | on and off                               | budget                  | asked of              |
| ---------- | ---------------------------------------- | ----------------------- | --------------------- |
| `type`     | thinking.type                            | thinking_budget         | Kimi, DeepSeek, moonlet |
| `template` | chat_template_kwargs.thinking, .enable_thinking | thinking_token_budget | vLLM, SGLang, llama-server |
| `effort`   | reasoning_effort "none"; on, nothing     | refused                 | OpenAI                |
| `none`     | nothing: the model does not think        | refused                 |                       |

The last two are sent no thoughts of earlier turns either, since OpenAI refuses what it does not know. Ids
of calls are always the canonical ones: an endpoint takes any that agree between a call and its
result, and Kimi's models want these.
"""

from typing import Any, Literal

from moonlet.chat.messages import ImagePart, Message, Part, TextPart, ToolCall
from moonlet.chat.provider import ChatRequest, Sampling
from moonlet.chat.repair import repair
from moonlet.errors import PromptError

Thinking = Literal["type", "template", "effort", "none"]

_ANY_OBJECT = {"type": "object"}


def chat_body(request: ChatRequest, model: str, thinking: Thinking) -> dict[str, Any]:
    """What to post to `/chat/completions`. Raises PromptError for what cannot be said in this dialect."""
    messages, _ = repair(request.messages)
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, thinking) for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling(request.sampling),
        **_tools(request),
        **_thinking(request, thinking),
    }
    if request.max_tokens is not None:
        body["max_completion_tokens" if thinking == "effort" else "max_tokens"] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.n > 1:
        body["n"] = request.n
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.logprobs}
    if request.schema is not None:
        body["response_format"] = _format(request.schema)
    if messages[-1].partial:
        _continue(body, thinking)
    return body


def _message(message: Message, thinking: Thinking) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if message.name:
        told["name"] = message.name
    if message.reasoning is not None and thinking in ("type", "template"):
        told["reasoning_content"] = message.reasoning
        if thinking == "template":  # vLLM's newer name for it
            told["reasoning"] = message.reasoning
    if message.tool_calls:
        told["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    return told


def _content(message: Message) -> str | list[dict[str, Any]] | None:
    """One string where there is only text: some servers take nothing else outside user messages."""
    if all(isinstance(part, TextPart) for part in message.parts):
        return message.text if message.parts or not message.tool_calls else None
    return [_part(part) for part in message.parts]


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    kind = "image_url" if isinstance(part, ImagePart) else "video_url"
    return {"type": kind, kind: {"url": part.url}}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """Only what was asked for: the defaults are the endpoint's own."""
    named = {
        name: value
        for name in ("temperature", "top_p", "top_k", "min_p")
        if (value := getattr(sampling, name)) is not None
    }
    if sampling.presence_penalty:
        named["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty:
        named["frequency_penalty"] = sampling.frequency_penalty
    if sampling.repetition_penalty != 1:
        named["repetition_penalty"] = sampling.repetition_penalty
    if sampling.logit_bias:
        named["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.seed is not None:  # 64 bits, which others read with a sign
        named["seed"] = (sampling.seed + 2**63) % 2**64 - 2**63
    return named


def _tools(request: ChatRequest) -> dict[str, Any]:
    if not request.tools:
        return {}
    told: dict[str, Any] = {"tools": request.tools}
    if request.only_tool is not None:
        told["tool_choice"] = {"type": "function", "function": {"name": request.only_tool}}
    elif request.must_call:
        told["tool_choice"] = "required"
    if not request.parallel_tool_calls:
        told["parallel_tool_calls"] = False
    return told


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    if schema == _ANY_OBJECT:
        return {"type": "json_object"}
    spec = {"name": "answer", "schema": schema, "strict": True}
    return {"type": "json_schema", "json_schema": spec}


def _thinking(request: ChatRequest, thinking: Thinking) -> dict[str, Any]:
    on, budget = request.thinking, request.thinking_budget
    match thinking:
        case "type":
            switch = {"type": "enabled" if on else "disabled"}
            if request.preserve_thinking:
                switch["keep"] = "all"
            return {"thinking": switch} | ({} if budget is None else {"thinking_budget": budget})
        case "template":
            switch = {"thinking": on, "enable_thinking": on}
            if request.preserve_thinking:
                switch["preserve_thinking"] = True
            more = {} if budget is None else {"thinking_token_budget": budget}
            return {"chat_template_kwargs": switch, **more}
    if budget is not None:
        raise PromptError("this model takes no budget for its thinking", "thinking_budget")
    return {} if on or thinking == "none" else {"reasoning_effort": "none"}


def _continue(body: dict[str, Any], thinking: Thinking) -> None:
    """Have the last message gone on with."""
    if thinking == "template":
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    elif thinking == "type":
        body["messages"][-1]["partial"] = True
    else:
        raise PromptError(
            "this model cannot go on with a partial message; leave it out",
            f"messages[{len(body['messages']) - 1}].partial",
        )
