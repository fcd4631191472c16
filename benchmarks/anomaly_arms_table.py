"""The tables of `anomaly_arms.py`: the numbers of each arm, and what the reference has more or less than the others."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from anomaly_arms_measure import Record
from numpy.typing import NDArray

from moevision.tasks.anomaly.metrics import ClipScores, ScoringProtocol, frame_metrics, honest, published

REFERENCE, COPIED = "sparse", "copied frame"
RESAMPLES = 2000

Statistic = Callable[[Sequence[Record]], float]
"""The records of some clips, of `measure_clip`, to a number."""


def micro_auc(clips: Sequence[Record], score: str, protocol: ScoringProtocol) -> float:
    """Of one of the scores, 0 to 1."""
    scores = [ClipScores(c["name"], np.array(c[score]), np.array(c["labels"], np.uint8)) for c in clips]
    return frame_metrics(scores, protocol)["micro_auc"]


def psnr_db(clips: Sequence[Record], side: str) -> float:
    """In the "normal" or "abnormal" places of all clips together; NaN where there are none."""
    squares, pixels = np.sum([clip[side] for clip in clips], axis=0)
    return float(10 * np.log10(255**2 * pixels / squares)) if pixels else math.nan


def psnr_gap_db(clips: Sequence[Record]) -> float:
    """How much better normal places are predicted than abnormal ones."""
    return psnr_db(clips, "normal") - psnr_db(clips, "abnormal")


STATISTICS: dict[str, Statistic] = {
    "p0_box": partial(micro_auc, score="box_max", protocol=honest),
    "p1_box": partial(micro_auc, score="box_max", protocol=published),
    "p0_mean": partial(micro_auc, score="frame_mean", protocol=honest),
    "p1_mean": partial(micro_auc, score="frame_mean", protocol=published),
    "psnr_normal": partial(psnr_db, side="normal"),
    "psnr_abnormal": partial(psnr_db, side="abnormal"),
    "psnr_gap": psnr_gap_db,
}
COMPARED = ("p0_box", "p1_box", "psnr_gap", "psnr_normal")
TITLES = {
    "psnr": "validation PSNR",
    "fast_auc": "fast AUC",
    "p0_box": "P0 box",
    "p1_box": "P1 box",
    "p0_mean": "P0 frame mean",
    "p1_mean": "P1 frame mean",
    "psnr_normal": "PSNR normal",
    "psnr_abnormal": "PSNR abnormal",
    "psnr_gap": "PSNR gap",
}


def numbers_of(record: Record) -> dict[str, float]:
    """The numbers of one model by their names in TITLES."""
    numbers = {**record["validation"], **{name: of(record["clips"]) for name, of in STATISTICS.items()}}
    return {name: round(value, 4) for name, value in numbers.items()}


def compare(records: dict[str, list[Record]]) -> dict[str, dict[str, Record]]:
    """The reference minus every other arm, by statistic: mean over seeds, 95 % interval, single seeds, verdict."""
    count = len(records[REFERENCE][0]["clips"])
    draws_RN = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    # The order of a draw does not matter, and few clips make few different draws.
    different_UN, which_R = np.unique(np.sort(draws_RN, axis=1), axis=0, return_inverse=True)
    draws = [np.arange(count), *different_UN]

    def values_SV(arm: str, of: Statistic) -> NDArray[np.float64]:
        """Of all clips, then of every draw."""
        return np.array([[of([r["clips"][n] for n in draw]) for draw in draws] for r in records[arm]])

    report: dict[str, dict[str, Record]] = {arm: {} for arm in records if arm != REFERENCE}
    for name in COMPARED:
        ours_SV = values_SV(REFERENCE, STATISTICS[name])
        for arm, row in report.items():
            gain_SV = ours_SV - values_SV(arm, STATISTICS[name])  # the copied frame has one record for all seeds
            drawn_R = gain_SV[:, 1:].mean(0)[which_R.ravel()]
            low, high = np.nanpercentile(drawn_R, (2.5, 97.5))  # NaN: draws of one class only
            row[name] = _difference(gain_SV[:, 0], float(low), float(high))
    return report


def _difference(by_seed_S: NDArray[np.float64], low: float, high: float) -> Record:
    one_sign = bool((by_seed_S > 0).all() or (by_seed_S < 0).all())
    seen = one_sign and (low > 0 or high < 0)
    return {
        "mean": round(float(by_seed_S.mean()), 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "by_seed": by_seed_S.round(4).tolist(),
        "verdict": ("better" if low > 0 else "worse") if seen else "no difference seen",
    }


def report_of(records: dict[str, list[Record]]) -> Record:
    """What `arms.json` holds."""
    arms: dict[str, Record] = {}
    for arm, rows in records.items():
        numbers = [numbers_of(row) for row in rows]
        arms[arm] = {
            "parameters": rows[0].get("parameters", 0),
            "filter_macs": rows[0].get("filter_macs", {"chosen": 0, "run": 0}),
            "seconds": [row.get("seconds") for row in rows],
            "numbers": {name: [one[name] for one in numbers] for name in TITLES if name in numbers[0]},
            "experts": [row.get("experts", {}) for row in rows],
        }
    return {"settings": records[REFERENCE][0]["settings"], "arms": arms, "sparse_minus": compare(records)}


def to_markdown(report: Record) -> str:
    """Three tables: the arms, their experts, and the differences. AUC in percent, PSNR in dB."""
    names = list(TITLES)
    lines = [
        f"Settings: {report['settings']}. AUC in percent, PSNR in dB; mean (single seeds).",
        "",
        *_row("arm", "parameters", "multiply-adds chosen / run", *TITLES.values()),
        "|---" * (3 + len(names)) + "|",
    ]
    for arm, part in report["arms"].items():
        cells = [_seeds(part["numbers"][name], name) if name in part["numbers"] else "" for name in names]
        macs = f"{part['filter_macs']['chosen']:,} / {part['filter_macs']['run']:,}"
        lines += _row(arm, f"{part['parameters']:,}", macs, *cells)
    lines += ["", *_row("arm", "experts never chosen, of all layers", "entropy", "CKA", "CKA fresh"), "|---" * 5 + "|"]
    for arm, part in report["arms"].items():
        if any(part["experts"]):
            layers = [list(one.values()) for one in part["experts"]]
            dead = ", ".join(str(sum(layer["dead"] for layer in one)) for one in layers)
            means = [
                _seeds([float(np.mean([layer[key] for layer in one])) for one in layers], key)
                for key in ("entropy", "cka", "fresh_cka")
            ]
            lines += _row(arm, dead, *means)
    lines += [
        "",
        f"{REFERENCE} minus:",
        "",
        *_row("arm", "of", "difference", "95 % interval", "single seeds", REFERENCE),
    ]
    lines += ["|---" * 6 + "|"]
    for arm, part in report["sparse_minus"].items():
        for name, row in part.items():
            low, high = (_shown(value, name, "+") for value in row["interval_95"])
            seeds = ", ".join(_shown(value, name, "+") for value in row["by_seed"])
            lines += _row(
                arm, TITLES[name], _shown(row["mean"], name, "+"), f"{low} to {high}", seeds, row["verdict"]
            )  # fmt: skip
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


def _shown(value: float, name: str, sign: str = "") -> str:
    percent = name == "fast_auc" or name.startswith(("p0_", "p1_"))
    return f"{100 * value if percent else value:{sign}.2f}"


def _seeds(values: Sequence[float], name: str) -> str:
    shown = [_shown(value, name) for value in values]
    return shown[0] if len(shown) == 1 else f"{_shown(float(np.mean(values)), name)} ({', '.join(shown)})"
