"""Contact sheets are written for every kind and can be read back."""

from moevision.datasets.paired import read_image
from moevision.datasets.preview import preview_sheet


def test_one_sheet_per_kind_with_real_photographs_where_there_are_any(made_root, tmp_path):
    paths = preview_sheet(made_root, tmp_path / "sheets", seed=1)
    assert {path.stem for path in paths} == {"rain", "drops", "snow", "haze", "mixture"}
    for path in paths:
        sheet = read_image(path)
        assert sheet.shape == (5 * 256, 6 * 256, 3)
        assert sheet.std() > 5


def test_sheets_repeat_with_the_seed(made_root, tmp_path):
    first, second = (preview_sheet(made_root, tmp_path / name, seed=2) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
