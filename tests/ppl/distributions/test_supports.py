"""True supports: what the set of a law's values depends on, and that moving ones are refused where scores are taken."""

from __future__ import annotations

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import (
    constraints,
    transforms as T,  # noqa: N812
)

from lapilli import inference, ppl
from lapilli.ppl.distributions._supports import Support, same_support, support_of_law
from lapilli.ppl.jaxprs._dependence import Analysis
from lapilli.ppl.jaxprs._primitive import mark

Affine, Moved = T.AffineTransform, dist.TransformedDistribution
PAIR = np.zeros(2)


def mixture(*laws: dist.Distribution, support: object = None) -> dist.Distribution:
    weights = dist.Categorical(logits=np.zeros(len(laws)))
    return dist.MixtureGeneral(weights, list(laws), support=support)  # type: ignore[arg-type]


def uniform(*transforms: object, low: float = 0.0, high: float = 1.0) -> dist.Distribution:
    return Moved(dist.Uniform(low, high), list(transforms))  # type: ignore[arg-type]


class Shift(T.Transform):
    """A user's transform that says nothing of its sets, and hides its parameter from JAX."""

    def __init__(self, t: object) -> None:
        self.add = lambda x: x + t

    def __call__(self, x: object) -> object:
        return self.add(x)

    def _inverse(self, y: object) -> object:
        return y - self.add(0.0)

    def log_abs_det_jacobian(self, x: object, y: object, intermediates: object = None) -> object:
        return jnp.zeros_like(x)

    def tree_flatten(self) -> object:
        return (), ((), {"add": self.add})


class Flow(Shift):
    """One that says that it maps the line onto itself."""

    domain = constraints.real
    codomain = constraints.real


class Unnamed(dist.Distribution):
    """A user's law whose support has no name."""

    support = constraints.dependent

    def __init__(self, t: object) -> None:
        self.t = t
        super().__init__()

    def sample(self, key: object, sample_shape: tuple[int, ...] = ()) -> object:
        return self.t * jax.random.uniform(key, sample_shape)

    def log_prob(self, value: object) -> object:
        return jnp.where(value < self.t, -jnp.log(self.t), -jnp.inf)


