"""docs/numpyro_names.md says of each name of NumPyro what its row here shows."""

import itertools
import pkgutil
import re

import _numpyro_contrib
import _numpyro_handlers
import _numpyro_statements
import numpyro.contrib
import numpyro.distributions as dist
import pytest
from _numpyro_rows import assert_same_density, markdown
from _pages import DOCS, IS_WRITING

from lapilli import ppl

pytestmark = pytest.mark.docs

TABLES = {
    "statements": _numpyro_statements.ROWS,
    "handlers": _numpyro_handlers.ROWS,
    "contrib": _numpyro_contrib.ROWS,
}
ROWS = [row for rows in TABLES.values() for row in rows]
PAGE = DOCS / "numpyro_names.md"
TABLE = r"(<!-- table {} -->\n).*?(?=\n<!-- end -->)"


@pytest.mark.slow_for(
    "`hsgp.hsgp_squared_exponential`",
    "`einstein.SteinVI`",
    "`ecs_proxies`, `HMCECS`",
    "`funsor.infer_discrete`",
)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.filterwarnings("ignore:.*vectorize_particles:UserWarning")
def test_a_name_does_what_its_row_says(row):
    if row.check is not None:
        row.check()
    elif row.refused:
        with pytest.raises((ValueError, TypeError, NotImplementedError, ImportError)) as caught:
            row.attempt(ppl.as_program(row.program))
        assert re.search(row.refused, str(caught.value), re.S), caught.value
    else:
        assert_same_density(row.program, row.choices)


def test_the_page_shows_the_rows():
    text = PAGE.read_text()
    for part, rows in TABLES.items():
        pattern = re.compile(TABLE.format(part), re.S)
        text, found = pattern.subn(lambda m, rows=rows: m[1] + markdown(rows), text)
        assert found == 1, part
    if IS_WRITING:
        PAGE.write_text(text)
    assert PAGE.read_text() == text, "LAPILLI_WRITE_DOCS=1 writes the tables"


def test_every_name_has_a_row():
    told = " ".join(row.name for row in ROWS)
    names = [
        *numpyro.handlers.__all__,
        *(m.name for m in pkgutil.iter_modules(numpyro.contrib.__path__)),
    ]
    names += "sample param module mutable deterministic factor get_mask plate plate_stack subsample prng_key".split()
    names += [*numpyro.contrib.module.__all__]
    assert [n for n in names if not re.search(rf"\b{n}\b", told) and n != "control_flow"] == []


def test_a_row_that_claims_too_much_fails():
    """A program whose density is another one at each run."""
    locs = itertools.count()
    with pytest.raises(AssertionError):
        assert_same_density(lambda: numpyro.sample("z", dist.Normal(next(locs), 1.0)), {"z": 0.0})
