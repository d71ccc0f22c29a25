"""fit: maximise or minimise an objective over its parameters by stochastic gradients."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ...ppl._compat import typed_key
from ...ppl._types import ParamMap
from ...ppl.checks import CheckJumps
from ...ppl.language import Keywords, Program, as_arguments, as_program, labels_of, set_up
from .._abstract_objective import AbstractObjective
from .._arguments import shapes_of
from .._game import Game
from .._host_keys import default_key
from .._observed import categories_of, check_categories
from .._runs import later_indices, tried_run
from ._callbacks import FitInfo, labels, with_state
from ._defaults import (
    RATES,
    check_programs,
    choose_objective,
    default_optimizer,
    fixed_of,
    is_judged,
    is_trained,
    programs_of,
    report,
    rule_of,
    slower,
    warn_if_unsettled,
    warn_of_interrupt,
    warn_of_short_memory,
    warn_of_verdict,
)
from ._fit_checks import check_game, check_types, check_values, data_by_name, refuse_traced
from ._fit_result import Fit, StopReason
from ._initial import initial_params
from ._judgement import judged
from ._loop import Carry, Config, initial_carry, run_keys, strong
from ._optimizer import apply, make_optimizer
from ._resuming import description, resumed
from ._train import HostPlan, Training
from ._whitened import OwnGuide
from .data import held, is_iterable_of_batches, make_source, row_blocks
from .stationarity import Averaging, averaged, noise_shares, summary
from .storage import StoredRun, describe, fingerprint

_MAX_STEPS_PER_CALL = 10_000  # length of the buffer of values on the device


@data_by_name
def fit(
    objective: Any,
    optimizer: Any = None,
    args: tuple | Mapping[str, PyTree] | Iterable[PyTree] | None = None,
    *,
    num_steps: int | None = None,
    key: jax.Array | None = None,
    subsample: Mapping[str, int] | None = None,
    plate_sizes: Mapping[str, float] | None = None,
    params: ParamMap | None = None,
    num_seeds: int | None = None,
    average: float | Literal["polyak", "stationary"] | None = None,
    on_nonfinite: Literal["raise", "skip"] = "raise",
    k_hat: Literal["warn", "skip"] = "warn",
    check_jumps: CheckJumps | None = None,
    unobserved: Literal["raise", "allow"] = "raise",
    callbacks: Sequence[Callable[[FitInfo], object]] = (),
    callback_every: int = 100,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 1000,
    resume: Literal["same", "changed"] = "same",
    mesh: Mesh | None = None,
    prefetch: int = 2,
    progress: bool = True,
) -> Fit:
    """Fit the parameters of an objective by stochastic gradient steps.

    With L the objective's value in nats and s = +1 if its direction is "max", -1 if it is "min", step t is

        g_t = estimate of grad L(params_t; data_t, key_t),   params_{t+1} = params_t + optimiser update for the loss -s L.

    The steps run in compiled loops on the device, compiled once; the numbers depend on `key`, the data and the step alone, not
    on where one device call ends, so a run resumed from a checkpoint equals an uninterrupted one to the bit.

    `fit(model, args=(x,))` is enough: what is not said is chosen, and told.

    Args:
        objective: what to fit, e.g. `inference.elbo(model, guide)`. Or a model alone, anything that `ppl.as_program` takes: then
            `elbo` with a Normal guide (`fitting.AutoWhitenedNormal`) that begins at the best Normal which Newton's steps from
            dispersed points find, and in its units; all correlations are trained for at most 30 coordinates, those of the start
            stay for at most 400, and for more the guide is mean field
            (`fitting.AutoMeanField`). Discrete sites are summed out, missing cells come from
            the model.
        optimizer: default Adam, 0.02 for arrays and 0.001 for the weights of modules, along a cosine over `num_steps`. An optax
            transformation; or a dict from fnmatch patterns on parameter names to a transformation or "frozen".
            Each parameter must match exactly one pattern. A transformation such as clipping by global norm then acts within
            its group. Of a `game` the dict may have its players' names.
        args: the arguments of the program, a tuple, or a dict from their names to values; array leaves are traced, other
            leaves stay Python values; None is (). Frames and series of numbers are arrays, too. Or an iterable of such tuples or
            dicts, one minibatch each, all of one shape but that the last of an epoch may have fewer rows; an iterable that can
            be read again starts anew at its end.
        num_steps: total number of steps, those before a checkpoint included; 0 takes `params` as they are. None trains until
            an iterator ends; on data themselves until the value has settled, see `fitting.settling`.
        key: PRNG key, typed or raw uint32; default `jax.random.key(0)`.
        subsample: plate name -> batch size n. Every array leaf whose leading axis goes with the plate's N rows is cut down to n
            rows by random reshuffling (each epoch a fresh permutation, its last N mod n rows left out), and the plate's terms
            are scaled by N / n. The program must take the plate's size from the sliced argument. An array as long as the plate
            that could be longer by itself, since the program looks up in it what the data name, stays whole. Of a `numpy.memmap`
            each device call reads the rows of its steps, under one seed, one device and an objective of your own.
        plate_sizes: for an iterable of batches, plate name -> full size N, for each plate that a batch holds only in part; {}
            if every batch is all the data. N may be `math.inf`: see `Objective.with_plate_sizes`.
        params: parameters to start from, same names and shapes as `objective.init` gives (for several seeds, optionally with a
            leading seed axis); default, `objective.init`.
        num_seeds: number S of independent runs, vectorised. Run s equals a single run with key `jax.random.split(key, S)[s]`
            up to rounding; it has its own initial parameters, noise and order of data. Results get a leading seed axis.
        average: report the average of the iterates instead of the last one: "polyak" for the uniform mean, or a decay d in (0,
            1) for the exponential mean, normalised so that the starting point leaves no trace. Taken on the unconstrained
            parameters. "stationary" begins once the value has settled (the rule of `fitting.settling`), at full pace, and ends
            with the run; without `num_steps` after as many steps again, at least 1,000, and begins anew as long as R-hat of the
            iterates is above 1.1. `Fit.averaging` has the spread of the iterates, the error of their average, and both beside
            the posterior's width; the summary tells.
        on_nonfinite: what to do when the value, a trained parameter's gradient or its new value is not finite. "raise": stop
            and name what broke; "skip": leave parameters, optimiser and state as they were, and count. After 100 skipped steps
            in a row (of every seed) "skip" raises too.
        k_hat: whether weighted draws of the guide are compared with the posterior after the run: "warn" if k-hat is above its
            threshold, if the weights move means or widths, if another mode was seen or the start was better, see `Fit.worth`;
            or "skip". Compared are runs of a model alone; and under a guide of your own single runs of `elbo` and
            `iwelbo` on all data at once, of at least 1,000 steps and at most 100 latent coordinates (of more, all but exact
            guides fail jointly: judge rows one by one), whose draws take seconds to compile. An objective that judges
            its own results (`AbstractObjective.verdict`, of `mam.energy`) does so under the same option, after 1,000 steps or
            more; of several seeds each is judged, and one warning names those affected.
        unobserved: what to do with a model that has neither an observation nor a factor, whose posterior is its prior, and, for
            a model alone, with an argument that is None where a site would be observed that no observation depends on: "raise",
            since data may have been forgotten, or "allow".
        check_jumps: of the objective that is made of a model alone, see `ppl.expectation`; default True. An objective has its
            own.
        callbacks: called with a `FitInfo` every `callback_every` steps and after the last; returning True or "stop" ends the
            run. One with methods `get_state(params)`, a tree of arrays, and `set_state(state)` is resumed from a checkpoint.
        callback_every: steps between calls of the callbacks.
        checkpoint: path of a file. If it exists, the run goes on from it; it is written every `checkpoint_every` steps, at the
            end and on Ctrl-C. It holds parameters, optimiser, objective state, step, key, history and callbacks' states. An
            iterable is read again from its start up to the step reached, or goes on from its own state, if it has one: methods
            `get_state` and `set_state` of its iterator (Grain), or `state_dict` and `load_state_dict` of the loader (PyTorch's
            stateful one). The arguments' values are compared with those before; an iterable's are not. Of several processes the
            first writes it and all read it: the path lies on a file system that they share. A write that fails is warned of.
        checkpoint_every: steps between checkpoints.
        resume: what may go on from the checkpoint. "same": the run that wrote it, of more steps perhaps; other programs,
            objectives, optimisers, starts, keys and data are refused by name (the cosine of the default optimiser is one over the
            new number of steps). "changed": any whose parameters and states have the same names and shapes; step number,
            optimiser's state and history go on.
        mesh: devices to split the data over, all of its axes together: leading axes of the minibatch (with `subsample` or an
            iterable) or of every argument along a plate are split, parameters are replicated. Gives the numbers of one device
            up to rounding.
        prefetch: stacks of batches (16 to 64, those in 32 MB) of an iterable that a thread reads ahead, and moves to the device,
            while the caller's thread waits; never beyond `num_steps`. 0 reads in the caller's thread, as loaders need that are
            tied to it (a database connection) or that callbacks change on the way.
        progress: show a progress bar with the running value; where there is no terminal or notebook, a line now and then.

    Returns:
        The `Fit`. After Ctrl-C it holds what there is (`Fit.interrupted`).

    Raises:
        TypeError: if an argument has the wrong type.
        OSError: if no file can be written at the checkpoint's path, or the one there cannot be read.
        ValueError: if an argument's value is impossible, plates or parameters do not match, or the checkpoint belongs to
            another run, or is none.
        NonFiniteError: if a step is not finite; it names the first bad site in program order, or the parameter.

    Validity:
        The gradient is as good as the objective's. With `subsample` each row is equally likely at each place of an epoch, so
        value and gradient stay unbiased for terms that are sums over the plate; a parameter with one entry per row is refused.
        For an iterable, that its batches are uniform draws is up to the caller. A batch of r rows where the first had n counts
        r / n of a step (its gradient is multiplied by that), so that every row has the same weight over an epoch in any order.
        An unbiased gradient is no unbiased step: optimisers that divide by a short memory of squared gradients (`decay` or
        `b2` of 0.9) come to rest beside the optimum at every rate, and are warned of.

    Example:
        >>> result = fit(elbo(model, guide), optax.adam(1e-2), (x,), num_steps=1000, key=key)  # doctest: +SKIP
        >>> result.guide, result.history["value"][-1]  # doctest: +SKIP

    Reference: random reshuffling, arXiv:2006.05988; averaging, Polyak and Juditsky (1992); of
    stationary iterates, Dhaka et al. 2020, arXiv:2009.00666, and Welandawe et al. 2022, arXiv:2203.15945.
    """
    is_model = callable(objective) and not isinstance(objective, AbstractObjective)
    args = () if args is None else args
    check_types(objective, is_model, optimizer, args, callbacks, mesh, average)
    refuse_traced(args if isinstance(args, tuple | Mapping) else None, params, key)
    objective = as_program(objective) if is_model else objective
    names: dict[str, tuple] = {}
    if isinstance(args, Mapping | tuple):
        program = objective if is_model else getattr(objective, "model", None)
        raw = (Keywords(args),) if isinstance(args, Mapping) else args
        args, names = as_arguments(args, program), labels_of(raw, program)
        if categories_of(raw):
            check_categories("fit", tried_run(program, args), raw)
    given = args  # the Fit keeps these
    check_values(
        num_steps,
        num_seeds,
        average,
        callback_every,
        checkpoint_every,
        prefetch,
        on_nonfinite=on_nonfinite,
        k_hat=k_hat,
        unobserved=unobserved,
        resume=resume,
    )
    if check_jumps is not None and not is_model:
        raise ValueError(
            f"fit: check_jumps={check_jumps!r} is for a model alone, and an objective is given. Pass it to the objective, e.g. "
            f"inference.elbo(model, guide, check_jumps={check_jumps!r})."
        )
    check_game(objective, num_steps, average, callbacks)
    if num_steps == 0 and params is None:
        raise ValueError(
            "fit: num_steps=0 takes no step, and the result would be the initial parameters. Ask for steps; a fit of parameters "
            "that you have takes params=, e.g. objective.init(key, *args)."
        )
    key = default_key() if key is None else typed_key(key)
    settles = num_steps is None and not is_iterable_of_batches(args)
    reasons: dict[str, str] = {}
    if is_model and isinstance(args, tuple):
        may_be_prior = unobserved == "allow"
        objective, reasons = choose_objective(
            objective,
            args,
            may_be_prior=may_be_prior,
            check_jumps=True if check_jumps is None else check_jumps,
        )
    if isinstance(args, tuple) and mesh is None:
        args = held(args)
    whole: PyTree = args
    guide = getattr(getattr(objective, "guide", None), "fn", None)
    if is_model and mesh is None and num_seeds is None and isinstance(guide, OwnGuide):
        guide.blocks = row_blocks(objective.model, args, subsample)
        whole = args if guide.blocks is None else guide.blocks.first
    if mesh is not None:
        # Explicitly typed axes would put the sharding into the types of the user's program.
        mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    keys = key if num_seeds is None else jax.random.split(key, num_seeds)
    if isinstance(args, tuple) and (is_model or mesh is not None and not subsample):
        # An autoguide starts where its first call says: with all data, as without a mesh, and not where plates are looked for.
        first = run_keys(keys if num_seeds is None else keys[0])[0]
        set_up(objective.guide, first, whole) if is_model else objective.init(first, *whole)
    order_key = run_keys(keys)[3] if num_seeds is None and subsample else None
    scaled, source = make_source(objective, args, subsample, plate_sizes, mesh, prefetch, order_key)
    init_args = source.first()
    if not is_model:
        whole_args = args if isinstance(args, tuple) else init_args
        check_programs("fit", objective, whole_args, may_be_prior=unobserved == "allow")
    source.set_index_check(later_indices("fit", programs_of(objective), init_args))
    params = initial_params(scaled, params, keys, num_seeds, init_args)
    one: PyTree = params if num_seeds is None else jax.tree.map(lambda leaf: leaf[0], params)
    turns = scaled.turns(one) if isinstance(scaled, Game) else None
    is_given = optimizer is not None
    fixed = fixed_of(objective) if is_model and not is_given else ()
    if optimizer is None:
        share = getattr(source, "share", 1.0)
        parts = slower(objective, share) if is_model else {}
        steps = None if average == "stationary" else num_steps
        optimizer = default_optimizer(one, steps, parts, fixed)
        told = f"; {', '.join(f'{x:.2g} of that for {n}' for n, x in parts.items())}"
        reasons |= {"optimizer": RATES + told * (share < 1 and len(parts) > 0)}
    else:
        warn_of_short_memory(optimizer, objective, one, num_steps)
    if settles:
        more = ", and as many again for the average" if average == "stationary" else ""
        reasons |= {"steps": "until the value has settled" + more}
    ending = "watches" if average == "stationary" else "settles" if settles else None
    if is_model and (found := getattr(guide, "starts", None)):
        reasons |= {"start": str(found)}
    if progress and reasons:
        report(reasons)
    config = Config(
        objective=scaled,
        optimizer=make_optimizer(
            optimizer,
            one,
            ending=ending,
            num_steps=num_steps,
            rule=rule_of(objective, has_minibatches=subsample is not None) if is_model else None,
            fixed=fixed,
            turns=turns,
        ),
        source=source,
        average=average,
        on_nonfinite=on_nonfinite,
        num_seeds=num_seeds,
        mesh=mesh,
        num_steps=num_steps,
        max_steps=min(_MAX_STEPS_PER_CALL, source.steps_per_call),
    )
    start = lambda key, params: initial_carry(config, key, params, init_args, is_own=not is_given)
    carry = strong(config.over_seeds(start)(keys, params))
    run = description(key, num_seeds, subsample, plate_sizes, average, source, params)
    if checkpoint is not None and with_state(callbacks):
        run["callbacks with a state"] = labels(callbacks)
    if checkpoint is not None and isinstance(args, tuple):
        run["values of args (hashes)"] = fingerprint(source.split.arrays(args))
    if checkpoint is not None:
        own = make_optimizer(optimizer, one, fixed=fixed, turns=turns)
        run["belongs to"] = describe(
            StoredRun(
                objective=scaled,
                params=one,
                state=carry.state
                if num_seeds is None
                else jax.tree.map(lambda x: x[0], carry.state),
                args=init_args,
                update=(lambda p, s, g, v: apply(own, p, s, g, v, 1.0)) if is_given else None,
                opt_state=own.transform.init(one),
                start={"params": carry.params, "opt_state": carry.opt_state},
            )
        )
    carry, step, values, stopped, loader = resumed(
        checkpoint, carry, run, num_steps, num_seeds, with_state(callbacks), resume
    )
    stored_args = given if isinstance(given, tuple) else None

    def make_fit(carry: Carry, values: np.ndarray, step: int, reason: StopReason) -> Fit:
        is_single = num_seeds is None
        params, averaging = carry.params, None
        if average == "stationary":
            params = config.over_seeds(averaged)(carry.average, carry.params)
            averaging = config.over_seeds(summary)(carry.average)
            averaging = dataclasses.replace(averaging, noise=_noise(params, averaging))
        elif average is not None:
            params = carry.average
        return Fit(
            objective=objective,
            params=params,
            last_params=carry.params,
            state=carry.state,
            history={"value": values},
            args=stored_args,
            steps=step,
            num_skipped=int(carry.num_skipped) if is_single else np.asarray(carry.num_skipped),
            num_seeds=num_seeds,
            stop_reason=reason,
            example=None if stored_args is not None else shapes_of(init_args),
            averaging=averaging,
            labels=names,
        )

    def _noise(params: PyTree, averaging: Averaging) -> dict[str, tuple[float, float]]:
        guide = getattr(objective, "guide", None)
        if not isinstance(guide, Program) or num_seeds is not None or averaging.start < 0:
            return {}
        shares = [
            noise_shares(guide, params, deviations, key, init_args)
            for deviations in (averaging.spread, averaging.error)
        ]
        return {name: (shares[0][name], shares[1][name]) for name in shares[0]}

    if stopped and callbacks:
        return make_fit(carry, values, step, "callback")
    source.resume(loader, step)
    if mesh is not None:
        carry = jax.device_put(carry, NamedSharding(mesh, PartitionSpec()))
    plan = HostPlan(
        num_steps, tuple(callbacks), callback_every, checkpoint, checkpoint_every, run, progress
    )
    result = Training(config, plan, keys, carry, step, values, make_fit).finish()
    if result.interrupted:
        warn_of_interrupt(result.steps, checkpoint)
    warn_if_unsettled(result)
    if k_hat == "warn" and is_judged(
        result, is_chosen=is_model, has_minibatches=subsample is not None
    ):
        seen = dataclasses.replace(result, args=whole)  # on the device already
        worth, verdict = judged(seen, key, is_chosen=is_model)
        result = dataclasses.replace(result, worth=worth)
        if verdict is not None:
            warnings.warn(verdict, stacklevel=2)
        elif progress:
            print(f"fit ends: {worth}", flush=True)
    if k_hat == "warn" and is_trained(result):
        warn_of_verdict(result, key)
    return result
