"""Where the optional reference data lies: a folder `shared` beside the checkout, or MOONLET_SHARED.

The package and the core of its tests work without it; a test that needs it is skipped with a reason.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(os.environ.get("MOONLET_SHARED", Path(__file__).parents[2] / "shared"))
needs_shared = pytest.mark.skipif(
    not (SHARED / "reference").is_dir(), reason=f"no reference data at {SHARED}"
)


def golden(name: str) -> Any:
    """The parsed golden file `name`, or a skip when the reference data is absent."""
    path = SHARED / "reference" / "golden" / name
    if not path.is_file():
        pytest.skip(f"no golden file {name}")
    return json.loads(path.read_text())
