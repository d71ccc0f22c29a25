"""to_arviz: results as ArviZ reads them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._compat import typed_key
from ...ppl._types import Key, ModelFn
from ...ppl.language import labelled_as
from .._meshes import over_auto_axes
from ..diagnostics._weights import ImportanceDiagnostics, importance_diagnostics, resampling_indices
from ..fitting import Fit, Posterior
from ..inputs import evidence_of
from ..particles.parameters import ParticleGibbsResult, PMMHResult
from ..posteriors import Draws
from ._arviz_content import ASKED, COMPUTED, Asked, DrawBlock, content_of, described
from ._arviz_source import PARTICLES, ArvizSource, is_mcmc, make_source, origin_of
from ._arviz_tree import Content, arviz_base, build_tree, check_netcdf
from ._zarr import check_zarr, is_zarr, write_blocks

if TYPE_CHECKING:
    import xarray

_POOLED = "one: the draws of all seeds, resampled by their weights together"
_BATCHES = 10  # of draws, in memory at a time where they go to a folder


@over_auto_axes
@checked_call
def to_arviz(
    result: object,
    *,
    key: jax.Array | None = None,
    num_samples: int = 1000,
    args: tuple | Mapping[str, PyTree] | None = None,
    model: ModelFn | None = None,
    log_weights: PyTree = None,
    group: Literal["posterior", "prior"] = "posterior",
    groups: Collection[str] | None = None,
    resample: Literal["none", "psis"] | None = None,
    coords: Mapping[str, list[int]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    constant_data: Mapping[str, object] | None = None,
    batch_size: int = 100,
    mesh: Mesh | None = None,
    path: str | os.PathLike | None = None,
) -> xarray.DataTree:
    """Put a result into an `xarray.DataTree` for ArviZ: summaries, plots, leave-one-out, netCDF.

    Axes: "chain" (one, except for chains), "draw", then those of the site: "time" and "particles" by region, plates by name, and
    "<site>_dim_0", ... for what has no name. Groups, as far as the result and `groups` allow:

        posterior             latent and deterministic sites, of a fit those of its guide too
        sample_stats          per draw lp = log p(x, z), log_q = log q(z), log_weight = lp - log_q (nats); attributes pareto_k,
                              pareto_k_threshold, ess, log_evidence, log_evidence_std_error, elbo of `importance_diagnostics`
        posterior_predictive  observed sites drawn anew for each draw
        log_likelihood        log-probs of observed sites, one per batch element (nats), or one per row of those that meet sites
                              summed out by `ppl.eliminate`; of none that is scaled (`numpyro.handlers.scale`); log_prior: of
                              latent sites
        log_predictive        of a hidden chain whose states `ppl.eliminate` takes out, log p(y_t | y_<t, z) of each step given
                              those before it. Its sum is the log-likelihood; leave-one-out cannot be made of it
        prior, prior_predictive   joint draws from the model; of one with factors none
        observed_data, constant_data

    ArviZ reads no weights: its summaries and plots take each draw of the posterior group for one draw. Its
    `loo_approximate_posterior(tree, log_p=tree.sample_stats["lp"], log_q=tree.sample_stats["log_q"])` does use them.

    Args:
        result: `Draws` of `infer` or `nuts`, chain by chain; a `Fit` (draws from its guide; of several seeds num_samples each, a
            chain for each seed, if the model has no parameters); a mapping from site to draws [S, ...]; a `Trace` with a leading
            axis S, as `jax.vmap(program.simulate, ...)` gives; a `Posterior`; an `SMCResult`, `SMC2Result`,
            `TemperedResult`, `IslandsResult` or `LiuWestResult`, resampled to equal weights, with attributes log_evidence,
            log_evidence_std_error (where the run's genealogy shows it), min_ess and, where it is said, what the evidence is; a
            `PMMHResult`, of chains if it has two leading axes, with sample_stats log_joint and is_accepted; a
            `ParticleGibbsResult` of a program; or a NumPyro MCMC after its run, read by ArviZ itself.
        key: PRNG key; needed to draw from a guide, for predictions and for the prior.
        num_samples: draws from the guide, the prior, or the particles.
        args: arguments of the model, a tuple or a dict; default those that the result was made with, else ().
        model: the program of draws given as a mapping or Trace: it names their axes and computes the other groups.
        log_weights: log-weights of draws given as a mapping or Trace, nats [S].
        group: what given draws are: of the posterior or of the prior.
        groups: which to compute of "posterior_predictive", "prior", "prior_predictive", "log_likelihood", "log_prior",
            "observed_data", "log_predictive"; default, all that the arguments allow but the last, whose cost grows with the
            square of the number of steps.
        resample: "none" keeps the draws. "psis" replaces them by S draws with replacement in proportion to Pareto-smoothed
            weights; sample_stats then holds "source_draw", and no log_weight, which would be counted twice. The attribute
            "draws" of the posterior group says which. Default "none" for a fit; weighted draws need a choice.
        coords: axis name -> labels.
        dims: site -> names of all its axes, or of those that have no name.
        constant_data: name -> array.
        batch_size: draws on a device at a time, at most; fewer where the arguments are large (64 MB in all).
        mesh: devices over which all that is computed for each draw is split; the same numbers, to rounding.
        path: also write the tree to this netCDF file; or, where it ends in ".zarr", to a new Zarr folder, of which only some
            batches of draws are in memory at a time, and the returned tree reads it as it is asked. The numbers are the same.

    Returns:
        The tree. Booleans become integers, whose quantiles ArviZ can take; "/" in a name becomes ".". A site with
        `obs_mask`, or under `numpyro.handlers.mask`, keeps its own cells only, on one axis "<site>_cell"; where events are seen
        in part, it keeps its axes, with NaN in the other cells. An axis name that has several lengths becomes "<site>_<name>".

    Raises:
        TypeError: the result is of no known kind.
        ValueError: an argument is missing or impossible, draws and model do not match, a plate is subsampled, or k-hat is
            above its threshold with resample="psis".
        ImportError: ArviZ, or with `path` a library for netCDF or Zarr, is missing.

    Validity:
        Draws of a fit are from q, not from the posterior; `importance_diagnostics` tells how far they can be taken for
        it. No log_weight is given, and an attribute says why, where p / q is not a density ratio (a point-mass guide;
        auxiliary sites other than an autoguide's). Resampling is self-normalised: biased by O(1 / S), and its draws are
        dependent.

    Example:
        >>> import numpy as np
        >>> tree = to_arviz({"mu": np.zeros(4), "z": np.zeros((4, 2))}, dims={"z": ["rows"]})
        >>> dict(tree["posterior"].sizes)
        {'chain': 1, 'draw': 4, 'rows': 2}
    """
    if args is not None:
        fitted = getattr(
            result, "objective", result
        )  # of several seeds, too, which share its program
        program = getattr(fitted, "model", None) if model is None else model
        args = labelled_as(origin_of(result).labels, args, program)
    base = arviz_base()
    if path is not None:
        if not os.fspath(path):
            raise ValueError("to_arviz: path is empty. Name a file, e.g. path='fit.nc'.")
        check_zarr(path) if is_zarr(path) else check_netcdf()
        if is_zarr(path) and is_mcmc(result):
            raise ValueError(
                "to_arviz: a path that ends in '.zarr' writes draws in blocks, and ArviZ reads those of a NumPyro MCMC whole. "
                "Pass mcmc.get_samples() with model=, or name a netCDF file."
            )
    _check_options(result, num_samples, batch_size, group, resample, groups, log_weights, model)
    keys = _split(key)
    asked = Asked(group, groups, num_samples, batch_size, mesh, keys, dict(constant_data or {}))
    read = lambda rows: make_source(
        result, keys, num_samples, args, model, log_weights, batch_size, mesh, rows
    )
    tree_of = lambda content: build_tree(base, content, coords or {}, dims or {})
    if path is not None and is_zarr(path):
        return _in_blocks(path, read, asked, resample == "psis", tree_of)
    source = read(slice(None))
    content = content_of(_weighed(source, asked, resample == "psis"), asked)
    tree = tree_of(content)
    if path is not None:
        tree.to_netcdf(path)
    return tree


def _in_blocks(
    path: str | os.PathLike,
    read: Callable[[slice], ArvizSource],
    asked: Asked,
    is_resampled: bool,
    tree_of: Callable[[Content], xarray.DataTree],
) -> xarray.DataTree:
    """The tree in a Zarr folder, of which some batches of draws are in memory at a time."""
    size = _BATCHES * asked.batch_size * (1 if asked.mesh is None else asked.mesh.size)
    first = read(slice(None) if is_resampled else slice(0, size))
    whole = _weighed(first, asked, is_resampled) if is_resampled or first.is_whole else None
    num_draws = asked.num_samples if whole is None else whole.num_draws
    weights: list[np.ndarray] = []

    def trees() -> Iterator[xarray.DataTree]:
        block = DrawBlock(slice(0, 0), num_draws)
        for start in range(0, num_draws, size):
            rows = slice(start, min(start + size, num_draws))
            source = (first if start == 0 else read(rows)) if whole is None else whole.of(rows)
            if whole is None and source.log_weights is not None:
                weights.append(source.log_weights)
            sites = block.sites or described(source, asked)
            block = DrawBlock(rows, num_draws, sites)
            yield tree_of(content_of(source, asked, block))

    def late() -> dict[str, float | str]:
        if not weights:
            return {}
        return _attributes(importance_diagnostics(np.concatenate(weights)), first)

    return write_blocks(path, trees(), late)


def _weighed(source: ArvizSource, asked: Asked, is_resampled: bool) -> ArvizSource:
    """The draws with what their weights say, or drawn anew by them."""
    found = None if source.log_weights is None else importance_diagnostics(source.log_weights)
    attrs = {} if found is None else _attributes(found, source)
    source = _resampled(source, found, asked.keys) if is_resampled else source
    return dataclasses.replace(source, weighing=attrs)


def _split(key: Key | None) -> dict[str, jax.Array] | None:
    """A key for each use, so that leaving out a group changes no other."""
    uses = ("guide", "resample", "replay", "prior")
    return (
        None if key is None else dict(zip(uses, jax.random.split(typed_key(key), 4), strict=True))
    )


def _resampled(
    source: ArvizSource, diagnostics: ImportanceDiagnostics | None, keys: dict[str, Key] | None
) -> ArvizSource:
    if diagnostics is None:
        why = source.no_weight or "no log_weights came with the draws"
        raise ValueError(
            f"to_arviz: resample='psis' needs log-weights, but {why}. Use resample='none', or pass log_weights."
        )
    if keys is None:
        raise ValueError(
            "to_arviz: argument 'key' is missing: resample='psis' draws. Pass key=jax.random.key(0)."
        )
    if not diagnostics.k_hat <= diagnostics.k_threshold:
        raise ValueError(
            f"to_arviz: resample='psis' with k-hat {diagnostics.k_hat:.2f}, where {diagnostics.num_draws} draws "
            f"allow at most {diagnostics.k_threshold:.2f}: the resampled draws would not represent the target. "
            "Take more draws, improve the proposal, or look at its own draws with resample='none'."
        )
    index = resampling_indices(keys["resample"], diagnostics.smoothed_log_weights)
    choices, given = jax.tree.map(lambda leaf: leaf[index], (source.choices, source.given))
    origin = f"{source.origin}, resampled with replacement by Pareto-smoothed importance weights"
    # Weighed together, the draws of several seeds are one sample, and places in it tell no seed.
    attrs = source.attrs | ({"chains": _POOLED} if source.num_chains > 1 else {})
    return dataclasses.replace(
        source, choices=choices, given=given, stats={"source_draw": index}, origin=origin, attrs=attrs, num_chains=1,
    )  # fmt: skip


def _attributes(diagnostics: ImportanceDiagnostics, source: ArvizSource) -> dict[str, float | str]:
    """What weights say, and what the evidence is that they estimate."""
    names = {"k_hat": "pareto_k", "k_threshold": "pareto_k_threshold"}
    fields = ("k_hat", "k_threshold", "ess", "log_evidence", "log_evidence_std_error", "elbo")
    found = {names.get(field, field): getattr(diagnostics, field) for field in fields}
    text = evidence_of(source.model, source.args)
    return found if text is None else found | {"evidence": text}


def _check_options(
    result, num_samples, batch_size, group, resample, groups, log_weights, model
) -> None:
    problems = []
    own = isinstance(result, Fit | Draws) or is_mcmc(result)
    particles = PMMHResult | ParticleGibbsResult | PARTICLES
    if not (own or isinstance(result, Mapping | ppl.Trace | Posterior | particles)):
        raise TypeError(
            f"to_arviz: argument 'result' is a {type(result).__name__}. Pass a Fit, the Draws of infer or nuts, "
            "a mapping from site to draws, a batch of traces, a Posterior, an SMC or PMMH result, or a NumPyro MCMC."
        )
    weighted = log_weights is not None or isinstance(result, Posterior)
    if own and (weighted or model is not None or group != "posterior"):
        problems.append(
            f"'log_weights', 'model' and 'group' describe given draws; a {type(result).__name__} has its own. "
            "Leave them out"
        )
    if isinstance(result, particles):
        kind = type(result).__name__
        if group == "prior":
            problems.append(
                f"'group' files the draws of a {kind} as draws of the prior, and they are of the posterior. Leave it out"
            )
        if log_weights is not None and not isinstance(result, ParticleGibbsResult):
            problems.append(
                f"'log_weights' (shape {np.shape(log_weights)}) describe given draws; a {kind} has its own and is drawn by them. "
                "Leave them out, or pass draws as a mapping"
            )
    if group == "prior" and weighted:
        problems.append(
            "'log_weights' make draws of the prior draws of something else; use group='posterior'"
        )
    if weighted and resample is None:
        problems.append(
            "'resample' is needed for weighted draws, since ArviZ ignores weights: 'psis' for draws of the target, "
            "or 'none' to look at the proposal"
        )
    known = [*COMPUTED, *ASKED]
    if set(groups or ()) - set(known):
        problems.append(f"'groups' must be a collection of some of {known}; got {groups!r}")
    problems += [
        f"'{n}' must be at least 1; got {v}"
        for n, v in {"num_samples": num_samples, "batch_size": batch_size}.items()
        if v < 1
    ]
    if problems:
        raise ValueError("to_arviz: argument " + ";\nargument ".join(problems) + ".")
