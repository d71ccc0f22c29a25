"""Find out what broke in a step whose value, gradient or update is not finite.

Input: the parameters before the step, its key and its arguments. The step is repeated outside of the compiled loop, and the
objective reports the log-probability of each site in program order.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from ....ppl.densities import Eliminated, lost_digits
from ..._abstract_objective import AbstractObjective
from ..._arguments import Arguments
from ._loop import Config
from ._optimizer import leaf_names


class Diagnosis(NamedTuple):
    """What broke: the log-probability of a site, a gradient, the update, or the value alone; and what helps."""

    broke: Literal["log_prob", "gradient", "update", "value"]
    site: str | None
    parameters: tuple[str, ...]
    text: str
    remedy: str = ""


# Offered only where numbers ran out, never where data or a support are at fault: steps left out are then a choice of draws.
_NUMERICAL = (
    "Look for a scale or a probability that reaches its boundary, lower the learning rate, or pass on_nonfinite='skip' to leave "
    "such steps out (biased, if their draws are unlike others)."
)
_DATA = (
    "A value that is no number is in the data: remove such rows, or mark the cells as missing, ppl.sample(..., obs=x, "
    "obs_mask=seen). Leaving out the steps that meet it would only hide it."
)
_SUPPORT = (
    "A log_prob of -inf at a finite value means that the value lies outside of the law's support or has probability 0: give the "
    "guide a law within the model's support (e.g. LogNormal or Gamma for positive numbers), or an observation a law that allows "
    "it. Leaving such draws out would be a bias."
)


class NonFiniteError(FloatingPointError):
    """A step of fit was not finite.

    Attributes:
        step: number of the step, from 0.
        seed: number of the run among several seeds, or None.
        broke: "log_prob", "gradient", "update" (the optimiser's) or "value" (every site is finite, the objective is not).
        site: first site in program order whose value or log-probability is not finite, or None.
        parameters: names of the parameters whose gradient or update is not finite.
        fit: the `Fit` up to the last good step.
    """

    def __init__(self, diagnosis: Diagnosis, step: int, seed: int | None, fit: object):
        where = f"step {step}" if seed is None else f"step {step} of seed {seed}"
        super().__init__(
            f"Non-finite {where}: {diagnosis.text} The parameters before this step are in this error's `fit`. "
            f"{diagnosis.remedy or _NUMERICAL}"
        )
        self.step, self.seed, self.fit = step, seed, fit
        self.broke, self.site, self.parameters = diagnosis[:3]


def diagnose(
    config: Config, params: PyTree, state: PyTree, key: jax.Array, args: tuple
) -> Diagnosis:
    """Repeat one step and name the first thing in it that is not finite."""
    split = Arguments(args)  # non-array arguments stay outside of jit
    arrays = split.arrays(args)
    step = lambda params, state, key, arrays: config.objective.step(
        params, state, key, *split.join(arrays)
    )
    value, grads, _ = jax.jit(step)(params, state, key, arrays)
    bad_grads = _bad_names(config, params, grads)
    found = _first_bad_site(config.objective, params, key, args)
    if isinstance(found, tuple):
        site, text, remedy = found
        return Diagnosis("log_prob", site, bad_grads, text, remedy)
    note = f" ({found})" if found else ""
    if not np.isfinite(value):
        text = f"the objective is {float(value)} though the log_prob of every site is finite{note}."
        return Diagnosis("value", None, bad_grads, text)
    if bad_grads:
        text = (
            f"the value {float(value):.6g} is finite, but the gradient broke for parameter {_quote(bad_grads)}; the log_prob of "
            f"every site is finite{note}."
        )
        return Diagnosis("gradient", None, bad_grads, text)
    text = f"value {float(value):.6g} and gradient are finite, but the optimiser's update is not{note}."
    return Diagnosis("update", None, (), text)


def _bad_names(config: Config, params: PyTree, grads: PyTree) -> tuple[str, ...]:
    leaves = zip(
        leaf_names(params), jax.tree.leaves(grads), config.optimizer.is_trained, strict=True
    )
    bad = [name for name, leaf, t in leaves if t and not np.all(np.isfinite(_host(leaf)))]
    return tuple(dict.fromkeys(bad))


def _first_bad_site(objective: AbstractObjective, params: PyTree, key: jax.Array, args: tuple):
    """(site, description, remedy) of the first bad site, None if all are finite, or a string saying why that is not known."""
    try:
        report = _site_report(objective, params, key, args)
    except Exception as err:  # the user needs the step's error, not the report's
        return f"the sites could not be reported: {type(err).__name__}: {err}"
    for name, record in report:
        log_prob, value = _host(record["log_prob"]), _host(record["value"])
        is_bad_value = value.dtype.kind in "fc" and not np.all(np.isfinite(value))
        if is_bad_value or not np.all(np.isfinite(log_prob)):
            lost = "" if is_bad_value else _lost_digits(objective, params, dict(report), args)
            return (
                name,
                f"site '{name}' broke first: log_prob {_range(log_prob)}, value {_range(value)}.{lost}",
                _remedy(name, log_prob, is_bad_value),
            )
    return None


def _lost_digits(objective: object, params: PyTree, report: dict[str, dict], args: tuple) -> str:
    """What the model has to say of NaN in it where sites of it are integrated out."""
    if not isinstance(model := getattr(objective, "model", None), Eliminated):
        return ""
    program = model.bind(params) if params else model
    left = jax.eval_shape(lambda: program.simulate(jax.random.key(0), *args).choices)
    choices = {name: report[f"model.{name}"]["value"] for name in left if f"model.{name}" in report}
    return lost_digits(program, choices, args, {})


def _remedy(name: str, log_prob: np.ndarray, is_bad_value: bool) -> str:
    if is_bad_value:
        # The guide's sites come first: a value that is bad in the model only was not drawn.
        return _NUMERICAL if name.startswith("guide.") else _DATA
    return _SUPPORT if np.isneginf(log_prob).any() else _NUMERICAL


def _site_report(
    objective: AbstractObjective, params: PyTree, key: jax.Array, args: tuple
) -> list[tuple[str, dict]]:
    # Compiled like the step itself; eagerly, NumPyro would warn about every value outside its support. A list, since jit
    # sorts a dict and the first bad site is a matter of program order.
    names: list[str] = []
    split = Arguments(args)

    def report(params, key, arrays):
        sites = objective.site_report(params, key, *split.join(arrays))
        names[:] = sites
        return list(sites.values())

    records = jax.jit(report)(params, key, split.arrays(args))
    return list(zip(names, records, strict=True))


def _host(leaf: PyTree) -> np.ndarray:
    array = np.asarray(leaf)
    # bfloat16 and its kin are no NumPy floats: isfinite and the range need one.
    return array if array.dtype.kind in "bifuc" else array.astype(np.float32)


def _range(array: np.ndarray) -> str:
    """Shape, finite range and number of non-finite entries, e.g. `in [-3.1, 0.2], 2 of 10 non-finite (nan)`."""
    finite = array[np.isfinite(array)]
    odd = array[~np.isfinite(array)]
    text = f"in [{finite.min():.6g}, {finite.max():.6g}]" if finite.size else "nowhere finite"
    if odd.size:
        kinds = ", ".join(sorted({str(x) for x in odd.ravel()[:1000]}))
        text += f", {odd.size} of {array.size} non-finite ({kinds})"
    return text


def _quote(names: tuple[str, ...]) -> str:
    return ", ".join(f"'{name}'" for name in names)
