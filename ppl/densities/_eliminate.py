"""`ppl.eliminate`: a program without some of its discrete sites, which are summed out exactly.

Input: a program p(z, v), z the named sites. Output: the program over v with

    log p(v) = log sum_z p(z, v),

by variable elimination on the traced program: every site's log-prob is a factor, the static analysis (`jaxprs/_dependence.py`)
proves along which plates factors separate and which sites are chains, and `enumeration/_total.py` sums. The program is
traced at given v, so that only z is enumerated; what does not depend on z keeps its own log-prob.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.primitives import Messenger

from .._compat import handler_stack, own_caches, typed_key
from ..language import ChoiceMismatch, GivenSites, Program, as_program
from ..traces import (
    Bound,
    ParamCollector,
    Params,
    Recorder,
    Runner,
    Trace,
    keep_terms,
    refuse_inside_engine,
)
from ._listing import Listing, alone, list_factors
from ._stochastic import as_arrays

Array = jax.Array
# NumPyro's handlers that do not see inside a sum, and those that only give values, names and keys.
BLIND = (
    numpyro.plate, handlers.condition, handlers.do, handlers.lift, handlers.reparam, GivenSites,
)  # fmt: skip
PLAIN = (
    Bound, ParamCollector, handlers.seed, handlers.trace, handlers.substitute, handlers.block, handlers.replay,
)  # fmt: skip


class Eliminated(Program):
    """A program over the choices that are left. Made by `ppl.eliminate`."""

    def __init__(self, program: Program, sites: tuple[str, ...]) -> None:
        super().__init__(self._statements)
        self.__name__ = self.label = f"eliminate[{', '.join(sites)}]"
        self.program, self.sites = program, sites

    @property
    def summed_out(self) -> tuple[str, ...]:
        """Sites whose law stays under a mask around it (`ppl.mask`)."""
        return self.sites

    def rebuilt(self, transform: Any) -> Eliminated:
        """The same elimination of a transformed program."""
        return Eliminated(transform(self.program), self.sites)

    def bind(self, params: Mapping[str, Any]) -> Eliminated:
        bound = Eliminated(self.program.bind(params), self.sites)
        bound.params = params
        return bound

    def simulate(self, key: Any, *args: Any, **kwargs: Any) -> Trace:
        """Draw the choices that are left (and everything else) from the prior; the log-density is the marginal one."""
        refuse_inside_engine("simulate")
        joint = self.program.simulate(key, *args, **kwargs)
        trace = self._score(self._without(joint.choices), *args, **kwargs)
        return dataclasses.replace(trace, retval=joint.retval)

    def generate(
        self, key: Any, constraints: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Trace, Array]:
        """With every choice given: its trace and log-density; else the weight of a draw of the whole program, unbiased too."""
        refuse_inside_engine("generate")
        self._check_left(constraints)
        joint, log_weight = self.program.generate(key, constraints, *args, **kwargs)
        kept = self._without(joint.choices)
        trace = self._score(kept, *args, **kwargs)
        return trace, trace.log_density if set(kept) == set(constraints) else log_weight

    def trace(self, choices: Mapping[str, Any], *args: Any, **kwargs: Any) -> Trace:
        """The trace of given choices (without the program's return value).

        Its log-probs are those of the sites that do not depend on the eliminated ones, and the marginal log-weight of
        all others, row by row where they separate.

        Raises:
            ValueError: the choices are not exactly those that are left; any refusal of `ppl.eliminate`.
        """
        return super().trace(choices, *args, **kwargs)

    def _traced(self, choices: Mapping[str, Any], *args: Any, **kwargs: Any) -> Trace:
        listing = self._listing(as_arrays(choices), args, kwargs)
        return self._remember_listing(listing, listing.trace(self.label))

    def posterior(
        self,
        key: Any,
        choices: Mapping[str, Any],
        *args: Any,
        num_samples: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Joint draws of the eliminated sites given the choices and the data: the recursion run backwards.

        Args:
            key: PRNG key.
            choices: a value for every site that is left.
            args: the program's arguments.
            num_samples: number of independent draws (a leading axis); None: one, without that axis.
            kwargs: its keyword arguments.
        """
        refuse_inside_engine("posterior")
        listing = self._listing(as_arrays(choices), args, kwargs)
        draw = lambda key: listing.assignment("sample", key)
        if num_samples is None:
            return draw(typed_key(key))
        return jax.vmap(draw)(jax.random.split(typed_key(key), num_samples))

    def posterior_probs(
        self, choices: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Array]:
        """Posterior probability of each value of each eliminated site: site -> array (*elements, values)."""
        return self._listing(as_arrays(choices), args, kwargs).probabilities()

    def mode(
        self, choices: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Array], Array]:
        """The most probable joint assignment of the eliminated sites, and its log-density with everything else (nats).

        By max-product elimination (Viterbi, for a chain).
        """
        listing = self._listing(as_arrays(choices), args, kwargs)
        found = listing.assignment("max", None)
        return found, self.program.log_density({**choices, **found}, *args, **kwargs)

    def predict_trace(
        self, key: Any, choices: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Trace:
        """Redraw observations given the choices, with the eliminated sites from their posterior."""
        k1, k2 = jax.random.split(typed_key(key))
        drawn = self.posterior(k1, choices, *args, **kwargs)
        return self.program.predict_trace(k2, {**choices, **drawn}, *args, **kwargs)

    def forecast_trace(
        self, key: Any, choices: Mapping[str, Any], num_seen: int | None, *args: Any, **kwargs: Any
    ) -> Trace:
        """`predict_trace`, which knows no steps to come."""
        if num_seen is not None:
            raise TypeError(
                f"{self.label}: its sites are drawn from all observations, so num_seen has no meaning. Draw them for the steps "
                "that were seen, by posterior(key, choices, *args), and forecast the program that it was made of."
            )
        return self.predict_trace(key, choices, *args, **kwargs)

    def propose(
        self, key: Any, choices: Mapping[str, Any], keep: Any, *args: Any, **kwargs: Any
    ) -> Trace:
        """Refused: a draw would not have the marginal density."""
        raise TypeError(
            f"{self.label}: propose runs statement by statement; use the program it was made of."
        )

    def init(self, key: Any, *args: Any, **kwargs: Any) -> Params:
        return self.program.init(key, *args, **kwargs)

    def _draw(self, *args: Any, **kwargs: Any) -> Trace:
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

    def _check_left(self, choices: Mapping[str, Any]) -> None:
        """Refuse values of sites that are summed out."""
        given = sorted(set(choices) & set(self.sites))
        if given:
            raise ChoiceMismatch(
                f"{self.label}: {given} are summed out and take no value. Give the sites that are left only, or use the program "
                "it was made of, which has them all.",
                [],
                given,
            )

    def _listing(self, kept: dict[str, Array], args: Any, kwargs: Any) -> Listing:
        _check_stack(self.label)
        self._check_left(kept)
        params = self._declared(args, kwargs)[0] if handler_stack() else {}
        return list_factors(self.label, self.program, self.sites, kept, params, args, kwargs)

    def _declared(self, args: Any, kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters as the handlers outside give them; each latent site that is left: support and prior draw."""
        key = numpyro.prng_key() if any(type(h) is handlers.seed for h in handler_stack()) else None
        key = jax.random.key(0) if key is None else typed_key(key)
        met, run = _Declarations(), Runner(key, exploring=True, draw=_prior_draw)
        with alone(), own_caches(), run, met:
            self.program(*args, **kwargs)
        params = {name: numpyro.param(name, *a, **k) for name, (a, k) in met.params.items()}
        return params, {
            name: (support, run.frame.numbers[name]["value"])
            for name, support in met.supports.items()
            if name not in self.sites
        }

    def _statements(self, *args: Any, **kwargs: Any) -> None:
        """For NumPyro's inference: each kept site as a flat statement, and one factor with the marginal density."""
        for handler in handler_stack():
            is_array = isinstance(handler, handlers.mask | handlers.scale) and (
                jnp.ndim(getattr(handler, type(handler).__name__)) > 0
            )
            if is_array or isinstance(handler, BLIND):
                raise _foreign(self.label, handler)
        if _is_predicting():
            self.program(*args, **kwargs)
            return
        params, left = self._declared(args, kwargs)
        kept = {}
        for name, (support, draw) in left.items():
            if not all(isinstance(x, int | float | np.ndarray) for x in jax.tree.leaves(support)):
                raise ValueError(
                    f"Site '{name}': its support {support} is computed and may depend on other sites or on the step, but "
                    f"{self.label} hands it to NumPyro's inference ahead of them. Give it fixed bounds (Python numbers or "
                    "NumPy arrays), or transform a site that has."
                )
            kept[name] = numpyro.sample(name, _Flat(support, draw, self.label))
        listing = list_factors(self.label, self.program, self.sites, kept, params, args, kwargs)
        numpyro.factor(self.label, listing.trace(self.label).log_density)

    def __repr__(self) -> str:
        return f"<Program {self.label} of {self.program!r}>"


def eliminate(program: Any, sites: Collection[str] | str) -> Eliminated:
    """The program with discrete sites summed out exactly: log p(v) = log sum_z p(z, v).

    Rows of a plate that separate are summed row by row (k states for N rows); chains in `ppl.scan` by a forward recursion
    (k^(L + 1) states for a memory of L <= 3 steps, linear in the number of steps), chains in the steps of another one likewise;
    other sites one after the other, jointly where they meet.

    Args:
        program: a program or NumPyro model.
        sites: names of latent sites with a finite support; with an eliminated program, further ones.

    Returns:
        A program over the other latent sites. `log_density(choices, *args)` is exact and differentiable; the program serves as
        the model of `elbo`, `iwelbo` and other objectives, under `fit`, and under NumPyro's MCMC. Besides:
        `posterior(key, choices, *args, num_samples=None)` draws the eliminated sites given everything else,
        `posterior_probs(choices, *args)` gives their marginals, `mode(choices, *args)` the most probable assignment.
        Handlers (`condition`, `intervene`, `mask`, ...) and plate sizes of minibatches act on the program inside.

    Raises:
        ValueError: sites are summed out already. At the first run, before any device work, naming site and remedy: a name
            that is no latent site, or has no finite support, or stands in an eliminated program called inside; more than 65,536
            states; log-probs scaled differently (subsampling) that meet in one sum; a program that subsamples a plate or uses
            `ppl.rng_key`; under NumPyro's inference, a support that is computed.
        TypeError: it is drawn inside an objective (as a guide); NumPyro's handlers around it.

    Validity: exact, up to rounding, for p(z, v) as the program's own `log_density` has it, masks and scales (`handlers.scale`)
    included: a masked-out site with k values counts as k, as in NumPyro's enumeration. What is no value of the program counts
    once: sites of a branch not taken, the seen cells of `obs_mask`. The sum over the rows of a plate that is scaled by
    subsampling is scaled likewise. Where a parameter moves a probability that is exactly 0, the logarithm of the sum does not see
    it: objectives refuse that, or return NaN; the gradient of `log_density` itself is then beyond 1e20.

    Example:
        >>> from lapilli import ppl
        >>> import jax, numpyro.distributions as dist
        >>> def mixture(x, p=0.3):
        ...     with ppl.plate("rows", x.shape[0]):
        ...         k = ppl.sample("k", dist.Bernoulli(p))
        ...         ppl.sample("x", dist.Normal(4.0 * k, 1.0), obs=x)
        >>> m = ppl.eliminate(mixture, "k")
        >>> x = jax.numpy.array([0.0, 4.0, 1.9])
        >>> round(float(m.log_density({}, x)), 4)
        -6.2257
        >>> m.mode({}, x)[0]["k"].tolist()
        [0, 1, 0]

        A second opinion: NumPyro sums the same program's enumerated sites with funsor.

        >>> from numpyro.contrib.funsor import config_enumerate, enum, log_density
        >>> round(float(log_density(enum(config_enumerate(mixture), -2), (x,), {}, {})[0]), 4)
        -6.2257

    Funsor contracts tables that have been filled for all values of the sites that meet. A sum that is refused here is refused for
    the size of such a table, so that funsor could not take it either: it is the check, and no fallback.

    Reference: Zhang and Poole 1994 (variable elimination); Obermeyer et al. 2019, arXiv:1902.03210 (plates); Baum and Petrie
    1966, Viterbi 1967, Chib 1996 (chains: sum, mode, draws).
    """
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if not sites or len(set(sites)) != len(sites):
        raise ValueError(f"ppl.eliminate: name distinct latent sites, got {list(sites)}.")
    program = as_program(program)
    if isinstance(program, Eliminated):  # one sum over both: no order of the two has to be kept
        twice = sorted(set(sites) & set(program.sites))
        if twice:
            raise ValueError(
                f"ppl.eliminate: {twice} are summed out of {program.label} already. Name sites that are left."
            )
        return Eliminated(program.program, program.sites + sites)
    return Eliminated(program, sites)


class _Declarations(Messenger):
    """Remember param statements that have no value yet, and the supports of latent sites."""

    def __init__(self) -> None:
        super().__init__()
        self.params: dict[str, tuple[Any, Any]] = {}
        self.supports: dict[str, Any] = {}

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "param" and msg["value"] is None:
            self.params.setdefault(msg["name"], (msg["args"], msg["kwargs"]))
        elif msg["type"] == "sample" and not msg["is_observed"]:
            self.supports.setdefault(msg["name"], msg["fn"].support)


def _prior_draw(msg: dict[str, Any], key: Array) -> Array:
    """A draw of a site; where its law has no sampler (`ImproperUniform`), one in its support, as NumPyro starts from."""
    fn = msg["fn"]
    try:
        return jnp.asarray(fn.sample(key))
    except NotImplementedError:
        transform = biject_to(fn.support)
        shape = transform.inverse_shape(fn.shape())
        return jnp.asarray(transform(jax.random.uniform(key, shape, minval=-2.0, maxval=2.0)))


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

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """The draw, which NumPyro's starting points (`init_to_median`, `init_to_mean`) are then made of as well."""
        return jnp.broadcast_to(self.draw_made, (*sample_shape, *self.draw_made.shape))

    @property
    def mean(self) -> Array:
        raise NotImplementedError  # `init_to_mean` then falls back on draws

    def log_prob(self, value: Any) -> Array:
        return jnp.zeros(())


def _foreign(label: str, handler: Any) -> TypeError:
    return TypeError(
        f"{label}: the handler or plate {type(handler).__name__} around it cannot act on a sum. Transform the program "
        "first, ppl.eliminate(ppl.condition(program, ...), ...), or use the transformations of ppl, which do that."
    )


def _is_predicting() -> bool:
    """Whether no density counts and all is drawn, as under NumPyro's `Predictive`: there is nothing to sum then."""
    stack = handler_stack()
    is_off = any(isinstance(h, handlers.mask) and h.mask is False for h in stack)
    return is_off and any(type(h) is handlers.seed for h in stack)


def _check_stack(label: str) -> None:
    for handler in handler_stack():
        is_ours = isinstance(handler, Recorder) and not isinstance(handler, GivenSites)
        if not is_ours and type(handler) not in PLAIN:
            raise _foreign(label, handler)
