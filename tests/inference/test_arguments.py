"""Arguments of a program, split into arrays and what is none."""

import numpy as np
import pytest

from lapilli.inference._arguments import Arguments


def test_what_is_no_array_stays_as_it_was():
    split = Arguments((np.zeros(3), "a"))
    assert [x.shape for x in split.arrays((np.ones(2), "a"))] == [(2,)]
    with pytest.raises(
        ValueError, match=r"Non-array arguments are \[None, 'b'\], but \[None, 'a'\] came before"
    ):
        split.arrays((np.zeros(3), "b"))
    with pytest.raises(ValueError, match="Pass arguments of one structure"):
        split.arrays(([np.zeros(3)], "a"))
