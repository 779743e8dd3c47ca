"""Whether what people claim of a model is true: `judge`, with the arithmetic in full sentences."""

from functools import singledispatch

from moonlet.config import REPOSITORIES
from moonlet.config.sizes import model_sizes
from moonlet.plan.claims_file import (
    ActiveClaim,
    CacheClaim,
    Claim,
    DeploymentClaim,
    PriceClaim,
    SizeClaim,
)
from moonlet.plan.deployment import deployment_parts, size_part
from moonlet.plan.judged import Judged, Part, Verdict, compared, listed, percent, verdict_of, within
from moonlet.plan.memory import cache_alternatives, cache_bytes_per_token
from moonlet.plan.prices import Price, Prices

_CENT = 0.005


def judge(claim: Claim) -> Judged:
    """Each part of `claim`, with its verdict."""
    return Judged(claim, tuple(_parts(claim)))


@singledispatch
def _parts(claim: Claim) -> list[Part]:
    raise TypeError(f"no claim of a known kind: {type(claim).__name__}")


@_parts.register
def _(claim: SizeClaim) -> list[Part]:
    return [size_part(claim.model, claim.weights, claim.size_bytes)]


@_parts.register
def _(claim: DeploymentClaim) -> list[Part]:
    return deployment_parts(claim)


@_parts.register
def _(claim: CacheClaim) -> list[Part]:
    """Said of nothing in particular, it must hold against one of the two that models otherwise have."""
    c = claim.config
    latent, heads = cache_bytes_per_token(c), c.num_attention_heads
    per_group = c.num_hidden_layers * (c.qk_head_dim + c.v_head_dim) * 2
    said = [
        f"Latent attention keeps {c.num_hidden_layers} layers x {c.latent_size} numbers x 2 bytes = "
        f"{latent:,} bytes of a token."
    ]
    figures = {"latent_bytes_per_token": float(latent)}
    if claim.groups is not None:
        usual = {_attention(claim.groups, heads): claim.groups}
    else:
        sizes = (other.bytes_per_token for other in cache_alternatives(c))
        usual = {_attention(size // per_group, heads): size // per_group for size in sizes}
        said.append("The claim does not say against what, so it is held against what is usual.")
    met = []
    for name, groups in usual.items():
        times = groups * per_group / latent
        met.append(within(claim.times, times))
        figures[f"times_{groups}_groups"] = times
        said.append(
            f"{name} with this model's heads would keep {c.num_hidden_layers} x {groups} x "
            f"({c.qk_head_dim} + {c.v_head_dim}) x 2 = {groups * per_group:,} bytes, {times:.1f} times as much; "
            f"{claim.times:g} times is {compared(claim.times, times)}."
        )
    if not any(met):
        said.append(_would_take(claim.times * latent / per_group, heads, latent / per_group))
    verdict: Verdict = verdict_of(any(met))
    if any(met) and not all(met):
        verdict = "cannot be judged"
        said.append("It depends on what the claim leaves out.")
    return [Part("cache", verdict, tuple(said), figures)]


def _attention(groups: int, heads: int) -> str:
    if groups == heads:
        return f"Multi-head attention ({heads} heads)"
    return f"Grouped-query attention of {groups} groups"


def _would_take(groups: float, heads: int, latent_groups: float) -> str:
    """How many groups would make it true, and the nearest number that there can be."""
    possible = [n for n in range(1, heads + 1) if heads % n == 0]
    near = min(possible, key=lambda n: abs(n - groups))
    return (
        f"It would take {groups:.1f} groups; {heads} heads can be split into {listed(map(str, possible))}, and "
        f"{near} would make it {near / latent_groups:.1f} times."
    )


@_parts.register
def _(claim: ActiveClaim) -> list[Part]:
    sizes = model_sizes(claim.config)
    total = sizes.parameters(*sizes.language_model)
    counts = {
        "with the input embedding": sizes.parameters_active_with_embedding,
        "without it": sizes.parameters_active,
    }
    said, met = [f"The language model has {total / 1e9:,.3f} billion parameters."], []
    for name, active in counts.items():
        share = active / total
        if within(claim.share, share):
            met.append(name)
        said.append(
            f"Of one token {active / 1e9:,.3f} billion are used, counted {name}: {percent(share, 2)}; "
            f"{percent(claim.share, 2)} is {compared(claim.share, share)}."
        )
    figures = {
        "parameters": float(total),
        "active_share_with_embedding": counts["with the input embedding"] / total,
        "active_share": counts["without it"] / total,
    }
    if len(met) == 1:
        said.append(f"It holds {met[0]} alone.")
    return [Part("active share", verdict_of(bool(met)), tuple(said), figures)]


@_parts.register
def _(claim: PriceClaim) -> list[Part]:
    known = Prices().of_weights(REPOSITORIES.get(claim.model, claim.model))
    if not known:
        return [
            Part(
                "price",
                "cannot be judged",
                (f"moonlet knows no price of {claim.model}: what an API takes for it is missing.",),
            )
        ]
    said = [_offer(name, price) for name, price in known.items()]
    fitting = [price for price in known.values() if _is_offer(claim, price)]
    said.append(
        f"The claim says ${claim.input:.2f} and ${claim.output:.2f}"
        + (f", from the cache ${claim.cached_input:.2f}" if claim.cached_input is not None else "")
        + ("." if fitting else ", which none of them takes.")
    )
    if fitting and claim.cached_input is None and fitting[0].cached_input < fitting[0].input:
        said.append(
            "It leaves out the lower price of cached prompts, which is what an agent pays for most of its tokens."
        )
    first = (fitting or list(known.values()))[0]
    figures = {
        "usd_input": first.input,
        "usd_cached_input": first.cached_input,
        "usd_output": first.output,
    }
    return [Part("price", verdict_of(bool(fitting)), tuple(said), figures)]


def _offer(name: str, price: Price) -> str:
    seen = f" on {price.as_of}" if price.as_of else ""
    source = f" ({price.source})" if price.source else ""
    return (
        f"A million tokens at {name} were ${price.input:.2f} in, ${price.cached_input:.2f} in from the cache and "
        f"${price.output:.2f} out{seen}{source}."
    )


def _is_offer(claim: PriceClaim, price: Price) -> bool:
    cached = price.cached_input if claim.cached_input is None else claim.cached_input
    pairs = (
        (claim.input, price.input),
        (claim.output, price.output),
        (cached, price.cached_input),
    )
    return all(abs(said - true) < _CENT for said, true in pairs)
