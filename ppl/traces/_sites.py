"""Sites: what is known of a sample statement without running it, and its log-density."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree
from numpyro.infer.autoguide import AutoGuide

from .._checks import log_number
from .._compat import checked_again, handler_stack, is_concrete, unchecked
from .._data import Masked, as_value
from .._foreign import kind_of
from .._types import Message
from ..distributions import (
    NOWHERE_KNOWN,
    Extent,
    base_of,
    is_boolean,
    is_hidden,
    is_masked,
    log_prob_at,
    support_known,
)

Array = jax.Array
# Laws on the real line whose log-density is NaN or -inf at every value that is no real number.
LOUD = (dist.Normal, dist.Laplace, dist.Cauchy, dist.StudentT, dist.Logistic)
PROPOSED = "lapilli_proposed"  # marks the prior of a drawn value (`_inline_guide`)


@dataclasses.dataclass(frozen=True)
class Region:
    """The body of a control-flow statement: its kind, the name of the axis it adds (None for cond), and its size.

    Of a cond the size is the number of branches, of two, in which the site stands.
    """

    kind: str
    axis: str | None
    size: int


@dataclasses.dataclass(frozen=True)
class SiteInfo:
    """What is known of a site without running it.

    Attributes:
        name: the site's name.
        kind: "latent", "observed", "factor" or "deterministic".
        dims: one name per batch axis of the site, outermost first (None where no plate names it).
        batch_shape: size of each batch axis.
        event_shape: shape of one event.
        distribution: the distribution's class name.
        strategy: the strategy asked for at the site, if any.
        is_auxiliary: a guide site that the model does not have (NumPyro's `infer={"is_auxiliary": True}`).
        scale: factor on its log-probs (subsampling); None when it is not one number.
        regions: the regions around the site, outermost first.
        is_imputed: the missing cells of a statement with `obs_mask`.
        is_masked: its density leaves cells out.
        support: what is known of its law's support.
        subsampled: names of the plates around it that draw their rows.
        alters_law: of an observation or a factor, whether it gives the program a density that its draws do not have. Not so under
            mask(False), as in an intervention, and in NumPyro's autoguides, whose factors belong to the law of their draws.
    """

    name: str
    kind: str
    dims: tuple[str | None, ...]
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    distribution: str
    strategy: str = ""
    is_auxiliary: bool = False
    scale: float | None = 1.0
    regions: tuple[Region, ...] = ()
    is_imputed: bool = False
    is_masked: bool = False
    support: Extent = NOWHERE_KNOWN
    subsampled: tuple[str, ...] = ()
    alters_law: bool = True


def describe(msg: Message, plates: Mapping[str, int] | None = None) -> SiteInfo:
    """The static description of a sample statement; checks an observation's shape against the site's.

    `plates` are the full sizes of the plates met.
    """
    fn, name = msg["fn"], msg["name"]
    if isinstance(base_of(fn), dist.Unit):
        kind = "factor"
    else:
        kind = "observed" if msg["is_observed"] else "latent"
    check_shape(msg)
    check_kind(msg)
    _check_rows(msg)
    dims: list[str | None] = [None] * len(fn.batch_shape)
    for frame in msg["cond_indep_stack"]:
        if -frame.dim <= len(dims):
            dims[frame.dim] = frame.name
    scale = 1.0 if msg["scale"] is None else msg["scale"]
    scale = float(scale) if isinstance(scale, int | float) else None
    auxiliary = bool(msg["infer"].get("is_auxiliary")) and kind == "latent"
    strategy = msg["infer"].get("strategy") or ""
    strategy = strategy if isinstance(strategy, str) else strategy.name
    support = support_known(fn) if kind == "latent" or PROPOSED in msg["infer"] else NOWHERE_KNOWN
    rows = {frame.name: frame.size for frame in msg["cond_indep_stack"]}
    subsampled = tuple(p for p, size in rows.items() if (plates or {}).get(p, size) != size)
    return SiteInfo(
        name, kind, tuple(dims), tuple(fn.batch_shape), tuple(fn.event_shape), type(base_of(fn)).__name__,
        strategy, auxiliary, scale, is_imputed=bool(msg["infer"].get("imputed")), is_masked=is_masked(fn),
        support=support, subsampled=subsampled, alters_law=not (is_hidden(fn) or kind == "factor" and _is_in_autoguide()),
    )  # fmt: skip


def describe_deterministic(msg: Message) -> SiteInfo:
    """A deterministic value has batch axes where its leading axes have the sizes of the plates around it."""
    shape, frames = jnp.shape(msg["value"]), msg["cond_indep_stack"]
    depth = max((-f.dim for f in frames), default=0)
    batch: list[str | None] = [None] * depth
    for frame in frames:
        batch[frame.dim] = frame.name
    sizes = {frame.name: frame.size for frame in frames}
    fits = depth <= len(shape) and all(
        name is None or sizes[name] == n for name, n in zip(batch, shape, strict=False)
    )
    batch, depth = (batch, depth) if fits else ([], 0)
    return SiteInfo(msg["name"], "deterministic", tuple(batch), shape[:depth], shape[depth:], "")


def widened(msg: Message) -> dist.Distribution:
    """The law of an observation that holds several values of it along leading axes, outside of plates: independent ones.

    So NumPyro counts them, each once. Where a plate stands around, its axes say what is observed, and nothing is added to them;
    nor to a latent site that `ppl.condition` has given its value.
    """
    fn, value = msg["fn"], msg["value"]
    if isinstance(base_of(fn), dist.Unit) or msg["cond_indep_stack"] or msg.get("is_whole"):
        return fn
    own, got = tuple(fn.shape()), jnp.shape(value)
    more = len(got) - len(own)
    if more <= 0 or got[more:] != own:
        return fn
    return fn.expand((*got[:more], *fn.batch_shape))


def check_kind(msg: Message) -> None:
    """Refuse truth values observed under a law of numbers, or in place of a log-weight: they would be taken for 0 and 1.

    Raises:
        TypeError: with site and law.
    """
    fn, value = msg["fn"], msg["value"]
    if isinstance(unit := base_of(fn), dist.Unit):
        log_number(f"Site '{msg['name']}'", unit.log_factor)
    if (
        msg["is_observed"]
        and jnp.issubdtype(jnp.result_type(value), jnp.bool_)
        and not fn.support.is_discrete
    ):
        raise TypeError(
            f"Site '{msg['name']}': the observation holds True and False, and {type(base_of(fn)).__name__} is a law of numbers. "
            "Observe it under a law of truth values, e.g. dist.Bernoulli, or write the numbers that they stand for, "
            "y.astype(float)."
        )


def _check_rows(msg: Message) -> None:
    """Refuse a log-weight within plates with an axis that none of them owns: the axis of a row may have come to lie across.

    A number per row beside a column of them, w[:, None] - w, has each row as often as there are rows, and would be added so.
    """
    unit, frames = base_of(msg["fn"]), msg["cond_indep_stack"]
    if not isinstance(unit, dist.Unit) or not frames:
        return
    shape, owned = jnp.shape(unit.log_factor), {frame.dim for frame in frames}
    free = [d for d in range(-len(shape), 0) if d not in owned and shape[d] != 1]
    if free:
        plates = ", ".join(f"'{f.name}' with {f.size} rows at axis {f.dim}" for f in frames)
        raise ValueError(
            f"Site '{msg['name']}': the log-weight has shape {shape}, and axis {free[0]} is of none of its plates ({plates}), "
            "so that its entries would be added up for each row. Give one number per row; what belongs to one row is added up "
            f"before: log_weight.sum({free[0]}, keepdims=True)."
        )


def check_shape(msg: Message) -> None:
    """Refuse a value whose shape is not the site's own: it would broadcast and count rows several times."""
    fn, value = msg["fn"], msg["value"]
    if isinstance(base_of(fn), dist.Unit):
        return
    is_plain = isinstance(value, np.ndarray | np.generic | int)
    found = as_value(value, f"Site '{msg['name']}': the value") if is_plain else value
    if isinstance(found, Masked):
        found.refuse()
    if not _holds_numbers(value):
        kind = f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(
            f"Site '{msg['name']}': the value is a {kind}, not an array of numbers. Pass jnp.asarray(...) of it; "
            "text needs a code first, e.g. np.unique(text, return_inverse=True)[1], and dates are counted, e.g. in days."
        )
    if jnp.iscomplexobj(value):
        raise TypeError(
            f"Site '{msg['name']}': the value is complex, and no law has complex values: its imaginary part would be lost or "
            "enter the density. Observe its parts, e.g. jnp.stack([x.real, x.imag], -1)."
        )
    if msg.get("done") and not msg.get(
        "_forced"
    ):  # NumPyro's mark of a site that it has enumerated
        raise ValueError(
            f"Site '{msg['name']}': numpyro.contrib.funsor's enum gives it all its values at once, as other sums than ours need "
            "them. Take the handler off; sum a model's site by ppl.eliminate, a guide's by strategies={...: 'enum'}."
        )
    names = [frame.name for frame in msg["cond_indep_stack"]]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"Site '{msg['name']}': two plates around it are named '{twice}', one inside of the other, and an axis of rows has "
            "one name. Rename one of them, or leave the inner one out if its rows are the same."
        )
    expected, got = tuple(fn.batch_shape) + tuple(fn.event_shape), jnp.shape(value)
    if got != expected:
        plates = {f.name: f.size for f in msg["cond_indep_stack"]}
        what = "observation" if msg["is_observed"] else "value"
        raise ValueError(
            f"Site '{msg['name']}': the {what} has shape {got} but the site has batch shape "
            f"{tuple(fn.batch_shape)} and event shape {tuple(fn.event_shape)} (plates {plates}). Nothing "
            f"is broadcast silently: give it shape {expected}, declare the missing plate, or mark event "
            "axes with .to_event(n)."
        )


