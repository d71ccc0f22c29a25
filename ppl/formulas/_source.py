"""The program of a formula as text, with the priors in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np

from ._frame import Design, Effects

Family = Literal["normal", "bernoulli", "poisson", "negbinomial"]
HEAD = """import jax.numpy as jnp
import numpyro.distributions as dist

from lapilli import ppl


"""
# Prior of what a family has beside its mean (name, law), and the law of the response; {inverse} is 1 over its scale.
LAWS: dict[str, tuple[tuple[str, str] | None, str]] = {
    "normal": (("sigma", "dist.Exponential({inverse})"), "dist.Normal(mean, sigma)"),
    "bernoulli": (None, "dist.Bernoulli(logits=mean)"),
    "poisson": (None, "dist.Poisson(jnp.exp(mean))"),
    "negbinomial": (
        ("concentration", "dist.Gamma(2.0, 0.1)"),
        "dist.NegativeBinomial2(jnp.exp(mean), concentration)",
    ),
}


def written(design: Design, family: Family, text: str, changed: Collection[str]) -> str:
    """The program, without its imports. Priors that are `changed` are read from a mapping `priors`.

    Args:
        design: of the formula.
        family: of the response.
        text: the formula.
        changed: names of sites.

    Raises:
        ValueError: a name that is changed is no site.
    """
    name = design.response[0]
    centre, unit = _centre_and_unit(design, family)
    sites: list[str] = []

    def site(of: str, law: str, note: str = "") -> str:
        sites.append(of)
        law = f'priors["{of}"]' if of in changed else law
        return f'    {of} = ppl.sample("{of}", {law}){note and f"  # {note}"}'

    body: list[str] = []
    parts = []
    if design.has_intercept:
        note = "of a row whose columns are at their means" if design.columns else ""
        body.append(
            site("intercept", f"dist.Normal({_number(centre, 7)}, {_number(2.5 * unit)})", note)
        )
        parts.append("intercept")
    if design.columns:
        scales = [2.5 * unit / s for s in design.scales]
        body.append(f"    # the columns of x: {', '.join(design.columns)}")
        body.append(site("slopes", f"dist.Normal(0.0, {_vector(scales)}).to_event(1)"))
        if design.has_intercept:
            body.append(f"    x = x - {_vector(design.means, 7)}")
        parts.append("x @ slopes")
    for effects in design.effects:
        body += _of_groups(effects, len(design.groups[effects.factor].levels), unit, site)
        parts.append(_added(effects))
    if design.offsets[0]:
        parts.append("offset")
    if not design.columns and not design.offsets[0] and not design.effects:
        parts.append("jnp.zeros(num_rows)")
    body.append(f"    mean = {' + '.join(parts)}")
    beside, law = LAWS[family]
    if beside is not None:
        body.append(site(beside[0], beside[1].format(inverse=_number(1 / unit))))
    body.append('    with ppl.plate("rows", mean.shape[0]):')
    body.append(f'        ppl.sample("{name}", {law}, obs={name})')
    if unknown := sorted(set(changed) - set(sites)):
        raise ValueError(
            f"formula: priors are given for {unknown}, and the program of '{text}' draws {sites}. Use these names."
        )
    head = ["@ppl.model", f"def program({', '.join(_signature(design))}):"]
    return "\n".join([*head, f"    # {' '.join(text.split())}, {family}", *body, ""])


def _arguments(design: Design) -> list[str]:
    """Names of what a row needs, in the program's order."""
    names = ["x"] if design.columns else []
    names += ["offset"] if design.offsets[0] else []
    names += [f"x_{e.name}" for e in design.effects if e.columns]
    names += list(design.groups)
    return names or ["num_rows"]


def _signature(design: Design) -> list[str]:
    news = [f"new_{factor}=0" for factor in design.groups]
    return [*_arguments(design), *news, f"{design.response[0]}=None"]


def _of_groups(
    effects: Effects, num_groups: int, unit: float, site: Callable[..., str]
) -> list[str]:
    sd, own, several = f"sd_{effects.name}", f"by_{effects.name}", len(effects.columns) > 1
    scales = [2.5 * unit / s for s in effects.scales]
    law = f"dist.Normal({f'jnp.zeros({len(scales)})' if several else '0.0'}, {sd})"
    law += ".to_event(1)" if several else ""
    note = f"of {', '.join(effects.columns)}" if effects.columns else ""
    wide = f"dist.HalfNormal({_vector(scales) if several else _number(scales[0])})"
    return [
        site(sd, wide + (".to_event(1)" if several else ""), note),
        f'    with ppl.plate("{effects.factor}", {num_groups}):',
        f"    {site(own, law)}",
        f"    if new_{effects.factor}:  # groups that the fit has not seen",
        f'        with ppl.plate("new_{effects.factor}", new_{effects.factor}):',
        f'            new = ppl.sample("new_{own}", {law})',
        f"        {own} = jnp.concatenate([{own}, new])",
    ]


def _added(effects: Effects) -> str:
    picked = f"by_{effects.name}[{effects.factor}]"
    if not effects.columns:
        return picked
    if len(effects.columns) == 1:
        return f"x_{effects.name} * {picked}"
    return f"(x_{effects.name} * {picked}).sum(-1)"


def _centre_and_unit(design: Design, family: Family) -> tuple[float, float]:
    """Where the prior of the intercept is, and the size of what moves the mean, on the scale of the mean's link."""
    y, offset = np.asarray(design.response[1], float), design.offsets[1]
    if family == "normal":
        y = y - offset
        return float(y.mean()), float(y.std() if design.has_intercept else np.sqrt((y**2).mean()))
    if family == "bernoulli":
        return 0.0, 1.0
    return float(np.log((y.sum() + 0.5) / np.exp(offset).sum())), 1.0


def _number(x: float, digits: int = 3) -> str:
    return repr(float(f"{float(x):.{digits}g}"))


def _vector(xs: Sequence[float] | np.ndarray, digits: int = 3) -> str:
    return f"jnp.array([{', '.join(_number(x, digits) for x in xs)}])"
