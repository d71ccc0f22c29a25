"""The score-function estimator and its baselines."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from .._precision import full_precision
from ._strategy import Downstream, Draw, Strategy, stop

Array = jax.Array


class Baseline(abc.ABC):
    """Abstract: a control variate b for one site, independent of the site's own draw.

    Attributes:
        num_replicates: independent runs of the program that the baseline needs.
    """

    num_replicates = 1

    @abc.abstractmethod
    def value(self, downstream: Downstream) -> Array:
        """b, broadcast against `downstream.cost`; used without gradient."""

    def init_state(self) -> PyTree:
        """Initial state for one site."""
        return ()

    def update(self, downstream: Downstream) -> PyTree:
        """The next state, from the costs just seen."""
        return downstream.state


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Baseline):
    """b = mean downstream cost of the other replicates of the program.

    Args:
        num_samples: replicates, at least 2; with `elbo(..., num_particles=K)` the K particles serve when K is
            larger.

    Raises:
        ValueError: `num_samples` is below 2.

    Reference: Kool et al. 2019 (Buy 4 REINFORCE samples, get a baseline for free).
    """

    num_samples: int = 2

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise ValueError(
                f"LeaveOneOut: num_samples must be at least 2, got {self.num_samples}."
            )

    @property
    def num_replicates(self) -> int:  # type: ignore[override]
        return self.num_samples

    def value(self, downstream: Downstream) -> Array:
        # cost: [replicates, ...]. The other replicates are independent of this one, so that E[b d log p] = 0.
        cost, n = downstream.cost, downstream.num_replicates
        return (cost.sum(0, keepdims=True) - cost) / (n - 1)


@dataclasses.dataclass(frozen=True)
class MovingAverage(Baseline):
    """b = exponential moving average of the site's mean downstream cost over earlier steps.

    Args:
        decay: weight of the past, in [0, 1). The average is corrected for its start; before the first step b
            = 0.

    Raises:
        ValueError: `decay` is outside of [0, 1).
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"MovingAverage: decay must lie in [0, 1), got {self.decay}.")

    def init_state(self) -> PyTree:
        return {"mean": jnp.zeros(()), "weight": jnp.zeros(())}

    def value(self, downstream: Downstream) -> Array:
        # sum_k (1 - d) d^k mean_k / sum_k (1 - d) d^k over the earlier steps. Costs hold the probability of the states upstream,
        # and so does b.
        state = downstream.state
        return downstream.weight * jnp.where(
            state["weight"] > 0, state["mean"] / jnp.maximum(state["weight"], 1e-12), 0.0
        )

    def update(self, downstream: Downstream) -> PyTree:
        cost, weight = jnp.broadcast_arrays(downstream.cost, downstream.weight)
        mean = cost.sum() / weight.sum()
        old = downstream.state
        return {
            "mean": self.decay * old["mean"] + (1 - self.decay) * mean,
            "weight": self.decay * old["weight"] + (1 - self.decay),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Regression(Baseline):
    """b = predict(weights, inputs), fitted by least squares to the site's downstream cost, one optimiser step a step.

    Weights and optimiser are state, not parameters: their gradient never enters the objective's.

    Args:
        predict: `(weights, inputs) -> b`, broadcastable to the site's elements (e.g. a network over a plate's
            rows).
        weights: initial weights, a pytree of arrays.
        inputs: array known before the draw, e.g. the data; it must not depend on the site's own draw.
        optimizer: an optax transformation.

    Reference: Mnih and Gregor 2014, arXiv:1402.0030.
    """

    predict: Callable[[PyTree, PyTree], Array]
    weights: PyTree
    inputs: PyTree
    optimizer: PyTree

    def init_state(self) -> PyTree:
        return {"weights": self.weights, "optimizer": self.optimizer.init(self.weights)}

    def value(self, downstream: Downstream) -> Array:
        return downstream.weight * self.predict(downstream.state["weights"], self.inputs)

    def update(self, downstream: Downstream) -> PyTree:
        def loss(weights: Array) -> Array:
            return jnp.mean(
                (downstream.cost - downstream.weight * self.predict(weights, self.inputs)) ** 2
            )

        state = downstream.state
        grads = jax.grad(loss)(state["weights"])
        updates, optimizer = self.optimizer.update(grads, state["optimizer"], state["weights"])
        weights = jax.tree.map(lambda w, u: w + u, state["weights"], updates)
        return {"weights": weights, "optimizer": optimizer}


@dataclasses.dataclass(frozen=True, eq=False)
class GivenBaseline(Baseline):
    """b = a number or array computed before the draw (broadcastable to the site's elements)."""

    b: Any

    def value(self, downstream: Downstream) -> Array:
        return downstream.weight * jnp.asarray(self.b)


@dataclasses.dataclass(frozen=True, eq=False)
class CombinedBaseline(Baseline):
    """b = sum_k a_k b_k, the coefficients fitted by least squares to the site's downstream costs of earlier steps.

    Args:
        baselines: what `Reinforce` takes as a baseline; a number stands for itself.
        decay: weight of the past in the moments that the fit uses, in [0, 1). Before the first step b = 0.

    The fit lowers the mean square of cost - b, not the variance of the gradient itself. Validity: as each b_k; the
    coefficients come from earlier steps, so that they are independent of the site's own draw.

    Raises:
        ValueError: `decay` is outside of [0, 1); there is no baseline, or one of them is none.

    Reference: Owen 2013, Monte Carlo theory, methods and examples, section 8.9 (several control variates); Geffner and
    Domke 2018, arXiv:1810.12482.
    """

    baselines: tuple[Any, ...]
    decay: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"CombinedBaseline: decay must lie in [0, 1), got {self.decay}.")
        parts = tuple(as_baseline(b) for b in self.baselines)
        if not parts or None in parts:
            raise ValueError(
                f"CombinedBaseline: give at least one baseline, each a Baseline, a name or a number, got {self.baselines}."
            )
        object.__setattr__(self, "baselines", parts)

    @property
    def num_replicates(self) -> int:  # type: ignore[override]
        return max(b.num_replicates for b in self.baselines)

    def init_state(self) -> PyTree:
        size = len(self.baselines)
        return {
            "parts": [b.init_state() for b in self.baselines],
            "gram": jnp.zeros((size, size)),
            "cross": jnp.zeros(size),
        }

    def value(self, downstream: Downstream) -> Array:
        # a = argmin E[(cost - sum_k a_k b_k)^2] = E[b b']^-1 E[b cost], from moments of earlier steps.
        state, parts = downstream.state, self._parts(downstream)
        size = len(self.baselines)
        # The ridge serves parts that say the same, and the start, where all moments are zero.
        ridge = 1e-5 * jnp.trace(state["gram"]) / size + 1e-12
        coefficients = jnp.linalg.solve(state["gram"] + ridge * jnp.eye(size), state["cross"])
        with full_precision():
            return jnp.tensordot(coefficients, parts, 1)

    def update(self, downstream: Downstream) -> PyTree:
        state, parts = downstream.state, self._parts(downstream)
        cost = jnp.broadcast_to(downstream.cost, parts.shape[1:]).ravel()
        parts = parts.reshape(len(self.baselines), -1)
        blend = lambda old, new: self.decay * old + (1 - self.decay) * new / cost.size  # noqa: E731
        with full_precision():
            gram, cross = parts @ parts.T, parts @ cost
        return {
            "parts": [b.update(d) for b, d in self._each(downstream)],
            "gram": blend(state["gram"], gram),
            "cross": blend(state["cross"], cross),
        }

    def _each(self, downstream: Downstream) -> list[tuple[Baseline, Downstream]]:
        return [
            (b, dataclasses.replace(downstream, state=s))
            for b, s in zip(self.baselines, downstream.state["parts"], strict=True)
        ]

    def _parts(self, downstream: Downstream) -> Array:
        values = [b.value(d) for b, d in self._each(downstream)]
        shape = jnp.broadcast_shapes(downstream.cost.shape, *(jnp.shape(v) for v in values))
        return stop(jnp.stack([jnp.broadcast_to(v, shape) for v in values]))


