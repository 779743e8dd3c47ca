"""Does it fit, where does it go, how fast is it: one engine's answer to one question."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from moonlet.config import ModelConfig
from moonlet.errors import ConfigError
from moonlet.plan.calibration import Calibration
from moonlet.plan.drafts import Drafted
from moonlet.plan.engines import Engine, Tier
from moonlet.plan.factors import all_factors
from moonlet.plan.local import Local
from moonlet.plan.machine import Machine
from moonlet.plan.memory import buffers_bytes, cache_bytes_per_token, vision_bytes
from moonlet.plan.placement import Load, Placement, Refusal, place
from moonlet.plan.predict import Predictor, Speeds
from moonlet.plan.resident import computes_in_float32, resident
from moonlet.plan.stored import weights_as
from moonlet.plan.weights import Weights

CHUNK = 2048  # tokens of a prompt that are computed at once, for the size of buffers
OUR_OWN = "moonlet"
CALIBRATED = 0.12  # one standard deviation of a speed's logarithm on a machine that was measured


_stored = lru_cache(maxsize=64)(weights_as)  # each engine asks for the same few


@dataclass(frozen=True)
class Question:
    """What is to run where. context: tokens of each of `streams`. prompt, answer: of a usual request.

    drafted, accepted: of speculative decoding (drafts.py). hits: of reads of experts that lie on the disk, the
    share that memory answers. measured: of `machine`, for moonlet's own speed in place of the fitted factors.
    """

    config: ModelConfig
    quantization: str
    machine: Machine
    context: int
    streams: int = 1
    cache: str = "bf16"
    prompt: int = 2048
    answer: int = 512
    patches: int = 0
    drafted: int = 0
    accepted: float = 0.0
    hits: float = 0.0
    measured: Calibration | None = None
    weights: Weights | None = None

    def stored(self) -> Weights:
        """The files that are there, or what they would be. Raises ConfigError."""
        return self.weights or _stored(self.config, self.quantization)

    def load(self) -> Load:
        """Raises ConfigError."""
        if not 1 <= self.context <= self.config.max_position_embeddings:
            raise ConfigError(
                f"a context of {self.context} tokens is not one of this model, which has 1 to "
                f"{self.config.max_position_embeddings:,}"
            )
        if self.streams < 1:
            raise ConfigError(f"{self.streams} streams cannot be served: give 1 or more")
        room = buffers_bytes(self.config, min(CHUNK, self.context), self.streams)
        room = max(room, vision_bytes(self.config, self.patches))
        return Load(
            self.context, self.streams, cache_bytes_per_token(self.config, self.cache), room
        )


@dataclass(frozen=True)
class Estimate:
    """A value, and where nine of ten measurements should lie."""

    value: float
    low: float
    high: float

    def inverse(self, times: float = 1.0) -> "Estimate":
        """`times` divided by it."""
        return Estimate(times / self.value, times / self.high, times / self.low)


@dataclass(frozen=True)
class Answer:
    """One engine's. Without a placement the rest is empty, and `refusal` says why.

    load_s: reading the files from a cold disk, None where nobody knows its speed. first_token_s: of a prompt of
    `prompt` tokens of which nothing is cached, alone. prefill_tok_s: of that prompt. each_tok_s: one stream, alone, half of
    the context behind it. all_tok_s: answers of all streams together, prompts in between. step_parts: seconds of
    that stream's step by what takes them. decode_tok_s: all streams, all prompts computed. rows: of measured.toml, which the factors rest on; none if
    this machine was measured itself.
    """

    question: Question
    engine: Engine
    weights: Weights
    placement: Placement | None = None
    refusal: Refusal | None = None
    load_s: float | None = None
    first_token_s: Estimate | None = None
    prefill_tok_s: Estimate | None = None
    each_tok_s: Estimate | None = None
    all_tok_s: Estimate | None = None
    decode_tok_s: Estimate | None = None
    step_parts: dict[str, float] = field(default_factory=dict, hash=False)
    rows: tuple[int, ...] = ()

    @property
    def fits(self) -> bool:
        return self.placement is not None

    @property
    def reads_disk(self) -> bool:
        """Whether some of its experts stay on the disk, so that tokens wait for it."""
        return self.placement is not None and self.placement.experts.get("disk", 0.0) > 0


def answer(question: Question, engine: Engine) -> Answer:
    """What `engine` makes of `question`. Raises ConfigError."""
    weights = question.stored()
    if not engine.runs(weights.label if question.weights is None else question.quantization):
        reason = f"{engine.name} does not run weights stored as {question.quantization}"
        return Answer(
            question, engine, weights, refusal=Refusal(engine, engine.rest[0], 0.0, reason)
        )
    kept, load = weights, question.load()
    if engine.name == OUR_OWN:
        kept = resident(weights)
        load = replace(load, cache_token_bytes=_our_cache_bytes(weights))
    placement = place(engine, kept, question.machine, load)
    if isinstance(placement, Refusal):
        if placement.missing_bytes > 0 and kept.total_bytes > 1.05 * weights.total_bytes:
            grown = f"; it keeps these types in {kept.total_bytes / 1e9:,.1f} GB"
            placement = replace(placement, reason=placement.reason + grown)
        return Answer(question, engine, weights, refusal=placement)
    return _timed(Answer(question, engine, weights, placement), placement, kept)


def _our_cache_bytes(weights: Weights) -> float:
    """Of a token: moonlet computes in one type and caches in it, whatever is asked."""
    kind = "fp32" if computes_in_float32(weights) else "bf16"
    return cache_bytes_per_token(weights.config, kind)


def _timed(bare: Answer, placement: Placement, kept: Weights) -> Answer:
    """kept: the weights as the engine reads them in memory."""
    question, machine = bare.question, bare.question.machine
    known = all_factors()[bare.engine.name]
    measured = question.measured if bare.engine.name == OUR_OWN else None
    speeds: Speeds = Predictor(
        kept, machine, placement, known.factors, question.quantization, question.hits
    )
    if measured is not None:
        speeds = Local(bare.weights, measured)
    if question.drafted:
        speeds = Drafted(speeds, question.drafted, question.accepted)

    def about(value: float, regime: str) -> Estimate:
        low, high = measured_interval(value) if measured else known.interval(regime, value)
        return Estimate(value, low, high)

    first = sum(speeds.prefill_parts(question.prompt).values())
    behind = min(question.prompt + question.answer / 2, question.context)
    step = speeds.step_parts(1, behind)
    each = about(1 / sum(step.values()), "decode")
    many = together = each
    if question.streams > 1:
        many = about(
            served_tok_s(speeds, question.streams, question.prompt, question.answer), "batch"
        )
        step_of_all = sum(speeds.step_parts(question.streams, behind).values())
        together = about(question.streams / step_of_all, "batch")
    return replace(
        bare,
        load_s=_load_seconds(bare.weights, machine, placement),
        first_token_s=about(question.prompt / first, "prefill").inverse(question.prompt),
        prefill_tok_s=about(question.prompt / first, "prefill"),
        each_tok_s=each,
        all_tok_s=many,
        decode_tok_s=together,
        step_parts=step,
        rows=() if measured else known.rows,
    )


def measured_interval(value: float) -> tuple[float, float]:
    """Of a speed that measurements of this very machine predict."""
    width = 1.0 + 1.645 * CALIBRATED
    return value / width, value * width


def served_tok_s(speeds: Speeds, streams: int, prompt: float, answer_tokens: float) -> float:
    """Answers' tokens per second of all `streams`, when each new request's prompt is computed in between."""
    step = sum(speeds.step_parts(streams, prompt + answer_tokens / 2).values())
    work = sum(speeds.prefill_parts(prompt).values())
    return streams * answer_tokens / (answer_tokens * step + streams * work)


def _load_seconds(weights: Weights, machine: Machine, placement: Placement) -> float | None:
    """What is not left on the disk is read from it once; nodes read at the same time."""
    if machine.disk is None:
        return None
    stays = placement.experts.get("disk", 0.0) * placement.expert_bytes
    return (weights.total_bytes - stays) / machine.disk.bandwidth_bytes_s


def tiers_of(placement: Placement) -> Sequence[Tier]:
    """Those in which something lies."""
    every: tuple[Tier, ...] = ("vram", "ram", "disk")
    return [tier for tier in every if placement.used(tier) > 0]
