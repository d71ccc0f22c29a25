"""How many steps a device call of fit takes."""

import pytest

from lapilli.inference.fitting.training._train import _SECONDS_PER_CALL, Timing


def lengths(fixed, a_step, num_calls=12):
    """Lengths of the calls of a machine on which a call costs `fixed` seconds and `a_step` a step."""
    timing, length, found = Timing(0, 0.0), 1, []
    for _ in range(num_calls):
        found.append(length)
        timing = timing.then(length, fixed + length * a_step)
        length = timing.next_length()
    return found


@pytest.mark.parametrize("fixed", [0.0, 1e-3, 0.02])
@pytest.mark.parametrize("a_step", [3e-6, 1e-3, 0.1])
def test_a_call_takes_its_time_whatever_a_step_costs(fixed, a_step):
    *_, last = lengths(fixed, a_step)
    assert 0.5 * _SECONDS_PER_CALL < fixed + last * a_step < 1.2 * _SECONDS_PER_CALL


def test_calls_are_long_where_each_costs_much_and_a_step_little():
    # Calls of 0.3 s would hold no step of 1 ms beside 0.2 s for the call, or spend two thirds on it.
    *_, last = lengths(fixed=0.2, a_step=1e-3)
    assert 0.2 / (0.2 + last * 1e-3) < 0.15


def test_calls_grow_by_eight_at_most():
    found = lengths(0.0, 1e-6)
    assert all(b <= 8 * a for a, b in zip(found, found[1:], strict=False))


def test_steps_longer_than_a_call_are_taken_one_by_one():
    first, second, *others = lengths(
        0.0, 2.0
    )  # the second call is to tell whether it is the call or the step that is slow
    assert (first, second) == (1, 2) and set(others) == {1}
