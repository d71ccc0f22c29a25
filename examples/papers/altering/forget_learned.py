"""A learned diffusion of digits forgets a class, or is left with one, by examples: 50 of what is to go, ten of what is to stay.

What it shows: both are tilts of the model's own law, by log(1 - p(class | x)) and by log p(class | x), with the class's
probability from a classifier of labelled images, or from a regression of the examples against draws of the model. As such a
reward is at most 0, draws of the tilt are draws of the model that are kept with probability exp(reward): exact, and the floor for
all else. Particles (`fkc` of the tilt) sample it without training; a classifier of noisy states, which learns what is kept,
guides the model; a copy of the network, or low-rank adapters on it, are taught the guided score. A judge trained on real images
counts what is left of the class, and how far the rest is from real images.

Source: Malekmohammadi et al. 2023, arXiv:2309.14054 (adapt, then unlearn). Data: scikit-learn's digits.

Expected: at least nine tenths of the class gone, the Frechet distance of the others within 15 % of the model's: by labels kept
draws, particles and guidance forget so much, copies three quarters; by examples alone more is left (docs/explain/reproduced.md).
At strength 1 a quarter stays, of which the classifier is unsure. Figures: docs/_data/figures, altering/forget_learned_labels and
_examples. Run time: eight minutes on 2 CPU cores.

    python examples/papers/altering/forget_learned.py [--smoke] [--label 3] [--by labels] [--out DIR] [--record]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import _altered_digits as altered
import _noisy_states as noisy_states
import jax
import numpy as np
from _altered_digits import GRID, Classifier, Rows

from lapilli import inference, ppl
from lapilli.inference import evaluation
from lapilli.models import adapters, diffusion


class Config(NamedTuple):
    width: int = 128
    num_steps: int = 3000
    num_tuned: int = 3000  # steps of the classifier of noisy states, of a copy, of adapters
    rank: int = 8
    num_forgotten: int = 50  # examples of what is to go
    num_wanted: int = 10  # of what is to stay
    num_drawn: int = 12_000  # draws of the model
    num_samples: int = 6000  # of each row
    num_weighted: int = 1500  # of particles
    num_particles: int = 64  # in each of the runs whose draws are counted
    strength: float = 8.0  # of forgetting: of 1, 2, 4, 8 the least that leaves a tenth in kept draws, on seeds 10 and 11


def ways(
    network: Any, reward: Callable[[Any], Any], drawn: np.ndarray, key: jax.Array, config: Config
) -> dict[str, np.ndarray]:
    """Images of the tilt, by way."""
    keys, n = jax.random.split(key, 7), config.num_samples
    model, kept = (
        altered.model_of(network),
        altered.accepted(reward, drawn, np.random.default_rng(0)),
    )
    program = ppl.model(lambda: diffusion.reverse_chain("x", model, GRID))
    corrected = inference.diffusion.fkc(model, GRID, reward=inference.tilt(program, reward))
    guided = diffusion.classifier_guided(
        model, noisy_states.log_kept(reward, drawn, keys[0], config.num_tuned)
    )
    draw = jax.jit(lambda key: diffusion.ancestral(guided, key, GRID, num_samples=n))
    low = adapters.adapt(network, config.rank, keys[1])
    taught = lambda net, key, rate: noisy_states.distilled(
        net, guided, kept, key, config.num_tuned, rate
    )
    return {
        "the model itself": drawn[:n],
        "draws that are kept": kept[:n],
        "particles": altered.particles(corrected, config.num_particles, config.num_weighted, keys[2]),
        "guidance": np.asarray(draw(keys[3])),
        "a copy": altered.draws(taught(network, keys[4], 1e-3), keys[5], n),
        f"adapters of rank {config.rank}": altered.draws(taught(low, keys[6], 2e-3), keys[5], n),
    }  # fmt: skip


def distance(real: np.ndarray, x: np.ndarray, judge: Classifier) -> dict[str, float]:
    """Frechet distance of the judge's features from real images: mean over as many disjoint sets of as many; NaN of too few."""
    if len(x) < 160:
        return dict.fromkeys(("Frechet", "its error", "plain"), np.nan)
    parts = [x[at : at + len(real)] for at in range(0, max(len(x) - len(real), 0) + 1, len(real))]
    found = [
        evaluation.frechet_distance(real, part, jax.random.key(0), features=judge.features)
        for part in parts
    ]
    mean = lambda of: float(np.mean([of(f) for f in found]))
    plain, error = mean(lambda f: f.details["plain"]), mean(lambda f: f.standard_error)
    return {"Frechet": mean(lambda f: f.value), "its error": error, "plain": plain}


