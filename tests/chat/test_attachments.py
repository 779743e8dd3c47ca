"""All media of a conversation are measured before the first is decoded."""

from typing import Any

import pytest
from PIL import Image

from moonlet.chat import attachments, images
from moonlet.chat.attachments import MAX_FILES, open_media
from moonlet.chat.jinja import JinjaTemplate
from moonlet.chat.media import MediaItem, MediaLimits
from moonlet.chat.messages import ImagePart, Message, TextPart, VideoPart
from moonlet.chat.template import ChatTemplate
from moonlet.chat.tokenizer import BYTE_TOKENS, Tokenizer
from moonlet.errors import MediaError
from tests.chat.test_headers import small_gif
from tests.chat.test_images import data_url, encoded, png
from tests.chat.test_jinja import K25

SMALL = data_url(encoded(Image.new("RGB", (56, 28))))  # two tokens
BOMB = data_url(png(3584, 3584, depth=1))  # 4096 tokens in 100 bytes; no pixels at all
FILM = data_url(small_gif(9))  # nine frames, three chunks of one token


def asked(*parts: Any) -> list[Message]:
    return [Message("user", (TextPart("x"), *parts))]


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_to_rgb", lambda image: pytest.fail("it was decoded"))


def test_order_and_kinds() -> None:
    messages = asked(ImagePart(SMALL), VideoPart(FILM)) + asked(ImagePart(SMALL))
    first, film, last = open_media(messages, MediaLimits())
    assert isinstance(first, MediaItem)
    assert isinstance(last, MediaItem)
    assert isinstance(film, list)
    assert [item.grid for _, item in film] == [(4, 2, 2), (4, 2, 2), (1, 2, 2)]


@pytest.mark.usefixtures("undecoded")
def test_the_sum_of_tokens_is_limited_before_decoding() -> None:
    messages = asked(*[ImagePart(SMALL)] * 3) + asked(ImagePart(BOMB))
    with pytest.raises(MediaError, match="take 4102 tokens, but this model's context is 4101") as e:
        open_media(messages, MediaLimits(max_tokens=4101))
    assert e.value.param == "messages[1].content[1]"
    with pytest.raises(MediaError, match="take 3 tokens") as e:
        open_media(asked(VideoPart(FILM)), MediaLimits(max_tokens=2))
    assert e.value.param == "messages[0].content[1]"


def test_what_fits_exactly_is_taken() -> None:
    assert len(open_media(asked(*[ImagePart(SMALL)] * 3), MediaLimits(max_tokens=6))) == 3
    assert len(open_media(asked(VideoPart(FILM)), MediaLimits(max_tokens=3))) == 1


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("own", [True, False])
def test_both_templates_keep_the_limit(own: bool) -> None:
    tokenizer, limits = Tokenizer(BYTE_TOKENS), MediaLimits(max_tokens=4096)
    template = (
        JinjaTemplate(K25, tokenizer, limits) if own else ChatTemplate(tokenizer, "k2.5", limits)
    )
    with pytest.raises(MediaError, match="take 8192 tokens") as caught:
        template.render(asked(ImagePart(BOMB), ImagePart(BOMB)))
    assert caught.value.param == "messages[0].content[2]"


@pytest.mark.usefixtures("undecoded")
def test_the_pixels_to_decode_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "MAX_WORK", 56 * 28 + 8)
    with pytest.raises(MediaError, match="have 1577 pixels to decode, 1576 are") as caught:
        open_media(asked(ImagePart(SMALL), VideoPart(FILM)), MediaLimits())
    assert caught.value.param == "messages[0].content[2]"


def test_the_number_of_files_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(open_media(asked(*[ImagePart(SMALL)] * MAX_FILES), MediaLimits())) == 256
    monkeypatch.setattr(attachments, "open_picture", lambda url: pytest.fail("it was opened"))
    with pytest.raises(MediaError, match="has 257 images and videos, 256 are") as caught:
        open_media(asked(*[ImagePart(SMALL)] * 257), MediaLimits())
    assert caught.value.param == "messages[0].content[257]"
