"""The analysed program of an expectation, with every check done: once per shape of its inputs, at values that are known.

Checks that only a trial can decide (`ppl.checks`) need numbers. They are those of the call; inside of a transformation, those
of an earlier call; else values that inputs of this kind may have.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .._compat import Jaxpr, is_concrete
from ..analysis import Analysed, RowProgram, analyse, traced_rows
from ..checks import (
    CheckJumps,
    ProgramSearch,
    abstract,
    behind_tangents,
    check_arguments,
    check_subsampled,
    concrete,
    concrete_tree,
    fingerprint,
    is_array,
    search_of,
    shape_of_input,
    signature_of,
    suspects_of,
    try_null_values,
    try_rows,
    with_quick_key,
)  # fmt: skip
from ..language import apply
from ..strategies import AUTO, Engine, StrategyError, as_strategy

_has_known_data = contextvars.ContextVar("has_known_data", default=False)
UNKNOWN = (
    ", at values that its arguments may have (they are not known inside of a transformation such as jit: call it once outside, "
    "e.g. .plan(params, *args), or hand them over as NumPy arrays that the function closes over)"
)


@contextlib.contextmanager
def known_data() -> Iterator[None]:
    """While this is open, arguments that are tracers hold rows of data at which the checks have been made."""
    token = _has_known_data.set(True)
    try:
        yield
    finally:
        _has_known_data.reset(token)


@dataclasses.dataclass
class _Check:
    """What is known of the programs of one shape.

    Attributes:
        demoted: site -> strategies that "auto" has to avoid.
        search: the search for jumps, where something was suspected.
        seconds: what the search took.
        data: fingerprints of the data at which nothing jumps, where it would jump at others; None where it jumps at none.
    """

    demoted: dict[str, set[str]]
    search: ProgramSearch | None = None
    seconds: float = 0.0
    data: set[int] | None = None

    def __str__(self) -> str:
        if self.search is None:
            return "nothing suspected"
        return f"searched in {self.seconds:.1f} s, because of {self.search}"


class _Now(threading.local):
    """What belongs to the call that a thread is making.

    Attributes:
        values: (params, args), as far as they are known; None between calls.
        has_checked: whether the check was made in this call.
    """

    values: PyTree = None
    has_checked: bool = False


class CheckedPrograms:
    """Makes the analysed program of a function for inputs of any shape.

    Args:
        fn: (params, *args) -> a scalar.
        strategies: of the sites.
        num_replicates: independent estimates that are averaged.
        check_jumps: whether to search for jumps, and how finely.
        examples: concrete (params, args) seen so far, at most one; shared with other expectations of these inputs.
        checks: what is known by the signature of the inputs; shared likewise.
    """

    def __init__(
        self,
        fn: Callable[..., PyTree],
        strategies: Mapping[str, Any] | str | None,
        num_replicates: int,
        check_jumps: CheckJumps,
        examples: list[tuple[PyTree, PyTree]] | None,
        checks: dict[str, PyTree] | None,
    ) -> None:
        self.fn, self.strategies, self.num_replicates = fn, strategies, num_replicates
        self.check_jumps, self.jump_search = check_jumps, search_of(check_jumps)
        self.examples = [] if examples is None else examples
        self.checks: dict[Any, _Check] = {} if checks is None else checks
        self._now = _Now()
        self.known: dict[
            int, tuple[Any, Any]
        ] = {}  # objects among arguments, see `check_arguments`

    @contextlib.contextmanager
    def shown(self, params: PyTree, args: PyTree) -> Iterator[None]:
        """While this is open the checks may try these values, as far as they are known."""
        check_arguments(args, self.known)
        # Under `jax.grad` alone the values are known behind the tangents.
        params, args = jax.tree.map(behind_tangents, (params, args))
        self._now.values, self._now.has_checked = (params, args), False
        if not self.examples and is_concrete((params, args)):
            self.examples.append((params, args))
        try:
            # Data at which a program may jump are looked at before the call; a check of its shape may come during it.
            was_checked = self._look_again(params, args)
            yield
            if not (was_checked or self._now.has_checked):  # by another thread, at its values
                self._look_again(params, args)
        finally:
            self._now.values = None

    def program(
        self, params: PyTree, args: tuple[PyTree, ...], key_impl: object = None
    ) -> Analysed:
        """The analysed program; checked once per shape, when it is also found what `auto` has to avoid."""
        signature = signature_of((params, args))
        if signature in self.checks:
            return self._analyse(params, args, self.checks[signature].demoted, key_impl)
        check = _Check({})
        while True:
            try:
                program = self._analyse(params, args, check.demoted, key_impl)
                if program.subsampled:
                    self._check_rows(check, program, params, args)
                self._search(check, program, params, args)
                break
            except StrategyError as error:
                # A refusal of a choice of `auto` makes it choose again, for that site alone; all other refusals stand.
                if not self._is_automatic(error.site, check.demoted):
                    raise
                check = _Check(self._demote(check.demoted, error.site))
        self.checks[signature], self._now.has_checked = check, True
        return program

    def checked_before(
        self,
        fn: Callable[..., PyTree],
        num_replicates: int,
        params: PyTree,
        args: PyTree,
        known: object,
    ) -> Analysed:
        """The analysed program of another function of the same sites, when that of `fn(params, *known)` has been checked."""
        demoted = self.checks[signature_of((params, known))].demoted
        return analyse(
            fn, params, jax.random.key(0), args,
            strategies=self.strategies, num_replicates=num_replicates, demoted=demoted,
        )  # fmt: skip

    def outcome(self, params: PyTree, args: PyTree) -> str:
        """What came of the search for jumps, in words."""
        return str(self.checks[signature_of((params, args))])

    def _analyse(
        self,
        params: PyTree,
        args: tuple[PyTree, ...],
        demoted: Mapping[str, set[str]],
        key_impl: object = None,
    ) -> Analysed:
        return analyse(
            self.fn, params, jax.random.key(0, impl=key_impl), args,
            strategies=self.strategies, num_replicates=self.num_replicates, demoted=demoted,
        )  # fmt: skip

    def _search(
        self, check: _Check, program: Analysed, params: PyTree, args: tuple[PyTree, ...]
    ) -> None:
        """Try rows that may meet and probabilities that may be 0, and search for jumps, if there is a reason to."""
        start = time.monotonic()
        shapes, fixed = (jax.tree.map(shape_of_input, tree) for tree in (params, args))
        copy = lambda: self.copy(shapes, fixed, check.demoted)
        if program.rows:
            known, _ = self._known(params, args)
            try_rows(program, copy, *self._leaves(*known))
        # Probabilities that may be 0 are tried at known values only: stand-ins would find zeros that never come.
        may_be_null = program.may_have_null_values and is_concrete(self._now.values)
        if may_be_null and (known := self._known(params, args))[1]:
            try_null_values(copy(), *self._leaves(*known[0]))
        if self.check_jumps and (suspects := suspects_of(program)):
            check.search = ProgramSearch(program.sites, suspects, copy, self.jump_search)
            self._look(check, params, args)
        check.seconds = time.monotonic() - start

    def _check_rows(
        self, check: _Check, program: Analysed, params: PyTree, args: tuple[ArrayLike, ...]
    ) -> None:
        """Refuse rows of a subsampled plate that meet."""
        shapes, fixed = (jax.tree.map(shape_of_input, tree) for tree in (params, args))
        fn, data = self._with_data(fixed)

        def trace() -> RowProgram:
            like, rows = jax.tree.map(abstract, (shapes, data))
            options = {"strategies": self.strategies, "demoted": check.demoted}
            traced = with_quick_key(
                lambda key: traced_rows(fn, like, rows, program.subsampled, key, **options)
            )
            return dataclasses.replace(traced, closed=_with_known_constants(traced.closed))

        known, _ = self._known(params, args)
        check_subsampled(trace, *self._leaves(*known))

    def _look(self, check: _Check, params: Array, args: PyTree) -> None:
        """Raise if the program jumps at these data; remember them if it jumps at others."""
        assert check.search is not None
        known, is_known = self._known(params, args)
        leaves, data = self._leaves(*known)
        found = check.search(leaves, data)
        check.search.refuse(found, elsewhere="" if is_known else UNKNOWN)
        # Other data may bring the jump that these do not.
        if not check.search.is_settled(found):
            check.data = (check.data or set()) | {fingerprint(data)}

    def _leaves(
        self, params: PyTree, args: tuple[ArrayLike, ...]
    ) -> tuple[list[ArrayLike], list[Array | np.ndarray]]:
        """The inputs of the program that `copy` makes, without the key."""
        return jax.tree.leaves(params), [x for x in jax.tree.leaves(args) if is_array(x)]

    def _look_again(self, params: PyTree, args: tuple[PyTree, ...]) -> bool:
        """Whether a check was made that data may fail; they are looked at then, as those of the first call were."""
        if all(check.data is None for check in list(self.checks.values())):
            return False
        check = self.checks.get(signature_of((params, args)))
        if check is None or check.data is None:
            return False
        leaves = [x for x in jax.tree.leaves(args) if is_array(x)]
        if is_concrete(leaves):
            if fingerprint(leaves) not in check.data:
                self._look(check, params, args)
        # Unknown data, under jit: stand-ins of their shapes decide.
        elif not _has_known_data.get():
            self._look(check, params, args)
        return True

    def _known(
        self, params: PyTree, args: tuple[ArrayLike, ...]
    ) -> tuple[tuple[PyTree, PyTree], bool]:
        """Values at which to search, and whether the arguments are those of the call."""
        shown = self._now.values or (params, args)
        is_known = is_concrete(shown[1]) or _has_known_data.get()
        example = self.examples[0] if self.examples else (None, None)
        known = [concrete_tree(t, e) for t, e in zip(shown, example, strict=True)]
        return (known[0], known[1]), is_known

    def copy(
        self, params: PyTree, args: tuple[PyTree, ...], demoted: Mapping[str, set[str]]
    ) -> Analysed:
        """The program analysed with data as inputs, in the precision that is in force."""
        fn, data = self._with_data(args)
        inputs = jax.tree.map(abstract, (params, data))
        copy = with_quick_key(
            lambda key: analyse(
                fn, inputs, key, (), strategies=self.strategies, demoted=demoted,
                num_replicates=self.num_replicates, num_params=len(jax.tree.leaves(params)),
            )
        )  # fmt: skip
        return dataclasses.replace(copy, closed=_with_known_constants(copy.closed))

    def _with_data(self, args: tuple[PyTree, ...]) -> tuple[Callable[..., PyTree], list[PyTree]]:
        """The function of (parameters, data), and the data: arrays among the arguments."""
        leaves, structure = jax.tree.flatten(args)
        is_data = [is_array(x) for x in leaves]

        def fn(inputs: tuple[PyTree, ...]) -> PyTree:
            params, data = inputs
            filled = iter(data)
            new = [next(filled) if f else x for x, f in zip(leaves, is_data, strict=True)]
            return apply(self.fn, (params, *jax.tree.unflatten(structure, new)))

        return fn, [x for x, flag in zip(leaves, is_data, strict=True) if flag]

    def _is_automatic(self, site: str, demoted: Mapping[str, set[str]]) -> bool:
        asked, _ = Engine(jax.random.key(0), self.strategies)._asked(site)
        return asked == "auto" and len(demoted.get(site, ())) < len(AUTO)

    def _demote(self, demoted: dict[str, set[str]], site: str) -> dict[str, set[str]]:
        for name in (as_strategy(choice).name for choice in AUTO):
            if name not in demoted.get(site, set()):
                return demoted | {site: demoted.get(site, set()) | {name}}
        return demoted


def _with_known_constants(closed: Jaxpr) -> Jaxpr:
    """A traced program for trials: arrays that it closes over and that are known at run time only get typical values."""
    return closed.replace(consts=[concrete(c) for c in closed.consts])
