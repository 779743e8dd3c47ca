"""`NAME=URL` of the command line: an endpoint, and what is to be known of it.

    kimi-k2.5=https://api.moonshot.ai/v1
    fast=https://api.example.com/v1#model=kimi-k2.5-turbo&thinking=template&key=EXAMPLE_KEY

What follows the `#` is for us and never sent:

| setting    | says                                     | without it                                     |
| ---------- | ---------------------------------------- | ---------------------------------------------- |
| `model`    | what the model is called there           | NAME if its list has it, or the only one there |
| `thinking` | how it is told whether to think (body.py) | as its list of models makes one expect (discover.py) |
| `key`      | the environment variable with its API key | MOONLET_UPSTREAM_KEY_NAME                      |

Keys are never on the command line, where everybody on the machine can read them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args
from urllib.parse import SplitResult, parse_qsl, urlsplit

from moonlet.errors import ConfigError
from moonlet.gateway.body import Thinking
from moonlet.plan.prices import Price

KEY_PREFIX = "MOONLET_UPSTREAM_KEY_"
MAX_NAME = 200  # characters
SHOWN_OF_KEYS = 8  # characters that tell nothing yet, such as "sk-proj-"

_SETTINGS = ("model", "thinking", "key")


@dataclass(frozen=True)
class Endpoint:
    """One place to ask. `name` is the model's here, `model` there.

    url: the base that `/chat/completions` is added to. price: None where nobody has said it. `model` and
    `thinking` may be None until the list of models was read.
    """

    name: str
    url: str
    model: str | None = None
    thinking: Thinking | None = None
    key: str | None = field(default=None, repr=False)
    price: Price | None = None

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def __str__(self) -> str:
        """What errors call it."""
        return f"the upstream {self.name} at {self.host}"

    def hide(self, text: str) -> str:
        """`text` without the key, which some repeat in their errors, nor the beginning of one that was cut."""
        if self.key is None:
            return text
        text = text.replace(self.key, "***")
        for length in range(len(self.key) - 1, SHOWN_OF_KEYS, -1):
            text = text.replace(self.key[:length], "***")
        return text


def parse_endpoint(flag: str, environment: Mapping[str, str], *, first: bool = True) -> Endpoint:
    """The endpoint that `NAME=URL` describes. Raises ConfigError.

    first: of its NAME. Another one has no key unless its `key` names one: what is meant for one vendor must
    not be sent to the next.
    """
    name, equals, address = flag.partition("=")
    name = name.strip()
    if not equals or not name or len(name) > MAX_NAME or not name.isprintable():
        raise ConfigError(
            f"--upstream takes NAME=URL, such as kimi=https://host/v1, not {flag!r:.80}"
        )
    split = _split(address.strip(), name)
    settings = _settings(split.fragment, name)
    return Endpoint(
        name,
        f"{split.scheme}://{split.netloc}{split.path.rstrip('/')}",
        settings.get("model"),
        _thinking(settings.get("thinking"), name),
        _key(name, settings.get("key"), environment, first),
    )


def _thinking(said: str | None, name: str) -> Thinking | None:
    known: dict[str | None, Thinking | None] = {word: word for word in get_args(Thinking)}
    if said is not None and said not in known:
        raise ConfigError(
            f"--upstream {name}: thinking is {said!r:.40}, but it must be "
            f"{', '.join(get_args(Thinking))}"
        )
    return known.get(said)


def key_variable(name: str) -> str:
    """Where the key of NAME is looked for."""
    return KEY_PREFIX + re.sub(r"[^A-Z0-9]", "_", name.upper())


def _split(address: str, name: str) -> SplitResult:
    if "@" in address:  # before anything else, since other errors show what they are about
        raise ConfigError(
            f"--upstream {name}: a URL must hold no password; put the key into the environment "
            f"variable {key_variable(name)}"
        )
    try:
        split = urlsplit(address)
        usable = split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
    except ValueError:
        raise ConfigError(f"--upstream {name}: {address!r:.80} is no URL") from None
    if not usable or not address.isascii() or not address.isprintable() or " " in address:
        raise ConfigError(f"--upstream {name}: {address!r:.80} is no http or https URL")
    if split.query:
        raise ConfigError(f"--upstream {name}: the URL must end before the '?'")
    return split


def _settings(fragment: str, name: str) -> dict[str, str]:
    """What stands behind the `#`."""
    pairs = parse_qsl(fragment, keep_blank_values=True) if fragment else []
    settings = dict(pairs)
    plain = len(pairs) == len(settings) == len(list(filter(None, fragment.split("&"))))
    if not plain or not settings.keys() <= set(_SETTINGS) or not all(settings.values()):
        raise ConfigError(
            f"--upstream {name}: behind the # stands {fragment!r:.80}, but it may hold "
            f"{', '.join(f'{word}=...' for word in _SETTINGS)}, with & between them"
        )
    return settings


def _key(
    name: str, variable: str | None, environment: Mapping[str, str], first: bool
) -> str | None:
    """The API key, which no message ever repeats."""
    if variable is None and not first:
        return None
    key = environment.get(variable or key_variable(name), "").strip()
    if not key:
        if variable is not None:
            raise ConfigError(f"--upstream {name}: the environment variable {variable} is not set")
        return None
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{variable or key_variable(name)} holds a character that cannot be sent; copy the key anew"
        )
    return key
