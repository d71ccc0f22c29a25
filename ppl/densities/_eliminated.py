"""What `ppl.eliminate` returns: calls that are carried out once arguments say which sites are continuous."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpyro.distributions as dist
from jaxtyping import PyTree

from .._compat import no_handlers, typed_key
from .._types import Choices, Key, ParamMap
from ..language import Program
from ..traces import Params, Runner, Trace
from ._integrated import Integrated
from ._lost_digits import warn_of_nan
from ._outside import supports_of
from ._sums import Summed

Array = jax.Array


class Call(NamedTuple):
    """One call of `ppl.eliminate`."""

    sites: tuple[str, ...]
    approximation: str | None
    parallel: bool


class Eliminated(Program):
    """A program over the choices that are left. Made by `ppl.eliminate`.

    Attributes:
        program: the program with all its sites.
        calls: what each call said, the first one's first.
        sites: all of them.
    """

    def __init__(
        self,
        program: Program,
        calls: tuple[Call, ...],
        continuous: dict[Any, frozenset[str]] | None = None,
    ) -> None:
        super().__init__(self._statements)
        self.program, self.calls = program, calls
        self.sites = tuple(name for call in calls for name in call.sites)
        biased = sorted({f"{c.approximation}: approximate" for c in calls if c.approximation})
        self.__name__ = self.label = f"eliminate[{'; '.join([', '.join(self.sites), *biased])}]"
        # shapes and other properties of arguments -> which of the sites are continuous
        self._continuous: dict[Any, frozenset[str]] = {} if continuous is None else continuous

    @property
    def summed_out(self) -> tuple[str, ...]:
        """Sites whose law stays under a mask around it (`ppl.mask`)."""
        return self.sites

    def rebuilt(self, transform: Callable[..., PyTree]) -> Eliminated:
        """This elimination of a transformed program."""
        return Eliminated(transform(self.program), self.calls)

    def bind(self, params: ParamMap) -> Eliminated:
        bound = Eliminated(self.program.bind(params), self.calls, self._continuous)
        bound.params = params
        return bound

    def made(self, *args: PyTree, **kwargs: PyTree) -> Summed | Integrated:
        """The program that this one stands for: normal sites integrated out call by call, then discrete ones summed out."""
        continuous, made = frozenset(self.integrated(*args, **kwargs)), self.program
        for call in self.calls:
            if names := tuple(name for name in call.sites if name in continuous):
                how = {"approximation": call.approximation, "parallel": call.parallel}
                made = Integrated(made, names, self.label, **how)
        if others := tuple(name for name in self.sites if name not in continuous):
            made = Summed(made, others, self.label)
        assert isinstance(made, Summed | Integrated)
        made._seen, made.params = self._seen, self.params
        return made

    def integrated(self, *args: PyTree, **kwargs: PyTree) -> tuple[str, ...]:
        """The names of the sites that are integrated out."""
        signature = _signature(args, kwargs)
        if signature not in self._continuous:
            with no_handlers():
                supports = supports_of(self.program, args, kwargs)
            self._continuous[signature] = frozenset(
                name for name in self.sites if name in supports and not supports[name].is_discrete
            )
        return tuple(name for name in self.sites if name in self._continuous[signature])

    def is_summed(self, *args: PyTree, **kwargs: PyTree) -> bool:
        """Whether discrete sites are summed out."""
        return len(self.integrated(*args, **kwargs)) < len(self.sites)

    def log_density(self, choices: Choices, *args: PyTree, **kwargs: PyTree) -> Array:
        """Log-density of the choices that are left and the observations; NaN, with a warning, where no digits are left."""
        found = super().log_density(choices, *args, **kwargs)
        warn_of_nan(self, "the log-density", found, choices, args, kwargs)
        return found

    def simulate(self, key: Key, *args: PyTree, **kwargs: PyTree) -> Trace:
        """Draw the choices that are left (and everything else) from the prior; the log-density is the marginal one."""
        return self.made(*args, **kwargs).simulate(key, *args, **kwargs)

    def generate(
        self, key: Key, constraints: Mapping[str, Array], *args: PyTree, **kwargs: PyTree
    ) -> tuple[Trace, Array]:
        """The trace and its weight: the log-density if every choice is given.

        Else the weight of a draw of the whole program, unbiased too.
        """
        return self.made(*args, **kwargs).generate(key, constraints, *args, **kwargs)

    def trace(self, choices: Choices, *args: PyTree, **kwargs: PyTree) -> Trace:
        """The trace of given choices.

        Its log-probs are those of the sites that do not depend on the eliminated ones; where sites are summed out, the marginal
        log-weight of all others, row by row where they separate; where all are integrated out, those of the observations given
        the ones before, with the program's return value (None where that depends on the eliminated sites).

        Raises:
            ValueError: the choices are not exactly those that are left; any refusal of `ppl.eliminate`.
        """
        return super().trace(choices, *args, **kwargs)

    def _traced(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
        return self.made(*args, **kwargs)._traced(choices, *args, **kwargs)

    def posterior(
        self,
        key: Key,
        choices: Choices,
        *args: PyTree,
        num_samples: int | None = None,
        **kwargs: PyTree,
    ) -> dict[str, Array]:
        """Joint draws of the eliminated sites given the choices and the data.

        Sites that are summed out are drawn by the recursion run backwards, then those that are integrated out given them, those
        of the last call first.

        Args:
            key: PRNG key.
            choices: a value for every site that is left.
            args: the program's arguments.
            num_samples: number of independent draws (a leading axis); None: one, without that axis.
            kwargs: its keyword arguments.
        """
        made = self.made(*args, **kwargs)
        draw = lambda key: made.all_drawn(key, choices, *args, **kwargs)
        if num_samples is None:
            found = draw(typed_key(key))
        else:
            found = jax.vmap(draw)(jax.random.split(typed_key(key), num_samples))
        warn_of_nan(self, "posterior", found, choices, args, kwargs)
        return found

    def posterior_probs(
        self, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, Array]:
        """Posterior probability of each value of each site that is summed out: site -> array (*elements, values)."""
        return self.made(*args, **kwargs).posterior_probs(choices, *args, **kwargs)

    def posterior_marginals(
        self, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, dist.Normal]:
        """The law of each number of the integrated sites given the choices and the data: site -> Normal of the site's shape.

        For a series these are the smoothed means and standard deviations. NaN where rounding may have made more than 1 % of a
        scale (`docs/limits.md`), and a warning says at which condition number; so are draws.
        """
        found = self.made(*args, **kwargs).posterior_marginals(choices, *args, **kwargs)
        moments = [(law.loc, law.scale) for law in found.values()]
        warn_of_nan(self, "posterior_marginals", moments, choices, args, kwargs)
        return found

    def mode(
        self, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> tuple[dict[str, Array], Array]:
        """The most probable joint assignment of the eliminated sites, and its log-density with everything else (nats).

        By max-product elimination (Viterbi, for a chain) where sites are summed out; the posterior mean where they are normal.
        """
        found, log_density = self.made(*args, **kwargs).mode(choices, *args, **kwargs)
        warn_of_nan(self, "mode", found, choices, args, kwargs)
        return found, log_density

    def predict_trace(self, key: Key, choices: Choices, *args: PyTree, **kwargs: PyTree) -> Trace:
        """Redraw observations given the choices, with the eliminated sites from their posterior."""
        k1, k2 = jax.random.split(typed_key(key))
        drawn = self.posterior(k1, choices, *args, **kwargs)
        return self.program.predict_trace(k2, {**choices, **drawn}, *args, **kwargs)

    def forecast_trace(
        self, key: Key, choices: Choices, num_seen: int | None, *args: PyTree, **kwargs: PyTree
    ) -> Trace:
        """`predict_trace`; with `num_seen`, the observations of later steps given those of the first ones."""
        if num_seen is None:
            return self.predict_trace(key, choices, *args, **kwargs)
        return self.made(*args, **kwargs).forecast_trace(key, choices, num_seen, *args, **kwargs)

    def propose(
        self, key: Key, choices: Choices, keep: object, *args: PyTree, draw: object = None,
        runner: Callable[..., Runner] = Runner, **kwargs: PyTree,
    ) -> Trace:  # fmt: skip
        """A trace drawn where all sites are integrated out, as of any program.

        Raises:
            TypeError: sites are summed out, so that a draw would not have the marginal density.
        """
        made = self.made(*args, **kwargs)
        return made.propose(key, choices, keep, *args, draw=draw, runner=runner, **kwargs)

    def init(self, key: Key, *args: PyTree, **kwargs: PyTree) -> Params:
        return self.program.init(key, *args, **kwargs)

    def _draw(self, *args: PyTree, **kwargs: PyTree) -> Trace:
        return self.made(*args, **kwargs)._draw(*args, **kwargs)

    def _statements(self, *args: PyTree, **kwargs: PyTree) -> Any:
        return self.made(*args, **kwargs)(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Program {self.label} of {self.program!r}>"


def _signature(args: tuple[PyTree, ...], kwargs: dict[str, PyTree]) -> PyTree:
    """What of the arguments may decide which statements run: shapes of arrays, and everything that is none."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    is_array = lambda x: hasattr(x, "shape") and hasattr(x, "dtype")
    return tree, tuple((x.shape, str(x.dtype)) if is_array(x) else repr(x) for x in leaves)
