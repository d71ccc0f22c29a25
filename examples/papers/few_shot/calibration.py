"""Is a population of weights better calibrated than one network? On letters like those of training, and on damaged ones.

What it shows: the claim of NIW-Meta, on the letters of `glyphs.py`, where it was a null; what made it one; and what is left
once a temperature is fitted. Five ways, one example of each letter, 1,000 steps of eight episodes. Methods:

    layer       NIW-Meta, the last layer drawn from a population with one width, which is learned
    weight      NIW-Meta, a width for each of its 2,080 weights
    ProtoNet    one network for all episodes
    MAML        a softmax layer on top, all weights adapted by five gradient steps, first order (Finn et al. 2017)

Columns: scripts never trained on, as they are; with a square of 6 x 6 of the 20 x 20 pixels blank (occluded); moved by up to
one pixel along both axes; with normal noise of deviation 100 of 255 on all pixels. Support and query are damaged alike, and
only at test. Sizes were chosen so that ProtoNet is right on some 73 % of the damaged validation scripts. All of it twice: after
training on all Latin letters, and on 40 of them.

Measures: accuracy, log probability of the label (nats), calibration error of the most probable class; the last two before and
after one temperature for each method, fitted on the undamaged validation scripts. Five seeds, each with its own network,
training letters and episodes; differences from ProtoNet are paired by seed, with 95 % intervals of Student's t (four degrees of
freedom).

Found, see docs/explain/reproduced.md: clean letters, no gain that a temperature leaves. Damaged letters after training on
all of Latin, "weight" less ProtoNet, calibration error after a temperature: occluded -4.4 +- 1.1, moved -3.9 +- 1.2, noise
-4.1 +- 1.1 points. Its widths do not move from where they start, 0.2, and "held" has the same; "layer" learns a width of 0.015,
and differs in nothing. MAML, far from converged, is 12 to 30 points less accurate than ProtoNet, clean and damaged; at a fitted
temperature its calibration error is higher on clean letters (+4.2 +- 3.6 points), and not told apart on damaged ones. Run time:
twelve minutes of one core for five seeds, three more to choose settings.

Settings, chosen by the log probability of the validation scripts (`--choose`, seed 100): see `CHOSEN`. Rows beside these are
conditions, and no choices. "Free scale": the scale of the scores has a rate of 1e-2, at which it settles; with the one chosen
for ProtoNet it stops early. "wide": a layer's width that starts at 0.5. "held": one that stays at 0.2. MAML's setting is the one
that `glyphs.py --choose` has chosen on the same letters.

    python examples/papers/few_shot/calibration.py [--smoke] [--seeds 5] [--choose] [--out calibration_output]
"""

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import _baselines as baselines
import equinox as eqx
import glyphs
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from lapilli import inference
from lapilli.models import niw_meta

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _intervals import draw_intervals, interval
from _record import parsed, record_figure

SIZE = glyphs.SIZE
CLASSES = {"all": None, "few": 40}  # letters to train on
MEASURES = ("accuracy", "nats", "error", "fitted nats", "fitted error")


class Config(NamedTuple):
    """Sizes of a run; `num_train` episodes are the pool that minibatches are drawn from."""

    num_steps: int = 1000
    num_train: int = 2000
    num_validation: int = 600
    num_test: int = 300
    batch_size: int = 8
    num_draws: int = 20
    widths: tuple[int, int] = (64, 32)
    max_classes: int = 2000
    num_ways: int = 5


class Setting(NamedTuple):
    """Rates of Adam for weights, for the scale of the scores and for the population's widths, and where the widths start."""

    rate: float = 3e-3
    head: float = 1e-3
    width: float = 1e-2
    start: float = 0.05


