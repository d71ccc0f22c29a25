"""Runs the examples in the docstrings of every module of the package."""

import doctest
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import lapilli

PACKAGES = ("ppl", "inference", "models")
# Modules whose examples take long, most of it compilation.
SLOW = [
    f"lapilli.{name}"
    for name in """
    _workarounds
    inference.diagnostics._evidence_bracket
    inference.diffusion._fkc
    inference.diffusion._replica_exchange
    inference.diffusion._statement
    inference.diffusion.tokens._fkc_tokens
    inference.export._predict
    inference.local._local_laplace
    inference.objectives._fivo
    inference.particles.diagnostics._evidence
    inference.particles.engine._smc
    inference.particles.moves._gibbs
    inference.particles.parameters._liu_west
    inference.particles.parameters._particle_gibbs
    inference.particles.parameters._pmmh
    inference.particles.parameters._smc2
    inference.particles.resampling._partial
    inference.particles.samplers._smc_sampler
    inference.particles.scaling._islands
    inference.particles.scaling._replicate
    inference.particles.smoothing._smooth
    models.air
    models.deep_latent
    models.diffusion._bound
    models.diffusion._classifier
    models.diffusion._law
    models.diffusion.estimators._density
    models.gflownet._balance
    models.gflownet._diffusion_sampler
    models.gflownet._object_sampler
    models.imputation._programs
    models.imputation.estimators._classifier
    models.imputation.estimators._imputer
    models.mam._tempering
    models.mam._distribution
    models.mam._objectives
    models.mam._particles
    models.mam.estimators._any_order
    models.mam.annealing._annealing
    models.mam.annealing._distilled
    models.mam.annealing._remembered
    models.niw_meta._programs
    models.niw_meta.estimators._classifier
    models.pv_rnn._programs
    models.pv_rnn._regression
    models.pv_rnn.estimators._forecaster
    ppl.densities._eliminate
    ppl.densities._kalman_proposal
    ppl.densities._marginal
    ppl.densities._normalize
    ppl.distributions._frames
    ppl.distributions.linear._truncated
    """.split()
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_names():
    """All modules, found by file name, so that one that fails to import fails in its own test."""
    names = [m.name for m in pkgutil.iter_modules(lapilli.__path__, "lapilli.") if not m.ispkg]
    folders = [(f"{lapilli.__name__}.{name}", f"{lapilli.__path__[0]}/{name}") for name in PACKAGES]
    while folders:
        package, folder = folders.pop()
        names.append(package)
        for module in pkgutil.iter_modules([folder], f"{package}."):
            if module.ispkg:
                folders.append((module.name, f"{folder}/{module.name.rpartition('.')[2]}"))
            else:
                names.append(module.name)
    return sorted(names)


MODULES = module_names()


def has_examples(name):
    """Whether a module's file holds a prompt: it is read, and not imported."""
    spec = importlib.util.find_spec(name)
    return spec is not None and ">>> " in Path(spec.origin).read_text()


def test_every_module_can_be_imported():
    failed = {}
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # what it is stands in the message
            failed[name] = error
    assert len(MODULES) > 500 and not failed


@pytest.mark.docs
@pytest.mark.slow_for(*SLOW)
@pytest.mark.parametrize("name", [name for name in MODULES if has_examples(name)])
def test_examples_in_docstrings_hold(name):
    report = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    for example in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name)):
        runner.run(example, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_a_wrong_example_is_reported():
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert runner.run(wrong, out=lambda text: None).failed == 1
