"""Programs without some of their discrete sites, which are summed out exactly: part of `ppl.eliminate`.

Input: a program p(z, v), z the named sites. Output: the program over v with

    log p(v) = log sum_z p(z, v),

by variable elimination on the traced program: every site's log-prob is a factor, the static analysis (`jaxprs/_dependence.py`)
proves along which plates factors separate and which sites are chains, and `enumeration/_total.py` sums. The program is
traced at given v, so that only z is enumerated; what does not depend on z keeps its own log-prob.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.distributions import constraints

from .._compat import handler_stack, typed_key
from .._types import Choices, Key
from ..traces import Trace, keep_terms, refuse_inside_engine
from ._listing import Listing, list_factors
from ._outside import check_left, check_outside, check_reach, check_stack, declared, is_predicting
from ._stochastic import as_arrays
from ._without import Without

Array = jax.Array


class Summed(Without):
    """A program over the choices that are left. Part of what `ppl.eliminate` makes."""

    def simulate(self, key: Key, *args: PyTree, **kwargs: PyTree) -> Trace:
        """Draw the choices that are left (and everything else) from the prior; the log-density is the marginal one."""
        refuse_inside_engine("simulate")
        joint = self.program.simulate(key, *args, **kwargs)
        trace = self._score(self._without(joint.choices), *args, **kwargs)
        return dataclasses.replace(trace, retval=joint.retval)

    def generate(
        self, key: Key, constraints: Mapping[str, Array], *args: PyTree, **kwargs: PyTree
    ) -> tuple[Trace, Array]:
        """The trace and its weight: the log-density if every choice is given.

        Else the weight of a draw of the whole program, unbiased too.
        """
        refuse_inside_engine("generate")
        check_left(self.label, self.sites, constraints, "summed")
        joint, log_weight = self.program.generate(key, constraints, *args, **kwargs)
        kept = self._without(joint.choices)
        trace = self._score(kept, *args, **kwargs)
        return trace, trace.log_density if set(kept) == set(constraints) else log_weight

    def _traced(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
        listing = self._listing(as_arrays(choices), args, kwargs)
        return self._remember_listing(listing, listing.trace(self.label))

    def posterior(
        self, key: Key, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, Array]:
        """One joint draw of the summed sites given the choices and the data: the recursion run backwards."""
        refuse_inside_engine("posterior")
        listing = self._listing(as_arrays(choices), args, kwargs)
        return listing.assignment("sample", typed_key(key))

    def posterior_probs(
        self, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, Array]:
        """Posterior probability of each value of each eliminated site: site -> array (*elements, values)."""
        return self._listing(as_arrays(choices), args, kwargs).probabilities()

    def posterior_marginals(
        self, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, dist.Normal]:
        """Refused: under a sum the marginals are mixtures."""
        raise TypeError(
            f"{self.label}: sites {list(self.sites)} are summed out, so that the marginals of the others are no normal laws. "
            "Draw them, posterior(key, choices, *args, num_samples=...), or eliminate the normal sites alone."
        )

    def mode(
        self, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> tuple[dict[str, Array], Array]:
        """The most probable joint assignment of the eliminated sites, and its log-density with everything else (nats).

        By max-product elimination (Viterbi, for a chain).
        """
        if isinstance(self.program, Without):
            raise TypeError(
                f"{self.label}: the most probable assignment of summed and integrated sites together is not known here. "
                f"Eliminate {list(self.program.sites)} alone and compare values of {list(self.sites)}, or draw from the "
                "posterior."
            )
        listing = self._listing(as_arrays(choices), args, kwargs)
        found = listing.assignment("max", None)
        return found, self.program.log_density({**choices, **found}, *args, **kwargs)

    def forecast_trace(
        self, key: Key, choices: Choices, num_seen: int | None, *args: PyTree, **kwargs: PyTree
    ) -> Trace:
        """Refused: the sites are drawn from all observations."""
        raise TypeError(
            f"{self.label}: its sites are drawn from all observations, so num_seen has no meaning. Draw them for the steps "
            "that were seen, by posterior(key, choices, *args), and forecast the program that it was made of."
        )

    def propose(
        self, key: Key, choices: Choices, keep: object, *args: PyTree, **kwargs: PyTree
    ) -> Trace:
        """Refused: a draw would not have the marginal density."""
        raise TypeError(
            f"{self.label}: propose runs statement by statement; use the program it was made of."
        )

    def _draw(self, *args: PyTree, **kwargs: PyTree) -> Trace:
        raise TypeError(
            f"{self.label}: it is scored, not drawn, inside an objective: a draw would need the eliminated sites and their "
            "gradient strategies. Use it as the model; as a guide, use the program it was made of, or ppl.marginal."
        )

    def _without(self, choices: Mapping[str, Array]) -> dict[str, Array]:
        return {name: value for name, value in choices.items() if name not in self.sites}

    def _remember_listing(self, listing: Listing, trace: Trace) -> Trace:
        self._seen.update(sites=trace.sites, params=listing.params)
        keep_terms(trace, self)
        return trace

    def _listing(
        self, kept: dict[str, Array], args: tuple[Array, ...], kwargs: dict[str, PyTree]
    ) -> Listing:
        check_stack(self.label)
        check_left(self.label, self.sites, kept, "summed")
        params = declared(self.program, args, kwargs)[0] if handler_stack() else {}
        return list_factors(self.label, self.program, self.sites, kept, params, args, kwargs)

    def _statements(self, *args: PyTree, **kwargs: PyTree) -> None:
        """For NumPyro's inference: each kept site as a flat statement, and one factor with the marginal density."""
        check_outside(self.label)
        if is_predicting():
            self.program(*args, **kwargs)
            return
        check_reach(self.label, self.program, self.sites, args, kwargs)
        params, latent = declared(self.program, args, kwargs)
        kept = {}
        for name, (support, draw) in latent.items():
            if name in self.sites:
                continue
            if not all(isinstance(x, int | float | np.ndarray) for x in jax.tree.leaves(support)):
                raise ValueError(
                    f"Site '{name}': its support {support} is computed and may depend on other sites or on the step, but "
                    f"{self.label} hands it to NumPyro's inference ahead of them. Give it fixed bounds (Python numbers or "
                    "NumPy arrays), or transform a site that has."
                )
            kept[name] = numpyro.sample(name, _Flat(support, draw, self.label))
        listing = list_factors(self.label, self.program, self.sites, kept, params, args, kwargs)
        numpyro.factor(self.label, listing.trace(self.label).log_density)


class _Flat(dist.Distribution):
    """No density of its own; its samples are draws from the whole program's prior, the first made beforehand."""

    support: Any = constraints.dependent
    pytree_data_fields = ("draw_made", "support")
    pytree_aux_fields = ("eliminated",)

    def __init__(self, support: Any, draw_made: Array, eliminated: str = "") -> None:
        self.eliminated = eliminated
        self.support = constraints.independent(support, draw_made.ndim - support.event_dim)
        self.draw_made = draw_made
        super().__init__((), draw_made.shape)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """The draw, which NumPyro's starting points (`init_to_median`, `init_to_mean`) are then made of as well."""
        return jnp.broadcast_to(self.draw_made, (*sample_shape, *self.draw_made.shape))

    @property
    def mean(self) -> Array:
        raise NotImplementedError  # `init_to_mean` then falls back on draws

    def log_prob(self, value: Array) -> Array:
        return jnp.zeros(())
