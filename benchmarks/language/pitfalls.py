"""Question: on programs whose gradient or value NumPyro's objectives get wrong without an error, what does lapilli do?

Each program is a plain NumPyro model, run by both as it stands. Sampled gradients: mean and standard error over draws.

usage: python benchmarks/language/pitfalls.py [--draws 20000] [--record]
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from scipy.stats import norm, qmc

from lapilli import inference, ppl


def mean(grad: Callable[[float, jax.Array], jax.Array], at: float, num_draws: int) -> str:
    """Mean and standard error of a gradient."""
    keys = jax.random.split(jax.random.key(0), num_draws)
    draws = np.asarray(jax.jit(jax.vmap(grad, (None, 0)))(at, keys), float)
    return f"{draws.mean():+.4f} +- {draws.std() / num_draws**0.5:.4f}"


def answer(run: Callable[[], str]) -> str:
    """What it says: a number, or the first line of its refusal."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            said = run()
    except (ValueError, TypeError) as error:
        return f"refused: {str(error).splitlines()[0]}"
    return said + (
        " (a warning)" if any(issubclass(w.category, UserWarning) for w in caught) else ""
    )


def importance_weighted(num_draws: int) -> tuple[str, str, str, str]:
    """Five draws of a Normal without pathwise sampler, guide N(m, 1) at m = 1, model N(0, 1)."""

    class Unpathwise(dist.Normal):
        reparametrized_params: list[str] = []

    def model() -> None:
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        numpyro.sample("z", Unpathwise(numpyro.param("m", 1.0), 1.0))

    loss = RenyiELBO(alpha=0.0, num_particles=5)
    options = {"num_particles": 5, "per": "joint", "strategies": {"z": "reinforce"}}
    bound = inference.iwelbo(model, guide, **options)  # without a strategy it is refused
    theirs = lambda m, key: jax.grad(lambda m: -loss.loss(key, {"m": m}, model, guide))(m)
    ours = lambda m, key: bound.grad({"m": m}, key)["m"]
    # d log w_k / dm = -z_k, weighted, on quasi-random normals.
    e = norm.ppf(np.clip(qmc.Sobol(5, seed=1).random_base2(18), 1e-12, 1 - 1e-12))
    w = np.exp(-e - (-e).max(1, keepdims=True))
    exact = -(w / w.sum(1, keepdims=True) * (1 + e)).sum(1).mean()
    return (
        "gradient of the importance-weighted bound, site without rsample",
        f"{exact:+.4f}",
        answer(lambda: mean(theirs, 1.0, num_draws)),
        answer(lambda: mean(ours, 1.0, num_draws)),
    )


def chain(num_draws: int) -> tuple[str, str, str, str]:
    """Log-likelihood of a two-state chain in a scan."""
    del num_draws
    step = np.array([[0.9, 0.1], [0.2, 0.8]])
    ys = np.array([0.1, 0.9, 1.2])
    paths = list(itertools.product((0, 1), repeat=3))
    density = lambda s, y: np.exp(-0.5 * (y - s) ** 2) / np.sqrt(2 * np.pi)
    exact = np.log(
        sum(
            np.prod([step[a, b] * density(b, y) for a, b, y in zip((0, *p), p, ys, strict=False)])
            for p in paths
        )
    )

    def model() -> None:
        def move(s: Any, y: Any) -> Any:
            probs = jnp.asarray(step)[s]
            s = numpyro.sample("s", dist.Categorical(probs), infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Normal(1.0 * s, 1.0), obs=y)
            return s, None

        scan(move, 0, jnp.asarray(ys))

    @ppl.model
    def ours() -> None:
        def move(s: Any, y: Any) -> Any:
            s = ppl.sample("s", dist.Categorical(jnp.asarray(step)[s]))
            ppl.sample("y", dist.Normal(1.0 * s, 1.0), obs=y)
            return s, None

        ppl.scan(move, 0, jnp.asarray(ys))

    loss = TraceEnum_ELBO(max_plate_nesting=0)
    key = jax.random.key(0)
    return (
        "log-likelihood of a hidden Markov chain in a scan",
        f"{exact:+.4f}",
        answer(lambda: f"{-float(loss.loss(key, {}, model, lambda: None)):+.4f}"),
        answer(lambda: f"{float(ppl.eliminate(ours, 's').log_density({})):+.4f}"),
    )


