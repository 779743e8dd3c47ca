"""Training: the MuonClip optimizer, batches, and the loop that a recipe runs through."""

from moonlet.train.loop import Recipe, StepReport, run
from moonlet.train.muonclip import MuonClip

__all__ = ["MuonClip", "Recipe", "StepReport", "run"]
