"""The statements of a program. Each is NumPyro's statement with our options, so that a program stays a NumPyro model."""

from __future__ import annotations

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.export import is_symbolic_dim
from jaxtyping import ArrayLike, PyTree
from numpyro.distributions import constraints

from .._calls import checked_call, in_words
from .._checks import is_integer
from .._compat import handler_stack, is_concrete
from .._data import Masked, as_data, as_value
from .._types import ModelFn
from ..distributions import law_of_cells
from ..traces import HiddenDraw
from ._inline_guide import propose
from ._nnx import declare

Array = jax.Array


@checked_call
def sample(
    name: str,
    distribution: dist.Distribution,
    *,
    obs: ArrayLike | None = None,
    obs_mask: object = None,
    proposal: dist.Distribution | None = None,
    strategy: object = None,
    infer: dict[str, Any] | None = None,
) -> Array:
    """Draw, or observe, a random variable.

    Args:
        name: address of the site, unique in the program.
        distribution: a NumPyro distribution.
        obs: observed value of shape `batch_shape + event_shape` (after plates); nothing is broadcast. Masked cells of a NumPy
            masked array, and missing categories of pandas, are missing cells as by `obs_mask`.
        obs_mask: boolean array, true where `obs` is observed: one entry per event (shape `batch_shape`), or per cell of the
            event (shape of `obs`, or of its leading axes). The observed cells are scored, log p(x_seen); the others become
            the latent site `<name>_unobserved`, whose law is p(x_missing | x_seen), drawn from it where no guide proposes
            them. Cells within an event need a distribution whose cells are independent (`.to_event`), or
            MultivariateNormal (conditioned exactly). Values of `obs` in missing cells are never read (NaN is fine).
            Without `obs`, in a guide: `sample("<name>_unobserved", q, obs_mask=mask)` proposes the missing cells, with the
            marginal density of q in them; the cells where the mask is true do not count.
        proposal: the law from which `ppl.guide_of(model)` draws this latent site; it may use all that the model computed
            before. Every other run of the program draws from `distribution`.
        strategy: gradient estimator of this site, a `Strategy` or its name; see `ppl.expectation`. A choice
            made from outside by `strategies={...}` wins.
        infer: NumPyro's per-site options.

    Returns:
        The value of the site; with `obs_mask`, observed and drawn cells together.
    """
    _check_law(name, distribution)
    infer = dict(infer or {})
    if strategy is not None:
        infer["strategy"] = strategy
    if proposal is not None:
        _check_proposal(name, distribution, proposal, obs, obs_mask)
        value = propose(name, distribution, proposal, infer)
        if value is not None:
            return jnp.asarray(value)
    obs, obs_mask = _as_seen(name, obs, obs_mask)
    if obs_mask is None:
        return _plain(name, distribution, obs, infer)
    if obs is None:
        cells = ~jnp.asarray(obs_mask, bool)
        distribution = _in_plates(name, distribution, cells, None)
        return _plain(name, _law(name, distribution, cells), None, infer | _cells(obs_mask))
    mask = jnp.asarray(obs_mask, bool)
    distribution = _in_plates(name, distribution, mask, jnp.shape(obs))
    cell = mask.reshape(mask.shape + (1,) * (jnp.ndim(obs) - mask.ndim))
    support: Any = distribution.support
    # NumPy's float64 would be one array with and another without 64-bit types.
    obs = jnp.asarray(obs)
    filled = jnp.where(cell, obs, support.feasible_like(obs))
    seen = _plain(f"{name}_observed", _law(name, distribution, mask), filled, infer)
    missing = _law(name, distribution, ~mask, filled)
    infer = infer | {"imputed": True} | _cells(obs_mask)
    drawn = _plain(f"{name}_unobserved", missing, None, infer)
    return jnp.asarray(numpyro.deterministic(name, jnp.where(cell, seen, drawn)))


