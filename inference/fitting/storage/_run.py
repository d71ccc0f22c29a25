"""What a run belongs to, so that another one does not go on from its checkpoint: programs, objective, optimiser, start, settings.

Programs are compared as those of a saved fit are (`_structure.py`). One step of the objective and the optimiser's update are
compared by hashes of what is traced (`_digest.py`); where the run starts, by two sums over each array, to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ....ppl._types import Key
from ....ppl.estimation import known_data
from ..._abstract_objective import AbstractObjective
from ..._arguments import Arguments, shapes_of
from ._archive import to_raw
from ._digest import digests, numbers
from ._structure import differences, hashed, structure, versions, without_places

_SETTINGS = "jax_enable_x64", "jax_default_matmul_precision", "jax_threefry_partitionable"
_MARGIN = 1e-5  # of the root mean square of an array: other devices round otherwise


class StoredRun(NamedTuple):
    """What a run does, of one seed.

    Attributes:
        objective: with the sizes of its plates.
        params: parameters at the start.
        state: the objective's state at the start.
        args: arguments of one step.
        update: `(params, opt_state, grads, value) -> (params, opt_state)`; None for the optimiser that `fit` chooses.
        opt_state: the optimiser's state at the start.
        start: parameters and optimiser's state at the start, of all seeds.
    """

    objective: AbstractObjective
    params: PyTree
    state: PyTree
    args: tuple
    update: Callable[..., PyTree] | None
    opt_state: PyTree
    start: PyTree


def describe(run: StoredRun) -> dict[str, PyTree]:
    """What is compared, as JSON can hold it."""
    args = shapes_of(run.args)
    split = Arguments(args)

    def step(params: PyTree, state: dict[str, PyTree], key: Key, arrays: list[Array]) -> PyTree:
        with known_data():
            return run.objective.step(params, state, key, *split.join(arrays))

    inputs = run.params, run.state, jax.random.key(0), split.arrays(args)
    found = describe_step(_programs(run.objective, run.params, args), step, *inputs)
    return found | {"optimizer": _optimizer(run), "start": _sums(run.start)}


def describe_step(
    words: Mapping[str, PyTree], step: Callable[..., PyTree], *args: PyTree
) -> dict[str, PyTree]:
    """What is compared of something else that goes step by step: `words`, part -> name -> words, and the traced step."""
    return {
        "versions": versions("optax"),
        "settings": {name: getattr(jax.config, name) for name in _SETTINGS},
        "programs": words,
        "step": jax.tree.leaves(hashed(step, *args)),
        "optimizer": {"name": "given"},
        "start": {},
    }


def changes(was: Mapping[str, PyTree], now: Mapping[str, PyTree]) -> tuple[list[str], list[str]]:
    """One line for each thing that differs; and the libraries of which the versions do, where hashes were not compared."""
    others = [
        f"{name} {was['versions'].get(name)}, now {version}"
        for name, version in now["versions"].items()
        if was["versions"].get(name) != version
    ]
    lines = [
        f"jax.config.{name}: {was['settings'].get(name)} in the checkpoint, {value} now"
        for name, value in now["settings"].items()
        if was["settings"].get(name) != value
    ]
    lines += differences(was["programs"], now["programs"], hashes=not others, file="checkpoint")
    if not lines and not others and was["step"] != now["step"]:
        lines.append(
            "another computation of one step (a strategy, an option, a function that it calls, or a number in one)"
        )
    return lines + _optimizers(was["optimizer"], now["optimizer"], not others) + _starts(
        was["start"], now["start"]
    ), others  # fmt: skip


def _programs(objective: AbstractObjective, params: PyTree, args: tuple) -> dict[str, PyTree]:
    try:
        return structure(objective, params, args)
    except Exception:  # a program that cannot be simulated: its step is compared all the same
        return structure(objective, params, None)


def _optimizer(run: StoredRun) -> dict[str, list[str] | str]:
    if run.update is None:
        return {"name": "default"}
    value = jax.ShapeDtypeStruct((), jnp.result_type(float))
    params, opt_state = without_places((run.params, run.opt_state))
    closed = jax.make_jaxpr(run.update)(params, opt_state, params, value)
    names = [str(i) for i, _ in enumerate(closed.jaxpr.invars)]
    return {"name": "given", "update": digests(closed, names), "numbers": numbers(closed)}


def _optimizers(
    was: Mapping[str, list[str] | str], now: Mapping[str, list[str] | str], hashes: bool
) -> list[str]:
    if was["name"] != now["name"]:
        return [f"argument 'optimizer': {was['name']} in the checkpoint, {now['name']} now"]
    if not hashes or was.get("update") == now.get("update"):
        return []
    before, after = Counter(was["numbers"]), Counter(now["numbers"])
    pairs = [", ".join(list(x)[:4]) for x in (before - after, after - before)]
    which = (
        f": {pairs[0] or 'none'} in the checkpoint, {pairs[1] or 'none'} now" if any(pairs) else ""
    )
    return [f"argument 'optimizer': another computation of its update{which}"]


def _sums(tree: dict[str, PyTree]) -> dict[str, list[float]]:
    """For each array its root mean square, and a mean with weights that tell elements apart."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        x = to_raw(jnp.asarray(leaf))
        if x.size:
            x = np.abs(x) if x.dtype.kind == "c" else x
            x = x.astype(float).ravel()
            found[jax.tree_util.keystr(path)] = [
                float(np.sqrt(np.mean(x**2))),
                float(np.mean(x * np.linspace(1.0, 2.0, x.size))),
            ]
    return found


def _starts(was: Mapping[str, list[float]], now: Mapping[str, list[float]]) -> list[str]:
    """Names that only one of them has are told by their shapes."""
    close = lambda a, b: np.allclose(a, b, rtol=0, atol=_MARGIN * np.abs(a[0]), equal_nan=True)
    return [
        f"start{name}: root mean square {was[name][0]:.6g} in the checkpoint, {now[name][0]:.6g} now"
        for name in was
        if name in now and not close(was[name], now[name])
    ]
