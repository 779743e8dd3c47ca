"""Films and photographs through the API: into the chunks, timestamps and tokens that K2.5's processor makes.

What is expected is worked out here from the size and the length of each file, by the published rules, in
whole numbers and fractions; nothing of it comes from the code that is tested.
"""

import base64
import io
import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from PIL import Image

from moonlet.chat.sources import MediaAccess
from moonlet.engine import load
from moonlet.server import create_app
from moonlet.server.file_store import FileStore
from tests.chat.films import film
from tests.server.running import Running, serving
from tests.shared import SHARED, needs_shared
from tests.tiny_checkpoint import write_tiny_checkpoint

PHOTOS = SHARED / "data" / "images" / "photos"
FILMS = SHARED / "data" / "video"
K25 = {
    "patch_size": 14, "merge_kernel_size": 2, "in_patch_limit": 16384, "in_patch_limit_each_frame": 4096,
    "patch_limit_on_one_side": 512, "temporal_merge_kernel_size": 4, "sample_fps": 2.0,
    "timestamp_mode": "hh:mm:ss.fff", "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
Part = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Random weights behind K2.5's own rules for images."""
    store = FileStore(None)
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    (folder / "preprocessor_config.json").write_text(json.dumps({"media_proc_cfg": K25}))
    provider = load(folder, "tiny", access=MediaAccess(resolve_file=store.resolve))
    with serving(create_app(provider, files=store)) as running:
        yield running
    provider.close()


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


# The published rules


def tokens(width: int, height: int, limit: int = 16384) -> int:
    """Of one picture: shrunk to `limit` patches of 14 x 14 and to 512 on a side, padded to blocks of 28."""
    patches = max(1, width // 14) * max(1, height // 14)
    scale = min(1, math.sqrt(limit / patches), 512 * 14 / width, 512 * 14 / height)
    columns, rows = (math.ceil(max(1, int(side * scale)) / 28) for side in (width, height))
    return columns * rows


def chunks(frames: int, fps: int, width: int, height: int) -> list[tuple[str, int]]:
    """Of one film the chunks of up to four sampled frames: the time of the first, and the tokens."""
    wanted = max(round(Fraction(frames * min(2, fps), fps)), 1)
    steps = max(wanted - 1, 1)
    chosen = [round(Fraction((frames - 1) * i, steps)) for i in range(wanted)]  # half to even
    stamps = []
    for first in chosen[::4]:
        milliseconds = first * 1000 // fps
        minutes, seconds = divmod(milliseconds // 1000, 60)
        stamps.append(f"00:{minutes:02}:{seconds:02}.{milliseconds % 1000:03}")
    return [(stamp, tokens(width, height, 4096)) for stamp in stamps]


def marked(kind: str, count: int) -> str:
    return f"<|media_begin|>{kind}<|media_content|>{'<|media_pad|>' * count}<|media_end|>"


def film_text(expected: list[tuple[str, int]]) -> str:
    return "".join(stamp + marked("video", count) for stamp, count in expected) + "\n"


def asked(content: str) -> str:
    """The whole prompt of one message of the user."""
    turn = f"<|im_user|>user<|im_middle|>{content}<|im_end|>"
    return f"{turn}<|im_assistant|>assistant<|im_middle|><think>"


# The other side


def data_part(data: bytes, kind: str) -> Part:
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    name = f"{kind.split('/')[0]}_url"
    return {"type": name, name: {"url": url}}


def uploaded_part(client: OpenAI, data: bytes, purpose: Any) -> Part:
    file = client.files.create(file=("it", data), purpose=purpose)
    return {"type": f"{purpose}_url", f"{purpose}_url": {"url": f"ms://{file.id}"}}


def said(text: str) -> Part:
    return {"type": "text", "text": text}


def prompt_of(server: Running, parts: list[Part]) -> tuple[int, str]:
    """The tokens of a message of the user, and what they spell."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": parts}]}
    status, told = server.post(json.dumps(body).encode(), "/tokenize")
    assert status == 200, told
    status, text = server.post(json.dumps({"tokens": told["tokens"]}).encode(), "/detokenize")
    assert (status, told["count"]) == (200, len(told["tokens"]))
    return told["count"], text["prompt"]


def answered(client: OpenAI, parts: list[Part]) -> tuple[int, str]:
    """The prompt's tokens as the answer counts them, and the answer."""
    answer: Any = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}], max_tokens=4, temperature=0  # type: ignore[arg-type]
    )  # fmt: skip
    message = answer.choices[0].message
    return answer.usage.prompt_tokens, message.to_json()