NAMED = {"leave-one-out": LeaveOneOut, "moving-average": MovingAverage}


def as_baseline(baseline: object) -> Baseline | None:
    """A baseline from itself, its name, or a number or array; None stays None."""
    if baseline is None or isinstance(baseline, Baseline):
        return baseline
    if isinstance(baseline, str) or callable(baseline):  # a function is neither a number nor a name
        if str(baseline) not in NAMED:
            raise ValueError(
                f"Reinforce: no baseline named '{baseline}'; choose from {sorted(NAMED)} or pass a Baseline."
            )
        return NAMED[str(baseline)]()
    return GivenBaseline(baseline)


@dataclasses.dataclass(frozen=True, eq=False)
class Reinforce(Strategy):
    """Score-function gradient: (cost downstream of the element - baseline) * d log p(element).

    Args:
        baseline: None, "leave-one-out", "moving-average", a `Baseline`, or (at the site) a number or array
            computed before the draw.

    Validity: unbiased if the support does not depend on parameters (checked; `distributions/_supports.py`), the baseline not on
    the site's own draw, and no probability that a parameter moves is exactly 0 (then NaN; the table in `Enum`).
    Costs that an element cannot influence are left out, element by element
    (Rao-Blackwellisation).
    Reference: Williams 1992; Ranganath et al. 2014, arXiv:1401.0118; Schulman et al. 2015, arXiv:1506.05254.
    """

    baseline: Any = None
    name = "reinforce"

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", as_baseline(self.baseline))

    @property
    def num_replicates(self) -> int:  # type: ignore[override]
        return self.baseline.num_replicates if self.baseline else 1

    def refuse(self, distribution: dist.Distribution) -> str | None:
        if isinstance(distribution, dist.Delta):
            return "needs a density, but Delta has none"
        return None

    def local(self, draw: Draw) -> PyTree:
        # An array baseline is a number of the site like any other: it leaves regions with it.
        given = (
            jnp.broadcast_to(self.baseline.b, draw.shape)
            if isinstance(self.baseline, GivenBaseline)
            else None
        )
        return {"log_prob": draw.log_prob, "baseline": given}

    def surrogate(self, local: dict[str, PyTree], downstream: Downstream) -> Array:
        signal = downstream.cost
        if local["baseline"] is not None:
            signal = signal - downstream.weight * local["baseline"]
        elif self.baseline is not None:
            signal = signal - self.baseline.value(downstream)
        # Zero in value, with (cost - b) d log p as its derivative.
        score = local["log_prob"]
        return stop(signal) * (score - stop(score))

    def init_state(self) -> PyTree:
        return self.baseline.init_state() if self.baseline else ()

    def update(self, local: Mapping[str, Array | None], downstream: Downstream) -> PyTree:
        return self.baseline.update(downstream) if self.baseline else ()
