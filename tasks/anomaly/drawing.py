"""Pictures of a detection: the heat map over a frame, and the score over time. Pure functions on arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from moevision.tasks.anomaly.events import Event
from moevision.tasks.anomaly.scores import Box, FrameScore

Colour = tuple[int, int, int]  # RGB
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_RED: Colour = (226, 42, 42)
_WHITE: Colour = (255, 255, 255)
_BLACK: Colour = (0, 0, 0)
_OPACITY = 0.75  # where it is hottest: what is below must still be recognised
_LEAST_FULL = 1.0  # standard deviations: a scale that ends at a threshold of 0 would show noise as fire

_INK, _PALE, _GRID = (60, 60, 60), (110, 110, 110), (228, 228, 228)
_LINE, _SHADE, _LIMIT = (31, 90, 150), (250, 216, 210), (200, 50, 40)
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 58, 24, 44, 36
_TEXT_PX = 15
_TIME_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)


def _heat_colours() -> NDArray[np.uint8]:
    """256 x 1 x 3 RGB: Inferno, equal steps of heat being equal steps to the eye, without its start, which is black."""
    steps = np.linspace(0.3 * 255, 255, 256).round().astype(np.uint8)[:, None]
    return np.ascontiguousarray(cv2.applyColorMap(steps, cv2.COLORMAP_INFERNO)[..., ::-1])


_HEAT_COLOURS = _heat_colours()


def draw_overlay(
    frame_HWC: NDArray[np.uint8], score: FrameScore, *, threshold: float, alarm: bool = False
) -> NDArray[np.uint8]:
    """A copy of a frame with its heat map, boxes and score; a red border while an event is on.

    The scale is the same for all frames: clear at the normal level, 0, and full at twice the threshold. A disturbed
    frame has no map and no boxes, for they would tell of the camera.

    Args:
        frame_HWC: uint8 RGB of any size.
        score: of this frame.
        threshold: in standard deviations.
        alarm: whether an event is on.
    """
    drawn_HWC = np.ascontiguousarray(frame_HWC).copy()
    height = frame_HWC.shape[0]
    line_px = max(1, round(height / 360))
    if not score.disturbed:
        drawn_HWC = _blend(drawn_HWC, score.heat_HW, max(2 * threshold, _LEAST_FULL))
        for box in score.boxes:
            _draw_box(drawn_HWC, box, line_px)
    if alarm:
        border_px = max(2, round(height / 80))
        drawn_HWC[:border_px], drawn_HWC[-border_px:] = _RED, _RED
        drawn_HWC[:, :border_px], drawn_HWC[:, -border_px:] = _RED, _RED
    number = "not scored" if math.isnan(score.score) else f"{score.score:.1f}"
    text_px = max(9, height // 20)
    at = text_px // 2 + height // 80, text_px * 3 // 2 + height // 80
    _draw_text(drawn_HWC, "disturbed" if score.disturbed else number, at, text_px, _RED if alarm else _BLACK)
    return drawn_HWC


def draw_plot(
    times_s: Sequence[float],
    scores: Sequence[float],
    threshold: float,
    events: Sequence[Event],
    *,
    title: str = "",
    size_hw: tuple[int, int] = (400, 1200),
) -> NDArray[np.uint8]:
    """The score over time with its threshold, events shaded; HxWx3 uint8 RGB.

    Args:
        times_s, scores: of equal length; NaN leaves a gap.
        threshold: a dashed line.
        events: shaded, at least two pixels wide.
        title: above, at the left.
        size_hw: of the picture, in pixels.
    """
    plot = _Plot(times_s, scores, threshold, size_hw)
    plot_HWC = np.full((*size_hw, 3), 255, np.uint8)
    for event in events:
        left_px, right_px = round(plot.x_px(event.start_s)), round(plot.x_px(event.end_s))
        plot_HWC[plot.top_px : plot.bottom_px, left_px : max(right_px, left_px + 2)] = _SHADE
    for value in plot.value_ticks:
        y_px = round(plot.y_px(value))
        plot_HWC[y_px, plot.left_px : plot.right_px] = _GRID
    for value in plot.time_ticks_s:
        plot_HWC[plot.bottom_px : plot.bottom_px + 5, round(plot.x_px(value))] = _PALE
    plot_HWC[plot.bottom_px, plot.left_px : plot.right_px] = _PALE
    _draw_curve(plot_HWC, plot, times_s, scores)
    y_px = round(plot.y_px(threshold))
    for x_px in range(plot.left_px, plot.right_px, 14):
        plot_HWC[y_px - 1 : y_px + 1, x_px : min(x_px + 8, plot.right_px)] = _LIMIT
    return _lettered(plot_HWC, plot, title)


def time_text(seconds: float) -> str:
    """Seconds as H:MM:SS.mmm.

    >>> time_text(3723.0456), time_text(59.9996)
    ('1:02:03.046', '0:01:00.000')
    """
    whole_ms = round(seconds * 1000)
    minutes, ms = divmod(whole_ms, 60_000)
    return f"{minutes // 60}:{minutes % 60:02d}:{ms // 1000:02d}.{ms % 1000:03d}"


def _blend(frame_HWC: NDArray[np.uint8], heat_HW: NDArray[np.float32], full: float) -> NDArray[np.uint8]:
    """Lay the map, scaled to the frame, over it: the hotter the less transparent."""
    strength_HW = np.clip(np.nan_to_num(heat_HW, nan=0.0) / full, 0.0, 1.0)
    if not strength_HW.any():
        return frame_HWC
    height, width = frame_HWC.shape[:2]
    steps_HW = (255 * strength_HW).round().astype(np.uint8)
    steps_HW = cv2.resize(steps_HW, (width, height), interpolation=cv2.INTER_LINEAR)
    weight_HW = steps_HW.astype(np.float32) * (_OPACITY / 255)
    colours_HWC = cv2.applyColorMap(steps_HW, _HEAT_COLOURS)
    return np.asarray(cv2.blendLinear(colours_HWC, frame_HWC, weight_HW, 1 - weight_HW), np.uint8)


def _draw_box(drawn_HWC: NDArray[np.uint8], box: Box, line_px: int) -> None:
    corners = (box.left_px, box.top_px), (box.right_px - 1, box.bottom_px - 1)
    cv2.rectangle(drawn_HWC, *corners, _BLACK, 3 * line_px)  # white on black is seen on any ground
    cv2.rectangle(drawn_HWC, *corners, _WHITE, line_px)


def _draw_text(drawn_HWC: NDArray[np.uint8], text: str, at: tuple[int, int], text_px: int, ground: Colour) -> None:
    """White letters on a ground of their own; `at` is the lower left corner of the text."""
    scale, line_px = text_px / 22, max(1, round(text_px / 14))
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, line_px)
    pad_px = max(2, text_px // 4)
    corners = (at[0] - pad_px, at[1] - height - pad_px), (at[0] + width + pad_px, at[1] + pad_px)
    cv2.rectangle(drawn_HWC, *corners, ground, cv2.FILLED)
    cv2.putText(drawn_HWC, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, _WHITE, line_px, cv2.LINE_AA)


class _Plot:
    """Where times and values lie in the picture, and which of them are written at the axes."""

    def __init__(
        self, times_s: Sequence[float], scores: Sequence[float], threshold: float, size_hw: tuple[int, int]
    ) -> None:
        height, width = size_hw
        self.left_px, self.right_px = _LEFT_PX, width - _RIGHT_PX
        self.top_px, self.bottom_px = _TOP_PX, height - _BOTTOM_PX
        known = [score for score in scores if math.isfinite(score)]
        self.threshold = threshold
        self.start_s = times_s[0] if times_s else 0.0
        self.length_s = (times_s[-1] - self.start_s if times_s else 0.0) or 1.0
        low, high = min([0.0, threshold, *known]), max([1.0, threshold, *known])
        room = 0.06 * (high - low)
        self.low, self.high = low - (room if low < 0 else 0.0), high + room
        self.step_s = next((step for step in _TIME_STEPS_S if self.length_s / step <= 10), 86400.0)
        first = math.ceil(self.start_s / self.step_s - 1e-9)
        count = math.floor((self.start_s + self.length_s) / self.step_s + 1e-9) - first + 1
        every = math.ceil(count / 11)  # weeks are written in several days
        self.time_ticks_s = [(first + i) * self.step_s for i in range(0, count, every)]
        step = _value_step((self.high - self.low) / 7)
        self.value_ticks = [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]

    def x_px(self, time_s: float) -> float:
        part = min(max((time_s - self.start_s) / self.length_s, 0.0), 1.0)
        return self.left_px + part * (self.right_px - self.left_px - 1)

    def y_px(self, value: float) -> float:
        return self.bottom_px - (value - self.low) / (self.high - self.low) * (self.bottom_px - self.top_px)


def _value_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... (or 0.1, 0.2, ...) that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def _draw_curve(plot_HWC: NDArray[np.uint8], plot: _Plot, times_s: Sequence[float], scores: Sequence[float]) -> None:
    """A line through all points, broken where there is no score."""
    runs: list[list[tuple[float, float]]] = [[]]
    for time_s, score in zip(times_s, scores, strict=True):
        if math.isfinite(score):
            runs[-1].append((plot.x_px(time_s), plot.y_px(score)))
        elif runs[-1]:
            runs.append([])
    for run in runs:
        points = np.asarray(run, np.float64).reshape(-1, 1, 2)
        fixed = (points * 16).round().astype(np.int32)  # four bits behind the point
        if len(run) == 1:
            cv2.circle(plot_HWC, tuple(int(v) for v in fixed[0, 0]), 32, _LINE, cv2.FILLED, cv2.LINE_AA, 4)
        cv2.polylines(plot_HWC, [fixed], False, _LINE, 1, cv2.LINE_AA, 4)


def _lettered(plot_HWC: NDArray[np.uint8], plot: _Plot, title: str) -> NDArray[np.uint8]:
    image = Image.fromarray(plot_HWC)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(_TEXT_PX)
    for value in plot.value_ticks:
        draw.text((plot.left_px - 10, plot.y_px(value)), f"{value:.6g}", _INK, font, anchor="rm")
    for time_s in plot.time_ticks_s:
        x_px = min(plot.x_px(time_s), plot.right_px - 14)
        draw.text((x_px, plot.bottom_px + 10), _tick_text(time_s, plot), _INK, font, anchor="mt")
    x_px = _legend(draw, font, plot.right_px, "event", _SHADE, height_px=14)
    x_px = _legend(draw, font, x_px, f"threshold {plot.threshold:.2f}", _LIMIT, height_px=2)
    x_px = _legend(draw, font, x_px, "score, in standard deviations of normal frames", _LINE, height_px=2)
    large = ImageFont.load_default(_TEXT_PX + 2)
    draw.text((plot.left_px, 21), _fitted(title, draw, large, x_px - plot.left_px), _INK, large, anchor="lm")
    return np.asarray(image)


def _legend(
    draw: ImageDraw.ImageDraw,
    font: _Font,
    right_px: float,
    text: str,
    colour: Colour,
    *,
    height_px: int,
) -> float:
    """A swatch and its text that end at `right_px`; where the next one is to end."""
    left_px = right_px - draw.textlength(text, font)
    draw.text((left_px, 21), text, _INK, font, anchor="lm")
    draw.rectangle((left_px - 34, 21 - height_px / 2, left_px - 10, 20 + height_px / 2), colour)
    return left_px - 34 - 26


def _tick_text(time_s: float, plot: _Plot) -> str:
    if plot.step_s < 1:
        return f"{time_s:.1f} s"
    minutes, seconds = divmod(round(time_s), 60)
    if plot.start_s + plot.length_s < 3600:
        return f"{minutes}:{seconds:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _fitted(title: str, draw: ImageDraw.ImageDraw, font: _Font, room_px: float) -> str:
    """One line that fits; of a long name the end tells most."""
    title = " ".join(title.split())[-300:]
    if draw.textlength(title, font) <= room_px:
        return title
    while title and draw.textlength("..." + title, font) > room_px:
        title = title[1:]
    return "..." + title
