"""`NAME=URL`, its settings and its key."""

import pytest

from moonlet.errors import ConfigError
from moonlet.gateway.endpoint import Endpoint, parse_endpoint


def test_a_name_and_an_address() -> None:
    place = parse_endpoint(" kimi-k2.5 = https://api.moonshot.ai/v1/ ", {})
    assert place == Endpoint("kimi-k2.5", "https://api.moonshot.ai/v1")
    assert (place.host, str(place)) == (
        "api.moonshot.ai",
        "the upstream kimi-k2.5 at api.moonshot.ai",
    )


def test_what_stands_behind_the_hash() -> None:
    flag = "fast=http://[::1]:8000/v1#model=org/a%26b&thinking=template&key=SOME_KEY"
    place = parse_endpoint(flag, {"SOME_KEY": " sk-1\n"})
    assert (place.url, place.model, place.thinking, place.key) == (
        "http://[::1]:8000/v1", "org/a&b", "template", "sk-1",
    )  # fmt: skip


def test_keys_come_from_the_environment_and_stay_with_their_vendor() -> None:
    environment = {"MOONLET_UPSTREAM_KEY_KIMI_K2_5": "sk-1"}
    assert parse_endpoint("kimi-k2.5=http://a/v1", environment).key == "sk-1"
    assert parse_endpoint("kimi-k2.5=http://b/v1", environment, first=False).key is None
    assert parse_endpoint("other=http://a/v1", environment).key is None
    assert "sk-1" not in repr(parse_endpoint("kimi-k2.5=http://a/v1", environment))


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("http://host/v1", "takes NAME=URL"),
        ("=http://host/v1", "takes NAME=URL"),
        ("a\nb=http://host/v1", "takes NAME=URL"),
        ("a=", "is no http or https URL"),
        ("a=host/v1", "is no http or https URL"),
        ("a=ftp://host", "is no http or https URL"),
        ("a=http://", "is no http or https URL"),
        ("a=http://h st/", "is no http or https URL"),
        ("a=http://höst/", "is no http or https URL"),
        ("a=http://host:99999/", "is no URL"),
        ("a=http://[::1/", "is no URL"),
        ("a=http://me:sk-9@host/v1", "must hold no password"),
        ("a=http://host/v1?x=1", "must end before the '?'"),
        ("a=http://host/v1#colour=red", "behind the # stands"),
        ("a=http://host/v1#model", "behind the # stands"),
        ("a=http://host/v1#model=", "behind the # stands"),
        ("a=http://host/v1#model=x&model=y", "behind the # stands"),
        ("a=http://host/v1#thinking=maybe", "thinking is 'maybe'"),
        ("a=http://host/v1#key=NOT_THERE", "NOT_THERE is not set"),
        ("a=http://host/v1#key=BAD", "BAD holds a character"),
    ],
)
def test_what_cannot_be(flag: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_endpoint(flag, {"BAD": "sk-9\u20ac"})
    assert sentence in str(caught.value)
    assert "sk-9" not in str(caught.value)