def _check_law(name: str, distribution: object) -> None:
    """Refuse what is no law: a class, a number, a law of SciPy."""
    if isinstance(distribution, type):
        raise TypeError(
            f"Site '{name}': {distribution.__name__} is a class and no law yet. Call it with its parameters, "
            f"{distribution.__name__}(...)."
        )
    is_law = hasattr(distribution, "log_prob") and hasattr(distribution, "sample")
    if not (is_law or hasattr(distribution, "inputs")):  # of funsor's laws
        raise TypeError(
            f"Site '{name}': a law of numpyro.distributions is needed, got {distribution!r} ({type(distribution).__name__}). "
            "Write e.g. numpyro.distributions.Normal(0.0, 1.0); a value that is no random one needs no site, or "
            "ppl.deterministic(name, value)."
        )


def _as_seen(name: str, obs: ArrayLike | None, obs_mask: object) -> tuple[PyTree, PyTree]:
    """An observation as JAX takes it, and its mask, with the cells that it lacks by itself."""
    obs = as_value(obs, f"Site '{name}': the observation")
    obs_mask = None if obs_mask is None else _as_mask(name, obs_mask)
    if not isinstance(obs, Masked):
        return obs, obs_mask
    if obs_mask is None:
        return obs.values, obs.seen
    mask = jnp.asarray(obs_mask, bool)
    return obs.values, obs.seen & mask.reshape(mask.shape + (1,) * (obs.ndim - mask.ndim))


def _as_mask(name: str, obs_mask: PyTree) -> ArrayLike:
    """A mask as JAX takes it; refuses numbers, of which each but 0 would count as seen."""
    found = as_data(obs_mask, f"Site '{name}': obs_mask")
    if isinstance(found, Masked):
        found.refuse()
    if (dtype := jnp.asarray(found).dtype) != jnp.bool_:
        raise TypeError(
            f"Site '{name}': obs_mask holds {dtype}, and a mask is of truth values: -1 and 0.5 would count as seen, as 1 does. "
            "Say what is seen, e.g. obs_mask=mask == 1, or obs_mask=~jnp.isnan(y)."
        )
    return found


def _cells(obs_mask: PyTree) -> dict[str, Array | np.ndarray]:
    """The missing cells, for `check_proposed_cells`; numbers that are known stay known under jit."""
    mask = np.asarray(obs_mask, bool) if is_concrete(obs_mask) else jnp.asarray(obs_mask, bool)
    return {"cells": ~mask}


def _check_proposal(
    name: str, prior: dist.Distribution, proposal: ModelFn, obs: object, obs_mask: object
) -> None:
    if obs is not None or obs_mask is not None:
        raise ValueError(
            f"Site '{name}' is observed and has a proposal. Propose latent sites only; missing cells (obs_mask) are drawn from "
            "their prior."
        )
    if prior.event_shape != proposal.event_shape:
        raise ValueError(
            f"Site '{name}': its proposal has event shape {proposal.event_shape}, its prior {prior.event_shape}. Give both the "
            "same, e.g. by .to_event(n)."
        )


def _plain(
    name: str, distribution: dist.Distribution, obs: ArrayLike | None, infer: dict[str, PyTree]
) -> Array:
    """NumPyro's statement, with errors that say where."""
    try:
        return jnp.asarray(numpyro.sample(name, distribution, obs=obs, infer=infer))
    except HiddenDraw as err:
        raise ValueError(f"Site '{name}': {err}") from err
    except AssertionError as err:
        if obs is not None or str(err):
            raise
        raise RuntimeError(
            f"Site '{name}': ppl.sample was called outside of a run, so there is no random key to draw from. Run the program by "
            "simulate(key, *args) or an objective, and hand objectives the function itself: elbo(model, guide), not "
            "elbo(model(x), guide)."
        ) from err
    except ValueError as err:
        if not str(err).startswith("Incompatible shapes for broadcasting"):
            raise
        raise _does_not_fit(name, distribution) from err


def _law(
    name: str, distribution: dist.Distribution, cells: Array, given: Array | None = None
) -> dist.Distribution:
    try:
        return law_of_cells(distribution, cells, given)
    except TypeError as err:
        raise TypeError(f"Site '{name}': {err}") from err


