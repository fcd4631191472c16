"""The tab that finds what does not belong in a video."""

from __future__ import annotations

import contextlib
import html
import queue
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moevision.app.page import SCENES, Page, chosen, told, upload_path
from moevision.errors import InputError
from moevision.imaging.video import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from moevision.tasks.anomaly.predict import Detection, Scored

_MOST_SITE_BYTES = 8 * 2**20
_STEP_S = 0.5  # between two signs of progress
_HEADERS = ("From", "To", "Score", "Left, top, right, bottom")


class _CancelledError(Exception):
    pass


def detect(
    page: Page, path: str | None, site: str | None, false_alarms: float
) -> Generator[tuple[int, int | None, int] | tuple[Detection, Path], None, None]:
    """One video. First, again and again, frames done, frames in all and events so far; last what was found, and where.

    Closing the iterator ends the work, the process that decodes, and takes the unfinished files away.
    """
    file = chosen(path, "video")
    calibration = _site(site)
    news: queue.Queue[Any] = queue.Queue()
    stopped = threading.Event()
    with page.results() as folder:
        thread = threading.Thread(
            target=_work, args=(page, file, calibration, false_alarms, folder, news, stopped), daemon=True
        )
        thread.start()
        try:
            while True:
                item = news.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if len(item) == 2:
                    return
        finally:
            stopped.set()
            thread.join()


def _work(
    page: Page, file: tuple[Path, str], site: Path | None, false_alarms: float, folder: Path,
    news: queue.Queue[Any], stopped: threading.Event,
) -> None:  # fmt: skip
    from moevision.tasks.anomaly.outputs import DetectionWriter
    from moevision.tasks.anomaly.predict import detect as run

    last_s, events = 0.0, 0

    def follow(scored: Scored) -> None:
        nonlocal last_s, events
        if stopped.is_set():
            raise _CancelledError
        events += scored.ended is not None
        if time.monotonic() - last_s >= _STEP_S:
            last_s = time.monotonic()
            news.put((scored.score.number + 1, source.frame_count, events))

    try:
        # Two videos at once would take twice as long each, and twice the memory.
        with page.models.videos, page.decoder.video(*file) as source:
            detector, threshold = page.models.detector(site, false_alarms)
            with DetectionWriter.for_source(folder, source, detector.site, threshold) as writer:
                found = run(source, detector, threshold, writer, duration_s=page.settings.max_video_s, say=follow)
        news.put((found, folder))
    except BaseException as error:  # it is raised where the iterator is
        news.put(error)


def _site(path: str | None) -> Path | None:
    if not path:
        return None
    if Path(path).stat().st_size > _MOST_SITE_BYTES:
        raise InputError(f"{Path(path).name}: no calibration of moevision anomaly-fit is so large")
    return Path(path)


def summary(found: Detection, name: str) -> str:
    """How many events there are, in words."""
    count = len(found.events)
    first = "Nothing unusual" if not count else "1 event" if count == 1 else f"{count} events"
    threshold = found.threshold
    lines = [f"### {first}", f"{len(found.times_s)} frames of {html.escape(name)} were scored."]
    lines.append(
        f"A frame is unusual above {threshold.value:.2f} standard deviations of normal frames (the footage allows "
        f"{threshold.low:.2f} to {threshold.high:.2f}), chosen for {threshold.asked}."
    )
    if found.disturbed:
        lines.append(f"In {found.disturbed} frames the whole picture changed; they have no score.")
    if found.broken_off:
        lines.append(f"**The video broke off** {html.escape(found.broken_off)}. What is shown reaches until there.")
    return "\n\n".join(lines)


def events_table(found: Detection) -> list[list[Any]]:
    """A row for every event."""
    from moevision.tasks.anomaly.drawing import time_text

    rows: list[list[Any]] = []
    for event in found.events:
        where = ", ".join(str(side) for side in event.boxes[0][:4]) if event.boxes else "not told"
        rows.append([time_text(event.start_s), time_text(event.end_s), round(event.peak_score, 2), where])
    return rows


def build(page: Page) -> None:
    """Lay out the tab."""
    import gradio as gr

    def work(video: str | None, calibration: str | None = None, false_alarms: float = 6.0) -> Iterator[Any]:
        progress = gr.Progress()
        progress(0, desc="starting")
        with contextlib.closing(detect(page, video, calibration, false_alarms)) as steps:
            for step in steps:
                if len(step) == 3:
                    done, total, events = step
                    progress((done, total) if total else None, desc=f"frame {done}", unit="frames")
                    line = f"Frame {done}" + (f" of {total}" if total else "") + f"; events so far: {events}."
                    yield gr.skip(), gr.skip(), gr.skip(), line, gr.skip()
                    continue
                found, folder = step
                heat, plot = str(folder / "heat.mp4"), str(folder / "scores.png")
                files = [str(folder / name) for name in ("events.json", "scores.csv", "heat.mp4")]
                yield heat, plot, events_table(found), summary(found, Path(str(video)).name), files

    gr.Markdown(
        "For a camera that does not move. A calibration, a .json file of `moevision anomaly-fit`, says what is normal "
        "there; without one, the camera is taken for the one the model was trained on, above a walkway.",
        elem_classes="summary",
    )
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            # Not gr.Video: to upload with it loads a video editor from elsewhere.
            film = gr.File(label="Video", file_types=sorted(VIDEO_SUFFIXES), height=140)
            site = gr.File(label="Calibration", file_types=[".json"], height=140)
            for component in (film, site):
                component.preprocess = upload_path  # type: ignore[method-assign,assignment]
            rate = gr.Slider(
                1, 60, 6, step=1, label="False alarms an hour", info="What normal footage may give; fewer need more."
            )
            with gr.Row():
                button = gr.Button("Detect", variant="primary")
                cancel = gr.Button("Cancel")
            example = [str(SCENES / "meadow-odd.mp4"), str(SCENES / "meadow-site.json")]
            examples = gr.Examples(
                [example], [film, site], label="Example: click it (a staged scene, a cyclist among walkers)"
            )
        with gr.Column(min_width=300):
            # Labels would hide the score in the corner of the frames, and the plot's title.
            gr.Markdown("**Where it is unusual**", elem_classes="summary")
            heat = gr.Video(label="Where it is unusual", show_label=False, interactive=False)
            words = gr.Markdown("Choose a video, or the example.", elem_classes="summary")
            plot = gr.Image(
                label="Score over time", show_label=False, type="filepath", interactive=False, buttons=["fullscreen"]
            )
            table = gr.Dataframe(
                headers=list(_HEADERS),
                label="Events",
                interactive=False,
                wrap=True,
                type="array",
                row_count=1,
                column_widths=["22%", "22%", "20%", "36%"],
            )
            files = gr.File(
                label="Files: events, scores of every frame, video", file_count="multiple", interactive=False,
                elem_classes="result",
            )  # fmt: skip
    inputs, outputs = [film, site, rate], [heat, plot, table, words, files]
    # Shown at one place: animations over five would take the processor's time from the work.
    runs = [
        button.click(
            told(work), inputs, outputs, api_name="detect", concurrency_id="videos", concurrency_limit=1,
            show_progress_on=words,
        ),
        examples.load_input_event.then(
            told(work), inputs, outputs, api_visibility="private", concurrency_id="videos", show_progress_on=words
        ),
    ]  # fmt: skip
    cancel.click(lambda: "Cancelled.", None, words, cancels=runs, queue=False, api_visibility="private")
    film.upload(page.warm, queue=False, show_progress="hidden", api_visibility="private")
