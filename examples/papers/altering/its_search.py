"""More compute for one image of a learned model: searching for what a verifier likes, judged by another.

What it shows: a diffusion of digits is to draw one class; the verifier is a classifier's log-probability of it. Best of N, search
over noises without and with gradients, and search over paths, by evaluations of the verifier; the best of N by the mean rank of
two verifiers; and a narrow network with search beside a wide one without. Another classifier, of other images, says how many are
of the class; precision and recall against real images of it say what it costs. None but best of N has a law that can be stated:
its divergence from the model is log N - (N - 1) / N nats.

Source: Ma et al. 2025, arXiv:2501.09732 (search over noises beats more steps; small models with search beat large ones).
Data: scikit-learn's digits.

Expected: the verifier rises with what is spent, and recall falls where its gradients are followed; a narrow network with search
has more of the class than a wide one without, in images that are no digits (precision 0). Figures and what was found:
docs/_data/figures, altering/its_search. Run time: six minutes on 2 CPU cores.

    python examples/papers/altering/its_search.py [--smoke] [--label 8] [--out its_search_output] [--record]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import _altered_digits as altered
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from _altered_digits import SIZE, VP, Classifier, Rows, load

from lapilli import inference, ppl
from lapilli.inference import search
from lapilli.models import diffusion

GRID = VP.log_snr_times(20)
LAST = float(GRID[-1])


class Config(NamedTuple):
    wide: int = 128
    narrow: int = 24
    num_steps: int = 3000
    num_samples: int = 100
    budgets: tuple[int, ...] = (4, 16, 64)


def searches(network: Any, verifier: Any, second: Any, config: Config) -> dict[str, tuple[Callable[..., Any], int]]:  # fmt: skip
    """Makers of one image from a key, with evaluations of the verifier."""
    model = altered.model_of(network)

    def generate(noise: Any) -> Any:
        return diffusion.ddim(model, jax.random.key(0), GRID, num_samples=1, start=noise[None])[0]

    noise = lambda key: VP.std(GRID[0]) * jax.random.normal(key, (SIZE,))

    scale = dist.Normal(0.0, VP.std(GRID[0])).expand((SIZE,)).to_event(1)
    program = ppl.model(lambda: generate(ppl.sample("noise", scale)))

    def ranked(key: Any, n: int) -> Any:
        x = jax.vmap(lambda k: generate(noise(k)))(jax.random.split(key, n))
        ranks = sum(jnp.argsort(jnp.argsort(jax.vmap(judge)(x))) for judge in (verifier, second))
        return x[jnp.argmax(ranks)]

    def renoise(key: Any, x: Any, t: float) -> Any:
        return VP.alpha(t) * x + VP.std(t) * jax.random.normal(key, x.shape)

    def denoise(x: Any, t: float, s: float) -> Any:
        """A clean image of the path from t; the level it is brought to is that of the next noise."""
        times = np.linspace(t, LAST, 11)
        return diffusion.ddim(model, jax.random.key(0), times, num_samples=1, start=x[None])[0]

    def paths(key: Any, n: int) -> Any:
        levels = (0.7, 0.5, 0.35, 0.2, LAST)
        begin = generate(noise(key))
        judge = lambda x, t: verifier(x)
        return search.over_paths(renoise, denoise, judge, key, begin, levels, num_copies=n // 4).sample  # fmt: skip

    one = lambda key: generate(noise(key))
    zero = lambda k, n: search.zero_order(generate, verifier, k, noise(k), num_steps=n - 1).sample
    first = lambda k, n: search.first_order(generate, verifier, noise(k), num_steps=n - 1).sample
    made = {"one draw": (one, 0)}
    for n in config.budgets:
        best = inference.best_of(program, verifier, n)
        made[f"best of {n}"] = (lambda k, best=best: best.simulate(k).retval, n)
        made[f"best of {n}, mean rank of two"] = (lambda k, n=n: ranked(k, n), 2 * n)
        made[f"zero order, {n}"] = (lambda k, n=n: zero(k, n), n)
        made[f"over paths, {n}"] = (lambda k, n=n: paths(k, n), n)
    few = config.budgets[1]
    return made | {f"first order, {few}": (lambda k: first(k, few), few)}


def run(config: Config, label: int, seed: int) -> Rows:
    x, labels = load()
    own, other, judge = (Classifier(100 * i + seed) for i in range(3))
    keys = jax.random.split(jax.random.key(seed), 5)
    net = lambda width: altered.fitted(altered.new_network(width, keys[0]), x, keys[1], config.num_steps)  # fmt: skip
    classes = [altered.log_classes(c) for c in (own, other)]
    verifier, second = (lambda x, of=of: of(x)[label] for of in classes)
    wide = searches(net(config.wide), verifier, second, config)
    narrow = searches(net(config.narrow), verifier, second, config)
    few = config.budgets[1]
    rows, real = {}, x[labels == label]
    some = {f"wide: {name}": way for name, way in wide.items()}
    some |= {f"narrow: {name}": narrow[name] for name in ("one draw", f"best of {few}")}
    for name, (make, evaluations) in some.items():
        many = jax.jit(lambda k, make=make: jax.lax.map(make, k, batch_size=50))
        images = np.asarray(many(jax.random.split(keys[2], config.num_samples)))
        found = inference.evaluation.fidelity_diversity(real[: len(images)], images)
        rows[name] = {
            "verifier": float(jax.vmap(verifier)(jnp.asarray(images)).mean()),
            "another judge": float((judge.classes(images) == label).mean()),
            "precision": found.precision.value, "recall": found.recall.value, "evaluations": float(evaluations),
        }  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> None:
    options = altered.options("its_search", "Search for what a verifier likes.", arguments, label=8)
    config = Config(32, 8, 60, 30, (4, 8)) if options.smoke else Config()
    altered.told(
        options, "its_search", lambda seed: run(config, options.label, seed),
        what=f"learned digits, by the search for class {options.label} that made them: share of it by another classifier",
        column="another judge", notes=["verifier", "precision", "recall"], measures=["inference/search"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
