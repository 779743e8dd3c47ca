"""`moonlet serve --upstream NAME=URL`: other endpoints behind the same address, with their ledger."""

import asyncio
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from moonlet.cli.console import UsageError, busy, printable

if TYPE_CHECKING:
    from moonlet.chat.provider import Provider
    from moonlet.chat.sources import MediaAccess
    from moonlet.gateway.budgets import Budgets
    from moonlet.gateway.discover import Found
    from moonlet.gateway.endpoint import Endpoint
    from moonlet.gateway.ledger import Ledger
    from moonlet.gateway.upstream import Upstream
    from moonlet.plan.prices import Prices


def add_upstream_options(parser: ArgumentParser) -> None:
    """What can be said about other endpoints and what they cost."""
    group = parser.add_argument_group(
        "other endpoints",
        "Models behind other OpenAI-compatible endpoints are listed and answer beside MODEL.",
    )
    group.add_argument(
        "--upstream",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="serve the model at URL (its base, as .../v1) as NAME; the same NAME again is asked when the "
        "one before fails. Its API key is in MOONLET_UPSTREAM_KEY_NAME. Behind a # the URL may say "
        "model=ID (its name there), key=VARIABLE (for its API key) and thinking=type|template|effort|none "
        "(how it is told whether to think: as Kimi, vLLM or OpenAI are, or not at all), with & between",
    )
    group.add_argument(
        "--ledger",
        type=Path,
        metavar="FILE",
        help="write every request down in this SQLite file, with tokens, times and cost "
        "(default: with --upstream ledger.sqlite in the user's data folder, otherwise nowhere)",
    )
    group.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        help="what tokens cost, in TOML (see plan/api_prices.toml in the package)",
    )
    group.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="KEY=USD",
        help="what requests with this API key may cost in all, as the ledger has it; KEY may also be the "
        "digest that the ledger shows. May be repeated",
    )


class Gateway:
    """The other providers of a server, and what stands before every one of them.

    others: those that answer beside the first.
    """

    def __init__(
        self, others: Sequence["Provider"], ledger: "Ledger | None", budgets: "Budgets"
    ) -> None:
        self._ledger, self._budgets = ledger, budgets
        self.others = [self._metered(provider) for provider in others]

    def take_first(self) -> "Provider":
        """Of the others, where there is no model of this process. Raises UsageError without any."""
        if not self.others:
            raise UsageError(
                "MODEL is none, so there is nothing to serve; add an --upstream NAME=URL"
            )
        return self.others.pop(0)

    def admit(self, provider: "Provider") -> "Provider":
        """The model of this process, to answer beside them. Raises UsageError for a name that is taken."""
        if provider.card.id in [other.card.id for other in self.others]:
            provider.close()
            raise UsageError(
                f"MODEL and an --upstream are both called {provider.card.id}; give the latter another name"
            )
        return self._metered(provider)

    def _metered(self, provider: "Provider") -> "Provider":
        if self._ledger is None:
            return provider
        from moonlet.gateway.metered import metered

        return metered(provider, self._ledger, self._budgets)


@contextmanager
def open_gateway(args: Namespace, access: "MediaAccess", keys: Sequence[str]) -> Iterator[Gateway]:
    """What the command line says of other endpoints. keys: those that the server knows.

    Raises UsageError and ConfigError.
    """
    from moonlet.gateway.budgets import Budgets
    from moonlet.gateway.ledger import Ledger
    from moonlet.plan.prices import Prices

    path = args.ledger or (_data_folder() / "ledger.sqlite" if args.upstream else None)
    if path is None and (args.budget or args.prices):
        raise UsageError("--budget and --prices need a --ledger to count in, or an --upstream")
    limits = _limits(args.budget, keys)
    places, prices = _endpoints(args.upstream), Prices(args.prices)
    with closing(Ledger(path)) if path else nullcontext() as ledger:
        budgets = Budgets(limits, ledger.spent() if ledger else {})
        yield Gateway(_upstreams(places, prices, access), ledger, budgets)


def _endpoints(flags: Sequence[str]) -> dict[str, list["Endpoint"]]:
    """By NAME, in the order in which they are to be asked."""
    from moonlet.gateway.endpoint import parse_endpoint

    places: dict[str, list[Endpoint]] = {}
    for flag in flags:
        name = flag.partition("=")[0].strip()
        endpoint = parse_endpoint(flag, os.environ, first=name not in places)
        places.setdefault(name, []).append(endpoint)
    return places


def _upstreams(
    places: dict[str, list["Endpoint"]], prices: "Prices", access: "MediaAccess"
) -> list["Upstream"]:
    """One provider for each NAME, once its endpoints were asked what they have; says what is amiss."""
    from moonlet.gateway.discover import discover
    from moonlet.gateway.upstream import Upstream

    async def found() -> "list[Found]":
        return await asyncio.gather(*map(discover, places.values()))

    if not places:
        return []
    with busy(f"asking {len(places)} upstream{'s' * (len(places) > 1)} for their models"):
        answers = asyncio.run(found())
    upstreams = []
    warnings = [warning for answer in answers for warning in answer.warnings]
    unpriced: list[str] = []
    for answer in answers:
        priced = [_priced(place, prices) for place in answer.endpoints]
        unpriced += [f"{p.host}/{p.model or p.name}" for p in priced if p.price is None]
        upstreams.append(Upstream(priced, answer.card, access))
    if unpriced:
        rest = f" and {len(unpriced) - 3} more" if len(unpriced) > 3 else ""
        warnings.append(
            f"no price is known of {', '.join(unpriced[:3])}{rest}: such requests count no cost, and no "
            "budget bounds them; say it with --prices"
        )
    for warning in warnings:
        print(f"moonlet: {printable(warning)}", file=sys.stderr)
    return upstreams


def _priced(place: "Endpoint", prices: "Prices") -> "Endpoint":
    return replace(place, price=prices.find(place.name, place.host, place.model or place.name))


def _limits(flags: Sequence[str], keys: Sequence[str]) -> dict[str, float]:
    """Dollars by digest of the key. Raises UsageError."""
    from moonlet.server.auth import short_digest

    known = {short_digest(key) for key in keys}
    limits: dict[str, float] = {}
    for flag in flags:
        key, _, amount = flag.rpartition("=")
        try:
            limit = float(amount)
        except ValueError:
            limit = -1.0
        if not key or not isfinite(limit) or limit < 0:
            raise UsageError("--budget takes KEY=USD, such as sk-1=2.50")
        digest = key if key in known else short_digest(key)
        if digest not in known:
            raise UsageError(
                f"a --budget of {limit:g} dollars is for a key that this server does not have; give it with "
                "--api-key as well"
            )
        limits[digest] = limit
    return limits


def _data_folder() -> Path:
    """Where this user's programs keep what they must not lose."""
    home = os.environ.get("XDG_DATA_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".local" / "share") / "moonlet"
