"""Optimisers for fit: one for all parameters, or one per group of parameters, some groups frozen."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from ....ppl._shared_jit import shared_jit
from ....ppl._types import ParamMap
from ..stationarity import settling, watching

if TYPE_CHECKING:
    import optax

    from ..._game import PlayerTurn

FROZEN = "frozen"
_ALL = "*"


class Optimizer(NamedTuple):
    """A gradient transformation and, for each leaf of the parameters, its name and whether it is trained."""

    transform: optax.GradientTransformationExtraArgs
    names: list[str]
    is_trained: list[bool]


def is_optimizer(value: object) -> bool:
    """Whether `value` follows optax's interface (those of numpyro.optim have the same methods, with other arguments)."""
    is_alike = callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))
    return is_alike and not hasattr(value, "get_params")


def make_optimizer(
    optimizer: Any,
    params: ParamMap,
    *,
    ending: Literal["settles", "watches"] | None = None,
    num_steps: int | None = None,
    rule: Mapping[str, PyTree] | None = None,
    fixed: Collection[str] = (),
    turns: Mapping[str, PlayerTurn] | None = None,
) -> Optimizer:
    """Match the groups of `optimizer` with the names in `params`.

    Args:
        optimizer: an optax transformation, or a dict from fnmatch pattern to a transformation or "frozen".
        params: mapping from name to a pytree of arrays (or their shapes).
        ending: whether it is to end the run by itself, `settling`, or to see when it could, `watching`.
        num_steps: of the run, for the latter.
        rule: options of `settling`.
        fixed: parameters that a transformation for all of them leaves as they are.
        turns: when each parameter of a game moves; groups may be those of its players then, by name.

    Raises:
        ValueError: if a parameter matches no pattern or several, a pattern matches nothing, or nothing is left to train.
    """
    import optax  # on use: a tenth of a second

    names = leaf_names(params)
    if not names:
        raise ValueError(
            "The objective has no parameters, so there is nothing to fit. Declare what is to be learned by ppl.param or "
            "ppl.module, in the model or in the guide."
        )
    groups = optimizer if isinstance(optimizer, Mapping) else {_ALL: optimizer}
    players = {name: turn.player for name, turn in (turns or {}).items()}
    is_by_player = players and set(groups) == set(players.values())
    group_of = players if is_by_player else _match(groups, list(params))
    labels = [group_of[name] for name in names]
    is_trained = [
        not isinstance(groups[label], str) and name not in fixed
        for label, name in zip(labels, names, strict=True)
    ]
    if not any(is_trained):
        raise ValueError(
            f"Argument 'optimizer': every parameter is frozen: {list(params)}. Give at least one pattern a transformation."
        )
    if isinstance(optimizer, Mapping) or turns:
        # Of a game a group is divided by players, since what an optimiser remembers is held between a player's turns.
        both = [(label, (turns or {}).get(name)) for name, label in zip(names, labels, strict=True)]
        kinds = list(dict.fromkeys(both))
        transforms: dict[Hashable, optax.GradientTransformation] = {
            number: _of_group(groups[pattern], turn) for number, (pattern, turn) in enumerate(kinds)
        }
        tree = jax.tree.unflatten(jax.tree.structure(params), [kinds.index(kind) for kind in both])
        optimizer = optax.partition(transforms, tree)
    transform = optax.with_extra_args_support(optimizer)
    if ending is not None:
        is_settling = ending == "settles"
        transform = (
            settling(transform, **rule or {}) if is_settling else watching(transform, num_steps)
        )
    return Optimizer(transform, names, is_trained)


def _of_group(group: Any, turn: PlayerTurn | None) -> optax.GradientTransformation:
    import optax

    if isinstance(group, str):
        return optax.set_to_zero()
    return group if turn is None else in_turn(group, turn)


class TurnState(NamedTuple):
    """Steps of the game so far, and the state of a player's transformation."""

    count: Array
    inner: PyTree


def in_turn(
    transform: optax.GradientTransformation, turn: PlayerTurn
) -> optax.GradientTransformation:
    """The transformation of one player: out of turn nothing moves and its state stays; it counts the player's own steps."""
    import optax

    own = optax.with_extra_args_support(transform)
    share = (turn.end - turn.first) / turn.period

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, TurnState]:
        # The game is minimised as a whole; its value is of the player in turn, with that player's own sign.
        extra |= {name: turn.sign * extra[name] for name in ("value",) if name in extra}
        extra |= {name: share * extra[name] for name in ("num_steps",) if name in extra}
        moved, inner = own.update(updates, state.inner, params, **extra)
        at = state.count % turn.period
        is_mine = (turn.first <= at) & (at < turn.end)
        held = lambda new, old: jax.tree.map(lambda n, o: jnp.where(is_mine, n, o), new, old)
        zeros = jax.tree.map(jnp.zeros_like, moved)
        return held(moved, zeros), TurnState(state.count + 1, held(inner, state.inner))

    return optax.GradientTransformationExtraArgs(
        lambda params: TurnState(jnp.int32(0), own.init(params)), update
    )


