"""The embedded model: a tiny Kimi-K2.5, its data, its recipe, its weights and their model card.

`folder()` is where the shipped weights lie. Nothing here imports torch until it is trained or tested.
"""

from pathlib import Path


def folder() -> Path:
    """The checkpoint folder that ships with the package."""
    return Path(__file__).parent / "weights"
