"""Paired sets made from clean photographs."""

import numpy as np
import pytest

from moevision.datasets.synthesize import synthesize
from moevision.errors import UsageError

from .conftest import make_photo, save


@pytest.fixture
def photos(tmp_path):
    for seed in range(2):
        save(tmp_path / f"{seed}.png", make_photo(seed, 48, 40))
    return tmp_path


@pytest.mark.parametrize("kind", ["haze", "haze+rain", "rain+drops"])
def test_the_same_seed_makes_the_same_pairs_and_leaves_the_clean_side_alone(photos, kind):
    first, second = list(synthesize(photos, kind)), list(synthesize(photos, kind))
    for (degraded, clean, name), (again, truth, _) in zip(first, second, strict=True):
        np.testing.assert_array_equal(degraded, again)
        np.testing.assert_array_equal(clean, truth)
        assert degraded.shape == clean.shape == (48, 40, 3), name
        assert not np.array_equal(degraded, clean)


@pytest.mark.parametrize("kind", ["hail", "haze+hail", "haze+clean", "+"])
def test_an_unknown_weather_is_refused_before_any_picture_is_made(photos, kind):
    with pytest.raises(UsageError, match="no such weather"):
        next(synthesize(photos, kind))
