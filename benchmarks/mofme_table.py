"""Parameters and multiply-accumulates of the MoFME network at paper size, per kind and number of experts.

    python benchmarks/mofme_table.py --json FILE --markdown FILE

Nothing is computed: tensors live on the meta device, so E = 128 costs no memory. Expected values are those of the
public MoFME code, counted at 240x240 with D = 384, depth 2, k = 4 (its conventional MoE computes every expert on every
token). `released_params_m` adds the LayerNorm that the public code gives each expert; the linear form's parameters are
counted with the gated "star" stem, its multiply-accumulates both with and without (the expected values are without).
For the constant form, which nobody published code of, the expected value is the saving over the conventional MoE.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from moevision.tasks.restoration.bench import count_macs
from moevision.tasks.restoration.mofme import MoFMEConfig, MoFMENet, released_extra_parameters

SHAPE = (1, 3, 240, 240)
TOLERANCE = 0.005
FORMS: dict[str, dict[str, Any]] = {
    "conventional": {"experts": "ffn", "dense_compute": True},
    "linear+star": {"experts": "film-linear", "stem": "star"},
    "linear": {"experts": "film-linear"},
    "const": {"experts": "film"},
}
# (E: parameters in M, GMAC); for "linear" the parameters were counted with the star stem, the GMAC without.
EXPECTED_PARAMS = {
    "conventional": {4: 15.81, 8: 25.27, 16: 44.19, 32: 82.04, 64: 157.7, 128: 309.1},
    "linear+star": {4: 11.68, 8: 14.05, 16: 18.80, 32: 28.30, 64: 47.30, 128: 85.29},
    "const": {4: 8.72, 8: 8.73, 16: 8.75, 32: 8.78, 64: 8.86, 128: 9.00},
}
EXPECTED_GMACS = {
    "conventional": {4: 42.86, 8: 51.4, 16: 68.35, 32: 102.3, 64: 170.3, 128: 306.2},
    "linear": {4: 38.62, 8: 40.7, 16: 44.99, 32: 53.5, 64: 70.5, 128: 104.5},
}
EXPECTED_CONST_SAVING = {4: 0.15, 8: 0.29, 16: 0.466, 32: 0.64, 64: 0.79, 128: 0.88}


def measure(form: str, experts: int, scorer: str) -> dict[str, Any]:
    """One row: counts of ours, and how far they are from the expected ones (relative)."""
    config = MoFMEConfig(num_experts=experts, scorer=scorer, **FORMS[form])  # type: ignore[arg-type]
    params = count_parameters(config)
    released = params + released_extra_parameters(config)
    gmacs = count_macs(lambda: MoFMENet(config), SHAPE) / 1e9
    return {
        "form": form, "experts": experts, "params_m": round(params / 1e6, 4),
        "released_params_m": round(released / 1e6, 4), "gmacs": round(gmacs, 3),
        "params_error": _error(params / 1e6, EXPECTED_PARAMS.get(form, {}).get(experts)),
        "released_params_error": _error(released / 1e6, EXPECTED_PARAMS.get(form, {}).get(experts)),
        "gmacs_error": _error(gmacs, EXPECTED_GMACS.get(form, {}).get(experts)),
    }  # fmt: skip


def count_parameters(config: MoFMEConfig) -> int:
    """Parameters of the network a config describes."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in MoFMENet(config).parameters())


def table(scorer: str = "linear", experts: tuple[int, ...] = (4, 8, 16, 32, 64, 128)) -> dict[str, Any]:
    """All rows, the dense network, and the largest deviation from the expected values."""
    rows = [measure(form, number, scorer) for number in experts for form in FORMS]
    for row in rows:
        base = next(r for r in rows if r["form"] == "conventional" and r["experts"] == row["experts"])
        row["params_saving"] = round(1 - row["released_params_m"] / base["released_params_m"], 4)
        row["gmacs_saving"] = round(1 - row["gmacs"] / base["gmacs"], 4)
        if row["form"] == "const":
            row["gmacs_error"] = round(row["gmacs_saving"] - EXPECTED_CONST_SAVING[row["experts"]], 5)
    dense = MoFMEConfig(experts="dense")
    errors = [abs(row[key]) for row in rows for key in ("params_error", "gmacs_error") if row[key] is not None]
    return {
        "scorer": scorer,
        "dense": {
            "params_m": count_parameters(dense) / 1e6,
            "gmacs": round(count_macs(lambda: MoFMENet(dense), SHAPE) / 1e9, 3),
        },
        "rows": rows,
        "largest_error": max(errors),
        "within_tolerance": max(errors) <= TOLERANCE,
    }


def to_markdown(result: dict[str, Any]) -> str:
    """The table as Markdown; errors are in percent of the expected value (constant form, GMAC: in points of saving)."""
    lines = [
        f"Dense: {result['dense']['params_m']:.3f} M, {result['dense']['gmacs']:.2f} GMAC at 240x240.",
        "",
        "| E | form | params M | error | as released M | error | saving | GMAC | error | saving |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = (
            row["experts"], row["form"], f"{row['params_m']:.2f}", _percent(row["params_error"]),
            f"{row['released_params_m']:.2f}", _percent(row["released_params_error"]),
            _percent(row["params_saving"], 1), f"{row['gmacs']:.2f}", _percent(row["gmacs_error"]),
            _percent(row["gmacs_saving"], 1),
        )  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table; write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scorer", default="linear", choices=("linear", "exact"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    result = table(arguments.scorer)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(to_markdown(result))
    print(to_markdown(result))
    print(f"largest error {result['largest_error']:.2%}, within {TOLERANCE:.1%}: {result['within_tolerance']}")


def _error(ours: float, expected: float | None) -> float | None:
    return None if expected is None else round(ours / expected - 1, 5)


def _percent(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


if __name__ == "__main__":
    main()
