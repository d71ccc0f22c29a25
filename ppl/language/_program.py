"""Programs: decorated Python functions with densities."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from .._compat import own_caches, typed_key
from .._foreign import named_errors
from .._table import table
from .._types import Choices, Key, ParamMap
from ..traces import (
    BoundParams,
    EngineRecorder,
    Params,
    Recorder,
    Runner,
    Trace,
    compared_with_draws,
    drawn_before,
    init_params,
    is_limit,
    keep_terms,
    refuse_inside_engine,
    remember_draw,
    running_engine,
    trace_of,
    with_reach,
)
from ._autoguides import check_set_up, set_up
from ._callables import is_of_the_call, name_of, refusal_of
from ._choices import arrays, check_used, predictions
from ._keywords import joined, parted
from ._named import by_name, of_name
from ._repeatable import repeatable

Array = jax.Array


class Program:
    """A generative program. Calling it runs the function, so NumPyro treats it as any model.

    Its methods take a PRNG key of either kind; `choices`, latent site -> value, within `ppl.scan` and `ppl.particles` with their
    axis first; and the program's arguments, by position or by name.

    Args:
        fn: a Python function of sample, plate, param, ... statements.
        params: unconstrained parameters bound to it; parameters without a bound value take their initial one.
        site_weights: factors on the log-probs of its traces, see `ppl.reweight`.
    """

    def __init__(
        self,
        fn: Callable[..., PyTree],
        params: Mapping[str, PyTree] | None = None,
        site_weights: Any = None,
    ) -> None:
        self.fn = fn
        self.params = params
        self.site_weights = site_weights
        # What the last run met (static descriptions, no arrays), for printing.
        self._seen: dict[str, Any] = {}
        functools.update_wrapper(self, fn, updated=[])

    def __call__(self, *args: PyTree, **kwargs: PyTree) -> ArrayLike | None:
        if self.site_weights is not None:
            raise TypeError(
                f"{self!r}: its site weights are factors on the log-probs of its own traces, and would be lost where another "
                "program, a handler or NumPyro's inference runs its statements. Reweight the outermost program, "
                "ppl.reweight(program, weights), or scale statements where they stand, numpyro.handlers.scale."
            )
        return self.run(*args, **kwargs)

    def run(self, *args: PyTree, **kwargs: PyTree) -> PyTree:
        """What the function returns, its statements met by the handlers outside; site weights are left to them."""
        args, kwargs = parted(joined(args, kwargs, self.fn))
        if not self.params:
            return self._called(args, kwargs)
        with BoundParams(self.params):
            return self._called(args, kwargs)

    def _called(
        self, args: tuple[PyTree, ...], kwargs: dict[str, Array]
    ) -> Array | dict[str, Array] | None:
        try:
            return self.fn(*args, **kwargs)
        except TypeError as err:
            if not is_of_the_call(err, self.fn, args, kwargs):
                raise
            raise TypeError(
                f"{self!r}: {str(err).rstrip('.?')}. Model and guide are called with the same arguments, those of fit(args=) or "
                "those after the key; data that are to be drawn have a default, as in def model(x, y=None)."
            ) from None
        except RecursionError as err:
            raise ValueError(
                f"{self!r}: its calls or its handlers go around in a circle. numpyro.handlers.do of one site twice does "
                "that: set it once. Give a function that calls itself an end, or use ppl.scan."
            ) from err

    def __getstate__(self) -> dict[str, PyTree]:
        state = {name: x for name, x in vars(self).items() if name != "__wrapped__"}
        return state | {"fn": by_name(self.fn)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"fn": of_name(state["fn"])})
        self.__wrapped__ = self.fn

    def bind(self, params: ParamMap) -> Program:
        """The program with unconstrained parameters fixed to `params` (others in the dict are ignored)."""
        bound = Program(self.fn, params, self.site_weights)
        bound._seen = self._seen
        return bound

    def sites_seen(self) -> list[str]:
        """Names of the sites that the last run met and that have a density."""
        sites = self._seen.get("sites", {})
        return [name for name, info in sites.items() if info.kind != "deterministic"]

    def reweighted(self, weights: Any) -> Program:
        """What `ppl.reweight` does with this program.

        Args:
            weights: a `SiteWeights`, as `ppl.reweight` makes it of a mapping.

        Returns:
            The program.

        Raises:
            TypeError: the density is estimated, or sites are summed out.
        """
        if type(self) is not Program:
            raise TypeError(
                f"{self!r}: site weights need one log-prob for each site, but its density is estimated or summed out. "
                "Reweight the program that it was made from."
            )
        if self.site_weights is not None:
            weights = type(weights)(weights.weights, self.site_weights)
        weighted = Program(self.fn, self.params, weights)
        weighted._seen = self._seen
        return weighted

    def simulate(self, key: Key, *args: PyTree, **kwargs: PyTree) -> Trace:
        """Run the program with draws from the prior.

        Returns:
            The trace: choices, log_probs, log_density, retval.

        Raises:
            RuntimeError: called inside `ppl.expectation` or an objective, where its draws would carry no
                gradient.
        """
        refuse_inside_engine("simulate")
        return self._run(Runner(typed_key(key)), args, kwargs)

    def generate(
        self, key: Key, constraints: Mapping[str, Array], *args: PyTree, **kwargs: PyTree
    ) -> tuple[Trace, Array]:
        """Run the program with some latent sites fixed and the others drawn from the prior.

        Returns:
            The trace, and log_weight = log p(choices, data) - log q(drawn choices): the log-probs of the
            fixed sites,
            observations and factors (scalar, nats). E[exp(log_weight)] = p(constraints, data).
        """
        refuse_inside_engine("generate")
        runner = Runner(typed_key(key), arrays(constraints))
        trace = self._run(runner, args, kwargs)
        runner.check_drawn()
        check_used(runner, constraints, self)
        drawn = set(trace.choices) - set(constraints)
        weight = sum(
            (jnp.sum(lp) for name, lp in trace.log_probs.items() if name not in drawn),
            jnp.zeros(()),
        )
        return trace, weight

    def trace(self, choices: Choices, *args: PyTree, **kwargs: PyTree) -> Trace:
        """The trace of the run in which every latent site takes its value from `choices`.

        Raises:
            ValueError: `choices` misses a latent site or names one that the program does not have; inside of an objective, it
                scales or subsamples a site in another way than the program that drew it.
        """
        return compared_with_draws(self._traced(choices, *args, **kwargs), drawn_before())

    def _traced(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
        check_set_up(self)
        engine = running_engine()
        runner = Runner(None, arrays(choices), defer_imputed=engine is not None)
        trace = self._run(runner, args, kwargs)
        check_used(runner, choices, self)
        return trace

    def log_density(self, choices: Choices, *args: PyTree, **kwargs: PyTree) -> Array:
        """Log-density of `choices` together with the program's observations and factors (scalar, nats).

        A value outside its site's support gives -inf.

        Raises:
            ValueError: `choices` misses a latent site or names one that the program does not have.
        """
        return self.trace(choices, *args, **kwargs).log_density

    def estimate_log_density(
        self, key: Key, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> Array:
        """`log_density`, which is exact here; programs whose density is only estimated use `key` (`ppl.marginal`)."""
        return self.log_density(choices, *args, **kwargs)

    def predict(
        self, key: Key, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, Array]:
        """Draw every site that latent `choices` do not give; returns drawn, observed and deterministic sites by name.

        Observed sites are drawn anew. Latent sites without a value are drawn from their prior; a statement whose `obs` is
        None is one of them, so that `model(X, y=None)` draws y.

        A forecast: values of the first steps of a `ppl.scan` that has more of them now are kept, and so are the observations of
        these steps; the scan goes on from there by draws. The result holds such sites whole.

        Raises:
            ChoiceMismatch: `choices` names a site that the program does not have.
        """
        trace = self.predict_trace(key, choices, *args, **kwargs)
        return predictions(trace, choices)

    def predict_trace(self, key: Key, choices: Choices, *args: PyTree, **kwargs: PyTree) -> Trace:
        """The whole trace behind `predict`: given and drawn latent sites, redrawn observations."""
        return self.forecast_trace(key, choices, None, *args, **kwargs)

    def forecast_trace(
        self, key: Key, choices: Choices, num_seen: int | None, *args: PyTree, **kwargs: PyTree
    ) -> Trace:
        """`predict_trace` with the observations of the first `num_seen` steps of scans; None: of those that `choices` have."""
        refuse_inside_engine("predict")
        runner = Runner(
            typed_key(key),
            arrays(choices),
            redraw_observed=True,
            continues=True,
            num_seen=num_seen,
        )
        trace = self._run(runner, args, kwargs)
        check_used(runner, choices, self)
        return trace

    def propose(
        self, key: Key, choices: Choices, keep: object, *args: PyTree, draw: object = None,
        runner: Callable[..., Runner] = Runner, **kwargs: PyTree,
    ) -> Trace:  # fmt: skip
        """Run the program with draws from the prior, except that `choices` are kept where `keep` (a boolean scalar) is true.

        With `keep` None the choices always hold; sites that `choices` does not name are drawn, by `draw(message, key)` if given.
        What their laws can be may stand among them (`_reach.as_choices`): a site's log-prob is then NaN where its own law can be
        more. `runner` makes the recorder, a `Runner` with the same arguments.
        """
        refuse_inside_engine("propose")
        recorder = runner(typed_key(key), arrays(choices), keep=keep, draw=draw)
        trace = self._run(recorder, args, kwargs)
        recorder.check_drawn()
        check_used(recorder, [name for name in choices if not is_limit(name)], self)
        return trace

    def init(self, key: Key, *args: PyTree, **kwargs: PyTree) -> Params:
        """Initial unconstrained parameters of every param and module statement the program meets."""
        set_up(self, key, joined(args, kwargs, self.fn))
        return init_params(
            lambda: self.run(*args, **kwargs), key, lambda key: Runner(key, exploring=True)
        )

    def _draw(self, *args: PyTree, **kwargs: PyTree) -> Trace:
        """What `ppl.draw` does with this program."""
        check_set_up(self)
        collector = EngineRecorder()
        with repeatable(self, args, kwargs), collector, named_errors(collector, self):
            retval = self.run(*args, **kwargs)
        return remember_draw(self._remember(collector, trace_of(collector, retval)))

    def _score(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
        """What `ppl.score` does with this program."""
        return self._traced(choices, *args, **kwargs)

    def _run(self, recorder: Recorder, args: PyTree, kwargs: dict[str, PyTree]) -> Trace:
        with repeatable(self, args, kwargs):
            with own_caches(), recorder, named_errors(recorder, self):
                retval = self.run(*args, **kwargs)
        return self._remember(recorder, trace_of(recorder, retval))

    def _remember(self, recorder: Recorder, trace: Trace) -> Trace:
        self._seen.update(sites=trace.sites, params=recorder.params)
        keep_terms(trace, self)
        if self.site_weights is None:
            return trace
        log_probs = self.site_weights.apply(trace.log_probs, trace.sites)
        return with_reach(dataclasses.replace(trace, log_probs=log_probs), trace.reach)

    def __str__(self) -> str:
        """A table of sites and parameters as the last run met them."""
        if not self._seen:
            return (
                f"{self!r} (sites are known after its first run, e.g. program.simulate(key, *args))"
            )
        rows = [("site", "kind", "distribution", "batch", "event", "strategy")]
        for info in self._seen["sites"].values():
            batch = ", ".join(
                f"{d or '_'}={n}" for d, n in zip(info.dims, info.batch_shape, strict=True)
            )
            rows.append(
                (
                    info.name,
                    info.kind,
                    info.distribution,
                    batch,
                    str(info.event_shape),
                    info.strategy,
                )
            )
        text = f"{self!r}\n{table(rows)}"
        if self._seen["params"]:
            text += "\n" + table(
                [("parameter", "shapes and constraint"), *self._seen["params"].items()]
            )
        return text

    def __repr__(self) -> str:
        bound = "" if not self.params else f", bound: {', '.join(sorted(self.params))}"
        return f"<Program {name_of(self)}{bound}>"


def model(fn: Callable[..., PyTree]) -> Program:
    """Turn a Python function of sample statements into a `Program`.

    Args:
        fn: the function; a Program stays as it is.

    Returns:
        The program.

    Example:
        >>> from lapilli import ppl
        >>> import jax, numpyro.distributions as dist
        >>> @ppl.model
        ... def coin(x):
        ...     p = ppl.sample("p", dist.Beta(2.0, 2.0))
        ...     with ppl.plate("tosses", x.shape[0]):
        ...         ppl.sample("x", dist.Bernoulli(p), obs=x)
        >>> round(float(coin.log_density({"p": 0.5}, jax.numpy.array([1, 0, 1]))), 4)
        -1.674
    """
    return as_program(fn)


def as_program(fn: Any) -> Program:
    """`fn` itself if it is a Program, else the NumPyro model wrapped in one.

    Args:
        fn: a program, or whatever NumPyro takes for a model: a function, `functools.partial`, a handler around a model, a method,
            an object with `__call__`.

    Raises:
        TypeError: a call of `fn` runs no statements: it is a class, a law, a generator, a cached function, or not callable.
    """
    if isinstance(fn, Program):
        return fn
    if (refusal := refusal_of(fn)) is not None:
        raise TypeError(f"A program must be a function of sample statements, {refusal}.")
    return Program(fn)
