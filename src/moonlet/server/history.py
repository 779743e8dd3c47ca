"""What a profile asks of a conversation beyond its shape."""

from moonlet.chat.messages import Message, TextPart
from moonlet.errors import PromptError
from moonlet.server.profiles import Profile


def check_history(messages: list[Message], profile: Profile, thinking: bool) -> None:
    """Raises PromptError for a conversation that the API of `profile` refuses."""
    if profile.wants_reasoning and thinking:
        _check_reasoning(messages)
    if not profile.empty_texts:
        _check_texts(messages)
    if profile.openai_rules:
        _check_results(messages)


def _check_reasoning(messages: list[Message]) -> None:
    """In a running tool loop the calls come back with the reasoning that led to them."""
    for index in reversed(range(len(messages))):
        message = messages[index]
        if message.role != "assistant":
            continue
        if not message.tool_calls:
            return  # the loop before this answer is finished: its reasoning is dropped anyhow
        if message.reasoning is None:
            raise PromptError(
                "thinking is enabled but reasoning_content is missing in assistant tool call "
                f"message at index {index}",
                f"messages[{index}].reasoning_content",
            )


def _check_texts(messages: list[Message]) -> None:
    for index, message in enumerate(messages):
        if message.role == "user" and TextPart("") in message.parts:
            where = f"messages[{index}].content[{message.parts.index(TextPart(''))}].text"
            raise PromptError("text content is empty.", where)


def _check_results(messages: list[Message]) -> None:
    """OpenAI's order: calls, then a result for each of them before anything else."""
    waiting: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role == "tool":
            if message.tool_call_id not in waiting:
                raise PromptError(
                    "messages with role 'tool' must be a response to a preceding message with "
                    "'tool_calls'.",
                    f"{where}.tool_call_id",
                )
            waiting.discard(message.tool_call_id)
            continue
        _check_answered(waiting, where)
        waiting = {call.id for call in message.tool_calls}
    _check_answered(waiting, f"messages[{len(messages) - 1}]")


def _check_answered(waiting: set[str], where: str) -> None:
    if waiting:
        raise PromptError(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to "
            f"each 'tool_call_id'; without a response: {', '.join(sorted(waiting))[:200]}",
            where,
        )
