"""Docstrings of public names say what goes in, what comes out, what is refused, and when a number is unbiased."""

import ast
import enum
import inspect
import re
import sys
import textwrap
import typing

from _pages import DOCS

sys.path.insert(0, str(DOCS / "_ext"))

import faces

ENTRY = re.compile(r"((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*)(?: \([^)]*\))?:(?:\s|$)")
# Summaries that begin so say what is done; what is returned has a section, or a sentence.
ORDERS = "Add|Check|Choose|Declare|Draw|Fit|Learn|Move|Plot|Put|Record|Resample|Run|State|Try|Turn"
# Tasks whose functions are estimators, samplers or objectives, by the words that their headings begin with.
ESTIMATORS = ("Programs with densities", "Objectives", "Particles")


def section(doc, *titles):
    """The lines of a docstring's section, or None."""
    found = re.search(rf"^(?:{'|'.join(titles)}):((?:.*\n?)(?:(?: .*)?\n?)*)", doc, re.M)
    return None if found is None else found[1]


def named(doc):
    """The parameters that Args or Attributes name."""
    names = set()
    for title in ("Args", "Attributes"):
        for line in textwrap.dedent(section(doc, title) or "").splitlines():
            if match := ENTRY.match(line):
                names |= {name.lstrip("*") for name in match[1].split(", ")}
    return names


def parameters(thing):
    """Those of a call; `validate_args` is the same in every law of NumPyro's."""
    try:
        found = inspect.signature(thing).parameters.values()
    except (ValueError, TypeError):
        return []
    return [p.name for p in found if not p.name.startswith("_") and p.name != "validate_args"]


def raises(thing):
    """Whether a function's own body raises a ValueError or a TypeError; of a class, what checks its arguments."""
    checks = [thing] if not inspect.isclass(thing) else [
        vars(thing)[name] for name in ("__init__", "__post_init__", "__check_init__") if name in vars(thing)
    ]  # fmt: skip
    for check in checks:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(check))))
        except (OSError, TypeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                if ast.unparse(node.exc.func) in ("ValueError", "TypeError"):
                    return True
    return False


def returns(thing, doc):
    """Whether it is said what a function returns, where it returns something."""
    note = inspect.signature(thing).return_annotation
    if inspect.isclass(thing) or note in (None, "None") or section(doc, "Returns", "Yields"):
        return True
    said = re.search(r"\b[Rr]eturns\b", doc)
    return bool(said) or bool(doc) and not re.match(rf"(?:{ORDERS})\b", doc)


def is_estimator(face, name):
    """Whether a name is a strategy, or a function that makes an objective, a sampler or a program with a density."""
    titles = [
        g.title for g in faces.groups(face) if name in g.names and face in ("ppl", "inference")
    ]
    if inspect.isclass(getattr(faces.load(face), name)):
        return any(title.startswith("Gradient strategies") for title in titles)
    is_random = face.startswith("inference.") and "key" in parameters(
        getattr(faces.load(face), name)
    )
    return is_random or any(t.startswith(ESTIMATORS) for t in titles) and name != "objective"


def lacks(face, name):
    """What the docstring of a public name lacks."""
    thing = getattr(faces.load(face), name)
    if not callable(thing) or typing.get_origin(thing) is not None:
        return []  # a value: what it is stands beside it
    if inspect.isclass(thing) and issubclass(thing, BaseException | enum.Enum):
        return [] if thing.__doc__ else ["summary"]
    doc = inspect.cleandoc(thing.__doc__ or "")
    is_made = inspect.isclass(thing) and re.search(r"\b[Mm]ade by `", doc)  # users do not call it
    found = [] if is_made else [p for p in parameters(thing) if p not in named(doc)]
    lacking = ["Args " + " ".join(found)] if found else []
    lacking += [] if doc else ["summary"]
    lacking += [] if returns(thing, doc) else ["Returns"]
    lacking += ["Raises"] if raises(thing) and section(doc, "Raises") is None else []
    if is_estimator(face, name) and section(doc, "Validity") is None:
        lacking.append("Validity")
    return lacking


def missing():
    return [
        f"{face}.{name}: {'; '.join(found)}"
        for face in faces.faces()
        for name in faces.public(face)
        if (found := lacks(face, name))
    ]


def test_docstrings_are_complete():
    assert missing() == []


def test_the_check_sees_what_is_missing():
    def scaled(x, factor=1.0, *rest):  # noqa: D417
        """Multiply.

        Args:
            x: numbers, [n].
            *rest: what is not used.
        """
        if factor < 0:
            raise ValueError("factor must not be negative")
        return factor * x

    doc = inspect.cleandoc(scaled.__doc__)
    assert named(doc) == {"x", "rest"} and parameters(scaled) == ["x", "factor", "rest"]
    assert raises(scaled) and section(doc, "Raises") is None
    assert not returns(scaled, "Draw it.") and returns(scaled, "Draw it.\n\nReturns:\n    It.")
