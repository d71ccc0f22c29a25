"""What a law can be where that is computed: values of probability 0 and ends of its support, known at run time only.

`distributions/_inclusion.py` proves from the types of two laws that one cannot reach what the other can be; whether
Categorical(probs) or Uniform(0, b) can is a matter of numbers. They are kept beside a site's log-prob, as far as they limit it:

    low, high            the ends of an interval, entry by entry                                  [*batch, *event]
    categories 0 <k>     which of k values have probability 0                                     [*batch, *event, k]
    <law> <i> <k>        which other probabilities of a law are 0 (a Poisson rate, a gate, ...)   [*batch, *event, k]
    support of <law>     that its support has no name, or is not known                            [*batch, *event]

Rounding moves an end: what is left out by less than `TOLERANCE` of the interval is not seen, here or in any result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree

from .._compat import is_concrete
from .._types import Choices
from ..distributions import Extent, base_of, probabilities, support_of_law

Array = jax.Array
Reach = dict[str, Any]
TOLERANCE = 1e-5
_LIMIT = "\0"  # in no name that a person writes


def reach_of(fn: dist.Distribution) -> Reach:
    """The limits of a law's values; none for point masses, and for laws that can be all that their type allows."""
    law, shape = base_of(fn), tuple(fn.batch_shape) + tuple(fn.event_shape)
    if isinstance(law, dist.Delta | dist.Unit):
        return {}
    # Numbers that are known stay known while something around them is traced.
    known = jax.ensure_compile_time_eval() if is_concrete(law) else contextlib.nullcontext()
    with known:
        limits = [*_nulls(law, shape[: len(shape) - len(law.event_shape)]), *_ends(law, shape)]
    return {
        name: x for name, x in limits if not (is_concrete(x) and _is_nothing(name, np.asarray(x)))
    }


def reach_known(extent: Extent) -> Reach:
    """What the static part of a site says of it, where its law is not at hand."""
    low = {} if extent.low is None else {"low": np.asarray(extent.low.least)}
    return low if extent.high is None else low | {"high": np.asarray(extent.high.greatest)}


def unlimited(name: str, shape: tuple[int, ...]) -> Array:
    """A limit of this name (`as_choices`) that limits nothing."""
    return jnp.full(shape, _NOTHING.get(name.rpartition(_LIMIT)[2], False))


def completed(reach: Reach, other: Mapping[str, PyTree]) -> Reach:
    """`reach` with the entries of another one (arrays or their shapes), which limit nothing where it has none."""
    return {name: unlimited(name, x.shape) for name, x in other.items()} | reach


def as_choices(reach: Mapping[str, Reach]) -> dict[str, PyTree]:
    """The limits of several sites, each under a name of its own, so that they can go wherever values of sites go."""
    return {
        f"{site}{_LIMIT}{name}": x for site, limits in reach.items() for name, x in limits.items()
    }


def is_limit(name: str) -> bool:
    """Whether `as_choices` made this name."""
    return _LIMIT in name


def limits_of(site: str, names: Iterable[str]) -> dict[str, str]:
    """The limits of a site: what they limit -> name among choices."""
    return {n.removeprefix(site + _LIMIT): n for n in names if n.startswith(site + _LIMIT)}


def sites_of(choices: Choices) -> tuple[str, ...]:
    """The sites with limits among choices."""
    return tuple(sorted({n.partition(_LIMIT)[0] for n in choices if is_limit(n)}))


def penalty_of_reach(name: str, model: Reach, guide: Reach, ndim: int) -> PyTree:
    """None where a guide's law covers the model's, else an array over the leading `ndim` axes that is zero or NaN.

    Raises:
        ValueError: it certainly does not.
    """
    missed = uncovered(model, guide, ndim)
    if missed is None or is_concrete(missed) and not np.any(missed):
        return None
    if is_concrete(missed):
        raise ValueError(
            f"Site '{name}': the guide's law gives probability 0 to a value, or ends before one, that the model's law can take, "
            "or its support is not known. Here the guide must reach all that the model can be: what it cannot draw would be "
            "missing from evidence and posterior without a trace. Give such values a little probability, also where the data "
            "rule them out, e.g. by logits, or by a mixture with the prior; or rule them out in the model's own law."
        )
    return jnp.where(missed, jnp.nan, 0.0)


