"""Every refusal and warning of the diffusion rooms, provoked eagerly, under jit, and within a program where it can be reached."""

import ast
import pathlib
import traceback
import warnings
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import lapilli
from lapilli import inference, ppl
from lapilli.inference.diffusion import (
    Diffusion,
    DriftControl,
    Langevin,
    TokenDiffusion,
    diffuse,
    fk_steering,
    fkc,
    fkc_tokens,
    replica_exchange,
    twisted_diffusion,
)
from lapilli.models import diffusion

KEY = jax.random.key(0)
NOISING = diffusion.VP(0.1, 8.0)
EDM = diffusion.EDM(0.01, 10.0)
Q = diffusion.gaussian_mixture(NOISING, [0.3, 0.7], [-1.5, 1.0], [0.2, 0.3])
OTHER = diffusion.gaussian_mixture(diffusion.VE(), [1.0], [0.0], 1.0)
WIDE = diffusion.gaussian_mixture(EDM, [1.0], [0.0], 1.0)
PLANE = diffusion.gaussian_mixture(NOISING, [1.0], [[0.0, 0.0]], 1.0)
ONE = diffusion.gaussian_mixture(NOISING, [1.0], [0.0], 1.0)
SHARP = diffusion.gaussian_mixture(NOISING, [1.0], [0.0], 0.1)
BLIND = Diffusion(NOISING, Q.score)
POISSON = Diffusion(NOISING, PLANE.score, (2,), noise=diffusion.PoissonNoise((2,), 4))
BROKEN = Diffusion(NOISING, lambda x, t: jnp.ones(2))
SUM = Diffusion(NOISING, lambda x, t: -x.sum(), (2,))
SHORT = Diffusion(NOISING, lambda x, t: -x[:1], (2,))
APART = Diffusion(NOISING, PLANE.score, (2,), lambda x, t: -(x**2) / 2)
INSIDE = Diffusion(NOISING, Q.score, (), lambda x, t: jnp.abs(x) < 1)
TREE = Diffusion(NOISING, lambda x, t: x, {"a": (1,)})
SUMMED = r"Diffusion: a score has shape \(\) at a point of shape \(2,\)"
LARGE = diffusion.gaussian_mixture(NOISING, [1.0], np.zeros((1, 65)), 1.0)
NAN = Diffusion(NOISING, lambda x, t: jnp.nan * x)
PILOT = DriftControl(KEY, 2)
MISSHAPEN = DriftControl(KEY, 2, (lambda x, t: jnp.ones(2),))
NOTHING = DriftControl(KEY, 2, (lambda x, t: 0 * x,))
TIMES = np.linspace(1.0, 0.0, 41)
SOME = TIMES[:-1]
NORMAL = dist.Normal(0.0, 1.0)
DATA = jnp.linspace(-1.0, 1.0, 4)


rising, falling = lambda t: 2 - t, lambda t: 1 - t
ramped = lambda x, t: (1 - t) * x

steps = lambda x, t: (1 - t) * jnp.round(x)
at_the_end = lambda x, t: jnp.where((t <= 0) & (x > 0), -jnp.inf, 0.0)
on_the_way = lambda x, t: jnp.where((t < 1) & (x > 0), -jnp.inf, 0.0)


def tilted(model):
    """Of a chain of the model, or of a Normal."""
    chain = lambda: diffusion.reverse_chain("x", model, SOME)
    return inference.tilt(chain if model else lambda: ppl.sample("x", NORMAL), lambda x: 0.1 * x)


def sample(times, **options):
    return diffusion.heun(Q, KEY, times, num_samples=1, **options)


class Own(diffusion.VP):
    """A process of the user's own."""

    def __init__(self, log_alpha, var):
        super().__init__()
        object.__setattr__(self, "both", (log_alpha, var))

    def log_alpha(self, t):
        return self.both[0](t)

    def variance(self, t):
        return self.both[1](t)


def under(log_alpha=lambda t: -3 * t, var=lambda t: -jnp.expm1(-6 * t)):
    return Diffusion(Own(log_alpha, var), lambda x, t: -x, (), lambda x, t: -(x**2) / 2)


def in_plate(one):
    with numpyro.plate("rows", 2):
        diffuse("x", fkc(Q, SOME))


class Case(NamedTuple):
    """Key words, `call(one)` with a 1 that is traced under jit, error, and whether a program could draw from what it makes."""

    message: str
    call: object
    error: type[Exception] = ValueError
    makes_model: bool = True


