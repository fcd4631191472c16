"""Does restoration help who looks at the pictures next? A segmenter and a classifier in bad weather, with and without.

    python benchmarks/downstream.py --data ROOT --restorer restoration-small --segmenter segmentation-camvid --out DIR
    python benchmarks/downstream.py --data ROOT --part classification --out DIR

ROOT is laid out like the training data: `segmentation/camvid/val` and `classification/cifar10_subset` are used. The
weather is not what the restorers are trained with; `downstream_weather.py` says what differs. Four weathers, three
strengths, one seed a picture. The segmenter learned from clean pictures, and so did the classifier, a small one that is
trained here and kept as DIR/classifier.safetensors. Each weather is measured as it is; after every restorer,
"automatic", "told" the weather's name, and "told, haze too" where mist comes with it; and haze after the dark-channel
prior. Clean pictures are restored too: that should change nothing. A second segmenter that learned with weather
(--weather-segmenter) has rows of its own.

Measures: mIoU or accuracy, the gain over the degraded pictures, and the share of the weather's loss that is made good,
(restored - degraded) / (clean - degraded); clean and degraded are always those of the clean-trained network. Intervals
(95 %) are a bootstrap of the figure itself over pictures, the same draws for all rows, so that differences are paired;
frames of one drive are alike, so that they come out too narrow. "all four" and "all twelve" are means over weathers
(and strengths) of figures, gains and shares.

Writes segmentation.md and .json, classification.md and .json, and pictures.png: for each weather of middle strength
degraded, restored, the labels of both, and the truth. One file for each source, weather and strength in DIR/pieces
holds the counts of every picture: a run that is cut off goes on from there, --weather and --strength split one, and the
tables are made of what is there. --every N takes each Nth picture only. --distance invented lays mist by an invented
street instead of what the labels show: a restorer that has learned only the one way to tell distance is found out.
"""

import argparse
import json
import os
import time
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from downstream_classifier import CLASSIFIER, classifier_in, read_cifar
from downstream_table import CLEAN, CONDITIONS, DEGRADED, Condition, Figure, rows_of, to_markdown
from downstream_weather import STRENGTHS, WEATHERS, Floats, Pixels, invented_m, slope_m, standing_m, weathered

from moevision.api import load, restoration_task, segmentation_task
from moevision.checkpoint import file_sha256, find_weights
from moevision.datasets.segmentation import LabelledFolder
from moevision.imaging.picture import picture_from_array
from moevision.moe import Context
from moevision.tasks.restoration.baselines import dark_channel
from moevision.tasks.restoration.weathers import WEATHERS as RESTORED
from moevision.tasks.segmentation.labels import draw_overlay
from moevision.tasks.segmentation.metrics import confusion_of, scores_of
from moevision.tasks.segmentation.predict import SegmentationTask

SMALL_PX = 64  # pictures of at most so many rows are restored in batches
PLAIN, HARDENED = "clean-trained", "weather-trained"
AUTOMATIC, TOLD, TOLD_MIST, DARK = "automatic", "told", "told, haze too", "dark channel"
MISTY = ("rain", "snow")  # the air between what falls is not clear either
Judge = Callable[[Pixels, Any], list[int]]
Source = Callable[[list[Pixels], str], dict[str, list[Pixels]]]
"""(pictures, weather or "clean") -> what becomes of them, by how it is done."""


class Item(NamedTuple):
    """One picture; its number is its place in the whole set, and the seed of its weather."""

    number: int
    name: str
    clean_HWC: Pixels
    distance_m_HW: Floats
    truth: Any


class Subject(NamedTuple):
    """What is measured: `figure` of the judges' counts, summed over pictures; so many pictures at once."""

    name: str
    measure: str
    items: list[Item]
    judges: dict[str, Judge]
    figure: Figure
    at_once: int


