"""A run of particles in three stages, each a function that can be read alone.

    choose_settings     options -> settings: names looked up, defaults filled in, what does not go together refused
    run_engine          model and settings -> the numbers of a run: the front ends `_filter.py` (programs) and `_feynman_kac.py`,
                        on one step (`_step.py`)
    result_of           numbers -> `SMCResult`: the evidence, and what derivatives may be taken of

`RunOptions` is what a caller asks for, `Settings` what the engine reads. `run` serves `smc` and the methods that need more of
a run than its result: conditional runs, smoothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .... import ppl
from ....ppl._checks import check_counts
from ....ppl._compat import typed_key
from ....ppl._types import Args, Key, ModelFn
from ..population import evidence
from ..resampling import (
    Differentiation,
    Look,
    Order,
    Partial,
    Policy,
    Resampling,
    ResamplingGradient,
    Scheme,
    Score,
    Soft,
    Transport,
    Twist,
    as_gradient,
    as_resampling,
    ess_below,
    evidence_only,
    once_only,
    scored,
)
from ._descent import Segment
from ._feynman_kac import FeynmanKac, run_chain
from ._filter import run_program
from ._mesh import ONE_DEVICE, Placement
from ._result import SMCResult, check_increments
from ._step import Ancestry, History, Settings

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class FilterOptions:
    """How the particles of a filter go through a model, for the methods that run filters inside; options of `smc`, in its words.

    Args:
        proposal: program of the same arguments for some or all latent sites. Parameters that it draws take the values of
            the chain or particle that runs the filter, so that it may depend on them.
        resampling: scheme by name, or a `Scheme`.
        policy: when to resample.
        batch_size: particles that take a step at once; None for all.
    """

    proposal: ModelFn | None = None
    resampling: Resampling = "systematic"
    policy: Policy | None = None
    batch_size: int | None = None


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How particles go through a model; all but `path` and `place` are options of `smc`, in its words.

    Attributes:
        path: what is kept of where a particle comes from, see `run_program`.
        place: the devices.
    """

    num_particles: int
    proposal: ModelFn | str | None = None
    resampling: Resampling = "systematic"
    policy: Policy | None = None
    history: History = "full"
    batch_size: int | None = None
    path: Ancestry = "genealogy"
    twist: Twist | None = None
    order: Order | None = None
    gradient: str | ResamplingGradient | None = None
    place: Placement = ONE_DEVICE


def run(
    model: FeynmanKac | ModelFn,
    key: Key,
    args: Args,
    options: RunOptions,
    retained: PyTree = None,
) -> tuple[SMCResult, list[Segment]]:
    """What `smc` does; with path "filter" also the record for backward sampling, see `run_program`."""
    chosen = choose_settings(options, is_conditional=retained is not None)
    retained = jax.tree.map(jnp.asarray, retained)
    fields = run_engine(
        "smc", model, options.proposal, typed_key(key), args, chosen.settings, retained
    )
    return result_of(fields, chosen)


class ChosenSettings(NamedTuple):
    """What options come to.

    Attributes:
        settings: what the engine reads.
        offspring: what is known of the offspring counts, see `SMCResult`.
    """

    settings: Settings
    offspring: str


def choose_settings(options: RunOptions, *, is_conditional: bool) -> ChosenSettings:
    """The options as settings, names looked up and defaults filled in.

    Raises:
        ValueError: options that do not go together.
    """
    check_sizes("smc", options.num_particles, options.batch_size, None)
    scheme = as_resampling(options.resampling)
    strategy = None if options.gradient is None else as_gradient(options.gradient)
    policy = options.policy or (ess_below(0.5) if strategy is None else strategy.default_policy())
    differentiation = None
    if options.order is not None and is_conditional:
        raise ValueError(
            "smc: with a retained path particle 0 has a law of its own, which sorting would break. Leave out order=."
        )
    if strategy is not None:
        whole = _check_gradient(options, scheme, strategy, is_conditional)
        strategy.check(whole, policy, options.num_particles, options.history)
        differentiation = Differentiation(strategy, whole)
    looks = options.twist is not None or options.order is not None
    settings = Settings(
        options.num_particles, scheme.retaining() if is_conditional else scheme.ancestors, policy, options.history,
        options.batch_size, options.path, gradient=differentiation,
        look=Look(options.twist, options.order) if looks else None, place=options.place,
    )  # fmt: skip
    offspring = "conditional" if is_conditional else scheme.offspring
    # These two draw other offspring than the scheme does by the weights.
    if isinstance(strategy, Soft | Transport):
        offspring = "unknown"
    return ChosenSettings(settings, offspring)


