"""What `moonlet plan --measure` found out about this machine, and the file that keeps it.

The file is JSON in the user's cache folder. Whatever is wrong with it, or measured elsewhere or with another
version of moonlet, is told in one sentence and counts as not being there.
"""

import json
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from moonlet import __version__
from moonlet.errors import ConfigError
from moonlet.plan.detect import Detected
from moonlet.plan.machine import Disk, Machine

MAX_BYTES = 2**20
_MAX_ENTRIES = 200
Curve = tuple[tuple[float, float], ...]  # (x, y), x growing; straight between its points


@dataclass(frozen=True)
class Costs:
    """Seconds of one way to run a model: quantized on the kernels, or as floats in torch.

    matrix: by type as stored, seconds per weight of a matrix that meets so many tokens. experts: the same for
    routed experts and the tokens of each, where they go another way than other matrices. attend: of a decoded
    token's attention, per visible position and cached number, over the number of heads. score: of prefill's
    attention, per multiplication. step, dense_layer, moe_layer: whatever else a step and its layers take with
    one token. growth: what more tokens add to that, per layer and number of the hidden state. whole: what a
    model of many matrices takes over the sum of its operations, by tokens.
    """

    matrix: Mapping[str, Curve] = field(hash=False)
    experts: Mapping[str, Curve] = field(hash=False)
    attend: Curve
    score: float
    step: float
    dense_layer: float
    moe_layer: float
    growth: Curve
    whole: Curve


@dataclass(frozen=True)
class Calibration:
    """One measurement. flops: peaks by type, in operations per second. disk_bytes_s: reading what was not in
    memory; None where that could not be measured."""

    moonlet: str
    date: str
    host: str
    isa: str
    threads: int
    read_bytes_s: float
    disk_bytes_s: float | None
    flops: Mapping[str, float] = field(hash=False)
    packed: Costs
    torch: Costs


def at(curve: Curve, x: float) -> float:
    """The curve at x: level before its first point, with the slope of its last piece behind the last."""
    if len(curve) == 1 or x <= curve[0][0]:
        return curve[0][1]
    following = next((i for i, point in enumerate(curve) if point[0] >= x), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[following - 1], curve[following]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def fingerprint(found: Detected) -> str:
    """What must be the same for a measurement to hold: the processor, and how much of it there is."""
    return f"{found.cpu}, {found.machine.host.cores} cores"


def calibrated(machine: Machine, calibration: Calibration) -> Machine:
    """`machine` with what was measured in place of what was guessed."""
    host = replace(
        machine.host, bandwidth_bytes_s=calibration.read_bytes_s, flops=dict(calibration.flops)
    )
    disk = machine.disk
    if disk is not None and calibration.disk_bytes_s is not None:
        disk = Disk(calibration.disk_bytes_s, disk.free_bytes)
    return replace(machine, host=host, disk=disk)


def calibration_path() -> Path:
    """$XDG_CACHE_HOME/moonlet/calibration.json, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
    return folder / "moonlet" / "calibration.json"


def save_calibration(calibration: Calibration, path: Path | None = None) -> Path:
    """Writes the file beside its place and renames it. Raises OSError."""
    path = path or calibration_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(calibration), file, indent=1)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    return path


def load_calibration(host: str, path: Path | None = None) -> tuple[Calibration | None, str | None]:
    """The measurement of this machine (`fingerprint`), and a sentence where there is a file that is no use."""
    path = path or calibration_path()
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            return None, f"{path} is no regular file and is left out"
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None, None
    except (OSError, RuntimeError) as error:
        return None, f"{path} cannot be read ({error}) and is left out"
    again = "measure again with moonlet plan --measure"
    try:
        calibration = _calibration(_object(data))
    except ConfigError as error:
        return None, f"{path} is left out, since {error}; {again}"
    if calibration.host != host:
        return None, f"{path} was measured on {calibration.host[:80]!r}, not on {host!r}; {again}"
    if calibration.moonlet != __version__:
        measured = f"moonlet {calibration.moonlet[:20]!r}"
        return None, f"{path} was measured with {measured}, this is {__version__}; {again}"
    return calibration, None


def _object(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise ConfigError(f"it is longer than {MAX_BYTES} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigError("it is no JSON object")
    return value


def _calibration(value: dict[str, Any]) -> Calibration:
    value = _members(value, Calibration, "the file")
    texts = {name: _text(value[name], name) for name in ("moonlet", "date", "host", "isa")}
    disk = value["disk_bytes_s"]
    flops = _table(value["flops"], "flops")
    return Calibration(
        **texts,
        threads=int(_number(value["threads"], "threads")),
        read_bytes_s=_above_zero(value["read_bytes_s"], "read_bytes_s"),
        disk_bytes_s=None if disk is None else _above_zero(disk, "disk_bytes_s"),
        flops={kind: _above_zero(rate, f"flops.{kind}") for kind, rate in flops.items()},
        packed=_costs(value["packed"], "packed"),
        torch=_costs(value["torch"], "torch"),
    )


def _costs(value: Any, where: str) -> Costs:
    value = _members(value, Costs, where)
    numbers = ("score", "step", "dense_layer", "moe_layer")
    return Costs(
        matrix=_curves(value["matrix"], f"{where}.matrix"),
        experts=_curves(value["experts"], f"{where}.experts"),
        attend=_curve(value["attend"], f"{where}.attend"),
        growth=_curve(value["growth"], f"{where}.growth"),
        whole=_curve(value["whole"], f"{where}.whole"),
        **{name: _number(value[name], f"{where}.{name}") for name in numbers},
    )


def _curves(value: Any, where: str) -> dict[str, Curve]:
    return {kind: _curve(one, f"{where}.{kind}") for kind, one in _table(value, where).items()}


def _curve(value: Any, where: str) -> Curve:
    if not (isinstance(value, list) and 1 <= len(value) <= _MAX_ENTRIES):
        raise ConfigError(f"{where} is no list of points")
    points = []
    for point in value:
        if not (isinstance(point, list) and len(point) == 2):
            raise ConfigError(f"{where} holds {str(point)[:40]!r} for a point")
        points.append((_number(point[0], where), _number(point[1], where)))
    if any(before[0] >= after[0] for before, after in pairwise(points)):
        raise ConfigError(f"the points of {where} are not in order")
    return tuple(points)


def _members(value: Any, kind: type, where: str) -> dict[str, Any]:
    names = [each.name for each in fields(kind)]
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise ConfigError(f"{where} has not just the members {', '.join(names)}")
    return value


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > _MAX_ENTRIES:
        raise ConfigError(f"{where} is no table")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ConfigError(f"{where} is {str(value)[:40]!r}, not a text")
    return value


def _number(value: Any, where: str) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not (good and abs(value) < 1e18 and isfinite(value) and value >= 0):
        raise ConfigError(f"{where} is {str(value)[:40]!r}, not a number from 0 on")
    return float(value)


def _above_zero(value: Any, where: str) -> float:
    number = _number(value, where)
    if number == 0:
        raise ConfigError(f"{where} is 0")
    return number