def run(config: Config, label: int, seed: int, by: str = "examples") -> Rows:
    x, labels = altered.load()
    judge, rng = Classifier(seed), np.random.default_rng(seed)
    # Of one class there are few: all of them stand for it, those that were trained on as well.
    real = {
        "without it": judge.real[judge.classes(judge.real) != label],
        "alone": x[labels == label],
    }
    keys = jax.random.split(jax.random.key(seed), 6)
    network = altered.fitted(altered.new_network(config.width, keys[0]), x, keys[1], config.num_steps)  # fmt: skip
    drawn, rows = altered.draws(network, keys[2], config.num_drawn), {}
    own = rng.permutation(x[labels == label])
    goals = {"without it": config.num_forgotten, "alone": config.num_wanted}
    of_labels = altered.log_classes(Classifier(1000 + seed))  # of another third of the images
    for goal, number in goals.items() if by == "examples" else [("without it", 0)]:
        log_p = lambda x: of_labels(x)[label]
        if number:
            log_p = altered.log_share(own[:number], drawn[:2000], (4, 8, 16))
        is_lost = goal == "without it"
        reward = altered.forgetting(log_p, config.strength) if is_lost else log_p
        images = ways(network, reward, drawn, keys[3], config)
        if goal == "alone":
            few = altered.new_network(config.width, keys[0])
            few = altered.fitted(few, own[:number], keys[4], config.num_steps // 3)
            images["a network of ten images"] = altered.draws(few, keys[5], config.num_samples)
        base = (judge.classes(images["the model itself"]) == label).mean()
        for name, made in images.items():
            is_label = judge.classes(made) == label
            share = float(is_label.mean()) / (base if is_lost else 1)
            is_kept = ~is_label if is_lost else np.ones(len(made), bool)
            rows[f"{goal}: {name}"] = {"share": share} | distance(real[goal], made[is_kept], judge)
    for name, row in rows.items():
        of_model = rows[f"{name.partition(':')[0]}: the model itself"]
        for column in ("Frechet", "plain"):
            row[f"{column}, to the model's"] = row[column] / of_model[column]
    return rows


def main(arguments: list[str] | None = None) -> None:
    told = {
        "labels": "by a classifier of labelled images: its share, over the model's",
        "examples": "by 50 examples, and left with it alone, by ten: its share, over the model's and of all",
    }
    options = altered.options("forget_learned", "A learned diffusion forgets a class.", arguments, 3, list(told))  # fmt: skip
    config = Config(32, 60, 30, 2, 50, 10, 2000, 200, 200, 10) if options.smoke else Config()
    for by in options.by:
        altered.told(
            options, f"forget_learned_{by}", lambda seed, by=by: run(config, options.label, seed, by),
            what=f"learned digits without class {options.label}, {told[by]}",
            column="share", notes=["plain, to the model's", "Frechet, to the model's", "Frechet", "plain"],
            measures=["examples/papers/altering/_noisy_states.py", "inference/tilts", "inference/diffusion"],
            # Of 0 to 2 a reward was made that told examples apart, and nothing else: its threshold was that of its own fit; 3 to
            # 5 had strength 1. Settings were chosen on 10 and 11.
            seeds=(6, 7, 8),
        )  # fmt: skip


if __name__ == "__main__":
    main()
