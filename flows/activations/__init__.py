"""Activations, one file each: a file here is an activation that `flow.activation` accepts."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Annotated

from arguments import OneOf
from flows.activations.activation import Activation

__all__ = ["Activation", "ActivationName", "activation_names", "make_activation"]


def activation_names() -> list[str]:
    """Names of the activations: the files of this folder, the base class aside."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "activation")


ActivationName = Annotated[str, OneOf(activation_names)]


def make_activation(name: str) -> Activation:
    """Build the activation whose class, in lower case, is `name`.

    Raises:
        LookupError: the file has no such class.
    """
    module = importlib.import_module(f"{__name__}.{name}")
    for attribute, value in vars(module).items():
        if attribute.lower() == name and isinstance(value, type) and issubclass(value, Activation):
            return value()
    raise LookupError(f"{module.__file__} has no subclass of Activation called {name} (in any case)")