class Restorer:
    """One set of weights, automatic and told."""

    def __init__(self, model: str) -> None:
        self.descriptor = load(model)
        self.task = restoration_task(model=self.descriptor)

    def __call__(self, pictures: list[Pixels], weather: str) -> dict[str, list[Pixels]]:
        """As of Source."""
        found = {AUTOMATIC: self.restore(pictures)}
        if weather != CLEAN[0]:
            found[TOLD] = self.restore(pictures, (weather,))
        if weather in MISTY:
            found[TOLD_MIST] = self.restore(pictures, (weather, "haze"))
        return found

    def restore(self, pictures: list[Pixels], weather: tuple[str, ...] | None = None) -> list[Pixels]:
        """Of weather by name, or what is detected."""
        if max(len(picture_HWC) for picture_HWC in pictures) <= SMALL_PX:
            return self._at_once(pictures, weather)
        task = self.task if weather is None else restoration_task(model=self.descriptor, weather=weather)
        return [np.asarray(task((picture_from_array(p),)).picture.pixels_HWC, np.uint8) for p in pictures]

    @torch.inference_mode()
    def _at_once(self, pictures: list[Pixels], weather: tuple[str, ...] | None) -> list[Pixels]:
        x_BCHW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(self.task.device).float() / 255
        told = None if weather is None else torch.tensor([[float(name in weather) for name in RESTORED]]).to(x_BCHW)
        restored_BCHW = self.task.model(x_BCHW, Context(), told).restored_BCHW.float().clamp(0, 1)
        return list((restored_BCHW * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())


def as_it_is(pictures: list[Pixels], weather: str) -> dict[str, list[Pixels]]:
    """As of Source."""
    return {DEGRADED: pictures}


def by_prior(pictures: list[Pixels], weather: str) -> dict[str, list[Pixels]]:
    """As of Source; it is for haze."""
    return {DARK: [dark_channel(picture_HWC) for picture_HWC in pictures]} if weather == "haze" else {}


def segmentation(options: argparse.Namespace) -> Subject:
    """CamVid's validation pictures."""
    folder = LabelledFolder(options.data / "segmentation" / "camvid" / "val")
    tasks = {PLAIN: segmentation_task(model=options.segmenter)}
    if options.weather_segmenter:
        tasks[HARDENED] = segmentation_task(model=options.weather_segmenter)
    for task in tasks.values():
        if task.classes != folder.classes.names:
            raise SystemExit(f"{task.descriptor.name}: knows other classes than {folder.root}")
    classes = len(folder.classes.names)

    def judge(task: SegmentationTask) -> Judge:
        return lambda p, truth: (
            confusion_of(task.segment(picture_from_array(p)).ids_HW, truth, classes).ravel().tolist()
        )

    def miou(counts_V: np.ndarray) -> float:
        return scores_of(counts_V.reshape(classes, classes), folder.classes.names)["miou"]

    items = []
    for i in range(0, len(folder), options.every):
        found = folder[i]
        if options.distance == "standing":
            distance_m_HW = standing_m(found.label_HW, folder.classes.names)
        else:
            distance_m_HW = invented_m(found.image_HWC, i)
        items.append(Item(i, found.name, found.image_HWC, distance_m_HW, found.label_HW))
    return Subject("segmentation", "mIoU", items, {name: judge(task) for name, task in tasks.items()}, miou, 8)


def classification(options: argparse.Namespace) -> Subject:
    """The test pictures of the CIFAR-10 subset."""
    folder = options.data / "classification" / "cifar10_subset"
    net = classifier_in(options.out, folder)

    @torch.inference_mode()
    def judge(image_HWC: Pixels, truth: int) -> list[int]:
        return [int(net(torch.from_numpy(image_HWC).permute(2, 0, 1)[None].float() / 255).argmax() == truth), 1]

    pictures_NHWC, labels_N = read_cifar(folder / "test.npz")
    distance_m_HW = slope_m(*pictures_NHWC.shape[1:3])
    items = [
        Item(i, str(i), pictures_NHWC[i], distance_m_HW, int(labels_N[i]))
        for i in range(0, len(labels_N), options.every)
    ]
    return Subject("classification", "accuracy", items, {PLAIN: judge}, lambda hits_2: hits_2[0] / hits_2[1], 100)


def name_of(model: str) -> str:
    """A file's, or of the run folder where the file is called as all are."""
    path = Path(model)
    return path.resolve().parent.name if path.stem == "model" else path.stem


def sha_of(model: str | Path) -> str:
    """Says whether a piece is of these weights."""
    return file_sha256(find_weights(model)[0])[:16]


def weights_of(subject: Subject, options: argparse.Namespace) -> dict[str, str]:
    """Checksum by judge and source."""
    judges = {PLAIN: options.segmenter, HARDENED: options.weather_segmenter}
    if subject.name == "classification":
        judges = {PLAIN: options.out / CLASSIFIER}
    judged = {name: sha_of(judges[name]) for name in subject.judges}
    return {**judged, **{name_of(model): sha_of(model) for model in options.restorer}}


def read_piece(path: Path, weights: dict[str, str]) -> dict[str, Any]:
    """Counts by picture, of those that were judged. SystemExit: a file that other weights made."""
    piece = json.loads(path.read_text()) if path.exists() else {"weights": {}, "pictures": {}, "seconds": []}
    if any(weights.get(name, sha) != sha for name, sha in piece["weights"].items()):
        raise SystemExit(f"{path}: made with other weights; choose another --out")
    return piece


def seen(item: Item, condition: Condition) -> Pixels:
    """A picture in its weather."""
    if condition == CLEAN:
        return item.clean_HWC
    return weathered(item.clean_HWC, *condition, item.number, item.distance_m_HW)


def judged_by(subject: Subject, how: str) -> list[str]:
    """The second judge's question is whether its training makes restoration needless: two rows answer it."""
    return [name for name in subject.judges if name == PLAIN or how in (DEGRADED, AUTOMATIC)]


def fill(path: Path, subject: Subject, source: Source, condition: Condition, weights: dict[str, str]) -> None:
    """Add what a piece lacks of the subject's pictures; written after every few of them."""
    piece = read_piece(path, weights)
    done, judges = piece["pictures"], set(subject.judges)
    missing = [item for item in subject.items if not judges <= set(done.get(item.name, {"judges": ()})["judges"])]
    for first in range(0, len(missing), subject.at_once):
        items = missing[first : first + subject.at_once]
        degraded = [seen(item, condition) for item in items]
        begun = time.perf_counter()
        results = source(degraded, condition[0])
        piece["seconds"].append(round((time.perf_counter() - begun) / len(items), 4))
        for i, item in enumerate(items):
            counts = {
                f"{judge}/{how}": subject.judges[judge](pictures[i], item.truth)
                for how, pictures in results.items()
                for judge in judged_by(subject, how)
            }
            done[item.name] = {"judges": sorted(judges), "crc": zlib.crc32(degraded[i].tobytes()), "counts": counts}
        piece["weights"] |= weights
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(piece))
        scratch.replace(path)


