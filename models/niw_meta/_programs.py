"""The hierarchical model of episodes and its guide."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree
from numpyro.distributions import constraints

from ... import inference, ppl
from ...inference.local._curvature import CurvatureKind
from ...ppl._compat import is_concrete
from ._episodes import Episodes, Points, check_classes
from ._heads import Head, Softmax
from ._weights import Weights

POSITIVE = constraints.positive


class NIWMeta(NamedTuple):
    """A model of episodes and its guide, both functions of one `Episodes`.

    Attributes:
        model: sites "theta" [episodes, 1, d] (local weights), "support" and "query" (observed labels), with a finite population
            also "phi", mean and width of each weight [d, 2], or all means and the width of each layer [d + L]; deterministic
            "support_scores" and "query_scores" [episodes, n, c], see `Head.scores`.
        guide: sites "phi" and "theta".
    """

    model: ppl.Program
    guide: ppl.Program


def programs(
    network: object,
    head: Head,
    *,
    features: object = None,
    prior_scale: float | Float[Array, " d"] = 0.1,
    widths: Literal["weight", "layer"] = "weight",
    population: Literal["infinite", "finite"] = "infinite",
    inner: inference.local.Inner = inference.local.Newton(3, damping=0.5),  # noqa: B008, frozen
    curvature: CurvatureKind | inference.local.Curvature = "low_rank_gauss_newton",
    gradient: Literal["unrolled", "closed_form", "partial"] = "closed_form",
    parent_at: Literal["expected", "mode", "marginal"] = "expected",
) -> NIWMeta:
    """NIW-Meta: an episode's weights are drawn from a population, which is learned from many episodes.

        phi = (mean, scale) of every weight,   theta_i | phi ~ Normal(mean, scale),   y_in ~ head(network(theta_i, x_in)),

    and q(theta_i) is the Laplace approximation on the support alone (`inference.local_laplace`). The bound counts support and
    query: it trains the population to be adapted by it.

    Args:
        network: an equinox module that maps one input to a vector of outputs; its own weights [d] are where the population
            starts.
        head: `GaussianNoise`, `Softmax`, `NearestCentroid`; what it learns is a parameter beside the population.
        features: an equinox module that maps one input to the network's input, the same for all episodes (parameter "features").
            With `network` a linear layer, adapting is a Bayesian readout: with a `GaussianNoise` head the site is then exact, and
            its mean is ridge regression.
        prior_scale: initial standard deviation of the weights in the population: one number, or one of each weight [d], or of
            each layer [L] with `widths="layer"`.
        widths: what has a standard deviation of its own in the population: each "weight", or each "layer", shared by its weights
            (L modules that hold arrays, e.g. an `equinox.nn.Linear`). Of one weight among thousands a batch of episodes
            says next to nothing, and its width may stay where it starts; those of a layer say it together.
        population: "finite": phi is a site with the prior NormalInverseGamma(start, 1, 1, prior_scale^2) for each weight, or
            GroupedNormalInverseGamma of the same numbers for each layer, and its law in the guide is learned (parameters "loc",
            [d], "mean_precision", "concentration" and "rate", [d] or [L]). "infinite": the optimal q(phi) is a point then; mean
            and scale are the parameters "loc", [d], and "scale", [d] or [L].
        inner: inner program, see `local_laplace`.
        curvature: see `inference.local.Curvature`; its rank a few dozen where labels times classes are many. With a head that
            looks at each point by itself the Jacobian goes by observation, and the number of points in the support as rank
            leaves each of them one direction, at half the cost of the Jacobian or less.
        gradient: see `local_laplace`; the paper's is "closed_form".
        parent_at: what an episode's weights are drawn from, for a finite population: normal laws at the "expected" natural
            parameters or the "mode" of q(phi), of which the paper trains with the first and tests with the second, or the exact
            "marginal" law, Student t: of each weight, or of the weights of a layer together, whose widths are one. The guide of
            training goes with "expected", where the bound is tightest; to adapt a new episode, "marginal" when the population was
            learned from few episodes, whose weights a new one may lie far from. "mode" is the narrowest: its precision is that
            of "expected" times 1 + (n + 2) / (2 concentration), n weights to a width.

    Returns:
        `NIWMeta`, for `elbo(model, guide, kl="analytic")`; with an infinite population for
        `elbo(...).with_plate_sizes({"episodes": math.inf})`. `optimizer` gives rates to go with it.

    Raises:
        ValueError: `widths` or `population` is unknown; `parent_at` is not "expected" with an infinite population; any refusal
            of `local_laplace`.

    Validity: `local_laplace` says when the gradient is that of the bound. With an infinite population there is no posterior of
    phi, and none is reported. Widths are those of the population where support alone is observed and the site is exact; labels
    of queries count under draws that have not seen them, which charges for spread and makes the widths narrower.
    Reference: Kim and Hospedales 2024, ICLR, arXiv:2306.09702.

    Example:
        >>> import equinox as eqx, jax
        >>> from lapilli.models import niw_meta
        >>> network = eqx.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
        >>> model, guide = niw_meta.programs(network, niw_meta.GaussianNoise(0.3))
        >>> points = niw_meta.pad_points([([[0.0], [1.0]], [0.1, 0.9])])
        >>> trace = jax.eval_shape(guide.simulate, jax.random.key(1), niw_meta.Episodes(points, points))
        >>> trace.choices["theta"].shape
        (1, 1, 25)
    """
    if widths not in ("weight", "layer") or population not in ("infinite", "finite"):
        raise ValueError(
            f"niw_meta.programs: widths={widths!r}, population={population!r}. Give widths 'weight' or 'layer', and population "
            "'infinite' or 'finite'."
        )
    is_finite = population == "finite"
    if parent_at != "expected" and not is_finite:
        raise ValueError(
            f"niw_meta.programs: parent_at={parent_at!r} needs population='finite'; with an infinite one q(phi) is a point."
        )
    if isinstance(curvature, str):
        curvature = inference.local.Curvature(curvature)
    weights = Weights(network)
    loc = weights.start
    group = weights.layer if widths == "layer" else None
    sizes = np.ones(loc.shape, int) if group is None else np.bincount(group)
    scale = jnp.broadcast_to(jnp.asarray(prior_scale, loc.dtype), sizes.shape)

    def of_population(loc: Array, *numbers: PyTree) -> tuple[dist.Distribution, PyTree]:
        """Law of phi, and that of weights as a function of phi."""
        if group is not None:
            law = ppl.distributions.GroupedNormalInverseGamma(loc, *numbers, group=group)
            return law, law.conditional
        pairs = ppl.distributions.NormalInverseGamma(loc, *numbers)
        return pairs.to_event(1), lambda phi: pairs.conditional(phi).to_event(1)

    @ppl.model
    def model(episodes: Episodes) -> None:
        support, query = episodes
        if is_finite:
            prior, conditional = of_population(loc, 1.0, 1.0, scale**2)
            law = conditional(ppl.sample("phi", prior))
        else:
            width = ppl.param("scale", scale, constraint=POSITIVE)
            width = width if group is None else width[group]
            law = dist.Normal(ppl.param("loc", loc), width).to_event(1)
        own = head.declared()
        inputs = support.x, query.x
        if features is not None:
            inputs = map(jax.vmap(jax.vmap(ppl.module("features", features))), inputs)
        with ppl.plate("episodes", support.x.shape[0], dim=-2):
            theta = ppl.sample("theta", law)
            at_support, at_query = (weights.of_episodes(theta, x) for x in inputs)
            observe("support", own, at_support, at_support, episodes)
            observe("query", own, at_query, at_support, episodes)

    @ppl.model
    def guide(episodes: Episodes) -> None:
        # Ten episodes whose weights are known, to start from.
        law, _ = of_population(
            ppl.param("loc", loc),
            ppl.param("mean_precision", jnp.full_like(scale, 10.0), constraint=POSITIVE),
            ppl.param("concentration", jnp.full_like(scale, 5.0) * sizes, constraint=POSITIVE),
            ppl.param("rate", 5.0 * sizes * scale**2, constraint=POSITIVE),
        )
        ppl.sample("phi", law)

    local_guide = inference.local_laplace(
        model,
        guide if is_finite else None,
        site="theta",
        parent="phi" if is_finite else None,
        parent_at=parent_at,
        inner=inner,
        curvature=dataclasses.replace(
            curvature, jacobian="by_observation" if head.is_pointwise else "whole"
        ),
        gradient=gradient,
        observations=["support"],
    )
    return NIWMeta(model, local_guide)


def observe(
    name: Literal["support", "query"],
    head: Head,
    outputs: Array,
    support: Array,
    episodes: Episodes,
) -> None:
    """State the labels of the support or of the query, padding masked, in a plate of its own ("query_points", dim -1).

    To be called within the plate "episodes" at dim -2. Leaves the site `name` and the deterministic site "<name>_scores".

    Args:
        name: which part of the episodes.
        head: likelihood, declared (`Head.declared`).
        outputs: of a network at that part's inputs, [episodes, n, k].
        support: of the network at the support's inputs.
        episodes: inputs and labels.

    Raises:
        ValueError: labels of a classification that are none of its classes, where they are known; under `jax.jit` those of a
            support make NaN of its episode's scores.
    """
    points: Points = getattr(episodes, name)
    scores = head.scores(outputs, support, episodes.support)
    if isinstance(head, Softmax):
        scores = _of_classes(scores, episodes)
    with ppl.plate(f"{name}_points", points.x.shape[1], dim=-1):
        ppl.sample(name, head.law(scores).mask(points.mask), obs=points.y)
        ppl.deterministic(f"{name}_scores", scores)


def _of_classes(scores: Array, episodes: Episodes) -> Array:
    """The scores, NaN in episodes whose support has a label that is no class: it would be left out of what is learned of them."""
    num_ways = scores.shape[-1]
    for part, labelled in zip(Episodes._fields, episodes, strict=True):
        if labelled.y is not None and is_concrete((labelled.y, labelled.mask)):
            check_classes(f"niw_meta: the {part}", labelled, num_ways)
    support = episodes.support
    if support.y is None:
        return scores
    is_class = jnp.isin(support.y, jnp.arange(num_ways)) | ~jnp.asarray(support.mask, bool)
    return jnp.where(is_class.all(-1)[:, None, None], scores, jnp.nan)
