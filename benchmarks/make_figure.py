"""The README's picture: example inputs beside their restored versions.

moevision restore app/examples -o restored/ && python benchmarks/make_figure.py restored/ docs/restore.jpg
"""

import sys
from pathlib import Path

import cv2
import numpy as np

NAMES = ("haze-mountain.jpg", "haze-hills.jpg", "rain-stream.jpg", "snow-path.webp")
SIZE = (400, 267)
EXAMPLES = Path(__file__).parent.parent / "app" / "examples"


def main() -> None:
    """Two rows: before, after."""
    restored, output = Path(sys.argv[1]), Path(sys.argv[2])
    rows = []
    for folder, label in ((EXAMPLES, "before"), (restored, "after")):
        cells = [cv2.resize(cv2.imread(str(folder / name)), SIZE, interpolation=cv2.INTER_AREA) for name in NAMES]
        row = np.concatenate(cells, axis=1)
        cv2.putText(row, label, (10, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 4, cv2.LINE_AA)
        cv2.putText(row, label, (10, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)
        rows.append(row)
    output.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(output), np.concatenate(rows, axis=0), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
