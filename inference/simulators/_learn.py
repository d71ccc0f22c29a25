"""Training on stored rows: minibatches, a cosine of Adam, and the parameters that the validation rows like best.

Parameters far from the end of the cosine are noisy, and where rows are few the best ones are there. So each look is also at the
mean of the last few (Polyak and Juditsky 1992; Izmailov et al. 2018, arXiv:1803.05407).

Rows that are few for what they tell are learned by heart: the validation loss is least long before the end. Then the weights of
networks decay (Loshchilov and Hutter 2019, arXiv:1711.05101), and more so for as long as the validation rows gain by it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ... import ppl
from ...ppl._checks import check_counts
from ...ppl._shared_jit import shared_jit
from ...ppl._types import Key, ParamMap
from .._abstract_objective import AbstractObjective
from ..fitting import Fit, FitInfo, KeepBest, fit
from ._side_by_side import Turn, in_turn

if TYPE_CHECKING:
    import optax

_RATE, _NORM = 3e-3, 5.0
_STEPS_PER_ROOT = 120.0  # 12,000 steps for 10,000 rows, since larger data sets need fewer epochs
_LOOKS = 40  # at the validation rows
_AVERAGED = 8  # looks whose parameters are averaged
_PATIENCE = 1 / 3  # of all steps
# Standard errors by which the best of many looks must beat the start on the validation rows: where it does not, networks have
# learned noise, and errors of a likelihood grow with the number of rows that it is asked about.
_CLEAR = 2.0
_DECAYS = (0.0, 0.3, 1.0, 3.0)  # of weights, in units of the rate
_EARLY = 0.75  # of the steps: before that the least validation loss is a sign of too few rows

# (parameters, key, rows) -> losses in nats, [rows]
type LossFn = Callable[[ParamMap, Key, dict[str, Array]], Array]


class RowProblem(NamedTuple):
    """What is to be learned from rows.

    Attributes:
        name: shown in reports.
        init: makes the parameters.
        loss: of parameters and rows.
        training: name -> [N, ...].
        validation: name -> [V, ...].
    """

    name: str
    init: Callable[[Key], ppl.Params]
    loss: LossFn
    training: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray]


class RowLoss(AbstractObjective):
    """The mean of a loss over training rows; minibatches are means over fewer of them, without bias.

    Args:
        problem: the loss and its rows, among which the objective's one argument picks.
    """

    direction, model, guide = "min", None, None

    def __init__(self, problem: RowProblem) -> None:
        self.name, self.problem = problem.name, problem

    @property
    def args(self) -> tuple[np.ndarray]:
        """The numbers of all rows."""
        return (np.arange(len(next(iter(self.problem.training.values()))), dtype=np.int32),)

    def init(self, key: Key, *args: PyTree) -> ppl.Params:
        """Initial parameters."""
        return self.problem.init(key)

    def step(
        self, params: ParamMap, state: PyTree, key: Key, *args: PyTree
    ) -> tuple[Array, PyTree, PyTree]:
        """Value, gradient and state."""
        rows = {name: jnp.asarray(x)[args[0]] for name, x in self.problem.training.items()}
        loss = lambda params: self.problem.loss(params, key, rows).mean()
        value, grads = jax.value_and_grad(loss)(params)
        return value, grads, state

    def plate_sizes(self, *args: PyTree) -> dict[str, int]:
        """The rows."""
        return {"simulations": args[0].shape[0]}

    def with_plate_sizes(self, sizes: Mapping[str, float]) -> RowLoss:
        """Itself: a mean needs no scale."""
        return self


class Learned(NamedTuple):
    """What training left.

    Attributes:
        params: those with the least validation loss; those of the start, unless that is worse by two standard errors.
        fit: the run, at these parameters.
        validation: step and loss of each look, the start first; each later step has that of its parameters, then of the mean.
        kept: step of the parameters; 0 is the start.
        decay: of networks' weights, in units of the rate.
    """

    params: ParamMap
    fit: Fit
    validation: list[tuple[int, float]]
    kept: int
    decay: float

    def __str__(self) -> str:
        kept = (
            f"those of step {self.kept} kept"
            if self.kept
            else "no better than the start, which is kept"
        )
        decay = f", weights decay at {self.decay:g} times the rate" if self.decay else ""
        return f"{self.fit.steps} steps, {kept}{decay}"


def learn(
    problem: RowProblem,
    key: Key,
    *,
    num_steps: int | None,
    progress: bool,
    decay: float | None = None,
) -> Learned:
    """Train on rows, and stop when the validation loss has not fallen for a third of the steps.

    Weights decay as they are told to, as in an earlier training on the same rows; None: as the validation rows like best. After
    Ctrl-C no other decay is tried.
    """
    objective = RowLoss(problem)
    size = len(objective.args[0])
    num_steps = int(_STEPS_PER_ROOT * size**0.5) if num_steps is None else num_steps
    check_counts(problem.name, num_steps=num_steps)
    init_key, fit_key, look_key = jax.random.split(key, 3)
    each = losses_on(problem.validation, problem.loss)
    start = problem.init(init_key)

    def trained(decay: float, turn: Turn) -> tuple[KeepBest, Fit]:
        look = lambda params, key: each(params, key).mean()
        best = KeepBest(
            look, look_key, patience=max(1, int(_PATIENCE * num_steps)), name=problem.name
        )
        # The start may be the best: least squares on normal data.
        best(FitInfo(0, 0, start, None, np.zeros(0), 0, "min", 0.0))
        last: collections.deque[ParamMap] = collections.deque(maxlen=_AVERAGED)

        def looked(info: FitInfo) -> bool:
            turn.compiled.set()
            # Copies: the next step writes into these buffers.
            last.append(jax.tree.map(np.array, info.params))
            mean = jax.tree.map(lambda *x: np.mean(np.stack(x), 0, dtype=x[0].dtype), *last)
            ended = best(info)
            ended = best(dataclasses.replace(info, params=mean)) if len(last) > 1 else ended
            return ended or turn.unwanted.is_set()

        run = fit(
            objective,
            _optimizer(num_steps, decay),
            objective.args,
            num_steps=num_steps,
            key=fit_key,
            params=start,
            subsample={"simulations": int(np.clip(size // 40, min(32, size), 256))},
            callbacks=[looked],
            callback_every=max(1, num_steps // _LOOKS),
            progress=progress and not turn.is_beside,
        )
        return best, run

    tried = _DECAYS if decay is None else (decay,)
    jobs = [functools.partial(trained, strength) for strength in tried]
    with contextlib.closing(in_turn(jobs, problem.name)) as trainings:
        decay, (best, found) = tried[0], next(trainings)
        for stronger in tried[1:]:
            if found.interrupted or _least(best)[0] > _EARLY * num_steps:
                break
            training = next(trainings, None)
            if training is None or not _least(training[0])[1] < _least(best)[1]:
                break
            decay, (best, found) = stronger, training
    params = best.params
    gains = np.asarray(each(start, look_key) - each(params, look_key), float)
    if not gains.mean() > _CLEAR * gains.std(ddof=1) / len(gains) ** 0.5:
        return Learned(start, found.with_params(start), best.losses, 0, decay)
    return Learned(params, found.with_params(params), best.losses, _least(best)[0], decay)


def losses_on(rows: Mapping[str, np.ndarray], loss: LossFn) -> Callable[[ParamMap, Key], Array]:
    """The losses of rows that are looked at as a whole: of equal numbers of rows one compiled program."""
    held = {n: jnp.asarray(x) for n, x in rows.items()}
    return shared_jit(lambda params, key: loss(params, key, held))


def _least(best: KeepBest) -> tuple[int, float]:
    """Step and value of the least loss."""
    return min(best.losses, key=lambda look: (not look[1] == look[1], look[1]))


def _optimizer(num_steps: int, decay: float) -> optax.GradientTransformationExtraArgs:
    """Adam along a cosine; the decay of weights is in its state, so that all decays are one program."""
    import equinox as eqx
    import optax

    def decayed(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        pulled = lambda u, p: u + state.astype(u.dtype) * p
        linear = lambda x: isinstance(x, eqx.nn.Linear)
        weights = lambda u, p: eqx.tree_at(lambda m: m.weight, u, pulled(u.weight, p.weight))
        each = lambda u, p: weights(u, p) if linear(u) else u
        return jax.tree.map(each, updates, params, is_leaf=linear), state

    return optax.chain(
        optax.clip_by_global_norm(_NORM),
        optax.scale_by_adam(),
        optax.GradientTransformation(lambda params: jnp.asarray(decay, float), decayed),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(_RATE, num_steps)),
    )