def other(message, call, error=ValueError):
    return Case(message, call, error, makes_model=False)


def exchange(model, num_sweeps=1):
    return replica_exchange(model, KEY, num_sweeps=num_sweeps, num_burn_in=0)


def run_network(one):
    return diffusion.score_matching(network(), NOISING, predicts="score")


def labelled(one):
    objective = diffusion.score_matching(network(), NOISING)
    return objective.init(KEY, jnp.zeros((3, 2)), jnp.zeros(3, int))


def varied(variance):
    return diffusion.bound(PLANE, jnp.zeros(2), KEY, times=SOME, data_variance=variance)


def chained(variance):
    program = lambda: diffusion.reverse_chain("x", PLANE, SOME, data_variance=variance)
    return ppl.model(program).simulate(KEY)


def labels_from_one(**options):
    objective = diffusion.score_matching(network(num_classes=3), NOISING, **options)
    return objective.init(KEY, jnp.zeros((3, 2)), np.arange(1, 4))


def network(**options):
    return diffusion.MLP((2,), key=KEY, width=4, depth=1, **options)


def with_context(context):
    net = network(encoder=eqx.nn.Linear(3, 32, key=KEY))
    return diffusion.score_matching(net, NOISING).init(KEY, jnp.zeros((3, 2)), context)


def tokens(row, t):
    return jnp.full((2, 3), -jnp.log(3.0))


def logits(row, t):
    return jnp.zeros((2, 3))


ROW = TokenDiffusion(tokens, 2, 3)
UNSUMMED = TokenDiffusion(tokens, 2, 3, log_marginal=lambda row, t: jnp.zeros(2))
rows = lambda row, t: tokens(row, t)[None]
SEEN = TokenDiffusion(tokens, 2, 3, log_marginal=lambda row, t: row[0] > 0)
logit_law = diffusion.token_law(lambda: logits, 2, 3, 4)
row_law = diffusion.token_law(lambda: tokens, 2, 3, 4)


def rated(rate):
    return diffusion.gaussian_mixture(diffusion.VP(0.1, rate), [1.0], [0.0], 1.0)


