"""Everything that a run of fit needs before its first step: data, parameters, optimiser, and where a checkpoint goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax
from jaxtyping import PyTree

from ...ppl.language import set_up
from .._abstract_objective import AbstractObjective, guide_fn, is_guide_new
from .._arguments import shapes_of
from .._game import Game, PlayerTurn
from ..inputs import later_indices
from ._choose import ChosenFit, check_programs, labels_in, programs_of
from ._default_optimizer import (
    RATES,
    default_optimizer,
    fixed_of,
    rule_of,
    slower,
    warn_of_short_memory,
)
from ._options import FitOptions
from ._resuming import description, resumed
from ._run import FitRun
from .data import SEEDS, is_iterable_of_batches, make_source
from .storage import CheckpointFile, Folder, StoredRun, describe, fingerprint
from .training import (
    Carry,
    Config,
    HostPlan,
    Optimizer,
    apply,
    initial_carry,
    initial_params,
    labels,
    make_optimizer,
    run_keys,
    shardings_of,
    strong,
    with_state,
)

_MAX_STEPS_PER_CALL = 10_000  # length of the buffer of values on the device


def prepare(options: FitOptions, chosen: ChosenFit) -> FitRun:
    """The run at its first step, or where its checkpoint ends; programs and data are refused here."""
    objective, is_model, num_seeds = chosen.objective, options.is_model, options.num_seeds
    _begin_guide(options, chosen)
    order_key = run_keys(chosen.keys)[3] if num_seeds is None and options.subsample else None
    scaled, source = make_source(
        objective, chosen.args, options.subsample, options.plate_sizes, chosen.mesh, options.prefetch, order_key,
        options.spread_plate,
    )  # fmt: skip
    init_args = source.first()
    if source.given is not None:
        program = getattr(objective, "model", None)
        chosen = chosen._replace(labels=labels_in(source.given, program, init_args))
    if not is_model:
        whole = chosen.args if isinstance(chosen.args, tuple) else init_args
        check_programs("fit", objective, whole, may_be_prior=options.unobserved == "allow")
    source.set_index_check(later_indices("fit", programs_of(objective), init_args))
    lie: PyTree = lambda shapes: shardings_of(options.shardings, shapes, chosen.mesh, num_seeds)
    place = None if options.shardings is None else lie
    params = initial_params(scaled, options.params, chosen.keys, num_seeds, init_args, place)
    one: PyTree = params if num_seeds is None else jax.tree.map(lambda leaf: leaf[0], params)
    turns = scaled.turns(one) if isinstance(scaled, Game) else None
    share = getattr(source, "share", 1.0)
    given, optimizer, reasons = _optimizers(options, objective, one, share, turns)
    reasons = chosen.reasons | reasons
    if is_model and (found := getattr(guide_fn(objective), "starts", None)):
        reasons |= {"start": str(found)}
    if options.progress and reasons:
        _report(reasons)
    config = Config(
        objective=scaled,
        optimizer=optimizer,
        source=source,
        average=options.average,
        on_nonfinite=options.on_nonfinite,
        num_seeds=num_seeds,
        place=lie(shapes_of(one)),
        seeds_axis=SEEDS if chosen.mesh is not None and SEEDS in chosen.mesh.axis_names else None,
        num_steps=options.num_steps,
        max_steps=min(_MAX_STEPS_PER_CALL, source.steps_per_call),
    )
    is_own = options.optimizer is None
    start = lambda key, params: initial_carry(config, key, params, init_args, is_own=is_own)
    carry = strong(config.over_seeds(start)(chosen.keys, params))
    run = description(
        chosen.key, num_seeds, options.subsample, options.plate_sizes, options.average, source, params
    )  # fmt: skip
    if options.checkpoint is not None:
        own = make_optimizer(given, one, fixed=_fixed(options, objective), turns=turns)
        run |= _belongings(options, chosen, config, carry, own, one, init_args)
    is_spread, store = options.spread_plate is not None, None
    if is_spread:
        run["plate spread over processes"] = options.spread_plate
    if options.checkpoint is not None:
        store = (CheckpointFile if options.shardings is None else Folder)(options.checkpoint)
    if options.shardings is not None and config.place is not None:  # what is read goes there
        carry = jax.device_put(carry, config.place(carry))
    carry, step, values, stopped, loader = resumed(
        options.checkpoint, carry, run, options.num_steps, num_seeds, with_state(options.callbacks), options.resume,
        is_spread, store,
    )  # fmt: skip
    plan = HostPlan(
        options.num_steps, tuple(options.callbacks), options.callback_every, options.checkpoint,
        options.checkpoint_every, run, options.progress, options.is_shared, is_spread, store,
    )  # fmt: skip
    is_over = stopped and bool(options.callbacks)
    return FitRun(chosen, config, plan, init_args, carry, step, values, is_over, loader)


def _begin_guide(options: FitOptions, chosen: ChosenFit) -> None:
    """An autoguide starts where its first call says: with all data, as without a mesh, and not where plates are looked for."""
    is_split = chosen.mesh is not None and not options.subsample
    is_split = is_split and (options.shardings is None or is_guide_new(chosen.objective))
    if not isinstance(chosen.args, tuple) or not (options.is_model or is_split):
        return
    key = run_keys(chosen.keys if options.num_seeds is None else chosen.keys[0])[0]
    if options.is_model:
        set_up(chosen.objective.guide, key, chosen.first_args)
    else:
        chosen.objective.init(key, *chosen.first_args)


def _optimizers(
    options: FitOptions,
    objective: AbstractObjective,
    params: PyTree,
    share: float,
    turns: Mapping[str, PlayerTurn] | None,
) -> tuple[PyTree, Optimizer, dict[str, str]]:
    """The optimiser given or chosen, the same matched with the parameters, and what was chosen with why.

    `share` is that of the rows which a step sees, `turns` are those of a game.
    """
    is_model, is_stationary = options.is_model, options.average == "stationary"
    optimizer, num_steps, reasons = options.optimizer, options.num_steps, {}
    fixed = _fixed(options, objective)
    if optimizer is None:
        parts = slower(objective, share) if is_model else {}
        optimizer = default_optimizer(params, None if is_stationary else num_steps, parts, fixed)
        told = f"; {', '.join(f'{x:.2g} of that for {n}' for n, x in parts.items())}"
        reasons["optimizer"] = RATES + told * (share < 1 and len(parts) > 0)
    else:
        warn_of_short_memory(optimizer, objective, params, num_steps)
    settles = num_steps is None and not is_iterable_of_batches(options.args)
    if settles:
        more = ", and as many again for the average" if is_stationary else ""
        reasons["steps"] = "until the value has settled" + more
    has_minibatches = options.subsample is not None
    matched = make_optimizer(
        optimizer,
        params,
        ending="watches" if is_stationary else "settles" if settles else None,
        num_steps=num_steps,
        rule=rule_of(objective, has_minibatches=has_minibatches) if is_model else None,
        fixed=fixed,
        turns=turns,
    )
    return optimizer, matched, reasons


def _fixed(options: FitOptions, objective: AbstractObjective) -> Collection[str]:
    """Parameters that a chosen optimiser leaves as they are."""
    return fixed_of(objective) if options.is_model and options.optimizer is None else ()


def _belongings(
    options: FitOptions, chosen: ChosenFit, config: Config, carry: Carry, own: Optimizer, params: PyTree,
    init_args: tuple,
) -> dict[str, object]:  # fmt: skip
    """What a checkpoint says besides of the run that it belongs to: callbacks, data, programs."""
    is_own = options.optimizer is None
    found: dict[str, object] = {}
    if with_state(options.callbacks):
        found["callbacks with a state"] = labels(options.callbacks)
    if isinstance(chosen.args, tuple):
        is_whole = options.spread_plate is None
        arrays = config.source.split.arrays(chosen.args)
        found["values of args (hashes)"] = fingerprint(arrays) if is_whole else ["spread"]
    one_state, is_held = carry.state, options.shardings is None
    if options.num_seeds is not None:
        one_state = jax.tree.map(lambda x: x[0], carry.state)
    found["belongs to"] = describe(
        StoredRun(
            objective=config.objective,
            params=params,
            state=one_state,
            args=init_args,
            update=None if is_own else lambda p, s, g, v: apply(own, p, s, g, v, 1.0),
            opt_state=jax.eval_shape(own.transform.init, params),
            # Sums over what lies on other hosts would be a part of them.
            start={"params": carry.params, "opt_state": carry.opt_state} if is_held else {},
        )
    )
    return found


def _report(reasons: Mapping[str, str]) -> None:
    """Print what was chosen."""
    width = max(map(len, reasons))
    lines = (f"  {k:<{width}}  {v}" for k, v in reasons.items())
    print("fit chooses", *lines, sep="\n", flush=True)