MOVING = {
    "t * Uniform": lambda t: uniform(Affine(0.0, t)),
    "t + Uniform": lambda t: uniform(Affine(t, 1.0)),
    "rows of t * Uniform": lambda t: dist.Independent(Moved(dist.Uniform(PAIR, 1.0), Affine(0.0, t)), 1),
    "masked, expanded": lambda t: uniform(Affine(0.0, t)).mask(True).expand([3]).to_event(1),
    "|t * Uniform(-1, 1)|": lambda t: uniform(Affine(0.0, t), T.AbsTransform(), low=-1.0),
    "Uniform(1, 2) ** t": lambda t: uniform(T.PowerTransform(t), low=1.0, high=2.0),
    "t + Exponential": lambda t: Moved(dist.Exponential(1.0), Affine(t, 1.0)),
    "t + Exponential, domain given": lambda t: Moved(
        dist.Exponential(1.0), Affine(t, 1.0, domain=constraints.positive)
    ),
    "t - Exponential": lambda t: Moved(dist.Exponential(1.0), [Affine(0.0, -1.0), Affine(t, 1.0)]),
    "exp(t + HalfNormal)": lambda t: Moved(dist.HalfNormal(1.0), [Affine(t, 1.0), T.ExpTransform()]),
    "softplus(t + HalfNormal)": lambda t: Moved(
        dist.HalfNormal(1.0), [Affine(t, 1.0), T.SoftplusTransform()]
    ),
    "composed": lambda t: Moved(dist.HalfNormal(1.0), T.ComposeTransform([T.ExpTransform(), Affine(t, 1.0)])),
    "t * sigmoid(Normal)": lambda t: Moved(dist.Normal(0.0, 1.0), [T.SigmoidTransform(), Affine(0.0, t)]),
    "inverse": lambda t: uniform(Affine(0.0, t).inv),
    "independent transform": lambda t: Moved(
        dist.Uniform(PAIR, 1.0).to_event(1), T.IndependentTransform(Affine(t, 1.0), 1)
    ),
    "Cholesky of Uniform": lambda t: Moved(
        dist.Uniform(PAIR, 1.0).to_event(1), T.LowerCholeskyAffine(PAIR, t * jnp.eye(2))
    ),
    "mixture": lambda t: mixture(dist.Uniform(0.0, 1.0), dist.Uniform(0.0, t)),
    "mixture of one family": lambda t: dist.MixtureSameFamily(
        dist.Categorical(logits=PAIR), Moved(dist.Uniform(PAIR, 1.0), Affine(0.0, t))
    ),
    "chosen": lambda t: ppl.distributions.Chosen(dist.Uniform(PAIR, jnp.stack([t, 2 * t])), np.array(1)),
    "left truncated": lambda t: dist.TruncatedNormal(0.0, 1.0, low=t),
    "right truncated": lambda t: dist.TruncatedCauchy(0.0, 1.0, high=t),
    "power law": lambda t: dist.LowerTruncatedPowerLaw(alpha=-5.0, low=t),
    "LogUniform": lambda t: dist.LogUniform(1.0, 1 + t),
    "Pareto": lambda t: dist.Pareto(t, 4.0),
    "Levy": lambda t: dist.Levy(t, 1.0),
    "exp of a point mass": lambda t: Moved(dist.Delta(t), T.ExpTransform()),
    "folded": lambda t: dist.FoldedDistribution(dist.Uniform(0.0, t)),
    "copula": lambda t: dist.GaussianCopula(dist.Uniform(PAIR, t), correlation_cholesky=np.eye(2)),
    "diffusion from Uniform": lambda t: dist.EulerMaruyama(
        np.arange(3.0), lambda x, s: (x, 1.0), dist.Uniform(0.0, t)
    ),
    "user's transform": lambda t: uniform(Shift(t)),
}  # fmt: skip
UNKNOWN = {
    "user's law": (lambda t: Unnamed(t), "declared as `dependent`"),
    "mixture with a user's law": (lambda t: mixture(Unnamed(t), dist.Uniform(0.0, 1.0), support=constraints.real), "dependent"),
    "point mass and density": (
        lambda t: mixture(dist.Normal(t, 1.0), dist.Delta(0.0), support=constraints.real), "mixes point masses",
    ),
}  # fmt: skip
FIXED = {
    "Normal": lambda t: dist.Normal(t, t),
    "t + t Normal": lambda t: Moved(dist.Normal(0.0, 1.0), Affine(t, t)),
    "sigmoid(t + t Normal)": lambda t: Moved(dist.Normal(0.0, 1.0), [Affine(t, t), T.SigmoidTransform()]),
    "t * Exponential": lambda t: Moved(dist.Exponential(1.0), Affine(0.0, t)),
    "exp(t HalfNormal)": lambda t: Moved(dist.HalfNormal(1.0), [Affine(0.0, t), T.ExpTransform()]),
    "Uniform ** t": lambda t: uniform(T.PowerTransform(t)),
    "Gamma ** t": lambda t: Moved(dist.Gamma(2.0, 1.0), T.PowerTransform(t)),
    "logit(Uniform)": lambda t: uniform(T.SigmoidTransform().inv, Affine(t, t)),
    "softplus": lambda t: Moved(dist.Normal(t, 1.0), T.SoftplusTransform()),
    "inverse softplus": lambda t: Moved(dist.HalfNormal(t), T.SoftplusTransform().inv),
    "truncated, fixed": lambda t: dist.TruncatedNormal(t, 1.0, low=0.0, high=2.0),
    "LogUniform, fixed": lambda t: dist.LogUniform(1.0, 2.0),
    "Pareto, fixed": lambda t: dist.Pareto(1.0, t),
    "Levy, fixed": lambda t: dist.Levy(0.0, t),
    "mixture": lambda t: mixture(dist.Normal(t, 1.0), dist.Normal(0.0, t)),
    "mixture, other supports": lambda t: mixture(dist.Normal(t, 1.0), dist.LogNormal(0.0, t), support=constraints.real),
    "folded": lambda t: dist.FoldedDistribution(dist.Normal(t, 1.0)),
    "flow that names its sets": lambda t: Moved(dist.Normal(0.0, 1.0), Flow(t)),
    **{name: partial(lambda law, t: law(t, 1.0), getattr(dist, name)) for name in (
        "LogNormal Gumbel Laplace Logistic Cauchy SoftLaplace Gamma Beta InverseGamma Kumaraswamy Weibull VonMises Gompertz"
    ).split()},
    "StudentT": lambda t: dist.StudentT(3.0, t, t),
    "AsymmetricLaplace": lambda t: dist.AsymmetricLaplace(t, 1.0, 1.0),
    "BetaProportion": lambda t: dist.BetaProportion(t / 9, 2.0),
    "RelaxedBernoulli": lambda t: dist.RelaxedBernoulli(0.5, logits=t),
    "Dirichlet": lambda t: dist.Dirichlet(t * np.ones(3)),
    "MultivariateNormal": lambda t: dist.MultivariateNormal(t * np.ones(2), np.eye(2)),
    "LowRank": lambda t: dist.LowRankMultivariateNormal(t * np.ones(2), np.ones((2, 1)), np.ones(2)),
    "LKJ": lambda t: dist.LKJ(3, t),
    "LKJCholesky": lambda t: dist.LKJCholesky(3, t),
    "Wishart": lambda t: dist.Wishart(4.0, t * jnp.eye(3)),
    "ZeroSumNormal": lambda t: dist.ZeroSumNormal(t, (3,)),
    "diffusion": lambda t: dist.EulerMaruyama(np.arange(3.0), lambda x, s: (x, 1.0), dist.Normal(t, 1.0)),
    "random walk": lambda t: dist.GaussianRandomWalk(t, 3),
    "stick breaking": lambda t: Moved(dist.Normal(t * np.ones(2), 1.0).to_event(1), T.StickBreakingTransform()),
    "ordered": lambda t: Moved(dist.Normal(t * np.ones(2), 1.0).to_event(1), T.OrderedTransform()),
    "ordered simplex": lambda t: Moved(dist.Dirichlet(t * np.ones(3)), T.SimplexToOrderedTransform(t)),
    "Cholesky": lambda t: Moved(
        dist.Normal(PAIR, 1.0).to_event(1), T.LowerCholeskyAffine(t * np.ones(2), t * np.eye(2))
    ),
    "Poisson": lambda t: dist.Poisson(t),
    "ZeroInflatedPoisson": lambda t: dist.ZeroInflatedPoisson(0.3, t),
    "copula of Beta": lambda t: dist.GaussianCopulaBeta(t, np.ones(2), correlation_cholesky=np.eye(2)),
}  # fmt: skip


