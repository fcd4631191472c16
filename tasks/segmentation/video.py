"""A video to the video with its classes' colours over it, its sound kept, and to a table of areas by frame."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from moevision.engine.task import JSON
from moevision.imaging.atomic import already_exists
from moevision.imaging.picture import picture_from_array
from moevision.imaging.sources import RecordedSource
from moevision.imaging.video import VideoWriter
from moevision.tasks.segmentation.areas import as_facts, frame_table

if TYPE_CHECKING:
    from moevision.tasks.segmentation.predict import SegmentationTask


def segment_video(
    task: SegmentationTask,
    source: Path,
    output: Path,
    *,
    replaces: bool = False,
    follow: Callable[[int, int | None], None] | None = None,
) -> dict[str, JSON]:
    """Label every frame by itself; nothing is written unless all are.

    Args:
        task: as for single pictures.
        source: a video file.
        output: the overlay, a video file; the table lies beside it as `<stem>.areas.csv`.
        replaces: whether files of these names may be replaced.
        follow: called after every frame with their number so far, and of all as the file states it.

    Returns:
        `frames`, and `area.NAME` as for pictures, the mean over frames.

    Raises:
        InputError: it is no video, damaged, or breaks off; or a file is there. MissingExtraError: PyAV is missing.
    """
    table_path = output.with_name(f"{output.stem}.areas.csv")
    for path in (output, table_path):
        if not replaces and os.path.lexists(path):
            raise already_exists(path)
    with RecordedSource.from_file(source) as frames:
        rate = Fraction(frames.fps or 25).limit_denominator(1001)
        with frame_table(table_path, task.classes) as table, VideoWriter(output, rate, frames.sound_path) as writer:
            for frame in frames:
                found = task.segment(picture_from_array(frame.pixels_HWC))
                table.add(frame.time_s, found.areas)
                writer.write(found.overlay(), frame.time_s)
                if follow is not None:
                    follow(table.frames, frames.frame_count)
    return {"frames": table.frames, **as_facts(table.means())}
