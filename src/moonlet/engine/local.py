"""The provider in this process: messages -> prompt -> engine -> parser -> events."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from moonlet.chat.jinja import load_template
from moonlet.chat.media import MERGE, PATCH
from moonlet.chat.parser import OutputParser
from moonlet.chat.provider import ChatRequest, Event, ModelCard, Sampling
from moonlet.chat.template import Prompt, Template
from moonlet.chat.tokenizer import Tokenizer
from moonlet.checkpoint import GgufCheckpoint, read_config
from moonlet.checkpoint.companions import write_files
from moonlet.config import ModelConfig
from moonlet.config.sizes import model_sizes
from moonlet.engine.engine import Engine, Finished, GenerateRequest, Item
from moonlet.engine.sampler import SamplingParams
from moonlet.errors import (
    CheckpointError,
    EngineError,
    MediaError,
    MoonletError,
    NotSupportedError,
    PromptError,
    TokenizerError,
)
from moonlet.model import FloatForm, is_quantized, load_model, load_packed

DEFAULT_MAX_TOKENS = 32_768  # what the Kimi API answers with when a request names no limit

SMALL_BYTES = 10**9
RENDERS_AT_ONCE = 2  # a picture at the limit takes some 600 MB while it is decoded


@dataclass(frozen=True)
class SamplingDefaults:
    """How to sample when a request does not say: by mode, as the K2.5 model card advises."""

    thinking: SamplingParams = SamplingParams(1.0, 0.95)  # noqa: RUF009  frozen
    instant: SamplingParams = SamplingParams(0.6, 0.95)  # noqa: RUF009  frozen

    @classmethod
    def from_folder(cls, folder: Path) -> "SamplingDefaults":
        """generation_config.json decides when it says anything about sampling."""
        path = folder / "generation_config.json"
        if not path.is_file():
            return cls()
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw.get("do_sample") is False:
                return cls(SamplingParams(0.0), SamplingParams(0.0))
            if raw.get("temperature") is None:
                return cls()
            params = SamplingParams(
                float(raw["temperature"]), float(raw.get("top_p", 1.0)), int(raw.get("top_k", 0))
            )
        except (ValueError, TypeError, AttributeError, RecursionError, MoonletError) as error:
            raise CheckpointError(
                f"{path} does not hold usable generation settings: {error}"
            ) from error
        return cls(params, params)

    def resolve(self, asked: Sampling, thinking: bool) -> SamplingParams:
        default = self.thinking if thinking else self.instant
        return SamplingParams(
            default.temperature if asked.temperature is None else asked.temperature,
            default.top_p if asked.top_p is None else asked.top_p,
            default.top_k if asked.top_k is None else asked.top_k,
            asked.seed,
        )


class LocalProvider:
    """Answers with a model of this process."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        template: Template,
        card: ModelCard,
        defaults: SamplingDefaults,
    ) -> None:
        self.card = card
        self._engine = engine
        self._tokenizer = tokenizer
        self._template = template
        self._defaults = defaults
        vision = engine.model.config.vision
        self._max_frames = 0 if vision is None else vision.init_pos_emb_time or 1
        self._rendering = asyncio.Semaphore(RENDERS_AT_ONCE)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Events of one answer. Raises PromptError and MediaError before the first event."""
        # Opening images takes time and memory: off the event loop, and not for everybody at once.
        async with self._rendering:
            prompt = await asyncio.to_thread(
                self._template.render,
                request.messages,
                request.tools,
                request.thinking,
                request.preserve_thinking,
            )
        parser = OutputParser(
            self._tokenizer,
            self._template.starts_in_reasoning(request.thinking),
            request.stop,
            request.tools or [],
        )
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Item]()

        def sink(item: Item) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(items.put_nowait, item)

        stream = self._engine.submit(self._generation(request, prompt), sink)
        try:
            while not isinstance(item := await items.get(), Finished):
                if isinstance(item, MoonletError):
                    raise item
                for event in parser.push(item):
                    yield event
                if parser.stopped:
                    break
            reason = item.reason if isinstance(item, Finished) else "stop"
            if reason == "cancelled":
                raise EngineError("the engine was closed before the answer was finished")
            for event in parser.finish(reason, len(prompt.token_ids)):
                yield event
        finally:
            stream.cancel()

    def _generation(self, request: ChatRequest, prompt: Prompt) -> GenerateRequest:
        """Raises PromptError when prompt and answer do not fit, MediaError for media the model cannot see."""
        if any(item.grid[0] > self._max_frames for item in prompt.media):
            kind = "video" if self._max_frames else "images"
            raise MediaError(f"this model does not read {kind}", "messages")
        window, used = self._engine.max_seq_len, len(prompt.token_ids)
        if used >= window:
            raise PromptError(
                f"the prompt has {used} tokens, but this model's context is {window}", "messages"
            )
        wanted = request.max_tokens or min(DEFAULT_MAX_TOKENS, window - used)
        if used + wanted > window:
            raise PromptError(
                f"the prompt has {used} tokens and this model's context is {window}, so at most "
                f"{window - used} new tokens fit, not {wanted}",
                "max_tokens",
            )
        sampling = self._defaults.resolve(request.sampling, request.thinking)
        return GenerateRequest(prompt.token_ids, wanted, prompt.media, sampling)

    def close(self) -> None:
        self._engine.close()


def load(path: Path, name: str, floats: FloatForm = "Q8_0") -> LocalProvider:
    """The checkpoint at `path`, a folder or a GGUF file, ready to answer under the model name `name`.

    Quantized weights run as they are, on the kernels; `floats` says what becomes of float weights beside
    them. Raises CheckpointError, ConfigError, TokenizerError or NotSupportedError, each saying what is wrong.
    """
    config = read_config(path)
    with companions(path) as folder:
        try:
            tokenizer = Tokenizer.from_folder(folder)
            template = load_template(folder, tokenizer, config.max_position_embeddings)
            defaults = SamplingDefaults.from_folder(folder)
        except (CheckpointError, TokenizerError) as error:  # who gave a GGUF knows no such folder
            raise type(error)(str(error).replace(str(folder), str(path))) from error
    _check_fit(config, tokenizer)  # before the weights come, which may take long
    model = (
        load_packed(path, floats) if is_quantized(path) else load_model(path, compute_type(config))
    )
    engine = Engine(model, tokenizer.end_ids | set(config.eos_token_ids))
    vision = config.vision
    card = ModelCard(
        id=name,
        created=int((path / "config.json" if path.is_dir() else path).stat().st_mtime),
        context_length=engine.max_seq_len,
        supports_images=vision is not None and template.reads_images,
        supports_video=vision is not None
        and bool(vision.init_pos_emb_time)
        and template.reads_video,
        supports_reasoning=template.reasons,
    )
    return LocalProvider(engine, tokenizer, template, card, defaults)


@contextlib.contextmanager
def companions(path: Path) -> Iterator[Path]:
    """A folder with the tokenizer, template and settings of a checkpoint; a GGUF's are written to one."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="moonlet-") as folder:
        write_files(GgufCheckpoint(path), Path(folder))
        yield Path(folder)


def compute_type(config: ModelConfig) -> torch.dtype | None:
    """float32 for a float model that is small in any case; None, the stored type, for all others.

    Where a CPU has no bfloat16 units float32 is faster, and it is always more exact; what it costs is
    memory.
    """
    sizes = model_sizes(config)
    return torch.float32 if 4 * sizes.parameters(*sizes.parts) < SMALL_BYTES else None


def _check_fit(config: ModelConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {config.vocab_size}: "
            "the files belong to different models"
        )
    if (
        config.vision
        and tokenizer.special.get("<|media_pad|>") != config.media_placeholder_token_id
    ):
        raise CheckpointError(
            f"media_placeholder_token_id is {config.media_placeholder_token_id} in config.json but "
            f"{tokenizer.special.get('<|media_pad|>')} in the tokenizer: the files belong to different models"
        )
    vision = config.vision
    if vision and (vision.patch_size, vision.merge_kernel_size) != (PATCH, (MERGE, MERGE)):
        raise NotSupportedError(
            f"images are cut into {PATCH}x{PATCH} patches merged {MERGE}x{MERGE}; this model wants "
            f"{vision.patch_size} and {vision.merge_kernel_size}"
        )
