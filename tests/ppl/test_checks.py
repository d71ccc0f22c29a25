"""Options that must be given: a call without them says which, and how."""

import inspect

import jax
import pytest

from lapilli import inference
from lapilli.ppl._checks import told_what_is_missing


def test_a_call_without_a_needed_option_names_it():
    with pytest.raises(
        TypeError,
        match=r"iwelbo: num_particles must be given, by name\. Call iwelbo\(\.\.\., num_particles=100\)",
    ):
        inference.iwelbo(None, None)
    with pytest.raises(TypeError, match=r"Fit\.predict: num_samples must be given"):
        inference.Fit.predict(None, jax.random.key(0))
    with pytest.raises(TypeError, match="pmmh: parameters, num_samples must be given"):
        inference.particles.pmmh(None, jax.random.key(0), num_particles=10)


def test_what_is_given_passes_and_the_signature_stays():
    @told_what_is_missing
    def fn(a, *, b, c=3):
        """Text."""
        return a, b, c

    assert fn(1, b=2) == (1, 2, 3) and fn.__doc__ == "Text."
    assert str(inspect.signature(fn)) == "(a, *, b, c=3)"
    with pytest.raises(TypeError, match="unexpected keyword"):
        fn(1, b=2, d=4)


def test_every_needed_option_is_asked_for():
    """Functions of the faces with a keyword that has no default."""
    faces = [inference, inference.fitting, inference.particles, inference.local]
    functions = {f for face in faces for f in vars(face).values() if inspect.isfunction(f)}
    functions |= {f for f in vars(inference.Fit).values() if inspect.isfunction(f)}
    needing = [f for f in functions if _needs(f)]
    assert len(needing) >= 25
    for function in needing:
        with pytest.raises(TypeError, match="must be given, by name"):
            function()


def _needs(function):
    kinds = inspect.signature(function).parameters.values()
    return any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in kinds)
