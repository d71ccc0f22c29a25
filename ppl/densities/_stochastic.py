"""Programs whose density is estimated: what `marginal` and `normalize` have in common.

Such a program p has two random log-densities, built by one construction with auxiliary randomness r:
- of given choices x: r ~ E(r | x), w = w(x, r), with E[exp w] = p(x);
- of a draw: (x, r) ~ S with S(x, r) = E(r | x) exp w(x, r), hence x ~ p and E[exp(-w) | x] = 1 / p(x).

Invariant: everything here is made of such pairs, and compositions of pairs are pairs: in a ratio, the part that is sampled
here takes the draw's number, the part that is given takes the estimate. By Jensen a given w is at most log p(x) in the mean,
and a drawn one at least. A bound that adds the first and subtracts the second stays a lower bound.

Both are written once, over `draw` and `score`, which find their randomness in the handlers around them: an engine with
gradient strategies inside `ppl.expectation`, `Ambient` elsewhere.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._compat import own_caches, typed_key
from .._types import Choices, Key, Message, ParamMap
from ..language import Program, as_program, rng_key
from ..strategies import Engine
from ..traces import (
    Params,
    Recorder,
    SiteInfo,
    SiteInfos,
    Trace,
    check_shape,
    describe,
    fold_name,
    guarded_log_prob,
    init_params,
    log_prob_of,
    numbers_for_trace,
    refuse_inside_engine,
    running_engine,
)

Array = jax.Array
Side = Literal["lower", "upper", "exact"]


class StochasticProgram(Program, abc.ABC):
    """Abstract: a program with an estimated density. A subclass gives `_draw` and `_score`, over draws of their own.

    Attributes:
        label: what it is, for tables and messages.
        parts: the programs that it is made of, by role.

    Raises:
        TypeError: it is called as a function, as handlers and MCMC do: its density is not that of one run.
    """

    def __init__(self, label: str, parts: Mapping[str, Program]) -> None:
        def refuse(*_: PyTree, **__: PyTree) -> PyTree:
            raise TypeError(
                f"{label}: its density is estimated, so it is not one run of sample statements, and handlers "
                "(condition, intervene, mask, plate sizes of minibatches), MCMC and Predictive cannot act on it. "
                "Transform or run the program that it was made from."
            )

        refuse.__name__ = label
        super().__init__(refuse)
        self.label, self.parts = label, dict(parts)

    @abc.abstractmethod
    def _draw(self, *args: PyTree, **kwargs: PyTree) -> Trace:
        """A trace of the kept choices whose log_density w has E[exp(-w) | choices] = 1 / p(choices)."""

    @abc.abstractmethod
    def _score(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
        """A trace of the given choices whose log_density w has E[exp w] = p(choices)."""

    @abc.abstractmethod
    def _with_parts(self, parts: Mapping[str, object]) -> StochasticProgram:
        """This program made of other parts."""

    @property
    def bounds(self) -> dict[str, Side]:
        """On which side of log p the log-density lies in the mean: of a draw, and of given choices.

        A bound that adds given densities and subtracts drawn ones (elbo, iwelbo, ...) is a lower bound still.
        """
        return {"draw": "upper", "score": "lower"}

    def bind(self, params: ParamMap) -> StochasticProgram:
        """The program with the parameters of all its parts fixed."""
        parts = {k: p.bind(params) if hasattr(p, "bind") else p for k, p in self.parts.items()}
        bound = self._with_parts(parts)
        bound.params = params
        return bound

    def simulate(self, key: Key, *args: PyTree, **kwargs: PyTree) -> Trace:
        """Draw choices x; the trace's log_density w is random with E[exp(-w) | x] = 1 / p(x).

        Raises:
            RuntimeError: inside `ppl.expectation` or an objective; `ppl.draw` is its equal there.
        """
        refuse_inside_engine("simulate")
        return self._exact_mean(lambda: self._draw(*args, **kwargs), key)

    def estimate_log_density(
        self, key: Key, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> Array:
        """A random w with E[exp w] = p(choices) (scalar, nats).

        Raises:
            ValueError: the choices are not exactly the program's; a log-prob is scaled by subsampling.
            RuntimeError: inside `ppl.expectation` or an objective; `ppl.score` is its equal there.
        """
        refuse_inside_engine("estimate_log_density")
        return self._exact_mean(
            lambda: self._score(as_arrays(choices), *args, **kwargs), key
        ).log_density

    def generate(
        self, key: Key, constraints: Mapping[str, object], *args: PyTree, **kwargs: PyTree
    ) -> tuple[Trace, Array]:
        """The trace and the estimated log-density, if every choice is given."""
        refuse_inside_engine("generate")
        trace = self._exact_mean(lambda: self._score(as_arrays(constraints), *args, **kwargs), key)
        return trace, trace.log_density

    def trace(self, choices: Choices, *args: PyTree, **kwargs: PyTree) -> Trace:
        """Refused: the density is not known exactly."""
        raise TypeError(
            f"{self.label}: its density is estimated, so log_density and trace do not exist. Use "
            "estimate_log_density(key, choices, *args), or ppl.score inside an objective."
        )

    def predict_trace(self, key: Key, choices: Choices, *args: PyTree, **kwargs: PyTree) -> Trace:
        """Refused: predictions come from the program that it was made from."""
        raise TypeError(
            f"{self.label}: it keeps choices only; predict from the program it was made of."
        )

    forecast_trace = predict_trace

    def init(self, key: Key, *args: PyTree, **kwargs: PyTree) -> Params:
        """Initial unconstrained parameters of all its parts."""
        return init_params(
            lambda: self._draw(*args, **kwargs), key, lambda key: Ambient(key, exploring=True)
        )

    def own_key(self) -> Array:
        """Randomness from the handlers around, another at each call in one run."""
        # Numbered by what this run has used already, so that two calls in one program draw apart.
        used, number = running_engine().frame.used, 1
        while f"rng:{self.label}_{number}" in used:
            number += 1
        return rng_key(f"{self.label}_{number}")

    def _exact_mean(self, run: Callable[[], Trace], key: Key) -> Trace:
        with own_caches(), Ambient(typed_key(key)):
            trace = run()
        refuse_scaled(self.label, trace.sites)
        return trace

    def __str__(self) -> str:
        lines = [repr(self)]
        for role, part in self.parts.items():
            lines += [f"{role}: {part}"]
        sides = self.bounds
        lines.append(
            f"log-density: {sides['draw']} bound in the mean at a draw, {sides['score']} bound at given "
            "choices; score(p) - draw(q) stays a lower bound"
        )
        return "\n".join(lines)

    def __repr__(self) -> str:
        bound = "" if not self.params else f", bound: {', '.join(sorted(self.params))}"
        return f"<Program {self.label}{bound}>"


class Foreign(StochasticProgram):
    """Any object with `simulate(key, *args)` and `estimate_log_density(key, choices, *args)`.

    Under an engine its noise is that of `ppl.rng_key`: derivatives pass along its values, and parameters that decide one of
    its discrete choices are refused there.
    """

    def __init__(self, sampler: Any) -> None:
        super().__init__(type(sampler).__name__, {})
        self.sampler = sampler

    def _with_parts(self, parts: Mapping[str, object]) -> StochasticProgram:
        return Foreign(self.sampler)

    def bind(self, params: Mapping[str, Any]) -> StochasticProgram:
        bound = Foreign(
            self.sampler.bind(params) if hasattr(self.sampler, "bind") else self.sampler
        )
        bound.params = params
        return bound

    def _draw(self, *args: PyTree, **kwargs: PyTree) -> Trace:
        made = self.sampler.simulate(self.own_key(), *args, **kwargs)
        return self._trace(as_arrays(made.choices), made.log_density)

    def _score(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
        choices = as_arrays(choices)
        return self._trace(
            choices,
            self.sampler.estimate_log_density(self.own_key(), choices, *args, **kwargs),
        )

    def _trace(self, choices: dict[str, Array], log_density: object) -> Trace:
        return estimated(self.label, choices, _unnamed(choices, self.label), log_density)


class Ambient(Engine):
    """Randomness for `draw` and `score` outside of gradient estimates: the engine's addresses, plain draws."""

    has_gradients = False

    def __init__(self, key: Array, *, exploring: bool = False) -> None:
        super().__init__(key, None, exploring=exploring)

    def visit(self, msg: Message) -> None:
        msg["stop"] = True
        if msg["is_observed"]:
            check_shape(msg)
            return
        address = self._address(msg)
        assert self.frame.key is not None
        msg["value"] = msg["fn"].sample(fold_name(self.frame.key, address))
        msg["intermediates"] = []
        self.frame.infos[address] = describe(msg)
        self.frame.numbers[address] = {}

    def hand_out(self, key: Array, name: str) -> Array:
        return key


