"""What holds of all scripts: where they lie, and that names of helpers do not shadow each other."""

import ast
from collections import Counter

import pytest
from _examples import EXAMPLES

FILES = [f for f in EXAMPLES.rglob("*.py") if f.name != "__init__.py"]
SCRIPTS = [
    f for f in FILES if not any(p.startswith("_") for p in f.relative_to(EXAMPLES).parts)
    and not (f.parent / "__init__.py").exists()
]  # fmt: skip


def test_modules_have_names_of_their_own():
    """Tests load helpers of several folders into one Python, where the second of a name would be the first."""
    beside_scripts = [f.stem for f in FILES if not (f.parent / "__init__.py").exists()]
    assert [name for name, count in Counter(beside_scripts).items() if count > 1] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda f: str(f.relative_to(EXAMPLES)))
def test_scripts_say_how_they_are_run(script):
    text = script.read_text()
    usage = f"    python examples/{script.relative_to(EXAMPLES)} [--"
    assert usage in ast.get_docstring(ast.parse(text), clean=False)
    assert 'if __name__ == "__main__":' in text
