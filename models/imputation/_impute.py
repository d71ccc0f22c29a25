"""Prediction with uncertainty: self-normalised importance sampling, or particles over time, from a trained model and guide.

Axis order: particles k (draws of z), imputations j (draws of the missing cells at one z), series, time, channels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ... import ppl
from ...inference.objectives._row_weights import log_density_of
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._shared_jit import shared_jit
from ...ppl._types import Key
from .._series import Series
from ._imputation import Imputation
from ._moves import moved
from ._over_time import OF_GUIDE, OF_MODEL, OverTime, paths
from ._refine import refined


def impute(
    model: ppl.Program,
    guide: ppl.Program,
    data: Series,
    key: PyTree,
    *,
    num_particles: int = 20,
    num_imputations: int | None = None,
    method: Literal["importance", "smc"] | OverTime = "importance",
    num_refinements: int = 0,
    num_moves: int = 0,
    batch_size: int = 64,
) -> Imputation:
    """Draw missing cells and classes given the observed cells, with importance weights.

    Weights of whole series collapse on a few draws where series are long (see `Imputation.ess`). `method="smc"` draws and
    weighs step by step, and resamples on the way (`_over_time`): with the same number of particles more of them count.

    What is compiled is kept: another call with the same programs, whatever their parameters, and as many series of as many steps
    (or at least `batch_size` of them both times) compiles nothing.

    Args:
        model: with its parameters bound (`Fit.model`); without `obs_dropout`: `imputer.model.bind(fit.params)`.
        guide: with its parameters bound (`Fit.guide`).
        data: series; labels are not used.
        key: PRNG key; or one for each series, [series], so that what is found for a series does not depend on the others.
        num_particles: K, draws from the guide.
        num_imputations: J, draws of the missing cells at each, 5 by default. With "smc" 1: particles carry their missing cells.
        method: "importance" weighs whole draws; "smc", or `OverTime(memory)`, resamples over time.
        num_refinements: steps of Adam that suit the guide to these series before draws are made, see `_refine`: for series
            on which the encoder does badly, long ones of a small training set.
        num_moves: steps of Hamiltonian Monte Carlo after weighting, see `_moves`: draws are resampled, moved, and weigh the same.
            For bands of series whose weights collapse; 30 or more, of eight gradients each. Half of them set the step size.
        batch_size: series on the device at once.

    Returns:
        `Imputation`, on the host.

    Raises:
        ValueError: K, J or the batch size is not positive, a number of steps negative, or `method` unknown; "smc" with J > 1,
            with programs that lack its sites (those of `programs` have them); keys of another number than the series; `num_moves`
            with a model of the mask, or with programs that lack the sites that moves need.

    Validity:
        Consistent as K grows, with a bias of order 1 / ESS; a larger J alone leaves the error of K draws of z. Only as good as
        the model is: bands cover if p(x | z) and p(s | x) do. The mean of exp(log_weights) is an unbiased estimate of p(x_o, s)
        at every K, by either method. Moves leave p(z | x_o) as it is and the estimate of p(x_o) what it was; weights no longer
        tell how good the draws are, `acceptance` tells whether they move.
    """
    sizes = (num_particles, num_imputations or 1, batch_size)
    if min(sizes) < 1 or num_imputations == 0:
        raise ValueError(
            "impute: num_particles, num_imputations and batch_size must be positive, got "
            f"{(num_particles, num_imputations, batch_size)}. Give 1 or more."
        )
    check_counts("impute", 0, num_refinements=num_refinements)
    data = data._replace(labels=None)
    size, num_steps = np.shape(data.valid)
    own = _key_data(key)
    if own is not None and len(own) != size:
        raise ValueError(
            f"impute: argument 'key' holds {len(own)} keys for {size} series. Give one key, or one for each series."
        )
    key = typed_key(key) if own is None else None
    kinds = _kinds(model, data)
    if num_refinements and not {"looks", "look_precision"} <= set(_kinds(guide, data)):
        raise ValueError(
            f"impute: num_refinements={num_refinements} moves the deterministic sites 'looks' and 'look_precision' of the guide, "
            "which it lacks. Use a guide of programs(), or num_refinements=0."
        )
    _check_moves(num_moves, kinds, _kinds(guide, data) if num_moves else {})
    if method == "importance":
        run = functools.partial(
            draws, num_particles=num_particles, num_imputations=num_imputations or 5
        )
    elif method == "smc" or isinstance(method, OverTime):
        _check_sequential(kinds, _kinds(guide, data), num_imputations)
        memory = method.memory if isinstance(method, OverTime) else None
        run = functools.partial(
            _draws_over_time, num_particles=num_particles, memory=num_steps if memory is None else memory,
            carries_cells=not _is_collapsed(kinds),
        )  # fmt: skip
    else:
        raise ValueError(
            f"impute: no method {method!r}; choose 'importance', 'smc' or OverTime(memory)."
        )

    def batch(params: tuple[dict[str, PyTree], ...], key: Key, data: Series) -> ImputationDraws:
        programs = model.bind(params[0]), guide.bind(params[1])
        if num_refinements:
            own = refined(*programs, data, jax.random.fold_in(key, 1), num_refinements, draws)
            programs = programs[0], own
        found = run(*programs, data, key)
        if num_moves:
            moves_key = jax.random.fold_in(key, 2)
            found = _after_moves(*programs, data, moves_key, found, num_moves)
        return found._replace(z=None)

    params = (model.params or {}, guide.params or {})
    width = min(batch_size, size)
    # Parameters are inputs: as constants they would be folded, and compiled anew for each fit.
    whole = shared_jit(batch if own is None else _by_series(batch), most_folded=1024)
    parts = []
    for number, start in enumerate(range(0, size, width)):
        first = min(start, size - width)  # the last part overlaps the one before: one shape
        rows = jax.tree.map(jnp.asarray, data.rows(slice(first, first + width)))
        if own is not None:
            inputs = (params, own[first : first + width], rows)
        else:
            inputs = (params, jax.random.fold_in(key, number), rows)
        part = whole(*inputs)
        fresh = slice(start - first, None)
        parts.append(
            [
                None if array is None else np.asarray(array)[(slice(None),) * axis + (fresh,)]
                for array, axis in zip(part, ImputationDraws.series_axis, strict=True)
            ]
        )
    joined = [
        None if arrays[0] is None else np.concatenate(arrays, axis)
        for arrays, axis in zip(zip(*parts, strict=True), ImputationDraws.series_axis, strict=True)
    ]
    found = ImputationDraws(*joined)
    arrays = (found.x, found.x_loc, found.log_weights, found.logits)
    return Imputation(
        np.asarray(data.observed), *arrays, _is_collapsed(kinds), found.origins, found.acceptance
    )


class ImputationDraws(NamedTuple):
    """What `draws` returns: the first attributes of `Imputation`, and what particles over time leave.

    Attributes:
        x: observed and drawn cells, [K, J, series, time, channels].
        x_loc: the decoder's location of every cell, [K, series, time, channels].
        log_weights: nats, [K, J, series].
        logits: class logits at each draw, [K, J, series, classes]; None without a classifier.
        origins: [K, series], particles of the first step from which draws descend; None without resampling.
        z: white noise, [K, series, latents, time].
        acceptance: share of the moves that were accepted, [series]; None without moves.
    """

    x: PyTree
    x_loc: Any
    log_weights: PyTree
    logits: Any
    origins: Any = None
    z: PyTree = None
    acceptance: Any = None

    series_axis = (2, 1, 2, 2, 1, 1, 0)  # of each


def draws(
    model: ppl.Program,
    guide: ppl.Program,
    data: Series,
    key: PyTree,
    num_particles: int,
    num_imputations: int,
) -> ImputationDraws:
    """Draws and log-weights of one batch of series; may be traced, as in a loss of validation series.

    Args:
        model: model with its parameters.
        guide: guide with its parameters.
        data: series; without labels, which would weigh the draws.
        key: PRNG key.
        num_particles: K, draws of z.
        num_imputations: J, draws of the missing cells at each.

    Returns:
        `ImputationDraws`; weights as in `Imputation`, not normalised.
    """

    def particle(key: Key) -> ImputationDraws:
        guide_key, model_key = jax.random.split(key)
        q = guide.simulate(guide_key, data)

        def imputation(key: Key) -> ImputationDraws:
            p, _ = model.generate(key, q.choices, data)
            own = {n: lp for n, lp in p.log_probs.items() if not p.sites[n].is_imputed}
            log_p = log_density_of(dataclasses.replace(p, log_probs=own), "rows")
            found = p.deterministic
            return ImputationDraws(found["x"], found["x_loc"], log_p, found.get("logits"))

        found = jax.vmap(imputation)(jax.random.split(model_key, num_imputations))
        log_weights = found.log_weights - log_density_of(q, "rows")
        return found._replace(x_loc=found.x_loc[0], log_weights=log_weights, z=q.choices.get("z"))

    return jax.vmap(particle)(jax.random.split(key, num_particles))


def _draws_over_time(
    model: ppl.Program,
    guide: ppl.Program,
    data: Series,
    key: Key,
    num_particles: int,
    memory: int,
    carries_cells: bool,
) -> ImputationDraws:
    """Draws by particles over time, with one draw of the missing cells each."""
    paths_key, model_key = jax.random.split(key)
    found = paths(model, guide, data, paths_key, num_particles, memory, carries_cells)

    def whole(key: Key, z: Array, x: PyTree) -> dict[str, PyTree]:
        choices = {"z": z} if x is None else {"z": z, "x_unobserved": x}
        return model.generate(key, choices, data)[0].deterministic

    sites = jax.vmap(whole)(jax.random.split(model_key, num_particles), found.z, found.x)
    logits = sites["logits"][:, None] if "logits" in sites else None
    return ImputationDraws(
        sites["x"][:, None], sites["x_loc"], found.log_weights[:, None], logits, found.origins, found.z
    )  # fmt: skip


def _after_moves(
    model: ppl.Program,
    guide: ppl.Program,
    data: Series,
    key: Key,
    found: ImputationDraws,
    num_moves: int,
) -> ImputationDraws:
    """Equally weighted draws, moved, with as many draws of the missing cells each as before."""
    moves_key, cells_key = jax.random.split(key)
    num_particles, num_imputations = found.log_weights.shape[:2]
    log_mean = jax.nn.logsumexp(found.log_weights, (0, 1)) - jnp.log(
        num_particles * num_imputations
    )
    by_particle = jax.nn.logsumexp(found.log_weights, 1)
    z, acceptance = moved(model, guide, data, moves_key, found.z, by_particle, num_moves)

    def cells(key: Key, z: Array) -> dict[str, PyTree]:
        again = lambda key: model.generate(key, {"z": z}, data)[0].deterministic
        return jax.vmap(again)(jax.random.split(key, num_imputations))

    sites = jax.vmap(cells)(jax.random.split(cells_key, num_particles), z)
    log_weights = jnp.broadcast_to(log_mean, found.log_weights.shape)
    return ImputationDraws(
        sites["x"],
        sites["x_loc"][:, 0],
        log_weights,
        sites.get("logits"),
        z=z,
        acceptance=acceptance,
    )


def _key_data(keys: PyTree) -> np.ndarray | None:
    """The data of several keys of either kind, [series, words]; None if there is one key."""
    dtype = getattr(keys, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(keys)) if keys.ndim == 1 else None
    return np.asarray(keys, np.uint32) if np.ndim(keys) == 2 else None


def _by_series(batch: Callable[..., ImputationDraws]) -> Callable[..., ImputationDraws]:
    """The function of a batch as one that takes each series by itself, with its own key."""

    def over(params: PyTree, keys: PyTree, data: Series) -> ImputationDraws:
        one = lambda key, row: batch(params, key, jax.tree.map(lambda x: x[None], row))
        found = jax.vmap(one)(jax.random.wrap_key_data(keys), data)
        joined = [
            None if array is None else jnp.moveaxis(jnp.squeeze(array, axis + 1), 0, axis)
            for array, axis in zip(found, ImputationDraws.series_axis, strict=True)
        ]
        return ImputationDraws(*joined)

    return over


def _kinds(program: ppl.Program, data: Series) -> dict[str, str]:
    """Kind of each site of the program."""
    kinds: dict[str, str] = {}

    def run(key: Key) -> PyTree:
        trace = program.simulate(key, data)
        kinds.update({name: info.kind for name, info in trace.sites.items()})
        return trace.log_density

    jax.eval_shape(run, jax.random.key(0))
    return kinds


def _is_collapsed(kinds: dict[str, str]) -> bool:
    """Whether nothing that is observed lies downstream of the missing cells: "x_observed" is all there is."""
    return not any(k in ("observed", "factor") and n != "x_observed" for n, k in kinds.items())


def _check_moves(num_moves: int, model: dict[str, str], guide: dict[str, str]) -> None:
    if num_moves < 0:
        raise ValueError(f"impute: num_moves must not be negative, got {num_moves}.")
    if num_moves and not _is_collapsed(model):
        raise ValueError(
            f"impute: num_moves={num_moves} moves draws of z with the missing cells integrated out, but observed sites lie "
            "downstream of these, as in a model of the mask. Use num_moves=0 and more particles."
        )
    if num_moves and not ({"z", *OF_GUIDE} <= set(guide) and "z" in model):
        raise ValueError(
            f"impute: num_moves={num_moves} needs site 'z' of model and guide, and the deterministic sites {list(OF_GUIDE)} of "
            "the guide. Use programs(), or num_moves=0."
        )


def _check_sequential(
    model: dict[str, str], guide: dict[str, str], num_imputations: int | None
) -> None:
    absent = [f"'{name}' of the model" for name in OF_MODEL if name not in model]
    absent += [f"'{name}' of the guide" for name in OF_GUIDE if name not in guide]
    if absent:
        raise ValueError(
            "impute: method='smc' weighs step by step, for which these deterministic sites are missing: "
            f"{', '.join(absent)}. Use programs(), or method='importance'."
        )
    if num_imputations not in (None, 1):
        raise ValueError(
            "impute: with method='smc' particles carry their missing cells, one draw each, but num_imputations="
            f"{num_imputations}. Leave it out, and give more particles."
        )