# The rate of the widths is one at which they are learned; starts and the other rate are chosen.
CANDIDATES = {
    kind: [Setting(head=head, start=start) for head in (1e-3, 1e-2) for start in starts]
    for kind, starts in {"layer": (0.05, 0.2), "weight": (0.05, 0.2), "ProtoNet": (0.05,)}.items()
} | {"MAML": [Setting(rate) for rate in (1e-3, 3e-3)]}
CHOSEN = {
    "all": {
        "layer": Setting(),
        "weight": Setting(head=1e-2, start=0.2),
        "ProtoNet": Setting(),
        "MAML": Setting(glyphs.CHOSEN["MAML"].rate),
    },
    "few": {
        "layer": Setting(),
        "weight": Setting(),
        "ProtoNet": Setting(),
        "MAML": Setting(glyphs.CHOSEN["MAML"].rate),
    },
}
FREE = {
    "wide, free scale": ("layer", Setting(head=1e-2, start=0.5)),
    "held, free scale": ("layer", Setting(head=1e-2, width=0.0, start=0.2)),
    "ProtoNet, free scale": ("ProtoNet", Setting(head=1e-2)),
}
# "mean": the population's mean in place of draws of the adapted weights.
PAIRS = (
    ("layer", "ProtoNet"),
    ("weight", "ProtoNet"),
    ("weight", "ProtoNet, free scale"),
    ("held, free scale", "ProtoNet"),
    ("weight", "held, free scale"),
    ("wide, free scale", "ProtoNet, free scale"),
    ("wide, free scale, mean", "ProtoNet, free scale"),
    ("ProtoNet, free scale", "ProtoNet"),
    ("weight", "MAML"),
    ("MAML", "ProtoNet"),
)
ROWS = tuple(dict.fromkeys(row for pair in PAIRS for row in pair))


def occluded(rng, images, side=6):
    """A square of each image is blank."""
    out = images.reshape(-1, SIZE, SIZE).copy()
    corner = rng.integers(0, SIZE - side + 1, (len(out), 2, 1))
    is_hit = (np.arange(SIZE) >= corner) & (np.arange(SIZE) < corner + side)
    out[is_hit[:, 0, :, None] & is_hit[:, 1, None, :]] = 0
    return out.reshape(images.shape)


def moved(rng, images, reach=1):
    """Each image moves by up to `reach` pixels along both axes; what leaves it is lost."""
    padded = np.pad(images.reshape(-1, SIZE, SIZE), ((0, 0), (reach, reach), (reach, reach)))
    where = rng.integers(0, 2 * reach + 1, (len(padded), 2, 1)) + np.arange(SIZE)
    rows = np.arange(len(padded))[:, None, None]
    return padded[rows, where[:, 0, :, None], where[:, 1, None, :]].reshape(images.shape)


def noisy(rng, images, deviation=100):
    """Normal noise on every pixel, cut off at 0 and 255."""
    return np.clip(images + rng.normal(0, deviation, images.shape), 0, 255).astype(np.uint8)


DAMAGES = {
    "clean": lambda rng, images: images,
    "occluded": occluded,
    "moved": moved,
    "noise": noisy,
}


def damaged(name, episodes, seed):
    """The episodes with all of their images, support and query, changed."""
    rng = np.random.default_rng(seed)
    change = lambda points: points._replace(x=DAMAGES[name](rng, points.x))
    return niw_meta.Episodes(change(episodes.support), change(episodes.query))


def load(config, seed, num_classes):
    """Episodes of training, validation and test, all of this seed; `num_classes` Latin letters, None for all."""
    images, scripts = glyphs.load_glyphs(config.max_classes)
    is_validation = np.isin(scripts, glyphs.VALIDATION)
    latin = np.flatnonzero(scripts == "Latin")
    if num_classes is not None:
        latin = np.random.default_rng(seed).choice(latin, min(num_classes, len(latin)), False)
    groups = latin, is_validation, (scripts != "Latin") & ~is_validation
    sizes = config.num_train, config.num_validation, config.num_test
    seeds = 10 + seed, 1000 + seed, 2000 + seed
    return [
        glyphs.make_episodes(number, images[group], size, 1, config.num_ways)
        for number, group, size in zip(seeds, groups, sizes, strict=True)
    ]


