"""Random programs of discrete sites (`_random_discrete.py`), summed out, against brute force over all assignments.

Compared: log-density, its gradient in the continuous sites, posterior marginals, the most probable assignment, and joint draws.
Of 500 programs some 10^4 frequencies of draws are compared, |z| < 4.5: a false alarm of 7 % in the whole slow suite.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest
from _brute_force import VALUES, check, shapes_of
from _random_discrete import RandomProgram

from lapilli import ppl

LARGEST = 4_000  # assignments


def programs(first: int, count: int, largest: int = LARGEST) -> Iterator[tuple[int, ppl.Program]]:
    """Random programs small enough for brute force, and their seeds."""
    seed = first
    while count:
        program = ppl.as_program(RandomProgram(seed))
        sites = {n: s for n, s in shapes_of(program).items() if n[0] in VALUES}
        if np.prod([float(VALUES[n[0]]) ** np.prod(s) for n, s in sites.items()]) <= largest:
            yield seed, program
            count -= 1
        seed += 1


def check_one(seed: int, program: ppl.Program, num_draws: int = 0) -> None:
    rng = np.random.default_rng(seed)
    shapes = sorted(shapes_of(program).items())
    kept = {n: jnp.asarray(rng.normal(size=s)) for n, s in shapes if n[0] not in VALUES}
    check(program, [n for n, _ in shapes if n[0] in VALUES], kept, num_draws=num_draws)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 4000, 1000))
def test_small_random_programs_are_summed_exactly(first):
    for seed, program in programs(first, 3, 64):
        check_one(seed, program)


@pytest.mark.slow  # 500 programs, a second or two of compilation each
@pytest.mark.parametrize("first", range(10_000, 60_000, 1000))
def test_random_programs_are_summed_exactly(first):
    for seed, program in programs(first, 10):
        try:
            check_one(seed, program, num_draws=2000)
        except AssertionError as err:
            raise AssertionError(f"program {seed}: {err}") from err
