"""`moonlet serve`: when it says that it is ready it is, and it leaves without a trace."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from moonlet.chat.fake import FakeProvider, says
from moonlet.cli import serve
from moonlet.cli.main import main
from moonlet.cli.serve import bind, request
from moonlet.server import create_app

FAKE = """
import sys
import asyncio
from moonlet.chat.fake import FakeProvider, says
from moonlet.cli import serve
from moonlet.cli.main import main
serve.load_provider = lambda *_: FakeProvider(SCRIPT)
serve.SHUTDOWN_S = 0
sys.exit(main(["serve", "--port", "0", *sys.argv[1:]]))
"""


@contextmanager
def serving(
    *flags: str, script: str = 'says("632")', grace: int = 0
) -> Iterator[subprocess.Popen[str]]:
    code = FAKE.replace("SCRIPT", script).replace("SHUTDOWN_S = 0", f"SHUTDOWN_S = {grace}")
    with subprocess.Popen(
        [sys.executable, "-c", code, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ready_document(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    text = ""
    while "}" not in text.splitlines()[-1:]:
        text += process.stdout.readline()
    return json.loads(text)


def test_the_document_comes_when_the_server_answers_and_ctrl_c_ends_it() -> None:
    with serving("--json") as process:
        ready = ready_document(process)
        assert ready["model"] == "fake"
        with urllib.request.urlopen(f"{ready['url']}/models") as response:
            assert json.load(response)["data"][0]["id"] == "fake"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "")


ENDLESS = '[*says("a")[:1], asyncio.Event()]'


@contextmanager
def asking(url: str, *, stream: bool) -> Iterator[http.client.HTTPConnection]:
    """A connection on which a question was asked, of which the answer is still to be read."""
    parts = urlsplit(url)
    body = {"model": "fake", "stream": stream, "messages": [{"role": "user", "content": "x"}]}
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    with closing(connection):
        connection.request("POST", f"{parts.path}/chat/completions", json.dumps(body))
        yield connection


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stream_that_is_cut_off_says_so(stop: signal.Signals, status: int) -> None:
    with (
        serving("--json", script=ENDLESS) as process,
        asking(ready_document(process)["url"], stream=True) as connection,
    ):
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        process.send_signal(stop)
        lines = response.read().split(b"\n\n")  # raises if the body is not ended properly
        assert json.loads(lines[-2].removeprefix(b"data: "))["error"]["type"] == (
            "server_unavailable"
        )
        _, err = process.communicate()
    assert (process.returncode, err) == (status, "")


def test_an_answer_that_is_cut_off_is_a_503() -> None:
    with serving("--json", script=ENDLESS) as process:
        url = ready_document(process)["url"]
        with asking(url, stream=False) as connection:
            metrics = url.removesuffix("/v1") + "/metrics"
            while b"num_requests_running 1.0" not in urllib.request.urlopen(metrics).read():
                pass
            process.send_signal(signal.SIGINT)
            response = connection.getresponse()
            assert (response.status, response.headers["retry-after"]) == (503, "5")
            assert json.load(response)["error"]["type"] == "server_unavailable"
        _, err = process.communicate()
    assert (process.returncode, err) == (130, "")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_waits_for_nothing(stop: signal.Signals) -> None:
    with serving("--json", script=ENDLESS, grace=60) as process:
        ready = ready_document(process)
        with asking(ready["url"], stream=True) as connection:
            assert connection.getresponse().readline().startswith(b"data: ")
            process.send_signal(stop)
            port = int(ready["url"].split(":")[2].split("/")[0])
            while listens(port):  # until it has begun to shut down
                pass
            process.send_signal(stop)
            out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + stop, "", "")


def test_a_server_in_a_hurry_does_not_lose_its_socket() -> None:
    """A second signal closes `sock` while the server still shuts down; its thread must not fail."""
    app = create_app(FakeProvider(says("ok")))
    with bind("127.0.0.1", 0) as sock, serve.answering(app, sock):
        sock.close()


SLOW = """
class Slow(FakeProvider):
    async def stream(self, request):
        for event in self.script:
            yield event
            while not os.path.exists(GATE):
                await asyncio.sleep(0.01)
