"""Measures of where an anomaly detector points: pointing game, and Street Scene's region and track criteria.

Shapes: T frames of a clip, H x W pixels of a frame, N clips, R regions, B boxes, P points of a curve. Rates are
fractions, 0 to 1; what is undefined (no region) is NaN; an empty list of clips is a ValueError.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from moevision.tasks.anomaly.metrics import ClipScores, Scores, at_least, listed
from moevision.tasks.anomaly.scores import Box

# Ramachandra and Jones (Street Scene, WACV 2020): how well a box must fit, and how much of a track must be found.
_MIN_IOU = 0.1
_TRACK_PERCENT = 10


@dataclass(frozen=True)
class RegionCurves:
    """Operating points of `region_curves`, (P,) each, from no box (all rates 0) to every box."""

    false_regions_per_frame_P: Scores
    region_rate_P: Scores
    track_rate_P: Scores


def pointing_game(clips: Sequence[ClipScores], slack_px: float = 0.0) -> float:
    """Share of abnormal frames whose hottest place lies on the mask, or within `slack_px` of it (a disc).

    Counts frames that are scored and have a mask that is not empty; clips without peaks or mask are left out. NaN if
    there is no such frame.

    Raises:
        ValueError: there are no clips, or a peak lies outside its frame (y comes first).
    """
    hits: list[bool] = []
    for clip in listed(clips):
        if clip.peak_T2 is None or clip.mask_THW is None:
            continue
        counted_T = (clip.label_T == 1) & np.isfinite(clip.score_T) & clip.mask_THW.any(axis=(1, 2))
        for frame in np.flatnonzero(counted_T):
            peak_2, mask_HW = np.floor(clip.peak_T2[frame]), clip.mask_THW[frame]
            if not ((peak_2 >= 0) & (peak_2 < mask_HW.shape)).all():
                raise ValueError(f"clip {clip.name}, frame {frame}: the peak {peak_2} lies outside {mask_HW.shape}")
            apart_px = np.hypot(*(np.argwhere(mask_HW) - peak_2).T)
            hits.append(bool(apart_px.min() <= slack_px))
    return float(np.mean(hits)) if hits else math.nan


def rbdc_tbdc(clips: Sequence[ClipScores]) -> dict[str, float]:
    """Region- and track-based detection criteria (Ramachandra and Jones, Street Scene, WACV 2020).

    Returns:
        rbdc, tbdc: area under the region and the track rate of `region_curves` for 0 to 1 false region per frame. A
        detector without any false region that finds all has 1; after its last box a curve goes on level. NaN without
        an abnormal region.

    Raises:
        ValueError: there are no clips, or a box's score is not finite.
    """
    curves = region_curves(clips)
    false_P = curves.false_regions_per_frame_P
    return {"rbdc": _area(false_P, curves.region_rate_P), "tbdc": _area(false_P, curves.track_rate_P)}


def region_curves(clips: Sequence[ClipScores]) -> RegionCurves:
    """Detection rates of regions and tracks against false regions per frame, swept over the boxes' scores.

    A region is the bounding rectangle of an 8-connected component of one frame's mask; it is found by a box of its
    frame with IoU >= 0.1. A box may find several regions, a region may be found by several boxes, and a box that finds
    none is a false region. A track counts when 10 % of its regions are found.

    Where the definition leaves room: tracks come from the masks and not from hand-made identities (components that
    share a pixel in consecutive frames belong together), so objects that touch are one track, and one that is hidden
    for a frame becomes two. Boxes of equal score enter together. All frames of the clips with boxes and a mask count,
    scored or not (what is not scored is not found); other clips are left out. Rates are NaN without any region.

    Raises:
        ValueError: there are no clips, or a box's score is not finite.
    """
    found: list[Scores] = []
    tracks: list[float] = []
    false: list[float] = []
    frames = 0
    for clip in listed(clips):
        if clip.boxes is None or clip.mask_THW is None:
            continue
        if not all(math.isfinite(box.score) for boxes in clip.boxes for box in boxes):
            raise ValueError(f"clip {clip.name}: the score of a box is not finite")
        frame_R, region_R4, track_R = _regions(clip.mask_THW)
        best_R, alone = _match(clip.boxes, frame_R, region_R4)
        found.append(best_R)
        false += alone
        tracks += [_track_score(best_R[track_R == track]) for track in np.unique(track_R)]
        frames += len(clip.boxes)
    best = np.concatenate([np.empty(0), *found])
    levels = np.unique(np.append(best[np.isfinite(best)], false))[::-1]
    rates = [(np.array(false), frames), (best, best.size), (np.array(tracks), len(tracks))]
    # The first point is that of a threshold above every box.
    return RegionCurves(*(np.append(0, at_least(scores, levels)) / (count or math.nan) for scores, count in rates))


def _regions(mask_THW: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Frame (R,), rectangle (R, 4: left, top, right, bottom) and track (R,) of every region of a clip."""
    frames: list[int] = []
    rectangles: list[tuple[int, int, int, int]] = []
    links: list[NDArray[np.int64]] = []
    before_HW = np.full(mask_THW.shape[1:], -1)
    for frame, mask_HW in enumerate(mask_THW):
        _, component_HW, stats, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=8)
        number_HW = np.where(mask_HW, component_HW - 1 + len(frames), -1)
        shared_HW = (before_HW >= 0) & (number_HW >= 0)
        links.append(np.unique(np.stack([before_HW[shared_HW], number_HW[shared_HW]], axis=1), axis=0))
        rectangles += [(x, y, x + width, y + height) for x, y, width, height, _ in stats[1:].tolist()]
        frames += [frame] * (len(stats) - 1)
        before_HW = number_HW
    track_R = np.arange(len(frames))
    for one, other in np.concatenate([np.empty((0, 2), np.int64), *links]):
        track_R[track_R == track_R[other]] = track_R[one]
    return np.array(frames, np.int64), np.array(rectangles, np.int64).reshape(-1, 4), track_R


