"""The tab that fuses an infrared and a visible picture of one view."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from moevision.app.page import SCENES, Page, chosen, model_choice, picture_input, result_file, told
from moevision.app.pictures import coloured, described, write_result, write_view
from moevision.engine.task import TaskResult
from moevision.imaging.picture import Picture


def fuse(
    page: Page, infrared: str | None, visible: str | None, register: bool = False, model: str | None = None
) -> tuple[Any, str, str, str]:
    """One pair.

    Returns:
        Visible and fused, to look at; the map of weights; the summary; the file of the result.
    """
    start_s = time.perf_counter()
    files = [chosen(infrared, "infrared picture"), chosen(visible, "visible picture")]
    thermal, picture = page.decoder.pictures(files)
    result = page.models.fuse(thermal, picture, register=bool(register), label=model)
    with page.results() as folder:
        views = write_view(picture, folder / "visible.jpg"), write_view(result.picture, folder / "fused.jpg")
        weights = write_view(coloured(result.maps["weights"].pixels_HWC[:, :, 0]), folder / "weights.jpg")
        saved = write_result(result.picture, folder, files[1][1], "fused")
    return views, weights, summary(picture, result, time.perf_counter() - start_s), saved


def summary(visible: Picture, result: TaskResult, seconds: float) -> str:
    """Who contributed how much, in words."""
    facts: Any = result.facts
    share = 100 * facts["visible_weight"]
    lines = [f"### Visible {share:.0f} %, infrared {100 - share:.0f} %"]
    lines.append("Shares of the whole picture; the map shows them place by place.")
    if gates := _gates(facts["experts"]):
        lines.append(f"Experts the network chose for this pair: {gates}.")
    if facts.get("registered") == "ecc":
        lines.append(f"The infrared picture was moved by {facts['shift_px']:.1f} px to fit.")
    elif "registered" in facts:
        lines.append("No better fit of the two was found; they were fused as they are.")
    if facts.get("infrared_coloured"):
        lines.append("**The infrared picture is coloured.** Are the two swapped?")
    return "\n\n".join([*lines, f"{described(visible)}, in and out; {seconds:.1f} s."])


def _gates(experts: dict[str, dict[str, float]]) -> str:
    """Gates and experts are counted from 0 in the facts and from 1 on the page."""
    texts = []
    for gate, shares in experts.items():
        kind, _, place = gate.partition(".")
        ones = " and ".join(f"{int(number) + 1} ({share:.2f})" for number, share in shares.items())
        texts.append(f"{kind}{f' {int(place) + 1}' if place else ''}: {ones}")
    return ", ".join(texts)


def build(page: Page) -> None:
    """Lay out the tab."""
    import gradio as gr

    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            pair = []
            with gr.Row():
                for label in ("Infrared", "Visible"):
                    picture = picture_input(label, min_width=140)
                    picture.input(page.warm, queue=False, show_progress="hidden", api_visibility="private")
                    pair.append(picture)
            register = gr.Checkbox(
                False, label="Align first", info="Mends a shift or a turn between the two; takes a little longer."
            )
            choice = model_choice(page, "fusion")
            button = gr.Button("Fuse", variant="primary")
            example = [str(SCENES / f"meadow-{kind}.png") for kind in ("infrared", "visible")]
            examples = gr.Examples([example], pair, label="Example: click it (a staged scene at dusk)")
        with gr.Column(min_width=300):
            views = gr.ImageSlider(
                label="Visible and fused", type="filepath", interactive=False, buttons=["fullscreen"]
            )
            weights = gr.Image(
                label="Who contributed: yellow the visible, blue the infrared", type="filepath", interactive=False,
                buttons=["fullscreen"],
            )  # fmt: skip
            words = gr.Markdown("Choose two pictures of one view, or the example.", elem_classes="summary")
            saved = result_file("Result in the visible picture's own format and depth")
    work = told(partial(fuse, page))
    inputs, outputs = [*pair, register, *choice], [views, weights, words, saved]
    shown: dict[str, Any] = {"concurrency_id": "pictures", "show_progress_on": views}
    button.click(work, inputs, outputs, api_name="fuse", **shown)
    examples.load_input_event.then(work, inputs, outputs, api_visibility="private", **shown)
