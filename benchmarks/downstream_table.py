"""The tables of `downstream.py`: figures of summed counts, gains and shares, with a paired bootstrap over pictures."""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from downstream_weather import STRENGTHS, WEATHERS

RESAMPLES, SEED = 2000, 0
CLEAN = ("clean", "-")
CONDITIONS = [CLEAN, *product(WEATHERS, STRENGTHS)]
DEGRADED = "degraded"

Condition = tuple[str, str]
Figure = Callable[[np.ndarray], float]
"""(V,) counts, summed over pictures -> what they amount to, a fraction."""


class Value(NamedTuple):
    """A figure, and the same of every draw of the bootstrap."""

    point: float
    draws_R: np.ndarray

    def interval(self) -> list[float]:
        """95 %."""
        return [round(float(q), 4) for q in np.nanpercentile(self.draws_R, (2.5, 97.5))]


def values_of(counts: dict[str, np.ndarray], figure: Figure) -> dict[str, Value]:
    """Figures with their bootstrap; the same draws for all."""
    count = len(next(iter(counts.values())))
    times_RN = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return {
        label: Value(figure(counts_NV.sum(0)), np.array([figure(v) for v in times_RN @ counts_NV]))
        for label, counts_NV in counts.items()
    }


def mean_of(values: list[Value]) -> Value:
    """Over conditions."""
    return Value(float(np.mean([v.point for v in values])), np.mean([v.draws_R for v in values], 0))


def share_of(value: Value, degraded: Value, clean: Value) -> Value | None:
    """Of what the weather takes, how much is made good; None where it takes nothing that can be told."""
    gap = Value(clean.point - degraded.point, clean.draws_R - degraded.draws_R)
    if gap.interval()[0] <= 0:
        return None
    return Value((value.point - degraded.point) / gap.point, (value.draws_R - degraded.draws_R) / gap.draws_R)


def row_of(value: Value, degraded: Value, share: Value | None) -> dict[str, Any]:
    """Figure, gain and share with their intervals."""
    row = {"value": round(value.point, 4), "value_95": value.interval()}
    if value is degraded:
        return row
    gain = Value(value.point - degraded.point, value.draws_R - degraded.draws_R)
    row |= {"gain": round(gain.point, 4), "gain_95": gain.interval()}
    if share is not None:
        row |= {"share": round(share.point, 4), "share_95": share.interval()}
    return row


def rows_of(found: dict[Condition, dict[str, np.ndarray]], figure: Figure, first: str) -> list[dict[str, Any]]:
    """All that is there, and means over weathers where all are; `first` is what others are compared with there."""
    values = {condition: values_of(counts, figure) for condition, counts in found.items()}
    clean = values[CLEAN][DEGRADED]
    rows = []
    for (weather, strength), here in values.items():
        for label, value in here.items() if DEGRADED in here else ():
            row = {"weather": weather, "strength": strength, "row": label}
            rows.append(row | row_of(value, here[DEGRADED], share_of(value, here[DEGRADED], clean)))
    for strength in STRENGTHS:
        rows += _mean_rows("all four", strength, [values.get((w, strength), {}) for w in WEATHERS], clean, first)
    everything = [values.get(condition, {}) for condition in CONDITIONS if condition != CLEAN]
    return rows + _mean_rows("all twelve", "-", everything, clean, first)


def _mean_rows(
    weather: str, strength: str, conditions: list[dict[str, Value]], clean: Value, first: str
) -> list[dict[str, Any]]:
    """Means of figures, gains and shares, of the rows that all of the conditions have."""
    labels = [label for label in conditions[0] if all(label in here for here in conditions)]
    if DEGRADED not in labels:
        return []
    means = {label: mean_of([here[label] for here in conditions]) for label in labels}
    rows = []
    for label, mean in means.items():
        shares = [share_of(here[label], here[DEGRADED], clean) for here in conditions]
        known = [share for share in shares if share is not None]
        share = mean_of(known) if len(known) == len(shares) else None
        row = {"weather": weather, "strength": strength, "row": label, **row_of(mean, means[DEGRADED], share)}
        if first in means and label not in (first, DEGRADED):
            less = Value(mean.point - means[first].point, mean.draws_R - means[first].draws_R)
            row |= {"less_first": round(less.point, 4), "less_first_95": less.interval()}
        rows.append(row)
    return rows


def to_markdown(rows: list[dict[str, Any]], pictures: str, measure: str, first: str) -> str:
    """One line a row, percent."""

    def cell(row: dict[str, Any], key: str, sign: str = "", digits: int = 1) -> str:
        if key not in row:
            return ""
        low, high = (f"{100 * v:{sign}.{digits}f}" for v in row[f"{key}_95"])
        return f"{100 * row[key]:{sign}.{digits}f} ({low} to {high})"

    lines = [
        f"{pictures}, {measure} in %, in brackets 95 %.",
        "",
        f"| weather | strength | seen | {measure} | gain | share of the loss made good | less {first} |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [cell(row, "value"), cell(row, "gain", "+"), cell(row, "share", "", 0), cell(row, "less_first", "+")]
        name = row["row"].replace(DEGRADED, "as it is") if row["weather"] == CLEAN[0] else row["row"]
        lines.append(f"| {row['weather']} | {row['strength']} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
