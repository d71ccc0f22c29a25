"""The arguments of `fit` as one value, and what is refused of them before anything runs, all of a kind at once."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree
from numpyro.infer.autoguide import AutoGuide

from ...ppl._calls import in_words
from ...ppl._checks import is_integer
from ...ppl._compat import is_concrete
from ...ppl._types import ParamMap
from ...ppl.checks import CheckJumps
from .._abstract_objective import AbstractObjective
from .._game import Game
from .._host_keys import default_key
from .._processes import spans_processes
from .data import is_iterable_of_batches
from .training import FROZEN, EarlyStopping, FitInfo, Shardings, check_seeds, is_optimizer


class FitOptions(NamedTuple):
    """The arguments of one call of `fit`, which says what they are."""

    objective: Any
    optimizer: Any
    args: tuple | Mapping[str, PyTree] | Iterable[PyTree]
    num_steps: int | None
    key: jax.Array | None
    subsample: Mapping[str, int] | None
    plate_sizes: Mapping[str, float] | None
    params: ParamMap | None
    num_seeds: int | None
    average: float | Literal["polyak", "stationary"] | None
    on_nonfinite: Literal["raise", "skip"]
    k_hat: Literal["warn", "skip"]
    check_jumps: CheckJumps | None
    unobserved: Literal["raise", "allow"]
    callbacks: Sequence[Callable[[FitInfo], object]]
    callback_every: int
    checkpoint: str | os.PathLike | None
    checkpoint_every: int
    resume: Literal["same", "changed"]
    mesh: Mesh | None
    shardings: Shardings | None
    prefetch: int
    progress: bool
    spread_plate: str | None  # of which each process has its own rows

    @property
    def is_model(self) -> bool:
        """Whether a model alone is given, for which guide and objective are chosen."""
        return callable(self.objective) and not isinstance(self.objective, AbstractObjective)

    @property
    def is_shared(self) -> bool:
        """Whether several processes are in this call."""
        return spans_processes("fit", self.mesh)


def data_by_name[**P, R](fn: Callable[P, R]) -> Callable[P, R]:
    """The function, which says where data go if they are given one after the other, as NumPyro's `run` takes them."""

    @functools.wraps(fn)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > 3:
            raise TypeError(
                f"fit: {len(args)} arguments by position; there are objective, optimizer and args, and the data are one of them: "
                "fit(model, args=(x, y)), or fit(inference.elbo(model, guide), optimizer, args=(x, y)). Pass the others by name."
            )
        return fn(*args, **kwargs)

    return called


def refuse_traced(*inputs: PyTree) -> None:
    """Refuse a call inside of a transformation of JAX."""
    # Under jit whatever is computed is traced, arguments or not.
    if not is_concrete((inputs, default_key())):
        raise TypeError(
            "fit: it is called inside of jit, vmap, grad or another transformation of JAX, where no number is known, but it "
            "reads values, prints and decides when to stop. Call it outside: its steps are compiled anyway, and num_seeds= "
            "runs several at once. A loop of your own can compile objective.value_and_grad(params, key, *args)."
        )


def check(options: FitOptions) -> None:
    """Refuse what can be seen to be wrong of the arguments alone."""
    _check_types(options)
    is_tree = isinstance(options.args, tuple | Mapping)
    refuse_traced(options.args if is_tree else None, options.params, options.key)
    _check_values(options)
    check_seeds(options.mesh, options.num_seeds)
    if options.shardings is not None and options.mesh is None:
        raise ValueError(
            f"Argument 'shardings' is {dict(options.shardings)}, and there are no devices to split over. Pass mesh= as well."
        )
    if (check_jumps := options.check_jumps) is not None and not options.is_model:
        raise ValueError(
            f"fit: check_jumps={check_jumps!r} is for a model alone, and an objective is given. Pass it to the objective, e.g. "
            f"inference.elbo(model, guide, check_jumps={check_jumps!r})."
        )
    _check_game(options)
    if options.num_steps == 0 and options.params is None:
        raise ValueError(
            "fit: num_steps=0 takes no step, and the result would be the initial parameters. Ask for steps; a fit of parameters "
            "that you have takes params=, e.g. objective.init(key, *args)."
        )