LABELLED, SCORED = network(num_classes=3), diffusion.Classification(jnp.zeros((3, 2)), "bound")
CASES = {
    "memory": Case("data_variance must be positive", lambda one: diffusion.memory(NOISING, TIMES, data_variance=0.0)),
    "models": Case("Diffusion or results of fkc", lambda one: fkc([Q, Q.score], TIMES), TypeError),
    "exponents": Case("1 exponents for 2 models", lambda one: fkc([Q, OTHER], TIMES, exponents=[1.0])),
    "exponents of three": Case(r"shape \(3,\), for 2 models", lambda one: fkc([Q, OTHER], TIMES, exponents=np.ones(3))),
    "short table": Case(r"shape \(5, 2\), for 2 models", lambda one: fkc([Q, OTHER], TIMES, exponents=np.ones((5, 2)))),
    "table of many": Case(r"Give an array of shape", lambda one: fkc([Q, OTHER], TIMES, exponents=np.ones(len(TIMES)))),
    "short column": Case(r"model 1 has shape \(4,\)", lambda one: fkc([Q, OTHER], TIMES, exponents=[1.0, np.ones(4)])),
    "NaN exponent": Case("not finite at 1 times", lambda one: fkc(Q, TIMES, exponents=np.where(TIMES == 1, np.nan, 1.0))),
    "schedule": Case("0 < sigma_min < sigma_max", lambda one: diffusion.VE(50.0, 0.01)),
    "process": Case("one noising process", lambda one: fkc([Q, OTHER], TIMES)),
    "shape": Case("points of one shape", lambda one: fkc([Q, PLANE], TIMES)),
    "noise": Case("no reverse process", lambda one: fkc(POISSON, TIMES)),
    "score": other(r"Diffusion: a score has shape \(2,\)", lambda one: fkc(BROKEN, SOME).init(KEY)),
    "score of steering": other(SUMMED, lambda one: fk_steering(SUM, SOME, jnp.sum).init(KEY)),
    "score of twists": other(SUMMED, lambda one: twisted_diffusion(SUM, SOME, jnp.sum).init(KEY)),
    "score of a sampler": other(r"shape \(1,\) at", lambda one: diffusion.ancestral(SHORT, KEY, SOME, num_samples=2)),
    "score of Euler": other(r"shape \(1,\) at", lambda one: diffusion.euler_maruyama(SHORT, KEY, SOME, num_samples=2)),
    "score of a flow": other(SUMMED, lambda one: diffusion.flow_sample(SUM, KEY, num_samples=2)),
    "score of a flow's density": other(SUMMED, lambda one: diffusion.flow_log_likelihood(SUM, jnp.zeros((2, 2)))),
    "score of a bound": other(SUMMED, lambda one: diffusion.bound(SUM, jnp.zeros(2), KEY)),
    "score of a law": other(SUMMED, lambda one: diffusion.law(SUM, SOME).estimate_log_density(KEY, {"x": jnp.zeros(2)})),
    "score of guidance": other(SUMMED, lambda one: diffusion.guided(SUM, PLANE, 2.0).score_at(jnp.zeros(2), 0.5)),
    "density": other(r"log_density returned shape \(2,\)", lambda one: fkc(APART, SOME).init(KEY)),
    "density, tails": other(r"log_density returned shape", lambda one: fkc([APART, PLANE], SOME, exponents=[2.0, -1.0])),
    "density of truth": other("log_density: a log-weight in nats", lambda one: fkc(INSIDE, SOME).init(KEY), TypeError),
    "marginal of truth": other("log_marginal: a log-weight", lambda one: fkc_tokens(SEEN).init(KEY), TypeError),
    "reward of another end": Case("of its own last time 0,", lambda one: fkc(fkc(Q, TIMES, reward=tilted(Q)), SOME)),
    "process of alpha": Case("Return the logarithm of alpha", lambda one: fkc(under(lambda t: jnp.exp(-3 * t)), TIMES)),
    "process that falls": Case("log variance - 2 log_alpha rises", lambda one: fkc(under(var=lambda t: 1 - t), TIMES)),
    "process that stands": Case("rises with t", lambda one: fkc(under(lambda t: 0 * t, lambda t: 1 + 0 * t), TIMES)),
    "process below 0": Case("square of the noise's scale", lambda one: fkc(under(var=lambda t: jnp.expm1(-6 * t)), TIMES)),
    "process of vectors": Case(r"shape \(2,\) by log_alpha", lambda one: fkc(under(lambda t: -3 * t * jnp.ones(2)), TIMES)),
    "process of NumPy": Case("with jax.numpy", lambda one: fkc(under(lambda t: -3 * np.asarray(t)), TIMES), TypeError),
    "process of a sampler": other("ddim: the process Own", lambda one: diffusion.ddim(under(abs), KEY, SOME, num_samples=1)),
    "process of a law": other("rises with t", lambda one: diffusion.law(under(lambda t: t), SOME).simulate(KEY)),
    "times descend": Case("must descend", lambda one: fkc(Q, TIMES[::-1])),
    "times within": Case(r"lie in \[0, 1\]", lambda one: fkc(Q, TIMES * 2)),
    "times vector": Case("vector of two or more", lambda one: fkc(Q, TIMES[:1])),
    "times NaN": Case("must descend", lambda one: fkc(Q, np.where(TIMES == 1, np.nan, TIMES))),
    "weights": Case("weights must be", lambda one: fkc(Q, TIMES, weights="best")),
    "integrator": Case("integrator must be", lambda one: fkc(Q, TIMES, integrator="heun")),
    "no noise, exponential": Case("integrator='exponential' follows", lambda one: fkc(Q, TIMES, integrator="exponential")),
    "density, exponential": Case("makes long steps", lambda one: fkc(BLIND, SOME, integrator="exponential")),
    "rates, exponential": Case("makes long steps", lambda one: fkc(Q, SOME, zeta=0.0, integrator="exponential")),
    "zeta name": Case("zeta must be a number", lambda one: fkc(Q, TIMES, zeta="big")),
    "zeta negative": Case("zeta is a scale", lambda one: fkc(Q, TIMES, zeta=-1.0)),
    "zeta infinite": Case("and finite, got inf", lambda one: fkc(Q, TIMES, zeta=np.inf)),
    "zeta NaN": Case("zeta is a scale", lambda one: fkc(Q, TIMES, zeta=np.nan)),
    "zeta shape": Case("zeta must be one number for one time", lambda one: fkc(Q, TIMES, zeta=lambda t: jnp.ones(2))),
    "zeta 0": Case("zeta is 0", lambda one: fkc(Q, TIMES, zeta=0.0, weights="rne")),
    "exponent shape": Case("exponent must be one number", lambda one: fkc(Q, TIMES, exponents=lambda t: jnp.ones(2))),
    "no density": Case("log_density of every model", lambda one: fkc(BLIND, TIMES, weights="exact")),
    "no noise left": Case("no noise is left", lambda one: fkc(BLIND, TIMES)),
    "begins inside": Case("short of the end", lambda one: fkc(BLIND, TIMES[1:-1])),
    "followed": Case("followed along the path", lambda one: fkc(BLIND, SOME, exponents=lambda t: 1 + t, zeta=0.0)),
    "W 0": Case("add up to 0 at the first time", lambda one: fkc([Q, ONE], TIMES, exponents=[1.0, -1.0])),
    "W negative at the data": Case("add up to -0.5 at time 0", lambda one: fkc(Q, TIMES, exponents=lambda t: 2 * t - 0.5)),
    "W 0 with a law alone": Case("not integrable", lambda one: fkc(Q, TIMES, exponents=falling, start=NORMAL)),
    "reward": Case("does not vanish at the first time", lambda one: fkc(Q, TIMES, reward=lambda x, t: -(x**2))),
    "reward of no time": Case(r"takes \(x\), and is called with 2", lambda one: fkc(Q, TIMES, reward=lambda x: x), TypeError),
    "reward of nothing": Case("returned NoneType", lambda one: fkc(Q, TIMES, reward=lambda x, t: None), TypeError),
    "reward of a time": other("called with 1 by position", lambda one: fk_steering(Q, SOME, ramped), TypeError),
    "reward under EDM": Case("does not vanish at the first time", lambda one: fkc(WIDE, EDM.times(60), reward=ramped)),
    "reward NaN": Case("is NaN at 32 of 32 first points", lambda one: fkc(Q, TIMES, reward=lambda x, t: jnp.nan * x)),
    "reward jumps": Case("jumps, and weights='euler'", lambda one: fkc(Q, TIMES, reward=steps, weights="euler", zeta=1.0)),
    "reward ends": Case("jumps, and weights='euler'", lambda one: fkc(Q, TIMES, reward=at_the_end, weights="euler", zeta=1.0)),
    "reward on the way": Case("is -inf at .* where there is noise still", lambda one: fkc(Q, TIMES, reward=on_the_way)),
    "tilt of a model": Case("the tilt of one model", lambda one: fkc([Q, ONE], TIMES, reward=tilted(Q))),
    "tilt of another": Case("the tilt of another diffusion model", lambda one: fkc(ONE, TIMES, reward=tilted(Q))),
    "tilt of a program": Case("draws one point and nothing else", lambda one: fkc(Q, TIMES, reward=tilted(None))),
    "tails of models": Case("grows far out", lambda one: fkc([SHARP, ONE], TIMES, exponents=[-4.0, 5.0])),
    "tails of a reward": Case("grows far out", lambda one: fkc(ONE, TIMES, reward=lambda x, t: (1 - t) * x**2)),
    "start": Case("draw one point of shape", lambda one: fkc(Q, TIMES, start=dist.Normal(jnp.zeros(3), 1.0))),
    "langevin method": other("method must be", lambda one: Langevin(method="hmc")),
    "langevin size": other("between 0 and 4", lambda one: Langevin(step_size=4.0)),
    "langevin density": Case("MALA needs", lambda one: fkc(BLIND, SOME, langevin=Langevin(method="mala"))),
    "langevin followed": Case("not along Langevin moves", lambda one: fkc(BLIND, SOME, exponents=rising, langevin=Langevin())),
    "control": Case("must be a DriftControl", lambda one: fkc(Q, TIMES, control=KEY), TypeError),
    "control basis": other("must be a list of 'scores'", lambda one: DriftControl(KEY, bases=("score",))),
    "control size": other("num_particles must be an integer >= 2", lambda one: DriftControl(KEY, num_particles=1)),
    "control of nothing": Case("is no function at all", lambda one: fkc(Q, TIMES, control=DriftControl(KEY, 2, ("reward",)))),
    "control divergence": Case("each of the 65 coordinates", lambda one: fkc(LARGE, SOME, weights="euler", control=PILOT)),
    "control breaks": Case("no finite coefficients from step 0", lambda one: fkc(NAN, SOME, control=PILOT)),
    "control shape": Case(r"a control has shape \(2,\)", lambda one: fkc(Q, SOME, control=MISSHAPEN)),
    "diffuse model": Case("needs the result of inference.diffusion.fkc", lambda one: Q, TypeError),
    "diffuse zeta": Case("zeta = 0 at a step", lambda one: fkc(Q, TIMES, zeta=0.0)),
    "diffuse langevin": Case("Langevin moves, so", lambda one: fkc(Q, TIMES, langevin=Langevin())),
    "diffuse plate": other(r"in the plates \['rows'\]", lambda one: ppl.model(in_plate).simulate(KEY, one)),
    "exchange model": other("needs the result of inference.diffusion.fkc", lambda one: exchange(Q), TypeError),
    "exchange weights": other("are a rate", lambda one: exchange(fkc(Q, SOME, weights="euler"))),
    "exchange followed": other("points that were exchanged", lambda one: exchange(fkc(BLIND, SOME, exponents=rising))),
    "exchange sweeps": other("num_sweeps must be", lambda one: exchange(fkc(Q, SOME), num_sweeps=0)),
    "exchange NaN": other("a log-weight is NaN", lambda one: exchange(fkc(NAN, SOME))),
    "tokens model": other("must be TokenDiffusion", lambda one: fkc_tokens(Q), TypeError),
    "tokens kind": other("TokenDiffusion: kind must be", lambda one: TokenDiffusion(tokens, 2, 3, "blurred")),
    "tokens size": other("rows of one size", lambda one: fkc_tokens([ROW, TokenDiffusion(tokens, 3, 3)])),
    "tokens uniform": other("one variable a step", lambda one: fkc_tokens(TokenDiffusion(tokens, 2, 3, "uniform"))),
    "tokens steps": other("num_steps must be an integer", lambda one: fkc_tokens(ROW, 0)),
    "tokens weights": other("weights must be 'auto', 'exact' or 'path'", lambda one: fkc_tokens(ROW, weights="rne")),
    "tokens marginal": other("model 0 has none", lambda one: fkc_tokens(ROW, weights="exact")),
    "tokens network": other("the network returned shape", lambda one: fkc_tokens(TokenDiffusion(tokens, 2, 4)).init(KEY)),
    "tokens logits": other(r"add up to exp\(1.1\)", lambda one: fkc_tokens(TokenDiffusion(logits, 2, 3))),
    "tokens logits, uniform": other(r"exp\(1.1\)", lambda one: fkc_tokens(TokenDiffusion(logits, 2, 3, "uniform"), 3)),
    "tokens marginal shape": other("log_marginal returned shape", lambda one: fkc_tokens(UNSUMMED).init(KEY)),
    "steering": other("potential must be", lambda one: fk_steering(Q, SOME, lambda x: x, potential="min")),
    "steering noise": other("last step has no density", lambda one: fk_steering(Q, TIMES, lambda x: x)),
    "twisted noise": other("last step has no density", lambda one: twisted_diffusion(Q, TIMES, lambda x: x)),
    "log_snr": other("num_steps must be an integer", lambda one: NOISING.log_snr_times(0)),
    "times of none": other("num_steps must be an integer", lambda one: NOISING.times(0)),
    "sampler times": other("heun: times must descend", lambda one: sample(SOME[::-1])),
    "sampler of one time": other("heun: times must be a vector of two or more", lambda one: sample(SOME[:1])),
    "sampler of no points": other("num_samples must be an integer", lambda one: diffusion.ddim(Q, KEY, SOME, num_samples=0)),
    "sampler start": other("start has shape", lambda one: sample(SOME, start=jnp.zeros(3))),
    "mixture": other("must agree in their leading axis", lambda one: diffusion.gaussian_mixture(NOISING, [1.0], [0.0, 1.0], 1.0)),
    "mixture variances": other("do not broadcast", lambda one: diffusion.gaussian_mixture(NOISING, [1.0], [0.0], [1.0, 2.0])),
    "mixture of signs": other("of no mixture", lambda one: diffusion.gaussian_mixture(NOISING, [1.0, -0.5], [0.0, 1.0], 1.0)),
    "mixture of none": other("of no mixture", lambda one: diffusion.gaussian_mixture(NOISING, [0.0], [0.0], 1.0)),
    "mixture of logs": other("variances between -0.1", lambda one: diffusion.gaussian_mixture(NOISING, [1.0], [0.0], -0.1)),
    "parametrisation": other("unknown parametrisation", lambda one: diffusion.convert(1.0, 1.0, 0.5, NOISING, "score", "x")),
    "predicts": other("predicts must be one of", run_network),
    "labels": other("num_classes=0", labelled),
    "context of rows": other("needs the 3 rows of x", lambda one: with_context(jnp.zeros((2, 3)))),
    "view": other("this row has none", lambda one: diffusion.Through(tokens, tokens)(0.0, 0.0, None)),
    "label": other("takes integer labels", lambda one: diffusion.from_network(LABELLED, NOISING, (2,), context=0.5)),
    "label beyond": other("They are 0 to 2", lambda one: diffusion.from_network(LABELLED, NOISING, (2,), context=3)),
    "labels from 1": other("labels from 1 to 3. They are 0 to 2", lambda one: labels_from_one()),
    "share of hidden": other("drop_context is 10, and is the probability", lambda one: labels_from_one(drop_context=10)),
    "noise of one number": other("noise draws points of shape", lambda one: labels_from_one(noise=dist.Normal(0.0, 1.0))),
    "guides of two processes": other("scores add up at one noise", lambda one: diffusion.guided(Q, OTHER, 2.0)),
    "labels and encoder": other("num_classes=3 and a context", lambda one: network(num_classes=3, encoder=LABELLED)),
    "bound shape": other("last axes must be those", lambda one: diffusion.bound(PLANE, jnp.zeros(3), KEY)),
    "bound trees": other("a tree of shapes", lambda one: diffusion.bound(Diffusion(NOISING, Q.score, {"a": (1,)}), 0.0, KEY)),
    "bound noise": other("no reverse process", lambda one: diffusion.denoising_errors(POISSON, jnp.zeros(2), KEY)),
    "bound time": other("must lie between 0 and", lambda one: diffusion.bound(Q, 0.0, KEY, at=0.0)),
    "bound variances": other("data_variance has shape", lambda one: varied(jnp.ones(3))),
    "chain variances": other("the least being -1, and a point", lambda one: chained(-1.0)),
    "error time": other("denoising_errors: at=0 must lie", lambda one: diffusion.denoising_errors(Q, 0.0, KEY, at=0.0)),
    "bound grid": other("times end at 0", lambda one: diffusion.bound(Q, 0.0, KEY, times=TIMES)),
    "bound grid and time": other("times are a grid", lambda one: diffusion.bound(Q, 0.0, KEY, times=SOME, at=0.1)),
    "bound importance": other("positive weights", lambda one: diffusion.bound(Q, 0.0, KEY, importance=[1.0, 0.0])),
    "bound levels": other("two or more different numbers", lambda one: diffusion.bound(Q, 0.0, KEY, levels=[0.0, 0.0])),
    "bound off levels": other("lie at none of the 2 levels", lambda one: diffusion.bound(Q, 0.5, KEY, levels=[0.0, 1.0])),
    "bound process": other("learn it by a chain", lambda one: jax.jit(lambda b: diffusion.bound(rated(b), 0.0, KEY))(8.0)),
    "law site": other("missing", lambda one: diffusion.law(Q, SOME).estimate_log_density(KEY, {"z": 0.0})),
    "law shape": other("a point has", lambda one: diffusion.law(Q, SOME).estimate_log_density(KEY, {"x": jnp.zeros(2)})),
    "token kind": other("'masked' or 'uniform'", lambda one: diffusion.token_law(lambda: tokens, 2, 3, 4, kind="blurred")),
    "token logits": other(r"add up to exp\(1.1\)", lambda one: logit_law.estimate_log_density(KEY, {"x": jnp.zeros(2, int)})),
    "token draws of logits": other(r"add up to exp\(1.1\)", lambda one: logit_law.simulate(KEY)),
    "masked bound of logits": other(r"add up to exp", lambda one: diffusion.masked_bound(logits, jnp.zeros(2, int), KEY)),
    "masked bound of rows": other("network returned shape", lambda one: diffusion.masked_bound(rows, jnp.zeros(2, int), KEY)),
    "masked bound of values": other("1 of 1 rows have values", lambda one: diffusion.masked_bound(tokens, np.array([0, 3]), KEY)),
    "token shape": other("a row has", lambda one: row_law.estimate_log_density(KEY, {"x": DATA})),
    "classify": other("'bound' or 'error'", lambda one: diffusion.classify(lambda c: Q, SOME, 0.0, KEY, weighting="all")),
    "classified labels of none": other("no integers from 0 to 1", lambda one: SCORED.with_temperature([0, 1, -1])),
    "probes": other("num_probes must be", lambda one: diffusion.flow_log_likelihood(Q, DATA, num_probes=0)),
    "classified labels": other("one is needed for each", lambda one: SCORED.with_temperature(jnp.zeros(2, int))),
    "flow divergence": other("'exact' or 'hutchinson'", lambda one: diffusion.flow_log_likelihood(Q, DATA, divergence="no")),
    "flow before": other("until=-0.5 must lie in", lambda one: diffusion.flow_sample(Q, KEY, num_samples=1, until=-0.5)),
    "flow beyond": other(r"at=2 must lie in \[0, 1\]", lambda one: diffusion.flow_log_likelihood(Q, DATA, at=2.0)),
    "flow rows": other("rows of points of shape", lambda one: diffusion.flow_log_likelihood(PLANE, jnp.zeros(2))),
    "flow trees": other("a tree of shapes", lambda one: diffusion.flow_sample(TREE, KEY, num_samples=1)),
    "sampler trees": other("a tree of shapes", lambda one: diffusion.ddim(TREE, KEY, SOME, num_samples=1)),
    "steering trees": other("a tree of shapes", lambda one: fk_steering(TREE, SOME, lambda x: 0.0)),
    "flow key": other("Give a key", lambda one: diffusion.flow_log_likelihood(Q, DATA, divergence="hutchinson")),
}  # fmt: skip
IN_PROGRAMS_ONLY = ("diffuse model", "diffuse zeta", "diffuse langevin")
VALUES_ONLY = ("exchange NaN",)  # seen where values are known; under jit results are NaN
# What a traced number decides, and could not be checked: refused under jit, right outside.
TRACED = {
    "times": lambda one: fkc(Q, one * TIMES),
    "exponents": lambda one: fkc(Q, TIMES, exponents=one * 0.5),
    "moving exponents": lambda one: fkc(Q, TIMES, exponents=lambda t: one + t),
    "array of exponents": lambda one: fkc([Q, ONE], TIMES, exponents=one * jnp.ones(2)),
    "table of exponents": lambda one: fkc(Q, TIMES, exponents=one * jnp.asarray(TIMES + 1)),
    "zeta": lambda one: fkc(Q, TIMES, zeta=1.5 * one),
    "moving zeta": lambda one: fkc(Q, TIMES, zeta=lambda t: one + t),
    "process": lambda one: fkc(diffusion.gaussian_mixture(diffusion.VP(0.1 * one, 8.0), [1.0], [0.0], 1.0), TIMES),
    "steering": lambda one: fk_steering(Q, one * SOME, lambda x: x),
    "twisted": lambda one: twisted_diffusion(Q, one * SOME, lambda x: x),
    "sampler": lambda one: sample(one * SOME),
}  # fmt: skip
WARNED = {
    "noise": ("40 of 40 steps zeta^2 <= 2", lambda one: fkc(Q, TIMES, exponents=3.0, zeta=1.0)),
    "noise of guidance": ("positive exponents' sum is W = 3", lambda one: fkc([ONE, Q], TIMES, exponents=[-2.0, 3.0], zeta=1.0)),
    "long steps": ("too long for their noise", lambda one: fkc(Q, TIMES, exponents=3.0)),
    "start": ("weights of the first points", lambda one: fkc(Q, TIMES[30:])),
    "control of no use": ("too long for their noise", lambda one: fkc(Q, TIMES, exponents=3.0, zeta=1.0, control=NOTHING)),
}  # fmt: skip


