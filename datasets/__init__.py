"""Target densities in two dimensions, one file each, in the literature's own definitions, and data of one's own."""

from datasets.points import Points
from datasets.target import Target, TargetDensity

__all__ = ["Points", "Target", "TargetDensity"]
