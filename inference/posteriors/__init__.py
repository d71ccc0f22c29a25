"""Draws of a posterior with a certificate: `infer` looks for a way that suffices, `nuts` runs the one.

A model's joint law is p(z, x). What is sampled is p(z, x) |dz/du| of the unconstrained coordinates u of those sites that are not
summed or integrated out (`_target.py`); these are drawn given the rest. A *form* is the same law written otherwise. A *verdict*
is what was measured of draws, with the problems in words (`_judged.py`); a *certificate* is that of the draws that are returned,
with all attempts.

    _search.py        the ladder: which form and method comes next, by what the last one showed
    _elimination.py   which sites go, exactly;  _noncentred.py  which are shifted and scaled
    _chains.py        runs of NUTS until their verdict is good;  _sampler.py  NumPyro's kernel, compiled once; _clock.py
    _modes.py, _weighted.py    chains begun in modes; weighted draws of a fit or a flow (_flow.py), tempered particles
"""

from ._certificate import Attempt as Attempt, Certificate as Certificate
from ._draws import Draws as Draws
from ._infer import infer as infer, nuts as nuts

__all__: list[str] = []
