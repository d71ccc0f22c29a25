"""Linear regressions in the units of their data, and autoregressions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpyro.distributions as dist

from lapilli import ppl

from .posterior import Arrays, Posterior, numbers


def _regression(
    name: str,
    columns: Callable[[Arrays], Sequence[np.ndarray | float]],
    response: Callable[[Arrays], np.ndarray],
    width: float,
    sigma: dist.Distribution,
) -> Posterior:
    """Flat priors of the original are Normal(0, width) on the coefficients."""

    @ppl.model
    def model(x, y):
        beta = ppl.sample("beta", dist.Normal(0.0, width).expand([x.shape[1]]).to_event(1))
        noise = ppl.sample("sigma", sigma)
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(x @ beta, noise), obs=y)

    def arguments(d: Arrays) -> dict[str, object]:
        y = response(d)
        x = np.stack([np.broadcast_to(column, y.shape) for column in columns(d)], 1)
        return {"x": numbers(x), "y": numbers(y)}

    return Posterior(name, model, arguments)


REGRESSIONS = [
    _regression(
        "kidiq-kidscore_interaction",
        lambda d: (1.0, d["mom_hs"], d["mom_iq"], d["mom_hs"] * d["mom_iq"]),
        lambda d: d["kid_score"],
        1000.0,
        dist.HalfCauchy(2.5),
    ),
    _regression(
        "earnings-earn_height",
        lambda d: (1.0, d["height"]),
        lambda d: d["earn"],
        1e6,
        dist.HalfNormal(1e6),
    ),
    _regression(
        "mesquite-mesquite",
        lambda d: (
            1.0,
            *(d[n] for n in "diam1 diam2 canopy_height total_height density group".split()),
        ),
        lambda d: d["weight"],
        1e5,
        dist.HalfNormal(1e4),
    ),
    _regression(
        "mesquite-logmesquite_logvas",
        lambda d: (
            1.0,
            np.log(d["diam1"] * d["diam2"] * d["canopy_height"]),
            np.log(d["diam1"] * d["diam2"]),
            np.log(d["diam1"] / d["diam2"]),
            np.log(d["total_height"]),
            np.log(d["density"]),
            d["group"],
        ),
        lambda d: np.log(d["weight"]),
        100.0,
        dist.HalfNormal(100.0),
    ),
    _regression(
        "nes1980-nes",
        lambda d: (
            1.0,
            d["real_ideo"],
            d["race_adj"],
            *(d["age_discrete"] == age for age in (2, 3, 4)),
            d["educ1"],
            d["gender"],
            d["income"],
        ),
        lambda d: d["partyid7"],
        100.0,
        dist.HalfNormal(100.0),
    ),
    _regression("sblri-blr", lambda d: d["X"].T, lambda d: d["y"], 10.0, dist.HalfNormal(10.0)),
]


@ppl.model
def diamonds(x, y):
    b = ppl.sample("b", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    intercept = ppl.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = ppl.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(intercept + x @ b, sigma), obs=y)


@ppl.model
def autoregression(past, y):
    alpha = ppl.sample("alpha", dist.Normal(0.0, 10.0))
    beta = ppl.sample("beta", dist.Normal(0.0, 10.0).expand([past.shape[1]]).to_event(1))
    sigma = ppl.sample("sigma", dist.HalfCauchy(2.5))
    with ppl.plate("time", y.shape[0]):
        ppl.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y)


def _centred(d: Arrays) -> dict[str, object]:
    x = d["X"][:, 1:]
    return {"x": numbers(x - x.mean(0)), "y": numbers(d["Y"])}


def _lagged(d: Arrays) -> dict[str, object]:
    y, order = d["y"], int(d["K"])
    past = np.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], 1)
    return {"past": numbers(past), "y": numbers(y[order:])}


REGRESSIONS += [
    Posterior("diamonds-diamonds", diamonds, _centred),
    Posterior("arK-arK", autoregression, _lagged),
]
