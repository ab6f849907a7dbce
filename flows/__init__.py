"""Normalizing flows by residual blocks, in any dimension."""

from flows.bijection import Bijection
from flows.flow import Flow
from flows.residual_flow import ResidualFlow

__all__ = ["Bijection", "Flow", "ResidualFlow"]
