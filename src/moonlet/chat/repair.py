"""Histories as clients send them -> histories as the model was trained on."""

from moonlet.chat.messages import Message


def repair(messages: list[Message]) -> tuple[list[Message], list[str]]:
    """The same conversation in canonical form, and a word on each thing that was mended."""
    return messages, []
