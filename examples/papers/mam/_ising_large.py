"""The Ising example on a lattice that is too large for its transfer matrix: networks carried over, and what they do there."""

from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np

from lapilli.models import mam
from lapilli.models.ising import Ising


def blank(lattice: Ising, channels: int, key: jax.Array) -> mam.Pair:
    """Convolutional networks that have not learned anything."""
    grid = (lattice.num_rows, lattice.num_columns)
    return mam.residual_cnns(grid, 2, channels=channels, depth=2, is_periodic=True, key=key)


def enlarge(networks: mam.Pair, lattice: Ising) -> mam.Pair:
    """The same networks on a larger lattice: their weights are those of one site."""
    params = {
        n: eqx.filter(getattr(networks, n), eqx.is_inexact_array)
        for n in ("marginal", "conditional")
    }
    channels = networks.marginal.last.in_features
    return blank(lattice, channels, jax.random.key(0)).with_params(params)


class Large(NamedTuple):
    """What networks do on a lattice that is too large for its transfer matrix; nats unless said otherwise."""

    gap: np.ndarray  # E[log p(x | order) - log f(x)] over draws of the model, and its error
    bits: np.ndarray  # E[-log p(x | order)] over exact draws, bits per site, and its error
    marginal: float  # rms error of one pass of the marginal network for whole exact draws


def limits(lattice: Ising, large: Ising) -> tuple[float, float]:
    """Log Z and entropy of the larger lattice: both go with the number of sites from 10 x 10 on (log Z to 1e-3 at 30 x 30)."""
    ratio = large.num_sites / lattice.num_sites
    return lattice.log_partition() * ratio, lattice.entropy() * ratio


def measure_large(lattice: Ising, large: Ising, networks: mam.Pair, exact: np.ndarray, key) -> Large:  # fmt: skip
    """The measures of a larger lattice, given exact draws from it."""
    draw_key, order_key = jax.random.split(key)
    log_z, entropy = limits(lattice, large)
    model = mam.MaM(networks)
    mean = lambda x: np.array([np.mean(x), np.std(x, ddof=1) / np.sqrt(len(x))])
    draws = model.draw(draw_key, (len(exact),))
    log_p = np.asarray(large.log_density(exact), float) - log_z
    orders = mam.UniformOrder(large.num_sites).sample(order_key, (len(exact),))
    excess = mean(log_p - np.asarray(model.with_order(orders).log_prob(exact), float))
    level = np.asarray(model.log_marginal(exact, np.ones(large.num_sites, bool)), float)
    return Large(
        gap=mean(np.asarray(draws.log_prob - large.log_density(draws.value), float)),
        # E[-log p] is the entropy, which is known: what is left to estimate hardly varies.
        bits=(np.array([entropy, 0.0]) + excess) / (large.num_sites * np.log(2)),
        marginal=float(np.sqrt(np.mean((level - log_p) ** 2))),
    )


def independent_bits(lattice: Ising) -> float:
    """Bits per site of independent spins with the lattice's mean."""
    up = (1 + lattice.mean_spin()) / 2
    return float(-(up * np.log2(up) + (1 - up) * np.log2(1 - up)))


def report_large(lattice: Ising, large: Ising, stages: dict[str, Large]) -> str:
    """The table of the larger lattice."""
    log_z, entropy = limits(lattice, large)
    per_site = large.num_sites * np.log(2)
    title = f"{large.num_rows} x {large.num_columns} sites"
    lines = [f"{title:<26} {'bits per site':>20} {'E[log p - log f]':>22} {'one pass, rms':>14}"]
    for name, found in stages.items():
        lines.append(
            f"  {name:<24} {found.bits[0]:11.5f} +- {found.bits[1]:.5f} {found.gap[0]:13.3f} +- {found.gap[1]:.3f} "
            f"{found.marginal:14.2f}"
        )
    lines.append(f"  {'exact':<24} {entropy / per_site:11.5f} {-log_z:25.3f}")
    lines.append(
        f"  independent spins {independent_bits(lattice):.3f} bits per site; 30 x 30 in the paper 0.835"
    )
    return "\n".join(lines)
