"""Draws of a posterior with a certificate: `infer` looks for a way that suffices, `nuts` runs the one.

A model's joint law is p(z, x). What is sampled is p(z, x) |dz/du| of the unconstrained coordinates u of those sites that are not
summed or integrated out (`forms`); these are drawn given the rest. A *form* is the same law written otherwise. A *verdict*
is what was measured of draws, with the problems in words (`_judged.py`); a *certificate* is that of the draws that are returned,
with all attempts.

    _search.py   the ladder: which form and method comes next, by what the last one showed (`_found.py`);  _clock.py
    forms        which sites go, exactly, and which are shifted and scaled; the density of the rest
    chains       runs of NUTS until their verdict is good
    weighted     weighted draws of a fit, a flow, or a mixture at the places of chains; tempered particles
"""

from ._certificate import Attempt as Attempt, Certificate as Certificate
from ._draws import Draws as Draws
from ._infer import infer as infer, nuts as nuts

__all__: list[str] = []