class Method:
    """Training and prediction of "layer", "weight", "ProtoNet" or "MAML".

    Compiled once for all settings and seeds, since rates and starts are arguments: `inference.fit`, which takes an optimiser as
    it stands, would compile for longer than it trains. `niw_meta.optimizer` makes the same steps there.
    """

    def __init__(self, kind: str, config: Config) -> None:
        self.kind, self.config = kind, config
        first, last = self.layers(0)
        head = niw_meta.NearestCentroid(config.num_ways, is_learned=True)
        self.guide = None
        if kind == "ProtoNet":
            self.model = baselines.protonet(self.network(0), head)
        elif kind == "MAML":
            inner = {"optimizer": optax.sgd(glyphs.CHOSEN["MAML"].inner_rate), "num_steps": 5}
            self.model = baselines.maml(self.network(0), niw_meta.Softmax(), order=1, **inner)
        else:
            self.model, self.guide = niw_meta.programs(
                last,
                head,
                features=first,
                widths=kind,
                inner=inference.local.Newton(2, damping=0.5),
            )
            bound = inference.elbo(self.model, self.guide, kl="analytic")
            self.objective = bound.with_plate_sizes({"episodes": math.inf})
        if self.guide is None:
            self.objective = baselines.likelihood(self.model)
        self._run = jax.jit(self._steps)
        self._scores = jax.jit(self._scores_of, static_argnums=2)

    def layers(self, seed: int) -> tuple[Any, Any]:
        """Two layers before training, the features and what is adapted."""
        keys, (width, out) = jax.random.split(jax.random.key(seed)), self.config.widths
        return glyphs.Features(width, keys[0]), eqx.nn.Linear(width, out, key=keys[1])

    def network(self, seed: int) -> Any:
        """Both layers in one, before training; for MAML with a layer of classes on top."""
        layers = list(self.layers(seed))
        if self.kind == "MAML":
            key = jax.random.fold_in(jax.random.key(seed), 1)
            out = eqx.nn.Linear(self.config.widths[1], self.config.num_ways, key=key)
            layers += [eqx.nn.Lambda(jax.nn.relu), out]
        return eqx.nn.Sequential(layers)

    def start(self, episodes: Any, setting: Setting, seed: int) -> dict[str, Any]:
        """Parameters before the first step."""
        params = self.objective.init(jax.random.key(0), jax.tree.map(lambda x: x[:2], episodes))
        arrays = lambda module: eqx.filter(module, eqx.is_inexact_array)
        first, last = self.layers(seed)
        if self.kind == "MAML":
            return {**params, "loc": ravel_pytree(arrays(self.network(seed)))[0]}
        if self.guide is None:
            return {**params, "network": arrays(self.network(seed))}
        scale = jnp.full_like(params["scale"], math.log(setting.start))
        own = {"features": arrays(first), "loc": ravel_pytree(arrays(last))[0], "scale": scale}
        return {**params, **own}

    def train(self, episodes: Any, setting: Setting, seed: int) -> dict[str, Any]:
        """Parameters after the last step."""
        start = self.start(episodes, setting, seed)
        own = {"scale": setting.width, "head_log_scale": setting.head}
        rates = {name: jnp.float32(own.get(name, setting.rate)) for name in start}
        return self._run(start, rates, jax.random.key(seed), episodes)

    def _steps(self, params: Any, rates: Any, key: Any, episodes: Any) -> Any:
        config, adam = self.config, optax.scale_by_adam()

        def step(carry: Any, t: Any) -> tuple[Any, None]:
            params, state = carry
            of_rows, of_draws = jax.random.split(jax.random.fold_in(key, t))
            rows = jax.random.choice(of_rows, config.num_train, (config.batch_size,), replace=False)
            batch = jax.tree.map(lambda leaf: leaf[rows], episodes)
            _, slope = self.objective.value_and_grad(params, of_draws, batch)
            moves, state = adam.update(slope, state)
            pace = 0.5 * (1 + jnp.cos(jnp.pi * t / config.num_steps))
            go = lambda rate, at, move: jax.tree.map(lambda a, m: a + pace * rate * m, at, move)
            return (
                {name: go(rates[name], params[name], moves[name]) for name in params},
                state,
            ), None

        return jax.lax.scan(step, (params, adam.init(params)), jnp.arange(config.num_steps))[0][0]

    def _scores_of(self, params: Any, part: Any, is_mean: bool) -> Any:
        draws = {}
        if self.guide is not None and is_mean:
            draws = {"theta": jnp.tile(params["loc"], (1, len(part.support.x), 1, 1))}
        elif self.guide is not None:
            guide, key = self.guide.bind(params), jax.random.key(1)
            draws = niw_meta.adapt(guide, key, part, self.config.num_draws)
        return niw_meta.predict(self.model.bind(params), draws, part).scores

    def predict(self, params: Any, episodes: Any, *, is_mean: bool = False) -> np.ndarray:
        """Scores of the queries, [draws, episodes, n, classes], a hundred episodes at a time."""
        count = len(episodes.query.x)
        size = min(100, count)
        part = lambda i: jax.tree.map(lambda leaf: leaf[i : i + size], episodes)
        parts = [self._scores(params, part(i), is_mean) for i in range(0, count, size)]
        return np.concatenate(parts, 1)


