"""Runs the examples in the docstrings of every module of the package."""

import doctest
import importlib
import pkgutil

import pytest

import lapilli

PACKAGES = ("ppl", "inference", "models")
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


@pytest.mark.parametrize("name", module_names())
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
