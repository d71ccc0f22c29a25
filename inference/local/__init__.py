"""Laplace posteriors of local sites."""

from ._inner import SGLD as SGLD, Descent as Descent, Inner as Inner, Newton as Newton
from ._local_laplace import local_laplace as local_laplace