def _holds_numbers(value: ArrayLike) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind not in "OUSMm"
    return isinstance(value, jax.Array | int | float | complex)


def _is_in_autoguide() -> bool:
    """Whether a statement is one of NumPyro's autoguides."""
    frame = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != AutoGuide.__module__:
        frame = frame.f_back
    return frame is not None


def log_prob_of(msg: Message) -> Array:
    """Log-density of a sample statement per batch element in nats, scaled and masked, shape `fn.batch_shape`."""
    fn, value, intermediates = checked_again(msg["fn"]), msg["value"], msg.get("intermediates")
    if not isinstance(value, jax.Array) and not is_concrete(fn):
        value = jnp.asarray(
            value
        )  # NumPyro's supports compare other numbers with traced bounds by NumPy
    if not msg["is_observed"] or type(base_of(fn)) in LOUD:
        fn = without_support_check(fn, value)
    if "_log_prob" in msg and not is_masked(fn):
        # The engine's own number, so that the analysis can tell a site's density at its own draw.
        elements = msg["_log_prob"]
        log_prob = elements.sum(tuple(range(len(fn.batch_shape), elements.ndim)))
    else:
        try:
            log_prob = log_prob_at(fn, value, intermediates)
        except (ValueError, TypeError) as err:
            raise kind_of(err)(
                f"Site '{msg['name']}': {type(fn).__name__}.log_prob failed ({err}). Correct the value, the "
                "law's arguments, or its log_prob."
            ) from err
    _refuse_half(msg["name"], log_prob)
    return log_prob if msg["scale"] is None else msg["scale"] * log_prob


