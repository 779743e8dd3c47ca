"""What has to be reached: for every file and measurement the bar, and whether the figure meets it."""

from dataclasses import dataclass, field
from statistics import median

FAST_MEMORY = 1.4  # times what one thread reads: memory in its fast state gives a second thread this much more
SHARE_SLOW, SHARE_FAST = 0.92, 0.80  # of the bandwidth that decoding has to use in either state


@dataclass(frozen=True)
class Bars:
    """Ratios to the peer, larger is better; `decode` is at depth 0, `deep` at 2,048, `deepest` at 8,192."""

    prefill: float
    decode: float = 1.05
    deep: float = 1.5
    deepest: float = 3.0
    batch: float = 1.5


@dataclass
class Measured:
    """One measurement on one file. Speeds are tokens per second; times, where `is_time`, seconds."""

    file: str
    name: str
    bar: float | None
    is_time: bool = False
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)  # bytes per second, before and after each
    one_thread: list[float] = field(default_factory=list)
    bytes_per_token: float | None = None  # of ours, where the bandwidth has a bar of its own
    commit: str | None = None

    @property
    def ratio(self) -> float | None:
        """How many times faster than the peer."""
        if not self.theirs:
            return None
        ours, theirs = median(self.ours), median(self.theirs)
        return theirs / ours if self.is_time else ours / theirs

    @property
    def bandwidth_share(self) -> float | None:
        if self.bytes_per_token is None:
            return None
        return median(self.ours) * self.bytes_per_token / median(self.bandwidths)

    @property
    def share_bar(self) -> float | None:
        if self.bytes_per_token is None:
            return None
        is_fast = median(self.bandwidths) > FAST_MEMORY * median(self.one_thread)
        return SHARE_FAST if is_fast else SHARE_SLOW

    def verdicts(self) -> list[dict]:
        """The bars of this measurement with their figures; `met` is None where there was no peer."""
        found = []
        if self.bar is not None:
            met = None if self.ratio is None else self.ratio >= self.bar
            found.append(
                {"what": "times llama.cpp", "figure": self.ratio, "bar": self.bar, "met": met}
            )
        if (share := self.bandwidth_share) is not None and (bar := self.share_bar) is not None:
            found.append(
                {"what": "of the bandwidth", "figure": share, "bar": bar, "met": share >= bar}
            )
        return found


def markdown(results: list[Measured]) -> str:
    """The table, one line for each measurement."""
    lines = [
        "| file | measurement | moonlet | llama.cpp | ratio | GB/s beside | bars |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in results:
        unit = "s" if one.is_time else "tok/s"
        theirs = f"{median(one.theirs):,.2f} {unit}" if one.theirs else "-"
        ratio = f"{one.ratio:.2f}" if one.ratio is not None else "-"
        beside = f"{median(one.bandwidths) / 1e9:.1f}" if one.bandwidths else "-"
        bars = "; ".join(_verdict(verdict) for verdict in one.verdicts())
        cells = (one.file, one.name, f"{median(one.ours):,.2f} {unit}", theirs, ratio, beside, bars)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _verdict(verdict: dict) -> str:
    is_share = verdict["what"] == "of the bandwidth"
    shown = [
        f"{x:.0%}" if is_share else f"{x:.2f}x" for x in (verdict["figure"] or 0, verdict["bar"])
    ]
    if verdict["met"] is None:
        return f"wanted {shown[1]}"
    return f"{shown[0]} of {shown[1]} wanted: {'met' if verdict['met'] else 'NOT MET'}"
