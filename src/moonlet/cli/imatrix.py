"""`moonlet imatrix MODEL TEXT -o FILE`: which columns of the weights a text makes matter.

The file, in llama.cpp's form, goes to `moonlet convert --imatrix` or to llama.cpp's own quantizer.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlet.cli.console import UsageError, add_json_flag, busy, print_json, printable
from moonlet.cli.convert import progress_bar, source_path

if TYPE_CHECKING:
    from moonlet.config import ModelConfig
    from moonlet.model.importance import Squares

CHUNK = 512  # tokens that see each other, as in llama.cpp
LARGEST_TEXT = 64 << 20


def add_parser(commands: Any) -> None:
    parser: ArgumentParser = commands.add_parser(
        "imatrix",
        help="importance of weights, from a text",
        description="Run a text through a model and write down how much each column of its weights "
        "matters, for moonlet convert --imatrix.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder, .gguf file, org/name, or nano")
    parser.add_argument("text", metavar="TEXT", type=Path, help="a text file of some 100 KB")
    parser.add_argument("-o", "--out", type=Path, required=True, help="file to write")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    text = read_text(args.text)
    with busy(f"loading {args.model}"):
        from moonlet.checkpoint.imatrix import write_imatrix
        from moonlet.engine.local import compute_type
        from moonlet.model import load_model
        from moonlet.model.importance import Squares, collect

        path = source_path(args.model)
        ids = encode(path, text)
        model = load_model(path)
        dtype = compute_type(model.config)
        model = model if dtype is None else model.to(dtype)
    size = min(CHUNK, model.config.max_position_embeddings)
    chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
    if not chunks:
        raise UsageError(f"{args.text} is empty; give a text like those the model shall work on")
    squares = Squares()
    with progress_bar(args.out.name) as progress:
        for number, chunk in enumerate(chunks, start=1):
            collect(model, chunk, squares)
            progress(min(number * size, len(ids)), len(ids))
    statistics = as_gguf(squares, model.config)
    write_imatrix(args.out, statistics, args.text.name, len(chunks), size)
    idle = sum(int((counts == 0).sum()) for _, counts in statistics.values())
    if args.json:
        report = {"file": str(args.out), "tokens": len(ids), "tensors": len(statistics)}
        print_json(report | {"matrices_never_asked": idle})
    else:
        print(printable(f"wrote {args.out}: {len(statistics)} tensors over {len(ids)} tokens"))
        if idle:
            print(
                f"{idle} matrices of experts were never asked; a longer text reaches more of them"
            )
    return 0


def read_text(path: Path) -> str:
    """The whole file. Raises UsageError."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_TEXT:
            raise UsageError(f"{path} is not a text file of at most {LARGEST_TEXT >> 20} MB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path} as UTF-8 text: {error}") from error


def encode(path: Path, text: str) -> list[int]:
    """The text in the model's own tokens."""
    from moonlet.chat.tokenizer import Tokenizer
    from moonlet.checkpoint import GgufCheckpoint, is_gguf

    if is_gguf(path):
        return Tokenizer(*GgufCheckpoint(path).vocabulary()).encode(text)
    return Tokenizer.from_folder(path).encode(text)


def as_gguf(squares: "Squares", config: "ModelConfig") -> dict[str, tuple[Any, Any]]:
    """The sums and counts by the names of GGUF tensors."""
    from moonlet.config.gguf_tensors import gguf_name

    found: dict[str, tuple[Any, Any]] = {}
    for (name, block), (sums, counts) in squares.found.items():
        stored = gguf_name(name)
        if block is not None:
            stored = stored.replace("gate_up", block)
        # The value half of kv_b sees the latent; for the key half nothing is known.
        stored = stored.replace("kv_b", "v_b")
        found[stored] = (sums.reshape(len(counts), -1).numpy(), counts.numpy())
    return found
