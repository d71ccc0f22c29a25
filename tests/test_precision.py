"""Products of the library's own linear algebra keep the precision of their operands, whatever a device's default is.

Three looks: no product is written outside of `full_precision` but in networks; none is traced at the default precision in any
part, its derivatives included; and NumPyro's laws, which are made to multiply in full, are all those that multiply.
"""

import ast
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _products import ROOT, is_product, outside, products
from numpyro.distributions import transforms

from lapilli import inference, ppl
from lapilli.ppl import _precision

# Networks, and the models' maps from states to data beside them: as precise as a user's own.
NETWORKS = {
    "models/adapters/_low_rank.py",
    "models/air.py",
    "models/deep_latent.py",
    "models/diffusion/_networks.py",
    "models/imputation/_networks.py",
    "models/koopman/_networks.py",
    "models/mam/_made.py",
    "models/mam/networks/_convolutions.py",
    "models/pv_rnn/_network.py",
}
FILES = sorted(f for p in ("ppl", "inference", "models") for f in (ROOT / p).rglob("*.py"))


# NumPy's products, in files that have JAX's arrays elsewhere.
HOST = {
    "inference/fitting/_judgement.py",
    "inference/fitting/starts/_whitened.py",
    "inference/fitting/starts/_search.py",
    "inference/flows/_autoregressive.py",
    "inference/flows/_columns.py",
    "inference/posteriors/weighted/_mixture.py",
    "inference/posteriors/chains/_modes.py",
    "inference/posteriors/chains/_sampler.py",
    "inference/simulators/_networks.py",
    "models/gflownet/environments/_bits.py",
    "models/gflownet/environments/_structure.py",
    "models/ising.py",
    "models/pv_rnn/_analysis.py",
    "ppl/inputs/_wraps.py",
}


def has_jax(tree: ast.Module) -> bool:
    """Whether a file imports JAX at its head."""
    names = [a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names]
    return any(name.split(".")[0] == "jax" for name in names)


def test_no_product_is_written_outside():
    found = {}
    for file in FILES:
        tree = ast.parse(file.read_text())
        if has_jax(tree) and (lines := [*outside(tree)]):
            found[str(file.relative_to(ROOT))] = lines
    assert set(found) == NETWORKS | HOST, found


@pytest.mark.parametrize(
    "source, lines",
    [
        ("def f(a):\n    return a @ a", [2]),
        ("@full_precision\ndef f(a):\n    return a @ a", []),
        ("def f(a):\n    with full_precision():\n        b = a @ a\n    return jnp.dot(b, a)", [4]),
        ("def f(a):\n    a @= a\n    return jax.lax.dot_general(a, a)", [2, 3]),
        ("@other\ndef f(a):\n    return np.dot(a, a) + jnp.einsum('ij->i', a)", [3]),
    ],
)
def test_what_is_written_outside_is_found(source, lines):
    assert [*outside(ast.parse(source))] == lines


# --- what is traced -----------------------------------------------------------------------------------------------------------

rng = np.random.default_rng(0)
X = jnp.asarray(rng.normal(size=(12, 3)), jnp.float32)
Y = jnp.asarray(rng.normal(size=12), jnp.float32)
KEY = jax.random.key(0)


@ppl.model
def regression(x, y):
    scale = ppl.param("scale", 0.5, constraint=dist.constraints.positive)
    beta = ppl.sample("beta", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with ppl.plate("rows", len(x)):
        ppl.sample("y", dist.Normal(x @ beta, scale), obs=y)


@ppl.model
def correlated(x, y):
    """Coefficients of a multivariate law, and observations in one vector."""
    beta = ppl.sample("beta", dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3) + 0.5))
    ppl.sample("y", dist.Normal(x @ beta, 0.5).to_event(1), obs=y)


@ppl.model
def series(y):
    def step(z, y):
        z = ppl.sample("z", dist.Normal(0.9 * z + 0.1 * z[::-1], 0.1).to_event(1))
        ppl.sample("y", dist.Normal(z.sum(), 0.5), obs=y)
        return z, None

    ppl.scan(step, ppl.sample("first", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), y)


@ppl.model
def logistic(x, y):
    w = ppl.sample("w", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with ppl.plate("rows", len(x)):
        ppl.sample("y", dist.Bernoulli(logits=x @ w), obs=(y > 0).astype(int))


def slopes(fn, *args):
    return jax.make_jaxpr(jax.value_and_grad(fn, argnums=tuple(range(len(args)))))(*args)


def eliminated(model, sites, *args, **options):
    program = ppl.eliminate(model, sites, **options)
    return slopes(lambda *args: program.log_density({}, *args), *args)


def posterior(model, sites, *args):
    program = ppl.eliminate(model, sites)
    return jax.make_jaxpr(
        lambda *args: (program.posterior_marginals({}, *args), program.posterior(KEY, {}, *args))
    )(*args)


LOW_RANK = inference.local.Curvature("low_rank_gauss_newton", rank=2)


def laplace(curvature, **options):
    guide = inference.local_laplace(logistic, site="w", curvature=curvature, **options)
    bound = inference.elbo(logistic, guide)
    params = bound.init(KEY, X, Y)
    return jax.make_jaxpr(lambda x, y: bound.value_and_grad(params, KEY, x, y))(X, Y)


def wishart(x):
    law = ppl.distributions.NormalInverseWishart(jnp.zeros(3), 1.0, jnp.eye(3), 5.0)
    post = law.posterior(x)
    draw = post.sample(KEY)
    total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves((post.mode, draw)))
    return total + post.predictive().log_prob(x).sum()


