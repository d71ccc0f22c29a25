"""`ppl.eliminate`: a program without some of its sites: discrete ones are summed out, normal ones integrated out, exactly."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from .._compat import no_handlers, typed_key
from .._types import Choices, Key, ModelFn, ParamMap
from ..gaussian import APPROXIMATIONS
from ..language import Program, as_program
from ..traces import Params, Runner, Trace
from ._integrated import Integrated
from ._lost_digits import has_nan, warn_of_nan
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
        signature = _signature(args, kwargs)
        if signature not in self._continuous:
            with no_handlers():
                supports = supports_of(self.program, args, kwargs)
            self._continuous[signature] = frozenset(
                name for name in self.sites if name in supports and not supports[name].is_discrete
            )
        continuous, made = self._continuous[signature], self.program
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
        self.made(*args, **kwargs)
        continuous = self._continuous[_signature(args, kwargs)]
        return tuple(name for name in self.sites if name in continuous)

    def log_density(self, choices: Choices, *args: PyTree, **kwargs: PyTree) -> Array:
        """Log-density of the choices that are left and the observations; NaN, with a warning, where no digits are left."""
        found = super().log_density(choices, *args, **kwargs)
        warn_of_nan(self, "the log-density", found, choices, args, kwargs)
        return found

    def is_summed(self, *args: PyTree, **kwargs: PyTree) -> bool:
        """Whether discrete sites are summed out."""
        return isinstance(self.made(*args, **kwargs), Summed)

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
        draw = lambda key: _drawn(made, key, choices, args, kwargs)
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
        made = self.made(*args, **kwargs)
        if isinstance(made, Integrated):
            raise TypeError(
                f"{self.label}: its sites are normal and have no table of probabilities. Use posterior_marginals."
            )
        return made.posterior_probs(choices, *args, **kwargs)

    def posterior_marginals(
        self, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, dist.Normal]:
        """The law of each number of the integrated sites given the choices and the data: site -> Normal of the site's shape.

        For a series these are the smoothed means and standard deviations. NaN where rounding may have made more than 1 % of a
        scale (`docs/limits.md`), and a warning says at which condition number; so are draws.
        """
        made = self.made(*args, **kwargs)
        if isinstance(made, Summed):
            raise TypeError(
                f"{self.label}: sites {list(made.sites)} are summed out, so that the marginals of the others are no normal laws. "
                "Draw them, posterior(key, choices, *args, num_samples=...), or eliminate the normal sites alone."
            )
        if isinstance(made.program, Integrated):
            raise TypeError(
                f"{self.label}: {list(made.program.sites)} were integrated out by an earlier call, and their marginals need "
                f"those of {list(made.sites)}. Draw them, posterior(key, choices, *args, num_samples=...), or name all in one "
                "call."
            )
        found = made.posterior_marginals(choices, *args, **kwargs)
        moments = [(law.loc, law.scale) for law in found.values()]
        warn_of_nan(self, "posterior_marginals", moments, choices, args, kwargs)
        return found

    def mode(
        self, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> tuple[dict[str, Array], Array]:
        """The most probable joint assignment of the eliminated sites, and its log-density with everything else (nats).

        By max-product elimination (Viterbi, for a chain) where sites are summed out; the posterior mean where they are normal.
        """
        made = self.made(*args, **kwargs)
        if isinstance(made, Summed):
            if isinstance(made.program, Integrated):
                raise TypeError(
                    f"{self.label}: the most probable assignment of summed and integrated sites together is not known here. "
                    f"Eliminate {list(made.program.sites)} alone and compare values of {list(made.sites)}, or draw from the "
                    "posterior."
                )
            return made.mode(choices, *args, **kwargs)
        found: dict[str, Array] = {}
        program: Program = made
        while isinstance(program, Integrated):  # the mode of a joint normal law, part by part
            # The mean of a joint normal law is its mode: the last call's sites first, then the earlier ones' given them.
            found |= program.means({**choices, **found}, *args, **kwargs)
            program = program.program
        warn_of_nan(self, "mode", found, choices, args, kwargs)
        if has_nan(found):
            return found, jnp.full((), jnp.nan)
        return found, program.log_density({**choices, **found}, *args, **kwargs)

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
        made = self.made(*args, **kwargs)
        if isinstance(made, Summed):
            raise TypeError(
                f"{self.label}: its sites are drawn from all observations, so num_seen has no meaning. Draw them for the steps "
                "that were seen, by posterior(key, choices, *args), and forecast the program that it was made of."
            )
        return made.forecast_trace(key, choices, num_seen, *args, **kwargs)

    def propose(
        self, key: Key, choices: Choices, keep: object, *args: PyTree, draw: object = None,
        runner: Callable[..., Runner] = Runner, **kwargs: PyTree,
    ) -> Trace:  # fmt: skip
        """A trace drawn where all sites are integrated out, as of any program.

        Raises:
            TypeError: sites are summed out, so that a draw would not have the marginal density.
        """
        made = self.made(*args, **kwargs)
        if isinstance(made, Summed):
            raise TypeError(
                f"{self.label}: propose runs statement by statement; use the program it was made of."
            )
        return made.propose(key, choices, keep, *args, draw=draw, runner=runner, **kwargs)

    def init(self, key: Key, *args: PyTree, **kwargs: PyTree) -> Params:
        return self.program.init(key, *args, **kwargs)

    def _draw(self, *args: PyTree, **kwargs: PyTree) -> Trace:
        return self.made(*args, **kwargs)._draw(*args, **kwargs)

    def _statements(self, *args: PyTree, **kwargs: PyTree) -> Any:
        return self.made(*args, **kwargs)(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Program {self.label} of {self.program!r}>"


def eliminate(
    program: ModelFn,
    sites: Collection[str] | str,
    *,
    approximation: str | None = None,
    parallel: bool = False,
) -> Eliminated:
    """The program without some of its sites: discrete ones summed out, normal ones integrated out, exactly.

        log p(v) = log sum_k integral p(k, z, v) dz

    *Discrete sites.* Rows of a plate that separate are summed row by row (k states for N rows); chains in `ppl.scan` by a forward
    recursion (k^(L + 1) states for a memory of L <= 3 steps, linear in the number of steps), chains in the steps of another one
    likewise; other sites one after the other, jointly where they meet.

    *Normal sites*, Normal or MultivariateNormal with means affine in each other and scales that do not depend on them, go in the
    order of the program: a statement whose mean is affine in them becomes one with its law given the values before, and its value
    conditions what is believed of them. In `ppl.scan` that is Kalman's filter (with matrices that change from step to step,
    missing cells, several chains and what stands outside of the scan as it comes; a statement after it that reads the states of
    all steps makes the noise of all steps one joint law of at most 2,048 numbers), in plates whose rows separate it is done row
    by row. Sites of one call are believed jointly; those of an earlier call are integrated first, given the later ones:
    `eliminate(eliminate(program, "effect"), "mean")` does rows of effects one by one and then their mean, for any number of rows.
    That a mean is affine is proved on the traced program. Sites whose laws are otherwise stay as they are and may be left to
    particles: `inference.smc` then draws only these (a Rao-Blackwellised filter).

    Args:
        program: a program or NumPyro model.
        sites: names of latent sites with a finite support, or with normal laws; with an eliminated program, further ones. Of
            both kinds, the normal ones are integrated given the discrete ones, so that a discrete chain that moves a normal one
            is summed over all its paths: for short series.
        approximation: what to do where the mean of a normal law is not affine in the sites: None refuses it; "ekf" linearises it
            where the sites are believed to be (extended Kalman filter), and takes a scale that depends on them beside such a mean
            for what it is there; "ukf" matches its mean and covariance at points around there (unscented). The result is another
            model's density, and *biased* for this one's; it says so in its name. As a proposal for particles the same
            approximation is sound: `inference.smc(program, ..., proposal="ekf")`.
        parallel: filter all steps of a `ppl.scan` over normal sites at once, in log2 T rounds (an associative scan) with more
            arithmetic: for devices that run much at once. On a CPU it is slower (`benchmarks/language/kalman.py`); others were
            not measured. The density and its gradient are the same up to rounding, which in single precision grows with the root
            of the condition number of the noise's covariances; second derivatives are NaN. The smoother, draws and forecasts take
            one step after the other.

    Returns:
        A program over the other latent sites. `log_density(choices, *args)` is exact and differentiable; the program serves as
        the model of `elbo`, `iwelbo` and other objectives, under `fit`, and under NumPyro's MCMC; where all its sites are normal
        also as a guide, under particles, and for forecasts (`num_seen`). Besides:
        `posterior(key, choices, *args, num_samples=None)` draws the eliminated sites given everything else,
        `posterior_probs(choices, *args)` gives the marginals of discrete ones, `posterior_marginals(choices, *args)` those of
        normal ones (for a series: the smoother), `mode(choices, *args)` the most probable assignment.
        Handlers (`condition`, `intervene`, `mask`, ...) and plate sizes of minibatches act on the program inside.

    Raises:
        ValueError: sites are summed out already; an unknown approximation, or one with parallel=True. At the first run, before
            any device work, naming site and remedy: a name that is no latent site, or has neither a finite support nor a normal
            law, or stands in an eliminated program called inside; more than 65,536 states (4,096 of a
            chain that remembers one step), or 2,048 normal numbers that are believed jointly; a statement that depends on normal
            sites and is no normal law with an affine mean, or stands in a branch; a normal site that is masked out; log-probs
            scaled differently (subsampling) that meet in one sum; a continuous site in a branch that a summed site chooses;
            parallel=True under particles, or with a step in which sites are left or that has a scan or branch of its own; a
            program that subsamples a plate or uses `ppl.rng_key`; under NumPyro's inference, a support that is computed.
        TypeError: discrete sites are summed out and it is drawn inside an objective (as a guide); NumPyro's handlers around it.

    Validity: exact, up to rounding, for p(z, v) as the program's own `log_density` has it, masks and scales (`handlers.scale`)
    included: a masked-out site with k values counts as k, as in NumPyro's enumeration. What is no value of the program counts
    once: sites of a branch not taken, the seen cells of `obs_mask`. The sum over the rows of a plate that is scaled by
    subsampling is scaled likewise. Where a parameter moves a probability that is exactly 0, the logarithm of the sum does not see
    it: objectives refuse that, or return NaN; the gradient of `log_density` itself is then beyond 1e20. What is believed of
    normal sites is kept as a root of the covariance, so that single precision does.

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

        A level that drifts, seen with noise; the third value is missing.

        >>> def drift(y):
        ...     def step(level, y):
        ...         level = ppl.sample("level", dist.Normal(level, 0.5))
        ...         ppl.sample("y", dist.Normal(level, 1.0), obs=y, obs_mask=~jax.numpy.isnan(y))
        ...         return level, None
        ...     ppl.scan(step, 0.0, y)
        >>> m = ppl.eliminate(drift, "level")
        >>> y = jax.numpy.array([1.0, 2.0, jax.numpy.nan, 1.5])
        >>> round(float(m.log_density({}, y)), 2)
        -5.02
        >>> [round(float(x), 2) for x in m.posterior_marginals({}, y)["level"].loc]
        [0.5, 0.89, 0.99, 1.09]

    Funsor contracts tables that have been filled for all values of the sites that meet. A sum that is refused here is refused for
    the size of such a table, so that funsor could not take it either: it is the check, and no fallback.

    Reference: Zhang and Poole 1994 (variable elimination); Obermeyer et al. 2019, arXiv:1902.03210 (plates); Baum and Petrie
    1966, Viterbi 1967, Chib 1996 (chains: sum, mode, draws); Kalman 1960; Bierman 1977 (roots); Carlson 1973 (one number
    at a time); Murray et al. 2018, arXiv:1708.07787 (conditioning in program order); Sarkka
    and Garcia-Fernandez 2021, arXiv:1905.13002, and Yaghoobi et al. 2022, arXiv:2207.00426 (parallel filters, with roots).
    """
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if not sites or len(set(sites)) != len(sites):
        raise ValueError(f"ppl.eliminate: name distinct latent sites, got {list(sites)}.")
    if approximation is not None and approximation not in APPROXIMATIONS:
        raise ValueError(
            f"ppl.eliminate: approximation={approximation!r} is none of {', '.join(map(repr, APPROXIMATIONS))}. Choose one of "
            "them, or leave it out: means that are not affine are then refused."
        )
    if approximation is not None and parallel:
        raise ValueError(
            f"ppl.eliminate: approximation={approximation!r} expands each mean where the steps before have put the sites, and "
            "parallel=True takes no step after another. Leave one of the two out."
        )
    call = Call(sites, approximation, parallel)
    program = as_program(program)
    if isinstance(program, Eliminated):
        twice = sorted(set(sites) & set(program.sites))
        if twice:
            raise ValueError(
                f"ppl.eliminate: {twice} are summed out of {program.label} already. Name sites that are left."
            )
        return Eliminated(program.program, (*program.calls, call))
    return Eliminated(program, (call,))


def _drawn(
    program: Program, key: Array, choices: Choices, args: PyTree, kwargs: PyTree
) -> dict[str, Array]:
    """One joint draw of what a program and those inside of it are without, each given those outside."""
    found: dict[str, Array] = {}
    while isinstance(program, Summed | Integrated):
        key, now = jax.random.split(key)
        found |= program.posterior(now, {**choices, **found}, *args, **kwargs)
        program = program.program
    return found


def _signature(args: tuple[PyTree, ...], kwargs: dict[str, PyTree]) -> PyTree:
    """What of the arguments may decide which statements run: shapes of arrays, and everything that is none."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    is_array = lambda x: hasattr(x, "shape") and hasattr(x, "dtype")
    return tree, tuple((x.shape, str(x.dtype)) if is_array(x) else repr(x) for x in leaves)
