"""Guides whose local sites are Laplace approximations: q(x_i) in closed form from a prior and an inner program.

Terms: model p with a local site x_i in plates, normal given the other latent sites phi; guide q(phi) of those. Output: the guide
q(phi) prod_i N(x_i; m_i, V_i). In each run of it, for all rows at once:

1. read: the loss l_i(x) of each row, minus the log-probs of the sites that x moves, from the model (`_local_model.py`).
2. inner: an inner program goes from the prior's mean towards the mode of exp(-l_i) times the prior (`_inner.py`).
3. expand: l_i(x) = c - b_i'x + x'A_i x / 2 at the point reached, with the chosen curvature.
4. site: V_i = (A_i + P)^-1, m_i = V_i (b_i + P m_0), where N(m_0, P^-1) is the prior (`_local_site.py`).

The result is an ordinary guide. Whatever 1 to 4 do, it has an exact density, so every bound stays a bound.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.distributions.transforms import biject_to
from numpyro.infer.autoguide import AutoGuide

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl.checks import concrete_tree
from ...ppl.language import joined
from ...ppl.strategies import element
from ...ppl.traces import EngineRecorder, trace_of
from ..objectives._analytic_kl import Laws
from ..objectives._detached import refuse_estimated
from ._curvature import Curvature, CurvatureKind
from ._inner import SGLD, Inner, InnerProblem, InnerResult, Newton
from ._local_model import LocalModel, law_at, normal_prior, read
from ._local_site import NormalPrior, Potential, posterior
from ._student_prior import StudentPrior

Array = jax.Array
stop = jax.lax.stop_gradient
PARENTS = (
    ppl.distributions.NormalInverseWishart,
    ppl.distributions.NormalInverseGamma,
    ppl.distributions.GroupedNormalInverseGamma,
)


@dataclasses.dataclass(frozen=True)
class FrozenExpansion(ppl.Reparam):
    """The pathwise gradient of a draw whose law is a constant in part: what marks "closed_form" and "partial" in a plan."""

    name = "frozen_expansion"
    is_biased = True


@checked_call
def local_laplace(
    model: object,
    guide: object = None,
    *,
    site: str,
    inner: Inner = Newton(),  # noqa: B008, frozen
    curvature: CurvatureKind | Curvature = "hessian",
    gradient: Literal["unrolled", "closed_form", "partial"] = "unrolled",
    parent: str | None = None,
    parent_at: Literal["expected", "mode", "marginal"] = "expected",
    observations: Collection[str] | None = None,
) -> ppl.Program:
    """The guide q(phi) prod_i N(x_i; m_i, V_i) whose local site is a Laplace approximation, to be used in any objective.

    V_i = (A_i + P)^-1,  m_i = V_i (b_i + P m_0),

    with N(m_0, P^-1) the site's prior and l_i(x) = c - b_i'x + x'A_i x / 2 the row's negative log-likelihood, expanded where the
    inner program ends. No parameters, no state per row: rows may be minibatches of any size.

    Args:
        model: program with the local site, a Normal (number, or vector by to_event(1)) or MultivariateNormal in plates.
        guide: program over the model's other latent sites; None if there are none.
        site: name of the local site.
        inner: inner program: `Newton`, `Descent` (SGD, Adam), `SGLD`. It starts at the prior's mean. The default, ten full Newton
            steps, goes to the mode; `Newton(1)` is enough, and cheaper, where observations are normal and linear in the site.
        curvature: A_i, see `Curvature`; its kind alone where it has no limits.
        gradient: what a bound's gradient sees of the guide. "unrolled": all of it, through the inner program, whose steps are
            then kept in memory. "closed_form": m_i and V_i as functions of m_0 and P, with b_i and A_i as constants.
            "partial": m_i and V_i as constants. The last two keep no inner steps.
        parent: a latent site of the guide that gives the prior's mean and scale, its law a
            `ppl.distributions.NormalInverseWishart`, a `ppl.distributions.NormalInverseGamma` by coordinate, or a
            `ppl.distributions.GroupedNormalInverseGamma`, in which coordinates share variances. m_0 and P are then those of the
            expected natural parameters, and q is of mean field. None: m_0 and P at the values that the guide has drawn, so that
            q(x_i | phi) is conditional.
        parent_at: "expected" natural parameters, as in training; the "mode" of the parent's law, a tighter prior; or the
            "marginal" law of the site, Student t, which has heavy tails where the parent is uncertain: m_i and V_i are then
            those under a normal prior of the most probable width in each row, found by turns (`_student_prior.py`). The
            three are one where the parent has many degrees of freedom and its mean is certain.
        observations: names of the sites that count in l_i; default, all that the site moves. A bound counts all of them anyway:
            with `observations={"support"}` it is trained to predict the rest.

    Returns:
        A guide over all latent sites of the model, for `elbo`, `iwelbo`, `Fit.posterior`, `to_arviz`, ...

    Raises:
        ValueError: the site is missing, not normal, in control flow, or its rows are tied together; the guide does not draw the
            other sites; the parent is not conjugate to the site; the curvature does not know a likelihood, or does not fit the
            prior or the inner program; a plate subsamples by itself; observations of several shapes have a jacobian
            "by_observation".
        TypeError: the density of model or guide is estimated.

    Validity: the law drawn from has an exact density, so bounds are bounds and their values unbiased under every option. With
    "unrolled" their gradients are unbiased too. "closed_form" and "partial" leave out how the expansion moves with the
    parameters: biased for the bound's gradient, except where the expansion does not move (quadratic losses) or the site is
    optimal for the bound, where the left-out part is zero; plans mark the site as biased. Means and scales are NaN where rounding
    makes a tenth of a scale: in single precision from condition numbers (of the widest scale of the prior to the narrowest one
    of q) of some 1e3 with "hessian", 1e6 with "gauss_newton".
    Reference: Kim and Hospedales 2024, A hierarchical Bayesian model for few-shot meta learning, ICLR, arXiv:2306.09702 (closed
    form, frozen expansion); Khan and Lin 2017, arXiv:1703.04265 (conjugate-computation inference); Johnson et al. 2016,
    arXiv:1603.06277 (potentials and expected natural parameters).

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, numpyro.distributions as dist
        >>> def model(y):
        ...     with ppl.plate("rows", y.shape[0]):
        ...         x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ...         ppl.sample("y", dist.Normal(x, 0.5), obs=y)
        >>> bound = inference.elbo(model, inference.local_laplace(model, site="x"))
        >>> y = jax.numpy.array([1.0, -2.0])
        >>> exact = dist.Normal(0.0, 1.25**0.5).log_prob(y).sum()  # x is conjugate: the bound is tight
        >>> value = bound.value(bound.init(jax.random.key(0), y), jax.random.key(1), y)
        >>> bool(abs(value - exact) < 1e-5)
        True
    """
    model = ppl.as_program(model)
    guide = None if guide is None else ppl.as_program(guide)
    curvature = Curvature(curvature) if isinstance(curvature, str) else curvature
    _check_options(model, guide, inner, curvature, gradient, parent, parent_at)
    freeze = _identity if gradient == "unrolled" else _stopped
    strategy = None if gradient == "unrolled" else FrozenExpansion()

    def with_local_laplace(*args: PyTree, **kwargs: PyTree) -> None:
        args = joined(args, kwargs)
        choices, laws = _run_guide(guide, args)
        local = read(model, site, choices, args, observations, freeze, curvature.jacobian)
        student = None
        if parent is None:
            prior = normal_prior(local.law, site)
        else:
            _check_parent(parent, choices, laws)
            _check_conjugate(model, parent, site, choices, args, local, laws)
            if parent_at == "marginal":
                student = _student_prior(parent, laws, local)
                prior = student.normal
            else:
                prior = _parent_prior(parent, parent_at, laws, local)
        if curvature.kind == "sgld_variance" and prior.scale is None:
            raise ValueError(
                f"Site '{site}': curvature='sgld_variance' is diagonal, and takes a prior of independent coordinates, Normal "
                "with to_event(1). Use another curvature for a MultivariateNormal."
            )
        if curvature.rank is not None and prior.scale is None:
            raise ValueError(
                f"Site '{site}': rank={curvature.rank} takes a prior of independent coordinates, Normal with to_event(1). With a "
                "MultivariateNormal the precision is a whole matrix anyway: leave rank out."
            )
        key = ppl.rng_key(f"{site}_inner") if isinstance(inner, SGLD) else jax.random.key(0)
        expand = lambda prior: _potential(local, freeze(prior), inner, curvature, key)
        if student is not None:
            prior = student.given(freeze(student.settled(expand)))
        law = posterior(prior, freeze(expand(prior)))
        _sample(local, _stopped(law) if gradient == "partial" else law, strategy)

    with_local_laplace.__name__ = f"local_laplace({site})"
    return ppl.Program(with_local_laplace, None if guide is None else guide.params)


def _potential(
    local: LocalModel, prior: NormalPrior, inner: Inner, curvature: Curvature, key: Array
) -> Potential:
    """Inner program, then expansion."""

    def at(x: Array) -> Potential:
        found = _expansion(local, x, curvature, prior.scale)
        if found.diagonal is None:
            return found
        return found._replace(diagonal=jnp.clip(found.diagonal, 0.0, curvature.largest))

    result: InnerResult = inner.run(InnerProblem(prior, local.gradient, at), key)
    if curvature.kind != "sgld_variance":
        return at(result.point)
    assert result.variance is not None and prior.scale is not None  # checked before
    # The draws have precision A + P, and their mean is where the gradient of loss and prior is zero.
    diagonal = jnp.clip(1 / result.variance - 1 / prior.scale**2, 0.0, curvature.largest)
    slope = -prior.precision_times(result.point - prior.loc)
    return Potential(result.point, slope, diagonal=diagonal)


def _expansion(local: LocalModel, x: Array, curvature: Curvature, scale: Array | None) -> Potential:
    if curvature.kind == "hessian":
        return Potential(x, local.gradient(x), matrix=local.hessian(x))
    slope, factor, slopes = local.observations.expanded(x, scale, curvature.rank)
    if curvature.kind == "low_rank_gauss_newton":
        return Potential(x, slope, factor=factor, slopes=slopes)
    if curvature.kind == "gauss_newton":
        return Potential(x, slope, root=factor)
    return Potential(x, slope, diagonal=(factor**2).sum(-2))


def _run_guide(guide: ppl.Program | None, args: tuple) -> tuple[dict[str, Array], Laws]:
    """The guide's choices, drawn by the handlers outside, and its laws."""
    laws = Laws()
    if guide is None:
        return {}, laws
    collector = EngineRecorder()
    with collector:
        retval = laws.watch(guide)(*args)
    return trace_of(collector, retval).shared_choices, laws


