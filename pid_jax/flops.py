"""Floating-point operations of a traced program, counted from shapes.

Matrix products and convolutions count, two operations for each multiplication with its addition.
Everything else is small beside them. XLA's own count includes loop bodies once and library calls
not at all.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from jax.extend import core


def count(jaxpr: Any) -> int:
    """FLOPs of a `ClosedJaxpr` or `Jaxpr`, over all devices.

    A scan counts all of its iterations. A while loop counts one: for the program that decodes, this
    is one decode step. Of a conditional's branches the largest counts. A Pallas kernel counts its
    own cost estimate if it has one, otherwise its body for each point of the grid.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    return sum(map(_of_equation, inner.eqns))


def _of_equation(equation: Any) -> int:
    name = equation.primitive.name
    for known, function in _COUNTED.items():
        if name == known or name.startswith(f"{known}_wrapper"):
            return function(equation)
    parameters = equation.params
    if name == "cond":
        return max(map(count, parameters["branches"]), default=0)
    if name == "while":
        return count(parameters["body_jaxpr"])
    times = 1
    if name == "scan":
        times = parameters["length"]
    elif name == "shard_map":
        times = _shards(parameters)
    return times * sum(map(count, _inner(parameters)))


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    """The programs within an equation."""
    for value in parameters.values():
        if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
            yield value


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)


def _dot_general(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    summed = math.prod(left[axis] for axis in contracted)
    return 2 * math.prod(_shape(equation.outvars[0])) * summed


def _convolution(equation: Any) -> int:
    kernel = _shape(equation.invars[1])
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // max(out_features, 1)


def _ragged_dot(equation: Any) -> int:
    left, right = map(_shape, equation.invars[:2])
    return 2 * left[0] * left[-1] * right[-1]


def _pallas_call(equation: Any) -> int:
    estimate = equation.params.get("cost_estimate")
    if estimate is not None and estimate.flops:
        return int(estimate.flops)
    grid = equation.params["grid_mapping"].grid
    points = math.prod(size for size in grid if isinstance(size, int))
    return points * count(equation.params["jaxpr"])


def _attention_forward(equation: Any) -> int:
    """cuDNN: scores and their product with the values."""
    return 2 * _attention_product(equation)


def _attention_backward(equation: Any) -> int:
    """cuDNN: the scores again, and the gradients of scores, queries, keys and values."""
    return 5 * _attention_product(equation)


def _attention_product(equation: Any) -> int:
    """One product of queries and keys, `[B, T, N, H]` or `[B, N, T, H]`."""
    query, key = (_shape(one) for one in equation.invars[:2])
    axis = 2 if equation.params.get("layout") == 1 else 1
    return 2 * math.prod(query) * key[axis]


def _shards(parameters: dict[str, Any]) -> int:
    mesh = parameters["mesh"]
    names = parameters.get("manual_axes", mesh.axis_names)
    return math.prod(mesh.shape[name] for name in names)


_COUNTED: dict[str, Callable[[Any], int]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "ragged_dot": _ragged_dot,
    "ragged_dot_general": _ragged_dot,
    "pallas_call": _pallas_call,
    "dot_product_attention_fwd": _attention_forward,
    "dot_product_attention_bwd": _attention_backward,
}
