"""What a check is, and how they are written down.

A *check* asks the endpoint something and raises Failed, with one sentence, when the answer is wrong. A
*rule* asks nothing: it looks at every answer that any check got, so that a fault which shows only now
and then (in a stream with calls, say) is found wherever it shows, and is reported once.

    group = Group("tools")

    @group.check("required", "one tool, tool_choice required")
    async def required(endpoint: Endpoint) -> None: ...

    @group.rule("finish", "finish_reason is tool_calls exactly when there are calls")
    def finish(seen: Seen) -> str | None: ...
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from moonlet.gateway.fidelity.answers import Answer
from moonlet.gateway.fidelity.client import Reply
from moonlet.gateway.fidelity.errors import Failed

if TYPE_CHECKING:
    from moonlet.gateway.fidelity.endpoint import Endpoint

Profile = Literal["open", "kimi", "openai"]
PROFILES: tuple[Profile, ...] = ("open", "kimi", "openai")
Outcome = Literal["passed", "failed", "skipped"]
Kind = Literal["plain", "stream", "answer", "error"]
Run = Callable[["Endpoint"], Awaitable[None]]
Look = Callable[["Seen"], str | None]


@dataclass(frozen=True)
class Seen:
    """One exchange with the chat route: the body that was sent, and what came.

    answer: where the status was 200. profile: what the endpoint claims to be.
    """

    body: dict[str, Any]
    reply: Reply
    answer: Answer | None
    profile: Profile

    @property
    def kind(self) -> Kind:
        if self.answer is None:
            return "error"
        return "stream" if self.body.get("stream") else "plain"


@dataclass(frozen=True)
class Check:
    """`sends`: in a few words. profiles: of which it is asked."""

    id: str
    sends: str
    run: Run
    profiles: Sequence[Profile] = PROFILES


@dataclass(frozen=True)
class Rule:
    """`holds`: what must be so in every exchange of its `kind`. look: the sentence when it is not."""

    id: str
    holds: str
    kind: Kind
    look: Look
    profiles: Sequence[Profile] = PROFILES


@dataclass(frozen=True)
class Result:
    """How one check or rule came out. detail: the sentence of a failure, or why it was skipped."""

    id: str
    about: str
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0

    @property
    def group(self) -> str:
        return self.id.partition("/")[0]


@dataclass
class Group:
    """Checks and rules about one subject."""

    name: str
    checks: list[Check] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)

    def add(self, name: str, sends: str, run: Run, profiles: Sequence[Profile] = PROFILES) -> None:
        self.checks.append(Check(f"{self.name}/{name}", sends, run, profiles))

    def check(
        self, name: str, sends: str, profiles: Sequence[Profile] = PROFILES
    ) -> Callable[[Run], Run]:
        """Decorates the function of a check."""

        def decorate(run: Run) -> Run:
            self.add(name, sends, run, profiles)
            return run

        return decorate

    def rule(
        self, name: str, holds: str, kind: Kind, profiles: Sequence[Profile] = PROFILES
    ) -> Callable[[Look], Look]:
        """Decorates the function of a rule."""

        def decorate(look: Look) -> Look:
            self.rules.append(Rule(f"{self.name}/{name}", holds, kind, look, profiles))
            return look

        return decorate


@dataclass
class Notebook:
    """What the rules made of the exchanges so far."""

    rules: Sequence[Rule]
    seen: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)  # the first sentence of each

    def look(self, seen: Seen, check: str) -> None:
        """Shows one exchange of `check` to every rule that it concerns."""
        for rule in self.rules:
            if rule.kind != seen.kind and not (rule.kind == "answer" and seen.answer is not None):
                continue
            self.seen[rule.id] += 1
            try:
                sentence = rule.look(seen)
            except Failed as error:
                sentence = str(error)
            if sentence is not None:
                self.broken.setdefault(rule.id, f"{sentence} (asked by {check})")

    def results(self) -> list[Result]:
        return [
            Result(rule.id, rule.holds, "failed", self.broken[rule.id])
            if rule.id in self.broken
            else Result(rule.id, rule.holds, "passed")
            if self.seen[rule.id]
            else Result(rule.id, rule.holds, "skipped", "no such answer came")
            for rule in self.rules
        ]
