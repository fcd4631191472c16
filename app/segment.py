"""The tab that labels every pixel of a picture."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from moevision.app.page import EXAMPLES, Page, chosen, model_choice, picture_input, result_file, told
from moevision.app.pictures import described, write_result, write_view
from moevision.app.tables import colour_table
from moevision.imaging.picture import Picture

if TYPE_CHECKING:
    from moevision.tasks.segmentation.predict import Segmentation

_EXAMPLES = ("rain-stream.jpg", "haze-hills.jpg")
_LEAST_SHARE = 0.0005


def segment(
    page: Page, picture_file: str | None, restore_first: bool = False, model: str | None = None
) -> tuple[Any, str, str, str]:
    """One picture.

    Returns:
        Picture and overlay, to look at; the table of areas as HTML; the summary; the file of class ids.
    """
    start_s = time.perf_counter()
    file = chosen(picture_file, "picture")
    (picture,) = page.decoder.pictures([file])
    found = page.models.segment(picture, restore_first=bool(restore_first), label=model)
    with page.results() as folder:
        overlay = Picture(found.overlay())
        views = write_view(picture, folder / "picture.jpg"), write_view(overlay, folder / "overlay.jpg")
        saved = write_result(Picture(found.ids_HW[:, :, None], palette=found.palette), folder, file[1], "classes")
    return views, areas_table(found), summary(picture, found, time.perf_counter() - start_s), saved


def areas_table(found: Segmentation) -> str:
    """Colour, name and share of the classes that occur, largest first."""
    rows = []
    for name, share in sorted(found.areas.items(), key=lambda item: -item[1]):
        if share >= _LEAST_SHARE:
            number = found.classes.index(name)
            rows.append((found.palette[number], (str(number), name, f"{100 * share:.1f} %")))
    return colour_table("What is where", ("Id", "Class", "Area"), rows)


def summary(picture: Picture, found: Segmentation, seconds: float) -> str:
    """What most of the picture is, in words."""
    name, share = max(found.areas.items(), key=lambda item: item[1])
    lines = [f"### Mostly {name.lower()}, {100 * share:.0f} %"]
    if "weather" in found.facts:
        lines.append(f"Restored first: {found.facts['weather']}, {found.facts['confidence']:.2f}.")
    return "\n\n".join([*lines, f"{described(picture)}; {seconds:.1f} s."])


def build(page: Page) -> None:
    """Lay out the tab."""
    import gradio as gr

    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            picture = picture_input("Picture")
            restore_first = gr.Checkbox(
                False, label="Restore first", info="Takes rain, drops, snow or haze away before looking."
            )
            choice = model_choice(page, "segmentation")
            button = gr.Button("Segment", variant="primary")
            examples = gr.Examples(
                [[str(EXAMPLES / name)] for name in _EXAMPLES],
                [picture],
                label="Examples: click one (the shipped network knows streets best)",
            )
        with gr.Column(min_width=300):
            views = gr.ImageSlider(
                label="Picture and classes", type="filepath", interactive=False, buttons=["fullscreen"]
            )
            words = gr.Markdown("Choose a picture, or one of the examples.", elem_classes="summary")
            areas = gr.Markdown(sanitize_html=False)  # our own table, with colours
            saved = result_file("Class ids, a PNG whose values are the ids")
    work = told(partial(segment, page))
    inputs, outputs = [picture, restore_first, *choice], [views, areas, words, saved]
    shown: dict[str, Any] = {"concurrency_id": "pictures", "show_progress_on": views}
    button.click(work, inputs, outputs, api_name="segment", **shown)
    examples.load_input_event.then(work, inputs, outputs, api_visibility="private", **shown)
