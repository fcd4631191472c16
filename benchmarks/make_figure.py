"""The README's pictures.

    moevision restore app/examples -o restored/ && python benchmarks/make_figure.py restore restored/ docs/restore.jpg
    python benchmarks/make_figure.py row docs/fuse.jpg infrared=a.png visible=b.png fused=c.png

`restore`: example inputs above their restored versions. `row`: any pictures beside each other, with their names.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

NAMES = ("haze-mountain.jpg", "haze-hills.jpg", "rain-stream.jpg", "snow-path.webp")
SIZE = (400, 267)
EXAMPLES = Path(__file__).parent.parent / "app" / "examples"


def restore(restored: Path) -> np.ndarray:
    """Two rows: before, after."""
    rows = []
    for folder, label in ((EXAMPLES, "before"), (restored, "after")):
        cells = [cv2.resize(cv2.imread(str(folder / name)), SIZE, interpolation=cv2.INTER_AREA) for name in NAMES]
        rows.append(labelled(np.concatenate(cells, axis=1), label))
    return np.concatenate(rows, axis=0)


def row(cells: list[str]) -> np.ndarray:
    """Pictures named LABEL=PATH beside each other, at the height of the first."""
    named = [cell.split("=", 1) for cell in cells]
    pictures = [cv2.imread(path) for _, path in named]
    height = pictures[0].shape[0]
    sized = [cv2.resize(p, (round(p.shape[1] * height / p.shape[0]), height)) for p in pictures]
    return np.concatenate([labelled(p, label) for p, (label, _) in zip(sized, named, strict=True)], axis=1)


def labelled(picture: np.ndarray, label: str) -> np.ndarray:
    """With its name in the corner."""
    for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 2)):
        cv2.putText(picture, label, (10, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, colour, thickness, cv2.LINE_AA)
    return picture


def main() -> None:
    """Command line."""
    if sys.argv[1] == "restore":
        picture, output = restore(Path(sys.argv[2])), Path(sys.argv[3])
    else:
        picture, output = row(sys.argv[3:]), Path(sys.argv[2])
    output.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(output), picture, [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