def _check_types(options: FitOptions) -> None:
    objective, optimizer, args = options.objective, options.optimizer, options.args
    callbacks, average = options.callbacks, options.average
    is_model, is_spread = options.is_model, options.spread_plate is not None
    problems = []
    if isinstance(objective, AutoGuide):
        problems.append(
            f"'objective' is a guide, {type(objective).__name__}, and nothing says what to fit it to. Pass the model alone, or "
            "inference.elbo(model, guide)"
        )
    owner = getattr(objective, "__self__", None)  # of a method: an objective's is no model
    if (
        not is_model
        and not isinstance(objective, AbstractObjective)
        or (isinstance(owner, AbstractObjective))
    ):
        problems.append(
            "'objective' must be an objective, e.g. inference.elbo(model, guide), or a class of your own made from "
            f"inference.AbstractObjective, or a model; got {type(objective).__name__}"
        )
    groups = optimizer.values() if isinstance(optimizer, Mapping) else [optimizer]
    wrong = [
        g for g in groups if not (is_optimizer(g) or isinstance(optimizer, Mapping) and g == FROZEN)
    ]
    if optimizer is not None and (wrong or not groups):
        problems.append(
            "'optimizer' must be an optax transformation such as optax.adam(1e-3), or a dict from patterns to transformations or "
            f"'frozen'; got {in_words(wrong[0])}{' of numpyro.optim' if hasattr(wrong[0], 'get_params') else ''}"
            + (", and 'args' is one, as if the two were swapped" if is_optimizer(args) else "")
            if wrong
            else "'optimizer' is an empty dict; map patterns to transformations"
        )
    if isinstance(args, str) or hasattr(args, "__array__") or not isinstance(args, Iterable):
        problems.append(
            "'args' must hold the program's arguments, a tuple such as (x,) or a dict such as {'x': x}, or be an iterable of "
            f"such; got {type(args).__name__}"
        )
    elif is_model and (is_iterable_of_batches(args) or is_spread):
        kind = "rows of each process" if is_spread else "an iterable of batches"
        problems.append(
            f"'objective' is a model, and 'args' is a {type(args).__name__}, {kind}: guide and objective are "
            "chosen for data themselves. Pass them as a tuple, e.g. (x,) with subsample={plate: size}, or write the guide and "
            "pass inference.elbo(model, guide)"
        )
    if (
        callable(callbacks)
        or not isinstance(callbacks, Iterable)
        or not all(map(callable, callbacks))
    ):
        problems.append(
            f"'callbacks' must be a sequence of callables, e.g. [EarlyStopping(500)]; got {callbacks!r}"
        )
    if not (average in (None, "polyak", "stationary") or isinstance(average, float)):
        problems.append(
            f"'average' must be None, 'polyak', 'stationary' or a decay such as 0.999; got {average!r}"
        )
    if problems:
        raise TypeError("fit: argument " + ";\nargument ".join(problems) + ".")


def _check_game(options: FitOptions) -> None:
    """Refuse of a game what looks at one value that rises or settles: it holds those of the players in turn."""
    if not isinstance(options.objective, Game):
        return
    is_stopped = any(isinstance(c, EarlyStopping) for c in options.callbacks)
    asked = ["num_steps=None"] if options.num_steps is None else []
    asked += ["average='stationary'"] if options.average == "stationary" else []
    asked += ["EarlyStopping"] if is_stopped else []
    if asked:
        raise ValueError(
            f"fit: {', '.join(asked)} ends a run where its value has settled, and a game has no such value: each player's moves "
            "with the others. Give num_steps, and average='polyak' or a decay; fitting.KeepBest has a loss of its own."
        )


_WORDS = {
    "on_nonfinite": ("raise", "skip"),
    "k_hat": ("warn", "skip"),
    "unobserved": ("raise", "allow"),
    "resume": ("same", "changed"),
}


def _check_values(options: FitOptions) -> None:
    num_steps, num_seeds = options.num_steps, options.num_seeds
    average, prefetch = options.average, options.prefetch
    words = {name: getattr(options, name) for name in _WORDS}
    problems = []
    counts = {name: getattr(options, name) for name in ("callback_every", "checkpoint_every")}
    counts |= {} if num_seeds is None else {"num_seeds": num_seeds}
    if not is_integer(prefetch) or prefetch < 0:
        problems.append(f"'prefetch' must be an integer of at least 0; got {prefetch!r}")
    problems += [
        f"'{name}' must be an integer of at least 1; got {count!r}"
        for name, count in counts.items()
        if not is_integer(count) or count < 1
    ]
    if num_steps is not None and (not is_integer(num_steps) or num_steps < 0):
        problems.append(f"'num_steps' must be an integer of at least 0; got {num_steps!r}")
    if isinstance(average, float) and not 0 < average < 1:
        problems.append(f"'average' is {average}, but a decay lies strictly between 0 and 1")
    problems += [
        f"'{name}' must be {_WORDS[name][0]!r} or {_WORDS[name][1]!r}; got {word!r}"
        for name, word in words.items()
        if word not in _WORDS[name]
    ]
    if problems:
        raise ValueError("fit: argument " + ";\nargument ".join(problems) + ".")
