"""Predictions from the draws of any result."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._types import Key, ModelFn
from ...ppl.densities import Eliminated
from ...ppl.language import Keywords, arguments, labelled_as, parted
from .._mapped import Parts
from .._meshes import over_auto_axes
from ..diagnostics._weights import importance_diagnostics, resampling_indices
from ..fitting import Fit, Posterior
from ..fitting.prediction import DrawsOrigin, of_other_rows, predicted, sites_of, thinned
from ..inputs import check_new
from ..particles.parameters import ParticleGibbsResult, PMMHResult
from ..posteriors import Draws
from ._arviz_source import PARTICLES, check_not_lost, is_mcmc, origin_of


@over_auto_axes
@checked_call
def predict(
    model: ModelFn,
    result: object,
    key: jax.Array,
    *args: PyTree,
    num_samples: int = 1000,
    num_seen: int | None = None,
    keep: str | Sequence[str] | None = None,
    batch_size: int = 100,
    mesh: Mesh | None = None,
    **kwargs: PyTree,
) -> dict[str, np.ndarray]:
    """Draw what comes next: p(new | z), z a draw of the posterior.

    Sites that the draws give are kept; all others are drawn from the model at these arguments, observations included: new
    rows, an observation whose `obs` is None. Values that are given there tell nothing of sites that are drawn.

    A forecast is a run whose scan goes on. Its first steps keep the draws' values and their observations, and the steps after
    them are drawn, so that `predict(model, result, key, longer)` continues each draw's own path.

    Args:
        model: the program.
        result: whose draws: an `SMCResult` or another particle run, a `PMMHResult`, `ParticleGibbsResult`, `Draws`, a `Posterior`
            (resampled by its weights, with a warning where their k-hat is above its threshold),
            a NumPyro MCMC after its run, or a mapping from site to draws [S, ...]. A fit predicts
            by `Fit.predict`.
        key: PRNG key of either kind.
        *args: arguments of the model: new rows, or a longer series, whose observations of the steps to come are not read.
        num_samples: number of predictions; chains are thinned evenly or repeated to as many.
        num_seen: steps of the scan whose observations are kept; default, those for which the draws have values of a shorter
            scan. Must be said where a scan has observations and no latent site (an autoregression); 0 draws the whole series
            anew.
        keep: sites whose draws are kept, a pattern or several ("*": all), where draws that belong to rows were made for the rows
            of these arguments. Default, all that belong to no rows.
        batch_size: held on a device at once. It does not change which draws are made.
        mesh: devices over which draws are split; the same draws, to rounding.
        **kwargs: keyword arguments of the model; one with the name of an option here goes by position.

    Returns:
        All sites that the draws do not hold whole by name, NumPy arrays [num_samples, *site shape].

    Raises:
        TypeError: the result has no draws of named sites.
        ValueError: the draws name a site that the program does not have, or have a shape that does not fit; a site that they give
            depends on one that they do not give; one to be predicted depends on an observation that is given, and would be drawn
            anew; draws belong to other rows, or to rows without `keep`; `num_seen` is given without a scan, or missing where
            nothing else tells it.

    Validity: draws of the posterior predictive as far as `result` has draws of the posterior. A forecast asks for the joint law
    of parameters and last states, which a filter has, too. In a program that leads an observation on to the next step, what is
    led on must be what `ppl.sample` returned, not the argument that was passed as `obs`. Draws of sites that belong to rows
    stand for those that they were drawn for, and states of a series for its steps: results know their arguments, but for those
    that come out of compiled code or were saved without data, whose draws of rows and steps are refused until `keep` says that
    these are theirs. So are draws of rows in a mapping; states in it are taken for those of the steps.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> from lapilli import inference, ppl
        >>> def walk(y):
        ...     def step(z, y):
        ...         z = ppl.sample("z", dist.Normal(z, 1.0))
        ...         ppl.sample("y", dist.Normal(z, 0.5), obs=y)
        ...         return z, None
        ...     ppl.scan(step, 0.0, y)
        >>> run = inference.smc(walk, jax.random.key(0), jnp.arange(6.0), num_particles=100)
        >>> ahead = inference.predict(walk, run, jax.random.key(1), jnp.arange(6.0 + 4), num_samples=50)
        >>> {name: draws.shape for name, draws in ahead.items()}  # the first six of z are the particles'
        {'y': (50, 10), 'z': (50, 10)}
    """
    # Levels and columns in the order of the draws' own, by which their entries go.
    origin = origin_of(result)
    args = labelled_as(origin.labels, (*args, Keywords(kwargs)), model)
    args = arguments(predict, model, *parted(args))
    program = ppl.as_program(model)
    check_new("predict", program, args)
    check_counts("predict", num_samples=num_samples, batch_size=batch_size)
    if num_seen is not None:
        check_counts("predict", 0, num_seen=num_seen)
    draw_key, key = jax.random.split(typed_key(key))
    choices = _draws(result, draw_key, num_samples)
    if is_mcmc(result) and origin.args is not None:
        _check_summed(program, choices, args, origin.args)
    draws_origin = DrawsOrigin(
        origin.args, _mcmc_remedy if is_mcmc(result) else None,
        has_auxiliary=isinstance(result, Posterior), is_stated=isinstance(result, Mapping),
    )  # fmt: skip
    return predicted(
        "predict", program, choices, key, args, num_samples,
        num_seen=num_seen, keep=keep, origin=draws_origin, parts=Parts(batch_size, mesh),
    )  # fmt: skip


def _mcmc_remedy(names: list[str]) -> str:
    return f"{{n: x for n, x in mcmc.get_samples().items() if n not in {names}}}"


def _check_summed(
    program: ppl.Program, choices: Mapping[str, PyTree], args: tuple, before: tuple
) -> None:
    """Refuse to draw from their prior sites that NUTS has summed out, where no new rows have them."""
    if isinstance(program, Eliminated):  # draws them given the data, or refuses to
        return
    now = sites_of(program, args)
    # A scan asks for `num_seen`.
    new = [n for n, s in now.items() if s.kind == "latent" and not s.is_imputed and not s.regions]
    summed = [n for n in new if n not in choices]
    try:
        was = sites_of(program, before) if summed else {}
    except Exception:  # another program than the chain's
        return
    summed = [n for n in summed if n in was and was[n].kind == "latent"]
    of_new = of_other_rows(program, [*choices, *summed], args, before) if summed else []
    if shared := [n for n in summed if n not in of_new]:
        raise ValueError(
            f"predict: the chain has no draws of {shared}, which its kernel summed out, and which belong to no new rows: they "
            "would be drawn from their prior, and not given the data. Draw them at the data, states = ppl.eliminate(model, "
            f"{shared}).posterior(key, draws, *args) for each of the draws, and predict from both, {{**draws, **states}}; or "
            "predict from inference.nuts or inference.infer, which draw them."
        )


def _draws(result: Any, key: Key, num_samples: int) -> dict[str, PyTree]:
    """Equally weighted draws by site, as many as asked for."""
    if isinstance(result, Fit):
        raise TypeError(
            "predict: a Fit has a method for this: fit.predict(key, *args, num_samples=...)."
        )
    if isinstance(result, PARTICLES):
        check_not_lost("predict", result)
        drawn = result.sample(key, num_samples)
        if isinstance(drawn, Mapping):
            return dict(drawn)
        raise TypeError(
            "predict: the particles of a FeynmanKac have no names. Pass a mapping from the program's sites to draws."
        )
    if isinstance(result, PMMHResult):
        axes = result.log_joint.ndim
        choices = {n: x.reshape(-1, *x.shape[axes:]) for n, x in result.choices.items()}
    elif isinstance(result, ParticleGibbsResult):
        choices = result.choices
    elif isinstance(result, Posterior):
        worth = importance_diagnostics(result.log_weights)
        if not worth.k_hat <= worth.k_threshold:
            warnings.warn(
                f"predict: the Posterior's weights have k-hat {worth.k_hat:.2f}, where {worth.num_draws} draws allow at most "
                f"{worth.k_threshold:.2f}: the resampled draws would not represent the posterior, and predictions from them are "
                "biased. Take more draws, improve the guide, or predict from inference.infer.",
                UserWarning,
                stacklevel=5,
            )
        rows = resampling_indices(key, worth.smoothed_log_weights)
        choices = {name: x[rows] for name, x in result.choices.items()}
    elif is_mcmc(result):
        choices = result.get_samples()
    elif isinstance(result, Draws):
        choices = result.choices
    elif isinstance(result, Mapping):
        choices = result
    else:
        raise TypeError(
            f"predict: argument 'result' is a {type(result).__name__}, which has no draws of named sites. Pass a particle run, a "
            "chain, a Posterior, a NumPyro MCMC or a mapping from site to draws."
        )
    return thinned("predict", choices, num_samples)