def _sample(local: LocalModel, law: dist.Distribution, strategy: object) -> None:
    """Draw the site in the plates in which the model draws it."""
    info = local.info
    if not info.event_shape:
        # A vector of length one as a number.
        law = dist.Normal(law.mean[..., 0], jnp.sqrt(law.variance[..., 0]))
    with contextlib.ExitStack() as plates:
        for axis, (name, size) in enumerate(zip(info.dims, info.batch_shape, strict=True)):
            if name is not None:
                plates.enter_context(ppl.plate(name, size, dim=axis - len(info.dims)))
        ppl.sample(info.name, law, strategy=strategy)


def _check_parent(parent: str, choices: dict[str, Array], laws: Laws) -> None:
    """Refuse a parent that the guide does not draw, or whose law is of no conjugate family."""
    if parent not in laws.found or parent not in choices:
        raise ValueError(
            f"local_laplace: the parent '{parent}' is not a latent site of the guide outside of control flow; its sites are "
            f"{sorted(choices)}. Name one of these, or draw it before scans and branches."
        )
    base = element(laws.found[parent][0])[0]
    if not isinstance(base, PARENTS):
        raise ValueError(
            f"Site '{parent}': a parent's law must have the expected natural parameters of a normal law "
            "(NormalInverseWishart, NormalInverseGamma or GroupedNormalInverseGamma of ppl.distributions), but it is "
            f"{type(base).__name__}. Leave parent out: then m_0 and P are those at the parent's draw."
        )


