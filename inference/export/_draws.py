"""Run programs over many draws, a part of them on the device at a time.

Axis order: draws, then the site's own axes (time, plates, event).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._types import Message
from ...ppl.densities import Eliminated
from ...ppl.language import arrays, check_proposed_cells, misses, name_of
from ...ppl.traces import check_match
from .._arguments import Arguments
from .._depends import depends
from .._mapped import Mapped
from .._simulated import altering_factors
from ..fitting.prediction import sites_of
from ._summed import likelihoods, one_step_ahead, why_no_likelihood

Choices = Mapping[str, Any]
MOST_BYTES = 2**26  # of the arguments, times the draws that are made at once


@dataclasses.dataclass(frozen=True)
class GuideDraws:
    """Draws from a guide.

    Attributes:
        choices: latent site of the model -> values [S, ...]; imputed cells included, auxiliary sites not.
        log_p: log p(choices, data), without the log-probs of imputed cells, nats [S].
        log_q: log q(choices), nats [S].
        no_weight: why log_p - log_q is not a log-weight, or None if it is.
        deterministic: deterministic site that only the guide has, or site that was summed or integrated out -> values [S, ...].
        sites: description of each of these sites.
    """

    choices: dict[str, np.ndarray]
    log_p: np.ndarray
    log_q: np.ndarray
    no_weight: str | None
    deterministic: dict[str, np.ndarray]
    sites: dict[str, ppl.SiteInfo]


@dataclasses.dataclass(frozen=True)
class Description:
    """What a model's sites are under given arguments.

    Attributes:
        sites: site -> `SiteInfo`.
        latents: names of the latent sites.
        observed: observed site -> value.
        cells: observed site under a mask, or site made by `obs_mask` -> boolean array, the cells that belong to it: over its
            batch axes, or, where events are seen in part, over its event axes too.
        no_likelihood: why observations have no log-probs by row, or None.
    """

    sites: dict[str, ppl.SiteInfo]
    latents: tuple[str, ...]
    observed: dict[str, np.ndarray]
    cells: dict[str, np.ndarray]
    no_likelihood: str | None = None


def in_parts(
    fn: Callable[..., PyTree], inputs: PyTree, args: tuple, batch_size: int, mesh: Mesh | None
) -> PyTree:
    """`fn(inputs[s], *args)` for every s of the inputs' leading axis; NumPy arrays.

    At most `batch_size` are made on a device at a time, and fewer where the arguments are large: each takes some arrays of
    their size.
    """
    held = sum(x.nbytes for x in Arguments(args).arrays(args))
    most = max(1, MOST_BYTES // max(1, held))
    return Mapped(fn, args, mesh)(inputs, min(batch_size, most), args)


def draw_guide(
    model: ppl.Program,
    guide: ppl.Program,
    keys: jax.Array,
    args: tuple,
    batch_size: int,
    mesh: Mesh | None,
) -> GuideDraws:
    """One draw of the guide for each key: latent values, log-densities under both, and what only the guide computes."""
    summed, model, guide = model, whole(model), whole(guide)
    traces: dict[str, ppl.Trace] = {}

    def draw(key: jax.Array, *args: PyTree) -> PyTree:
        guide_key, model_key = jax.random.split(key)
        q = guide.simulate(guide_key, *args)
        p, log_p = model.generate(model_key, q.shared_choices, *args)
        traces.update(p=p, q=q)
        own = {n: value for n, value in q.deterministic.items() if n not in p.sites}
        if isinstance(summed, Eliminated):  # given the others, from the exact conditional
            rest = {n: value for n, value in p.choices.items() if not p.sites[n].is_imputed}
            own |= summed.posterior(jax.random.fold_in(model_key, 1), rest, *args)
        penalties = check_match(p, q, ("covers",))
        penalty = check_proposed_cells(p, q) + sum(jnp.sum(x) for x in penalties.values())
        return p.choices, log_p + penalty, q.log_density, own

    choices, log_p, log_q, own = in_parts(draw, keys, args, batch_size, mesh)
    p, q = traces["p"], traces["q"]
    missing = [name for name in p.choices if name not in q.choices and not p.sites[name].is_imputed]
    if missing:
        raise ValueError(
            f"to_arviz: the guide {misses(missing)}. Predictions of {model!r} at new arguments are made by fit.predict."
        )
    known = q.sites
    if isinstance(summed, Eliminated):
        known = {**sites_of(summed.program, args), **q.sites}
    sites = {n: known[n] for n in own}
    return GuideDraws(choices, log_p, log_q, _why_no_weight(q, choices), own, sites)


def describe(model: ppl.Program, key: jax.Array, choices: Choices, args: tuple) -> Description:
    """The model's sites, observations and missing cells; `choices` [S, ...] hold at least every latent site.

    Raises:
        ValueError: `choices` misses a latent site, or holds one that is neither latent nor deterministic.
    """
    choices = {name: value[:1] for name, value in arrays(choices).items()}
    try:
        return _describe(model, key, choices, args)
    except ppl.ChoiceMismatch as err:
        if err.missing:
            raise
        # Draws of a sampler come with deterministic sites, which the model computes anew.
        found = _describe(
            model, key, {n: v for n, v in choices.items() if n not in err.extra}, args
        )
        if any(n not in found.sites for n in err.extra):
            raise
        return found


def _describe(model: ppl.Program, key: jax.Array, choices: Choices, args: tuple) -> Description:
    model, sites, why = whole(model), {}, []

    def run(choices: Choices, *args: PyTree) -> PyTree:
        trace, _ = model.generate(key, choices, *args)
        if set(trace.choices) != set(choices):
            model.trace(choices, *args)  # raises, naming the sites
        sites.update(trace.sites, **likelihoods(model, args, trace)[1])
        why.append(why_no_likelihood(model, args, trace))
        return trace.observed, trace.deterministic

    # A second run with other values in the imputed sites: the cells of `name` that follow are the missing ones.
    other = {n: _changed(v) if n.endswith("_unobserved") else v for n, v in choices.items()}
    both = {n: jnp.concatenate([choices[n], other[n]]) for n in choices} or {"": jnp.zeros(2)}
    observed, computed = in_parts(
        lambda c, *a: run({n: c[n] for n in choices}, *a), both, args, 2, None
    )
    latents = tuple(n for n, info in sites.items() if info.kind == "latent")
    cells = _kept_cells(model, key, choices, args, sites)
    for name in (n.removesuffix("_unobserved") for n in latents if sites[n].is_imputed):
        first, second = computed[name]
        differs = ~((first == second) | ((first != first) & (second != second)))
        missing = whole_events(differs, len(sites[f"{name}_observed"].dims))
        cells |= {f"{name}_unobserved": missing, f"{name}_observed": ~missing}
    seen = {n: v[0] for n, v in observed.items()}
    return Description(sites, latents, seen, cells, why[0])


def _kept_cells(
    model: ppl.Program,
    key: jax.Array,
    choices: Choices,
    args: tuple,
    sites: Mapping[str, ppl.SiteInfo],
) -> dict[str, np.ndarray]:
    """The cells of observations that count, where a mask leaves some out: by site, or by sum as `likelihoods` names it.

    A log-prob of 0 does not tell: cells that count may have it, and a sum over no observation is 0 up to rounding only. A mask
    that follows from the draws keeps all cells.
    """
    split, program = Arguments(args), model
    while isinstance(program, Eliminated):
        program = program.program

    def masks(choices: PyTree, arrays: PyTree) -> PyTree:
        one = {n: x[0] for n, x in choices.items()}
        trace, _ = program.generate(key, one, *split.join(arrays))
        return {n: x for n, x in trace.masks.items() if trace.sites[n].kind == "observed"}

    inputs = (dict(choices), split.arrays(args))
    closed, shapes = jax.make_jaxpr(masks, return_shape=True)(*inputs)
    marks = [number < len(choices) for number in range(len(closed.jaxpr.invars))]
    follows = jax.tree.unflatten(jax.tree.structure(shapes), depends(closed.jaxpr, marks))
    if all(follows.values()):
        return {}
    found = {n: np.asarray(x) for n, x in jax.jit(masks)(*inputs).items() if not follows[n]}
    for name in (n for n in sites if n not in found):
        parts = name.partition("_by_")[0].split("+")
        dims = sites[name].dims
        known = all(n in found and {*dims} <= {*sites[n].dims} for n in parts)
        if sites[name].kind == "factor" and known and len({*dims}) == len(dims):
            over = [_along_dims(found[n], sites[n].dims, dims) for n in parts]
            found[name] = np.any(over, axis=0)
    return {n: x for n, x in found.items() if n in sites and not x.all()}


def _along_dims(mask: np.ndarray, dims: Sequence[str | None], kept: Sequence[str | None]) -> Any:
    """Whether anything counts, along some of the axes of a mask, which have these names."""
    mask = np.any(mask, tuple(a for a, name in enumerate(dims) if name not in kept))
    order = [name for name in dims if name in kept]
    return mask.transpose([order.index(name) for name in kept])


def replay(
    model: ppl.Program,
    keys: jax.Array,
    choices: Choices,
    args: tuple,
    groups: frozenset[str],
    batch_size: int,
    mesh: Mesh | None,
) -> dict[str, dict[str, np.ndarray]]:
    """Per draw: deterministic sites, log-probs of observations and latents, and new observations, as far as in `groups`."""
    model = whole(model)

    def run(inputs: tuple[PyTree, ...], *args: PyTree) -> dict[str, PyTree]:
        choices, key = inputs
        trace_key, predict_key = jax.random.split(key)
        trace, _ = model.generate(trace_key, choices, *args)
        out = {"deterministic": trace.deterministic}
        if "log_likelihood" in groups:
            out["log_likelihood"] = likelihoods(model, args, trace)[0]
        if "log_prior" in groups:
            is_latent = lambda n: trace.sites[n].kind == "latent"
            out["log_prior"] = {n: lp for n, lp in trace.log_probs.items() if is_latent(n)}
        if "log_predictive" in groups:
            out["log_predictive"] = one_step_ahead(model, trace.choices, args)
        if "posterior_predictive" in groups:
            out["posterior_predictive"] = model.predict_trace(predict_key, choices, *args).observed
        return out

    return in_parts(run, (dict(choices), keys), args, batch_size, mesh)


def draw_prior(
    model: ppl.Program, keys: jax.Array, args: tuple, batch_size: int, mesh: Mesh | None
) -> dict[str, dict[str, np.ndarray]]:
    """Joint draws of latent, deterministic ("prior") and observed ("prior_predictive") sites, one for each key."""
    summed = model.sites if isinstance(model, Eliminated) else ()
    model = whole(model.program if isinstance(model, Eliminated) else model)

    def draw(key: jax.Array, *args: PyTree) -> PyTree:
        trace = model.predict_trace(key, {}, *args)
        choices = {n: v for n, v in trace.choices.items() if n not in summed}
        return {
            "prior": {**choices, **trace.deterministic},
            "prior_predictive": trace.observed,
        }

    try:
        return in_parts(draw, keys, args, batch_size, mesh)
    except NotImplementedError as err:
        raise ValueError(
            f"to_arviz: {model!r} has a site that cannot be drawn from its prior "
            f"({err or 'its distribution has no sampler'}). Leave 'prior' and 'prior_predictive' out of groups=(...)."
        ) from err


def factors_of(model: ppl.Program, args: tuple) -> list[str]:
    """Factors of the program, which its draws forward do not hear."""
    while isinstance(model, Eliminated):
        model = model.program
    return altering_factors(sites_of(model, args))


def whole(program: ppl.Program) -> ppl.Program:
    """The program, which must run on all rows of its plates: a weight estimated from a subsample would be biased."""
    if isinstance(program, Eliminated):
        return program.rebuilt(whole)

    class _Whole(Messenger):
        def process_message(self, msg: Message) -> None:
            if msg["type"] == "plate" and msg["args"][1] not in (None, msg["args"][0]):
                size, rows = msg["args"]
                raise ValueError(
                    f"Plate '{msg['name']}' subsamples {rows} of {size} rows: draws would see different rows, and the "
                    "exponential of a scaled log-density is a biased weight. Build the program without subsample_size; "
                    "minibatches are the business of fit(..., subsample={...})."
                )

    def run(*args: PyTree, **kwargs: PyTree) -> PyTree:
        with _Whole():
            program(*args, **kwargs)

    run.__name__ = name_of(program)
    return ppl.Program(run)


def whole_events(missing: np.ndarray, num_batch_axes: int) -> np.ndarray:
    """A mask over the batch axes if every event is missing, or seen, as a whole; else the mask of cells as it is."""
    axes = tuple(range(num_batch_axes, missing.ndim))
    some, every = np.asarray(missing.any(axes)), np.asarray(missing.all(axes))
    return some if (some == every).all() else missing


def _changed(value: jax.Array) -> jax.Array:
    return ~value if value.dtype == bool else jnp.where(value == 0, 1, -value).astype(value.dtype)


def _why_no_weight(q: ppl.Trace, choices: Choices) -> str | None:
    """Why p / q is not a density ratio of the latents, or None.

    NumPyro's autoguides draw one auxiliary vector and map it one to one on the model's sites, which are then Deltas with
    the map's Jacobian; that ratio is right. Any other use of auxiliary sites or Deltas lacks a factor.
    """
    latent = [n for n, info in q.sites.items() if info.kind == "latent" and n not in q.auxiliary]
    point = [n for n in latent if q.sites[n].distribution == "Delta"]
    auxiliary = sorted(q.auxiliary)
    if auxiliary and len(point) < len(latent):
        return f"the guide has auxiliary sites {auxiliary}, whose distribution given the latents is not known"
    if auxiliary:
        point = [n for n in point if len(choices[n]) > 1 and (choices[n] == choices[n][:1]).all()]
    return f"the guide is a point mass (Delta) at {point}" if point else None
