"""What ArviZ's `loo_moment_match` asks of a model: densities of unconstrained draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._types import Choices
from ...ppl.language import as_arguments
from .._arguments import Arguments
from .._supports import transforms_of
from ..fitting.prediction import sites_of
from ..inputs import check_new
from ._arviz_tree import legal
from ._draws import describe, whole
from ._summed import likelihoods

if TYPE_CHECKING:
    import xarray

Array = jax.Array


class MomentMatching(NamedTuple):
    """Arguments of `arviz.loo_moment_match`, under their names there.

    Attributes:
        upars: unconstrained draws, dimensions chain, draw, and one of all coordinates.
        log_prob_upars_fn: of such an array, log p(z, x) with the log-determinant of the constraining map, nats.
        log_lik_i_upars_fn: of such an array and i, log p(x_i | z), i counting the elements of `var_name` in the tree in
            order, without those that a mask leaves out.
        var_name: the observed site.
    """

    upars: xarray.DataArray
    log_prob_upars_fn: Callable[[PyTree], PyTree]
    log_lik_i_upars_fn: Callable[[PyTree, int], PyTree]
    var_name: str


@checked_call
def moment_matching(
    tree: xarray.DataTree, model: Any, args: PyTree = (), *, var_name: str | None = None
) -> MomentMatching:
    """What `arviz.loo_moment_match` needs to repair observations whose k-hat is too high for leave-one-out.

    `arviz.loo_moment_match(tree, loo, **moment_matching(tree, model, args)._asdict())` shifts and scales the draws for each
    such observation, until their weights are even.

    Args:
        tree: as `to_arviz` gives, with draws of the posterior: of MCMC, or resampled (`resample="psis"`).
        model: the program or NumPyro model, its discrete sites summed out (`ppl.eliminate`).
        args: its arguments, a tuple or a dict.
        var_name: the observed site, by its name in the program or in the tree; needed if there are several.

    Returns:
        The arguments, a `MomentMatching`.

    Raises:
        ValueError: the model has a discrete site, missing cells that are drawn, or a site whose support depends on others; there
            is no such observed site; draws of a site are missing; log-likelihoods are not those of the tree, so that model or
            arguments are others.

    Validity: the draws must be of the posterior: a fit's own draws are the guide's, and the weights would lack p / q.
    Reference: Paananen, Piironen, Bürkner and Vehtari 2021, Implicitly adaptive importance sampling, arXiv:1906.08850.
    """
    import xarray

    program, args = ppl.as_program(model), as_arguments(args)
    check_new("moment_matching", program, args)
    program = whole(program)
    posterior = tree["posterior"]
    known = sites_of(program, args)
    _refuse_cells([n for n, info in known.items() if info.is_imputed and legal(n) in posterior])
    own = {legal(n): n for n in known}
    draws = {own.get(str(n), str(n)): np.asarray(v) for n, v in posterior.data_vars.items()}
    lead = (posterior.sizes["chain"], posterior.sizes["draw"])
    flat = {n: v.reshape(-1, *v.shape[2:]) for n, v in draws.items()}
    sites = describe(program, jax.random.key(0), flat, args)
    latents = {n: flat[n] for n in sites.latents}
    discrete = [n for n, x in latents.items() if not np.issubdtype(x.dtype, np.floating)]
    if discrete:
        raise ValueError(
            f"moment_matching: sites {discrete} are discrete, and draws are moved along R^d. Sum them out: "
            f"ppl.eliminate(model, {discrete})."
        )
    transforms = transforms_of(
        "moment_matching", program, args, {n: x[0] for n, x in latents.items()}
    )
    parts = {n: transforms[n].inv(jnp.asarray(x)) for n, x in latents.items()}
    shapes = {n: x.shape[1:] for n, x in parts.items()}
    _, unravel = jax.flatten_util.ravel_pytree({n: x[0] for n, x in parts.items()})
    columns = jax.vmap(lambda x: jax.flatten_util.ravel_pytree(x)[0])(parts)

    def choices_of(row: Array) -> tuple[dict[str, Array], Array]:
        free = unravel(row)
        choices = {n: transforms[n](x) for n, x in free.items()}
        jacobians = [
            jnp.sum(transforms[n].log_abs_det_jacobian(x, choices[n])) for n, x in free.items()
        ]
        return choices, sum(jacobians, jnp.zeros(()))

    def log_prob(row: Array, i: PyTree, *args: PyTree) -> Array:
        choices, jacobian = choices_of(row)
        return program.log_density(choices, *args) + jacobian

    def log_lik(row: Array, i: PyTree, *args: PyTree) -> Array:
        trace = program.trace(choices_of(row)[0], *args)
        log_probs = likelihoods(program, args, trace)[0][name].reshape(-1)
        return log_probs[i if kept is None else kept[i]]

    name = _observed(program, {n: x[0] for n, x in latents.items()}, args, var_name)
    cells = sites.cells.get(name)  # the tree has those that a mask keeps
    kept = None
    if cells is not None and cells.ndim == len(sites.sites[name].dims):
        kept = jnp.flatnonzero(cells)
    labels = [f"{n}{list(i)}" for n in sorted(shapes) for i in np.ndindex(*shapes[n])]
    upars = xarray.DataArray(
        np.asarray(columns, float).reshape(*lead, -1),
        dims=("chain", "draw", "unconstrained"),
        coords={"unconstrained": labels},
    )
    _check_same(tree, legal(name), log_lik(columns[0], slice(None), *args))
    one, each = _over_draws(log_prob, args), _over_draws(log_lik, args)
    return MomentMatching(upars, one, each, legal(name))


def _refuse_cells(imputed: list[str]) -> None:
    if imputed:
        raise ValueError(
            f"moment_matching: {imputed} are missing cells, whose draws would be moved with the others, and a tree has no values "
            "for the cells beside them. Leave them out of the density: ppl.sample(name, law.mask(seen), obs=filled) in place of "
            "obs_mask, with draws of the posterior of that program."
        )


def _check_same(tree: xarray.DataTree, name: str, log_probs: Array) -> None:
    """Refuse another model, or arguments in another order, than those that the tree was made of."""
    group = tree.children.get("log_likelihood")
    if group is None or name not in group.data_vars:
        return
    before, now = np.asarray(group[name].isel(chain=0, draw=0)).ravel(), np.asarray(log_probs)
    if before.shape == now.shape and np.allclose(before, now, 1e-2, 1e-2, equal_nan=True):
        return
    where = (
        f"at element {int(np.nanargmax(np.abs(before - now)))} of {before.size}"
        if before.shape == now.shape
        else f"of {now.size} elements in place of {before.size}"
    )
    raise ValueError(
        f"moment_matching: at the tree's first draw '{name}' has other log-probs under model and args than in the tree, {where}. "
        "Pass those that to_arviz had; columns of frames and codes of categories stand in the order that they had at the fit."
    )


def _over_draws(fn: Callable[..., Array], args: tuple) -> Callable[..., PyTree]:
    """`fn(row, i, *args)` for each draw of a DataArray, compiled once."""
    import xarray

    split = Arguments(args)
    arrays = split.arrays(args)
    over = jax.vmap(lambda row, i, arrays: fn(row, i, *split.join(arrays)), (0, None, None))
    run = jax.jit(over)

    def call(upars: PyTree, i: int = 0) -> PyTree:
        rows = np.asarray(upars, jnp.result_type(float))
        found = run(rows.reshape(-1, rows.shape[-1]), i, arrays)
        values = np.asarray(found, float).reshape(rows.shape[:-1])
        return xarray.DataArray(values, dims=upars.dims[:-1], coords=_coords(upars))

    return call


def _coords(upars: Any) -> dict[Any, Any]:
    return {d: upars.coords[d] for d in upars.dims[:-1] if d in upars.coords}


def _observed(program: ppl.Program, choices: Choices, args: tuple, given: str | None) -> str:
    """The name of the observed site."""
    names = list(likelihoods(program, args, program.trace(choices, *args))[0])
    chosen = names if given is None else [n for n in names if given in (n, legal(n))]
    if len(chosen) == 1:
        return chosen[0]
    raise ValueError(
        f"moment_matching: var_name={given!r}, and the observed sites with log-probs of their own are {names}. Name one of "
        "them; where there is none, leave-one-out has nothing to leave out."
    )
