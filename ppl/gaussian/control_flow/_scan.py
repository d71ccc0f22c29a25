"""A scan of a program whose Gaussian sites are integrated out: which carried values are uncertain, how a step is run.

Uncertain values are forms, affine in a vector of normal numbers, the basis (`_forms.py`); the belief is the law of the
basis. A step *hands on* the forms among the carried values, and those from outside of the scan that are still read.
Their joint law is the belief with which the next step begins. `_run_scan.py` runs the steps, one after the other or
at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..._compat import Equation, no_handlers, scan_counts
from ...traces import first_step
from .._arranged import Shaped, unit_forms
from .._forms import Beyond, Form, is_certain
from .._lift import holds_statement
from ..beliefs import Belief, known, no_belief
from ._kinds import Kind, either, kind_of, rows_of_step

if TYPE_CHECKING:
    from .._integrator import Integrator

PUT_TOGETHER = "a scan, whose steps are put together"


class Scan:
    """One scan of a lifted program.

    Attributes:
        kept: forms besides the carry that later steps or later statements read, by `id`.
        kinds: of the carried values (`_kinds.py`), the same in every step.
        y_kinds: of the stacked results.
        reads: for each result, carried or stacked, whether a statement depends on it.
        rows: sizes of the axes of separate rows, the leading ones of a belief.
        is_changed: whether a step adds to the basis or conditions it.
        lost: `Beyond` in place of the uncertain stacked results, if a statement reads some of them and they cannot be
            forms; else None. Set by `run_scan`, as is `is_joined`.
        is_joined: whether the noise of all steps is the basis afterwards, since a statement reads stacked forms.

    Args:
        outer: what runs the program that holds the scan.
        eqn: the scan.
        args: its arguments.
    """

    def __init__(self, outer: Integrator, eqn: Equation, args: list[PyTree]) -> None:
        self.outer, self.eqn, self.body = outer, eqn, eqn.params["jaxpr"]
        num_consts, num_carry = scan_counts(eqn.params)
        self.consts, self.init = args[:num_consts], args[num_consts : num_consts + num_carry]
        self.xs = args[num_consts + num_carry :]
        self.length = eqn.params["length"]
        self.has_statements = holds_statement(eqn)
        self.has_slices = True  # forms in xs are sliced, as long as no step changes the basis
        self.kept = dict(outer.live())
        self.kept.update({id(x): x for x in self.consts if isinstance(x, Form)})
        self.kinds = [kind_of(x) for x in self.init]
        self.reads = list(outer.is_read)
        self.y_kinds: list[Kind] = []
        self.out_kinds: list[Kind] = []
        self.rows = tuple(() if outer.belief is None else outer.belief.mean.shape[:-1])
        self.is_changed = self._explore()
        if self.is_changed and any(isinstance(x, Form) for x in self.xs):
            self.has_slices = False
            self.kinds = [kind_of(x) for x in self.init]
            self._explore()
        self.lost: Beyond | None = None
        self.is_joined = False

    def _explore(self) -> bool:
        """Whether the belief changes within the steps; sets the kinds of carried values and results."""
        # A fixed point: a carried value is uncertain if it is at the start or after a step whose carry is. Kinds only
        # grow (certain -> affine -> beyond affine), so that this ends.
        num_carry = len(self.init)
        has_changed = False

        def run() -> None:
            nonlocal has_changed
            probe = self.outer.inner(is_dry=True)  # made in here, so that no tracer leaks
            carry, kept = self.open_step(probe)
            if probe.belief is None and self.outer.belief is not None:
                # Slices of forms need a basis, if an empty one.
                probe.belief = no_belief(self.rows)
            xs = [self.first(x) for x in self.xs]
            outs = self.step(probe, carry, kept, xs)
            self.out_kinds = [kind_of(x) for x in outs]
            self.outer.rows = probe.rows
            if probe.belief is not None:
                self.rows = tuple(probe.belief.mean.shape[:-1])
            has_changed = probe.has_changed

        while True:
            with no_handlers():
                jax.eval_shape(lambda: run())  # a new function each time: nothing is cached
            found = self.out_kinds
            joined = [either(a, b) for a, b in zip(self.kinds, found[:num_carry], strict=True)]
            if joined == self.kinds:
                self.y_kinds = found[num_carry:]
                return has_changed
            self.kinds = joined

    def first(self, x: PyTree) -> PyTree:
        """The slice of a scanned-over value that stands for all of them: the first, or zeros if there are no steps."""
        if isinstance(x, Beyond):
            return x
        # Only the kind of the slice of a form is needed: const [T, ...] -> [...], no columns, axes of rows less by one.
        if isinstance(x, Form) and self.has_slices:
            return Form(
                first_step(x.const),
                x.coefs[:0].reshape(0, *x.const.shape[1:]),
                rows_of_step(x.rows),
            )
        if isinstance(x, Form):
            return Beyond(
                "a scan over sites outside of it", "Draw the site of each step inside of the step."
            )
        return first_step(x)

    def step(
        self, inner: Integrator, carry: list[PyTree], kept: dict[int, Form], xs: list[PyTree]
    ) -> list[PyTree]:
        """The outputs of the scan's body, carry and results, from the carry, the kept forms by id, and slices."""
        consts = [kept.get(id(x), x) for x in self.consts]
        inner.open.append((kept, set(kept)))
        is_read = [True] * len(self.init) + self.reads[len(self.init) :]
        return inner.settled(inner.run(self.body, [*consts, *carry, *xs], is_read))

    def handed_on(self) -> list[Shaped]:
        """Shape, type and rows of each value that is handed on: of the uncertain carried ones, then of those kept."""
        invars = self.body.jaxpr.invars[len(self.consts) :]
        carried = [
            Shaped(v.aval.shape, v.aval.dtype, kind)
            for v, kind in zip(invars, self.kinds, strict=False)
            if isinstance(kind, tuple)
        ]
        return [*carried, *map(Shaped.of, self.kept.values())]

    def open_step(
        self, inner: Integrator, carry: Sequence[PyTree] | None = None, belief: Belief | None = None
    ) -> tuple[list[PyTree], dict[int, Form]]:
        """The carried values, and the kept forms by id, in the basis of what is handed to a step.

        `inner.belief` becomes `belief`, the law of that basis; if it is None and something is handed on, known zeros,
        for a step that is only traced or collected as affine maps.
        """
        # The basis is the vector of the n numbers that are handed on. Each value is its own entries of it: a form with
        # const 0 and unit coefficients, coefs [n, *value.shape].
        forms = unit_forms(self.handed_on())
        if belief is not None:
            inner.belief = belief
        elif forms:
            inner.belief = known(jnp.zeros((*self.rows, forms[0].coefs.shape[0])))
        return self.values(self.certain(self.init) if carry is None else carry, forms)

    def values(
        self, certain: Sequence[PyTree], forms: Sequence[Form]
    ) -> tuple[list[PyTree], dict[int, Form]]:
        """The carried values, and the kept forms by id, put together from certain values and the forms handed on."""
        sure, uncertain = iter(certain), iter(forms)
        values = [
            next(uncertain) if isinstance(k, tuple) else k if isinstance(k, Beyond) else next(sure)
            for k in self.kinds
        ]
        return values, dict(zip(self.kept, uncertain, strict=True))

    def certain(self, values: Sequence[PyTree]) -> list[PyTree]:
        """Those carried values that are certain."""
        return [x for x, k in zip(values, self.kinds, strict=False) if k is None]

    def start(self) -> Belief | None:
        """The belief of what is handed to the first step; None where no belief is handed on."""
        return self.belief_of(self.outer, self.init, self.kept) if self.has_belief else None

    @property
    def has_belief(self) -> bool:
        """Whether a belief is handed on: if a value is, or if sites are smoothed (then also a belief of no value)."""
        return bool(self.handed_on()) or self.outer.emit.smoothing is not None

    def slices(self) -> list[PyTree]:
        """For each value that is scanned over, itself if it is certain, else None."""
        return [None if not is_certain(x) else x for x in self.xs]

    def given(self, x: Sequence[Array]) -> list[PyTree]:
        """The slices of one step: `x` for certain values; for others, where `x` is None, what `first` returns."""
        return [self.first(a) if b is None else b for a, b in zip(self.xs, x, strict=True)]

    def filter_step(
        self,
        inner: Integrator,
        certain: Sequence[Array],
        belief: Belief | None,
        x: Sequence[PyTree],
    ) -> tuple[list[PyTree], Belief | None]:
        """The outputs of one step, and the belief of what it hands on (None where no belief is handed on)."""
        values, kept = self.open_step(inner, certain, belief)
        outs = self.step(inner, values, kept, self.given(x))
        carry = outs[: len(self.init)]
        return outs, self.belief_of(inner, carry, kept) if self.has_belief else None

    def results(
        self, certain: list[Array], belief: Belief | None, ys: Sequence[PyTree]
    ) -> list[Array | Beyond | Form]:
        """The results of the scan, carried values and then stacked ones, in the basis of what the last step hands on.

        `belief` of this basis becomes that of `outer`, and its kept forms are written in it.
        """
        outer = self.outer
        outer.has_changed, outer.belief = True, belief
        values, kept = self.open_step(outer, certain, belief)
        outer.replace(kept)
        return [*values, *self.stacked(ys)]

    def belief_of(
        self, inner: Integrator, values: Sequence[PyTree], kept: dict[int, Form]
    ) -> Belief:
        """The belief of what is handed on, N(mean, root root^T) of one vector of n numbers."""
        if inner.belief is None:
            inner.belief = self.outer.nothing(self.rows)
        # Smoothed sites that are not kept are read before their basis goes.
        inner.tell(kept)
        # The law of affine forms of the old basis; the root is n x n, however many columns the step has added.
        return inner.law_of(self.forms(values, kept), is_square=True)

    def forms(self, values: Sequence[PyTree], kept: dict[int, Form]) -> list[Form]:
        """The forms of what is handed on, in the order of `handed_on`."""
        carried = [x for x, k in zip(values, self.kinds, strict=False) if isinstance(k, tuple)]
        forms = []
        for value, (shape, dtype, rows) in zip(
            [*carried, *kept.values()], self.handed_on(), strict=True
        ):
            # Certain here, though uncertain in other steps: a constant, with coefficients of 0 columns.
            if is_certain(value):
                value = Form(jnp.asarray(value, dtype), jnp.zeros((0, *shape), dtype), rows)
            forms.append(value)
        return forms

    def stacked(self, ys: Sequence[PyTree], forms: Sequence[Form] = ()) -> list[PyTree]:
        """The stacked results: `ys` where they are certain, `forms` where a statement reads them, else `Beyond`."""
        found, read = iter(ys), iter(forms)
        return [
            next(found)
            if k is None
            else k
            if isinstance(k, Beyond)
            else self.lost or (next(read) if is_read else Beyond(PUT_TOGETHER))
            for k, is_read in zip(self.y_kinds, self.reads[len(self.init) :], strict=True)
        ]