def _check_conjugate(
    model: ppl.Program, parent: str, site: str, choices: dict[str, Array], args: tuple,
    local: LocalModel, laws: Laws,
) -> None:  # fmt: skip
    """Refuse a site whose mean and scale are not the parent's value: tried at two values, with numbers in place of data."""
    base: Any = element(laws.found[parent][0])[0]
    with jax.ensure_compile_time_eval():
        args, choices, params = concrete_tree((args, choices, local.params))
        transform = biject_to(base.support)

        @jax.jit  # what the two laws do not need is not run
        def both(key: Array) -> tuple[NormalPrior, NormalPrior]:
            free = jax.random.normal(key, transform.inverse_shape(jnp.shape(choices[parent])))
            value = transform(free)
            found = law_at(model, site, {**choices, parent: value}, args, params)
            at = _on_rows(base.conditional(value), local.info)
            return normal_prior(found, site), normal_prior(at, site)

        for seed in range(2):
            found, expected = both(jax.random.key(seed))
            is_same = jax.tree.structure(found) == jax.tree.structure(expected) and all(
                np.allclose(one, two, rtol=1e-4, atol=1e-5)
                for one, two in zip(*map(jax.tree.leaves, (found, expected)), strict=True)
            )
            if not is_same:
                raise ValueError(
                    f"Site '{site}': its law is not {type(base).__name__}.conditional({parent}), normal with the mean and scale "
                    f"that '{parent}' holds, so the expected natural parameters of '{parent}' are not its own. Draw it as "
                    f"ppl.sample('{site}', law.conditional({parent})) with the law of '{parent}', or leave out "
                    f"parent='{parent}'."
                )