def _in_plates(
    name: str, distribution: dist.Distribution, mask: Array, obs: tuple[int, ...] | None
) -> dist.Distribution:
    """The distribution with the batch axes of the plates around it.

    Refuses a mask, or the shape of an observation, that is not the site's own: it would broadcast.
    """
    plates = [h for h in handler_stack() if isinstance(h, numpyro.plate)]
    rows = {h.dim: h.subsample_size for h in plates}
    depth = max((-dim for dim in rows), default=0)
    in_plates = tuple(rows.get(dim, 1) for dim in range(-depth, 0))
    try:
        batch = jnp.broadcast_shapes(in_plates, tuple(distribution.batch_shape))
    except ValueError as err:
        raise _does_not_fit(name, distribution) from err
    shape, num_axes = batch + tuple(distribution.event_shape), mask.ndim
    if obs in (None, shape) and num_axes >= len(batch) and mask.shape == shape[:num_axes]:
        return distribution if distribution.batch_shape == batch else distribution.expand(batch)
    what = f"obs_mask has shape {mask.shape}" + (
        f" and obs has shape {obs}" if obs is not None else ""
    )
    raise ValueError(
        f"Site '{name}': {what}, but the site has batch shape {batch} and event shape {tuple(distribution.event_shape)} "
        f"(plates {_plates()}). Nothing is broadcast silently: give one mask entry per event, shape {batch}, or per cell, "
        f"shape {shape}, and an observation of shape {shape}."
    )


def _does_not_fit(name: str, distribution: dist.Distribution) -> ValueError:
    return ValueError(
        f"Site '{name}': {type(distribution).__name__} with batch shape {distribution.batch_shape} does "
        f"not fit into its plates {_plates()}. Give one row per plate element, or mark event axes with "
        ".to_event(n)."
    )


def _plates() -> dict[str, int]:
    """The plates around the statement, with the rows that they run on."""
    return {h.name: h.subsample_size for h in handler_stack() if isinstance(h, numpyro.plate)}


def plate(
    name: str, size: int | None = None, *, subsample_size: int | None = None, dim: int | None = None
) -> numpyro.plate:
    """Declare conditionally independent rows, as `numpyro.plate`; entering it yields the row indices.

    With `subsample_size` a fresh uniform subsample is used and log-probs inside are scaled by size /
    subsample_size.

    Returns:
        A context; entering it gives the indices of the rows in use, integers, [subsample_size or size].

    Validity: the scaled sum is unbiased for that over all rows if a row's log-prob depends on its own latent values and data, and
    on what lies outside of the plate, and if nothing outside depends on rows (no mean over the rows, no batch normalisation).
    Objectives and `ppl.expectation` refuse what is otherwise (`analysis/_subsampled.py`).

    Args:
        name: name of the plate; it becomes a named dimension in ArviZ.
        size: number of rows, which must be given.
        subsample_size: rows used in one run.
        dim: negative batch axis; the rightmost free one when None.

    Raises:
        TypeError: a size is missing, or no integer.
        ValueError: the sizes do not fit, or `size` is infinite.
    """
    if isinstance(size, float) and math.isinf(size):
        raise ValueError(
            f"Plate '{name}': with infinitely many rows the program has no density, only a density per row. Give the plate the "
            f"rows of one batch and declare the population where rows are averaged: fit(..., plate_sizes={{'{name}': "
            f"math.inf}}) or objective.with_plate_sizes({{'{name}': math.inf}})."
        )
    size = _number_of_rows(name, "size", size)
    if subsample_size is not None:
        subsample_size = _number_of_rows(name, "subsample_size", subsample_size)
    if size < 1 or (subsample_size is not None and not 1 <= subsample_size <= size):
        raise ValueError(
            f"Plate '{name}': size {size} and subsample_size {subsample_size} do not fit; a plate has at "
            "least one row, and a subsample at most as many rows as the plate. Give a size >= 1, and 1 <= subsample_size <= size."
        )
    return numpyro.plate(name, size, subsample_size=subsample_size, dim=dim)


def _number_of_rows(name: str, what: str, given: int | None) -> int:
    # What a single number of an array is, is read later, or told as what cannot be read. A symbolic size is any number of rows.
    is_symbol = is_symbolic_dim(cast("int", given))
    if given is not None and (
        is_integer(given) or getattr(given, "shape", None) == () or is_symbol
    ):
        return given
    raise TypeError(
        f"Plate '{name}': its {what} is {'missing' if given is None else in_words(given)}; it is a number of rows, an integer. "
        "Pass x.shape[0]."
    )


