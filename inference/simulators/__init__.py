"""Simulators: draws of a program as stored simulations, and what is learned from them.

Data
    reference_table, ReferenceTable     simulations of a program, or of a prior and a plain function, split and scaled once

Results of `inference.amortise`, `inference.ratio`, `inference.surrogate`
    Amortised                           a posterior for any data, with its calibration report
    Ratio                               likelihood over evidence; its posterior as a program
    Surrogate                           a program with learned laws of observed sites

Terms: theta, the latent sites of a program; x, its observed ones; a *row*, one draw of both. Three things can be learned from
rows: q(theta | x), p(x | theta) and p(x | theta) / p(x). Invariants: rows are split once, coordinates are made in one place
(`_coordinates.py`) from the training rows alone, what is trained is chosen by validation rows and judged by rows held out from
both.
"""

from ._ratio import Ratio as Ratio, ratio as ratio
from ._reference_table import reference_table as reference_table
from ._surrogate import Surrogate as Surrogate, surrogate as surrogate
from ._table import ReferenceTable as ReferenceTable
from .amortised import Amortised as Amortised, amortise as amortise

__all__ = [
    "reference_table",
    "ReferenceTable",
    "Amortised",
    "Ratio",
    "Surrogate",
]
