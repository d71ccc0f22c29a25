"""Calls of every kind on programs and fits that all callers share; each returns arrays that its number alone decides."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer.autoguide import AutoNormal

from lapilli import inference, ppl

X = np.linspace(-1.0, 1.0, 12, dtype=np.float32)
Y = (0.8 * X + 0.1 * np.sin(40 * X)).astype(np.float32)
SERIES = np.cumsum(np.sin(np.arange(8.0))).astype(np.float32)


@ppl.model
def line(x, y=None):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(slope * x, 0.3), obs=y)


@ppl.model
def line_guide(x, y=None):
    scale = ppl.param("scale", 0.3, constraint=dist.constraints.positive)
    ppl.sample("slope", dist.Normal(ppl.param("loc", 0.0), scale))


@ppl.model
def drift(y):
    def step(level, y):
        level = ppl.sample("level", dist.Normal(level, 0.5))
        ppl.sample("y", dist.Normal(level, 1.0), obs=y)
        return level, None

    ppl.scan(step, 0.0, y)


@ppl.model
def mixture(x):
    p = ppl.sample("p", dist.Beta(2.0, 2.0))
    with ppl.plate("rows", x.shape[0]):
        k = ppl.sample("k", dist.Bernoulli(p))
        ppl.sample("x", dist.Normal(4.0 * k, 1.0), obs=x)


def calls():
    """Name -> a call of a number; what they share is made here."""
    objective = inference.elbo(line, line_guide)
    train = lambda objective, key: inference.fit(
        objective, optax.adam(0.05), (X, Y), num_steps=5, key=key, progress=False, k_hat="skip"
    )
    fit = train(objective, jax.random.key(0))
    level, kinds = ppl.eliminate(drift, "level"), ppl.eliminate(mixture, "k")
    cost = ppl.expectation(
        lambda p: ppl.sample("b", dist.Bernoulli(p)) * (1.0 - p), strategies={"b": "reinforce"}
    )

    def params(i):
        return {"loc": jnp.float32(0.1 * i), "scale": jnp.float32(-0.1 * i)}

    def rows(i):
        return X[: 3 + i % 4]

    def own_sites(i):
        @ppl.model
        def program():
            a = ppl.sample(f"a{i}", dist.Normal(0.0, 1.0))
            return ppl.sample(f"b{i}", dist.Normal(a, 1.0))

        return program.simulate(jax.random.key(i)).choices

    def tree(result):
        return {
            f"{group.path}/{name}": np.asarray(values)
            for group in result.subtree
            for name, values in group.data_vars.items()
        }

    def numpyro_own(i):
        seeded = numpyro.handlers.seed(line.fn, jax.random.key(i))
        trace = numpyro.handlers.trace(seeded).get_trace(rows(i))
        return {name: site["value"] for name, site in trace.items() if site["type"] == "sample"}

    key = jax.random.key
    return {
        "predict": lambda i: fit.predict(key(i), rows(i), num_samples=20),
        "posterior": lambda i: fit.posterior(key(i), num_samples=20).choices,
        "simulate": own_sites,
        "log_density": lambda i: line.log_density({"slope": 0.1 * i}, X, Y),
        "fit": lambda i: train(inference.elbo(line, line_guide), key(i)).params,
        "fit, one objective": lambda i: train(objective, key(i)).params,
        "fit, autoguide": lambda i: train(inference.elbo(line, AutoNormal(line)), key(i)).params,
        "value_and_grad": lambda i: objective.value_and_grad(params(i), key(i), rows(i), rows(i)),
        "expectation": lambda i: cost.value_and_grad(0.1 + 0.02 * i, key(i)),
        "smc": lambda i: (
            inference.smc(drift, key(i), SERIES[: 4 + i % 3], num_particles=16).log_evidence
        ),
        "eliminate, normal": lambda i: (
            level.posterior(key(i), {}, SERIES + i)["level"],
            level.log_density({}, SERIES + i),
        ),
        "eliminate, discrete": lambda i: kinds.posterior_probs({"p": 0.05 + 0.02 * i}, X),
        "to_arviz": lambda i: tree(
            inference.to_arviz(fit, key=key(i), num_samples=10, args=(X, Y))
        ),
        "numpyro": numpyro_own,
    }


def arrays(result):
    """Its leaves, on the host."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
