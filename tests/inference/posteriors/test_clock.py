"""A limit of time, and Ctrl-C: what there is until then is judged as it is, and never certified for what it is not."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.posteriors import _clock
from lapilli.inference.posteriors._clock import Clock, TimeUpError
from lapilli.inference.posteriors.chains._chains import ChainSettings, run_chains
from lapilli.inference.posteriors.chains._sampler import Sampler
from lapilli.inference.posteriors.forms._target import make_target

KEY = jax.random.key(0)
SETTINGS = ChainSettings(
    num_chains=4, num_samples=120, num_warmup=80, accepts=(0.9,), longer=0, is_dense=True
)


@ppl.model
def ratio(y):
    noise = ppl.sample("noise", dist.HalfNormal(1.0))
    slope = ppl.sample("slope", dist.StudentT(4.0, 0.0, 2.0))
    ppl.sample("y", dist.Normal(slope, noise).expand([3]).to_event(1), obs=y)


ARGS = (jnp.array([0.3, 1.0, 1.4]),)


def ticking():
    """A second at each look."""
    return itertools.count().__next__


@pytest.fixture(scope="module")
def target():
    return make_target("nuts", ratio, ARGS)


@pytest.fixture(scope="module")
def whole(target):
    return run_chains("nuts", target, KEY, SETTINGS)


@pytest.fixture
def in_ticks(monkeypatch):
    monkeypatch.setattr(_clock, "time", types.SimpleNamespace(monotonic=ticking()))


@pytest.mark.slow  # a run that is cut short has the whole one's draws, to the bit, too
def test_draws_do_not_depend_on_how_many_a_device_call_makes(target, whole):
    """Calls of one length, of random ones, and those that the clock makes have the same numbers, to the bit."""
    rng = np.random.default_rng(0)
    sampler = Sampler(
        target.log_density, target.arrays, target.dimension, num_chains=4, num_warmup=80, is_dense=True
    )  # fmt: skip
    frame = sampler.frame()
    start = sampler.begin(KEY, rng.uniform(-1, 1, (4, target.dimension)), frame, 0.9)
    found = []
    for lengths in ([200], rng.integers(1, 40, 30)):
        sampler._set_length = lambda size, seconds, lengths=lengths: setattr(
            sampler, "_length", int(rng.choice(lengths))
        )
        sampler._length = int(lengths[0])
        found.append(sampler.advance(start, frame, 0.9, 200)[1])
    assert found[0].u.shape == (4, 200, target.dimension)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow(reason="runs against the clock")
def test_a_run_that_is_cut_short_has_the_first_draws_and_says_so(target, whole):
    outcomes = []
    for seconds in (2, 11, 14, 17, 200):
        clock = Clock(seconds, now=ticking())
        try:
            cut = run_chains("nuts", target, KEY, SETTINGS._replace(clock=clock))
        except TimeUpError:
            assert clock.why == f"max_seconds={seconds} were spent"
            outcomes.append("nothing")
            continue
        problems, length = " ".join(cut.verdict.problems), cut.run.u.shape[1]
        assert length >= 10 and (clock.why or length == 120)
        if "warm-up" not in problems:  # whose draws are else returned
            np.testing.assert_array_equal(cut.run.u, whole.run.u[:, :length])
            assert ("cut short" in problems) == (length < 120)
        outcomes.append("some" if "cut short" in problems else "all")
    assert outcomes[0] == "nothing" and "some" in outcomes and outcomes[-1] == "all"


@pytest.mark.usefixtures("in_ticks")
def test_infer_returns_what_there_is_and_names_what_is_not_finished():
    with pytest.warns(
        UserWarning,
        match=r"NOT certified .*max_seconds=14 were spent during 'nuts, acceptance 0.9', before fit, tempered began; the chains "
        r"were cut short after \d+ of .*More time \(max_seconds=\)",
    ):
        draws = inference.infer(ratio, args=ARGS, max_seconds=14, progress=False)
    size = len(draws.choices["noise"])
    assert 80 <= size < 4000 and not draws.certificate.is_certified
    assert "max_seconds=14" in draws.certificate.problems[0]


@pytest.mark.usefixtures("in_ticks")
def test_no_draws_in_time_is_an_error():
    with pytest.raises(RuntimeError, match="no draws yet: max_seconds=3 were spent.*Raise max_s"):
        inference.infer(ratio, args=ARGS, max_seconds=3, progress=False)


@pytest.mark.slow(reason="chains of its own")
def test_ctrl_c_keeps_the_draws_that_there_are(monkeypatch):
    looks = itertools.count()

    def tell(self, text):
        if next(looks) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Clock, "tell", tell)
    with pytest.warns(UserWarning, match=r"it was interrupted \(Ctrl-C\) during 'nuts"):
        draws = inference.infer(ratio, args=ARGS, progress=False)
    assert 80 <= len(draws.choices["noise"]) < 4000
    for call in (inference.infer, inference.nuts):
        looks = itertools.count(4)
        with pytest.raises(KeyboardInterrupt):  # before there are any
            call(ratio, args=ARGS, progress=False)


def test_progress_says_what_runs_and_how_far_it_is():
    said = []
    clock = Clock(600, said.append, now=iter([0, 1, 2, 14, 16, 17, 40]).__next__)
    clock.check("nuts")
    for done in (1, 8, 64, 250, 500):
        clock.tell(f"{done} of 500 draws")
    assert said == [
        "nuts: 64 of 500 draws, 16 s of at most 600 (max_seconds)",
        "nuts: 500 of 500 draws, 40 s of at most 600 (max_seconds)",
    ]
