"""A likelihood model and its frozen copy are a discriminator: what direct discriminative optimisation can improve, and what not.

What it shows: the loss softplus(-D(data)) + alpha softplus(D(draws of the reference)), D = beta (log p - log p_reference).
In closed form: a wrong reference is mended by one round at alpha = beta = 1; at an exact maximum of the likelihood the gradient
is zero for every alpha and beta, and that point a minimum only if alpha < (1 + beta / 2) / (1 - beta / 2). So there is something
to be had only where the reference is no such maximum. Then a diffusion of digits that was stopped early: D is a difference of two
bounds on log p with common noise and times, of neither sign; three rounds of it beside as many steps of plain denoising from the
same start, which is what the same time buys elsewhere.

Source: Zheng et al. 2025, arXiv:2503.01103 (DDO; CIFAR-10 FID 1.79 -> 1.30 from a trained EDM). Data: scikit-learn's digits.

Expected: nothing, or little: the paper's references are trained to their end by another loss than the likelihood. Figures and
what was found: docs/_data/figures, altering/ddo. Run time: five minutes on 2 CPU cores.

    python examples/papers/altering/ddo.py [--smoke] [--out ddo_output] [--record]
"""

from typing import Any, NamedTuple

import _altered_digits as altered
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _altered_digits import Classifier, Rows, load
from _ddo_closed_forms import closed_forms

from lapilli import inference, ppl
from lapilli.models import diffusion


class Config(NamedTuple):
    width: int = 128
    num_early: int = 800  # steps before the model is stopped
    num_steps: int = 300  # of a round
    num_rounds: int = 3
    num_drawn: int = 4000
    num_times: int = 4  # noise levels behind each D
    beta: float = 0.05
    alpha: float = 1.0


def improved(network: Any, x: Any, drawn: Any, key: jax.Array, config: Config) -> Any:
    """One round: the network trained against itself as it is now, on 64 images and 64 of its own a step."""
    reference, data, made = altered.model_of(network), jnp.asarray(x), jnp.asarray(drawn)

    def margin(model: Any, x: Any, key: Any) -> Any:
        """D, a difference of bounds with common noise and times."""
        of = lambda m: diffusion.bound(m, x, key, num_times=config.num_times)
        return config.beta * (of(model) - of(reference))

    @inference.objective(direction="min", weighing="refused")
    def ddo(model: ppl.Program, guide: ppl.Program) -> Any:
        ours, keys = altered.model_of(guide()), jax.random.split(ppl.rng_key("noise"), 4)
        rows = [jax.random.randint(k, (64,), 0, len(v)) for k, v in zip(keys, (data, made), strict=False)]  # fmt: skip
        real, fake = margin(ours, data[rows[0]], keys[2]), margin(ours, made[rows[1]], keys[3])
        return jax.nn.softplus(-real).mean() + config.alpha * jax.nn.softplus(fake).mean()

    fit = inference.fit(
        ddo(lambda: None, lambda: ppl.module("network", network)), optax.adam(2e-4), (),
        num_steps=config.num_steps, key=key, progress=False,
    )  # fmt: skip
    return eqx.combine(
        fit.params["network"], eqx.filter(network, eqx.is_inexact_array, inverse=True)
    )


def run(config: Config, seed: int) -> Rows:
    x, _ = load()
    judge, order = Classifier(seed), np.random.default_rng(seed).permutation(len(x))
    train, held_out = jnp.asarray(x[order[:1500]]), jnp.asarray(x[order[1500:]])
    keys = jax.random.split(jax.random.key(seed), 20)
    of = lambda net: diffusion.bound(altered.model_of(net), held_out, keys[0], num_times=64)
    bound = eqx.filter_jit(lambda net: of(net).mean())
    start = altered.fitted(altered.new_network(config.width, keys[1]), train, keys[2], config.num_early)  # fmt: skip
    laws, rows = {"stopped early": start}, {}
    ours = plain = start
    for number in range(config.num_rounds):
        drawn = altered.draws(ours, keys[3 + 4 * number], config.num_drawn)
        ours = improved(ours, train, drawn, keys[4 + 4 * number], config)
        plain = altered.fitted(plain, train, keys[5 + 4 * number], config.num_steps)
        laws |= {f"round {number + 1}": ours, f"denoising, {number + 1}": plain}
    for name, network in laws.items():
        images = altered.draws(network, keys[19], 2000)
        found = inference.evaluation.fidelity_diversity(judge.real, images[: len(judge.real)])
        rows[name] = {
            "nats, held out": float(bound(network)),
            "Frechet": altered.away(judge.real, images, judge)[0],
            "precision": found.precision.value, "recall": found.recall.value,
        }  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> None:
    options = altered.options("ddo", "A model and its frozen copy as a discriminator.", arguments)
    config = Config(32, 40, 5, 2, 600, 2) if options.smoke else Config()
    altered.told(
        options, "ddo", lambda seed: run(config, seed),
        what="digits of a diffusion that was stopped early: bound on the log-density of held-out images, nats",
        column="nats, held out", notes=["Frechet", "precision", "recall"], measures=["models/diffusion"],
        first="".join(f"{name}: {value:.4g}\n" for name, value in closed_forms().items()),
    )  # fmt: skip


if __name__ == "__main__":
    main()
