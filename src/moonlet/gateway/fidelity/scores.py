"""The two figures of vendors' tool-call verifiers.

schema_accuracy    calls with a declared name and arguments that satisfy its schema, of all calls in
                   answers that finished with tool_calls; an answer that has none counts as one wrong call
tool_call_f1       2 TP / (2 TP + FP + FN) against a reference run: TP both finished with tool_calls,
                   FP only this one, FN only the reference
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from moonlet.gateway.fidelity.records import Record


@dataclass(frozen=True)
class Schemas:
    """unjudged: calls of tools whose own schema is none; they count nowhere."""

    answers: int
    calls: int
    valid: int
    unjudged: int

    @property
    def accuracy(self) -> float | None:
        """None without a call."""
        return self.valid / self.calls if self.calls else None


@dataclass(frozen=True)
class Triggers:
    """How two runs agree about when to call a tool, over the samples that both answered."""

    compared: int
    both: int
    only_this: int
    only_reference: int

    @property
    def f1(self) -> float | None:
        """None where neither ever called."""
        either = 2 * self.both + self.only_this + self.only_reference
        return 2 * self.both / either if either else None


def score_schemas(records: Sequence[Record]) -> Schemas:
    triggered = [record for record in records if record.error is None and record.triggers]
    calls = [call for record in triggered for call in record.calls]
    judged = [call for call in calls if call.judged]
    without = sum(not record.calls for record in triggered)
    return Schemas(
        answers=len(triggered),
        calls=len(judged) + without,
        valid=sum(call.problem is None for call in judged),
        unjudged=len(calls) - len(judged),
    )


def score_triggers(records: Sequence[Record], reference: Sequence[Record]) -> Triggers:
    """`records` against `reference`; samples are told apart by their hash."""
    known = {record.sample: record.triggers for record in reference if record.error is None}
    pairs = Counter(
        (record.triggers, known[record.sample])
        for record in records
        if record.error is None and record.sample in known
    )
    return Triggers(sum(pairs.values()), pairs[True, True], pairs[True, False], pairs[False, True])


def finish_reasons(records: Sequence[Record]) -> dict[str, int]:
    """How often each came, and how many samples have no answer."""
    counted = Counter(
        "no answer" if record.error is not None else record.finish_reason or "none"
        for record in records
    )
    return dict(counted.most_common())
