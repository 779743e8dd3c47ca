"""A table of claims about models, in TOML, for `moonlet plan --check-claims FILE`.

    [[claim]]
    text = "INT4, about 630 GB, on two H100 80 GB at 50 to 100 tokens/s"   # as it circulates
    kind = "deployment"
    model = "kimi-k2.5"            # a preset, or the repository of one
    precision = "int4"             # a quantization, as for --quantization
    size_gb = 630                  # decimal
    gpu = "2xh100"                 # hardware as the flags of `moonlet plan` say it
    tok_s = [50, 100]              # of one stream; or one number

| kind       | says                                          | and may say                                        |
| ---------- | --------------------------------------------- | -------------------------------------------------- |
| size       | precision, size_gb                            |                                                    |
| deployment | gpu or ram; precision or size_gb              | the other flags of hardware, context, tok_s, published |
| cache      | times: what latent attention takes off it     | against: "mha", or "gqa8" for 8 groups             |
| active     | percent: of the parameters, for one token     |                                                    |
| price      | input, output: dollars for a million tokens   | cached_input                                       |

published: a list of { tok_s, source }, guidance that is repeated beside the arithmetic and decides nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from moonlet.config import ModelConfig, preset
from moonlet.config.toml import read_toml
from moonlet.errors import ConfigError
from moonlet.plan.claims_fields import CHECKS, HARDWARE, Guidance, Range, shown
from moonlet.plan.describe import describe_machine
from moonlet.plan.machine import Machine
from moonlet.plan.stored import weights_as
from moonlet.plan.weights import Weights

EXAMPLES = {"k25": Path(__file__).with_name("claims_k25.toml")}
LEAST_CONTEXT = 4096  # tokens that a deployment is taken to hold where the claim says nothing
_MOST_CLAIMS = 200


@dataclass(frozen=True)
class Claim:
    """text: as it circulates. model: the preset that it is of. kind: as the file calls it."""

    kind: ClassVar[str] = ""
    text: str
    model: str
    config: ModelConfig


@dataclass(frozen=True)
class SizeClaim(Claim):
    kind: ClassVar[str] = "size"
    precision: str
    weights: Weights
    size_bytes: float


@dataclass(frozen=True)
class DeploymentClaim(Claim):
    """named: the flags of hardware that the claim sets. weights: None where it names no precision."""

    kind: ClassVar[str] = "deployment"
    machine: Machine
    named: frozenset[str]
    precision: str | None = None
    weights: Weights | None = None
    size_bytes: float | None = None
    context: int = LEAST_CONTEXT
    tok_s: Range | None = None
    published: tuple[Guidance, ...] = ()


@dataclass(frozen=True)
class CacheClaim(Claim):
    """groups: of the attention that it is compared with, as many as heads for plain multi-head attention."""

    kind: ClassVar[str] = "cache"
    times: float
    groups: int | None = None


@dataclass(frozen=True)
class ActiveClaim(Claim):
    kind: ClassVar[str] = "active"
    share: float


@dataclass(frozen=True)
class PriceClaim(Claim):
    """Dollars for a million tokens."""

    kind: ClassVar[str] = "price"
    input: float
    output: float
    cached_input: float | None = None


def read_claims(path: Path) -> tuple[Claim, ...]:
    """All claims of a file. Raises ConfigError that says which claim is wrong, and how."""
    table = read_toml(path, f"a table of claims, of which moonlet has one ({', '.join(EXAMPLES)})")
    entries = table.get("claim")
    if not isinstance(entries, list) or not entries or len(table) > 1:
        raise ConfigError(f"{path} must be a list of tables [[claim]], and nothing else")
    if len(entries) > _MOST_CLAIMS:
        raise ConfigError(
            f"{path} has {len(entries)} claims; give at most {_MOST_CLAIMS} in a file"
        )
    return tuple(_claim(entry, f"{path}, claim {n}") for n, entry in enumerate(entries, 1))


def _claim(entry: Any, where: str) -> Claim:
    try:
        if not isinstance(entry, dict):
            raise ConfigError(f"it is {shown(entry)}, but it must be a table")
        kind = entry.get("kind")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ConfigError(f"kind is {shown(kind)}, but it must be one of {', '.join(_KINDS)}")
        make, needed, known = _KINDS[kind]
        return make(_checked(entry, kind, needed, known))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _checked(
    entry: Mapping[str, Any], kind: str, needed: tuple[str, ...], known: tuple[str, ...]
) -> dict[str, Any]:
    """The fields of an entry, each as its check makes it."""
    needed = (*_ALWAYS, *needed)
    known = (*needed, *known)
    if unknown := sorted(entry.keys() - {*known, "kind"}):
        near = get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
        raise ConfigError(f"{unknown[0][:40]!r} is no field of the kind {kind!r}: {hint}")
    if missing := [name for name in needed if name not in entry]:
        raise ConfigError(f"{missing[0]!r} is missing: the kind {kind!r} needs {', '.join(needed)}")
    return {name: CHECKS[name](entry[name], name) for name in known if name in entry}


def _about(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What every claim has."""
    model = fields["model"]
    return {"text": fields["text"], "model": model, "config": preset(model)}


