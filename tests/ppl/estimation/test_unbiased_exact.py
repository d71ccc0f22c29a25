"""Every strategy in every context, without random numbers: the mean of the estimate over all outcomes of its noise is exact.

Value and gradient agree with full enumeration to float32 rounding (rtol 2e-5 of the estimates' size), so there are no false
alarms, and any bias above that is found.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from _contexts import CONTEXTS as EVERY, PARAMS
from _oracles import assert_exact, exact, moments, reference_elbo

from lapilli import inference, ppl

pytestmark = pytest.mark.one_in(2)

STRATEGIES = {
    "enum": "enum",
    "reinforce": ppl.Reinforce(),
    "number": ppl.Reinforce(0.7),
    "moving-average": ppl.Reinforce("moving-average"),
    "regression": ppl.Reinforce(
        ppl.strategies.Regression(lambda w, x: w * x, jnp.array(0.8), 1.5, optax.sgd(0.1))
    ),
    "mvd": "mvd",
    "reparam": "reparam",
}
FIXED = {"moving-average": {"mean": jnp.array(0.7), "weight": jnp.array(0.9)}}
CONTEXTS = {name: c for name, c in EVERY.items() if name not in ("rows", "short-scan")}
SMALL = ("straight", "plate", "plate-mixed", "cond", "event")
QUICK = [
    *((c, "bernoulli", s) for c in CONTEXTS for s in ("enum", "reinforce")),
    *((c, "bernoulli", "mvd") for c in ("nested-plate", "scan", "cond", "plate-around-scan")),
    *((c, "bernoulli", "regression") for c in ("plate", "scan")),
    *((c, "bernoulli", "number") for c in ("plate-mixed", "nested-scan")),
    *((c, "bernoulli", "moving-average") for c in ("nested-plate", "plate-around-scan")),
    *((c, "categorical", s) for c in ("plate",) for s in ("enum", "reinforce", "mvd")),
    *((c, "normal", "reparam") for c in ("nested-scan", "cond")),
    *((c, "normal", "reinforce") for c in ("plate-mixed", "scan")),
]
BASELINES = ("number", "moving-average", "regression")
ALL = [
    *((c, "bernoulli", s) for c in CONTEXTS for s in ("enum", "reinforce", "mvd", *BASELINES)),
    *((c, "categorical", s) for c in SMALL for s in ("enum", "reinforce", "mvd", *BASELINES)),
    *((c, "categorical", "enum") for c in CONTEXTS if c not in SMALL),
    *((c, "normal", s) for c in CONTEXTS for s in ("reparam", "reinforce", *BASELINES)),
]


def cases(quick):
    slow = [
        pytest.param(*c, marks=pytest.mark.slow) for c in ALL if c not in quick
    ]  # slow: the rest of the matrix
    return pytest.mark.parametrize(("context", "kind", "strategy"), [*quick, *slow])


def num_nodes(kind, strategy):
    return 3 if strategy == "reparam" else 5


def on_sites(context, kind, strategy):
    """The strategy on every site; the branch variable of a continuous kind is enumerated."""
    if context.name == "cond" and kind == "normal":
        return {"x": "enum", "*": STRATEGIES[strategy]}
    return {"*": STRATEGIES[strategy]}


@functools.cache
def raw_truth(context, kind, num_nodes):
    context = CONTEXTS[context]
    return exact(context.raw(kind), PARAMS, context.spec(kind, num_nodes))


def state_of(strategy, objective, params, spec):
    if strategy not in FIXED:
        return None
    noise = {name: jnp.zeros(site.shape) for name, site in spec.items()}
    return {
        site: FIXED[strategy] if state else state
        for site, state in objective.init_state(
            params, *([jax.random.key(0)] if hasattr(objective, "model") else []), noise
        ).items()
    }


def enumerated(spec, strategies):
    return [name for name in spec if strategies.get(name, strategies["*"]) == "enum"]


def check(objective, params, spec, truth, strategies, strategy):
    state = state_of(strategy, objective, params, spec)
    got = moments(
        objective, params, spec, truth, enumerated=enumerated(spec, strategies), state=state
    )
    assert_exact(got, truth)
    return got


@pytest.mark.fast("scan-bernoulli-regression", "straight-bernoulli-reinforce")
@cases(QUICK)
def test_expectation_has_the_exact_mean(context, kind, strategy):
    program = CONTEXTS[context]
    spec, strategies = (
        program.spec(kind, num_nodes(kind, strategy)),
        on_sites(program, kind, strategy),
    )
    expectation = ppl.expectation(program.raw(kind), strategies=strategies)
    truth = raw_truth(context, kind, num_nodes(kind, strategy))
    got = check(expectation, PARAMS, spec, truth, strategies, strategy)
    if strategy == "enum" and kind != "normal":
        assert (
            max(float(v.max()) for v in jax.tree.leaves(got.variances)) < 1e-8
        )  # exact, not only unbiased


QUICK_ELBO = [
    *(
        (c, "bernoulli", s)
        for c, s in zip(
            CONTEXTS,
            (
                "enum",
                "reinforce",
                "mvd",
                "enum",
                "mvd",
                "reinforce",
                "mvd",
                "reinforce",
                "enum",
                "mvd",
            ),
            strict=True,
        )
    ),
    ("plate", "categorical", "regression"),
    ("scan", "normal", "reinforce"),
    ("plate-around-scan", "normal", "reparam"),
]


@pytest.mark.fast("straight-bernoulli-enum")
@cases(QUICK_ELBO)
def test_elbo_has_the_exact_mean(context, kind, strategy):
    program = CONTEXTS[context]
    spec, strategies = (
        program.spec(kind, num_nodes(kind, strategy)),
        on_sites(program, kind, strategy),
    )
    model, guide = program.programs(kind)
    objective = inference.elbo(model, guide, strategies=strategies)
    noise = {name: jnp.full(site.shape, 0.5) for name, site in spec.items()}
    params = objective.init(jax.random.key(0), noise)
    truth = exact(reference_elbo(model, guide), params, spec)
    check(objective, params, spec, truth, strategies, strategy)
