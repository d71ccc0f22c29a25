"""fit: maximise or minimise an objective over its parameters by stochastic gradients.

The four steps of a call, a file each: `choose` what was not said, `prepare` the first step, `train`, `judge` what came out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from ...ppl._types import ParamMap
from ...ppl.checks import CheckJumps
from .._meshes import over_auto_axes
from ._choose import choose
from ._fit_result import Fit
from ._judge import judge
from ._options import FitOptions, check, data_by_name
from ._prepare import prepare
from ._run import fit_of, train
from .data import ProcessLocal
from .training import FitInfo, Shardings


@data_by_name
@over_auto_axes
def fit(
    objective: Any,
    optimizer: Any = None,
    args: tuple | Mapping[str, PyTree] | Iterable[PyTree] | ProcessLocal | None = None,
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
    shardings: Shardings | None = None,
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
            be read again starts anew at its end. Over several processes all pass the same, or `fitting.ProcessLocal`.
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
        checkpoint: path of a file, or, with `shardings`, of a folder that Orbax writes while the run goes on. If it exists, the
            run goes on from it; it is written every `checkpoint_every` steps, at the end and on Ctrl-C. It holds parameters,
            optimiser, objective state, step, key, history and callbacks' states. An iterable is read again from its start up to
            the step reached, or goes on from its own state, if it has one: methods `get_state` and `set_state` of its iterator
            (Grain), or `state_dict` and `load_state_dict` of the loader (PyTorch's stateful one). The arguments' values are
            compared with those before; an iterable's are not. Of several processes the first writes the file and all read it: the
            path lies on a file system that they share. A write that fails is warned of.
        checkpoint_every: steps between checkpoints.
        resume: what may go on from the checkpoint. "same": the run that wrote it, of more steps perhaps; other programs,
            objectives, optimisers, starts, keys and data are refused by name (the cosine of the default optimiser is one over the
            new number of steps). "changed": any whose parameters and states have the same names and shapes; step number,
            optimiser's state and history go on.
        mesh: devices to split the data over, all of its axes together: leading axes of the minibatch (with `subsample` or an
            iterable) or of every argument along a plate are split, parameters are replicated. An axis named "seeds" splits the
            runs of `num_seeds` instead. Gives the numbers of one device up to rounding. Axes serve as Auto ones, also where they
            are Explicit, as `jax.make_mesh` makes them.
        shardings: dict from fnmatch patterns on names of parameters ("net") or of their leaves ("net.layers.0.weight") to the
            axes of `mesh` over which they are split: a `jax.P` with one entry for each dimension, or the name of an axis, which
            splits the longest dimension that its devices divide. The optimiser's state, averages and gradients follow. What no
            pattern matches is held by every device. Parameters are made in their parts: no device needs room for all.
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
    options = FitOptions(
        objective=objective,
        optimizer=optimizer,
        args=args.args if isinstance(args, ProcessLocal) else () if args is None else args,
        num_steps=num_steps,
        key=key,
        subsample=subsample,
        plate_sizes=plate_sizes,
        params=params,
        num_seeds=num_seeds,
        average=average,
        on_nonfinite=on_nonfinite,
        k_hat=k_hat,
        check_jumps=check_jumps,
        unobserved=unobserved,
        callbacks=callbacks,
        callback_every=callback_every,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        mesh=mesh,
        shardings=shardings,
        prefetch=prefetch,
        progress=progress,
        spread_plate=args.plate if isinstance(args, ProcessLocal) else None,
    )
    check(options)
    chosen = choose(options)
    run = prepare(options, chosen)
    if run.is_over:  # a callback had ended it before the checkpoint was written
        return fit_of(run, run.carry, run.values, run.step, "callback")
    return judge(options, chosen, train(run))
