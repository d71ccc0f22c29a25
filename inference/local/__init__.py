"""Laplace posteriors of local sites.

`local_laplace` stands on top of `inference`; it makes a guide that finds each row's posterior by itself. How it looks for it:
    Newton              exact or Gauss-Newton steps
    Descent             steps along the gradient
    SGLD                stochastic gradient Langevin dynamics
    Inner               what these are: a program of one's own
    Curvature           the second derivatives that a row's loss is expanded with
"""

from ._curvature import Curvature as Curvature
from ._inner import SGLD as SGLD, Descent as Descent, Inner as Inner, Newton as Newton
from ._local_laplace import local_laplace as local_laplace

__all__ = [
    "Newton",
    "Descent",
    "SGLD",
    "Inner",
    "Curvature",
]