def in_program(call):
    """A run of a program that diffuses what `call` makes, its argument traced as all of a program is."""

    @ppl.model
    def program(one):
        x = diffuse("x", call(one))
        ppl.sample("y", dist.Normal(x, 1.0), obs=0.0)

    run = lambda one: inference.smc(program, KEY, one, num_particles=2).log_evidence
    return jax.eval_shape(run, 1.0)


def under_jit(call):
    return jax.eval_shape(jax.jit(lambda one: (call(one), one)[1]), 1.0)


MODES = {"eagerly": lambda call: call(1.0), "jit": under_jit, "program": in_program}


def reachable():
    """Pairs of case and mode: a program draws from models alone, and `diffuse` is a statement of programs."""
    for name, found in CASES.items():
        for mode in MODES:
            if name in VALUES_ONLY and mode != "eagerly":
                continue
            if found.makes_model if mode == "program" else name not in IN_PROGRAMS_ONLY:
                yield pytest.param(name, mode, id=f"{name}-{mode}")


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore:fkc")
@pytest.mark.slow_for("exchange NaN-eagerly", "control breaks-eagerly", "steering noise-jit")
@pytest.mark.parametrize(("name", "mode"), list(reachable()))
def test_it_is_refused(name, mode):
    message, call, error, _ = CASES[name]
    with pytest.raises(error, match=message):
        MODES[mode](call)


