"""The pages of `docs/` run, their checks hold, and what they show is what they print."""

import pytest
from _pages import IS_WRITING, OUTPUTS, Page, is_alike, pages

pytestmark = pytest.mark.docs
PAGES = pages()
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def run_in(folder, monkeypatch, page, is_full):
    import matplotlib.pyplot as plt

    if page.lacks:
        pytest.skip(f"needs {page.lacks}")
    monkeypatch.chdir(folder)
    try:
        run = page.run(is_full)
    finally:
        plt.close("all")
    if is_full:
        page.compare(run, folder)
    return run


@by_name
@pytest.mark.slow_for(
    "explain/reproduced",
    "explain/evidence_sides",
    "howto/cookbook",
    "howto/nnx",
    "howto/posterior_right",
    "howto/judge_samples",
    "from_numpyro_svi",
    "howto/predict_new_rows",
    "start/capabilities",
    "tutorials/01_estimators",
    "howto/stream_data",
    "howto/variance",
    "howto/nan",
    "howto/correctors",
    "howto/diffusion_law",
    "howto/paths",
    "tutorials/04_state_space",
    "howto/forecast",
    "start/coming_from",
    "howto/which_sampler",
    "howto/devices",
    "howto/own_scheme",
    "howto/own_kernel",
    "howto/memory",
    "howto/which_estimator",
    "howto/check_posterior",
    "howto/hmm",
    "tutorials/03_vae",
    "howto/normal_states",
    "howto/missing_cells",
    "howto/own_table",
    "howto/own_categories",
    "howto/own_classes",
    "howto/own_numbers",
    "howto/own_objects",
    "howto/own_series",
    "howto/when_to_stop",
    "howto/compare_models",
    "errors",  # test_errors.py runs it
    "explain/feynman_kac",
    "howto/networks",
    # Most of a tutorial's smoke run is compilation; of each kind one stays.
    "tutorials/02_objectives",
    "tutorials/05_missing_data",
    "tutorials/06_simulator",
    "tutorials/08_gflownets",
    "tutorials/09_air",
    "tutorials/10_few_shot",
    "tutorials/11_any_order",
)
@pytest.mark.filterwarnings("ignore")  # readers see those of other packages, too
def test_pages_run(page, tmp_path, monkeypatch):
    """At smoke size; pages without one run in full."""
    run = run_in(tmp_path, monkeypatch, page, is_full=not page.has_smoke_size)
    assert run.seconds < page.budget


@pytest.mark.slow  # the sizes that readers are shown
@pytest.mark.parametrize("page", [p for p in PAGES if p.has_smoke_size], ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore")
def test_pages_run_in_full(page, tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, page, is_full=True)


@by_name
@pytest.mark.skipif(IS_WRITING, reason="the record is being written")
def test_outputs_are_of_the_code_that_stands_there(page):
    """Of pages that show outputs: they were written by the page's code as it is now."""
    record = OUTPUTS / page.name / "code.sha256"
    assert not record.exists() or record.read_text().strip() == page.digest


def test_a_page_that_claims_too_much_fails(tmp_path, monkeypatch):
    class Wrong(Page):
        text = "```python\nx = 1\n```\n<!-- check\nassert x == 2\n-->\n"

    with pytest.raises(AssertionError):
        Wrong("wrong").run(is_full=True)

    class Silent(Page):
        text = "<!-- raises -->\n```python\nx = 1\n```\n"

    with pytest.raises(AssertionError, match="line 3: no exception"):
        Silent("silent").run(is_full=True)


def test_outputs_are_compared_word_by_word_and_number_by_number():
    assert is_alike("mean 1.500 in 3.2 s", "mean 1.501 in 9.1 s")
    assert is_alike("mean 0.1", "mean 0.3") and not is_alike("mean 0.1", "mean 0.4")
    assert not is_alike("mean 1.50", "mean 1.54") and not is_alike("2 states", "3 states")
    assert not is_alike("mean 1.5", "median 1.5")


def test_smoke_sizes_replace_and_full_checks_wait():
    class Sized(Page):
        text = "<!-- smoke: 2000 -> 5 -->\n```python\nn = 2000\n```\n<!-- check full\nassert n == 2000\n-->\n"

    assert Sized("sized").run(is_full=False).names["n"] == 5
    assert Sized("sized").run(is_full=True).names["n"] == 2000