def _refuse_half(name: str, log_prob: Array) -> None:
    """Refuse log-densities that lose what a sum over rows is made of."""
    dtype = jnp.result_type(log_prob)
    if dtype.itemsize < 4 and jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"Site '{name}': its log-density is computed in {dtype}, which keeps two or three digits, and a sum over rows keeps "
            "fewer. Let a network compute in half precision, and cast what enters the law: x.astype(jnp.float32)."
        )


def without_support_check(fn: dist.Distribution, value: PyTree) -> dist.Distribution:
    """`fn`, whose density takes `value` as it is where NumPyro's check of the support says nothing more.

    Relaxed values, floating-point numbers for Bernoulli's, whose log-density is linear in them (NumPyro would return -inf between
    0 and 1); and laws in `LOUD` under an objective: nothing that is finite lies outside of their support, and the
    check would cost several comparisons an element, in all states.
    """
    is_relaxed = is_boolean(fn.support) and jnp.issubdtype(jnp.result_type(value), jnp.floating)
    if not is_relaxed and not (type(base_of(fn)) in LOUD and _is_under_objective()):
        return fn
    return unchecked(fn)


def _is_under_objective() -> bool:
    return any(getattr(h, "has_gradients", False) for h in handler_stack())


def scales_of(msg: Message, plates: Mapping[str, int]) -> tuple[float, float | None]:
    """What a statement's log-prob is scaled by: for subsampling, and otherwise (None: by nothing)."""
    rows = float(msg.get("rows_scale", 1.0))  # `ppl.rescale_plates`
    for frame in msg["cond_indep_stack"]:
        rows *= plates[frame.name] / frame.size
    if msg["scale"] is None or rows == 0:
        return rows, None
    is_known = isinstance(msg["scale"], int | float)
    return rows, None if is_known and math.isclose(msg["scale"], rows) else msg["scale"] / rows