# Laws made of other laws, or by transforms, whose `support` has been read and found true or is worked out anew.
READ_LAWS = set(
    """CirculantNormal FoldedDistribution GaussianStateSpace InverseGamma InverseWishart LKJ LogNormal LogUniform Pareto
RelaxedBernoulliLogits TransformedDistribution Wishart ZeroSumNormal""".split()
)
READ_CONTAINERS = set(
    """EulerMaruyama LeftTruncatedGamma RightTruncatedGamma TwoSidedTruncatedGamma
    ExpandedDistribution GaussianCopula Independent IntervalCensoredDistribution LeftCensoredDistribution
LeftTruncatedDistribution MaskedDistribution MixtureGeneral MixtureSameFamily RightCensoredDistribution RightTruncatedDistribution
SineSkewed TwoSidedTruncatedDistribution ZeroInflatedLogits ZeroInflatedProbs HurdleLogits HurdleProbs GaussianCopulaBeta
BetaBinomial DirichletMultinomial GammaPoisson Wishart InverseWishart""".split()
)
READ_TRANSFORMS = set(
    """AbsTransform AffineTransform CatTransform CholeskyTransform ComplexTransform ComposeTransform
CorrCholeskyTransform CorrMatrixCholeskyTransform DiscreteCosineTransform ExpTransform HaarTransform IdentityTransform
IndependentTransform L1BallTransform LowerCholeskyAffine LowerCholeskyTransform OrderedTransform
PackRealFastFourierCoefficientsTransform PermuteTransform PowerTransform RealFastFourierTransform RecursiveLinearTransform
ReshapeTransform ScaledUnitLowerCholeskyTransform SigmoidTransform SimplexToOrderedTransform SoftplusLowerCholeskyTransform
SoftplusTransform StickBreakingTransform UnpackTransform ZeroSumTransform _InverseTransform ParameterFreeTransform
BlockNeuralAutoregressiveTransform InverseAutoregressiveTransform""".split()
)


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*(subclasses(sub) for sub in cls.__subclasses__()))


def numpyros(cls: type) -> dict[str, type]:
    import numpyro.distributions.flows

    found = {c.__name__: c for c in subclasses(cls) if c is not cls}
    return {
        n: c for n, c in found.items() if c.__module__.startswith(numpyro.distributions.__name__)
    }


def test_every_transform_of_numpyro_has_been_read() -> None:
    """A new one may have a codomain that is not its image: look at `_image` in ppl/distributions/_supports.py, then list it."""
    assert set(numpyros(T.Transform)) <= READ_TRANSFORMS


def test_every_law_of_numpyro_that_is_made_of_others_has_been_read() -> None:
    laws = numpyros(dist.Distribution)
    transformed = {n for n, c in laws.items() if issubclass(c, dist.TransformedDistribution)}
    assert transformed <= READ_LAWS

    def takes_laws(cls: type) -> bool:
        names = inspect.signature(cls.__init__).parameters
        return any("dist" in name for name in names)

    assert {n for n, c in laws.items() if takes_laws(c)} <= READ_CONTAINERS | READ_LAWS | {
        "_MixtureBase"
    }


