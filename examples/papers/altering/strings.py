"""One tilt, every way to it: twelve fair bits altered by the number of their "11" pairs, and how far each method ends from it.

What it shows: KL-regularised policy gradients with six estimators, trajectory balance on and off policy, reward-weighted
regression, preferences (DPO), a discriminator made of the model itself (DDO), best of N, particles and search, all beside the
exact tilt p(x) exp(r(x) / b): there are 4,096 strings, so that each law's divergence from it is a sum. The policy is a Markov
chain of bits, a family that holds the tilt.

Source: none; the taxonomy is that of Franceschelli and Musolesi 2024, arXiv:2308.00031 (reinforcement learning of generative
models). Oracle: log Z = 4.963810 at b = 1, by transfer matrices.

Expected: policies within 0.05 nats of the tilt in seconds, but for regression weighted by draws of the model, whose few weights
bias it; the baseline of the 63 other draws leaves two thirds of the plain gradient's variance at the start and an eighth at the
end; one of pairs more than the plain one has at the start. (Reward times score has .503 there, by enumeration, of which it leaves
two fifths: the plain gradient here holds -grad log q as well, which acts as a baseline of one nat.) Best of N where its law says;
search with the largest reward, and far from the tilt in the end. Figures: docs/_data/figures, altering/strings. Run time: four
minutes on 2 CPU cores.

    python examples/papers/altering/strings.py [--smoke] [--temperature 1] [--out strings_output] [--record]
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import _altered as altered
import jax
import jax.numpy as jnp
import optax
from _altered import Rows
from _bits import LENGTH, bits, ddo, dpo, logits, pairs, policy

from lapilli import inference, ppl

FACTS = (
    "none needs gradients of r; off policy: log-variance, draws of p, cross-entropy, preferences, discriminator, resampling\n"
    "exact as draws grow: resampling; as steps and draws grow, in the family of chains: trained rows, DPO in pairs, DDO in data\n"
    "KL of resampling and search: from counted draws, too large by some (outcomes - 1) / (2 draws)\n"
    "evaluations of the reward: of a sampler, those of one draw\n"
)


class Config(NamedTuple):
    num_steps: int = 600
    num_draws: int = 64  # in each step
    num_data: int = 20_000  # preferred pairs, or draws that stand for data
    num_samples: int = 200_000  # of what has no density, to be counted


def policies(tilt: ppl.Program, config: Config) -> dict[str, tuple[inference.Objective, int]]:
    """Objectives by name, with the rewards that a step evaluates."""
    n, few = config.num_draws, max(config.num_draws // 16, 1)
    elbo = lambda how, num: inference.elbo(tilt, policy, strategies=how, num_replicates=num)
    scores = lambda baseline, num: elbo({"x": ppl.strategies.Reinforce(baseline)}, num)
    variance = lambda **by: inference.log_variance(tilt, policy, num_particles=n, **by)
    forward = lambda **by: inference.forward_kl(tilt, policy, num_particles=n, **by)
    return {
        "reinforce": (elbo("reinforce", n), n),
        "reinforce, moving average": (scores("moving-average", n), n),
        # The baseline of a draw is the mean of the n - 1 others.
        "reinforce, leave one out": (scores(ppl.strategies.LeaveOneOut(n), 1), n),
        "reinforce, pairs": (elbo("reinforce_loo", n // 2), n),
        "enumeration": (elbo("enum", 1), 2**LENGTH),
        "measure-valued": (elbo("mvd", few), few * (1 + 2 * LENGTH)),  # two more runs for each bit
        "log-variance": (variance(), n),
        "log-variance, draws of p": (variance(proposal=bits), n),
        "reward-weighted, draws of p": (forward(proposal=bits), n),
        "cross-entropy": (forward(), n),
    }


def trained(objective: Any, args: tuple, config: Config, key: jax.Array) -> ppl.Program:
    rate = optax.adam(optax.cosine_decay_schedule(0.1, config.num_steps))
    options = {"num_steps": config.num_steps, "key": key, "progress": False, "k_hat": "skip"}
    return policy.bind(inference.fit(objective, rate, args, **options).params)


def variance_of(objective: Any, params: Any, key: jax.Array) -> float:
    """Of a gradient at these parameters, summed over its entries; of 200 gradients."""
    grads = jax.jit(jax.vmap(lambda k: objective.value_and_grad(params, k)[1]["logits"]))
    return float(jnp.var(grads(jax.random.split(key, 200)), axis=0, ddof=1).sum())


def drawn(make: Callable[[jax.Array], Any], number: int, key: jax.Array) -> dict[str, Any]:
    """Many draws of a sampler, one per key."""
    run = jax.jit(lambda keys: jax.lax.map(make, keys, batch_size=10_000))
    return {"x": jax.block_until_ready(run(jax.random.split(key, number)))}


def run(config: Config, temperature: float, seed: int) -> Rows:
    tilt, rows = inference.tilt(bits, pairs, temperature), Rows()
    keys = iter(jax.random.split(jax.random.key(seed), 80))

    def told(name: str, make: Callable[[], Any], evaluations: int) -> Any:
        started = time.perf_counter()
        law = make()
        seconds = time.perf_counter() - started
        found = inference.tilts.report(tilt, law, next(keys))
        assert found.kl is not None and found.entropy is not None
        exact = {"KL to p*": found.kl.value, "E r": found.reward.value, "entropy": found.entropy.value}  # fmt: skip
        rows[name] = exact | {"evaluations": float(evaluations), "seconds": seconds}
        return law

    told("the model itself", lambda: bits, 0)
    for name, (objective, number) in policies(tilt, config).items():
        law = told(name, lambda o=objective: trained(o, (), config, next(keys)), config.num_steps * number)  # fmt: skip
        for when, at in {"start": objective.init(next(keys)), "end": law.params}.items():
            rows[name][f"gradient variance, {when}"] = variance_of(objective, at, next(keys))
    x = jax.random.bernoulli(next(keys), 0.5, (2, config.num_data, LENGTH)).astype(int)
    # A judge of Bradley and Terry.
    gap = (jax.vmap(pairs)(x[0]) - jax.vmap(pairs)(x[1])).astype(float)
    is_first = jax.random.bernoulli(next(keys), jax.nn.sigmoid(gap))[:, None]
    judged = (temperature, jnp.where(is_first, *x), jnp.where(is_first, x[1], x[0]))
    told("preferences (DPO)", lambda: trained(dpo(bits, logits), judged, config, next(keys)), 2 * config.num_data)  # fmt: skip
    resampled = lambda n: ppl.normalize(tilt, proposal=bits, num_particles=n)
    one = lambda law: lambda key: law.simulate(key).choices["x"]
    data = drawn(one(resampled(256)), config.num_data, next(keys))["x"]
    told("discriminator (DDO)", lambda: trained(ddo(bits, logits), (data, x[0]), config, next(keys)), 0)  # fmt: skip
    for n in (4, 16, 64):
        told(f"best of {n}", lambda n=n: inference.best_of(bits, pairs, n), n)
    for n in (16, 256):
        number = config.num_samples // (n // 16)
        told(f"resampling of {n}", lambda n=n, m=number: drawn(one(resampled(n)), m, next(keys)), n)
    for n in (4, 64, 512):

        def move(key: jax.Array, n: int = n) -> Any:
            noise = jax.random.normal(key, (LENGTH,))
            bit = lambda e: (e > 0).astype(int)
            return inference.search.zero_order(bit, pairs, key, noise, num_steps=n).sample

        told(f"zero-order search, {n} moves", lambda m=move: drawn(m, config.num_samples // 4, next(keys)), n + 1)  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> None:
    options = altered.options("strings", "Every way to one tilt.", arguments, temperature=1.0)
    config = Config(60, 32, 2000, 5000) if options.smoke else Config()
    altered.told(
        options, "strings", lambda seed: run(config, options.temperature, seed), first=FACTS,
        what=f"twelve bits altered by their 11 pairs at temperature {options.temperature:g}: KL to the exact tilt, nats, after "
        f"{config.num_steps} steps of {config.num_draws} draws",
        column="KL to p*", notes=["E r", "entropy", "gradient variance, start", "gradient variance, end"],
        measures=["examples/papers/altering/_bits.py", "inference/tilts", "inference/search"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
