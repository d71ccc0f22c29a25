"""Posteriors for any data, learned from stored simulations.

The function is in `_amortise.py` and what it returns in `_amortised.py`; `_guides.py` has what is learned, `_mixture.py` several
trainings of it as one program, `_rounds.py` simulations where the posterior at one observation still can be, `_given.py` what is
known of given data and rows before anything is computed of them.
"""

from ._amortise import amortise as amortise
from ._amortised import Amortised as Amortised
