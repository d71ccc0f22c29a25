"""Tilt a model: how do ten years look in which a drought comes, and how probable is one?

What it shows: a chain of wet and dry years is fitted to the Nile by counting. The wish is "four dry years in a row". As a
constraint, `inference.tilt` makes the program p(x | wish), whose evidence is the probability of a drought; as a reward, which a
policy can meet nearly always, it is the law that the policy learns. There are 1,024 decades, so that all of it is known
exactly.

Data: statsmodels' nile, 1871 to 1970; a year is dry if its flow is below the median.
Expected: the policy within 0.01 nats of the tilted law; a drought in 99 % of its decades, and in 45 % of the chain's.
Run time: a quarter of a minute on 2 CPU cores.

    python examples/droughts.py [--smoke] [--out droughts.png]
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
import statsmodels.api as sm

from lapilli import inference, ppl

YEARS, RUN = 10, 4


def load() -> np.ndarray:
    """P(dry) after a wet and after a dry year, counted."""
    flow = sm.datasets.nile.load_pandas().data.volume.to_numpy()
    dry = (flow < np.median(flow)).astype(int)
    return np.array(
        [(dry[1:][dry[:-1] == k].sum() + 1) / ((dry[:-1] == k).sum() + 2) for k in (0, 1)]
    )


def decade(chances):
    """Dry years of a decade that begins after a wet one."""

    def year(before, _):
        dry = ppl.sample("dry", dist.Bernoulli(chances[before]))
        return dry, dry

    return ppl.scan(year, 0, None, YEARS)[1]


def has_drought(dry):
    """Whether some four years in a row are dry: a reward that is a truth value is a constraint."""
    return jnp.convolve(dry, jnp.ones(RUN, dry.dtype), mode="valid").max() == RUN


def wish(dry):
    """A decade without a drought counts exp(-5) of one with it."""
    return jnp.where(has_drought(dry), 0.0, -5.0)


@ppl.model
def policy():
    """Chances by year, the year before, and how long it has been dry."""
    logits = ppl.param("logits", jnp.zeros((YEARS, 2, RUN + 1)))

    def year(state, row):
        length, is_met = state
        dry = ppl.sample("dry", dist.Bernoulli(logits=row[is_met, length]))
        length = jnp.where(dry == 1, jnp.minimum(length + 1, RUN), 0)
        return (length, jnp.maximum(is_met, (length == RUN).astype(int))), dry

    return ppl.scan(year, (0, 0), logits)[1]


def solve(chances: np.ndarray, num_steps: int) -> tuple:
    """The chain, the policy that was learned, how far it is from the tilted law, and the probability of a drought."""
    chain = ppl.model(lambda: decade(jnp.asarray(chances)))
    constrained = inference.tilt(chain, has_drought)
    log_chance = inference.tilts.report(constrained, chain, jax.random.key(1)).log_z.value
    tilt = inference.tilt(chain, wish)
    way = inference.forward_kl(tilt, policy, num_particles=512, proposal=chain)
    rate = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    fit = inference.fit(
        way, rate, num_steps=num_steps, key=jax.random.key(0), progress=False, k_hat="skip"
    )
    learned = fit.guide.bind(fit.params)
    report = inference.tilts.report(tilt, fit, jax.random.key(1))
    return chain, learned, report, float(np.exp(log_chance))


def decades(program, num: int) -> np.ndarray:
    """Dry years of decades that a program draws, [num, years]."""
    keys = jax.random.split(jax.random.key(2), num)
    return np.asarray(jax.vmap(lambda key: program.simulate(key).choices["dry"])(keys))


def draw(plain, steered, out: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
    for axis, drawn, title in zip(
        axes, (plain, steered), ("The chain", "Given a drought"), strict=False
    ):
        axis.imshow(drawn[:14], cmap="YlOrBr", vmin=0, vmax=1.4, aspect="auto")
        axis.set(title=title, xlabel="year", yticks=[])
    axes[2].plot(plain.mean(0), "o-", label="the chain")
    axes[2].plot(steered.mean(0), "o-", label="given a drought")
    axes[2].set(title="Share of dry years", xlabel="year", ylim=(0, 1))
    axes[2].legend(frameon=False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("droughts.png")) -> dict[str, float]:
    chain, learned, report, chance = solve(load(), 20 if smoke else 1000)
    plain, steered = (decades(p, 200 if smoke else 4000) for p in (chain, learned))
    met = lambda drawn: float(
        np.mean([np.asarray(has_drought(jnp.asarray(d))) for d in drawn[:200]])
    )
    print(report)
    print(f"P(drought) {chance:.3f}, exactly")
    print(f"decades with one: of the chain {met(plain):.2f}, of the policy {met(steered):.2f}")
    draw(plain, steered, out)
    return {"chance": chance, "kl": float(report.kl.value), "met": met(steered)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Decades with a drought.")
    parser.add_argument("--smoke", action="store_true", help="few steps")
    parser.add_argument("--out", type=Path, default=Path("droughts.png"), help="the picture")
    main(**vars(parser.parse_args()))