def path_of(subject: Subject, source: str, condition: Condition, out: Path) -> Path:
    """Of a piece."""
    words = [subject.name, source.replace(" ", "-"), *(word for word in condition if word != "-")]
    return out / "pieces" / f"{'-'.join(words)}.json"


def measure(subject: Subject, sources: dict[str, Source], options: argparse.Namespace) -> None:
    """All pieces that are asked for, those without a restorer first."""
    weights = weights_of(subject, options)
    used = {name: {key: weights[key] for key in (*subject.judges, name) if key in weights} for name in sources}
    for name, condition in product(sources, CONDITIONS):
        asked = condition == CLEAN or (condition[0] in options.weather and condition[1] in options.strength)
        if not asked or (name == DARK and condition[0] != "haze"):
            continue
        begun = time.perf_counter()
        fill(path_of(subject, name, condition, options.out), subject, sources[name], condition, used[name])
        print(subject.name, name, *condition, f"{time.perf_counter() - begun:.1f} s", flush=True)


def collect(subject: Subject, sources: dict[str, Source], out: Path) -> dict[Condition, dict[str, np.ndarray]]:
    """Counts (N, V) of the subject's pictures by condition and row; pieces that lack a picture are left out."""
    found: dict[Condition, dict[str, np.ndarray]] = {}
    names = [item.name for item in subject.items]
    for condition, source in product(CONDITIONS, sources):
        path = path_of(subject, source, condition, out)
        done = json.loads(path.read_text())["pictures"] if path.exists() else {}
        if not all(name in done for name in names):
            continue
        expected = [zlib.crc32(seen(item, condition).tobytes()) for item in subject.items[:3]]
        if [done[name]["crc"] for name in names[:3]] != expected:
            raise SystemExit(f"{path}: of other weather than downstream_weather.py makes; choose another --out")
        for key in done[names[0]]["counts"]:
            if all(key in done[name]["counts"] for name in names):
                judge, how = key.split("/")
                label = how if how in (DEGRADED, DARK) else f"{source}, {how}"
                label = label if judge == PLAIN else f"{judge}: {label}"
                found.setdefault(condition, {})[label] = np.array([done[name]["counts"][key] for name in names])
    return found


