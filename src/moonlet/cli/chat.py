"""`moonlet chat [MODEL or URL]`: a conversation in the terminal.

On a terminal: thinking dim, answers as they come, commands with a slash. Piped: one question per
line, plain text out, or one JSON document with `--json`; the first failure ends it.
"""

import base64
import mimetypes
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlet.chat.provider import Finish, ReasoningDelta, TextDelta
from moonlet.cli.console import UsageError, add_json_flag, print_json, printable
from moonlet.cli.models import add_model_options, load_provider
from moonlet.cli.sources import LocalSource, RemoteSource, Source
from moonlet.errors import MoonletError

if TYPE_CHECKING:
    from rich.console import Console

HELP = """/image PATH  attach an image to the next question
/think       think before answering
/instant     answer at once
/clear       forget the conversation
/exit        leave (or Ctrl-D); Ctrl-C stops an answer"""


def add_parser(commands: Any) -> None:
    parser: ArgumentParser = commands.add_parser(
        "chat",
        help="chat in the terminal",
        description="Chat with a model on this machine or behind a URL.",
        epilog=f"While chatting:\n{HELP}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "target",
        nargs="?",
        metavar="MODEL_OR_URL",
        help="folder, .gguf file, org/name, or a URL such as http://127.0.0.1:8000/v1 (default: the embedded model)",
    )
    parser.add_argument("--model", metavar="NAME", help="which of the models behind the URL")
    add_model_options(parser)
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    from rich.console import Console

    with closing(open_source(args.target, args.model, args.keep_floats)) as source:
        interactive = sys.stdin.isatty() and not args.json
        chat = Chat(source, Console(highlight=False, quiet=args.json), interactive)
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(encoding=None if interactive else "utf-8", errors="replace")
        if interactive:
            chat.talk()
        else:
            chat.read(sys.stdin)
    if args.json:
        print_json({"model": source.name, "turns": chat.turns})
    return 0


def open_source(target: str | None, model: str | None, keep_floats: bool = False) -> Source:
    """The endpoint or the local model that the command line names."""
    if target is not None and target.startswith(("http://", "https://")):
        if keep_floats:
            raise UsageError(
                "--keep-floats is for a model on this machine, and there is a URL here"
            )
        return RemoteSource(target, model)
    if model is not None:
        raise UsageError("--model chooses among the models behind a URL, and there is no URL here")
    return LocalSource(load_provider(target, keep_floats))


@dataclass
class Chat:
    """One conversation: the messages so far, and how the next answer shall be."""

    source: Source
    console: "Console"
    interactive: bool
    read_line: Callable[[str], str] = input
    thinking: bool = True
    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)

    def talk(self) -> None:
        """Until /exit or Ctrl-D. A failure is shown and the conversation goes on."""
        with suppress(ImportError):  # not every build of Python has it
            import readline  # noqa: F401  (its import gives `input` history and editing)

        self.console.print(f"{self.source.name}   /help for commands, Ctrl-D to leave", style="dim")
        while True:
            try:
                if self.handle(self.read_line("> ")):
                    return
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:
                self.console.print()
            except MoonletError as error:
                self.console.print(printable(str(error)), style="red", markup=False)

    def read(self, lines: Iterable[str]) -> None:
        """Every line of a file or pipe. Raises MoonletError at the first failure."""
        for line in lines:
            if self.handle(line):
                return

    def handle(self, line: str) -> bool:
        """Answers a question or obeys a command; True when it was time to leave."""
        line = printable(line.strip())
        command, _, rest = line.partition(" ")
        match command:
            case "":
                pass
            case "/exit":
                return True
            case "/help":
                self.console.print(HELP, markup=False)
            case "/clear":
                self.messages, self.images = [], []
                self._note("forgotten")
            case "/think" | "/instant":
                self.thinking = command == "/think"
                self._note("thinking" if self.thinking else "answering at once")
            case "/image":
                self.images.append(image_part(rest.strip()))
                self._note(f"{len(self.images)} for the next question")
            case _ if command.startswith("/") and command[1:].isalpha():
                raise UsageError(f"no command {command}; /help lists them")
            case _:
                self.ask(line)
        return False

    def ask(self, question: str) -> None:
        """One turn. It is forgotten when it fails, and kept as far as it came on Ctrl-C."""
        content = [*self.images, {"type": "text", "text": question}] if self.images else question
        self.images = []
        asked = [*self.messages, {"role": "user", "content": content}]
        turn: dict[str, Any] = {"question": question, "reasoning": "", "answer": ""}
        try:
            self._answer(asked, turn)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            self._show(" (stopped)", dim=True)
        self._show("\n")
        if turn["answer"]:
            message = {"content": turn["answer"], "reasoning_content": turn["reasoning"]}
            self.messages = [*asked, {"role": "assistant", **message}]
        self.turns.append(turn)

    def _answer(self, asked: list[dict[str, Any]], turn: dict[str, Any]) -> None:
        """Shows one answer as it comes and writes it down in `turn`."""
        with closing(self.source.answer(asked, self.thinking)) as events:
            for event in events:
                match event:
                    case ReasoningDelta():
                        if self.interactive:  # a pipe gets the answers alone
                            self._show(event.text, dim=True)
                        turn["reasoning"] += event.text
                    case TextDelta():
                        if self.interactive and turn["reasoning"] and not turn["answer"]:
                            self._show("\n\n")
                        self._show(event.text)
                        turn["answer"] += event.text
                    case Finish():
                        turn |= {"finish_reason": event.reason, "usage": asdict(event.usage)}
                        if event.reason == "length":
                            self._show(" (cut off: the token limit is reached)", dim=True)

    def _note(self, text: str) -> None:
        """What a command did; a pipe wants answers only."""
        if self.interactive:
            self._show(f"{text}\n", dim=True)

    def _show(self, text: str, dim: bool = False) -> None:
        style = "dim" if dim else None
        text = printable(text)
        self.console.print(text, end="", style=style, markup=False, emoji=False, soft_wrap=True)


def image_part(path: str) -> dict[str, Any]:
    """The content part of an image file. Raises UsageError when it cannot be read."""
    if not path:
        raise UsageError("/image needs the path of an image file, as in /image digits.png")
    kind = mimetypes.guess_type(path)[0] or ""
    if not kind.startswith("image/"):
        raise UsageError(
            f"{path!r} does not look like an image file; its name should end in .png or .jpg"
        )
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