@pytest.mark.filterwarnings("ignore:fkc")
@pytest.mark.parametrize("name", TRACED)
def test_what_is_traced_and_could_not_be_checked_is_refused(name):
    call = TRACED[name]
    call(1.0)
    with pytest.raises(ValueError, match="must be concrete numbers"):
        under_jit(call)
    with pytest.raises(ValueError, match="must be concrete numbers"):
        jax.jvp(lambda one: (call(one), one)[1], (1.0,), (1.0,))
    if isinstance(call(1.0), inference.diffusion.CorrectedDiffusion):
        with pytest.raises(ValueError, match="must be concrete numbers"):
            in_program(call)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WARNED)
def test_it_is_warned_of(name, mode):
    message, call = WARNED[name]
    with pytest.warns(UserWarning, match=message.replace("^", r"\^")):
        MODES[mode](call)


@pytest.mark.parametrize("mode", MODES)
def test_known_grids_stay_known(mode):
    """Made by the process within jit or a program: right as it is outside of them, and without a warning."""
    call = lambda one: fkc(Q, NOISING.times(20), exponents=lambda t: 1 + 0.1 * t)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MODES[mode](call)
        MODES[mode](lambda one: fkc(Q, NOISING.log_snr_times(20), integrator="exponential"))


@pytest.mark.slow
def test_a_reward_of_traced_values_that_does_not_vanish_makes_nan(key):
    """Whether it vanishes is known by the run only; one that does is right."""

    @jax.jit
    def log_evidence(y, rising):
        reward = lambda x, t: -jnp.where(rising, 1 - t, 1.0) * (x - y) ** 2
        model = fkc(Q, NOISING.times(20), reward=reward)
        return inference.smc(model, key, num_particles=20, history="none").log_evidence

    assert jnp.isfinite(log_evidence(0.5, True))
    assert jnp.isnan(log_evidence(0.5, False))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fkc. .* too long")
