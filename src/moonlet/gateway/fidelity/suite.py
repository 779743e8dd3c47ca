"""The suite: all checks and rules, which of them are asked, and how they are run."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from moonlet.errors import MoonletError
from moonlet.gateway.fidelity import answer_rules, stream_rules
from moonlet.gateway.fidelity.check import Check, Notebook, Profile, Result, Rule, Seen
from moonlet.gateway.fidelity.checks import (
    chat,
    history,
    media,
    messages,
    models,
    parallel,
    prompts,
    requests,
    responses,
    sampling,
    structured,
    thinking,
    tools,
)
from moonlet.gateway.fidelity.endpoint import Endpoint
from moonlet.gateway.fidelity.errors import Skipped, VerifyError

GROUPS = (
    models.group,
    models.keys,
    chat.group,
    stream_rules.group,
    answer_rules.answers,
    thinking.group,
    sampling.group,
    tools.group,
    history.group,
    structured.formats,
    structured.group,
    media.group,
    prompts.partial,
    prompts.group,
    parallel.group,
    responses.group,
    messages.group,
    requests.group,
    answer_rules.errors,
)
OnDone = Callable[[int, int], None]


def select(profile: Profile, only: str | None = None) -> list[Check]:
    """The checks of `profile` whose id matches `only`: a pattern with * and ?, or a part of the id.

    Raises VerifyError when there is none.
    """
    checks = [check for group in GROUPS for check in group.checks if profile in check.profiles]
    if only is None:
        return checks
    pattern = only if any(sign in only for sign in "*?[") else f"*{only}*"
    found = [check for check in checks if fnmatchcase(check.id, pattern)]
    if not found:
        names = ", ".join(group.name for group in GROUPS if group.checks)
        raise VerifyError(f"no check is called {only!r:.80}; their groups are {names}")
    return found


def rules_of(profile: Profile) -> list[Rule]:
    return [rule for group in GROUPS for rule in group.rules if profile in rule.profiles]


async def run_suite(
    endpoint: Endpoint,
    checks: Sequence[Check],
    *,
    concurrency: int,
    timeout_s: float,
    on_done: OnDone = lambda done, total: None,
) -> list[Result]:
    """The results of `checks` and of the rules that saw something, in the order of the groups.

    At most `concurrency` checks run at once; one that takes longer than `timeout_s` has failed.
    """
    notebook = Notebook(rules_of(endpoint.profile))
    waiting = list(reversed(checks))
    results: list[Result] = []

    async def work() -> None:
        while waiting:
            check = waiting.pop()
            results.append(await _run(endpoint, check, notebook, timeout_s))
            on_done(len(results), len(checks))

    await asyncio.gather(*(work() for _ in range(min(concurrency, len(checks)))))
    places = {group.name: place for place, group in enumerate(GROUPS)}
    order = {check.id: place for place, check in enumerate(checks)}
    seen = [result for result in notebook.results() if result.outcome != "skipped"]
    return sorted([*results, *seen], key=lambda one: (places[one.group], order.get(one.id, -1)))


async def _run(endpoint: Endpoint, check: Check, notebook: Notebook, timeout_s: float) -> Result:
    begun = time.monotonic()

    def watch(seen: Seen) -> None:
        notebook.look(seen, check.id)

    def result(outcome: str, detail: str = "") -> Result:
        return Result(check.id, check.sends, outcome, detail, time.monotonic() - begun)  # pyright: ignore[reportArgumentType]

    try:
        async with asyncio.timeout(timeout_s):
            await check.run(replace(endpoint, watch=watch))
    except TimeoutError:
        return result("failed", f"it did not end within {timeout_s:g} s")
    except Skipped as reason:
        return result("skipped", str(reason))
    except MoonletError as error:
        return result("failed", str(error))
    except Exception as error:  # noqa: BLE001  whatever one endpoint sends, the other checks go on
        return result("failed", f"the answer has a shape that nobody expects ({error!r:.160})")
    return result("passed")
