"""Rewards of corrected diffusions: what is no number is named before anything runs, and a tilt is read as one.

A tilt of a program that draws a point of a diffusion model has the reward r(x) / b. Along the noising times it is brought in by

    h_t(x) = s(t) r(x) / b,    s(t) = (g(t) - g(t_0)) / (g(t_N) - g(t_0)),    g = alpha^2 / (alpha^2 + variance),

which is 0 at the first time and r / b at the last. Weights correct for whatever lies between, as long as it is finite: where r
is -inf (a constraint) `BROKEN` stands for it before the last time, since a point that breaks it there may keep it at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, PyTree
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._compat import is_concrete
from ...ppl._types import Message
from ...ppl.distributions import base_of
from ...ppl.language import name_of
from ..tilts._partial import partial_log_weight
from ..tilts._rewards import as_log_weight, refuse_rewards
from ..tilts._tilt import TiltedProgram
from . import _points as points
from ._composition import Composition, Reward
from ._diffusion import Diffusion, is_one_process

NUM_TRIED = 32
BROKEN = -3.0  # nats; with 10 or more, weights at the last time vary too much


def as_number(reward: Callable[..., PyTree], who: str) -> Callable[..., Array]:
    """The reward, one number for one point and time, or for one point; what is none is refused when it is traced."""

    @functools.wraps(reward, updated=())
    def number(x: PyTree, *times: Array) -> Array:
        return as_log_weight(reward, x, *times, what=f"{who}: reward")

    return number


def try_at_start(
    who: str, reward: Callable[[PyTree], Array], name: str, x: Callable[[], PyTree]
) -> None:
    """Refuse a reward that is NaN or +inf at first points, where these are known.

    Args:
        who: asks for it.
        reward: of a point.
        name: of the user's function.
        x: makes the points, [points, ...].
    """
    with jax.ensure_compile_time_eval():
        found = jax.vmap(reward)(x())
    if is_concrete(found):
        seen = np.asarray(found)
        # -inf is no fault here: one step from noise all points are near the mean, which a constraint may exclude.
        refuse_rewards(
            f"{who}: reward '{name}'", np.where(seen == -np.inf, 0.0, seen), "first points"
        )


def refuse_jumps(reward: Reward, time: float, shape: PyTree) -> None:
    """Refuse a reward that jumps, for weights that follow its derivatives alone.

    Raises:
        ValueError: it jumps somewhere among points of the scale 1, or is -inf there.
    """
    with jax.ensure_compile_time_eval():
        law, t = points.normal_law(shape, 1.0), jnp.asarray(time, float)
        keys = jax.random.split(jax.random.key(0), NUM_TRIED)
        found = jax.vmap(lambda key: reward(points.draw(law, key), t))(keys)

    def mean(shift: Array) -> Array:
        laws, tree = jax.tree.flatten(law, is_leaf=points.is_law)
        drawn = [ppl.sample(f"x{i}", d) + shift for i, d in enumerate(laws)]
        return reward(tree.unflatten(drawn), t)

    is_constraint, cause = is_concrete(found) and bool((np.asarray(found) == -np.inf).any()), None
    if not is_constraint:
        try:
            with jax.ensure_compile_time_eval():
                ppl.expectation(mean).value_and_grad(jnp.zeros(()), jax.random.key(0))
        except ValueError as err:
            cause = err
    if is_constraint or cause is not None:
        raise ValueError(
            f"fkc: reward '{name_of(reward)}' jumps, and weights='euler' follow its derivatives, which see nothing of that. "
            "Smooth it, e.g. a probability in place of a decision, or use weights='rne' with a positive zeta, or fk_steering, "
            "which need no derivative."
        ) from cause


def reward_of_tilt(tilt: TiltedProgram, composition: Composition, times: np.ndarray) -> Reward:
    """H_t(x) of the module's text.

    Args:
        tilt: of a program that draws one point of the model by `models.diffusion.reverse_chain`.
        composition: the model.
        times: noising times.

    Raises:
        ValueError: the tilt is of another law than that of the model.
    """
    name = _point_site(tilt, composition)
    tilt.try_reward()
    log_weight = partial_log_weight("fkc", tilt, [name])
    noising = composition.models[0].noising
    share = lambda t: noising.alpha(t) ** 2 / (noising.alpha(t) ** 2 + noising.variance(t))
    with jax.ensure_compile_time_eval():
        first, last = (jnp.asarray(t, float) for t in (times[0], times[-1]))
        none, whole = share(first), share(last)

    def reward(x: PyTree, t: Array) -> Array:
        found = log_weight({name: x})
        part = (share(t) - none) / (whole - none)
        return jnp.where(t <= last, found, part * jnp.where(found == -jnp.inf, BROKEN, found))

    reward.__name__ = name_of(tilt.reward)
    return reward


class _ChainLaws(Messenger):
    """Note the laws of paths of diffusion models, by site."""

    only_watches = True

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dist.Distribution] = {}

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "sample" and hasattr(type(base_of(msg["fn"])), "start_memory"):
            self.found[msg["name"]] = base_of(msg["fn"])


def _point_site(tilt: TiltedProgram, composition: Composition) -> str:
    """The site of the point; refuses programs whose point has another law than the one model."""
    alone = len(composition.models) == 1 and composition.reward is None
    if not alone or composition.exponents != (1.0,):
        raise ValueError(
            f"fkc: reward={tilt!r} is the tilt of one model, and the composition has {len(composition.models)} models, with "
            "exponents or a reward of their own. Pass that model alone, or give the reward as a function of x and t."
        )
    met = jax.eval_shape(lambda key: tilt.base.simulate(key), jax.random.key(0))
    found = _paths_of(tilt.base, lambda p: jax.eval_shape(p.simulate, jax.random.key(0)))
    paths = list(found)
    name = paths[0].removesuffix("_path") if len(paths) == 1 else ""
    if len(paths) != 1 or sorted(met.sites) != sorted([name, f"{name}_path"]):
        raise ValueError(
            f"fkc: reward={tilt!r} is the tilt of a program with the sites {sorted(met.sites)}, of which the paths of diffusion "
            f"models are {paths}. Tilt a program that draws one point and nothing else: "
            'lambda: models.diffusion.reverse_chain("x", model, times); or give the reward as a function of x and t.'
        )
    model, law = composition.models[0], found[f"{name}_path"]
    if (
        getattr(law, "diffusion", None) is not model
    ):  # made within the program: its numbers, not those of a trace
        with jax.ensure_compile_time_eval():
            point = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), met.choices)
            law = _paths_of(tilt.base, lambda p: p.trace(point))[f"{name}_path"]
    if law.batch_shape != () or not _is_same(getattr(law, "diffusion", None), model):
        raise ValueError(
            f"fkc: reward={tilt!r} is the tilt of another diffusion model than the one that is given, or of rows of them. Give "
            "fkc the model that the program's reverse_chain has, made once and outside of it."
        )
    return name


def _paths_of(
    base: ppl.Program, run: Callable[[ppl.Program], PyTree]
) -> dict[str, dist.Distribution]:
    """The laws of paths that a run of a program meets, by site."""
    watched = _ChainLaws()

    def program() -> PyTree:
        with watched:
            return base()

    run(ppl.as_program(program))
    return watched.found


def _is_same(other: object, model: Diffusion) -> bool:
    """Whether two models are one, or have one process and equal scores where they are tried."""
    if other is model or not isinstance(other, Diffusion):
        return other is model
    if not is_one_process(other.noising, model.noising) or other.shape != model.shape:
        return False
    x = points.draw(points.normal_law(model.shape, 1.0), jax.random.key(0))
    with jax.ensure_compile_time_eval():
        for t in (0.2 * model.noising.end, 0.7 * model.noising.end):
            one, two = (m.score_at(x, t) for m in (model, other))
            if not jax.tree.all(jax.tree.map(np.array_equal, one, two)):
                return False
    return True
