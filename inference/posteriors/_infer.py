"""`infer` and `nuts`: draws of a posterior, with what stands behind them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from ...ppl._calls import checked_call, did_you_mean
from ...ppl._checks import check_counts, check_seconds
from ...ppl._compat import typed_key
from ...ppl._types import Key, ModelFn
from .._host_keys import default_key
from .._meshes import over_auto_axes
from .._processes import spans_processes
from ._certificate import Attempt
from ._clock import MAX_SECONDS, Clock, TimeUpError
from ._draws import Draws
from ._found import ModelForm, chains_found, make_draws
from ._problem import posed
from ._search import KNOWN, METHODS, Search
from .chains import DENSE_UP_TO, ChainSettings, run_chains
from .forms import make_target, without_discrete


@over_auto_axes
@checked_call
def infer(
    model: ModelFn,
    args: tuple | Mapping[str, PyTree] | None = None,
    *,
    key: Key | None = None,
    num_samples: int = 4000,
    num_chains: int = 8,
    methods: Sequence[str] = METHODS,
    max_seconds: float | None = MAX_SECONDS,
    uncertified: Literal["warn", "raise"] = "warn",
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Draws:
    """Draws of a model's posterior with a certificate: which way they were made, what was looked at, whether it suffices.

    `infer(model, args=(x,))` is enough. One way after the other is tried until draws are certified:

    1. *eliminate*: discrete sites are summed out; normal ones are integrated out where `ppl.eliminate` can: all of them, if
       nothing is left then, and the draws are independent and exact; else those whose law moves with other latent values, if
       that is cheap. They are drawn afterwards, given the rest.
    2. *nuts*: NumPyro's NUTS, chains side by side from dispersed points; after a fit, from its weighted draws, and in the
       coordinates of its guide. Chains of places whose share of the posterior is
       nothing are begun again in the others; chains that break off or hardly move are run in better coordinates with smaller
       steps, in double precision where single is too coarse, with sites shifted and scaled (not centred), with more sites
       integrated out. Modes that no chain crosses are weighed by importance draws of a mixture that is fitted to the chains, and
       looked for by Newton's steps from further points.
    3. *fit*: `fit` with its default guide, whose draws are resampled by Pareto-smoothed weights.
    4. *tempered*: `tempered_smc` from the prior, judged by its islands and by what its moves still change; where that does not
       do, or the prior is improper, around the draws of the fit, unless chains have ended at different places.

    Args:
        model: anything that `ppl.as_program` takes. `fit` trains objectives, and models with parameters.
        args: the arguments of the model, a tuple, or a dict from their names to values.
        key: PRNG key; default `jax.random.key(0)`.
        num_samples: draws S, rounded up to a multiple of `num_chains` where chains make them.
        num_chains: chains of NUTS. More of them see more modes.
        methods: which of "eliminate", "nuts", "fit", "flow", "tempered" may be used, in the order in which they are tried; "flow"
            by demand only: a flow (six couplings, 4,000 steps) is trained from the fitted guide, and judged as that is.
        max_seconds: time after which nothing more begins, ten minutes; None: as long as it takes. It is looked at between device
            calls of some seconds, not while a program is compiled. The best draws until then are judged as they are, and the
            certificate says what was not finished. Ctrl-C does the same.
        uncertified: what to do where no draws are certified: "warn" and return the best ones, or "raise".
        mesh: devices of this process over which chains of NUTS are split, as many on each, and what is drawn given their
            draws. A chain is the one that it is on one device until rounding, which differs with the number of chains on a
            device, has grown.
        progress: print a line for each attempt, and every 15 seconds how far it is.

    Returns:
        `Draws`: equally weighted, with `Draws.certificate`.

    Raises:
        TypeError: the model is an objective or a guide; the arguments are neither a tuple nor a dict.
        ValueError: the model observes nothing, has parameters to be learned or a plate that draws its rows; discrete sites
            cannot be summed out; a support moves within a scan or with a discrete draw; no place with a finite log-density is
            found; data are wrong (as `fit` says).
        RuntimeError: nothing is certified, with `uncertified="raise"`; there are no draws at all, by these methods or within
            `max_seconds`.

    Validity:
        Certified are chains with R-hat (rank-normalised, split, folded) of at most 1.01 and effective sample sizes of bulk and
        tails of at least 400 for every sampled number and the log-density, with at most one trajectory of 10,000 that broke
        off, with E-BFMI of at least 0.2; a tempered run without `problems`; weights of a fit or a mixture with k-hat below its
        threshold and an effective size of 400. That speaks against what was looked at and no more: a mode that nothing has met
        leaves no trace, in these as in all such numbers. Where a number's tails are so heavy that its standard deviation is not
        known to a tenth, or does not exist, there is a warning, and `Certificate.heavy_tails`.
        Under flat priors and factors the density is looked at along each coordinate, ten thousand spreads away from draws: where
        it does not fall off, nothing is certified.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> from lapilli import inference, ppl
        >>> def model(y):
        ...     mean = ppl.sample("mean", dist.Normal(0.0, 10.0))
        ...     with ppl.plate("rows", y.shape[0]):
        ...         ppl.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> draws = inference.infer(model, args=(jnp.array([1.0, 2.0, 3.0]),), progress=False)
        >>> draws.certificate.method, draws.certificate.is_certified, draws.choices["mean"].shape
        ('exact', True, (4000,))

    Reference: Hoffman and Gelman 2014, arXiv:1111.4246 (NUTS); Vehtari et al. 2021, arXiv:1903.08008 (R-hat).
    """
    check_counts("infer", num_samples=num_samples)
    check_counts("infer", 2, num_chains=num_chains)
    check_seconds("infer", max_seconds)
    _check_methods(methods)
    if mesh is not None:
        _check_mesh(mesh, num_chains)
    say = _say("infer", progress)
    clock = Clock(max_seconds, say)
    key = default_key() if key is None else typed_key(key)
    problem = posed("infer", model, args)._replace(mesh=mesh)
    search = Search("infer", problem, key, num_samples, num_chains, methods, say, clock)
    draws = search.draws()
    told("infer", draws, uncertified)
    return draws


@checked_call
def nuts(
    model: ModelFn,
    args: tuple | Mapping[str, PyTree] | None = None,
    *,
    key: Key | None = None,
    num_samples: int = 4000,
    num_chains: int = 4,
    num_warmup: int = 1000,
    target_accept: float = 0.8,
    is_dense: bool | None = None,
    uncertified: Literal["warn", "raise"] = "warn",
    progress: bool = True,
) -> Draws:
    """Draws of a model's posterior by NumPyro's NUTS, with the verdict on its chains.

    One run as it is asked for; `infer` looks further where it does not suffice. Discrete sites are summed out; a program of
    `ppl.eliminate` is sampled without its sites, which are then drawn given the rest.

    Args:
        model: anything that `ppl.as_program` takes, eliminated programs included.
        args: the arguments of the model, a tuple, or a dict from their names to values.
        key: PRNG key; default `jax.random.key(0)`.
        num_samples: draws S of all chains together, rounded up to a multiple of `num_chains`.
        num_chains: chains, side by side, from points uniform on (-2, 2) of the unconstrained scale.
        num_warmup: transitions of each chain that adapt step size and mass matrix, and are dropped.
        target_accept: acceptance that the step size is adapted to; nearer to 1 makes smaller steps.
        is_dense: whether the mass matrix has correlations; default, up to 50 coordinates.
        uncertified: what to do where the chains do not suffice: "warn", or "raise".
        progress: print a line with what was seen.

    Returns:
        `Draws`, chain by chain. After Ctrl-C those that there are, with the verdict on them.

    Raises:
        TypeError: as `infer`.
        ValueError: as `infer`.
        RuntimeError: the chains do not suffice, with `uncertified="raise"`.

    Validity: as for the chains of `infer`.

    Reference: Hoffman and Gelman 2014, arXiv:1111.4246.
    """
    check_counts("nuts", num_samples=num_samples, num_warmup=num_warmup)
    check_counts("nuts", 2, num_chains=num_chains)
    if not 0 < target_accept < 1:
        raise ValueError(
            f"nuts: target_accept must lie between 0 and 1, got {target_accept!r}. Give a probability such as 0.9."
        )
    say = _say("nuts", progress)
    key = default_key() if key is None else typed_key(key)
    problem = posed("nuts", model, args)
    program, gone = without_discrete("nuts", problem.program, problem.trace, problem.args)
    gone = (*getattr(problem.program, "sites", ()), *gone)
    target = make_target("nuts", program, problem.args)
    if not target.dimension:
        raise ValueError(
            f"nuts: nothing is left to sample of {problem.program!r}: all its latent sites are summed or integrated out. Use "
            "inference.infer, which draws them."
        )
    chain_key, draw_key = jax.random.split(key)
    is_dense = target.dimension <= DENSE_UP_TO if is_dense is None else is_dense
    settings = ChainSettings(
        num_chains,
        -(-num_samples // num_chains),
        num_warmup,
        (target_accept,),
        0,
        bool(is_dense),
        clock=Clock(None, say),
    )
    attempts: list[Attempt] = []

    def tell(attempt: Attempt) -> None:
        attempts.append(attempt)
        say(str(attempt))

    try:
        chains = run_chains("nuts", target, chain_key, settings, tell=tell)
    except TimeUpError as err:  # by Ctrl-C, before there were draws
        raise KeyboardInterrupt from err
    form = ModelForm("", program, gone)
    found = chains_found(problem, target, chains, form)
    draws = make_draws(problem, found, lambda: target, draw_key, tuple(attempts))
    told("nuts", draws, uncertified)
    return draws


def _say(method: str, progress: bool) -> Callable[[str], None]:
    return lambda text: print(f"{method}: {text}", flush=True) if progress else None


def told(method: str, draws: Draws, uncertified: str) -> None:
    """Warn of draws that are not certified, or raise; and warn of moments that do not exist."""
    certificate = draws.certificate
    if heavy := certificate.heavy_tails:
        most = max(heavy, key=lambda name: heavy[name])
        warnings.warn(
            f"{method}: the tails of {', '.join(list(heavy)[:5])}{', ...' if len(heavy) > 5 else ''} are so heavy that their "
            f"standard deviation is not known from so many draws, if there is one (Pareto shape {heavy[most]:.2f} at {most}; "
            "from 0.5 on there is none, from 1 on no mean). Report medians and quantiles, draw more, or give priors with "
            "lighter tails.",
            stacklevel=4,
        )
    if certificate.is_certified:
        return
    advice = {
        "infer": "More time (max_seconds=), chains or draws, stronger priors or another parametrisation may do",
        "nuts": "inference.infer tries other ways; a target_accept nearer to 1 and a longer num_warmup may do",
    }
    text = (
        f"{method}: these draws are NOT certified as the posterior's ({certificate.method}): {'; '.join(certificate.problems)}. "
        f"{advice[method]}."
    )
    if uncertified == "raise":
        raise RuntimeError(text + " Say uncertified='warn' to have the draws as they are.")
    warnings.warn(text, stacklevel=4)


def _check_mesh(mesh: Mesh, num_chains: int) -> None:
    if spans_processes("infer", mesh):
        raise NotImplementedError(
            "infer: mesh= has devices of several processes, and chains are looked at by the one that runs them. Pass a mesh of "
            "jax.local_devices(), with a key of its own in each process."
        )
    if num_chains % mesh.size:
        raise ValueError(
            f"infer: {num_chains} chains cannot be split evenly over the {mesh.size} devices of the mesh. Use num_chains="
            f"{num_chains + -num_chains % mesh.size}, or a mesh of fewer devices."
        )


def _check_methods(methods: Sequence[str]) -> None:
    if unknown := [m for m in methods if m not in KNOWN]:
        raise ValueError(
            f"infer: methods has {unknown}, of which none is known.{did_you_mean(unknown[0], KNOWN)} Choose from "
            f"{list(KNOWN)}."
        )
    if not set(methods) - {"eliminate"}:
        raise ValueError(
            f"infer: methods is {list(methods)}, which draws nothing where sites are left. Add 'nuts', 'tempered' or 'fit'."
        )
