"""Guidance by experts for ranges of noise, distilled from a classifier of clean points without any data.

What it shows: guidance needs p(y | x_t), a classifier knows p(y | x_0). Low-rank adapters on one network learn the clean
classifier's opinion of x_0 from noised draws of the model itself; the minimiser of KL(classifier(x_0) || expert(x_t)) is p(y |
x_t), just what guidance needs, at temperature 1; the paper sharpens the classifier (0.25), which biases it. The law is a mixture
of digits' codes, so that p(y | x_t) and draws of the class are exact. Each is asked for guidance, and as the reward of `fkc`,
whose weights mend what is wrong on the way.

Source: Go et al. 2023, arXiv:2212.05973 (plug-and-play with experts by noise). Data: scikit-learn's digits.

Expected: experts near the closed form, their draws within 1.3 times the distance of exact ones: with weights they are; without
they are not, nor are those of p(y | x_t) itself in 60 steps. The clean classifier overshoots, and its weights mend that, too.
Figures: docs/_data/figures, altering/ppap. Run time: three minutes on 2 CPU cores.

    python examples/papers/altering/ppap.py [--smoke] [--label 3] [--out ppap_output] [--record]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import _altered_digits as altered
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _altered_digits import VP, Rows
from _digit_mixture import Mixture, fitted

from lapilli import inference, ppl
from lapilli.models import adapters, diffusion

GRID = VP.log_snr_times(60)


class Config(NamedTuple):
    num_experts: int = 5
    rank: int = 8
    num_base: int = 2000  # steps of the network that the experts adapt
    num_steps: int = 1000  # of each expert
    num_samples: int = 1000
    num_particles: int = 100


def exact_log_probs(m: Mixture) -> Callable[[Any, Any], Any]:
    """(x, t) -> log p(y | x_t = x) of all classes."""
    means, variances = jnp.asarray(m.means), jnp.asarray(m.variances)

    def of(x: Any, t: Any) -> Any:
        alpha, noise = VP.alpha(t), VP.variance(t)
        wide = alpha**2 * variances + noise
        parts = jnp.log(m.weights) - 0.5 * ((x - alpha * means) ** 2 / wide + jnp.log(wide)).sum(-1)
        return jax.nn.log_softmax(jax.nn.logsumexp(parts.reshape(10, -1), axis=1))

    return of


def asked(net: Any, x: Any, t: Any) -> Any:
    angles = 0.25 * jnp.log(VP.std(t) / VP.alpha(t)) * jnp.geomspace(0.5, 8.0, 5)
    return jax.nn.log_softmax(net(jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)])))


@inference.objective(direction="min", weighing="refused")
def distilled(model: ppl.Program, guide: ppl.Program, x: Any, truth: Any, ends: Any) -> Any:
    """KL(classifier(x_0) || network(x_t)) but for a constant, of rows drawn anew, at levels between the ends."""
    net, keys = guide(), jax.random.split(ppl.rng_key("noise"), 3)
    rows = jax.random.randint(keys[0], (128,), 0, len(x))
    at = jax.random.uniform(keys[1], (128,), minval=ends[0], maxval=ends[1])
    t = jnp.interp(at, jnp.linspace(0, 1, len(GRID)), GRID)
    eps = jax.random.normal(keys[2], (128, x.shape[1]))
    noisy = VP.alpha(t)[:, None] * x[rows] + VP.std(t)[:, None] * eps
    return -(truth[rows] * jax.vmap(lambda x, t: asked(net, x, t))(noisy, t)).sum(1).mean()


def experts(x: Any, truth: Any, config: Config, key: jax.Array) -> Any:
    """(x, t) -> log-probabilities by the expert for t, each adapted from the one before."""
    keys = jax.random.split(key, config.num_experts + 2)

    def trained(net: Any, key: jax.Array, ends: Any, num_steps: int) -> Any:
        objective = distilled(lambda: None, lambda *args: ppl.module("net", net))
        fit = inference.fit(
            objective, optax.adam(optax.cosine_decay_schedule(2e-3, num_steps)), (x, truth, jnp.array(ends)),
            num_steps=num_steps, key=key, progress=False,
        )  # fmt: skip
        return altered.with_values(net, fit.params["net"])

    base = eqx.nn.MLP(x.shape[1] + 10, 10, 64, 2, jax.nn.silu, key=keys[0])
    base = trained(base, keys[1], (0.0, 1.0), config.num_base)
    edges, nets = np.linspace(0, 1, config.num_experts + 1), []
    net = adapters.adapt(base, config.rank, keys[0])
    for i in range(config.num_experts):
        net = trained(net, keys[i + 2], edges[i : i + 2], config.num_steps)
        nets.append(net)
    inner = jnp.interp(edges[1:-1], jnp.linspace(0, 1, len(GRID)), GRID)
    return lambda x, t: jnp.stack([asked(net, x, t) for net in nets])[(t < inner).sum()]


def run(config: Config, label: int, seed: int) -> Rows:
    m, rng = fitted(3, 8), np.random.default_rng(seed)
    model, exact, keys = m.model(), exact_log_probs(m), jax.random.split(jax.random.key(seed), 6)
    clean = lambda x: exact(x, 0.0)
    own = jnp.asarray(m.draws(20_000, rng), float)  # of the model itself
    opinions = jax.vmap(clean)(own)
    ways = {
        "the clean classifier": lambda x, t: clean(x),
        "experts": experts(own, jnp.exp(opinions), config, keys[0]),
        "experts, temperature .25": experts(own, jax.nn.softmax(4 * opinions), config, keys[1]),
        "p(y | x_t)": exact,
    }
    truth = m.draws(config.num_samples, rng, label)
    laws, prior = {"exact draws": m.draws(config.num_samples, rng, label)}, np.log(0.1)
    for name, log_probs in ways.items():
        reward = lambda x, t, of=log_probs: of(x, t)[label]
        guided = diffusion.classifier_guided(model, reward)
        draw = jax.jit(lambda k, g=guided: diffusion.ancestral(g, k, GRID, num_samples=config.num_samples))  # fmt: skip
        laws[name] = np.asarray(draw(keys[2]))

        def rise(x: Any, t: Any, of: Any = reward) -> Any:
            """At the last time the clean classifier's own reward, whatever stands for it on the way."""
            begun = jnp.where(t >= GRID[0], prior, of(x, t))
            return jnp.where(t <= GRID[-1], clean(x)[label], begun) - prior

        corrected = inference.diffusion.fkc(model, GRID, reward=rise)
        laws[f"{name}, weighted"] = altered.particles(corrected, config.num_particles, config.num_samples, keys[3])  # fmt: skip
    t = jnp.asarray(rng.choice(np.asarray(GRID), len(own)))
    noisy = VP.alpha(t)[:, None] * own + VP.std(t)[:, None] * jax.random.normal(keys[4], own.shape)
    rows = {}
    for name, x in laws.items():
        away = inference.evaluation.frechet_distance(truth, x, jax.random.key(0))
        rate = jnp.exp(jax.vmap(clean)(jnp.asarray(x)))[:, label].mean()
        rows[name] = {"class rate": float(rate), "Frechet": away.value, "plain": away.details["plain"]}  # fmt: skip
        if name in ways:
            logs = [jax.vmap(of)(noisy, t) for of in (exact, ways[name])]
            rows[name]["KL of p(y | x_t)"] = float((jnp.exp(logs[0]) * (logs[0] - logs[1])).sum(1).mean())  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> None:
    options = altered.options("ppap", "Guidance by experts for noise.", arguments, label=3)
    config = Config(2, 2, 30, 20, 200, 10) if options.smoke else Config()
    altered.told(
        options, "ppap", lambda seed: run(config, options.label, seed),
        what=f"codes of class {options.label} by guidance, and by weighted particles: Frechet distance from exact draws",
        column="Frechet", notes=["class rate", "plain", "KL of p(y | x_t)"], measures=["models/diffusion", "inference/diffusion"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
