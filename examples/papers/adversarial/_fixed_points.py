"""Fixed points of the exact objectives of AC-GAN and ADC-GAN: sums over a grid, critics and classifiers at their optimum."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax

from lapilli import inference, ppl

PLACES = jnp.array([-2.0, 0.0, 2.0])
GRID = jnp.linspace(-7.0, 7.0, 281)
REAL = jax.nn.softmax(dist.Normal(PLACES[:, None], 1.0).log_prob(GRID), 1) / 3  # [class, cell]
least = inference.objective(direction="min")


def exact(kind, q):
    """The objectives of a generator's table q, all critics and classifiers at their optimum."""
    kl = lambda q, p: jnp.sum(q * (jnp.log(q + 1e-30) - jnp.log(p + 1e-30)))
    pairs, alone = kl(q, REAL), kl(q.sum(0), REAL.sum(0))
    label = -jnp.sum(q * jnp.log(REAL / REAL.sum(0)))
    return {"AC": alone + label, "ADC": alone + pairs, "ADC, pairs only": pairs}[kind]


def table():
    return jax.nn.softmax(ppl.param("logits", jnp.zeros((3, len(GRID)))), 1) / 3


def normals():
    places = ppl.param("places", jnp.array([-1.0, 0.3, 1.0]))[:, None]
    scales = jnp.exp(ppl.param("log_scales", jnp.zeros(3)))[:, None]
    return jax.nn.softmax(dist.Normal(places, scales).log_prob(GRID), 1) / 3


def fixed_point(kind, family, num_steps):
    """Standard deviation within classes, of which the truth's is 1, and total variation of pairs."""
    objective = least(lambda model, guide: exact(kind, ppl.draw(model).retval))(family)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    fit = inference.fit(objective, optimizer, num_steps=num_steps, progress=False)
    q = fit.model.simulate(jax.random.key(0)).retval
    means = (3 * q * GRID).sum(1, keepdims=True)
    sds = jnp.sqrt((3 * q * (GRID - means) ** 2).sum(1))
    return float(sds.mean()), float(jnp.abs(q - REAL).sum() / 2)