class Constrained(Recorder):
    """Run a program with some sites given; the others are drawn by the handler outside."""

    is_final = False

    def __init__(self, given: Mapping[str, Array]) -> None:
        super().__init__(None, dict(given))

    def visit(self, msg: Message) -> None:
        value = None if msg["is_observed"] else self.given(msg["name"])
        if value is None:
            # The handler outside draws it; here its log-prob is kept.
            msg["_collected"] = True
            return
        msg["value"], msg["_forced"], msg["stop"] = value, True, True
        msg["intermediates"] = []
        self.frame.used.add(msg["name"])

    def numbers_of(self, msg: Message) -> dict[str, PyTree]:
        log_prob = guarded_log_prob(msg) if msg.get("_forced") else log_prob_of(msg)
        return numbers_for_trace(msg, log_prob)


def as_sampler(sampler: Any, role: str) -> Program:
    """A program from a program, a NumPyro model, or an object with the two methods.

    Raises:
        TypeError: anything else.
    """
    if isinstance(sampler, Program):
        return sampler
    if hasattr(sampler, "simulate") and hasattr(sampler, "estimate_log_density"):
        return Foreign(sampler)
    if callable(sampler):
        return as_program(sampler)
    raise TypeError(
        f"{role} must be a program, or an object with simulate(key, *args) and "
        f"estimate_log_density(key, choices, *args); got {type(sampler).__name__}."
    )