def memory_of(transform: optax.GradientTransformation, params: PyTree) -> float:
    """Over how many gradients a transformation averages the squares that it divides by; inf where it does not, or none is seen.

    Optax calls the average `nu`. A gradient of one goes in and then a zero, which leaves the share 1 - 1 / memory of it. Scalars
    stand for the arrays of `params`.
    """
    import optax

    transform = optax.with_extra_args_support(transform)

    def averages() -> list[list[jax.Array]]:
        zeros, ones = (jax.tree.map(lambda _, x=x: jnp.array(x), params) for x in (0.0, 1.0))
        state, found = transform.init(zeros), []
        for gradients in (ones, zeros):
            _, state = transform.update(gradients, state, zeros, value=jnp.ones(()))
            named = optax.tree_utils.tree_get_all_with_path(state, "nu")
            found.append(jax.tree.leaves([nu for _, nu in named]))
        return found

    try:
        first, second = shared_jit(averages)()  # operation by operation it takes five times as long
    except Exception:  # one that needs arrays of a shape of their own
        return math.inf
    # An average of zeros is that of parameters that the transformation holds.
    pairs = [(float(b), float(a)) for b, a in zip(first, second, strict=True) if b != 0]
    lost = [1 - after / before for before, after in pairs]
    return min((1 / share for share in lost if share > 0), default=math.inf)


def leaf_names(params: ParamMap) -> list[str]:
    """The parameter name of each leaf, in the order of `jax.tree.leaves(params)`."""
    return [name for name, _ in leaf_paths(params)]


def leaf_paths(params: ParamMap) -> list[tuple[str, str]]:
    """The parameter name of each leaf, and the path inside of it, "layers.0.weight"; in that order."""
    # By number, not by path: a dict subclass may be registered as a pytree with paths of its own.
    leaves, treedef = jax.tree.flatten(params)
    numbers = jax.tree.unflatten(treedef, list(range(len(leaves))))
    found = [("", "")] * len(leaves)
    for name in params:
        for path, number in jax.tree_util.tree_leaves_with_path(numbers[name]):
            found[number] = name, jax.tree_util.keystr(path, simple=True, separator=".")
    return found


def _match(groups: Mapping[str, object], names: list[str]) -> dict[str, str]:
    found = {name: [p for p in groups if fnmatchcase(name, p)] for name in names}
    matched = {pattern for patterns in found.values() for pattern in patterns}
    problems = [f"pattern '{p}' matches no parameter" for p in groups if p not in matched]
    problems += [
        f"parameter '{n}' matches no pattern" for n, patterns in found.items() if not patterns
    ]
    problems += [
        f"parameter '{name}' matches several patterns: {patterns}"
        for name, patterns in found.items()
        if len(patterns) > 1
    ]
    if problems:
        raise ValueError(
            f"Argument 'optimizer': {'; '.join(problems)}. Parameters: {names}; patterns: {list(groups)}. Each parameter must "
            "match exactly one pattern; give the ones to leave alone to a pattern with the value 'frozen'."
        )
    return {name: patterns[0] for name, patterns in found.items()}


def apply(
    optimizer: Optimizer,
    params: PyTree,
    opt_state: PyTree,
    grads: PyTree,
    value: Array,
    sign: float,
    num_steps: ArrayLike = math.inf,
) -> tuple[PyTree, PyTree]:
    """One update.

    Args:
        optimizer: the result of `make_optimizer`.
        params: parameters.
        opt_state: the transformation's state.
        grads: gradient of `value`.
        value: the objective in nats.
        sign: +1 to minimise `value`, -1 to maximise it.
        num_steps: of the run.

    Returns:
        New parameters, frozen leaves untouched to the bit, and the new state.
    """
    import optax

    descent = jax.tree.map(lambda g: sign * g, grads)
    # `value` reaches transformations that ask for it, such as reduce_on_plateau.
    more = {"value": sign * value, "num_steps": num_steps}
    updates, opt_state = optimizer.transform.update(descent, opt_state, params, **more)
    moved = optax.apply_updates(params, updates)
    return keep_frozen(optimizer, params, moved), opt_state


def keep_frozen(optimizer: Optimizer, old: PyTree, new: PyTree) -> PyTree:
    """`new` with the frozen leaves of `old`."""
    treedef = jax.tree.structure(old)
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), optimizer.is_trained, strict=True)
    return jax.tree.unflatten(treedef, [n if trained else o for o, n, trained in pairs])


def trained_leaves(optimizer: Optimizer, tree: PyTree) -> list[Array]:
    """The leaves of `tree` (parameters or gradients) that are trained."""
    return [leaf for leaf, t in zip(jax.tree.leaves(tree), optimizer.is_trained, strict=True) if t]


def average_step(
    optimizer: Optimizer, average: PyTree, params: PyTree, count: ArrayLike, decay: float | str
):
    """Add the iterate number `count` (from 1) to the running average.

    "polyak" is the uniform mean of all iterates; a number d is the exponential mean with weights d^(count - s), normalised to
    one, so that the starting point leaves no trace.
    """
    count = jnp.asarray(count, jnp.result_type(float))
    if isinstance(decay, str):
        weight = 1 / count
    else:
        # (1 - d) / (1 - d^count), without the cancellation of d near one.
        weight = (1 - decay) / -jnp.expm1(count * math.log(decay))
    new = jax.tree.map(lambda a, p: a + weight.astype(a.dtype) * (p - a), average, params)
    return keep_frozen(optimizer, average, new)
