"""How much arithmetic a traced program does, loops by their number of turns (XLA's own analysis counts a body once)."""

from __future__ import annotations

import math

from jaxtyping import PyTree

from ...ppl._compat import ClosedJaxpr, Jaxpr, Var
from ...ppl.jaxprs import inner_jaxprs

# What moves or names numbers, and computes none.
FREE = {
    "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "slice", "dynamic_slice", "gather", "concatenate",
    "pad", "rev", "iota", "copy", "stop_gradient", "split", "convert_element_type", "dynamic_update_slice",
}  # fmt: skip
THREEFRY = 50  # operations per random word: 20 rounds of 5 for two


def num_operations(closed: ClosedJaxpr) -> float:
    """Scalar operations of one run: the size of what each primitive computes.

    A matrix product of [m, k] and [k, n] counts 2 m k n, a reduction the size of its input, a scan its body times its length, a
    branch its most expensive side, a loop without a known number of turns its body once.
    """
    return _of(closed.jaxpr)


def _of(jaxpr: Jaxpr) -> float:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(eqn: PyTree) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name in FREE:
        return 0.0
    if name in ("random_bits", "threefry2x32"):
        return THREEFRY * float(_size(eqn.outvars[0]))
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2.0 * _size(eqn.outvars[0]) * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * _size(eqn.outvars[0]) * math.prod(kernel) / outputs
    inner = [_of(jaxpr) for jaxpr in inner_jaxprs(eqn)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if inner:
        return sum(inner)
    sizes = eqn.invars if name.startswith(("reduce", "arg", "cum", "scatter")) else eqn.outvars
    return float(max(map(_size, sizes), default=0))


def _size(var: Var) -> int:
    return math.prod(getattr(var.aval, "shape", ()))
