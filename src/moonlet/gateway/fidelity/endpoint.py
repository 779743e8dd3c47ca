"""What the checks know of the endpoint that they ask, and how they ask."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moonlet.gateway.fidelity.answers import Answer, read_plain, read_stream
from moonlet.gateway.fidelity.check import Profile, Seen
from moonlet.gateway.fidelity.client import Client, Reply
from moonlet.gateway.fidelity.errors import Failed, Refusal, Skipped

CHAT = "/chat/completions"
FEW_TOKENS = 16  # where it does not matter what is said
THINKING_BUDGET = 16  # endpoints that know no budget think as long as the token limit lets them
SEED = 1

# How each API is told to think or not to; the names that local servers know are both sent to them.
SWITCHES: dict[Profile, tuple[dict[str, Any], dict[str, Any]]] = {
    "open": (
        {"thinking": {"type": "enabled"}, "chat_template_kwargs": {"thinking": True}},
        {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"thinking": False}},
    ),
    "kimi": ({"thinking": {"type": "enabled"}}, {"thinking": {"type": "disabled"}}),
    "openai": ({"reasoning_effort": "low"}, {"reasoning_effort": "none"}),
}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@dataclass(frozen=True)
class Endpoint:
    """One model behind one URL, asked by one check.

    window: its context in tokens. images: None where the endpoint does not say. watch: sees every
    exchange with the chat route.
    """

    client: Client
    model: str
    profile: Profile
    window: int | None
    images: bool | None
    thinks: bool
    watch: Callable[[Seen], None] = lambda seen: None

    @property
    def room(self) -> int:
        """New tokens in which an answer of some hundred characters ends."""
        return min(512, (self.window or 2048) // 4)

    @property
    def thinking_room(self) -> int:
        """The same after some thinking."""
        return max(self.room, min(4096, (self.window or 4096) // 4))

    def switch(self, think: bool) -> dict[str, Any]:
        """The members that turn thinking on or off; none for a model that never thinks."""
        if not self.thinks:
            return {}
        on, off = SWITCHES[self.profile]
        if not think:
            return off
        return on if self.profile == "openai" else {**on, "thinking_budget": THINKING_BUDGET}

    def limit(self, tokens: int) -> dict[str, Any]:
        """The member that bounds the answer."""
        name = "max_completion_tokens" if self.profile == "openai" else "max_tokens"
        return {name: tokens}

    @property
    def cold(self) -> dict[str, Any]:
        """What makes an answer repeat itself; Kimi's API fixes the temperature."""
        return {} if self.profile == "kimi" else {"temperature": 0}

    def body(
        self,
        content: Any = "Say OK.",
        *,
        think: bool | None = False,
        tokens: int = FEW_TOKENS,
        stream: bool = False,
        **fields: Any,
    ) -> dict[str, Any]:
        """A request of one user message unless `fields` say otherwise; a field that is None is left out.

        think: None leaves the switch out.
        """
        body = {"model": self.model, "messages": [user(content)], "seed": SEED}
        body |= self.limit(tokens)
        if think is not None:
            body |= self.switch(think)
        if stream:
            body |= {"stream": stream, "stream_options": {"include_usage": True}}
        return {name: value for name, value in {**body, **fields}.items() if value is not None}

    async def ask(self, content: Any = "Say OK.", **fields: Any) -> Answer:
        """The answer to `body(...)`. Raises Refusal for any status but 200."""
        body = self.body(content, **fields)
        reply = await self.send(body)
        if reply.status != 200:
            raise Refusal(
                f"a request that must be served was answered with {reply.told}", reply.status
            )
        return self.read(body, reply)

    async def refused(self, what: str, status: int = 400, **fields: Any) -> Reply:
        """Raises Failed unless `body(...)` is answered with `status`; `what` was wrong with it."""
        body = self.body(**fields)
        reply = await self.send(body)
        if reply.status != status:
            raise Failed(f"{what} was answered with {reply.told}, not with {status}")
        return reply

    async def send(self, body: Any) -> Reply:
        """The bare exchange; what is no 200 is shown to the rules."""
        reply = await self.client.send("POST", CHAT, body)
        if reply.status != 200:
            self.watch(Seen(body if isinstance(body, dict) else {}, reply, None, self.profile))
        return reply

    def read(self, body: dict[str, Any], reply: Reply) -> Answer:
        """The answer in a reply of status 200, shown to the rules. Raises Failed."""
        answer = read_stream(reply) if body.get("stream") else read_plain(reply)
        self.watch(Seen(body, reply, answer, self.profile))
        return answer

    async def route(self, path: str, body: dict[str, Any]) -> Reply:
        """Another route of the endpoint. Raises Skipped where there is none."""
        reply = await self.client.send("POST", path, body)
        if reply.status in (404, 405, 501):
            raise Skipped(f"the endpoint has no {path}")
        return reply

    def must_think(self) -> None:
        """Raises Skipped for a model that does not."""
        if not self.thinks:
            raise Skipped("the model does not think")