def measures(scores, episodes, temperature):
    """`MEASURES` of scores, at the temperature 1 and at the fitted one; accuracy and errors in %."""
    names = "accuracy, %", "log probability", "calibration error, %"
    raw, fitted = (glyphs.measures(scores, episodes, t)[0] for t in (1.0, temperature))
    values = [*(raw[n] for n in names), *(fitted[n] for n in names[1:])]
    return dict(zip(MEASURES, map(float, values), strict=True))


def choose(config, seed=100):
    """The candidate of each method with the highest log probability on the validation scripts, by letters to train on."""
    methods = {kind: Method(kind, config) for kind in CANDIDATES}
    columns = ("nats", "error", "fitted nats", "fitted error")
    head = "".join(f"{name:>14}" for name in (*columns, "width"))
    print(f"{'letters':8}{'method':10}{'rate of scale; start':>24}{head}")
    chosen = {}
    for letters, num_classes in CLASSES.items():
        episodes, validation, _ = load(config, seed, num_classes)
        for kind, candidates in CANDIDATES.items():
            nats = []
            for setting in candidates:
                params = methods[kind].train(episodes, setting, seed)
                scores = methods[kind].predict(params, validation)
                temperature = niw_meta.fitted_temperature(scores, validation.query)
                row = measures(scores, validation, temperature)
                nats.append(row["nats"])
                cells = [*(row[c] for c in columns), np.median(np.exp(params.get("scale", np.nan)))]
                rates = f"{setting.head}; {setting.start}"
                values = "".join(f"{cell:14.3f}" for cell in cells)
                print(f"{letters:8}{kind:10}{rates:>24}{values}", flush=True)
            chosen[letters, kind] = candidates[int(np.argmax(nats))]
            print(f"chosen: {letters}, {kind}, {chosen[letters, kind]}", flush=True)
    return chosen


def run(config, num_seeds):
    """Measures [seeds] by letters to train on, row, damage and measure; widths and scales of the scores at the end."""
    methods = {kind: Method(kind, config) for kind in CANDIDATES}
    found: dict[tuple, list] = {}
    ends: dict[tuple, list] = {}
    for seed in range(num_seeds):
        for letters, num_classes in CLASSES.items():
            began = time.perf_counter()
            episodes, validation, test = load(config, seed, num_classes)
            tests = {name: damaged(name, test, seed) for name in DAMAGES}
            jobs = {kind: (kind, CHOSEN[letters][kind]) for kind in CANDIDATES} | FREE
            for row, (kind, setting) in jobs.items():
                method = methods[kind]
                params = method.train(episodes, setting, seed)
                width = np.median(np.exp(params.get("scale", np.nan)))
                ends.setdefault((letters, row), []).append(
                    (width, np.exp(params.get("head_log_scale", np.nan)))
                )
                for label, is_mean in ((row, False), (f"{row}, mean", True)):
                    if is_mean and label not in ROWS:
                        continue
                    predict = lambda part, m=method, p=params, i=is_mean: m.predict(
                        p, part, is_mean=i
                    )
                    temperature = niw_meta.fitted_temperature(predict(validation), validation.query)
                    for name, part in tests.items():
                        cells = measures(predict(part), part, temperature)
                        found.setdefault((letters, label, name), []).append(list(cells.values()))
            print(f"seed {seed}, {letters}: {time.perf_counter() - began:.0f} s", flush=True)
    return {k: np.array(v) for k, v in found.items()}, {k: np.array(v) for k, v in ends.items()}


def paired(difference):
    """Mean over seeds [seeds, measures], and half of its 95 % interval."""
    return np.transpose([interval(column) for column in difference.T])


def differences(found, letters, row, other):
    """`paired` by damage, of a row less another."""
    return {d: paired(found[letters, row, d] - found[letters, other, d]) for d in DAMAGES}


