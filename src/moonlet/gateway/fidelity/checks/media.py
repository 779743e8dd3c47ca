"""Images in messages: where the model sees, what has to be refused."""

import base64
import struct
import zlib
from typing import Any

from moonlet.gateway.fidelity.check import Group
from moonlet.gateway.fidelity.endpoint import CHAT, Endpoint, user
from moonlet.gateway.fidelity.errors import Failed, Skipped

group = Group("images")

SIDE = 56  # pixels: four patches of 14, merged two by two
UNREACHABLE = "http://127.0.0.1:9/picture.png"  # of the endpoint itself: nobody may be sent there


def png(red: int, green: int, blue: int) -> bytes:
    """A picture of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    row = b"\0" + bytes([red, green, blue]) * SIDE
    pixels = zlib.compress(row * SIDE)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


TEXT = {"type": "text", "text": "What is this?"}
RED, BLUE = data_url(png(255, 0, 0)), data_url(png(0, 0, 255))
BROKEN: dict[str, tuple[str, str]] = {
    "wrong-base64": ("an image that is no base64", "data:image/png;base64,@@@not-base64@@@"),
    "not-an-image": ("an image that is text", data_url(b"this is no picture at all")),
    "cut-off": ("an image that breaks off", data_url(png(1, 2, 3)[:60])),
    "empty": ("an image without a byte", "data:image/png;base64,"),
    "no-url": ("an image whose URL is none", "picture.png"),
}


async def _see(endpoint: Endpoint) -> None:
    """Raises Skipped where the model does not see, or does not say so and does not."""
    if endpoint.images is None:
        reply = await endpoint.client.send("POST", CHAT, endpoint.body([image(RED), TEXT]))
        if 400 <= reply.status < 500:
            raise Skipped(f"the endpoint does not say that it sees, and answered {reply.told}")
    elif not endpoint.images:
        raise Skipped("the model does not see")


@group.check("one", "one PNG by data URL, plain and streamed")
async def one(endpoint: Endpoint) -> None:
    await _see(endpoint)
    words = await endpoint.ask([TEXT])
    for stream in (False, True):
        seen = await endpoint.ask([image(RED), TEXT], stream=stream)
        if seen.prompt_tokens <= words.prompt_tokens:
            raise Failed(
                f"a prompt with an image has {seen.prompt_tokens} tokens, without it "
                f"{words.prompt_tokens}"
            )


@group.check("several", "three images in one message, and one more in a later one")
async def several(endpoint: Endpoint) -> None:
    await _see(endpoint)
    single = await endpoint.ask([image(RED), TEXT])
    three = await endpoint.ask([image(RED), TEXT, image(BLUE), image(RED)])
    if three.prompt_tokens <= single.prompt_tokens:
        raise Failed("three images take no more tokens than one")
    turns = [user([image(RED), TEXT]), {"role": "assistant", "content": "Red."}]
    await endpoint.ask(messages=[*turns, user([image(BLUE), TEXT])])


@group.check("bare-string", "an image_url that is a bare string", ("open", "kimi"))
async def bare_string(endpoint: Endpoint) -> None:
    await _see(endpoint)
    await endpoint.ask([{"type": "image_url", "image_url": RED}, TEXT])


@group.check("http-url", "an image at an http address that nobody may be sent to")
async def http_url(endpoint: Endpoint) -> None:
    await _see(endpoint)
    for stream in (False, True):
        body = endpoint.body([image(UNREACHABLE), TEXT], stream=stream)
        reply = await endpoint.send(body)
        if not (reply.status == 200 or 400 <= reply.status < 500):
            raise Failed(f"an http address was answered with {reply.told}, not with a clear 4xx")


async def _broken(endpoint: Endpoint, name: str) -> None:
    await _see(endpoint)
    what, url = BROKEN[name]
    for stream in (False, True):
        await endpoint.refused(what, messages=[user([image(url), TEXT])], stream=stream)


for _name in BROKEN:
    group.add(_name, BROKEN[_name][0], lambda endpoint, name=_name: _broken(endpoint, name))


@group.check("blind", "an image for a model that does not see")
async def blind(endpoint: Endpoint) -> None:
    if endpoint.images is not False:
        raise Skipped("the model sees, or does not say that it does not")
    await endpoint.refused("an image for a blind model", messages=[user([image(RED), TEXT])])