def uncovered(model: Reach, guide: Reach, ndim: int) -> ArrayLike | None:
    """Which elements the model's law can reach and the guide's cannot, over `ndim` leading axes; None: the guide reaches all."""
    known = jax.ensure_compile_time_eval() if is_concrete((model, guide)) else None
    with known or contextlib.nullcontext():
        missed: Any = None
        for name, limit in guide.items():
            here = _missed(name, limit, model, guide)
            here = here.any(tuple(range(ndim, here.ndim)))
            missed = here if missed is None else missed | here
        return np.asarray(missed) if known and missed is not None else missed


def _missed(name: str, limit: Array, model: Reach, guide: Reach) -> Array:
    other = model.get(name)
    if name not in _NOTHING:
        if other is None or other.shape != limit.shape:
            return jnp.asarray(limit)
        return jnp.asarray(limit & ~other)
    other = _NOTHING[name] if other is None else other
    width = guide.get("high", np.inf) - guide.get("low", -np.inf)
    slack = jnp.where(jnp.isfinite(width), TOLERANCE * width, 0.0) + 1e-6 * jnp.abs(limit)
    gap = limit - other if name == "low" else other - limit
    # An end at infinity leaves nothing out; there the difference may be no number.
    return jnp.where(jnp.isinf(limit), False, gap > slack)


_NOTHING = {"low": -np.inf, "high": np.inf}


def _is_nothing(name: str, limit: np.ndarray) -> bool:
    return bool(np.all(limit == _NOTHING.get(name, False)))


def _ends(law: dist.Distribution, shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    support = support_of_law(law)
    if support.unknown or support.core is None and support.ends is None:
        yield f"support of {type(law).__name__}", jnp.ones(shape, bool)
        return
    bounds = [getattr(support.core, f"{end}_bound", None) for end in ("lower", "upper")]
    low, high = support.ends or [
        _NOTHING[n] if b is None else b for n, b in zip(_NOTHING, bounds, strict=True)
    ]
    if not support.is_ordered:
        low, high = jnp.minimum(low, high), jnp.maximum(low, high)
    for name, end in (("low", low), ("high", high)):
        if not is_concrete(end) or np.any(np.isfinite(end)):
            if is_concrete(end):  # from NumPy nothing is compiled
                end = np.asarray(end, jnp.result_type(float))
                yield name, jax.device_put(np.broadcast_to(end, shape))
            else:
                yield name, jnp.broadcast_to(jnp.asarray(end, float), shape)


def _nulls(law: dist.Distribution, elements: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    """Which probabilities are 0: of values where a law lists them, else whatever parameters say so."""
    name = "categories" if isinstance(law, _LISTED) else type(law).__name__
    found = [p == 0 for p in probabilities(law, elements)]
    for parameter, constraint in law.arg_constraints.items():
        if "logits" not in parameter or constraint not in _UNBOUNDED:
            continue
        logits = jnp.asarray(getattr(law, parameter))
        if constraint is dist.constraints.real:  # the odds of the second of two values
            found.append(jnp.stack([jnp.isposinf(logits), jnp.isneginf(logits)], -1))
        else:
            found.append(jnp.isneginf(logits))
    for i, null in enumerate(found):
        yield f"{name} {i} {null.shape[-1]}", jnp.broadcast_to(null, elements + null.shape[-1:])


_LISTED = (
    dist.BernoulliProbs | dist.BernoulliLogits | dist.CategoricalProbs | dist.CategoricalLogits
)
_UNBOUNDED = (dist.constraints.real, dist.constraints.real_vector)
