"""From MODEL on the command line to answers: a random checkpoint in the published layout, all the way."""

import base64
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from openai import OpenAI
from PIL import Image

from moonlet.chat.fake import FakeProvider, says
from moonlet.checkpoint.convert import Conversion
from moonlet.checkpoint.parts import Wish
from moonlet.cli.main import main
from moonlet.cli.models import describe, load_provider
from moonlet.config import preset
from moonlet.engine import LocalProvider
from moonlet.model.packed_file import to_packed
from moonlet.server import create_app
from tests.server.running import serving
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-random")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[OpenAI]:
    provider = load_provider(str(folder))
    assert isinstance(provider, LocalProvider)
    with serving(create_app(provider)) as server, server.client() as client:
        yield client
    provider.close()


def test_the_model_is_named_after_its_folder(client: OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == "tiny-random"
    assert (model.model_extra or {})["context_length"] == 8192
    assert (model.model_extra or {})["supports_image_in"] is True


def test_a_seed_repeats_an_answer_plain_and_streamed(client: OpenAI) -> None:
    request = {"model": "tiny-random", "max_tokens": 12, "seed": 7}
    plain = client.chat.completions.create(messages=[{"role": "user", "content": "hi"}], **request)
    stream = client.chat.completions.create(
        messages=[{"role": "user", "content": "hi"}], stream=True, **request
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    message = plain.choices[0].message
    assert "".join(delta.content or "" for delta in deltas) == message.content
    reasoning = [(delta.model_extra or {}).get("reasoning_content", "") for delta in deltas]
    assert "".join(reasoning) == (message.model_extra or {}).get("reasoning_content", "")
    assert plain.usage is not None
    assert plain.usage.completion_tokens <= 12


def test_an_image_takes_its_tokens(client: OpenAI) -> None:
    file = io.BytesIO()
    Image.new("RGB", (56, 28), "red").save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

    def prompt_tokens(*images: str) -> int:
        parts = [{"type": "image_url", "image_url": {"url": image}} for image in images]
        content = [*parts, {"type": "text", "text": "what is it?"}]
        answer = client.chat.completions.create(
            model="tiny-random",
            max_tokens=1,
            messages=[{"role": "user", "content": content}],  # type: ignore[arg-type, list-item]
        )
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    # 56 x 28 pixels are 4 x 2 patches, which merge into 2 x 1 tokens; the marks around come on top.
    assert prompt_tokens(url, url) - prompt_tokens(url) == prompt_tokens(url) - prompt_tokens()
    assert prompt_tokens(url) - prompt_tokens() > 2


def test_chat_answers_from_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n")))
    assert main(["chat", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    [turn] = json.loads(out)["turns"]
    assert turn["usage"]["completion_tokens"] > 0
    assert err.startswith("loading ")


def test_a_folder_may_be_named_by_a_dot(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main(["chat", ".", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "tiny-random", "turns": []}


@pytest.mark.parametrize(
    ("flags", "wanted"), [([], "Q8_0"), (["--keep-floats"], "stored")], ids=["default", "kept"]
)
@pytest.mark.parametrize("model", [[], ["FOLDER"]], ids=["embedded", "folder"])
def test_floats_beside_quantized_weights_can_be_kept(
    model: list[str], flags: list[str], wanted: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(path: Path, name: str, floats: str, *_: object) -> FakeProvider:
        asked.append(floats)
        return FakeProvider(says("hi"))

    monkeypatch.setattr("moonlet.engine.load", load)
    monkeypatch.setattr("moonlet.cli.serve.wait", lambda *_: None)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    argv = [str(folder) for _ in model]
    assert main(["chat", *argv, *flags]) == 0
    assert main(["serve", *argv, "--port", "0", *flags]) == 0
    assert asked == [wanted, wanted]


def test_where_floats_cannot_be_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to_packed(Conversion(folder, tmp_path / "packed", Wish()), 1, lambda done, total: None)
    for target, says_why in ((tmp_path / "packed", "pack it again"), ("http://x/v1", "a URL")):
        assert main(["chat", str(target), "--keep-floats"]) == 2
        assert says_why in capsys.readouterr().err.splitlines()[-1]


def test_of_a_repository_only_the_config_is_fetched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(*args: str) -> str:
        asked.append(args)
        return str(folder / "config.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    described = describe("some/model")
    assert (described.name, described.weights) == ("some/model", None)
    assert described.config == preset("tiny")
    assert asked == [("some/model", "config.json")]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (LocalEntryNotFoundError("check your connection\nmany more lines"), "cannot be reached"),
        (HfHubHTTPError.__bases__[0]("read timed out\nmore"), ": read timed out"),
    ],
)
def test_a_repository_that_cannot_be_reached(
    error: Exception,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fetch(*_args: str) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    for command in ("inspect", "chat"):
        assert main([command, "some/model"]) == 2
        progress, message = capsys.readouterr().err.splitlines()
        assert progress.endswith("some/model ...")
        assert says in message


def test_a_broken_folder_is_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "tiktoken.model"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for command in (["chat"], ["serve", "--port", "0"]):
        assert main([*command, str(tmp_path)]) == 2
        assert "Traceback" not in capsys.readouterr().err
