"""The evidence of every unbiased scheme under every policy, against Kalman and the forward algorithm.

A cell draws 4,000 runs in one compiled call and tests the mean of exp(log_evidence) / Z at 4 standard errors: a false-alarm
rate of 6.3e-5 per cell, 0.4% over the matrix. The relative sd of one run is asserted to be below 0.36: a bias of 4% is at
least 7 standard errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _state_space import GOLDEN as Y, GOLDEN_EVIDENCE as KALMAN, golden as walk

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles import resampling
from lapilli.inference.particles.resampling._registry import RESAMPLERS
from lapilli.inference.particles.resampling._scheme import Scheme
from lapilli.inference.particles.resampling._schemes import metropolis

UNBIASED = tuple(name for name, scheme in RESAMPLERS.items() if scheme.is_unbiased)
POLICIES = {
    "every": resampling.every(),
    "ess": resampling.ess_below(0.7),
    "window": resampling.window(1, 4),
    "never": resampling.never(),
}
RUNS, PARTICLES = 4000, 40


@ppl.model
def towards_the_data(ys):
    """A proposal for `walk` that is neither the prior nor the best."""
    x = ppl.sample("x0", dist.Normal(0.4 * ys[0], 0.9))
    step = lambda x, y: (ppl.sample("x", dist.Normal(0.5 * x + 0.4 * y, 0.9)), None)
    ppl.scan(step, x, ys[1:])


START = np.array([0.5, 0.3, 0.2])
MOVE = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]])
EMIT = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
SYMBOLS = np.array([0, 2, 1, 2, 2, 0])


@ppl.model
def chain(symbols):
    """A hidden Markov chain of three states and three symbols; all observations are made in the scan."""
    start, move, emit = (jnp.asarray(p, jnp.float32) for p in (START, MOVE, EMIT))

    def step(k, y):
        k = ppl.sample("k", dist.CategoricalProbs(move[k]))
        ppl.sample("y", dist.CategoricalProbs(emit[k]), obs=y)
        return k, None

    ppl.scan(step, ppl.sample("k0", dist.CategoricalProbs(start)), symbols)


def forward():
    """The exact log p(symbols)."""
    state, log_z = START, 0.0
    for y in SYMBOLS:
        state = (state @ MOVE) * EMIT[:, y]
        log_z, state = log_z + np.log(state.sum()), state / state.sum()
    return log_z


TARGETS = {
    "walk": (walk, KALMAN, Y, None),
    "guided walk": (walk, KALMAN, Y, towards_the_data),
    "chain": (chain, forward(), SYMBOLS, None),
}


def log_evidences(target, key, *, runs=RUNS, num_particles=PARTICLES, **options):
    """Log-evidence of independent runs."""
    program, _, data, proposal = TARGETS[target]

    def run(key):
        return inference.smc(
            program, key, data, num_particles=num_particles, proposal=proposal, history="none", **options
        ).log_evidence  # fmt: skip

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(key, runs)), float)


def assert_unbiased_evidence(target, key, **options):
    ratios = np.exp(log_evidences(target, key, **options) - TARGETS[target][1])
    assert 7 * ratios.std() / np.sqrt(RUNS) < 0.04  # the power that the module promises
    assert_unbiased(ratios, 1.0, z_max=4.0)


# `never` asks no scheme, so one scheme stands for all. The other cells are slow for their number: a compilation each.
QUICK = {
    ("walk", "killing", "ess"),
    ("chain", "ssp", "every"),
    ("guided walk", "residual", "window"),
}
CELLS = [
    pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.slow, id="-".join(cell))
    for cell in [
        *((t, s, p) for t in TARGETS for s in UNBIASED for p in POLICIES if p != "never"),
        *((t, "systematic", "never") for t in TARGETS),
    ]
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("target", "scheme", "policy"), CELLS)
def test_evidence_is_unbiased(target, scheme, policy, key):
    size = 100 if policy == "never" else PARTICLES  # as noisy as the others
    assert_unbiased_evidence(
        target, key, resampling=scheme, policy=POLICIES[policy], num_particles=size
    )


def forgetful(key, log_weights, num=None):
    """Systematic resampling that gives no offspring to particles worth less than half of one."""
    floor = jax.nn.logsumexp(log_weights) - np.log(2 * len(log_weights))
    kept = jnp.where(log_weights < floor, -jnp.inf, log_weights)
    return RESAMPLERS["systematic"].ancestors(key, kept, num)


def favouring(key, log_weights, num=None):
    """Multinomial resampling from the weights raised to the power 0.7."""
    return RESAMPLERS["multinomial"].ancestors(key, 0.7 * log_weights, num)


BROKEN = {
    "forgetful": forgetful,
    "favouring": favouring,
    "metropolis": metropolis(1).ancestors,  # biased by construction, and flagged so
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_biased_scheme_is_found(name, key):
    scheme = Scheme(name, BROKEN[name], BROKEN[name], is_unbiased=True)
    with pytest.raises(AssertionError, match="limit 4.0"):
        assert_unbiased_evidence("chain", key, resampling=scheme, policy=POLICIES["every"])


def test_only_metropolis_claims_no_unbiasedness():
    assert set(RESAMPLERS) - set(UNBIASED) == {"metropolis"}
    assert "Biased for finite B, and so is the evidence" in metropolis.__doc__