def constrained(x):
    limits = ppl.distributions.LinearConstraints(["a + b <= 4", "a >= -3", "b >= -3"], ["a", "b"])
    law = ppl.distributions.TruncatedInTurn(dist.Normal(x[0, :2], 1.0), limits)
    return law.log_prob(law.sample(KEY)).sum()


def numpyro_laws(x):
    root = jnp.linalg.cholesky(jnp.eye(3) + 0.3)
    normal = dist.MultivariateNormal(x[0], scale_tril=root)
    low = dist.LowRankMultivariateNormal(x[0], x[:3, :2], jnp.ones(3))
    student = dist.MultivariateStudentT(5.0, x[1], root)
    draws = [law.sample(KEY) for law in (normal, low, student)]
    total = sum(law.log_prob(v) for law, v in zip((normal, low, student), draws, strict=True))
    other = dist.MultivariateNormal(x[1], scale_tril=root)
    return (
        total
        + dist.kl_divergence(normal, other)
        + transforms.LowerCholeskyAffine(x[0], root)(x[2]).sum()
    )


def tempered(x, y):
    return inference.tempered_smc(logistic, KEY, x, y, num_particles=32, num_moves=1).log_evidence


PARTS = {
    "regression": lambda: eliminated(regression.bind({}), "beta", X, Y),
    "coefficients": lambda: eliminated(correlated, "beta", X, Y),
    "few rows": lambda: eliminated(correlated, "beta", X[:2], Y[:2]),
    "posterior": lambda: posterior(correlated, "beta", X, Y),
    "filter": lambda: eliminated(series, ["first", "z"], Y),
    "parallel filter": lambda: eliminated(series, ["first", "z"], Y, parallel=True),
    "smoother": lambda: posterior(series, ["first", "z"], Y),
    "laplace": lambda: laplace("hessian"),
    "gauss-newton": lambda: laplace("gauss_newton"),
    "low rank": lambda: laplace(LOW_RANK, gradient="closed_form"),
    "normal-inverse-wishart": lambda: slopes(wishart, X),
    "linear constraints": lambda: slopes(constrained, X),
    "numpyro's laws": lambda: slopes(numpyro_laws, X),
    "tempering": lambda: jax.make_jaxpr(tempered)(X, Y),
}


@pytest.mark.parametrize("part", PARTS)
def test_no_product_is_traced_at_the_default_precision(part):
    found = products(PARTS[part]().jaxpr)
    assert found["full"] and not found["default"], found


def of_numpyro(module):
    """Functions and methods of a module that multiply matrices; functions within count as theirs."""
    found = set()
    for node in ast.parse(inspect.getsource(module)).body:
        methods = (
            [(f"{node.name}.", n) for n in node.body]
            if isinstance(node, ast.ClassDef)
            else [("", node)]
        )
        for owner, fn in methods:
            if isinstance(fn, ast.FunctionDef) and any(map(is_product, ast.walk(fn))):
                found.add(owner + fn.name)
    return found


def test_all_that_multiplies_in_numpyro_multiplies_in_full():
    whole = {
        name: getattr(dist, name) for name in ("continuous", "directional", "transforms", "util")
    }
    whole |= {"conjugate": dist.conjugate, "discrete": dist.discrete, "mixtures": dist.mixtures}
    multiply = {name: of_numpyro(module) for name, module in whole.items()}
    listed = {name: set(_precision.THEIRS.get(name, "").split()) for name in whole}
    assert multiply == listed
    assert set(_precision.THEIRS) <= set(whole)


@pytest.mark.parametrize("times", [1, 2])
def test_a_product_is_in_full_in_blocks_and_functions_entered_twice(times):
    @_precision.full_precision
    def power(x, n):
        return x @ (power(x, n - 1) if n > 1 else x)

    def fn(x):
        with _precision.full_precision(), _precision.full_precision():
            x = x @ x
        return power(x, times) @ x  # the last is outside

    found = [
        e.params["precision"]
        for e in jax.make_jaxpr(fn)(jnp.eye(2)).eqns
        if e.params.get("dimension_numbers")
    ]
    assert found == [_precision.HIGHEST] * (1 + times) + [None]


def test_a_chosen_precision_stays():
    given = jax.make_jaxpr(lambda x: jnp.dot(x, x, precision="high"))(jnp.eye(2))
    (eqn,) = [e for e in given.eqns if e.primitive.name == "dot_general"]
    assert _precision.at_full_precision(eqn) is eqn
