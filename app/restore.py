"""The tab that takes rain, raindrops, snow and haze out of a photograph."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from moevision.app.page import EXAMPLES, Page, chosen, model_choice, picture_input, result_file, told
from moevision.app.pictures import described, write_result, write_view
from moevision.app.tables import colour_table
from moevision.engine.task import TaskResult
from moevision.imaging.picture import Picture

_WEATHERS = (("rain", "rain"), ("drops on the lens", "drops"), ("snow", "snow"), ("haze", "haze"))
_MOST_LISTED = 6
_NOT_ASKED = "Press Restore to see who decided what."
_EXAMPLES = ("haze-mountain.jpg", "rain-stream.jpg", "snow-path.webp", "drops-dogs.png", "haze-hills.jpg")


def restore(
    page: Page, photograph: str | None, strength: float = 1.0, weather: Sequence[str] = (), experts: bool = False,
    model: str | None = None,
) -> tuple[Any, str, str, str | None, str]:  # fmt: skip
    """One photograph.

    Returns:
        Before and after, to look at; the summary; the file of the result; the map of experts, None if it was not asked
        for; what the map shows, as HTML.
    """
    start_s = time.perf_counter()
    file = chosen(photograph, "photograph")
    (picture,) = page.decoder.pictures([file])
    result = page.models.restore(
        picture, strength, list(weather) or None, experts_map=bool(experts), label=model
    )  # fmt: skip
    with page.results() as folder:
        views = write_view(picture, folder / "before.jpg"), write_view(result.picture, folder / "after.jpg")
        saved = write_result(result.picture, folder, file[1], "restored")
        decided = write_view(result.maps["experts"], folder / "experts.jpg") if experts else None
    told_words = summary(picture, result, weather, strength, time.perf_counter() - start_s)
    return views, told_words, saved, decided, experts_table(result) if experts else _NOT_ASKED


def summary(picture: Picture, result: TaskResult, told_of: Sequence[str], strength: float, seconds: float) -> str:
    """What was seen and done, in words."""
    facts: Any = result.facts
    seen = f"{facts['weather']}, {facts['confidence']:.2f}"
    if told_of:
        first = f"### Taken away: {', '.join(told_of)}\nYou said so; the network itself sees: {seen}."
    elif facts["weather"] == "clean":
        first = (
            "### " + seen + "\nNo bad weather is seen, so little is changed. If there is some, tick it and try again."
        )
    else:
        first = "### " + seen + "\nThe network decided this by itself, and took it away."
    each = ", ".join(f"{name} {share:.2f}" for name, share in facts["weathers"].items())
    part = "" if strength == 1 else f" Strength {strength:g}."
    return (
        f"{first}\n\nHow sure it is of each: {each}.{part} Pixels changed by {100 * facts['mean_change']:.1f} % of the "
        f"full range on average.\n\n{described(picture)}, in and out; {seconds:.1f} s."
    )


def experts_table(result: TaskResult) -> str:
    """Which experts came first in how much of the picture, in words and as a table: HTML."""
    facts: Any = result.facts
    colours = result.maps["experts"].palette or ()
    shares = list(facts["experts"].items())
    rows = [
        (colours[int(number)], (f"Expert {int(number) + 1}", f"{100 * share:.0f} %"))
        for number, share in shares[:_MOST_LISTED]
    ]
    most, share = int(shares[0][0]) + 1, shares[0][1]
    words = (
        f"<p>At every place the network mixes a few of its {len(colours)} experts; the map has the colour of the one "
        f"that came first. That is oftenest expert {most}, in {100 * share:.0f} % of the picture. The first counted "
        f"{100 * facts['first_weight']:.0f} % on average, the others at its place the rest.</p>"
    )
    rest = sum(share for _, share in shares[_MOST_LISTED:])
    end = f"<p>{len(shares) - _MOST_LISTED} others share {100 * rest:.0f} %.</p>" if rest else ""
    return words + colour_table("Who came first", ("Expert", "Of the picture"), rows) + end


def build(page: Page) -> None:
    """Lay out the tab."""
    import gradio as gr

    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            picture = picture_input("Photograph")
            weather = gr.CheckboxGroup(
                list(_WEATHERS), label="Weather", info="Tick what is to be taken away. With none it is detected."
            )
            strength = gr.Slider(0, 1, 1, step=0.05, label="Strength", info="0 changes nothing, 1 is the whole effect.")
            choice = model_choice(page, "restoration")
            experts = gr.Checkbox(
                False, label="Show who decided what", info="Which of the network's experts worked on which place."
            )
            button = gr.Button("Restore", variant="primary")
            examples = gr.Examples(
                [[str(EXAMPLES / name)] for name in _EXAMPLES], [picture], label="Examples: click one"
            )
        with gr.Column(min_width=300):
            views = gr.ImageSlider(label="Before and after", type="filepath", interactive=False, buttons=["fullscreen"])
            words = gr.Markdown("Choose a photograph, or one of the examples.", elem_classes="summary")
            saved = result_file("Result in the photograph's own format and depth")
            with gr.Column(visible=False) as who:
                decided = gr.Image(
                    label="Which expert came first", type="filepath", interactive=False, buttons=["fullscreen"]
                )
                table = gr.Markdown(_NOT_ASKED, sanitize_html=False)  # our own table, with colours
    work = told(partial(restore, page))
    inputs, outputs = [picture, strength, weather, experts, *choice], [views, words, saved, decided, table]
    shown: dict[str, Any] = {"concurrency_id": "pictures", "show_progress_on": views}
    button.click(work, inputs, outputs, api_name="restore", concurrency_limit=1, **shown)
    examples.load_input_event.then(work, inputs, outputs, api_visibility="private", **shown)
    experts.change(lambda on: gr.Column(visible=bool(on)), experts, who, queue=False, api_visibility="private")
    picture.input(page.warm, queue=False, show_progress="hidden", api_visibility="private")
