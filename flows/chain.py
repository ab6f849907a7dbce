"""A chain of residual blocks or their inverses in one call, forward and backward, by a C library.

In two dimensions blocks are small: sixteen of them take hundreds of operations, each of which costs more to start than
to compute, and whose results leave the cache before the next one needs them. `chain.c`, compiled when first needed,
carries some dozens of samples at a time through a whole block. It computes `fused.value_and_jacobian` block after block
(at the solution, where a block is inverted), and tests compare the two.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows.activations import Activation
from flows.bijection import InverseError
from flows.compiled import CompileError, in_threads, library, shares
from flows.differentiation import once_differentiable

__all__ = [
    "ChainWeights",
    "Inverted",
    "activate",
    "approach_through_chain",
    "certified_through_chain",
    "library_of",
    "through_chain",
    "values_through_chain",
]

SOURCE = Path(__file__).with_name("chain.c")
WORK = 1_500_000  # samples x blocks x width squared: a thread with less to do is not worth starting
NUMBERS = 100_000  # that enter an activation alone: a thread with fewer is not worth starting
ROWS = 192  # of a stack of values and tangents: with a layer's weights it stays in a core's cache


@dataclass(frozen=True)
class ChainWeights:
    """Everything that a chain of n blocks is computed from.

    Attributes:
        scale, shift: of the affine map before each block, shape (n, d).
        weights: of each layer, normalized, shape (n, n_out, n_in).
        biases: of each layer, shape (n, n_out).
        parameter: of the activations, shape (n, hidden layers); zeros where they have none.
    """

    scale: Tensor
    shift: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    parameter: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.scale, self.shift, self.parameter, *self.weights, *self.biases]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> ChainWeights:
        """From what `tensors` returned, or from gradients in the same order."""
        layers = (len(tensors) - 3) // 2
        return cls(tensors[0], tensors[1], tensors[3 : 3 + layers], tensors[3 + layers :], tensors[2])


@dataclass(frozen=True)
class Inverted:
    """Which blocks of a chain are inverted, and what their solution rests on.

    Attributes:
        blocks: of each block whether it carries y = scale * z + shift to the solution x of x + g(x) = y.
        lipschitz: of each block L, Lip(g) <= L < 1.
    """

    blocks: Sequence[bool]
    lipschitz: Sequence[float]


def through_chain(
    activation: type[Activation], x: Tensor, chain: ChainWeights, inverted: Inverted | None = None
) -> tuple[Tensor, Tensor]:
    """Carry `x`, shape (batch, d), through a chain of n blocks, z -> y + g(y) with y = scale * z + shift.

    Inverted blocks are solved, to a residual of 1e-5 in float32 and 1e-12 in float64, relative where |y| exceeds 1, and
    differentiated as implicit functions.

    Returns:
        z, shape (batch, d), and the Jacobians of each g, shape (n, batch, d, d). Differentiable once.

    Raises:
        CompileError: see `library_of`.
        InverseError: Lip(g) of an inverted block exceeds its bound, or rounding keeps the residual above what is
            asked for.
        ValueError: the chain is not of d dimensions.
    """
    return _Chain.apply(activation, x, inverted, *chain.tensors())


def values_through_chain(activation: type[Activation], x: Tensor, chain: ChainWeights) -> Tensor:
    """As :func:`through_chain`, z alone, without graph."""
    return _Call(activation, x, chain.tensors()).forward(x, keep=False, with_jacobians=False)[0]


def certified_through_chain(
    activation: type[Activation],
    x: Tensor,
    chain: ChainWeights,
    inverted: Inverted,
    tolerances: Sequence[float],
    steps: int,
    enough: float,
    with_path: bool,
) -> tuple[Tensor, Tensor]:
    """As :func:`through_chain`, in float64 without graph; inverted blocks are solved as by `solve_fixed_point`.

    Args:
        tolerances: for each block, on the distance to its solution, relative where |y| exceeds 1.
        steps, enough: limits of the first approach, in float32; see `NormalizedNet.approach`.

    Returns:
        The points after each block, shape (n, batch, d), or, without the path, after the last, (1, batch, d); and for
        each block the largest bound on that distance, shape (n,), zero where the block is not inverted.

    Raises:
        CompileError: as :func:`through_chain`.
        InverseError: rounding keeps a bound above its tolerance, or something is not finite.
        ValueError: as :func:`through_chain`; or a tolerance is not above zero.
    """
    fine = _Call(activation, x, chain.tensors(), inverted)
    coarse = _Call(activation, x.float(), [tensor.float() for tensor in fine.tensors], inverted)
    return fine.forward_certified(x, coarse, tolerances, steps, enough, with_path)


def approach_through_chain(
    activation: type[Activation], z: Tensor, chain: ChainWeights, steps: int, enough: float
) -> tuple[Tensor, Tensor]:
    """As `NormalizedMLP.approach`, through a chain of one block without an affine map before it."""
    return _Call(activation, z, chain.tensors()).approach(z, steps, enough)


def activate(activation: Activation, a: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`flows.fused.activate`, by the C library: it reads each number once, torch's operations many times.

    Raises:
        CompileError: see `library_of`.
    """
    parameter = activation.c_parameter(activation.own_parameter.to(a.dtype))
    return _Activate.apply(type(activation), a, parameter)


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: type[Activation], a: Tensor, parameter: Tensor) -> tuple[Tensor, Tensor]:
        a, (rows, width) = a.contiguous(), a.shape
        value, slope = a.new_empty(2, rows, activation.expansion * width)
        function = library_of(activation, a.dtype).activate_rows
        pointers = [tensor.data_ptr() for tensor in (parameter, a, value, slope)]
        in_threads(shares(rows, 1, -(-NUMBERS // width)), lambda begin, end, _: function(begin, end, width, *pointers))
        ctx.activation = activation
        ctx.save_for_backward(a, parameter)
        return value, slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_value: Tensor, by_slope: Tensor) -> tuple[Tensor | None, ...]:
        a, parameter = ctx.saved_tensors
        rows, width = a.shape
        by_value, by_slope = by_value.contiguous(), by_slope.contiguous()
        parts = shares(rows, 1, -(-NUMBERS // width))
        by_a, by_parameter = torch.empty_like(a), a.new_empty(len(parts))
        function = library_of(ctx.activation, a.dtype).pull_back_rows
        pointers = [tensor.data_ptr() for tensor in (parameter, a, by_value, by_slope, by_a)]
        in_threads(
            parts,
            lambda begin, end, number: function(begin, end, width, *pointers, by_parameter[number].data_ptr()),
        )
        return None, by_a, by_parameter.sum()


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, activation: type[Activation], x: Tensor, inverted: Inverted | None, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        call = _Call(activation, x, tensors, inverted)
        z, jacobians = call.forward(x, keep=any(ctx.needs_input_grad))
        ctx.call = call
        return z, jacobians

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_z: Tensor, by_jacobians: Tensor) -> tuple[Tensor | None, ...]:
        by_x, *by_tensors = ctx.call.backward(by_z, by_jacobians)
        return None, by_x, None, *by_tensors


class _Call:
    """One pass forward, and what it leaves for the pass backward."""

    def __init__(
        self, activation: type[Activation], x: Tensor, tensors: Sequence[Tensor], inverted: Inverted | None = None
    ) -> None:
        self.library = library_of(activation, x.dtype)
        self.tensors = [tensor.detach().contiguous() for tensor in tensors]
        blocks = len(ChainWeights.of(self.tensors).parameter)
        self._lipschitz = (ctypes.c_double * blocks)(*(inverted.lipschitz if inverted else ()))
        self._inverted = (ctypes.c_int8 * blocks)(*(inverted.blocks if inverted else ()))
        self.chain, self._pointers = self._struct(self.tensors)
        self.batch, self.d = x.shape
        if self.d != self.chain.d:
            raise ValueError(f"a chain of {self.chain.d} dimensions carries points of as many, not of {self.d}")
        kinds = {(tensor.dtype, tensor.device) for tensor in (x, *self.tensors)}
        if len(kinds) > 1:  # compiled code would read elsewhere
            found = " and ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(f"a chain and its points are of one dtype and device, not {found}")
        # A chunk fits into the cache, and is no larger than a thread's share, or a small batch would not be split.
        least = max(1, WORK // (self.chain.blocks * self.chain.width**2))
        self.chunk = max(1, min(ROWS // (1 + self.d), shares(self.batch, 1, least)[0][1]))
        self.shares = shares(self.batch, self.chunk, least)

    def _struct(self, tensors: list[Tensor]) -> tuple[_Struct, Any]:
        """The struct of a chain, and the arrays of pointers that must live as long."""
        parts = ChainWeights.of(tensors)
        width, d = parts.weights[0].shape[1:]
        arrays = [
            (ctypes.c_void_p * len(group))(*(tensor.data_ptr() for tensor in group))
            for group in (parts.weights, parts.biases)
        ]
        blocks, depth = parts.parameter.shape
        pointers = [
            parts.scale.data_ptr(),
            parts.shift.data_ptr(),
            *map(ctypes.addressof, arrays),
            parts.parameter.data_ptr(),
            *map(ctypes.addressof, (self._inverted, self._lipschitz)),
        ]
        return _Struct(d, width, depth, blocks, *pointers), arrays

    def forward(self, x: Tensor, keep: bool, with_jacobians: bool = True) -> tuple[Tensor, Tensor | None]:
        blocks = self.chain.blocks
        self.inputs = x.new_empty(blocks + 1, self.batch, self.d)
        self.inputs[0] = x
        jacobians = x.new_empty(blocks, self.batch, self.d, self.d) if with_jacobians else None
        size = self.library.kept_numbers(ctypes.byref(self.chain), self.batch, self.chunk)
        self.kept = x.new_empty(size) if keep else None
        kept = self.kept.data_ptr() if keep else None
        solved = in_threads(
            self.shares,
            lambda begin, end, _: self.library.forward(
                ctypes.byref(self.chain), self.batch, self.chunk, begin, end,
                self.inputs.data_ptr(), None if jacobians is None else jacobians.data_ptr(), kept,
            )
        )  # fmt: skip
        if min(solved) < 0:
            raise InverseError(
                "a block is not inverted: Lip(g) exceeds its bound, or rounding keeps the residual above the tolerance"
            )
        # An output refers to its autograd node; keeping an output would close a cycle, so the node keeps other tensors.
        self.jacobians = jacobians.detach() if keep and any(self._inverted) else None
        return self.inputs[-1].clone(), jacobians

    def forward_certified(
        self, x: Tensor, coarse: _Call, tolerances: Sequence[float], steps: int, enough: float, with_path: bool
    ) -> tuple[Tensor, Tensor]:
        blocks = self.chain.blocks
        if not all(tolerance > 0 for tolerance in tolerances):  # with a tolerance of zero the solver would never stop
            raise ValueError(f"tolerances are above zero, not {tolerances}")
        points = x.new_empty(blocks + 1 if with_path else 1, self.batch, self.d)
        points[0] = x
        bounds = x.new_zeros(len(self.shares), blocks)
        solved = in_threads(
            self.shares,
            lambda begin, end, number: self.library.forward_certified(
                ctypes.byref(self.chain), ctypes.byref(coarse.chain), coarse.library.approach, steps, enough,
                (ctypes.c_double * blocks)(*tolerances), self.chunk, begin, end,
                points.data_ptr(), x.numel() if with_path else 0, bounds[number].data_ptr(),
            )
        )  # fmt: skip
        if min(solved) < 0:
            raise InverseError("a block's inverse is not within its tolerance: too close for float64, or not finite")
        return points[1:] if with_path else points, bounds.amax(dim=0)

    def approach(self, z: Tensor, steps: int, enough: float) -> tuple[Tensor, Tensor]:
        z = z.contiguous()
        x, inverse = torch.empty_like(z), z.new_empty(self.batch, self.d, self.d)
        in_threads(
            self.shares,
            lambda begin, end, _: self.library.approach(
                ctypes.byref(self.chain), 0, self.chunk, begin, end,
                steps, enough, z.data_ptr(), x.data_ptr(), inverse.data_ptr(),
            )
        )  # fmt: skip
        return x, inverse

    def backward(self, by_z: Tensor, by_jacobians: Tensor) -> list[Tensor]:
        """The gradients by x and by each of `tensors`. Once: what `forward` kept, most of a step's memory, is freed."""
        kept, self.kept = self.kept, None
        if kept is None:
            raise RuntimeError("a compiled chain can be differentiated only once")
        by_x, by_jacobians = by_z.clone(memory_format=torch.contiguous_format), by_jacobians.contiguous()
        # Each thread adds up its own samples' gradients: one line of a table, all tensors after another.
        sizes = [tensor.numel() for tensor in self.tensors]
        table = by_x.new_zeros(len(self.shares), sum(sizes))
        lines = [
            [part.view_as(tensor) for part, tensor in zip(line.split(sizes), self.tensors, strict=True)]
            for line in table
        ]
        gradients = [self._struct(line) for line in lines]
        in_threads(
            self.shares,
            lambda begin, end, number: self.library.backward(
                ctypes.byref(self.chain), ctypes.byref(gradients[number][0]), self.batch, self.chunk, begin, end,
                self.inputs.data_ptr(), None if self.jacobians is None else self.jacobians.data_ptr(), kept.data_ptr(),
                by_x.data_ptr(), by_jacobians.data_ptr(),
            )
        )  # fmt: skip
        for line in table[1:]:
            table[0] += line
        return [by_x, *lines[0]]


class _Struct(ctypes.Structure):
    """The C struct `Chain`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("d", "width", "depth", "blocks")),
        *(
            (name, ctypes.c_void_p)
            for name in ("scale", "shift", "weight", "bias", "parameter", "inverted", "lipschitz")
        ),
    ]


@functools.cache
def library_of(activation: type[Activation], dtype: torch.dtype) -> ctypes.CDLL:
    """`chain.c` for one activation and dtype.

    Raises:
        CompileError: see :func:`~flows.compiled.library`; or the activation has no `c_source`.
    """
    if activation.c_source is None:
        raise CompileError(f"the activation {activation.__name__} has no c_source")
    units, statements = f"-DUNITS={activation.expansion}", f"-DACTIVATION={' '.join(activation.c_source.split())}"
    loaded = library(SOURCE, dtype, units, statements)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    loaded.kept_numbers.argtypes, loaded.kept_numbers.restype = [pointer, number, ctypes.c_int], number
    loaded.forward.argtypes = [pointer, number, ctypes.c_int, number, number, pointer, pointer, pointer]
    integer, real = ctypes.c_int, ctypes.c_double
    loaded.approach.argtypes = [pointer, integer, integer, number, number, integer, real, *[pointer] * 3]
    loaded.forward_certified.argtypes = [
        pointer, pointer, pointer, integer, real, pointer, integer, number, number, pointer, number, pointer,
    ]  # fmt: skip
    loaded.backward.argtypes = [pointer, *loaded.forward.argtypes, pointer, pointer]
    loaded.activate_rows.argtypes = [number, number, ctypes.c_int, *[pointer] * 4]
    loaded.pull_back_rows.argtypes = [number, number, ctypes.c_int, *[pointer] * 6]
    return loaded