def report(found, ends):
    head = "".join(f"{m:>20}" for m in MEASURES)
    print(f"\n{'mean over seeds':45}{head}")
    for (letters, row, name), values in found.items():
        print(f"{letters:5}{row:28}{name:12}" + "".join(f"{v:20.3f}" for v in values.mean(0)))
    print(f"\n{'difference, paired by seed':77}{head}")
    for letters in CLASSES:
        for row, other in PAIRS:
            for damage, (mean, reach) in differences(found, letters, row, other).items():
                cells = "".join(f"{m:+11.3f} +- {r:5.3f}" for m, r in zip(mean, reach, strict=True))
                print(f"{letters:5}{row:28}less {other:28}{damage:11}{cells}")
    print("\nat the end: width (median), scale of the scores")
    for (letters, row), values in ends.items():
        print(f"{letters:5}{row:28}" + "  ".join(f"{w:.3f} {s:.1f}" for w, s in values))


def draw(found, path):
    """Calibration errors at a fitted temperature, each less ProtoNet's, after training on all letters."""
    rows = [row for row, other in PAIRS if other == "ProtoNet"]
    column = MEASURES.index("fitted error")
    gaps = {row: differences(found, "all", row, "ProtoNet") for row in rows}
    panels = {
        damage: {row: (cells[damage][0][column], cells[damage][1][column]) for row, cells in gaps.items()}
        for damage in DAMAGES
    }  # fmt: skip
    draw_intervals(
        panels, path, claim="Where letters are damaged, wide populations are better calibrated than ProtoNet",
        unit="calibration error less ProtoNet's, points",
    )  # fmt: skip


def record(found, ends, seconds):
    """The figures of the page on what reproduces: differences, levels of ProtoNet, and where widths and scales ended."""
    more = {
        "seeds": len(next(iter(found.values()))),
        "time": f"{seconds / 60:.0f} minutes of processor time",
        "measures": ["models/niw_meta", "inference/local"],
    }
    letters = {"all": "trained on all Latin letters", "few": f"trained on {CLASSES['few']} letters"}
    words = "accuracy, log probability (nats), calibration error, and the last two with a fitted temperature (% and nats)"
    title = lambda row: row if row.startswith("ProtoNet") else f"NIW-Meta ({row})"
    plain = lambda row: row.replace(",", "").replace(" ", "_").lower()
    named = lambda cells: {
        f"{damage} {measure}": cells[damage][i]
        for damage in DAMAGES
        for i, measure in enumerate(MEASURES)
    }
    for group in CLASSES:
        for row, other in PAIRS:
            cells = differences(found, group, row, other)
            record_figure(
                f"few_shot/calibration_{group}_{plain(row)}_less_{plain(other)}",
                what=f"few-shot letters, clean and damaged, {letters[group]}, {title(row)} less {title(other)}: {words}; "
                "spread: half of the 95% interval, paired by seed",
                value=named({d: mean for d, (mean, _) in cells.items()}),
                spread=named({d: reach for d, (_, reach) in cells.items()}),
                **more,
            )
        record_figure(
            f"few_shot/calibration_{group}_protonet",
            what=f"few-shot letters, clean and damaged, {letters[group]}, ProtoNet: {words}; mean of the seeds",
            value=named({d: found[group, "ProtoNet", d].mean(0) for d in DAMAGES}),
            **more,
        )
    for i, (name, what) in enumerate(
        (
            ("widths", "width of the population (median over weights)"),
            ("scales", "scale of the scores, from 10"),
        )
    ):
        rows = {f"{group} {row}": v[:, i] for (group, row), v in ends.items()}
        rows = {row: v for row, v in rows.items() if np.isfinite(v).all()}
        record_figure(
            f"few_shot/calibration_{name}",
            what=f"few-shot letters, after training: {what}, mean over seeds; spread: standard deviation",
            value={row: v.mean() for row, v in rows.items()},
            spread={row: v.std(ddof=1) for row, v in rows.items()},
            **more,
        )


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description="Calibration of few-shot methods.")
    parser.add_argument("--smoke", action="store_true", help="a small run that finishes in seconds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--choose", action="store_true", help="compare settings on validation scripts"
    )
    parser.add_argument("--out", type=Path, default=Path("calibration_output"))
    options = parsed(parser, arguments)
    if options.record and options.seeds < 5:
        parser.error("--record is for five seeds")
    config, num_seeds = Config(), options.seeds
    if options.smoke:
        config, num_seeds = Config(40, 100, 20, 20, 4, 5, (16, 8), 100), 2
    if options.choose:
        return choose(config)
    found, ends = run(config, num_seeds)
    report(found, ends)
    draw(found, options.out / "calibration.png")
    if options.record:
        record(found, ends, time.process_time())
    return found


if __name__ == "__main__":
    main()
