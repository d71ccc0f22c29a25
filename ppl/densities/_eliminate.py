"""`ppl.eliminate`: a program without some of its sites: discrete ones are summed out, normal ones integrated out, exactly.

The pipeline, from the arguments of a run on:

    supports_of       which of the named sites are continuous (`_outside.py`)
    Integrated        normal sites, call by call, the first one's first (`_integrated.py`, `gaussian`)
    Summed            discrete sites of all calls together (`_sums.py`, `_listing.py`, `enumeration`)

`Eliminated.made` runs it (`_eliminated.py`); what it returns answers everything else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from .._types import ModelFn
from ..gaussian import APPROXIMATIONS
from ..language import as_program
from ._eliminated import Call, Eliminated


def eliminate(
    program: ModelFn,
    sites: Collection[str] | str,
    *,
    approximation: str | None = None,
    parallel: bool = False,
) -> Eliminated:
    """The program without some of its sites: discrete ones summed out, normal ones integrated out, exactly.

        log p(v) = log sum_k integral p(k, z, v) dz

    *Discrete sites.* Rows of a plate that separate are summed row by row (k states for N rows); chains in `ppl.scan` by a forward
    recursion (k^(L + 1) states for a memory of L <= 3 steps, linear in the number of steps), chains in the steps of another one
    likewise; other sites one after the other, jointly where they meet.

    *Normal sites*, Normal or MultivariateNormal with means affine in each other and scales that do not depend on them, go in the
    order of the program: a statement whose mean is affine in them becomes one with its law given the values before, and its value
    conditions what is believed of them. In `ppl.scan` that is Kalman's filter (with matrices that change from step to step,
    missing cells, several chains and what stands outside of the scan as it comes; a statement after it that reads the states of
    all steps makes the noise of all steps one joint law of at most 2,048 numbers), in plates whose rows separate it is done row
    by row. Sites of one call are believed jointly; those of an earlier call are integrated first, given the later ones:
    `eliminate(eliminate(program, "effect"), "mean")` does rows of effects one by one and then their mean, for any number of rows.
    That a mean is affine is proved on the traced program. Sites whose laws are otherwise stay as they are and may be left to
    particles: `inference.smc` then draws only these (a Rao-Blackwellised filter).

    Args:
        program: a program or NumPyro model.
        sites: names of latent sites with a finite support, or with normal laws; with an eliminated program, further ones. Of
            both kinds, the normal ones are integrated given the discrete ones, so that a discrete chain that moves a normal one
            is summed over all its paths: for short series.
        approximation: what to do where the mean of a normal law is not affine in the sites: None refuses it; "ekf" linearises it
            where the sites are believed to be (extended Kalman filter), and takes a scale that depends on them beside such a mean
            for what it is there; "ukf" matches its mean and covariance at points around there (unscented). The result is another
            model's density, and *biased* for this one's; it says so in its name. As a proposal for particles the same
            approximation is sound: `inference.smc(program, ..., proposal="ekf")`.
        parallel: filter all steps of a `ppl.scan` over normal sites at once, in log2 T rounds (an associative scan) with more
            arithmetic: for devices that run much at once. On a CPU it is slower (`benchmarks/language/kalman.py`); others were
            not measured. The density and its gradient are the same up to rounding, which in single precision grows with the root
            of the condition number of the noise's covariances; second derivatives are NaN. The smoother, draws and forecasts take
            one step after the other.

    Returns:
        A program over the other latent sites. `log_density(choices, *args)` is exact and differentiable; the program serves as
        the model of `elbo`, `iwelbo` and other objectives, under `fit`, and under NumPyro's MCMC; where all its sites are normal
        also as a guide, under particles, and for forecasts (`num_seen`). Besides:
        `posterior(key, choices, *args, num_samples=None)` draws the eliminated sites given everything else,
        `posterior_probs(choices, *args)` gives the marginals of discrete ones, `posterior_marginals(choices, *args)` those of
        normal ones (for a series: the smoother), `mode(choices, *args)` the most probable assignment.
        Handlers (`condition`, `intervene`, `mask`, ...) and plate sizes of minibatches act on the program inside.

    Raises:
        ValueError: sites are summed out already; an unknown approximation, or one with parallel=True. At the first run, before
            any device work, naming site and remedy: a name that is no latent site, or has neither a finite support nor a normal
            law, or stands in an eliminated program called inside; more than 65,536 states (4,096 of a
            chain that remembers one step), or 2,048 normal numbers that are believed jointly; a statement that depends on normal
            sites and is no normal law with an affine mean, or stands in a branch; a normal site that is masked out; log-probs
            scaled differently (subsampling) that meet in one sum; a continuous site in a branch that a summed site chooses;
            parallel=True under particles, or with a step in which sites are left or that has a scan or branch of its own; a
            program that subsamples a plate or uses `ppl.rng_key`; under NumPyro's inference, a support that is computed.
        TypeError: discrete sites are summed out and it is drawn inside an objective (as a guide); NumPyro's handlers around it.

    Validity: exact, up to rounding, for p(z, v) as the program's own `log_density` has it, masks and scales (`handlers.scale`)
    included: a masked-out site with k values counts as k, as in NumPyro's enumeration. What is no value of the program counts
    once: sites of a branch not taken, the seen cells of `obs_mask`. The sum over the rows of a plate that is scaled by
    subsampling is scaled likewise. Where a parameter moves a probability that is exactly 0, the logarithm of the sum does not see
    it: objectives refuse that, or return NaN; the gradient of `log_density` itself is then beyond 1e20. What is believed of
    normal sites is kept as a root of the covariance, so that single precision does.

    Example:
        >>> from lapilli import ppl
        >>> import jax, numpyro.distributions as dist
        >>> def mixture(x, p=0.3):
        ...     with ppl.plate("rows", x.shape[0]):
        ...         k = ppl.sample("k", dist.Bernoulli(p))
        ...         ppl.sample("x", dist.Normal(4.0 * k, 1.0), obs=x)
        >>> m = ppl.eliminate(mixture, "k")
        >>> x = jax.numpy.array([0.0, 4.0, 1.9])
        >>> round(float(m.log_density({}, x)), 4)
        -6.2257
        >>> m.mode({}, x)[0]["k"].tolist()
        [0, 1, 0]

        A second opinion: NumPyro sums the same program's enumerated sites with funsor.

        >>> from numpyro.contrib.funsor import config_enumerate, enum, log_density
        >>> round(float(log_density(enum(config_enumerate(mixture), -2), (x,), {}, {})[0]), 4)
        -6.2257

        A level that drifts, seen with noise; the third value is missing.

        >>> def drift(y):
        ...     def step(level, y):
        ...         level = ppl.sample("level", dist.Normal(level, 0.5))
        ...         ppl.sample("y", dist.Normal(level, 1.0), obs=y, obs_mask=~jax.numpy.isnan(y))
        ...         return level, None
        ...     ppl.scan(step, 0.0, y)
        >>> m = ppl.eliminate(drift, "level")
        >>> y = jax.numpy.array([1.0, 2.0, jax.numpy.nan, 1.5])
        >>> round(float(m.log_density({}, y)), 2)
        -5.02
        >>> [round(float(x), 2) for x in m.posterior_marginals({}, y)["level"].loc]
        [0.5, 0.89, 0.99, 1.09]

    Funsor contracts tables that have been filled for all values of the sites that meet. A sum that is refused here is refused for
    the size of such a table, so that funsor could not take it either: it is the check, and no fallback.

    Reference: Zhang and Poole 1994 (variable elimination); Obermeyer et al. 2019, arXiv:1902.03210 (plates); Baum and Petrie
    1966, Viterbi 1967, Chib 1996 (chains: sum, mode, draws); Kalman 1960; Bierman 1977 (roots); Carlson 1973 (one number
    at a time); Murray et al. 2018, arXiv:1708.07787 (conditioning in program order); Sarkka
    and Garcia-Fernandez 2021, arXiv:1905.13002, and Yaghoobi et al. 2022, arXiv:2207.00426 (parallel filters, with roots).
    """
    sites = (sites,) if isinstance(sites, str) or not isinstance(sites, Iterable) else tuple(sites)
    if (
        not sites
        or not all(isinstance(site, str) for site in sites)
        or len(set(sites)) != len(sites)
    ):
        raise ValueError(f"ppl.eliminate: name distinct latent sites, got {list(sites)}.")
    if approximation is not None and approximation not in APPROXIMATIONS:
        raise ValueError(
            f"ppl.eliminate: approximation={approximation!r} is none of {', '.join(map(repr, APPROXIMATIONS))}. Choose one of "
            "them, or leave it out: means that are not affine are then refused."
        )
    if approximation is not None and parallel:
        raise ValueError(
            f"ppl.eliminate: approximation={approximation!r} expands each mean where the steps before have put the sites, and "
            "parallel=True takes no step after another. Leave one of the two out."
        )
    call = Call(sites, approximation, parallel)
    program = as_program(program)
    if isinstance(program, Eliminated):
        twice = sorted(set(sites) & set(program.sites))
        if twice:
            raise ValueError(
                f"ppl.eliminate: {twice} are summed out of {program.label} already. Name sites that are left."
            )
        return Eliminated(program.program, (*program.calls, call))
    return Eliminated(program, (call,))
