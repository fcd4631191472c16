import io

import numpy as np
import pytest
from PIL import Image

from moevision.engine.task import TaskResult
from moevision.engine.thumbnails import BUDGET_BYTES, LARGEST_PX, SMALLEST_PX, Thumbnails
from moevision.imaging.picture import Picture


def noise(height=300, width=400, channels=3, dtype=np.uint8, seed=0):
    """What compresses worst."""
    values = np.random.default_rng(seed).random((height, width, channels), np.float32)
    top = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    return Picture((values * top).astype(dtype))


def opened(thumbnail):
    return Image.open(io.BytesIO(thumbnail.data))


def test_one_picture_has_a_before_and_an_after_with_its_proportions():
    before, after = Thumbnails(1).of((noise(),), TaskResult(noise(seed=1)))
    assert (before.name, after.name) == ("before", "after")
    assert opened(before).size == (LARGEST_PX, LARGEST_PX * 3 // 4)


def test_several_pictures_are_numbered():
    made = Thumbnails(1).of((noise(), noise()), TaskResult(noise()))
    assert [thumbnail.name for thumbnail in made] == ["input 1", "input 2", "result"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_depth_is_shown_as_bright_as_it_is(dtype, channels):
    grey = Picture(np.full((30, 40, channels), {np.uint8: 51, np.uint16: 13107, np.float32: 0.2}[dtype], dtype))
    for thumbnail in Thumbnails(1).of((grey,), TaskResult(grey)):
        assert np.abs(np.asarray(opened(thumbnail), int) - 51).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes_have_thumbnails(height, width):
    picture = noise(height, width)
    assert [max(opened(one).size) <= LARGEST_PX for one in Thumbnails(1).of((picture,), TaskResult(picture))] == [
        True,
        True,
    ]


def test_a_task_shows_what_it_thinks_best_and_is_told_how_large():
    asked = []

    def views(longer_px):
        asked.append(longer_px)
        return {"infrared": noise(channels=1), "visible": noise(), "fused": noise()}

    made = Thumbnails(10_000).of((noise(), noise()), TaskResult(noise(), views=views))
    assert [thumbnail.name for thumbnail in made] == ["infrared", "visible", "fused"]
    assert SMALLEST_PX <= asked[0] < LARGEST_PX


@pytest.mark.parametrize("jobs", [1, 7, 40])
def test_the_budget_is_never_exceeded_and_shared_fairly(jobs):
    budget_bytes = 40_000
    thumbnails = Thumbnails(jobs, budget_bytes)
    made = [thumbnails.of((noise(seed=seed),), TaskResult(noise(seed=seed))) for seed in range(jobs)]
    sizes = [sum(len(one.data) for one in some) for some in made]
    assert sum(sizes) <= budget_bytes
    if jobs == 7:
        assert all(sizes), "there is room for all of them"
        assert max(sizes) < 2 * budget_bytes / jobs


def test_where_there_is_no_room_there_is_no_thumbnail():
    assert Thumbnails(1, 100).of((noise(),), TaskResult(noise())) == ()


def test_the_budget_leaves_a_page_of_five_thousand_rows_below_thirty_megabytes():
    assert BUDGET_BYTES * 4 / 3 + 5000 * 800 < 30e6