def met(make: object) -> tuple[bool, str]:
    """Whether the parameter moves the support of `make(t)`, and why it cannot be known."""
    unknown = []

    def program(t: jax.Array) -> jax.Array:
        support = support_of_law(make(t))
        unknown.append(support.unknown)
        return mark(jnp.zeros(()), (), support.edges, index=0)

    return bool(Analysis(jax.make_jaxpr(program)(1.3), [True]).supports[0].relations), unknown[0]


@pytest.mark.parametrize("name", MOVING)
def test_supports_that_a_parameter_moves(name: str) -> None:
    assert met(MOVING[name]) == (True, "")


@pytest.mark.parametrize("name", FIXED)
def test_supports_that_stand_still(name: str) -> None:
    assert met(FIXED[name]) == (False, "")


@pytest.mark.parametrize("name", UNKNOWN)
def test_supports_without_a_name(name: str) -> None:
    make, words = UNKNOWN[name]
    assert words in met(make)[1]


LAWS = {name: make(1.3) for name, make in FIXED.items() if "mixture" not in name}
SCALAR = [name for name, law in LAWS.items() if not law.event_shape and not law.is_discrete]


@pytest.mark.fast(
    "BetaProportion",
    "Gamma",
    "Gompertz",
    "InverseGamma",
    "Kumaraswamy",
    "LogNormal",
    "LogUniform, fixed",
    "Pareto, fixed",
    "RelaxedBernoulli",
    "StudentT",
    "flow that names its sets",
    "inverse softplus",
    "logit(Uniform)",
    "softplus",
)
@pytest.mark.parametrize("name", SCALAR)
def test_a_fixed_support_holds_the_draws_of_all_parameters(name: str) -> None:
    """The claim behind the table: draws under one parameter have a finite density under another."""
    laws = [FIXED[name](t) for t in (0.9, 1.4)]
    for a, b in (laws, laws[::-1]):
        draws = a.sample(jax.random.key(0), (200,))
        assert np.isfinite(b.log_prob(draws)).all()


@pytest.mark.parametrize(
    "name",
    ["t * Uniform", "t + Uniform", "Uniform(1, 2) ** t", "LogUniform", "Pareto", "power law"],
)
def test_the_ends_of_a_moving_support_move(name: str) -> None:
    draws = [MOVING[name](t).sample(jax.random.key(0), (5000,)) for t in (0.9, 1.4)]
    ends = np.array([[x.min(), x.max()] for x in draws])
    assert (np.abs(ends[0] - ends[1]) > 0.2).any()


@pytest.mark.parametrize("wrap", ["eager", "jit", "inside"])
@pytest.mark.parametrize("strategy", ["reinforce", "reinforce_loo"])
def test_scores_of_moving_supports_are_refused(strategy: str, wrap: str) -> None:
    def cost(t: jax.Array) -> jax.Array:
        return ppl.sample("z", MOVING["t * Uniform"](t)) ** 2

    inner = ppl.expectation(cost, strategies=strategy)
    call = {
        "eager": lambda: inner.grad(0.3, jax.random.key(0)),
        "jit": lambda: jax.jit(inner.grad)(0.3, jax.random.key(0)),
        "inside": lambda: ppl.expectation(
            lambda t: ppl.draw(ppl.as_program(cost), t).retval, strategies=strategy
        ).grad(0.3, jax.random.key(0)),
    }[wrap]
    with pytest.raises(
        ValueError, match="Site 'z': the support of .* depends on a parameter.*'reparam'"
    ):
        call()


@pytest.mark.parametrize("name", UNKNOWN)
def test_scores_of_unknown_supports_are_refused(name: str) -> None:
    objective = ppl.expectation(
        lambda t: ppl.sample("z", UNKNOWN[name][0](t)) ** 2, strategies="reinforce"
    )
    with pytest.raises(ValueError, match="Site 'z': the support of .* cannot be known"):
        objective.grad(0.3, jax.random.key(0))


def test_a_mixture_is_not_told_to_use_reparam() -> None:
    objective = ppl.expectation(
        lambda t: ppl.sample("z", MOVING["mixture"](t)), strategies="reinforce"
    )
    with pytest.raises(ValueError, match="a site for the component") as error:
        objective.grad(0.3, jax.random.key(0))
    assert "'reparam'" not in str(error.value)


