"""Question: how strong an error of a posterior does each check see, where ranks of single coordinates see none or little?

m ~ N(0, C), x | m ~ N(m, C) in two dimensions, correlation 0.8; posteriors that are wrong by a strength from 0 (right) to 1:

    correlation   the posterior's correlation is 0.8 (1 - strength); marginals are right
    prior         draws about (1 - strength) x / 2, which over all data have the law of the prior; 1 is the prior, whose ranks are
                  uniform (those in between are not)
    pulled        a share `strength` of the simulations has draws too low where x[0] > 0 and too high elsewhere, ranks uniform
    narrow        widths times 1 - strength / 2, which ranks do see

Printed: share of repeats with p < 0.05 for each check alone, at strength 0 its false alarms; "ranks" is the chi-square test of
`inference.diagnostics.calibrate`, at the smaller p-value of two coordinates, doubled.

Answer (400 simulations of 99 draws, 50 repeats): 80% are seen of correlation from 0.1 (directions; joint from 0.2; TARP with
random points sees a third of 1), of prior from 0.2 (joint, directions, local, tarp_data), where ranks need 0.4 and do not see the
prior itself, of pulled from 0.7 (local, tarp_data) and by no ranks, of narrow from 0.2 (joint, directions; ranks from 0.4). The
report objects to 2% of right posteriors, and to 80% of these from 0.2, of pulled from 0.7.

usage: python benchmarks/inference/posterior_checks.py [--repeats 50] [--simulations 400] [--draws 99] [--record]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from _common import parsed, record_figure
from scipy.special import ndtr, ndtri

from lapilli.inference import posterior_checks as pc
from lapilli.inference.diagnostics._calibration import _p_values

STRENGTHS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
CORRELATION = 0.8


def root(correlation: float) -> np.ndarray:
    return np.linalg.cholesky([[1.0, correlation], [correlation, 1.0]])


def simulations(kind: str, strength: float, seed: int, number: int, draws: int) -> pc.Simulations:
    rng = np.random.default_rng(seed)
    m = rng.standard_normal((number, 2)) @ root(CORRELATION).T
    x = m + rng.standard_normal((number, 2)) @ root(CORRELATION).T
    noise = rng.standard_normal((number, draws, 2))
    center, width, correlation = 0.5, 0.5**0.5, CORRELATION
    if kind == "correlation":
        correlation *= 1 - strength
    if kind == "prior":
        center = 0.5 * (1 - strength)
        width = (1 - 2 * center**2) ** 0.5
    if kind == "pulled":
        chosen = (rng.random(number) < strength)[:, None]
        v = ndtr(noise[..., 0])
        pulled = ndtri(np.where(x[:, :1] > 0, v**2, 1 - (1 - v) ** 2))
        noise[..., 0] = np.where(chosen, pulled, noise[..., 0])
    if kind == "narrow":
        width *= 1 - strength / 2
    claimed = center * x[:, None] + width * noise @ root(correlation).T
    return pc.Simulations({"m": m}, {"x": x}, {"m": claimed})


def p_values(found: pc.Simulations, key: Any) -> dict[str, float]:
    """Of each check alone; of the report 0 where it objects, at its own level and corrected for all its checks, else 1."""
    report = pc.check_simulations(found, key)
    below = pc.coverage(found, key, kind="below")
    ranks = _p_values(below.ranks, below.num_draws)
    return {
        "ranks": min(1.0, 2 * ranks.min()),
        **report.p_values,
        "report": float(not report.objections),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Power of checks of posteriors.")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--draws", type=int, default=99)
    options = parsed(parser)
    error = (0.25 / options.repeats) ** 0.5
    print(
        f"{options.simulations} simulations of {options.draws} draws, {options.repeats} repeats: +- {error:.2f} at most"
    )
    answers, told = [], {}
    for number, kind in enumerate(("correlation", "prior", "pulled", "narrow")):
        shares: dict[str, list[float]] = {}
        for column, strength in enumerate(STRENGTHS):
            hits: dict[str, int] = {}
            first = options.repeats * (len(STRENGTHS) * number + column)
            for seed in range(first, first + options.repeats):
                found = simulations(kind, strength, seed, options.simulations, options.draws)
                for name, p in p_values(found, jax.random.key(seed)).items():
                    hits[name] = hits.get(name, 0) + (p < 0.05)
            for name, count in hits.items():
                shares.setdefault(name, []).append(count / options.repeats)
        print(f"\n{kind:12}" + "".join(f"{s:>7}" for s in STRENGTHS))
        for name, row in shares.items():
            print(f"{name:12}" + "".join(f"{share:>7.2f}" for share in row), flush=True)
        least = {
            name: next((s for s, p in zip(STRENGTHS, row, strict=True) if s > 0 and p >= 0.8), None)
            for name, row in shares.items()
        }
        smallest = min((s for s in least.values() if s is not None), default=None)
        seen = [name for name, s in least.items() if s == smallest]
        answers.append(f"{kind} {smallest} by {', '.join(seen)} (ranks: {least['ranks']})")
        told |= {f"{kind} {s}": p for s, p in zip(STRENGTHS, shares["report"], strict=True)}
    print("\nleast strength seen in 80% of the repeats: " + "; ".join(answers))
    right = [told.pop(name) for name in list(told) if name.endswith(" 0.0")]
    print(f"false alarms of the report: {np.mean(right):.3f} of {len(right) * options.repeats}")
    if options.record:
        record_figure(
            "posteriors/report",
            what=f"share of {options.repeats} repeats in which `check_simulations` objects, by how wrong the posterior is "
            f"({options.simulations} simulations of {options.draws} draws; right: {len(right) * options.repeats} repeats)",
            value={"right": float(np.mean(right))} | told,
            note="each check alone: printed by the script; strengths are explained there",
            measures=["inference/posterior_checks"],
        )  # fmt: skip


if __name__ == "__main__":
    main()
