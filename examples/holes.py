"""A regression whose outcome and predictor both have holes.

What it shows: a hole in the outcome costs nothing, and a predictor with holes gets a law of its own; a masked array says where
the holes are. Slopes come out as those of the whole table, with wider bands, and each hole has a law of its own.

Data: scikit-learn's diabetes, 442 patients; a fifth of the body mass indices and a tenth of the outcomes are made holes of.
Expected: certified; both slopes within two standard deviations of least squares on the whole table.
Run time: half a minute on 2 CPU cores.

    python examples/holes.py [--smoke] [--out holes.png]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from sklearn.datasets import load_diabetes

from lapilli import inference, ppl


def load(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Blood pressure, body mass and outcome, standardised, [rows, 3]; where there are holes."""
    table = load_diabetes(as_frame=True).frame[["bp", "bmi", "target"]].to_numpy()[:num_rows]
    lost = np.random.default_rng(0).random(table.shape) < [0.0, 0.2, 0.1]
    return (table - table.mean(0)) / table.std(0), lost


@ppl.model
def with_holes(bp, bmi, outcome):
    slopes = ppl.sample("slopes", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    shared = ppl.sample("shared", dist.Normal(0.0, 1.0))
    noise = ppl.sample("noise", dist.HalfNormal(1.0))
    with ppl.plate("rows", bp.shape[0]):
        bmi = ppl.sample("bmi", dist.Normal(shared * bp, 1.0), obs=bmi)
        mean = slopes[0] * bp + slopes[1] * bmi
        ppl.sample("outcome", dist.Normal(mean, noise), obs=outcome)


def solve(table: np.ndarray, lost: np.ndarray, num_samples: int) -> inference.Draws:
    """Draws of the slopes and of what stood in the holes."""
    columns = tuple(
        np.ma.masked_array(c, m) if m.any() else c for c, m in zip(table.T, lost.T, strict=True)
    )
    return inference.infer(with_holes, args=columns, num_samples=num_samples, progress=False)


def draw(slopes: np.ndarray, whole: np.ndarray, complete: np.ndarray, out: Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axis.plot(*slopes[:1000].T, ".", ms=2, alpha=0.5, label="draws, with the holes")
    axis.plot(*whole, "k*", ms=12, label="the whole table")
    axis.plot(*complete, "C3x", ms=9, label="rows without a hole")
    axis.set(xlabel="slope of blood pressure", ylabel="slope of body mass")
    axis.set_title("A regression with a third of its rows in part unknown")
    axis.legend(frameon=False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("holes.png")) -> dict[str, float]:
    table, lost = load(150 if smoke else 442)
    posterior = solve(table, lost, 400 if smoke else 4000)
    slopes = np.asarray(posterior.choices["slopes"])
    least_squares = lambda rows: np.linalg.lstsq(rows[:, :2], rows[:, 2])[0]
    whole, complete = least_squares(table), least_squares(table[~lost.any(1)])
    print(posterior)
    print(f"slopes {slopes.mean(0).round(2)} +- {slopes.std(0).round(2)}")
    print(f"least squares, whole table {whole.round(2)}, complete rows {complete.round(2)}")
    draw(slopes, whole, complete, out)
    return {"off": float(np.abs((slopes.mean(0) - whole) / slopes.std(0)).max())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A regression with holes.")
    parser.add_argument("--smoke", action="store_true", help="few rows and draws")
    parser.add_argument("--out", type=Path, default=Path("holes.png"), help="the picture")
    main(**vars(parser.parse_args()))