@pytest.mark.parametrize("objective", ["stl", "dreg"])
@pytest.mark.parametrize("name", ["t * Uniform", "t + Exponential", "folded"])
def test_left_out_scores_need_a_fixed_support(objective: str, name: str) -> None:
    def model() -> None:
        ppl.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        ppl.sample("z", MOVING[name](ppl.param("t", 0.8)))

    if objective == "stl":
        bound = inference.elbo(model, guide, gradient="stl")
    else:
        bound = inference.iwelbo(model, guide, num_particles=2, gradient="dreg")
    with pytest.raises(
        ValueError, match="'z'.*whose mean is zero for a fixed support only.*is computed"
    ):
        bound.grad({"t": jnp.array(0.8)}, jax.random.key(0))


def test_importance_compares_true_supports() -> None:
    proposal = uniform(Affine(0.0, 2.0))
    objective = ppl.expectation(
        lambda t: ppl.sample("z", dist.Normal(t, 1.0)), strategies=ppl.Importance(proposal)
    )
    with pytest.raises(ValueError, match="proposal with the support of Normal"):
        objective.grad(0.3, jax.random.key(0))
    shifted = support_of_law(Moved(dist.Uniform(0.0, 1.0), Affine(1.0, 2.0)))
    assert same_support(shifted, support_of_law(dist.Uniform(1.0, 3.0)))


def test_a_scale_of_a_half_line_keeps_its_score() -> None:
    """E[t x] = t for x ~ Exponential(1): by the score of t * Exponential, d/dt = 1; a bias of 0.03 is 7 standard errors."""
    objective = ppl.expectation(
        lambda t: ppl.sample("z", FIXED["t * Exponential"](t)), strategies="reinforce"
    )
    grads = jax.jit(jax.vmap(lambda k: objective.grad(0.7, k)))(
        jax.random.split(jax.random.key(0), 400_000)
    )
    assert abs(float(grads.mean()) - 1.0) < 4.5 * float(grads.std()) / 400_000**0.5


def test_remedies_for_fixed_parameters_serve_the_site() -> None:
    objective = ppl.expectation(lambda t: ppl.sample("z", dist.Gamma(t, 1.0)), strategies="mvd")
    with pytest.raises(
        ValueError, match="Use 'implicit' or 'reinforce', or keep 'concentration' constant"
    ):
        objective.grad(3.0, jax.random.key(0))


def test_automatic_choice_says_why_it_found_none() -> None:
    objective = ppl.expectation(lambda t: ppl.sample("z", MOVING["mixture"](t)), strategies="auto")
    with pytest.raises(
        ValueError,
        match="Site 'z': no strategy can serve MixtureGeneral soundly: .*'reinforce' was refused",
    ):
        objective.grad(0.3, jax.random.key(0))


def test_a_law_of_unknown_support_is_not_told_to_use_scores() -> None:
    make = UNKNOWN["mixture with a user's law"][0]
    objective = ppl.expectation(lambda t: ppl.sample("z", make(t)))
    with pytest.raises(
        ValueError, match="Site 'z'.*No strategy is sound here: its support is unknown"
    ) as error:
        objective.grad(0.3, jax.random.key(0))
    assert "'reinforce'" not in str(error.value)


def test_a_density_that_vanishes_at_the_edge_is_refused_and_its_remedy_has_the_gradient(
    key,
) -> None:
    """E[z^2] = 0.3 t^2 for z = t b, b of Beta(2, 2); 20,000 draws."""

    def moving(t):
        return (
            ppl.sample("z", Moved(dist.Beta(2.0, 2.0), [Affine(0.0, t)]), strategy="reinforce") ** 2
        )

    with pytest.raises(
        ValueError, match=r"Site 'z'.*Where the density vanishes at the edge.*b of Beta\(2, 2\)"
    ):
        ppl.expectation(moving).grad(1.5, jax.random.key(0))

    def fixed(t):
        return (t * ppl.sample("b", dist.Beta(2.0, 2.0), strategy="reinforce")) ** 2

    keys = jax.random.split(key, 20_000)
    grads = jax.vmap(lambda k: ppl.expectation(fixed).grad(1.5, k))(keys)
    assert abs(grads.mean() - 0.6 * 1.5) < 4.5 * grads.std() / np.sqrt(len(keys))


def test_what_is_unknown_equals_nothing():
    """Not even itself."""
    unknown = Support(ends=(0.0, 1.0), unknown="a test says so")
    assert same_support(Support(ends=(0.0, 1.0)), Support(ends=(0.0, 1.0)))
    assert not same_support(unknown, unknown)
    assert not same_support(unknown, Support(ends=(0.0, 1.0)))