def subsample(data: Any, event_dim: int) -> Array:
    """The rows of `data` that the enclosing subsampled plates use, as `numpyro.subsample`.

    Args:
        data: an array with an axis for each subsampled plate around, at the plate's `dim`.
        event_dim: number of axes at its end that are not of plates.
    """
    return jnp.asarray(numpyro.subsample(data, event_dim))


def param(
    name: str,
    init: PyTree,
    *,
    constraint: constraints.Constraint = constraints.real,
    event_dim: int | None = None,
) -> PyTree:
    """Declare a learnable parameter.

    Args:
        name: name of the parameter, shared by model and guide.
        init: initial constrained value, `key -> value`, or a distribution to draw it from (a start per key).
        constraint: NumPyro constraint; the optimiser sees the unconstrained value.
        event_dim: number of rightmost axes that do not belong to plates (for parameters with a row per plate
            element).

    Returns:
        The constrained value: bound, else initial.
    """
    options = {} if event_dim is None else {"event_dim": event_dim}
    if isinstance(init, dist.Distribution):
        prior = init
        init = lambda key: prior.sample(key)  # noqa: E731
    return numpyro.param(name, init, constraint=constraint, **options)


def module(name: str, module: object) -> PyTree:
    """Declare the floating-point arrays of a network as the parameter `name`; returns the network to call.

    Args:
        name: name of the parameter (a pytree).
        module: any `equinox.Module`, already initialised, or another pytree of arrays; or an `nnx.Module` of Flax, of which
            `nnx.Param` are learned, as a nested dict. What comes back of the latter is a copy that lives as long as the run:
            state that a call changes (batch statistics) ends with the run, and the keys of its streams of random numbers
            (`nnx.Dropout`) come from the run as those of `ppl.rng_key`.

    Raises:
        TypeError: it is a class, or neither a module nor a pytree with floating-point arrays, so that nothing could be learned;
            it belongs to Flax's linen or to Haiku; `numpyro.contrib.module` declares modules of linen.
    """
    import equinox as eqx

    is_nnx = not isinstance(module, type) and any(
        c.__module__.startswith("flax.nnx") for c in type(module).__mro__
    )
    arrays, static = (module, None) if is_nnx else eqx.partition(module, eqx.is_inexact_array)
    # One without arrays is a fixed network in place of another.
    _check_module(name, module, arrays, is_nnx or isinstance(module, eqx.Module))
    if not handler_stack():
        return module
    if is_nnx:
        return declare(name, module)
    return eqx.combine(numpyro.param(name, lambda _: arrays), static)


def _check_module(name: str, module: object, arrays: object, is_module: bool) -> None:
    kind = module if isinstance(module, type) else type(module)
    packages = {c.__module__.partition(".")[0] for c in kind.__mro__} & {"flax", "haiku"}
    if packages and not is_module and kind is not module:
        raise TypeError(
            f"Module '{name}' is a {kind.__name__} of {min(packages)}, and ppl.module declares the arrays of equinox's modules "
            "and of Flax's nnx. Declare one of linen by flax_module of numpyro.contrib.module, which our runs take."
        )
    if not is_module and not jax.tree.leaves(arrays):
        got = f"the class {kind.__name__}" if kind is module else f"a {kind.__name__}"
        raise TypeError(
            f"Module '{name}' is {got} without floating-point arrays, so that nothing would be learned. Pass an initialised "
            "module, e.g. eqx.nn.Linear(2, 1, key=key), or a pytree of arrays; call what has nothing to learn without ppl.module."
        )


def factor(name: str, log_weight: ArrayLike) -> None:
    """Add `log_weight` to the program's log-density.

    Args:
        name: name of the site.
        log_weight: what is added, nats: outside of plates the sum of an array of any shape, within plates one number per row.

    Raises:
        TypeError: it holds truth values.
        ValueError: within plates, it has an axis that belongs to none of them, along which each row would count several times.
    """
    numpyro.factor(name, jnp.asarray(log_weight))


def deterministic(name: str, value: ArrayLike) -> PyTree:
    """Record `value` under `name`; it adds nothing to the density.

    Args:
        name: name of the site.
        value: an array.

    Returns:
        `value`.
    """
    return numpyro.deterministic(name, value)