def _on_rows(law: dist.Distribution, info: ppl.SiteInfo) -> dist.Distribution:
    """A normal law with the rows and the events of the local site."""
    if isinstance(law, dist.Normal):
        return law.expand((*info.batch_shape, *info.event_shape)).to_event(len(info.event_shape))
    return law.expand(info.batch_shape)


def _parent_prior(parent: str, at: str, laws: Laws, local: LocalModel) -> NormalPrior:
    base: Any = element(laws.found[parent][0])[0]
    if at == "mode":
        mean, spread = base.mode
        if isinstance(base, ppl.distributions.NormalInverseWishart):
            law = dist.MultivariateNormal(mean, covariance_matrix=spread)
        elif isinstance(base, ppl.distributions.GroupedNormalInverseGamma):
            law = base.conditional(jnp.concatenate([mean, jnp.sqrt(spread)], -1))
        else:
            law = dist.Normal(mean, jnp.sqrt(spread))
    else:
        law = base.expected_conditional()[0]
    return normal_prior(_on_rows(law, local.info), local.site)


def _student_prior(parent: str, laws: Laws, local: LocalModel) -> StudentPrior:
    """The marginal law of the site under the parent's law."""
    base: Any = element(laws.found[parent][0])[0]
    on_rows = lambda law: normal_prior(_on_rows(law, local.info), local.site)
    law: Any = base.predictive()
    if isinstance(base, ppl.distributions.NormalInverseWishart):
        df = jnp.broadcast_to(law.df, local.info.batch_shape)
        return StudentPrior(
            df, on_rows(dist.MultivariateNormal(law.loc, scale_tril=law.scale_tril))
        )
    if isinstance(base, ppl.distributions.GroupedNormalInverseGamma):
        df = jnp.broadcast_to(law.df, (*local.info.batch_shape, law.groups.count))
        normal = on_rows(dist.Normal(law.loc, law.scale).to_event(1))
        return StudentPrior(df, normal, law.groups)
    df = on_rows(dist.Normal(law.df, 1.0)).loc
    return StudentPrior(df, on_rows(dist.Normal(law.loc, law.scale)))


def _identity(tree: PyTree) -> PyTree:
    return tree


def _stopped(tree: PyTree) -> Any:
    return jax.tree.map(stop, tree)


def _check_options(
    model: ppl.Program, guide: ppl.Program | None, inner: object, curvature: Curvature, gradient: str,
    parent: str | None, parent_at: str,
) -> None:  # fmt: skip
    for program in (model, guide):
        if program is not None:
            refuse_estimated("local_laplace", program, "so its rows have no loss to expand")
    if isinstance(getattr(guide, "fn", None), AutoGuide):
        raise ValueError(
            "local_laplace: the guide of the other sites is an autoguide, which covers the local site as well. Write it as a "
            "program over the other latent sites."
        )
    problems = []
    if not isinstance(inner, Inner):
        problems.append(
            f"'inner' must be an inner program such as Newton(3); got {type(inner).__name__}"
        )
    if (curvature.kind == "sgld_variance") != isinstance(inner, SGLD):
        problems.append(
            f"'curvature' {curvature.kind!r} and 'inner' {type(inner).__name__} do not fit: 'sgld_variance' and SGLD go together"
        )
    if gradient not in ("unrolled", "closed_form", "partial"):
        problems.append(
            f"'gradient' must be 'unrolled', 'closed_form' or 'partial'; got {gradient!r}"
        )
    places = ("expected", "mode", "marginal")
    if parent_at not in places or (parent is None and parent_at != "expected"):
        problems.append(
            f"'parent_at' must be one of {places}, and the last two need a parent; got {parent_at!r}"
        )
    if curvature.rank is not None and gradient == "unrolled":
        problems.append(
            "'curvature' with a rank goes with gradient 'closed_form' or 'partial' (the projection has no derivative where "
            f"directions tie); got rank {curvature.rank} with {gradient!r}"
        )
    if problems:
        raise ValueError("local_laplace: argument " + ";\nargument ".join(problems) + ".")