def _match(
    boxes: tuple[tuple[Box, ...], ...], frame_R: NDArray[np.int64], region_R4: NDArray[np.int64]
) -> tuple[Scores, list[float]]:
    """(R,) highest score of a box that finds the region, -inf if none does; and the scores of boxes that find none."""
    best_R = np.full(len(frame_R), -np.inf)
    alone: list[float] = []
    for frame, found in enumerate(boxes):
        here = np.flatnonzero(frame_R == frame)
        for box in found:
            fits = here[_iou(np.array(box[:4]), region_R4[here]) >= _MIN_IOU]
            best_R[fits] = np.maximum(best_R[fits], box.score)
            alone += [] if fits.size else [box.score]
    return best_R, alone


def _iou(box_4: NDArray[np.int64], region_R4: NDArray[np.int64]) -> Scores:
    """(R,) shared area over joint area."""
    sides_R2 = np.minimum(box_4[2:], region_R4[:, 2:]) - np.maximum(box_4[:2], region_R4[:, :2])
    shared_R = np.maximum(sides_R2, 0).prod(axis=1)
    areas_R = np.maximum(box_4[2:] - box_4[:2], 0).prod() + (region_R4[:, 2:] - region_R4[:, :2]).prod(axis=1)
    return np.asarray(shared_R / (areas_R - shared_R), np.float64)


def _track_score(best_R: Scores) -> float:
    """The highest threshold at which enough of a track's regions are found."""
    needed = -(-best_R.size * _TRACK_PERCENT // 100)
    return float(np.sort(best_R)[-needed])


def _area(false_P: Scores, rate_P: Scores) -> float:
    """Under the rate, for 0 to 1 false region per frame."""
    if np.isnan(rate_P).any():
        return math.nan
    kept_P = false_P <= 1
    end = np.interp(1.0, false_P, rate_P)
    return float(np.trapezoid(np.append(rate_P[kept_P], end), np.append(false_P[kept_P], 1.0)))
