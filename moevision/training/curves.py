"""Training curves as a picture: losses and validation numbers over steps."""

import csv
from pathlib import Path

_WIDE = 20.0
_LEGEND_ROWS = 6


def draw_curves(run: Path) -> Path | None:
    """Write `run/curves.png` from log.csv and validation.csv; None where matplotlib (extra `train`) is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("log", "validation"), strict=True):
        columns = _columns(run / f"{name}.csv")
        steps = columns.pop("step", [])
        for label in ("lr", "s_per_step", "grad_norm", "dead_experts"):
            columns.pop(label, None)
        for label, values in columns.items():
            axis.plot(steps, values, label=label)
        axis.set(xlabel="step", title={"log": "loss terms", "validation": "validation"}[name])
        values = [abs(value) for column in columns.values() for value in column if value]
        # Measures of unlike size, such as the ten of fusion, are read only on a logarithmic axis.
        axis.set_yscale("log" if values and max(values) > _WIDE * min(values) else "linear")
        if columns:
            axis.legend(fontsize=8, ncols=-(-len(columns) // _LEGEND_ROWS))
        axis.grid(alpha=0.3)
    path = run / "curves.png"
    figure.savefig(path, dpi=110)
    return path


def _columns(path: Path) -> dict[str, list[float]]:
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}
