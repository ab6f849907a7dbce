"""Estimators of log det(I + J), one file each."""

from flows.estimators.estimator import LogDetEstimator, Noise
from flows.estimators.exact import Exact
from flows.estimators.russian_roulette import RussianRoulette
from flows.estimators.truncated import Truncated

__all__ = ["Exact", "LogDetEstimator", "Noise", "RussianRoulette", "Truncated"]