@lru_cache(maxsize=64)
def _stored(model: str, precision: str) -> Weights:
    return weights_as(preset(model), precision)


def _size(fields: Mapping[str, Any]) -> Claim:
    about, precision = _about(fields), fields["precision"]
    return SizeClaim(
        **about,
        precision=precision,
        weights=_stored(about["model"], precision),
        size_bytes=fields["size_gb"] * 1e9,
    )


def _deployment(fields: Mapping[str, Any]) -> Claim:
    about, precision, size = _about(fields), fields.get("precision"), fields.get("size_gb")
    named = {name: fields[name] for name in HARDWARE if name in fields}
    if not named.keys() & {"gpu", "ram"}:
        raise ConfigError("it names neither gpu nor ram, and a deployment needs one of them")
    if precision is None and size is None:
        raise ConfigError(
            "it names neither precision nor size_gb, and a deployment needs one of them"
        )
    config: ModelConfig = about["config"]
    context = fields.get("context", min(LEAST_CONTEXT, config.max_position_embeddings))
    if context > config.max_position_embeddings:
        raise ConfigError(
            f"context is {context}, but {about['model']} has at most {config.max_position_embeddings}"
        )
    renamed = {"ram": "ram_gb", "disk": "disk_gb", "network": "network_gbit"}
    machine, _ = describe_machine(**{renamed.get(key, key): named[key] for key in named})
    return DeploymentClaim(
        **about,
        machine=machine,
        named=frozenset(named),
        precision=precision,
        weights=None if precision is None else _stored(about["model"], precision),
        size_bytes=None if size is None else size * 1e9,
        context=context,
        tok_s=fields.get("tok_s"),
        published=fields.get("published", ()),
    )


def _cache(fields: Mapping[str, Any]) -> Claim:
    about, groups = _about(fields), fields.get("against")
    heads = about["config"].num_attention_heads
    if groups is not None and heads % (groups or heads):
        raise ConfigError(f"against is gqa{groups}, but {heads} heads cannot be split so")
    return CacheClaim(**about, times=fields["times"], groups=heads if groups == 0 else groups)


def _active(fields: Mapping[str, Any]) -> Claim:
    if fields["percent"] > 100:
        raise ConfigError(f"percent is {fields['percent']:g}, but it must be at most 100")
    return ActiveClaim(**_about(fields), share=fields["percent"] / 100)


def _price(fields: Mapping[str, Any]) -> Claim:
    return PriceClaim(
        **_about(fields),
        input=fields["input"],
        output=fields["output"],
        cached_input=fields.get("cached_input"),
    )


_ALWAYS = ("text", "model")
_OF_DEPLOYMENTS = ("precision", "size_gb", "context", "tok_s", "published")
# By kind: what makes it, what it must say, what it may say.
_KINDS: dict[str, tuple[Callable[[Mapping[str, Any]], Claim], tuple[str, ...], tuple[str, ...]]] = {
    "size": (_size, ("precision", "size_gb"), ()),
    "deployment": (_deployment, (), (*_OF_DEPLOYMENTS, *HARDWARE)),
    "cache": (_cache, ("times",), ("against",)),
    "active": (_active, ("percent",), ()),
    "price": (_price, ("input", "output"), ("cached_input",)),
}
