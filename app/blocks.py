"""The page: a heading and one tab for each job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moevision.app import detect, fuse, restore, segment
from moevision.app.page import Page
from moevision.app.settings import QUEUE_PLACES

if TYPE_CHECKING:
    import gradio as gr

_TITLE = "moevision"
_CACHE_S = 3600  # uploads and results are deleted after so long
_SWEEP_S = 600
_TABS = (("Restore", restore), ("Fuse", fuse), ("Detect", detect), ("Segment", segment))
CSS = """
.gradio-container { max-width: min(1180px, 100vw) !important; margin: 0 auto !important; }
.gradio-container .main { max-width: 100%; min-width: 0; }
.gradio-container footer .divider { display: none; }  /* it would follow the only link */
.summary { padding: 0 4px; }
.result .empty { min-height: 90px; height: 90px; }
.prose table.areas { width: 100%; border: none !important; border-collapse: collapse; font-size: var(--text-md); }
table.areas caption { text-align: left; font-weight: 600; padding: 4px 0; }
table.areas th { text-align: left; font-weight: 600; }
.prose table.areas :is(th, td) { padding: 3px 8px; border: none !important; }
.prose table.areas tr { border: none; border-bottom: 1px solid var(--border-color-primary); }
.swatch { display: inline-block; width: 1.4em; height: 1.1em; border: 1px solid var(--body-text-color); }
"""
# The thumbnails of examples have no names for those who cannot see them.
HEAD = """<script>
new MutationObserver(() => document.querySelectorAll("button.gallery-item:not([aria-label])").forEach(button => {
    const file = button.querySelector("img, video")?.src.split("/").pop();
    if (file) button.setAttribute("aria-label", "Example " + decodeURIComponent(file));
})).observe(document.documentElement, { childList: true, subtree: true, attributes: true, attributeFilter: ["src"] });
</script>"""


def build_blocks(page: Page) -> gr.Blocks:
    """Lay out the page; heavy imports wait for its first use."""
    import gradio as gr

    limits = page.settings
    with gr.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=(_SWEEP_S, _CACHE_S)) as blocks:
        gr.Markdown(
            "# moevision\nBetter outdoor images. Everything is computed on this machine and deleted after an hour. "
            f"Limits: {limits.max_file_mb:g} MB a file, {limits.max_megapixels:g} megapixels, "
            f"{limits.max_video_s:g} s of video."
        )
        with gr.Tabs():
            for name, tab in _TABS:
                with gr.Tab(name, id=name.lower()):
                    tab.build(page)
    blocks.queue(max_size=QUEUE_PLACES, default_concurrency_limit=1)
    return blocks


def theme() -> gr.themes.Base:
    """The system's own fonts: nothing is fetched from anywhere."""
    import gradio as gr

    font = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "monospace"]
    plain = gr.themes.Default(font=font, font_mono=mono, primary_hue="blue")
    # The default greys of explanations are too pale to read.
    return plain.set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700", block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800", block_title_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
    )  # fmt: skip
