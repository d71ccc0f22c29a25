"""Checks that wait until somebody differentiates once more: in the arguments of an expectation, or its gradient.

Each is an expectation of its own, of the function with other inputs as its parameters or of its gradient, which runs every check.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, PyTree

from .._types import Args
from ..analysis import Analysed
from ..checks import as_number, shape_of_input, signature_of, watched
from ..language import apply
from ._again import check_derivatives, moving, refusal_of_jump, slope_of
from ._checked import CheckedPrograms


class FurtherChecks:
    """Those of one function.

    Args:
        programs: of the function.
        make: an expectation of another function, with strategies and options by keyword.
    """

    def __init__(self, programs: CheckedPrograms, make: Callable[..., Any]) -> None:
        self.programs, self.make = programs, make
        self._twice: set[object] = set()  # signatures at which the gradient may be differentiated

    def watch(self, program: Analysed, params: PyTree, args: Args, inputs: Args) -> Analysed:
        """A program that checks derivatives in its arguments, if somebody takes them.

        `inputs` are the arguments, which may have coefficients before them.
        """
        shapes = jax.tree.map(shape_of_input, (params, args))
        shift = len(inputs) - len(args)
        search = (
            (lambda leaf: self._with_argument(leaf - shift, *shapes))
            if self.programs.check_jumps
            else None
        )
        return watched(program, inputs, search)

    def once_more(self, params: PyTree, args: Args) -> Callable[[], None]:
        """What to do when a gradient is differentiated: see that it is one, and search it for jumps, once per shape."""
        shapes = jax.tree.map(
            shape_of_input, (params, args)
        )  # the rule outlives this trace: it must not hold its tracers
        signature = signature_of(shapes)

        def check() -> None:
            if signature in self._twice:
                return
            plain = self.make(self.programs.fn, self.programs.strategies, check_jumps=False)
            if self.programs.check_jumps:
                self._search_gradient(plain, *shapes)
            _ready(plain, *shapes, use=lambda program: check_derivatives(program.closed.jaxpr))
            self._twice.add(signature)

        return check

    def _search_gradient(self, plain: PyTree, params: PyTree, args: Args) -> None:
        """Refuse a gradient that jumps at fixed noise."""
        # The gradient as a function of its own: parameters and floating arguments move, the rest is held.
        split = lambda params, args: ((params, moving(args)[0]), (moving(args)[1],))
        inner = self.make(
            slope_of(plain.value),
            check_jumps=self.programs.check_jumps,
            examples=[split(*known) for known in self.programs.examples],
        )
        try:
            _ready(inner, *split(params, args))
        except ValueError as err:
            raise refusal_of_jump(err) from err

    def _with_argument(self, number: int, params: PyTree, args: Args) -> None:
        """Run every check with leaf `number` of the arguments among the parameters."""
        if not self.programs.examples:
            raise ValueError(
                "It may decide a comparison with noise, and no values are known for a search for jumps. Call the expectation "
                "once with numbers, outside of jit and vmap, before it is differentiated there."
            )
        structure = jax.tree.structure(args)

        # Leaf `number` leaves the arguments, None in its place, and joins the parameters.
        def move(leaves: list[PyTree]) -> tuple[PyTree, list[PyTree]]:
            return leaves[number], [*leaves[:number], None, *leaves[number + 1 :]]

        def fn(both: PyTree, leaves: list[PyTree]) -> PyTree:
            whole = [*leaves[:number], both[1], *leaves[number + 1 :]]
            return apply(self.programs.fn, (both[0], *jax.tree.unflatten(structure, whole)))

        examples = []
        for known, others in self.programs.examples:
            value, rest = move([as_number(x) for x in jax.tree.leaves(others)])
            examples.append(((known, value), (rest,)))
        inner = self.make(
            fn,
            self.programs.strategies,
            num_replicates=self.programs.num_replicates,
            check_jumps=self.programs.check_jumps,
            examples=examples,
        )
        moved, rest = move(jax.tree.leaves(args))
        _ready(inner, (params, moved), (rest,))


def _ready(
    expectation: PyTree,
    params: PyTree,
    args: Args,
    use: Callable[[Analysed], None] = lambda program: None,
) -> None:
    """Every check of an expectation at inputs of which only shapes are known; `use` sees the program."""
    import equinox as eqx

    arrays, static = eqx.partition((params, args), lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def run(arrays: tuple[Array | tuple[Array, PyTree], tuple[PyTree, ...]]) -> int:
        params, args = eqx.combine(arrays, static)
        use(expectation.ready(params, *args))
        return 0

    jax.eval_shape(run, arrays)
