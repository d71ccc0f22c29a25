"""One tilt, every way to it: twelve fair bits altered by the number of their "11" pairs, and how far each method ends from it.

What it shows: KL-regularised policy gradients with six estimators, trajectory balance on and off policy, reward-weighted
regression, preferences (DPO), a discriminator made of the model itself (DDO), best of N, particles and search, all beside the
exact tilt p(x) exp(r(x) / b): there are 4,096 strings, so that each law's divergence from it is a sum. The policy is a Markov
chain of bits, a family that holds the tilt.

Source: none; the taxonomy is that of Franceschelli and Musolesi 2024, arXiv:2308.00031 (reinforcement learning of generative
models). Oracle: log Z = 4.963810 at b = 1, by transfer matrices.

Expected: policies within 0.05 nats of the tilt in seconds, but for regression weighted by draws of the model, whose few weights
bias it; the baseline of the 63 other draws leaves two thirds of the plain gradient's variance at the start and a seventh at the
end; one of pairs more than the plain one has at the start. (Reward times score has .503 there, by enumeration, of which it leaves
two fifths: the plain gradient here holds -grad log q as well, which acts as a baseline of one nat.) Best of N where its law says;
search with the largest reward, and far from the tilt in the end. Figures: docs/_data/figures, altering/strings. Run time: two
minutes on 2 CPU cores.

    python examples/papers/altering/strings.py [--smoke] [--seed 0] [--temperature 1] [--out strings_output] [--record]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import keep, parsed, record_figure

LENGTH = 12


class Config(NamedTuple):
    num_steps: int = 600
    num_draws: int = 64  # in each step
    num_data: int = 20_000  # preferred pairs, or draws that stand for data
    num_samples: int = 200_000  # of what has no density, to be counted


@ppl.model
def bits() -> Any:
    """The trained model: fair bits, one after the other."""

    def step(before: Any, _: None) -> Any:
        x = ppl.sample("x", dist.Bernoulli(0.5))
        return x, x

    return ppl.scan(step, 0, None, LENGTH)[1]


def logits() -> Any:
    return ppl.param("logits", jnp.zeros((LENGTH, 2)))


@ppl.model
def policy() -> Any:
    """What is trained: a Markov chain, its logits by place and bit before; the model itself at first."""

    def step(before: Any, row: Any) -> Any:
        x = ppl.sample("x", dist.Bernoulli(logits=row[before]))
        return x, x

    return ppl.scan(step, 0, logits())[1]


def pairs(x: Any) -> Any:
    """The reward."""
    return (x[1:] * x[:-1]).sum()


def log_ratio(table: Any, x: Any) -> Any:
    """D = log q - log p of rows of strings, the policy's density written out."""
    before = jnp.pad(x[:, :-1], ((0, 0), (1, 0)))
    law = dist.Bernoulli(logits=table[jnp.arange(LENGTH), before])
    return law.log_prob(x).sum(-1) + LENGTH * jnp.log(2.0)


@inference.objective(direction="min", weighing="refused")
def dpo(model: ppl.Program, guide: ppl.Program, temperature: Any, won: Any, lost: Any) -> Any:
    table = guide()
    margin = log_ratio(table, won) - log_ratio(table, lost)
    return jax.nn.softplus(-temperature * margin).mean()


@inference.objective(direction="min", weighing="refused")
def ddo(model: ppl.Program, guide: ppl.Program, data: Any, drawn: Any) -> Any:
    table = guide()
    fake, real = log_ratio(table, drawn), log_ratio(table, data)
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


class Row(NamedTuple):
    """A method: its law, what it took, its gradient's variance; whether it needs gradients of r, is off policy, gets exact."""

    law: Any
    evaluations: int
    seconds: float
    variance: tuple[float, ...] = ()  # at the start and at the end
    needs: tuple[str, str, str] = ("no", "no", "no")


