"""Time from decoding a frame to its boxes, and memory over a long stream.

    python benchmarks/anomaly_speed.py anomaly-ped2 --video CLIP.mp4 --frames 10000 --json FILE
    python benchmarks/anomaly_speed.py anomaly-ped2 --video CLIP.mp4 --camera-fps 25 --json FILE

The clip is played again and again, as one stream of rising times. Every frame is analysed, or, with --camera-fps, those
that `detect` analyses of a camera of so many frames a second: at most ANALYSED_FPS of them. Milliseconds are of frames
that were scored; "times real time" is the stream's time by that of all its work. Memory is the process's resident size
after the first and after the last thousand frames.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from moevision.api import anomaly_detector
from moevision.imaging.sources import open_source
from moevision.imaging.video import Frame
from moevision.tasks.anomaly.fit import ANALYSED_FPS

SETTLED = 1000  # frames


def again_and_again(path: Path, frames: int, fps: float | None) -> Iterator[Frame]:
    """So many frames of a clip that begins anew when it ends, at its own rate or at `fps`."""
    count, start_s = 0, 0.0
    while True:
        with open_source(str(path)) as source:
            step_s = 1 / (fps or source.fps or 25)
            for number, frame in enumerate(source):
                if count == frames:
                    return
                last_s = start_s + (number * step_s if fps else frame.time_s)
                yield Frame(frame.pixels_HWC, last_s)
                count += 1
        start_s = last_s + step_s


def resident_mb() -> float:
    """Of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not tell the memory of a process")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--camera-fps", type=float)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    detector, _ = anomaly_detector(model=arguments.model)
    detector.analyser.fps = min(ANALYSED_FPS, arguments.camera_fps) if arguments.camera_fps else None
    seconds, memory = [], {}
    began = clock = time.perf_counter()
    for number, frame in enumerate(again_and_again(arguments.video, arguments.frames, arguments.camera_fps)):
        score = detector.push(frame)
        now = time.perf_counter()
        if score is not None and score.streams:
            seconds.append(now - clock)
        clock = now
        if number in (min(SETTLED, arguments.frames // 2), arguments.frames - 1):
            memory[number] = resident_mb()
    all_s = clock - began
    first, last = memory.values()
    height, width = frame.pixels_HWC.shape[:2]
    result = {
        "frame": f"{width}x{height}",
        "threads": torch.get_num_threads(),
        "frames": arguments.frames,
        "frames_scored": len(seconds),
        "times_real_time": round(frame.time_s / all_s, 2),
        "ms_p50": round(1e3 * float(np.median(seconds)), 1),
        "ms_p95": round(1e3 * float(np.quantile(seconds, 0.95)), 1),
        "frames_per_second_p50": round(1 / float(np.median(seconds)), 1),
        "memory_mb": {str(k): round(v, 1) for k, v in memory.items()},
        "memory_growth": round(last / first - 1, 4),
    }
    print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
