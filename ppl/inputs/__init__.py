"""What a program does with what it is given before it draws: indices out of range, NaN for codes, whole numbers that wrap, noise.

Input: a traced program, and the values of those of its inputs that are known: its arguments. Output: indices computed from them
that lie outside of what they index (`_lookups.py`, over `_known.py`); NaN of which whole numbers are made (`_casts.py`), and
whole numbers that do not fit into their type (`_wraps.py`);
equations that draw from a key which is not the run's, and whether two traces hold the same numbers (`_own_noise.py`). Nothing is
run but what indices are made of, and, where one is out of range, the program at other elements, to see whether it counts
(`_heard.py`).
"""

from ._casts import Cast as Cast
from ._heard import Suspect as Suspect, heard as heard, suspects as suspects
from ._lookups import Lookup as Lookup
from ._own_noise import (
    own_noise as own_noise,
    refuse_own_noise as refuse_own_noise,
    same_numbers as same_numbers,
)
from ._wraps import Wrap as Wrap
