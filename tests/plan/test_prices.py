"""Prices: read from a file, looked up, multiplied."""

from datetime import date
from pathlib import Path

import pytest

from moonlet.chat.provider import Usage
from moonlet.errors import ConfigError
from moonlet.plan.prices import _BUILT_IN, Price, Prices, _read


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


def test_a_price_tells_when_and_where_it_was_seen(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('[a]\ninput = 1\noutput = 2\nas_of = 2026-02-01\nsource = "a page"\n')
    price = Prices(file).find("a", "h", "m")
    assert price is not None
    assert (price.as_of, price.source) == (date(2026, 2, 1), "a page")
    assert price == Price(1, 1, 2)  # which is what counts


def test_every_built_in_price_has_a_date_a_source_and_weights() -> None:
    table = _read(_BUILT_IN)
    assert table
    for name, price in table.items():
        assert price.as_of is not None, name
        assert price.source.startswith("https://"), name
        assert price.weights.count("/") == 1, name
        assert price.cached_input <= price.input <= price.output, name


def test_where_weights_are_sold(tmp_path: Path) -> None:
    k25 = {"api.moonshot.ai/kimi-k2.5": Price(0.60, 0.10, 3.00)}
    assert Prices().of_weights("moonshotai/Kimi-K2.5") == k25
    assert Prices().of_weights("/models/kimi-k2.5/") == k25
    assert list(Prices().of_weights("Kimi-K2-Instruct-0905")) == [
        "api.moonshot.ai/kimi-k2-0905-preview"
    ]
    assert Prices().of_weights("Moonlight-16B-A3B") == {}
    assert Prices().of_weights("") == {}
    file = tmp_path / "prices.toml"
    file.write_text(
        '["api.moonshot.ai/kimi-k2.5"]\ninput = 9\noutput = 9\n'
        '["else.example/k"]\ninput = 1\noutput = 2\nweights = "moonshotai/Kimi-K2.5"\n'
    )
    assert Prices(file).of_weights("Kimi-K2.5") == {
        "api.moonshot.ai/kimi-k2.5": Price(9, 9, 9),
        "else.example/k": Price(1, 1, 2),
    }


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
        ("[a]\ninput = 1\noutput = 2\nsource = 3", "source is 3"),
        ("[a]\ninput = 1\noutput = 2\nas_of = '2026'", "as_of is '2026'"),
        ("[a]\ninput = 1\noutput = 2\nas_of = 2026-02-01T00:00:00", "as_of is datetime"),
    ],
)
def test_files_that_are_none(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        Prices(file)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_would_never_end_is_not_read() -> None:
    with pytest.raises(ConfigError, match="no regular file"):
        Prices(Path("/dev/zero"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Prices(tmp_path / "prices.toml")
