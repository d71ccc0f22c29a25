"""Loaders that say where they stand: a killed run goes on there, to the bit, no batch lost, doubled or read again."""

import jax
import numpy as np
import optax
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)
NUM_STEPS = 300


class Killed(Exception):
    pass


class Stream:
    """Random batches without end, which depend on all that was drawn before; a Grain iterator's methods."""

    def __init__(self, dies_at=None):
        self.rng, self.number, self.dies_at, self.read = np.random.default_rng(0), 0, dies_at, []

    def __iter__(self):
        return self

    def __next__(self):
        if self.number == self.dies_at:
            raise Killed
        self.read.append(self.number)
        self.number += 1
        return (self.rng.normal(size=3).astype(np.float32),)

    def get_state(self):
        return {"number": self.number, "rng": self.rng.bit_generator.state}

    def set_state(self, state):
        self.number = state["number"]
        self.rng.bit_generator.state = state["rng"]


class Loader:
    """The same stream behind a loader that keeps the state itself, as PyTorch's does."""

    def __init__(self):
        self.stream = Stream()

    def __iter__(self):
        yield from self.stream

    def state_dict(self):
        return self.stream.get_state()

    def load_state_dict(self, state):
        self.stream.set_state(state)


def model(x):
    import numpyro.distributions as dist

    with ppl.plate("rows", 3):
        ppl.sample("x", dist.Normal(ppl.param("mean", 0.0), 1.0), obs=x)


BOUND = inference.elbo(model, lambda x: None)


def train(stream, path=None, num_steps=NUM_STEPS):
    return inference.fit(
        BOUND, optax.adam(0.1), stream, num_steps=num_steps, key=KEY, plate_sizes={}, checkpoint=path,
        checkpoint_every=7, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return train(Stream())


def killed_again_and_again(path, whole, deaths):
    """The fit after a run that dies in each of these batches; what each attempt read."""
    read = []
    for dies_at in [*deaths, None]:
        stream = Stream(dies_at)
        try:
            fit = train(stream, path)
        except Killed:
            pass
        read.append(stream.read)
    assert fit.params == whole.params
    np.testing.assert_array_equal(fit.history["value"], whole.history["value"])
    return read


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_goes_on_where_its_loader_stood(tmp_path, whole, seed):
    deaths = sorted(np.random.default_rng(seed).choice(np.arange(1, NUM_STEPS), 3, replace=False))
    read = killed_again_and_again(tmp_path / "run.npz", whole, deaths)
    for before, after in zip(deaths[:-1], read[1:-1], strict=True):
        # The first batch tells the shapes; the others begin at the last checkpoint, at most 7 steps and a stack back.
        assert after[0] == 0 and (len(after) < 2 or after[1] >= before - 7 - 64)


@pytest.mark.slow
def test_a_run_killed_a_hundred_times_is_the_same_run(tmp_path, whole):
    rng = np.random.default_rng(1)
    for number in range(25):
        deaths = sorted(rng.choice(np.arange(1, NUM_STEPS), 4, replace=False))
        killed_again_and_again(tmp_path / f"{number}.npz", whole, deaths)


def test_loaders_that_keep_their_own_state(tmp_path, whole):
    path = tmp_path / "run.npz"
    train(Loader(), path, num_steps=21)
    assert train(Loader(), path).params == whole.params


@pytest.mark.parametrize("state", [(1, 2), np.zeros(2)], ids=["tuple", "array"])
def test_a_state_that_a_file_does_not_hold_is_read_up_to(tmp_path, whole, state):
    class Other(Stream):
        def get_state(self):
            return state

    path = tmp_path / "run.npz"
    train(Other(), path, num_steps=21)
    assert train(Other(), path).params == whole.params


def test_bytes_are_a_state(tmp_path, whole):
    import json

    class Bytes(Stream):
        def get_state(self):
            return json.dumps(super().get_state()).encode()

        def set_state(self, state):
            super().set_state(json.loads(state))

    path = tmp_path / "run.npz"
    train(Bytes(), path, num_steps=21)
    assert train(Bytes(), path).params == whole.params