def _check_gradient(
    options: RunOptions,
    scheme: Scheme | Partial,
    strategy: ResamplingGradient,
    is_conditional: bool,
) -> Scheme:
    """The scheme, if all that is asked for goes with a gradient through resampling."""
    if is_conditional:
        raise ValueError(
            "smc: a run with retained choices has no gradient strategy (its evidence is not unbiased). Leave out gradient=."
        )
    if options.order is not None:
        raise ValueError(
            "smc: a gradient strategy draws ancestors by itself, in no order. Leave out order= or gradient=."
        )
    if isinstance(scheme, Partial):
        raise ValueError(
            "smc: a gradient strategy draws all ancestors and their weights by itself. Leave out gradient=, or use "
            f"resampling='{scheme.scheme.name}'."
        )
    if options.twist is not None and isinstance(strategy, Transport):
        raise ValueError(
            "smc: gradient='ot' puts other particles in the place of those whose psi is known. Leave out twist=, or use "
            "gradient='stop_gradient'."
        )
    return scheme


def result_of(fields: dict[str, Any], chosen: ChosenSettings) -> tuple[SMCResult, list[Segment]]:
    """What the engine leaves as a result, refused or marked where somebody differentiates what has no derivative.

    Raises:
        ValueError: a weight is NaN.
    """
    gradient, look = chosen.settings.gradient, chosen.settings.look
    strategy = None if gradient is None else gradient.strategy
    segments, limited, _ = fields.pop("segments", []), fields.pop("limited"), fields.pop("islands")
    scores, is_scored = fields.pop("scores"), fields.pop("is_scored")
    if strategy is not None and not strategy.in_weights:
        fields["increments"] = scored(fields["increments"], scores)
        if is_scored or isinstance(strategy, Score):
            rest = {name: x for name, x in fields.items() if name != "increments"}
            fields |= evidence_only(strategy, rest)
    if strategy is not None:
        fields = once_only(fields)
    has_twist = look is not None and look.twist is not None
    check_increments(fields["increments"], has_twist, limited)
    log_evidence, failed_at = evidence(fields["increments"])
    result = SMCResult(
        **fields, log_evidence=log_evidence, failed_at=failed_at, offspring=chosen.offspring
    )
    return result, segments


def check_path(model: Any, path: Any) -> None:
    """Refuse what is no path of numbers."""
    is_tree = isinstance(model, FeynmanKac) or isinstance(path, Mapping)
    dtypes = [getattr(x, "dtype", None) or np.asarray(x).dtype for x in jax.tree.leaves(path)]
    is_number = lambda d: jnp.issubdtype(d, jax.dtypes.prng_key) or d.kind in "biuf"
    least = 1 if isinstance(model, FeynmanKac) else 0
    if (
        not is_tree
        or not all(map(is_number, dtypes))
        or min(map(np.ndim, jax.tree.leaves(path)), default=1) < least
    ):
        raise ValueError(
            f"smc: retained is no path of numbers: {path!r:.60}. Give the value of each latent site by name, of a FeynmanKac "
            "x_0, ..., x_T stacked along the first axis."
        )


def run_engine(
    name: str,
    model: Any,
    proposal: Any,
    key: Array,
    args: tuple[Any, ...],
    settings: Settings,
    retained: Any = None,
) -> dict[str, Any]:
    """The fields of a result, by the front end for this kind of model."""
    if not isinstance(model, FeynmanKac):
        if isinstance(proposal, str):
            proposal = ppl.kalman_proposal(model, proposal)
        guide = None if proposal is None else ppl.as_program(proposal)
        return run_program(ppl.as_program(model), guide, key, args, settings, retained)
    if args or proposal is not None:
        raise ValueError(
            f"{name}: a FeynmanKac takes no program arguments and no proposal; they are part of its kernel. Pass a program "
            "for these."
        )
    return run_chain(model, key, settings, retained)


def check_sizes(name: str, num_particles: Any, batch_size: Any, mesh: Any) -> None:
    """Refuse impossible sizes, and batches on a mesh."""
    check_counts(name, num_particles=num_particles)
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"{name}: batch_size must be None or an integer >= 1, got {batch_size!r}.")
    if batch_size is not None and num_particles % batch_size:
        raise ValueError(
            f"{name}: batch_size {batch_size} does not divide num_particles {num_particles}; all batches have one size. "
            "Give a divisor of num_particles."
        )
    if batch_size is not None and mesh is not None:
        raise ValueError(
            f"{name}: batch_size={batch_size} runs particles one batch after the other, and mesh= all at once. Leave out one "
            "of them."
        )