def test_models_of_traced_widths_whose_quotient_grows_make_nan(key):
    @jax.jit
    def log_evidence(variance):
        models = [diffusion.gaussian_mixture(NOISING, [1.0], [0.0], v) for v in (variance, 1.0)]
        model = fkc(models, NOISING.times(20), exponents=[-1.0, 2.0])
        return inference.smc(model, key, num_particles=20, history="none").log_evidence

    assert jnp.isfinite(log_evidence(2.0))
    assert jnp.isnan(log_evidence(0.3))


def test_tails_that_fall_are_not_refused():
    """Wide models in the denominator, rewards that are linear, bounded, or 0 on a half-line, and far modes."""
    far = diffusion.gaussian_mixture(NOISING, [0.5, 0.5], [-60.0, 80.0], 0.1)
    rewards = (lambda x: 30 * x, jnp.sin, lambda x: -jnp.abs(x), lambda x: -(x**4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fkc([ONE, SHARP], NOISING.times(200), exponents=[-4.0, 5.0])
        fkc([far, far], NOISING.times(200), exponents=[-0.5, 1.5])
        for r in rewards:
            fkc(Q, NOISING.times(40), reward=lambda x, t, r=r: (1 - t) * r(x))


def test_all_refusals_of_the_rooms_are_here():
    """Each statement that raises is reached by a case, all but those of packages and names that are not there."""
    root = pathlib.Path(lapilli.__file__).parent
    statements, reached, of_names = set(), set(), ("ImportError", "AttributeError")
    for file in [*(root / "inference/diffusion").rglob("*.py"), *(root / "models/diffusion").glob("*.py")]:  # fmt: skip
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and not any(e in ast.unparse(node) for e in of_names):
                statements.add((str(file), node.lineno, node.end_lineno))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calls = [(c.call, in_program if n in IN_PROGRAMS_ONLY else MODES["eagerly"]) for n, c in CASES.items()]  # fmt: skip
        for call, run in [*calls, *((call, under_jit) for call in TRACED.values())]:
            try:
                run(call)
            except (ValueError, TypeError) as err:
                frames = traceback.extract_tb(err.__traceback__)
                reached |= {(f.filename, f.lineno) for f in frames}
    missing = {
        (file, first)
        for file, first, last in statements
        if not any((file, line) in reached for line in range(first, last + 1))
    }
    assert not missing
