"""What is wrong with a checkpoint, collected and told at once."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from moonlet.errors import CheckpointError

NAMES_PER_KIND = 20


class Problems:
    """Collects problems by kind and raises them together, `NAMES_PER_KIND` names of each."""

    def __init__(self, verb: Literal["loaded", "saved"]) -> None:
        self._verb = verb
        self._counts: Counter[str] = Counter()
        self._names: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, name: str) -> None:
        self.add_many(kind, 1, [name])

    def add_many(self, kind: str, count: int, names: Iterable[str]) -> None:
        """`count` problems of a kind; of `names` only as many are taken as will be shown."""
        self._counts[kind] += count
        room = NAMES_PER_KIND - len(self._names[kind])
        if room > 0:
            self._names[kind] += [name for name, _ in zip(names, range(room), strict=False)]

    def raise_if_any(self, folder: Path | str) -> None:
        if not self._counts:
            return
        parts = []
        for kind, count in self._counts.items():
            names = self._names[kind]
            more = f", and {count - len(names)} more" if count > len(names) else ""
            parts.append(f"{count} {kind} ({', '.join(names)}{more})")
        raise CheckpointError(f"{folder} cannot be {self._verb}: {'; '.join(parts)}")