"""


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionError:
        return False
    return True


def test_a_running_answer_is_finished_after_ctrl_c(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = "import os\n" + FAKE.replace("FakeProvider(SCRIPT)", "Slow(says('a b'))")
    code = code.replace("serve.SHUTDOWN_S = 0", SLOW.replace("GATE", repr(str(gate))))
    command = [sys.executable, "-c", code, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        ready = ready_document(process)
        body = {"model": "fake", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        url = f"{ready['url']}/chat/completions"
        with urllib.request.urlopen(url, json.dumps(body).encode()) as response:
            assert response.readline().startswith(b"data: ")
            process.send_signal(signal.SIGINT)
            port = int(ready["url"].split(":")[2].split("/")[0])
            while listens(port):  # until it has begun to shut down
                pass
            gate.touch()
            assert response.read().endswith(b"data: [DONE]\n\n")
        assert process.wait() == 130


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_printed_request_can_be_pasted() -> None:
    with serving() as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0].startswith("fake answers at http://127.0.0.1:")
        done = subprocess.run(lines[2], shell=True, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"] == "632"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_printed_request_works_with_keys_and_openais_rules() -> None:
    with serving("--compat", "openai", "--api-key", "sk-1") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        assert lines[2] == "MOONLET_API_KEY must hold one of the keys for this:\n"
        assert "sk-1" not in "".join(lines)
        done = subprocess.run(
            lines[3], shell=True, capture_output=True, text=True, check=True,
            env={**os.environ, "MOONLET_API_KEY": "sk-1"},
        )  # fmt: skip
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "632"


def test_the_request_is_safe_to_paste() -> None:
    provider = FakeProvider(says("ok"))
    assert '"thinking": {"type": "enabled"}' in request("http://x", provider)
    assert "thinking" not in request("http://x", provider, switch=False)
    hostile = "a'; echo oops; '"
    provider.card = type(provider.card)(hostile, 0, 10)
    done = subprocess.run(
        ["sh", "-c", request("http://x", provider).replace("curl", "printf '%s\\n'", 1)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1])["model"] == hostile


def test_a_port_in_use_is_told_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "load_provider", lambda *_: pytest.fail("it was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in error
    assert "--port" in error


@pytest.mark.parametrize(
    "flags",
    [["--port", "70000"], ["--port", "-1"], ["--host", "no.such.host.invalid"], ["--host", "."]],
)
def test_addresses_that_do_not_exist(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "load_provider", lambda *_: pytest.fail("it was loaded"))
    assert main(["serve", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_port_is_ours_from_the_first_moment() -> None:
    with bind("127.0.0.1", 0) as ours, socket.socket() as theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="Address already in use"):
            theirs.bind(ours.getsockname())


def test_no_token_waits_for_an_acknowledgement() -> None:
    """Nagle's algorithm is off on what is accepted."""

    async def nodelay(sock: socket.socket) -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(accept, sock=sock):
            _, writer = await asyncio.open_connection(*sock.getsockname())
            try:
                return await accepted
            finally:
                writer.close()
                await writer.wait_closed()

    with bind("127.0.0.1", 0) as ours:
        assert asyncio.run(nodelay(ours))


LOADING = """
import sys
import threading
from moonlet.cli import serve
from moonlet.cli.main import main
from moonlet.errors import CheckpointError
def load(*_):
    print("loading", flush=True)
    OUTCOME
real = serve.bind
def bind(host, port):
    sock = real(host, port)
    print(sock.getsockname()[1], flush=True)
    return sock
serve.bind = bind
serve.load_provider = load
sys.exit(main(["serve", "--port", "0"]))
"""


@contextmanager
def loading(outcome: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server whose model is being loaded, and its address."""
    with subprocess.Popen(
        [sys.executable, "-c", LOADING.replace("OUTCOME", outcome)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            assert process.stdout.readline() == "loading\n"
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_while_the_model_is_loaded(stop: signal.Signals) -> None:
    with loading("threading.Event().wait()") as (process, url):
        with urllib.request.urlopen(f"{url}/health") as response:
            assert json.load(response) == {"status": "ok"}
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}/health/ready")
        assert caught.value.code == 503
        caught.value.close()
        process.send_signal(stop)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (128 + stop, "", "")


def test_a_model_that_cannot_be_loaded_ends_the_server() -> None:
    with loading("sys.stdin.readline(); raise CheckpointError('a bad file')") as (process, url):
        with urllib.request.urlopen(f"{url}/health") as response:
            assert response.status == 200
        out, err = process.communicate("\n")
    assert (process.returncode, out, err) == (2, "", "moonlet: a bad file\n")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max-waiting", "0"], "--max-waiting is 0"),
        (["--cors", "not-an-origin"], "--cors not-an-origin is not an origin"),
        (["--cors", "https://a.example/"], "is not an origin"),
        (["--cache-gb", "3"], "--cache-gb needs --cache-dir"),
        (["--api-key", "a b"], "visible ASCII"),
        (["--files", "/dev/null"], "--files /dev/null cannot be used"),
    ],
)
def test_settings_that_cannot_be(
    flags: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "load_provider", lambda *_: pytest.fail("it was loaded"))
    assert main(["serve", "--port", "0", *flags]) == 2
    assert says in capsys.readouterr().err


def test_flags_reach_the_server() -> None:
    with serving("--json", "--compat", "kimi", "--api-key", "sk-1", "--cors", "*") as process:
        ready = ready_document(process)
        body = {"model": "fake", "top_p": 0.5, "messages": [{"role": "user", "content": "x"}]}
        url = f"{ready['url']}/chat/completions"
        headers = {"Authorization": "Bearer sk-1", "Origin": "https://a.example"}
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers))
        with caught.value as answer:
            assert answer.code == 400
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "invalid top_p" in json.load(answer)["error"]["message"]
        with pytest.raises(urllib.error.HTTPError, match="401") as caught:
            urllib.request.urlopen(url, json.dumps(body).encode())
        caught.value.close()


def test_keys_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONLET_API_KEYS", "sk-1, sk-2,")
    with serving("--json") as process:
        ready = ready_document(process)
        for key, allowed in (("sk-2", True), ("sk-3", False)):
            asked = urllib.request.Request(f"{ready['url']}/models", headers={"x-api-key": key})
            if allowed:
                with urllib.request.urlopen(asked) as response:
                    assert response.status == 200
            else:
                with pytest.raises(urllib.error.HTTPError, match="401") as caught:
                    urllib.request.urlopen(asked)
                caught.value.close()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("model.gguf", "no file model.gguf"),
        ("random:tiny", "random weights can only be inspected"),
        ("tiny", "a shape without weights"),
    ],
)
def test_models_that_cannot_be_served(
    model: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", model, "--port", "0"]) == 2
    assert says in capsys.readouterr().err