def report(subject: Subject, sources: dict[str, Source], options: argparse.Namespace) -> None:
    """Tables of what is there."""
    first = f"{name_of(options.restorer[0])}, {AUTOMATIC}"
    rows = rows_of(collect(subject, sources, options.out), subject.figure, first)
    result = {
        "n": len(subject.items),
        "measure": subject.measure,
        "weights": weights_of(subject, options),
        "rows": rows,
    }
    (options.out / f"{subject.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    table = to_markdown(rows, f"{len(subject.items)} pictures", subject.measure, first)
    (options.out / f"{subject.name}.md").write_text(table)
    print(table)


def draw_pictures(subject: Subject, restorer: Restorer, segmenter: str) -> Pixels:
    """For each weather of middle strength: degraded, restored, labels of both, truth; RGB."""
    task, item = segmentation_task(model=segmenter), subject.items[len(subject.items) // 3]
    palette = [*task.palette, *[(0, 0, 0)] * (256 - len(task.palette))]
    rows = []
    for weather in WEATHERS:
        shown = [seen(item, (weather, STRENGTHS[1]))]
        shown += restorer.restore(shown)
        labelled = [task.segment(picture_from_array(p)).overlay() for p in shown]
        rows.append(np.concatenate([*shown, *labelled, draw_overlay(item.clean_HWC, item.truth, palette)], 1))
    return np.concatenate(rows)


def require_determinism(item: Item) -> None:
    """SystemExit if a seed does not say all: the pieces of several runs would not fit together."""
    for condition in CONDITIONS:
        if not np.array_equal(seen(item, condition), seen(item, condition)):
            raise SystemExit(f"{' '.join(condition)}: not the same twice")


def options_of() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=("both", "segmentation", "classification"), default="both")
    parser.add_argument("--segmenter", default="segmentation-camvid")
    parser.add_argument("--weather-segmenter")
    parser.add_argument("--restorer", nargs="+", default=["restoration-small"], help="the first is compared with")
    parser.add_argument("--weather", nargs="+", choices=WEATHERS, default=WEATHERS)
    parser.add_argument("--strength", nargs="+", choices=STRENGTHS, default=STRENGTHS)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--distance", choices=("standing", "invented"), default="standing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def main() -> None:
    """Measure what is asked for and not yet there, then write the tables."""
    options = options_of()
    if len({name_of(model) for model in options.restorer}) < len(options.restorer):
        raise SystemExit("--restorer: two files of one name; rename one, its name is its row")
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    (options.out / "pieces").mkdir(parents=True, exist_ok=True)
    restorers = {name_of(model): Restorer(model) for model in options.restorer}
    sources: dict[str, Source] = {DEGRADED: as_it_is, DARK: by_prior, **restorers}
    for make in (segmentation, classification):
        if options.part not in ("both", make.__name__):
            continue
        subject = make(options)
        require_determinism(subject.items[0])
        measure(subject, sources, options)
        report(subject, sources, options)
        if make is segmentation:
            shown_HWC = draw_pictures(subject, next(iter(restorers.values())), options.segmenter)
            cv2.imwrite(str(options.out / "pictures.png"), shown_HWC[..., ::-1])


if __name__ == "__main__":
    main()
