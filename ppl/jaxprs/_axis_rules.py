"""How JAX's primitives carry axes: one rule per primitive, for `_dependence.py`.

A rule maps (equation, relations of its operands) to the relations of its outputs. What has no rule mixes all
axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxtyping import PyTree

from .._compat import Equation
from ._relation import Relations, causal, join, move

Rule = Callable[[Equation, list[Relations]], list[Relations]]

ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt
    ceil clamp
    clz complex conj convert_element_type copy copy_p cos cosh device_put digamma div eq eq_to erf erf_inv erfc
    exp exp2 expm1
    floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p log2 logistic
    lt lt_to max min mul mulhi ne neg
    nextafter not one_minus_square optimization_barrier or polygamma population_count pow random_gamma_grad real
    reciprocal reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
    """.split()
)
BATCHED_MATRIX = frozenset(
    "cholesky eigh eig lu qr householder_product schur svd triangular_solve tridiagonal_solve".split()
)


def shape_of(atom: PyTree) -> tuple[int, ...]:
    """Shape of a variable or literal."""
    return tuple(getattr(atom.aval, "shape", ()))


def mix(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    """Every output depends on everything."""
    everything = move(join(operands), lambda _: None, eqn.primitive.name)
    return [everything] * len(eqn.outvars)


def elementwise(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    """Axes stay in place, but for operands of size 1 that are broadcast."""
    if len(eqn.outvars) != 1:
        return list(operands[: len(eqn.outvars)])
    out = shape_of(eqn.outvars[0])
    moved = []
    for relations, atom in zip(operands, eqn.invars, strict=True):
        shape = shape_of(atom)
        same = {a for a, n in enumerate(shape) if len(shape) == len(out) and out[a] == n}
        moved.append(move(relations, lambda a, same=same: a if a in same else None, "broadcast"))
    return [join(moved)]


def _batched_matrix(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    moved = []
    for relations, atom in zip(operands, eqn.invars, strict=True):
        batch = len(shape_of(atom)) - 2
        moved.append(move(relations, lambda a, n=batch: a if a < n else None, eqn.primitive.name))
    return [join(moved)] * len(eqn.outvars)


def _broadcast(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    dims, source, target = (
        eqn.params["broadcast_dimensions"],
        shape_of(eqn.invars[0]),
        eqn.params["shape"],
    )
    return [
        move(operands[0], lambda a: dims[a] if source[a] == target[dims[a]] else None, "broadcast")
    ]


def _reshape(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    source, target = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])

    # An axis stays one where the target has an axis of its size with as many elements in front: row-major order then keeps the
    # elements of both in step. All other axes are mixed.
    def axis_of(a: int) -> int | None:
        before = math.prod(source[:a])
        for b, size in enumerate(target):
            if size == source[a] and math.prod(target[:b]) == before:
                return b
        return None

    return [move(operands[0], axis_of, "reshape")]


def _squeeze(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    return _without(eqn, operands, eqn.params["dimensions"])


def _reduce(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    return _without(eqn, operands, eqn.params["axes"])


def _without(eqn: PyTree, operands: list[Relations], gone: PyTree) -> list[Relations]:
    gone = {d % len(shape_of(eqn.invars[0])) for d in gone}
    relations = move(
        join(operands),
        lambda a: None if a in gone else a - sum(g < a for g in gone),
        eqn.primitive.name,
    )
    return [relations] * len(eqn.outvars)


def _transpose(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    return [move(operands[0], list(eqn.params["permutation"]).index, "transpose")]


def _along(eqn: Equation, operands: list[Relations], *axes: int) -> list[Relations]:
    everything = move(join(operands), lambda a: None if a in axes else a, eqn.primitive.name)
    return [everything] * len(eqn.outvars)


def _concatenate(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    return _along(eqn, operands, eqn.params["dimension"])


def _stack(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    new = eqn.params["axis"]
    return [join(move(r, lambda a: a + (a >= new), "stack") for r in operands)]


def _unstack(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    return _without(eqn, operands, [eqn.params["axis"]])


def _tile(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    return _along(eqn, operands, *(a for a, reps in enumerate(eqn.params["reps"]) if reps != 1))


def _window(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    """An axis whose windows hold one element each keeps its elements in place if it keeps its size."""
    out, wide = shape_of(eqn.outvars[0]), eqn.params["window_dimensions"]
    moved = {a for a, n in enumerate(shape_of(eqn.invars[0])) if wide[a] != 1 or out[a] != n}
    padding = eqn.params["padding"]
    return _along(eqn, operands, *moved, *(a for a, pair in enumerate(padding) if any(pair)))


def _fft(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    ndim = len(shape_of(eqn.invars[0]))
    return _along(eqn, operands, *range(ndim - len(eqn.params["fft_lengths"]), ndim))


def _sort(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    return _along(eqn, operands, eqn.params["dimension"])


def _split(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    return _along(eqn, operands, eqn.params["axis"])


def _rev(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    return _along(eqn, operands, *eqn.params["dimensions"])


def _top_k(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    return _along(eqn, operands, len(shape_of(eqn.invars[0])) - 1)


def _cumulative(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    axis = eqn.params["axis"]
    if eqn.params.get("reverse"):
        return _along(eqn, operands, axis)
    # Element t of a cumulative sum sees the elements up to t: aligned becomes causal.
    return [
        {
            source: tuple(causal(axis) if link.axis == axis else link for link in relation)
            for source, relation in operands[0].items()
        }
    ]


def _same_size(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    """Slices, pads and updates: an axis that keeps its full size keeps its elements in place."""
    out = shape_of(eqn.outvars[0])
    moved = []
    for relations, atom in zip(operands, eqn.invars, strict=True):
        shape = shape_of(atom)
        whole = {a for a, n in enumerate(shape) if len(shape) == len(out) and out[a] == n}
        moved.append(
            move(relations, lambda a, whole=whole: a if a in whole else None, eqn.primitive.name)
        )
    return [join(moved)]


def _slice(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    strides = eqn.params["strides"]
    if strides is not None and any(s != 1 for s in strides):
        return mix(eqn, operands)
    return _same_size(eqn, operands)


def _pad(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    padded = {
        a for a, config in enumerate(eqn.params["padding_config"]) if tuple(config) != (0, 0, 0)
    }
    return _along(eqn, operands, *padded)


def _dot_general(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    contract, batch = eqn.params["dimension_numbers"]
    num_batch = len(batch[0])
    # Axes of a product: batch axes, then free axes of the left operand, then those of the right one. Contracted ones are mixed.
    free = [
        [a for a in range(len(shape_of(v))) if a not in contract[i] and a not in batch[i]]
        for i, v in enumerate(eqn.invars[:2])
    ]

    def axis_of(i: int) -> Callable[[int], int | None]:
        start = num_batch + (len(free[0]) if i else 0)

        def f(a: int) -> int | None:
            if a in batch[i]:
                return list(batch[i]).index(a)
            return start + free[i].index(a) if a in free[i] else None

        return f

    return [join(move(operands[i], axis_of(i), "matrix product") for i in range(2))]


def _gather(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    source, ndim = shape_of(eqn.invars[0]), len(shape_of(eqn.outvars[0]))
    # Output axes are those of slices (`offset_dims`) and, in the other places, those of the indices.
    batch_out = [a for a in range(ndim) if a not in numbers.offset_dims]
    collapsed = set(numbers.collapsed_slice_dims) | set(numbers.operand_batching_dims)
    kept = [a for a in range(len(source)) if a not in collapsed]

    def operand_axis(a: int) -> int | None:
        if a in numbers.operand_batching_dims:
            i = list(numbers.operand_batching_dims).index(a)
            return batch_out[numbers.start_indices_batching_dims[i]]
        if a in kept and sizes[a] == source[a]:
            return numbers.offset_dims[kept.index(a)]
        return None

    def index_axis(a: int) -> int | None:
        return batch_out[a] if a < len(batch_out) else None

    return [
        join([move(operands[0], operand_axis, "gather"), move(operands[1], index_axis, "gather")])
    ]


def _scatter(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    numbers = eqn.params["dimension_numbers"]
    target, _, updates = map(shape_of, eqn.invars)
    batched = list(numbers.operand_batching_dims)
    in_window = [
        a for a in range(len(target)) if a not in {*numbers.inserted_window_dims, *batched}
    ]
    outside = [a for a in range(len(updates)) if a not in numbers.update_window_dims]

    def index_axis(a: int) -> int | None:
        if a not in numbers.scatter_indices_batching_dims:
            return None
        return batched[numbers.scatter_indices_batching_dims.index(a)]

    def update_axis(a: int) -> int | None:
        if a in outside:
            return index_axis(outside.index(a))
        to = in_window[list(numbers.update_window_dims).index(a)]
        # A window as long as the axis can stand at its start only.
        return to if updates[a] == target[to] else None

    moved = [operands[0], move(operands[1], index_axis, "scatter")]
    return [join([*moved, move(operands[2], update_axis, "scatter")])]


def _defined_above(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    """Primitives that JAX defines in its own terms; known is searchsorted: queries apart, in one table or that of their batch."""
    what = eqn.params["_prim"]
    if type(what).__name__ != "SearchSorted":
        return mix(eqn, operands)
    table = move(operands[0], lambda a: a if a < what.batch_dims else None, "searchsorted")
    return [join([table, operands[1]])]


def _convolution(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    numbers = eqn.params["dimension_numbers"]
    lhs, out = numbers.lhs_spec[0], numbers.out_spec[0]
    # The batch axis of images stays; every output of one image may see all of its pixels and channels.
    images = move(operands[0], lambda a: out if a == lhs else None, "convolution")
    kernel = move(operands[1], lambda _: None, "convolution")
    if eqn.params["batch_group_count"] != 1:
        return mix(eqn, operands)
    return [join([images, kernel])]


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(BATCHED_MATRIX, _batched_matrix),
    **dict.fromkeys(
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin".split(),
        _reduce,
    ),
    **dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp".split(), _cumulative),
    **dict.fromkeys(
        "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max".split(), _scatter
    ),
    **dict.fromkeys("reduce_window_sum reduce_window_max reduce_window_min".split(), _window),
    **dict.fromkeys("dynamic_slice dynamic_update_slice".split(), _same_size),
    "broadcast_in_dim": _broadcast,
    "call_hi_primitive": _defined_above,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "fft": _fft,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "top_k": _top_k,
    "transpose": _transpose,
    "unstack": _unstack,
}


def relations_of_axes(eqn: Equation, operands: list[Relations]) -> list[Relations]:
    """The relations of an equation's outputs, from those of its operands."""
    return RULES.get(eqn.primitive.name, mix)(eqn, operands)
