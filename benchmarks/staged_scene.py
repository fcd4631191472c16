"""A staged scene for the documentation: drawn people on a photograph of a meadow, seen by two cameras.

    python benchmarks/staged_scene.py PHOTOGRAPH -o DIR

Writes `normal.mp4` (people walk), `odd.mp4` (a cyclist comes by), and the pair `infrared.png` and `visible.png`, the
second as at dusk. The data sets that the figures are measured on may not be shown; this is drawn, and says nothing of
quality. PHOTOGRAPH must be one that may be shown: the docs use "aitzgorri" by Aitzol Berasategi (CC BY 4.0), as the
examples do (app/examples/CREDITS.txt).
"""

import argparse
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from moevision.imaging.video import VideoWriter

WIDTH, HEIGHT = 480, 320
FPS = 10
NORMAL_S, ODD_S = 60, 16
HORIZON, EDGE_RIGHT = 0.60, 0.76  # of the height: where the meadow ends at the left and at the right
_NOISE = 1.5  # grey levels


@dataclass
class Walker:
    """Somebody who crosses the picture at the height of their feet."""

    x: float
    feet_y: float
    speed_px: float
    colour: tuple[int, int, int]
    phase: float

    @property
    def size(self) -> float:
        """Height in px: nearer is larger."""
        return 24 + 90 * (self.feet_y / HEIGHT - HORIZON)

    def step(self) -> None:
        """One frame on."""
        self.x += self.speed_px
        self.phase += abs(self.speed_px) * 7.5 / self.size

    def draw(self, image: np.ndarray, colour: tuple[int, int, int]) -> None:
        """On a picture, in any colour (an infrared camera sees another)."""
        s, x, y = self.size, self.x, self.feet_y
        thick = max(1, round(s / 11))
        hip, neck = (x, y - 0.48 * s), (x, y - 0.82 * s)
        for side in (0, np.pi):
            swing = 0.2 * s * np.sin(self.phase + side)
            _line(image, hip, (x + swing, y), colour, thick)
            _line(image, (x, y - 0.76 * s), (x - 0.8 * swing, y - 0.45 * s), colour, max(1, thick - 1))
        _line(image, hip, neck, colour, round(thick * 2.2))
        cv2.circle(image, _point((x, y - 0.91 * s)), round(0.085 * s), colour, -1, cv2.LINE_AA)


@dataclass
class Cyclist(Walker):
    """Somebody who comes by on a bicycle."""

    def draw(self, image: np.ndarray, colour: tuple[int, int, int]) -> None:
        """On a picture, in any colour."""
        s, x, y = self.size, self.x, self.feet_y
        radius = 0.24 * s
        for side in (-1, 1):
            cv2.circle(image, _point((x + side * 0.36 * s, y - radius)), round(radius), colour, 1, cv2.LINE_AA)
        saddle, pedals, bar = (x - 0.16 * s, y - 0.56 * s), (x, y - radius), (x + 0.28 * s, y - 0.62 * s)
        for a, b in ((saddle, pedals), (pedals, bar), (saddle, bar), (bar, (x + 0.36 * s, y - radius))):
            _line(image, a, b, colour, 1)
        for side in (0, np.pi):
            foot = (x + 0.09 * s * np.cos(self.phase + side), y - radius + 0.09 * s * np.sin(self.phase + side))
            _line(image, saddle, foot, colour, max(2, round(s / 12)))
        shoulder = (x + 0.1 * s, y - 0.98 * s)
        _line(image, saddle, shoulder, colour, max(3, round(s / 6)))
        _line(image, shoulder, bar, colour, max(1, round(s / 16)))
        cv2.circle(image, _point((x + 0.16 * s, y - 1.09 * s)), round(0.085 * s), colour, -1, cv2.LINE_AA)


def _point(p: tuple[float, float]) -> tuple[int, int]:
    return round(p[0]), round(p[1])


