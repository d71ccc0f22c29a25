"""Simulators as plain functions of a module, which worker processes can import."""


def noisy(rng, parameters):
    """The parameter with noise of its own."""
    return parameters["m"] + rng.normal()


def fails_below_zero(rng, parameters):
    """The same, where the parameter is not negative."""
    if parameters["m"] < 0:
        raise ZeroDivisionError("below")
    return noisy(rng, parameters)
