"""Target densities in two dimensions, one file each, in the literature's own definitions."""

from datasets.target import TargetDensity

__all__ = ["TargetDensity"]
