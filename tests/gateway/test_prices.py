"""Prices: read from a file, looked up, multiplied."""

from pathlib import Path

import pytest

from moonlet.chat.provider import Usage
from moonlet.errors import ConfigError
from moonlet.gateway.prices import Price, Prices


def test_cost_by_hand() -> None:
    price = Price(input=0.60, cached_input=0.10, output=3.00)
    # 700,000 new and 300,000 cached tokens in, 100,000 out: 0.42 + 0.03 + 0.30.
    assert price.of(Usage(1_000_000, 100_000, 50_000, 300_000)) == pytest.approx(0.75)


def test_kimi_has_a_price_where_it_is_sold_and_nowhere_else() -> None:
    prices = Prices()
    assert prices.find("any", "api.moonshot.ai", "kimi-k2.5") == Price(0.60, 0.10, 3.00)
    assert prices.find("kimi-k2.5", "127.0.0.1:8000", "kimi-k2.5") is None


def test_ones_own_prices_come_first(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('[mine]\ninput = 1\noutput = 2\n["h:1/model"]\ninput = 3\noutput = 4\n')
    prices = Prices(file)
    assert prices.find("mine", "api.moonshot.ai", "kimi-k2.5") == Price(1, 1, 2)
    assert prices.find("mine", "h:1", "model") == Price(3, 3, 4)
    assert prices.find("x", "api.moonshot.ai", "kimi-k2.5") == Price(0.60, 0.10, 3.00)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "cannot be read"),
        ("\xff", "cannot be read"),
        ("a = 1", "'a' must be a table"),
        ("[a]\ninput = 1", "'a' must be a table"),
        ("[a]\ninput = 1\noutput = 2\nouptut = 3", "'a' must be a table"),
        ("[a]\ninput = -1\noutput = 2", "input is -1"),
        ("[a]\ninput = nan\noutput = 2", "input is nan"),
        ("[a]\ninput = true\noutput = 2", "input is True"),
        ("[a]\ninput = 1\noutput = '2'", "output is '2'"),
        ("[a]\ninput = 1\noutput = inf", "output is inf"),
    ],
)
def test_files_that_are_none(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        Prices(file)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Prices(tmp_path / "prices.toml")