def policies(
    tilt: inference.tilts.TiltedProgram, config: Config
) -> dict[str, tuple[Any, tuple, int]]:
    """Objectives by name, what is known of each (as in `Row`), and rewards that a step evaluates."""
    n, elbo = config.num_draws, inference.elbo
    on, off = ("no", "no", "in the family"), ("no", "yes", "in the family")
    few = max(n // 16, 1)
    scores = lambda baseline: {"x": ppl.strategies.Reinforce(baseline)}
    variance = lambda **by: inference.log_variance(tilt, policy, num_particles=n, **by)
    forward = lambda **by: inference.forward_kl(tilt, policy, num_particles=n, **by)
    mvd = elbo(tilt, policy, strategies="mvd", num_replicates=few)
    # The baseline of a draw is the mean of the n - 1 others.
    loo = elbo(tilt, policy, strategies=scores(ppl.strategies.LeaveOneOut(n)))
    pairwise = elbo(tilt, policy, strategies="reinforce_loo", num_replicates=n // 2)
    average = elbo(tilt, policy, strategies=scores("moving-average"), num_replicates=n)
    return {
        "reinforce": (elbo(tilt, policy, strategies="reinforce", num_replicates=n), on, n),
        "reinforce, moving average": (average, on, n),
        "reinforce, leave one out": (loo, on, n),
        "reinforce, pairs": (pairwise, on, n),
        "enumeration": (elbo(tilt, policy, strategies="enum"), on, 2**LENGTH),
        "measure-valued": (mvd, on, few * (1 + 2 * LENGTH)),  # two more runs for each bit
        "log-variance": (variance(), off, n),
        "log-variance, draws of p": (variance(proposal=bits), off, n),
        "reward-weighted, draws of p": (forward(proposal=bits), off, n),
        "cross-entropy": (forward(), off, n),
    }


def trained(
    objective: Any, args: tuple, config: Config, key: jax.Array
) -> tuple[ppl.Program, float]:
    started = time.perf_counter()
    fit = inference.fit(
        objective, optax.adam(optax.cosine_decay_schedule(0.1, config.num_steps)), args,
        num_steps=config.num_steps, key=key, progress=False, k_hat="skip",
    )  # fmt: skip
    return policy.bind(fit.params), time.perf_counter() - started


def variance_of(objective: Any, params: Any, key: jax.Array, num: int = 200) -> float:
    """Of a gradient at these parameters, summed over its entries."""
    grads = jax.jit(jax.vmap(lambda k: objective.value_and_grad(params, k)[1]["logits"]))
    return float(jnp.var(grads(jax.random.split(key, num)), axis=0, ddof=1).sum())


def preferred(number: int, key: jax.Array) -> tuple[Any, Any]:
    """Pairs of draws of the model, in the order in which a judge of Bradley and Terry prefers them."""
    draw_key, judge_key = jax.random.split(key)
    x = jax.random.bernoulli(draw_key, 0.5, (2, number, LENGTH)).astype(int)
    gap = jax.vmap(pairs)(x[0]) - jax.vmap(pairs)(x[1])
    first = jax.random.bernoulli(judge_key, jax.nn.sigmoid(gap.astype(float)))[:, None]
    return jnp.where(first, *x), jnp.where(first, x[1], x[0])


def timed(make: Callable[[jax.Array], Any], number: int, key: jax.Array) -> tuple[Any, float]:
    """Many draws of a sampler, one per key, and the seconds."""
    started = time.perf_counter()
    run = jax.jit(lambda keys: jax.lax.map(make, keys, batch_size=10_000))
    x = jax.block_until_ready(run(jax.random.split(key, number)))
    return {"x": x}, time.perf_counter() - started


def samplers(tilt: inference.tilts.TiltedProgram, config: Config, key: jax.Array) -> dict[str, Row]:
    """Methods that train nothing: best of N with its exact law, particles and search by their draws."""
    rows = {}
    grid = (np.arange(2**LENGTH)[:, None] >> np.arange(LENGTH)) & 1
    rewards = np.asarray(jax.vmap(pairs)(jnp.asarray(grid)))
    for n in (4, 16, 64):
        started = time.perf_counter()
        law = inference.best_of(bits, pairs, n).law_of(rewards)
        rows[f"best of {n}"] = Row((grid, law), n, time.perf_counter() - started)
    exact = ("no", "yes", "yes")
    for n in (16, 256):
        sir = ppl.normalize(tilt, proposal=bits, num_particles=n)
        draws, seconds = timed(
            lambda k, q=sir: q.simulate(k).choices["x"], config.num_samples // (n // 16), key
        )
        rows[f"resampling of {n}"] = Row(draws, n, seconds, needs=exact)
    for n in (4, 64, 512):
        move = lambda k, n=n: (
            inference.search.zero_order(
                lambda e: (e > 0).astype(int),
                pairs,
                k,
                jax.random.normal(k, (LENGTH,)),
                num_steps=n,
            ).sample
        )
        draws, seconds = timed(move, config.num_samples // 4, key)
        rows[f"zero-order search, {n} moves"] = Row(draws, n + 1, seconds)
    return rows


def run(config: Config, temperature: float, key: jax.Array) -> dict[str, dict[str, Any]]:
    tilt = inference.tilt(bits, pairs, temperature)
    keys = iter(jax.random.split(key, 80))
    rows = {"the model itself": Row(bits, 0, 0.0)}
    for name, (objective, needs, number) in policies(tilt, config).items():
        guide, seconds = trained(objective, (), config, next(keys))
        spent = config.num_steps * number
        at, key = (objective.init(key), guide.params), next(keys)
        rows[name] = Row(
            guide, spent, seconds, tuple(variance_of(objective, p, key) for p in at), needs
        )
    won, lost = preferred(config.num_data, next(keys))
    fitted = ("no", "yes", "in pairs")
    args = (temperature, won, lost)
    guide, seconds = trained(dpo(bits, logits), args, config, next(keys))
    rows["preferences (DPO)"] = Row(guide, 2 * config.num_data, seconds, needs=fitted)
    sir = ppl.normalize(tilt, proposal=bits, num_particles=256)
    data = timed(lambda k: sir.simulate(k).choices["x"], config.num_data, next(keys))[0]["x"]
    drawn = jax.random.bernoulli(next(keys), 0.5, data.shape).astype(int)
    guide, seconds = trained(ddo(bits, logits), (data, drawn), config, next(keys))
    rows["discriminator (DDO)"] = Row(guide, 0, seconds, needs=("no", "yes", "in data"))
    rows |= samplers(tilt, config, next(keys))
    return {name: measured(tilt, row, next(keys)) for name, row in rows.items()}


def measured(tilt: inference.tilts.TiltedProgram, row: Row, key: jax.Array) -> dict[str, Any]:
    law = row.law
    if isinstance(law, tuple):  # a law by its probabilities
        grid, p = law
        some = p > 0
        joint = jax.vmap(lambda x: tilt.log_density({"x": x}))(jnp.asarray(grid))
        log_q = np.log(p, where=some, out=np.zeros_like(p))
        log_z = float(jax.nn.logsumexp(joint))
        kl = float((p * (log_q - np.asarray(joint) + log_z))[some].sum())
        reward = float((p * np.asarray(jax.vmap(pairs)(jnp.asarray(grid)))).sum())
        found = {"KL": kl, "is": "exact", "reward": reward, "entropy": -float((p * log_q).sum())}
    else:
        made = inference.tilts.report(tilt, law, key)
        assert made.kl is not None and made.entropy is not None
        found = {"KL": made.kl.value, "is": made.kl_is, "reward": made.reward.value, "entropy": made.entropy.value}  # fmt: skip
    names = ("gradients of r", "off policy", "exact as N grows")
    spent = {"variance": row.variance, "evaluations": row.evaluations, "seconds": row.seconds}
    return found | spent | dict(zip(names, row.needs, strict=True))


HEAD = (
    "KL to p*", "E r", "entropy", "gradient variance", "evaluations", "seconds", "grad r?", "off policy?", "exact as N grows?",
)  # fmt: skip


def table(rows: dict[str, dict[str, Any]]) -> str:
    widths = [max(len(h) + 2, 10) for h in HEAD]
    joined = lambda cells: "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
    lines = [f"{'':<29}{joined(HEAD)}"]
    for name, row in rows.items():
        star = "" if row["is"] == "exact" else "+"
        variance = " to ".join(f"{v:.2g}" for v in row["variance"]) or "-"
        cells = [f"{row['KL']:.4f}{star}", f"{row['reward']:.3f}", f"{row['entropy']:.3f}"]
        cells += [variance, f"{row['evaluations']:,}", f"{row['seconds']:.1f}"]
        cells += [row["gradients of r"], row["off policy"], row["exact as N grows"]]
        lines.append(f"{name:<29}{joined(cells)}")
    lines.append("+ from counted draws: too large by some (outcomes - 1) / (2 draws)")
    return "\n".join([*lines, "evaluations of the reward: of a sampler, those of one draw"])


def record(config: Config, rows: dict[str, dict[str, Any]], temperature: float, seed: int) -> None:
    record_figure(
        "altering/strings",
        what=f"twelve bits altered by their 11 pairs at temperature {temperature:g}: KL to the exact tilt, nats, after "
        f"{config.num_steps} steps of {config.num_draws} draws",
        value={name: row["KL"] for name, row in rows.items()},
        seeds=str(seed),
        note="mean number of pairs: "
        + "; ".join(f"{k} {row['reward']:.2f}" for k, row in rows.items()),
        measures=["inference/tilts", "inference/search"],
    )


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 5), layout="constrained", sharey=True)
    names = list(rows)[::-1]
    for axis, key, title in zip(
        axes, ("KL", "reward"), ("KL to the tilt, nats", "mean reward"), strict=True
    ):
        axis.barh(names, [max(rows[n][key], 1e-4) for n in names], color="C0")
        axis.set_xlabel(title)
    axes[0].set_xscale("log")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Every way to one tilt, and how far each ends from it."
    )
    parser.add_argument("--smoke", action="store_true", help="few steps and draws")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("strings_output"))
    options = parsed(parser, arguments)
    config = Config(60, 32, 2000, 5000) if options.smoke else Config()
    rows = run(config, options.temperature, jax.random.key(options.seed))
    text = table(rows)
    keep(options.out, text, rows)
    draw(rows, options.out / "strings.png")
    if options.record:
        record(config, rows, options.temperature, options.seed)


if __name__ == "__main__":
    main()
