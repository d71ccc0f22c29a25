"""Forgetting a class: the tilt by r = log(1 - p(class | x)) is the model without it, exactly; four ways there.

What it shows: a generator of digits (a mixture of Gaussians of principal components, so that the answer is known) is to forget
one class. With the class's exact probability the tilt is the mixture of the other nine, with log Z = log(1 - share); with a
classifier of 50 examples against the model's own draws, no other data, it is that up to the classifier's errors. Particles
sample it; a copy of the model is fine-tuned to it by the reverse divergence and by trajectory balance off policy. What is left
of the class, and how far the other nine have moved, beside the divergence to the tilt.

Source: Malekmohammadi et al. 2023, arXiv:2309.14054 (adapt, then unlearn: its way is to move away from parameters adapted to the
negatives, towards no law that is stated). Data: scikit-learn's digits.

Expected: with the exact probability particles and copies leave what draws without the class have, too (classes overlap: a
seventh); with 50 examples a classifier takes others for the class: twice its share goes, a tenth of the class or less is left,
and the others move by a twentieth (particles) to a seventh (copies) in Frechet distance. Figures: docs/_data/figures,
altering/forget. Run time: two minutes on 2 CPU cores.

    python examples/papers/altering/forget.py [--smoke] [--label 3] [--out forget_output] [--record]
"""

from typing import Any, NamedTuple

import _altered_digits as altered
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from _altered_digits import Rows
from _digit_mixture import Mixture, fitted

from lapilli import inference, ppl

AXES, PARTS = 8, 3  # principal components; Gaussians a class


class Config(NamedTuple):
    num_steps: int = 1500
    num_draws: int = 64
    num_negatives: int = 50
    num_samples: int = 20_000


def programs(m: Mixture) -> tuple[ppl.Program, ppl.Program]:
    """The model, and its copy with weights and means to be trained."""
    scales = jnp.sqrt(jnp.asarray(m.variances, float))

    def program(logits: Any, means: Any) -> Any:
        k = ppl.sample("k", dist.Categorical(logits=logits))
        return ppl.sample("z", dist.Normal(means[k], scales[k]).to_event(1))

    logits, means = (jnp.asarray(x, float) for x in (np.log(m.weights), m.means))
    base = ppl.model(lambda: program(logits, means))
    copy = ppl.model(lambda: program(ppl.param("logits", logits), ppl.param("means", means)))
    return base, copy


def log_share(m: Mixture, is_in: np.ndarray) -> Any:
    """Z -> log-probability, given z, of the components that are in."""
    kept = jnp.asarray(np.where(is_in, 0.0, -np.inf))

    def of(z: Any) -> Any:
        each = jax.scipy.stats.norm.logpdf(z, jnp.asarray(m.means), jnp.sqrt(m.variances)).sum(-1)
        parts = each + jnp.log(m.weights)
        return jax.nn.logsumexp(parts + kept) - jax.nn.logsumexp(parts)

    return of


def reached(
    tilt: inference.tilts.TiltedProgram, base: Any, copy: Any, config: Config, key: jax.Array
) -> dict[str, Any]:
    """Laws that stand for the tilt, by name."""
    keys = jax.random.split(key, 3)
    n = config.num_draws

    def fitted(objective: Any, key: jax.Array) -> Any:
        rate = optax.adam(optax.cosine_decay_schedule(0.03, config.num_steps))
        return inference.fit(
            objective, rate, (), num_steps=config.num_steps, key=key, progress=False, k_hat="skip"
        ).guide

    reverse = inference.elbo(tilt, copy, strategies={"k": "reinforce_loo", "z": "reinforce_loo"}, num_replicates=n)  # fmt: skip
    balance = inference.log_variance(tilt, copy, num_particles=n, proposal=base)
    return {
        "the model itself": base,
        "particles": ppl.normalize(tilt, proposal=base, num_particles=50),
        "reverse divergence": fitted(reverse, keys[0]),
        "trajectory balance": fitted(balance, keys[1]),
    }


def run(m: Mixture, config: Config, label: int, seed: int) -> Rows:
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    base, copy = programs(m)
    is_label = m.classes == label
    share = float(m.weights[is_label].sum())
    rest = m._replace(weights=m.weights * ~is_label / (1 - share))
    truth = rest.draws(config.num_samples, rng)
    of_label = log_share(m, is_label)
    posterior = jax.jit(jax.vmap(lambda z: jnp.exp(of_label(z))))
    rewards = {
        "exact": log_share(m, ~is_label),  # log(1 - p(class | z)), of the mixture's own classes
        "50 examples": altered.forgetting(
            altered.log_share(
                m.draws(config.num_negatives, rng, label),
                m.draws(40 * config.num_negatives, rng),
                None,
            )
        ),
    }
    # Draws without the class lie where it was, too: what the exact tilt leaves.
    least = float(posterior(jnp.asarray(truth)).mean() / share)
    rows = {"draws without the class": {"left of the class": least}}
    for number, (kind, reward) in enumerate(rewards.items()):
        tilt = inference.tilt(base, reward)
        laws = reached(tilt, base, copy, config, jax.random.fold_in(key, number))
        for name, law in laws.items():
            keys = jax.random.split(jax.random.fold_in(key, 7), config.num_samples)
            z = np.asarray(jax.jit(jax.vmap(lambda k, q=law: q.simulate(k).choices["z"]))(keys))
            found = np.asarray(posterior(jnp.asarray(z)))
            report = inference.tilts.report(tilt, law, key, num_draws=5000)
            assert report.kl is not None
            away = inference.evaluation.frechet_distance(truth, z[found < 0.5], key)
            rows[f"{name}, {kind}"] = {
                "left of the class": float(found.mean() / share),
                "Frechet of the others": away.value,
                "error": away.standard_error,
                "KL to the tilt": report.kl.value,
                "log Z": report.log_z.value,
            }
    return rows


def main(arguments: list[str] | None = None) -> None:
    options = altered.options("forget", "A generator of digits forgets a class.", arguments, 3)
    config = Config(60, 16, 50, 2000) if options.smoke else Config()
    m = fitted(PARTS, AXES)
    share = float(m.weights[m.classes == options.label].sum())
    altered.told(
        options, "forget", lambda seed: run(m, config, options.label, seed),
        first=f"exact log Z = log(1 - share) = {np.log1p(-share):.4f}\n",
        what=f"digits of a mixture without class {options.label}: share of the class that is left",
        column="left of the class", notes=["Frechet of the others", "KL to the tilt", "log Z"], measures=["inference/tilts"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
