"""What a guide must share with its model for log p - log q to be a log-weight.

Terms: p, q the laws of one site in model and guide, at one draw z of the guide.

1. *A law.* A guide is the law that its draws have. An observation or a factor in it changes its density and not its draws.
2. *Scales.* A site counts as often in log q as in log p: subsampled plates and `handlers.scale` act on both sides or on none,
   and a plate that draws its rows is the same plate on both sides, since other rows are other sites.
3. *Masks.* What the guide leaves out of log q the model leaves out of log p. (A prior that is masked and drawn from an unmasked
   law is a flat one, and sound.)
4. *Supports.* Which inclusion is needed depends on what becomes of the weight w = p / q:
   - "inside", supp q in supp p: wherever a logarithm is taken of one weight, or of a mean of K. A draw outside has w = 0, with
     positive probability all K have, and the mean of the logarithm is minus infinity: no number of draws shows it reliably, and
     leaving such draws out is a bias.
   - "covers", supp p in supp q: wherever E[w] is to be the evidence or weighted draws are to stand for the posterior (particles,
     importance weights, upper bounds, cross-entropies from posterior to guide). What q cannot reach is lost without a trace.
   A lower bound holds without "covers" (it bounds the evidence within supp q); an average of weights holds without "inside"
   (weights of zero are sound).
   What is known of supports while tracing proves a violation or nothing (`distributions/_inclusion.py`). Later, densities say
   -inf at a draw that is not inside, and what is not covered is compared law by law, and NaN (`_reach.py`).

Point masses (autoguides, Delta) have no support to compare: their density is that of what they are computed from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import is_concrete
from ..distributions import is_outside
from ._reach import penalty_of_reach, reach_known
from ._sites import SiteInfo
from ._trace import Trace, with_reach

Array = jax.Array
Inclusion = Literal["inside", "covers"]


def check_match(
    model: Trace, guide: Trace, supports: Collection[Inclusion] = ("inside",)
) -> dict[str, PyTree]:
    """Refuse a guide whose density at its draws is not comparable with the model's.

    Args:
        model: a run of the model at the guide's choices.
        guide: the run of the guide.
        supports: the inclusions needed, see above.

    Returns:
        Site -> zeros, or NaN where two scales or masks that are known under jit only differ, or a law lacks a value that it must
        cover; to be added to its log-prob. Element by element: a mask may depend on a draw, whose costs stay apart.

    Raises:
        ValueError: the guide observes, has a factor, scales or subsamples a site in another way, or has a support that
            certainly lacks an inclusion.
    """
    check_is_law(guide)
    shared = [
        n for n, i in model.sites.items()
        if i.kind == "latent" and n in guide.sites and guide.sites[n].kind == "latent" and not guide.sites[n].is_auxiliary
    ]  # fmt: skip
    check_supports(model.sites, guide.sites, shared, supports)
    _check_auxiliary(guide, shared)
    penalties: dict[str, Any] = {}
    for name in shared:
        for compare in (_compare_scales, _compare_masks):
            penalty = compare(name, model, guide)
            if penalty is not None:
                penalties[name] = penalties.get(name, 0.0) + penalty
    for name, penalty in check_reach(model, guide, shared, supports).items():
        penalties[name] = penalties.get(name, 0.0) + penalty
    return penalties


def compared_with_draws(model: Trace, drawn: Sequence[Trace]) -> Trace:
    """A trace at choices that nobody tied to a guide, `program.log_density(q.choices)`, with a comparison of scales.

    Its partners are the draws made before in the same run: those whose values it was given, else those of the same name. What is
    a guide's and what a model's is not known here, so that laws and supports are not compared.

    Raises:
        ValueError: a site is scaled or subsampled in another way than where it was drawn.
    """
    penalties: dict[str, Any] = {}
    for name, value in model.choices.items():
        # The same array object, under whatever name: the value was taken from that draw.
        same = [(t, n) for t in drawn for n, x in t.choices.items() if x is value]
        for guide, other in same or [(t, name) for t in drawn if name in t.choices]:
            penalty = _compare_scales(name, model, guide, other)
            if penalty is not None:
                penalties[name] = penalties.get(name, 0.0) + penalty
    return with_penalties(model, penalties)


def with_penalties(model: Trace, penalties: Mapping[str, PyTree]) -> Trace:
    """The trace with numbers added to the log-probs of some sites; where they share one (a marginal), to that."""
    if not penalties:
        return model
    log_probs = {n: x + penalties.get(n, 0.0) for n, x in model.log_probs.items()}
    rest = sum(jnp.sum(x) for n, x in penalties.items() if n not in log_probs)
    if any(n not in log_probs for n in penalties):
        last = next(reversed(log_probs))
        log_probs[last] = log_probs[last] + rest
    return with_reach(dataclasses.replace(model, log_probs=log_probs), model.reach)


def check_is_law(guide: Trace, role: str = "guide") -> None:
    """Refuse observations and factors in a program that stands for the law of its draws."""
    for name, info in guide.sites.items():
        what = _WEIGHTS.get((info.kind, info.distribution == "Unit"))
        if what is None or not info.alters_law:
            continue
        raise ValueError(
            f"Site '{name}': the {role} has {what}, which changes its density but not its draws, so that log p - log q would be "
            f"no log-weight and bound nothing. Leave the likelihood to the model and hand the data to the {role} as an argument; "
            "fix a value by ppl.intervene, which leaves no density, not by ppl.condition; put a Jacobian into "
            "dist.Delta(value, log_density=...). (Are model and guide swapped? The model comes first. To score a program at the "
            "values of another one's run, pass trace.choices.)"
        )


_WEIGHTS = {
    ("observed", False): "an observed site",
    ("observed", True): "an observed site",
    ("factor", True): "a factor",
}


def check_supports(
    model: Mapping[str, SiteInfo],
    guide: Mapping[str, SiteInfo],
    names: Collection[str],
    needed: Collection[Inclusion],
) -> None:
    """Refuse supports that certainly lack an inclusion."""
    for name in names:
        p, q = model[name], guide[name]
        if p.is_masked or q.is_masked or p.scale == 0.0:
            continue
        laws = f"the guide draws it from {q.distribution}, on {q.support}, and the model's {p.distribution} lives on {p.support}"
        if "inside" in needed and is_outside(q.support, p.support):
            raise ValueError(
                f"Site '{name}': {laws}. Draws outside have density 0 under the model, so that the mean of log p is minus "
                "infinity, and leaving them out would be a bias. Give the guide a law within the model's support, e.g. LogNormal "
                "or Gamma for positive numbers, Beta for the unit interval, or a TransformedDistribution by "
                "numpyro.distributions.biject_to(support)."
            )
        if "covers" in needed and is_outside(p.support, q.support):
            raise ValueError(
                f"Site '{name}': {laws}. Here the guide must reach all that the model can be: what it cannot draw would be "
                "missing from evidence and posterior without a trace. Give the guide a law with at least the model's support."
            )


def _compare_scales(name: str, model: Trace, guide: Trace, drawn: str | None = None) -> Any:
    """None where both sides count a site alike, a number that is zero or NaN where that is known later.

    `drawn`: the site's name in the guide, if it is another one.
    """
    drawn = name if drawn is None else drawn
    p, q = model.sites[name], guide.sites[drawn]
    if set(p.subsampled) != set(q.subsampled):
        _refuse_scales(name, model, guide, drawn, "draw their rows apart")
    own, other = _scale_of(model, name), _scale_of(guide, drawn)
    differently = "scale its log-prob differently"
    if own is None or other is None:
        _refuse_scales(name, model, guide, drawn, differently)
    if own is other:
        return None
    are_known = is_concrete((own, other))
    are_arrays = name in model.scales and drawn in guide.scales
    if are_known and _are_close(own, other):
        return None
    # An array that is computed is compared with an array, in the number; against a mere number it is not believed.
    is_alike = own is not None and other is not None and jnp.shape(own) == jnp.shape(other)
    if are_known or not are_arrays or not is_alike:
        _refuse_scales(name, model, guide, drawn, differently)
    return jnp.where(
        jnp.asarray(own) == other, 0.0, jnp.nan
    )  # added to the log-prob: NaN where they differ


def _compare_masks(name: str, model: Trace, guide: Trace) -> Any:
    """What objects to the elements that the guide leaves out, as `_compare_scales` does to scales."""
    p, q = model.sites[name], guide.sites[name]
    if not q.is_masked or q.distribution == "Delta" or name in model.cells or name in guide.cells:
        return None
    own, other = model.masks.get(name, True), guide.masks.get(name)
    array = np if is_concrete((own, other)) else jnp
    is_missing = other is not None and array.asarray(own) & ~array.asarray(other)
    if not p.is_masked or (is_concrete(is_missing) and np.any(is_missing)):
        raise ValueError(
            f"Site '{name}': the guide's density leaves out elements (mask) that the model's counts, so that log p - log q is no "
            "log-weight. Put the same mask around the site in both, or none in the guide."
        )
    return None if is_concrete(is_missing) else jnp.where(is_missing, jnp.nan, 0.0)


def check_reach(
    model: Trace, guide: Trace, names: Collection[str], needed: Collection[Inclusion]
) -> dict[str, PyTree]:
    """Site -> zeros, or NaN where the model's law can be what the guide's cannot, for "covers" at run time.

    Raises:
        ValueError: at numbers that are known, some law of the guide's does not cover the model's.
    """
    penalties: dict[str, Any] = {}
    for name in names if "covers" in needed else ():
        p, q = model.sites[name], guide.sites[name]
        # A point is reached or not, and the guide's density says it there.
        if p.is_masked or q.is_masked or p.scale == 0.0 or p.distribution == "Delta":
            continue
        # A marginal knows no law of its own sites, only what was known of their supports before.
        own = model.reach.get(name) or reach_known(p.support)
        penalty = penalty_of_reach(name, own, guide.reach.get(name, {}), len(p.batch_shape))
        if penalty is not None:
            penalties[name] = penalty
    return penalties


def _are_close(own: object, other: object) -> bool:
    with jax.ensure_compile_time_eval():
        own, other = np.asarray(own, float), np.asarray(other, float)
    try:
        return bool(np.allclose(own, other, rtol=1e-6, atol=0.0))
    except ValueError:  # shapes that do not broadcast
        return False


def _refuse_scales(name: str, model: Trace, guide: Trace, drawn: str, what: str) -> NoReturn:
    sides = ", ".join(
        f"{side} x {_scale_text(trace, n)} in plates {[d for d in trace.sites[n].dims if d]}"
        for side, trace, n in (("model", model, name), ("guide", guide, drawn))
    )
    plates = [d for d in model.sites[name].dims if d]
    missing = [d for d in plates if d not in guide.sites[drawn].dims]
    remedy = (
        f"Open the model's plate {missing[0]!r} around it in the guide, with ppl.plate({missing[0]!r}, ...)"
        if missing
        else "Put the site into the same plates and under the same handlers.scale in both"
    )
    raise ValueError(
        f"Site '{name}': model and guide {what} ({sides}), so that log p - log q is no log-weight, and value, gradient and "
        f"optimum would be wrong. {remedy}, with a batch axis for the rows (not .to_event)."
    )


def _scale_of(trace: Trace, name: str) -> PyTree:
    return trace.scales.get(name, trace.sites[name].scale)


def _scale_text(trace: Trace, name: str) -> str:
    scale = _scale_of(trace, name)
    if not is_concrete(scale) or scale is None:
        return "an array of scales"
    return f"{scale:g}" if np.ndim(scale) == 0 else f"scales of shape {np.shape(scale)}"


def _check_auxiliary(guide: Trace, shared: Collection[str]) -> None:
    """An auxiliary draw counts as often as some site that is made of it."""
    scales = [guide.sites[n].scale for n in shared]
    for name, info in guide.sites.items():
        scale = info.scale
        if not info.is_auxiliary or scale is None or None in scales or not scales:
            continue
        if not any(math.isclose(scale, s, rel_tol=1e-6) for s in scales if s is not None):
            raise ValueError(
                f"Site '{name}': the guide counts this auxiliary site x {scale:g}, but no site of the model that could be made "
                f"of it (they count {dict(zip(shared, scales, strict=True))}), so that log q is no log-density. Draw it "
                "inside of the plates of the site that it makes."
            )