def _line(image: np.ndarray, a: tuple[float, float], b: tuple[float, float], colour: tuple, thick: int) -> None:
    shift = 4  # sixteenths of a pixel, or slow walkers would jump
    p, q = (tuple(round(v * 2**shift) for v in point) for point in (a, b))
    cv2.line(image, p, q, colour, thick, cv2.LINE_AA, shift)


def walker(rng: np.random.Generator, anywhere: bool) -> Walker:
    """Somebody new, at an edge or anywhere."""
    direction = rng.choice([-1, 1])
    feet_y = HEIGHT * rng.uniform(EDGE_RIGHT, 0.97)
    speed = direction * rng.uniform(0.8, 1.3) * (0.5 + 1.2 * (feet_y / HEIGHT - HORIZON))
    x = rng.uniform(0, WIDTH) if anywhere else (-20.0 if direction > 0 else WIDTH + 20.0)
    grey = int(rng.integers(20, 80))
    tint = rng.integers(-12, 13, 3)
    colour = tuple(int(np.clip(grey + t, 0, 255)) for t in tint)
    return Walker(x, feet_y, speed, colour, rng.uniform(0, 6))


def film(background: np.ndarray, path: Path, seconds: float, seed: int, cyclist_at_s: float | None) -> None:
    """One clip."""
    rng = np.random.default_rng(seed)
    people = [walker(rng, True) for _ in range(5)]
    with VideoWriter(path, Fraction(FPS)) as writer:
        for number in range(round(seconds * FPS)):
            if cyclist_at_s is not None and number == round(cyclist_at_s * FPS):
                people.append(Cyclist(-25.0, 0.86 * HEIGHT, 3.2, (45, 40, 60), 0.0))
            people = [p for p in people if -40 < p.x < WIDTH + 40]
            if len(people) < 5 and rng.random() < 0.15:
                people.append(walker(rng, False))
            frame = background.copy()
            for person in sorted(people, key=lambda p: p.feet_y):
                person.step()
                person.draw(frame, person.colour)
            noisy = frame + rng.normal(0, _NOISE, (HEIGHT, WIDTH, 1))
            writer.write(np.clip(noisy, 0, 255).astype(np.uint8))


def pair(background: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Infrared and visible picture at dusk: warm people before cool grass."""
    rng = np.random.default_rng(seed)
    people = [walker(rng, True) for _ in range(6)]
    night = 0.6 * (background / 255.0) ** 1.5 * 255
    luma = cv2.GaussianBlur(cv2.cvtColor(background, cv2.COLOR_RGB2GRAY), (0, 0), 2.0).astype(np.float32)
    thermal = 34 + 0.12 * luma
    beyond = np.zeros(luma.shape, np.uint8)  # trees and sky are cooler than the meadow, whose edge runs aslant
    corners = [(0, 0), (WIDTH, 0), (WIDTH, round(EDGE_RIGHT * HEIGHT)), (0, round(HORIZON * HEIGHT))]
    cv2.fillPoly(beyond, [np.array(corners)], 1)
    thermal *= 1 - 0.5 * cv2.GaussianBlur(beyond.astype(np.float32), (0, 0), 1.5)
    visible, infrared = night.copy(), np.repeat(thermal[..., None], 3, 2)
    for person in sorted(people, key=lambda p: p.feet_y):
        person.draw(visible, tuple(int(0.25 * c) for c in person.colour))
        person.draw(infrared, (225, 225, 225))
    infrared = cv2.GaussianBlur(infrared, (0, 0), 1.0) + rng.normal(0, 3, (HEIGHT, WIDTH, 1))
    visible = visible + rng.normal(0, 3, visible.shape)
    return tuple(np.clip(x, 0, 255).astype(np.uint8) for x in (infrared, visible))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    picture = cv2.cvtColor(cv2.imread(str(arguments.photograph)), cv2.COLOR_BGR2RGB)
    background = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    film(background, arguments.output / "normal.mp4", NORMAL_S, 0, None)
    film(background, arguments.output / "odd.mp4", ODD_S, 1, ODD_S / 3)
    for name, image in zip(("infrared", "visible"), pair(background, 2), strict=True):
        cv2.imwrite(str(arguments.output / f"{name}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
