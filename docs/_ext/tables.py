"""Tables of the reference that are read off the library: strategies, objectives, resampling schemes."""

from __future__ import annotations

import inspect

import jax.numpy as jnp
import numpyro.distributions as dist
from faces import ROOT, groups, load, renew

from lapilli import ppl
from lapilli.inference.particles.resampling import RESAMPLERS, _schemes
from lapilli.ppl.strategies._registry import STRATEGIES

FOLDER = ROOT / "docs" / "tables"

# One law of each family that readers ask for; the table says which of these a strategy takes.
LAWS = {
    "Normal": dist.Normal(0.0, 1.0),
    "MultivariateNormal": dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
    "StudentT": dist.StudentT(3.0),
    "Uniform": dist.Uniform(0.0, 1.0),
    "Gamma": dist.Gamma(1.0, 1.0),
    "Beta": dist.Beta(1.0, 1.0),
    "Dirichlet": dist.Dirichlet(jnp.ones(3)),
    "VonMises": dist.VonMises(0.0, 1.0),
    "Bernoulli": dist.Bernoulli(0.5),
    "Categorical": dist.Categorical(probs=jnp.full(3, 1 / 3)),
    "OneHotCategorical": ppl.distributions.OneHotCategorical(logits=jnp.zeros(3)),
    "Binomial": dist.Binomial(3, 0.5),
    "Poisson": dist.Poisson(1.0),
}

# What the docstrings say under Validity, in a few words: bias of value and gradient for what is named, and cost of a step.
OBJECTIVES: dict[str, tuple[str, str, str]] = {
    "elbo": ("max", "none for the bound", "1"),
    "iwelbo": ("max", "none for the bound of K", "K"),
    "vimco": ("max", "none for the bound of K", "K"),
    "hvi": ("max", "none for the bound", "1, and 1 of the reverse program"),
    "iwhvi": ("max", "none for the bound", "1, and M of the reverse program"),
    "diwhvi": ("max", "none for the bound", "K, and K M of the reverse program"),
    "renyi": ("max", "none for the bound of K; O(1/K) for its limit", "K"),
    "cubo": ("min", "none for the number of K; O(1/K) for its limit, which alone is surely above log p(x)", "K"),
    "chi": ("min", "none; the variance may be infinite", "1"),
    "f_divergence": ("min", "none for the bound of K; the variance may be infinite", "K"),
    "log_variance": ("min", "none at a fixed proposal", "K"),
    "forward_kl": ("min", "O(1/K) for KL(p to q)", "K"),
    "rws": ("max", "value none for the bound of K; guide's gradient O(1/K)", "K, and the sleep draws"),
    "wake_theta": ("max", "none for the bound of K; O(1/K) for log p(x)", "K"),
    "wake_phi": ("min", "O(1/K) for the cross-entropy", "K"),
    "sleep": ("min", "none", "1 draw of the model"),
    "fivo": ("max", 'value none, but under "ot"; gradient none under "score" only', "K, step by step"),
    "vsmc": ("max", "as `fivo`", "K, step by step"),
    "adversarial": ("min", "by what the critic lacks of log p/q, which nothing tells", "B of the data, B of the generator"),
}  # fmt: skip
WORDS = {"max": "maximised", "min": "minimised"}


def objectives() -> list[str]:
    """The functions among inference's objectives; classes, the decorator and what puts objectives together are left out."""
    group = next(g for g in groups("inference") if g.title.startswith("Objectives"))
    made = [n for n in group.names if n not in ("objective", "game")]
    return [n for n in made if not inspect.isclass(getattr(load("inference"), n))]


def first(thing) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0].replace("|", r"\|")


def documented_direction(name: str) -> str | None:
    """What the docstring of an objective says of it first, if it does."""
    text = inspect.getdoc(getattr(load("inference"), name)) or ""
    said = [d for d, word in WORDS.items() if word in text]
    return min(said, key=lambda d: text.index(WORDS[d]), default=None)


REPLAYS = {"replay": "element by element", "replay_together": "all elements at once"}


def strategy_rows() -> list[list[str]]:
    rows = []
    for name, make in STRATEGIES.items():
        strategy = make()
        takes = [law for law, made in LAWS.items() if strategy.refuse(made) is None]
        again = ", ".join(REPLAYS[call] for call in strategy.calls if call in REPLAYS)
        every = "all of these" if len(takes) == len(LAWS) else ", ".join(takes)
        bias = "**biased**" if strategy.is_biased else "none"
        rows.append([f'`"{name}"`', f"{{py:obj}}`~lapilli.ppl.{type(strategy).__name__}`", every, again, bias])  # fmt: skip
    return rows


def objective_rows() -> list[list[str]]:
    return [
        [f"{{py:obj}}`~lapilli.inference.{name}`", WORDS[direction], bias, runs]
        for name, (direction, bias, runs) in OBJECTIVES.items()
    ]


def scheme_rows() -> list[list[str]]:
    return [
        [
            f'`"{s.name}"`',
            first(s.ancestors) or first(getattr(_schemes, name)),
            "none" if s.is_unbiased else "**biased**",
            "yes" if s.conditional else "no",
            s.offspring,
            "yes" if s.log_law else "no",
        ]
        for name, s in RESAMPLERS.items()
    ]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def texts() -> dict[str, str]:
    """File name -> table."""
    laws = ", ".join(LAWS)
    return {
        "strategies.md": markdown(["name", "class", "takes", "evaluates again", "bias"], strategy_rows())
        + f"\nTried on: {laws}.\n",
        "objectives.md": markdown(["objective", "direction", "bias", "runs in a step"], objective_rows()),
        "schemes.md": markdown(
            ["name", "what it does", "bias", "conditional version", "joint law of offspring", "scores pass"],
            scheme_rows(),
        ),
    }  # fmt: skip


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in texts().items():
        renew(FOLDER / name, text)
