"""Objects in proportion to a reward, by an object that fits, samples, scores and is kept in a file.

Several runs are trained from different networks, because none can judge itself: of what a policy never builds, its own draws and
weights say nothing. Together they can. With P_1, ..., P_S the laws of their trajectories, draws of all of them with the weights

    w(path) = R(x) P_B(path | x) / mean_s P_s(path)

stand for the target wherever any run goes (the balance heuristic), and each run is judged by what the others have found: the
lower bound of log Z from its own draws, the upper one from these.

Reference: Veach and Guibas 1995 (balance heuristic); Malkin et al. 2022, arXiv:2201.13259 (trajectory balance).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ... import inference
from ...inference.diagnostics import EvidenceBracket
from ...inference.diagnostics._evidence_bracket import lost_modes
from ...inference.fitting.storage._archive import read, write
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ._balance import balance
from ._gflownet import GFlowNet
from ._losses import (
    Loss,
    detailed_balance,
    log_variance,
    subtrajectory_balance,
    trajectory_balance,
)
from ._programs import programs
from ._rollout import rollout
from .environments._environment import Environment

_LOSSES: dict[str, Callable[[], Loss]] = {
    "trajectory_balance": trajectory_balance,
    "detailed_balance": detailed_balance,
    "subtrajectory_balance": subtrajectory_balance,
    "log_variance": log_variance,
}
_FORMAT = "object sampler 1"
_NUM_JUDGED = 1_000  # trajectories of each run by which it is judged
# Least value -> parameters.
_COUNTS = {
    0: ("random_state",),
    1: ("num_hidden", "num_steps", "patience"),
    2: ("batch_size", "num_runs"),
}


class Drawn(NamedTuple):
    """Objects of an `ObjectSampler`.

    Attributes:
        objects: stacked states, [n, ...].
        log_reward: log R of each, nats, [n].
        log_weight: log of R P_B / P_F, nats, [n]: the mean weight is an unbiased estimate of Z, and weighted objects are
            consistent for R / Z.
    """

    objects: Any
    log_reward: Float[np.ndarray, " n"]
    log_weight: Float[np.ndarray, " n"]


class ObjectSampler:
    """Draws the objects of an environment in proportion to their rewards.

    Args:
        env: how objects are built and what they are worth, see `Environment`.
        loss: "trajectory_balance", "detailed_balance", "subtrajectory_balance" or "log_variance", each at its defaults.
        num_hidden: width of the two hidden layers of the networks.
        num_steps: of the optimiser, at most.
        batch_size: trajectories a step.
        learning_rate: of Adam; log Z has 0.1.
        explore: share of the steps over which uniform actions fall from all to none.
        num_runs: independent runs, which judge each other; the best one is kept.
        patience: steps after the exploration without a smaller spread of the log-weights, after which training ends; it is looked
            at four times in as many steps.
        random_state: an integer, not negative.

    Attributes:
        bracket_: log Z from both sides for the run that is kept, on trajectories that did not choose it (`EvidenceBracket`).
        log_z_: log Z-hat by trajectories of all runs together, nats.
        runs_: log Z-hat of each run by its own: what misses a part of the objects is too low. [runs]
        n_iter_: steps taken.
        validation_: step of each look, and the standard deviation of the log-weights of the run that was best then, over its own
            draws and over those of the target: 0 for an exact policy, nats.

    Raises:
        ValueError: an unknown loss, or sizes that are impossible.

    Validity: a mode that no run has found shows nowhere. `Drawn.log_weight` is exact for every policy.

    Example:
        >>> from lapilli.models import gflownet
        >>> grid = gflownet.Hypergrid(2, 8)
        >>> sampler = gflownet.ObjectSampler(grid, num_hidden=32, num_steps=200).fit()  # doctest: +SKIP
        >>> sampler.sample(1000).objects.shape  # doctest: +SKIP
        (1000, 2)
    """

    def __init__(
        self,
        env: Environment,
        *,
        loss: str = "trajectory_balance",
        num_hidden: int = 128,
        num_steps: int = 5_000,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        explore: float = 0.5,
        num_runs: int = 2,
        patience: int = 1_000,
        random_state: int = 0,
    ) -> None:
        own = {k: v for k, v in locals().items() if k not in ("self", "env")}
        for least, names in _COUNTS.items():
            check_counts("ObjectSampler", least, **{name: own[name] for name in names})
        if loss not in _LOSSES or not 0 <= explore <= 1 or not learning_rate > 0:
            raise ValueError(
                f"ObjectSampler: loss={loss!r}, explore={explore!r}, learning_rate={learning_rate!r}; loss must be one of "
                f"{sorted(_LOSSES)}, explore must lie in [0, 1], and learning_rate must be positive."
            )
        self.env, self._own = env, own
        self._net: GFlowNet | None = None
        self._params: Mapping[str, Any] = {}

    def fit(self) -> Self:
        """Train the runs, and keep the best of them.

        Raises:
            ValueError: what `check` finds wrong with the environment.

        Warns:
            UserWarning: more than 5 % of the target, as all runs together see it, lies where the one that is kept hardly goes.
        """
        import optax  # on use: a tenth of a second

        own = self._own
        net_key, fit_key, look_key, judge_key = jax.random.split(self._key(0), 4)
        nets = [self._make(key) for key in jax.random.split(net_key, own["num_runs"])]
        net, loss = nets[0], _LOSSES[own["loss"]]()
        falling = max(own["explore"] * own["num_steps"], 1.0)
        objective = balance(
            net, loss, batch_size=own["batch_size"],
            epsilon=lambda step: jnp.maximum(0.0, 1.0 - step / falling) if own["explore"] else 0.0,
        )  # fmt: skip
        params = objective.init(fit_key)
        starts = [{**params, **_weights(one)} for one in nets]
        judge = jax.jit(lambda params, key: _judged(net, params, key, _NUM_JUDGED))
        best = inference.fitting.KeepBest(
            lambda params, key: _spread(judge(params, key)), look_key, name="spread"
        )

        def ends(info: PyTree) -> bool:
            """Patience counts from the end of the exploration."""
            best(info)
            least = min(best.losses, key=lambda look: (np.isnan(look[1]), look[1]))[0]
            return info.step - max(least, falling) >= own["patience"]

        rates = {name: optax.adam(own["learning_rate"]) for name in params}
        rates |= {"log_z": optax.adam(0.1)} if "log_z" in rates else {}
        fit = inference.fit(
            objective, rates, (),
            num_steps=own["num_steps"], key=fit_key, num_seeds=own["num_runs"], progress=False,
            params=jax.tree.map(lambda *x: jnp.stack(x), *starts),
            callbacks=[ends], callback_every=max(own["patience"] // 4, 1),
        )  # fmt: skip
        lower, upper, log_z = judge(best.params, judge_key)
        # Others choose: the best of several by the same draws would look better than it is.
        chosen_by, _, _ = judge(best.params, jax.random.fold_in(judge_key, 1))
        kept = int(jnp.argmax(_log_mean(chosen_by)))
        self.n_iter_, self.validation_ = fit.steps, best.losses
        self.log_z_, self.runs_ = float(log_z), np.asarray(_log_mean(lower))
        self.bracket_ = EvidenceBracket(
            np.asarray(lower[kept]), np.asarray(upper[kept]), 1, "draws"
        )
        self._net, self._params = net, jax.tree.map(lambda x: x[kept], dict(best.params))
        remedy = "Explore more (explore, num_steps), or take more runs (num_runs)"
        if (text := lost_modes(self.bracket_, "ObjectSampler.fit", remedy)) is not None:
            warnings.warn(text, UserWarning, stacklevel=2)
        return self

    def sample(self, n_samples: int = 1, random_state: int | None = None) -> Drawn:
        """Objects as the policy builds them, with what corrects it.

        Args:
            n_samples: how many.
            random_state: seed; None: that of the sampler.
        """
        net, seed = self._ready("sample"), random_state
        key = self._key(1) if seed is None else jax.random.key(seed)
        batch = rollout(net, net.modules(self._params), key, n_samples)
        process = net.process(batch)
        last = jax.tree.map(lambda x: np.asarray(x[:, -1]), batch.positions.state)
        return Drawn(last, np.asarray(process.log_reward[:, -1]), np.asarray(process.log_weight))

    def score_samples(self, objects: object, num_trajectories: int = 64) -> Float[np.ndarray, " n"]:
        """Log of the probability that the policy builds each object, nats.

        Args:
            objects: stacked states, as `Drawn.objects`.
            num_trajectories: ways back from each, drawn from P_B. The estimate is unbiased for the probability, and its log too
                small on average, less so with more of them (`GFlowNet.estimate_log_prob`).
        """
        net, states = self._ready("score_samples"), jax.tree.map(jnp.asarray, objects)
        key, count = self._key(2), {"num_trajectories": num_trajectories}
        return np.asarray(net.estimate_log_prob(self._params, key, states, **count))

    def score(self, objects: object, num_trajectories: int = 64) -> float:
        """Mean of `score_samples`.

        Args:
            objects: as there.
            num_trajectories: as there.
        """
        return float(self.score_samples(objects, num_trajectories).mean())

    @checked_call
    def save(self, path: str | os.PathLike) -> None:
        """Write what was fitted to one file, whole or not at all. The environment is code and goes into no file.

        Args:
            path: where.
        """
        self._ready("save")
        tried = self._tried()
        header = {
            "format": _FORMAT,
            "params": self._own,
            "env": type(self.env).__name__,
            "n_iter": self.n_iter_,
            "log_z": self.log_z_,
            "validation": [[int(step), float(spread)] for step, spread in self.validation_],
        }
        arrays = {"lower": self.bracket_.lower, "upper": self.bracket_.upper, "runs": self.runs_}
        leaves = {f"leaf{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(self._params))}
        write(path, header, {**arrays, **leaves, "tried": tried})

    @classmethod
    @checked_call
    def load(cls, path: str | os.PathLike, env: Environment) -> Self:
        """Read what `save` wrote.

        Args:
            path: the file.
            env: the environment that was trained on.

        Raises:
            ValueError: the file is none of `save`; or it belongs to another environment: other parameters' shapes, or other
                log-weights of ten trajectories.
        """
        header, arrays = read(path, "file of ObjectSampler.save", _FORMAT)
        found = cls(env, **header["params"])
        found._net = found._make(found._key(0))
        like = jax.eval_shape(found._net.forward.init, jax.random.key(0))
        leaves, treedef = jax.tree.flatten(dict(like))
        stored = [arrays[f"leaf{i}"] for i in range(sum(n.startswith("leaf") for n in arrays))]
        reason = "its networks have other shapes"
        fits = [x.shape for x in leaves] == [x.shape for x in stored]
        if fits:
            found._params = jax.tree.unflatten(treedef, stored)
            reason = "the log-weights of ten trajectories differ"
            fits = np.allclose(found._tried(), arrays["tried"], rtol=1e-3, atol=1e-3)
        if not fits:
            raise ValueError(
                f"ObjectSampler.load: '{os.fspath(path)}' was trained on another environment ({header['env']}) than this "
                f"{type(env).__name__}: {reason}. Pass the one that it was trained on, with the same reward."
            )
        found.n_iter_, found.log_z_, found.runs_ = header["n_iter"], header["log_z"], arrays["runs"]
        found.validation_ = [(int(step), float(spread)) for step, spread in header["validation"]]
        found.bracket_ = EvidenceBracket(arrays["lower"], arrays["upper"], 1, "draws")
        return found

    def _key(self, number: int) -> Array:
        return jax.random.fold_in(jax.random.key(self._own["random_state"]), number)

    def _make(self, key: Array) -> GFlowNet:
        has_flow = _LOSSES[self._own["loss"]]().needs_flow
        options = {
            "flow": "network" if has_flow else "total",
            "num_hidden": self._own["num_hidden"],
        }
        return programs(self.env, key=key, **options)

    def _ready(self, name: str) -> GFlowNet:
        if self._net is None:
            raise ValueError(f"ObjectSampler.{name}: nothing is fitted yet. Call fit() first.")
        return self._net

    def _tried(self) -> Float[np.ndarray, " ten"]:
        """Log-weights of ten trajectories, which belong to the networks and the reward."""
        return self.sample(10, random_state=0).log_weight


def _weights(net: GFlowNet) -> dict[str, PyTree]:
    """What differs between networks that are made with different keys."""
    modules = {"policy": net.policy, "flow": net.flow_network}
    return {k: eqx.filter(m, eqx.is_inexact_array) for k, m in modules.items() if m is not None}


def _judged(net: GFlowNet, params: PyTree, key: Array, count: int) -> tuple[Array, Array, Array]:
    """Log-weights of each run at its own draws and at draws of the target, [runs, count] each; and log Z-hat of all together."""
    num_runs = len(jax.tree.leaves(params)[0])
    draw_key, pick_key = jax.random.split(key)
    draw = lambda p, key: rollout(net, net.modules(p), key, count).actions
    actions = jax.vmap(draw)(params, jax.random.split(draw_key, num_runs))
    actions = actions.reshape(num_runs * count, -1)
    # By runs and trajectories, those of the first run first.
    log_w = jax.vmap(lambda p: net.log_weight_process(p, actions).log_weight)(params)
    log_mix = -_log_mean(-log_w.T)
    picked = jax.random.categorical(pick_key, log_mix, shape=(count,))
    own = jnp.stack([log_w[r, r * count : (r + 1) * count] for r in range(num_runs)])
    return own, log_w[:, picked], _log_mean(log_mix)


def _spread(judged: tuple[Array, Array, Array]) -> Array:
    """Standard deviation of the log-weights of the run whose log Z-hat is the highest, over both kinds of draws, nats.

    Zero where the policy is exact. The gap between the bounds falls below zero by chance, and its least of many looks is luck.
    """
    lower, upper, _ = judged
    kept = jnp.argmax(_log_mean(lower))
    return jnp.sqrt(0.5 * (lower[kept].var() + upper[kept].var()))


def _log_mean(log_w: Array) -> Array:
    return jax.nn.logsumexp(log_w, -1) - jnp.log(log_w.shape[-1])
