"""All media of a conversation are measured before the first is decoded."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moonlet.chat import attachments, images
from moonlet.chat.attachments import MAX_FILES, open_media
from moonlet.chat.jinja import JinjaTemplate
from moonlet.chat.media import MediaItem, MediaLimits
from moonlet.chat.media_cache import MediaCache
from moonlet.chat.messages import ImagePart, Message, TextPart, ToolCall, VideoPart
from moonlet.chat.sources import MediaAccess
from moonlet.chat.template import ChatTemplate
from moonlet.chat.tokenizer import BYTE_TOKENS, Tokenizer
from moonlet.errors import MediaError
from tests.chat.test_headers import small_gif
from tests.chat.test_images import data_url, encoded, png
from tests.chat.test_jinja import K25

SMALL = data_url(encoded(Image.new("RGB", (56, 28))))  # two tokens
BOMB = data_url(png(3584, 3584, depth=1))  # 4096 tokens in 100 bytes; no pixels at all
FILM = data_url(small_gif(9), "image/gif")  # nine frames, three chunks of one token


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
    monkeypatch.setattr(attachments, "read_source", lambda *_: pytest.fail("it was read"))
    with pytest.raises(MediaError, match="has 257 images and videos, 256 are") as caught:
        open_media(asked(*[ImagePart(SMALL)] * 257), MediaLimits())
    assert caught.value.param == "messages[0].content[257]"


def test_the_bytes_of_all_files_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(encoded(Image.new("RGB", (56, 28))))
    monkeypatch.setattr(attachments, "MAX_BYTES", 2 * size)
    assert len(open_media(asked(*[ImagePart(SMALL)] * 2), MediaLimits())) == 2
    with pytest.raises(
        MediaError, match=f"have {3 * size} bytes, {2 * size} are allowed"
    ) as caught:
        open_media(asked(*[ImagePart(SMALL)] * 3), MediaLimits())
    assert caught.value.param == "messages[0].content[3]"


def test_an_image_part_takes_no_video() -> None:
    with pytest.raises(MediaError, match="is a video \\(MP4\\); send it as a video_url part"):
        open_media(asked(ImagePart(data_url(b"\0\0\0\x18ftypmp42", "video/mp4"))), MediaLimits())


def test_a_video_part_takes_only_what_is_known() -> None:
    for data in (b"", b"hello", b"#EXTM3U\nhttp://10.0.0.1/\n", b"ffconcat version 1.0\n"):
        with pytest.raises(MediaError, match="not in a format that moonlet reads"):
            open_media(asked(VideoPart(data_url(data, "video/mp4"))), MediaLimits())


# The cache


def test_a_picture_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, real = [], images.Picture.load
    monkeypatch.setattr(images.Picture, "load", lambda picture: loaded.append(1) or real(picture))
    cache = MediaCache()
    messages = asked(ImagePart(SMALL), ImagePart(SMALL), VideoPart(FILM))
    first = open_media(messages, MediaLimits(), cache=cache)
    again = open_media(messages + asked(ImagePart(SMALL)), MediaLimits(), cache=cache)
    assert len(loaded) == 1
    assert [id(opened) for opened in again[:3]] == [id(opened) for opened in first]
    assert again[3] is again[0] is again[1]


@pytest.mark.usefixtures("undecoded")
def test_what_the_cache_has_is_counted_all_the_same() -> None:
    cache = MediaCache()
    item = MediaItem(np.zeros((8, 3, 14, 14), np.uint8), (1, 2, 4))
    cache.put(("image", hashlib.sha256(encoded(Image.new("RGB", (56, 28)))).digest()), item)
    assert open_media(asked(ImagePart(SMALL)), MediaLimits(max_tokens=2), cache=cache) == [item]
    with pytest.raises(MediaError, match="take 4 tokens"):
        open_media(asked(*[ImagePart(SMALL)] * 2), MediaLimits(max_tokens=3), cache=cache)


@pytest.mark.parametrize("own", [True, False])
def test_a_template_keeps_its_cache_and_its_access(
    own: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded, real = [], images.Picture.load
    monkeypatch.setattr(images.Picture, "load", lambda picture: loaded.append(1) or real(picture))
    (tmp_path / "file").write_bytes(encoded(Image.new("RGB", (56, 28))))
    tokenizer, access = Tokenizer(BYTE_TOKENS), MediaAccess(resolve_file=tmp_path.joinpath)
    template = (
        JinjaTemplate(K25, tokenizer, MediaLimits(), access)
        if own
        else ChatTemplate(tokenizer, "k2.5", MediaLimits(), access)
    )
    prompts = [template.render(asked(ImagePart("ms://file"))) for _ in range(2)]
    assert prompts[0].media[0] is prompts[1].media[0]
    assert len(loaded) == 1
    stop = threading.Event()
    stop.set()
    with pytest.raises(MediaError, match="cancelled"):
        template.render(asked(ImagePart("ms://file")), stop=stop)


def test_every_format_in_one_message_and_in_the_result_of_a_tool() -> None:
    kinds = ("PNG", "JPEG", "WEBP", "GIF")
    parts = [
        ImagePart(data_url(encoded(Image.new("RGB", (56, 28)), kind), f"image/{kind.lower()}"))
        for kind in kinds
    ]
    messages = [
        *asked(*parts),
        Message("assistant", tool_calls=(ToolCall("functions.f:0", "f", "{}"),)),
        Message("tool", tuple(parts), tool_call_id="functions.f:0"),
    ]
    prompt = ChatTemplate(Tokenizer(BYTE_TOKENS), "k2.5", MediaLimits()).render(messages)
    assert [item.grid for item in prompt.media] == [(1, 2, 4)] * 8
    assert prompt.text.count("<|media_begin|>image<|media_content|>") == 8
