"""The examples of local Laplace sites at smoke size."""

import arviz
import numpy as np
import pytest
from _examples import load_example


def test_episodes_of_sines_and_lines_have_the_stated_noise_and_no_point_twice():
    module = load_example("papers/few_shot/sine_line")
    episodes, truth = module.make_episodes(0, 500)
    noise = episodes.query.y - truth
    # 22,500 labels: a standard error of 0.3 / sqrt(45,000) = 0.0014
    assert abs(noise.std() - module.NOISE) < 4.5 * 0.0015
    x = np.sort(np.concatenate([episodes.support.x, episodes.query.x], 1)[..., 0] * 2)
    np.testing.assert_allclose(x, np.tile(module.GRID, (500, 1)), atol=1e-6)


def test_images_of_objects_turn_with_their_azimuth():
    """Coordinates across are linear in (cos, sin): least squares on an object's images leaves the noise alone."""
    module = load_example("papers/few_shot/pose")
    episodes = module.make_episodes(0, 300)
    np.testing.assert_allclose((episodes.query.y**2).sum(-1), 1, rtol=1e-5)
    rest = []
    for x, y in zip(episodes.query.x, episodes.query.y, strict=True):
        fitted = y @ np.linalg.lstsq(y, x[:, :6], rcond=None)[0]
        rest.append(((x[:, :6] - fitted) ** 2).sum(0) / (module.NUM_QUERIES - 2))
    rest = np.ravel(rest)
    error = rest.std() / np.sqrt(rest.size)
    assert abs(rest.mean() - module.IMAGE_NOISE**2) < 4.5 * error
    quarter = module.angle(np.array([0.0, 2.0]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(quarter, 90.0)


@pytest.mark.slow  # compiles four fits of networks
@pytest.mark.parametrize("name", ["sine_line", "pose"])
def test_few_points_are_learned_from(name, tmp_path):
    results = load_example(f"papers/few_shot/{name}").main(["--smoke", "--out", str(tmp_path)])
    for method, result in results.items():
        first, last = (
            result.fit.history["value"][part].mean() for part in (slice(5), slice(-5, None))
        )
        assert last > first or method == "Reptile"  # whose value is no objective
    assert (tmp_path / f"{name}.png").exists()
    assert "theta" in arviz.from_netcdf(tmp_path / "posterior.nc")["posterior"]


@pytest.mark.slow  # compiles NUTS and two fits
def test_firms_agree_with_nuts(tmp_path):
    summaries, bounds = load_example("papers/variational/mixed_effects").main(
        ["--smoke", "--out", str(tmp_path)]
    )
    exact = summaries["NUTS"]
    for name in ("mean field", "conditional"):
        shift = np.abs(summaries[name]["theta"][0] - exact["theta"][0]) / exact["theta"][1]
        assert shift.max() < 1.5, name
    assert bounds["conditional"][0] > bounds["mean field"][0] - 1.0
    assert (tmp_path / "firms.png").exists() and (tmp_path / "conditional.nc").exists()


@pytest.fixture(scope="module")
def glyphs():
    return load_example("papers/few_shot/glyphs")


@pytest.mark.slow
def test_glyphs_are_centred_distinct_and_split_without_a_shared_face(glyphs):
    images, scripts = glyphs.load_glyphs(40)
    assert images.shape[1:] == (12, 400) and len(set(scripts)) > 2
    ink = images.reshape(-1, 20, 20) > 60
    for axis in (1, 2):
        used = ink.any(3 - axis)
        first, last = used.argmax(1), 19 - used[:, ::-1].argmax(1)
        assert np.abs(first + last - 19).max() <= 2
    # A class that is another one with a little noise is dropped.
    assert len(glyphs.distinct(np.concatenate([images, images[:3]]))) == len(images)
    episodes = glyphs.make_episodes(0, images, 20, 2)
    for i in range(20):
        rows = np.concatenate([episodes.support.x[i], episodes.query.x[i]])
        labels = np.concatenate([episodes.support.y[i], episodes.query.y[i]])
        assert np.all(np.bincount(labels) == 7)
        # every face of a class once; two faces of one letter may look alike at this size
        assert len(np.unique(rows[labels == 0], axis=0)) >= 4


@pytest.mark.slow  # compiles three fits
def test_letters_are_learned(glyphs, tmp_path):
    tables = glyphs.main(["--smoke", "--out", str(tmp_path)])
    assert tables[5, 1]["ProtoNet"]["accuracy, %"] > 50
    assert tables[5, 1]["NIW-Meta"]["accuracy, %"] > 50
    assert (tmp_path / "glyphs_5_way_1_shot.png").exists()
    assert (tmp_path / "last_layers_5_way_1_shot.nc").exists()


@pytest.fixture(scope="module")
def calibration():
    return load_example("papers/few_shot/calibration")


def test_damages_are_of_the_stated_size_and_apart_for_each_image(calibration):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (3, 50, 400)).astype(np.uint8)
    square = calibration.occluded(rng, images).reshape(150, 20, 20)
    blank = square == 0
    for axis in (1, 2):
        assert np.all(blank.any(axis).sum(1) == 6)
    assert np.all(blank.sum((1, 2)) == 36) and np.all(square[~blank] > 0)
    assert len(np.unique(blank.reshape(150, -1), axis=0)) > 50
    moved = calibration.moved(rng, images).reshape(150, 20, 20)
    padded = np.pad(images.reshape(150, 20, 20), ((0, 0), (1, 1), (1, 1)))
    places = [padded[:, i : i + 20, j : j + 20] for i in range(3) for j in range(3)]
    is_at = np.array([(moved == place).all((1, 2)) for place in places])
    assert np.all(is_at.sum(0) == 1) and np.all(is_at.sum(1) > 0)
    grey = np.full((4, 400), 128, np.uint8)
    change = calibration.noisy(rng, grey, deviation=20).astype(float) - 128
    assert abs(change.std() - 20) < 4.5 * 20 / np.sqrt(2 * 1600)
    assert calibration.noisy(rng, images).dtype == np.uint8


def test_intervals_are_those_of_student(calibration):
    """Of differences 1 ... 5: mean 3, t_4 (0.975) = 2.776 standard errors of sqrt(0.5)."""
    mean, reach = calibration.paired(np.arange(1.0, 6.0)[:, None])
    np.testing.assert_allclose([mean[0], reach[0]], [3.0, 2.776445 * 0.5**0.5], rtol=1e-6)


@pytest.mark.slow  # compiles three programs that train
def test_every_method_is_measured_on_every_damage(calibration):
    found = calibration.main(["--smoke"])
    assert {row for _, row, _ in found} == set(calibration.ROWS)
    assert len(found) == 2 * len(calibration.ROWS) * 4
    for values in found.values():
        assert values.shape == (2, 5) and np.isfinite(values).all()
    clean, noise = (
        np.mean([v[:, 0] for k, v in found.items() if k[2] == d]) for d in ("clean", "noise")
    )
    assert clean > max(noise, 30)
    with pytest.raises(SystemExit):
        calibration.main(["--smoke", "--record"])