def discrete(num_draws: int) -> tuple[str, str, str, str]:
    """Gradient of the ELBO with a Bernoulli site in the guide."""

    def model() -> None:
        numpyro.sample("b", dist.Bernoulli(0.3))

    def guide() -> None:
        numpyro.sample("b", dist.Bernoulli(numpyro.param("q", 0.45)))

    exact = -(np.log(0.45 / 0.3) - np.log(0.55 / 0.7))
    loss = Trace_ELBO()
    bound = inference.elbo(model, guide, strategies="reinforce")
    theirs = lambda q, key: jax.grad(lambda q: -loss.loss(key, {"q": q}, model, guide))(q)
    return (
        "gradient of the ELBO, Bernoulli site",
        f"{exact:+.4f}",
        answer(lambda: mean(theirs, 0.45, num_draws)),
        answer(lambda: mean(lambda q, key: bound.grad({"q": q}, key)["q"], 0.45, num_draws)),
    )


def simple_case(
    name: str, exact: str, model: Callable[[], None], guide: Callable[[], None]
) -> tuple[str, str, str, str]:
    key = jax.random.key(0)
    return (
        name,
        exact,
        answer(lambda: f"{-float(Trace_ELBO().loss(key, {}, model, guide)):+.4f}"),
        answer(lambda: f"{float(inference.elbo(model, guide).value({}, key)):+.4f}"),
    )


def broadcast(num_draws: int) -> tuple[str, str, str, str]:
    """Five logits against observations of shape (5, 1)."""
    del num_draws

    def model() -> None:
        with numpyro.plate("rows", 5):
            numpyro.sample("x", dist.Bernoulli(logits=jnp.zeros(5)), obs=jnp.ones((5, 1)))

    exact = f"{5 * np.log(0.5):+.4f}"
    return simple_case(
        "log-likelihood of 5 coins, data of shape (5, 1)", exact, model, lambda: None
    )


def forgotten(num_draws: int) -> tuple[str, str, str, str]:
    """A guide without one of the model's two latent sites."""
    del num_draws

    def model() -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(a + b, 0.1), obs=1.0)

    def guide() -> None:
        numpyro.sample("a", dist.Normal(1.0, 0.1))

    return simple_case("ELBO of a guide that forgets a site", "none", model, guide)


def is_right(said: str, exact: str) -> bool:
    """Within 4.5 standard errors, or the digits that are printed."""
    try:
        value, _, error = said.removesuffix(" (a warning)").partition(" +- ")
        return abs(float(value) - float(exact)) <= 4.5 * float(error or 0.0) + 1.01e-4
    except ValueError:  # no number: a refusal, or nothing that would be right
        return False


def score(cases: list[tuple[str, str, str, str]], column: int) -> str:
    """How many answers are right, how many programs are refused."""
    right = sum(is_right(case[column], case[1]) for case in cases)
    refused = sum(case[column].startswith("refused") for case in cases)
    return f"{right} right, {refused} refused"


def record(cases: list[tuple[str, str, str, str]]) -> None:
    """The answers, for the page of figures."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
    from _record import record_figure

    said = lambda answer: answer.partition(":")[0].replace(" +- ", " ± ")
    record_figure(
        "gradients/pitfalls",
        what=f"{len(cases)} programs on which NumPyro's objectives return a wrong number without an error; of gradients: "
        "mean and standard error over draws",
        value={name: said(ours) for name, _, _, ours in cases},
        claim={name: f"{said(theirs)} (exact: {exact})" for name, exact, theirs, _ in cases},
        claimed_by="NumPyro",
        note=f"{score(cases, 3)} (NumPyro: {score(cases, 2)})",
        seeds="0",
        measures=["ppl", "inference/objectives"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--record", action="store_true", help="write the figures to docs/_data")
    args = parser.parse_args()
    cases = []
    print(f"jax {jax.__version__}, numpyro {numpyro.__version__}")
    for case in (importance_weighted, chain, discrete, broadcast, forgotten):
        cases.append(case(args.draws))
        name, exact, theirs, ours = cases[-1]
        print(f"{name}\n  exact    {exact}\n  NumPyro  {theirs}\n  lapilli  {ours}", flush=True)
    if args.record:
        record(cases)


if __name__ == "__main__":
    main()
