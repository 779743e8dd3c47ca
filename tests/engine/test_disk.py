"""Pages on disk: what is read back is what was written, or nothing."""

from pathlib import Path

import numpy as np
import pytest

from moonlet.engine.disk import DiskTier


def page(seed: int, size: int = 1000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def name(seed: int) -> bytes:
    return bytes([seed]) * 32


def test_a_page_survives_a_restart(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, "model", 10**6)
    tier.put(name(1), page(1))
    tier.close()
    again = DiskTier(tmp_path, "model", 10**6)
    assert name(1) in again
    found = again.get(name(1), 1000)
    assert found is not None
    assert np.array_equal(found, page(1))
    assert DiskTier(tmp_path, "another", 10**6).get(name(1), 1000) is None


@pytest.mark.parametrize("spoil", ["cut", "flip", "longer", "gone"])
def test_a_spoiled_page_is_never_read(tmp_path: Path, spoil: str) -> None:
    tier = DiskTier(tmp_path, "model", 10**6)
    tier.put(name(1), page(1))
    tier.close()
    (file,) = (tmp_path / "model").glob("*.page")
    data = bytearray(file.read_bytes())
    if spoil == "cut":
        file.write_bytes(data[:-1])
    elif spoil == "longer":
        file.write_bytes(bytes(data) + b"x")
    elif spoil == "gone":
        file.unlink()
    else:
        data[500] ^= 1
        file.write_bytes(data)
    assert tier.get(name(1), 1000) is None
    assert name(1) not in tier
    assert not file.exists()


def test_it_stays_below_its_limit_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, "model", 3 * 1032)
    for seed in (1, 2, 3):
        tier._write(name(seed).hex(), page(seed).tobytes())
    assert tier.get(name(1), 1000) is not None
    tier._write(name(4).hex(), page(4).tobytes())
    assert [name(seed) in tier for seed in (1, 2, 3, 4)] == [True, False, True, True]
    assert tier.bytes_used == sum(f.stat().st_size for f in (tmp_path / "model").iterdir())
    tier.close()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "ab.1.partial").write_bytes(b"half")
    DiskTier(tmp_path, "model", 10**6).close()
    assert list(folder.iterdir()) == []


def test_a_disk_that_cannot_be_written_loses_only_the_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(tmp_path, "model", 10**6)
    (tmp_path / "model").rmdir()
    tier.put(name(1), page(1))
    tier.close()
    assert name(1) not in tier
    assert "was not written" in caplog.text
