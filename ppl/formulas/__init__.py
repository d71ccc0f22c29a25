"""Formulas: a regression in one line, y ~ x + (1 | g), to the program that it stands for.

The package `formulae` (an extra) reads the formula and codes the columns of a data frame; `_frame` keeps what rows to come have
to be coded by, `_source` writes the program as text, with every prior in it, and `_formula` runs that very text: what is printed
is what runs, and may be copied and changed.
"""

from ._formula import Formula as Formula, formula as formula

__all__: list[str] = []