def check(
    server: Running, client: OpenAI, parts: list[Part], content: str, pads: int, other: int
) -> str:
    """Holds a prompt to `content`: `pads` positions of media, `other` tokens. Returns the answer."""
    count, text = prompt_of(server, parts)
    assert text == asked(content)
    assert text.count("<|media_pad|>") == pads
    used, answer = answered(client, parts)
    assert used == count == pads + other
    return answer


# Around a message: <|im_user|> user <|im_middle|> ... <|im_end|> <|im_assistant|> assistant <|im_middle|> <think>
AROUND = 1 + 4 + 1 + 1 + 1 + 9 + 1 + 1
IMAGE = 1 + len("image") + 1 + 1 + len("\n")
CHUNK = len("00:00:00.000") + 1 + len("video") + 1 + 1


@needs_shared
@pytest.mark.parametrize(
    ("name", "facts", "stamps", "each"),
    [
        # 132 frames at 25 a second are 11 at 2 a second; 1280 x 720 has 91 x 51 patches, shrinks to 1202 x 676.
        pytest.param(
            "bigbuckbunny",
            (132, 25, 1280, 720),
            ["00.000", "02.080", "04.200"],
            43 * 25,
            marks=pytest.mark.slow,
        ),
        ("realshort", (36, 30, 320, 240), ["00.000"], 12 * 9),
    ],
)
def test_a_film(
    server: Running, client: OpenAI, name: str, facts: Any, stamps: list[str], each: int
) -> None:
    expected = chunks(*facts)
    assert expected == [(f"00:00:{stamp}", each) for stamp in stamps]
    data = (FILMS / f"{name}.mp4").read_bytes()
    answers = [
        check(
            server,
            client,
            [said("What is it?"), part],
            "What is it?" + film_text(expected),
            pads=len(stamps) * each,
            other=AROUND + len("What is it?") + len(stamps) * CHUNK + 1,
        )
        for part in (data_part(data, "video/mp4"), uploaded_part(client, data, "video"))
    ]
    assert answers[0] == answers[1]


def test_a_film_made_here(server: Running, client: OpenAI) -> None:
    expected = chunks(60, 25, 64, 48)
    assert expected == [("00:00:00.000", 3 * 2), ("00:00:02.360", 3 * 2)]
    data = film(count=60, fps=25, size=(64, 48))
    for part in (data_part(data, "video/mp4"), uploaded_part(client, data, "video")):
        text = film_text(expected)
        check(server, client, [part], text, pads=12, other=AROUND + 2 * CHUNK + 1)


@pytest.mark.parametrize(("count", "fps"), [(1, 25), (3, 2), (4, 1), (9, 1), (37, 30), (100, 24)])
def test_films_of_any_length(server: Running, count: int, fps: int) -> None:
    part = data_part(film(count=count, fps=fps), "video/mp4")
    assert prompt_of(server, [part])[1] == asked(film_text(chunks(count, fps, 64, 48)))


def photo(name: str) -> tuple[Part, int]:
    path: Path = PHOTOS / f"{name}.png"
    with Image.open(path) as image:
        return data_part(path.read_bytes(), "image/png"), tokens(*image.size)


@needs_shared
def test_a_photograph(server: Running, client: OpenAI) -> None:
    part, count = photo("chelsea")  # 451 x 300
    assert count == 17 * 11
    text = "A cat?" + marked("image", count) + "\n"
    check(server, client, [said("A cat?"), part], text, count, AROUND + 6 + IMAGE)


@needs_shared
def test_four_photographs(server: Running, client: OpenAI) -> None:
    photos = [photo(name) for name in ("chelsea", "coffee", "astronaut", "kodim03")]
    counts = [count for _, count in photos]
    assert counts == [17 * 11, 22 * 15, 19 * 19, 28 * 19]
    text = "".join(marked("image", count) + "\n" for count in counts) + "Compare them."
    parts = [*(part for part, _ in photos), said("Compare them.")]
    check(server, client, parts, text, sum(counts), AROUND + 4 * IMAGE + 13)


@pytest.mark.parametrize(
    ("size", "count"),
    [((1, 1), 1), ((28, 29), 2), ((1920, 1080), 2691), ((3000, 3000), 4225), ((8000, 20), 256)],
)
def test_pictures_of_any_size(server: Running, size: tuple[int, int], count: int) -> None:
    assert tokens(*size) == count
    data = io.BytesIO()
    Image.new("RGB", size, "teal").save(data, "PNG")
    content = [data_part(data.getvalue(), "image/png")]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    status, told = server.post(json.dumps(body).encode(), "/v1/tokenizers/estimate-token-count")
    assert (status, told["data"]["total_tokens"]) == (200, count + AROUND + IMAGE)
