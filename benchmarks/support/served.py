"""`moonlet serve` in a process of its own, and a server for random weights that have no vocabulary.

    python -m support.served FILE [CACHE_FOLDER]      the second, which tells its port in a line of JSON

Its vocabulary has the 256 bytes, so that a text has as many tokens as bytes, Kimi's marks, and between them words
that no text contains, so that every token the weights choose shows in the stream. Greedy: what random weights
say is noise, and drawing from noise would measure the sampler.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moonlet.engine.provider import LocalProvider

HERE = Path(__file__).parents[1]
MODEL = "random"
CACHE_BYTES = 20 * 10**9


@dataclass
class Served:
    """A server that answers at `port` of this machine."""

    port: int
    model: str
    pid: int

    def resident_bytes(self) -> int:
        """What it holds of the memory; 0 where the system does not tell."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, ValueError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def moonlet_serve(*arguments: str) -> Iterator[Served]:
    """The command, on a free port."""
    yield from _running([sys.executable, "-m", "moonlet.cli.main", "serve", "--json", "--port", "0", *arguments])  # fmt: skip


@contextmanager
def random_weights(file: Path, cache: Path | None = None) -> Iterator[Served]:
    """A server for a GGUF of random weights; `cache`: where prompts outlive it."""
    yield from _running([sys.executable, "-m", "support.served", str(file), *([str(cache)] if cache else [])])  # fmt: skip


def _running(command: list[str]) -> Iterator[Served]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE) as child:
        assert child.stdout is not None
        try:
            document = ""
            while line := child.stdout.readline():  # one document, over one line or many
                document += line
                try:
                    told = json.loads(document)
                    break
                except ValueError:
                    continue
            else:
                raise RuntimeError(f"{' '.join(command)} ended before it answered")
            yield Served(int(told["url"].rsplit(":", 1)[1].split("/")[0]), told["model"], child.pid)
        finally:
            child.terminate()
            child.wait()


def main() -> None:
    from moonlet.cli.serve import answering, bind, wait
    from moonlet.server import create_app

    file = Path(sys.argv[1])
    provider = _provider(file, Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    try:
        with bind("127.0.0.1", 0) as sock, answering(create_app(provider), sock) as server:
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            print(json.dumps({"url": url, "model": MODEL}), flush=True)
            wait(server)
    except KeyboardInterrupt:
        pass
    finally:
        provider.close()


def _provider(file: Path, cache: Path | None) -> "LocalProvider":
    from moonlet.chat.jinja import load_template
    from moonlet.chat.provider import ModelCard
    from moonlet.chat.tokenizer import BYTE_TOKENS, NUM_SPECIAL, Tokenizer, write_vocabulary
    from moonlet.engine.disk import DiskTier
    from moonlet.engine.engine import Engine
    from moonlet.engine.local import fingerprint
    from moonlet.engine.provider import LocalProvider, SamplingDefaults
    from moonlet.engine.sampler import SamplingParams
    from moonlet.model import load_packed

    model = load_packed(file)
    words = model.config.vocab_size - len(BYTE_TOKENS) - NUM_SPECIAL
    vocabulary = [*BYTE_TOKENS, *(f"~{number:06x}~".encode() for number in range(words))]
    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(Path(folder) / "tiktoken.model", vocabulary)
        tokenizer = Tokenizer.from_folder(Path(folder))
        template = load_template(Path(folder), tokenizer, model.config.max_position_embeddings)
    disk = DiskTier(cache, fingerprint(file, model.config), CACHE_BYTES) if cache else None
    engine = Engine(model, tokenizer.end_ids, disk=disk)
    card = ModelCard(MODEL, 0, engine.max_seq_len)
    greedy = SamplingParams(0.0)
    return LocalProvider(engine, tokenizer, template, card, SamplingDefaults(greedy, greedy))


if __name__ == "__main__":
    main()