def refuse_scaled(label: str, *sites: Mapping[str, SiteInfo]) -> None:
    """Refuse log-probs scaled by subsampling where their exponential is averaged."""
    for infos in sites:
        for name, info in infos.items():
            if info.kind != "deterministic" and info.scale != 1.0:
                raise ValueError(
                    f"Site '{name}': {label} averages densities, and a log-prob scaled by {info.scale} "
                    "(subsampling) would make that average biased. Use all rows."
                )


def log_mean_exp(log_weights: Array) -> Array:
    """Log 1/N sum_i exp(log_weights[i]) over the leading axis."""
    return jax.nn.logsumexp(log_weights, axis=0) - jnp.log(log_weights.shape[0])


def estimated(
    label: str, choices: Mapping[str, Array], infos: Mapping[str, SiteInfo], log_density: PyTree
) -> Trace:
    """A trace whose log-density is one number that belongs to no single site."""
    sites = SiteInfos({name: infos[name] for name in choices})
    sites[label] = SiteInfo(label, "factor", (), (), (), "")
    return Trace(dict(choices), {label: jnp.asarray(log_density)}, None, {}, {}, sites)


def same_sites(what: str, got: Collection[str], expected: Collection[str], remedy: str) -> None:
    """Refuse a set of sites that is not the expected one."""
    missing, extra = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    if missing or extra:
        raise ValueError(f"{what}: missing {missing}, extra {extra}. {remedy}")


def as_arrays(choices: Mapping[str, PyTree]) -> dict[str, Array]:
    """Choices as arrays."""
    return {name: jnp.asarray(value) for name, value in choices.items()}


def _unnamed(choices: Mapping[str, Array], law: str) -> dict[str, SiteInfo]:
    return {
        name: SiteInfo(name, "latent", (), (), jnp.shape(value), law)
        for name, value in choices.items()
    }
