"""What `moevision bench kernels` shows: lines for the terminal, a Markdown table, a plot. Nothing is measured here."""

from collections import defaultdict
from pathlib import Path
from typing import Any

Result = dict[str, Any]
SHORT = {"forward": "forward", "forward_backward": "forward + backward"}


def lines(result: Result) -> dict[str, str]:
    """One line a case: which, and each variant's time over the dense FFN's, ours first."""
    shown = {}
    for case in result["cases"]:
        ratios = [f"{name} {_cell(case, name)}" for name in case["variants"] if name not in ("dense", "ours_fp32")]
        if "ratio_to_fp32" in case:
            ratios.append(f"fp32/bf16 {_number(case['ratio_to_fp32'])}")
        shown[f"{_kind(case)} {case['pass']} {case['dtype']} {_size(case)}:"] = "  ".join(ratios)
    return shown


def markdown(result: Result) -> str:
    """A table for every operator, pass and type, with the machine and what could not run."""
    machine, settings = result["machine"], result["settings"]
    rates = ", ".join(f"{name} {rate} GFLOP/s" for name, rate in machine["matmul_gflops"].items())
    text = [
        f"Time over one dense FFN on N * K rows (below 1 is faster), {settings['ratio_of'].removesuffix('_ms')} time, "
        f"{settings['threads']} thread(s), {machine['cpu']}, device {machine['device']}, torch {machine['torch']}; "
        f"matrix product {rates}, copy {machine['copy_gb_per_s']} GB/s.",
        "",
    ]
    reasons: dict[str, str] = {}
    for (kind, passes, dtype), cases in _tables(result).items():
        names = _variant_names(cases)
        head = ["N, D, H, E, K", *names, *(["fp32 / bf16"] if dtype == "bf16" else []), "H100 bound, us"]
        text += [f"**{kind}, {SHORT[passes]}, {dtype}**", "", _row(head), _row(["---"] * len(head))]
        for case in cases:
            cells = [_size(case), *(_cell(case, name) for name in names)]
            cells += [_number(case["ratio_to_fp32"])] if dtype == "bf16" else []
            text.append(_row([*cells, _number(case["roofline_h100_us"])]))
            for name in names:
                if "skipped" in case["variants"].get(name, {}):
                    reasons[f"{kind}, {name}, {dtype}"] = case["variants"][name]["skipped"]
        text.append("")
    text += [f"- {where}: {why}" for where, why in reasons.items()]
    return "\n".join(text).rstrip() + "\n"


def plot(result: Result, path: Path) -> None:
    """One panel for every operator, pass and type: a row a size, a dot a variant, on a logarithmic axis.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a file type that matplotlib does not write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tables = _tables(result)
    columns = min(4, max(len(tables), 1))
    rows = -(-len(tables) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.4 * max(rows, 1)), layout="tight")
    FigureCanvasAgg(figure)
    for number, ((kind, passes, dtype), cases) in enumerate(tables.items(), 1):
        axes = figure.add_subplot(max(rows, 1), columns, number)
        for name in _variant_names(cases):
            ratios = [case["variants"].get(name, {}).get("ratio_to_dense") for case in cases]
            points = [(ratio, row) for row, ratio in enumerate(ratios) if ratio is not None]
            style: dict[str, Any] = {"color": "black", "markersize": 8} if name == "ours" else {"alpha": 0.75}
            if points:
                axes.plot(*zip(*points, strict=True), "o", label=name, **style)
        axes.axvline(1.0, color="grey", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}" if ratio > 0.1 else f"{ratio:.2g}")
        axes.tick_params(axis="x", labelsize=8)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.45), max(high, 2.2))
        axes.set_ylim(len(cases) - 0.5, -0.5)
        axes.set_yticks(range(len(cases)), [_size(case) for case in cases], fontsize=8)
        axes.set_title(f"{kind}, {SHORT[passes]}, {dtype}", fontsize=10)
        axes.set_xlabel("time / dense FFN", fontsize=8)
        if axes.lines[1:]:  # besides the line at 1
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _tables(result: Result) -> dict[tuple[str, str, str], list[Result]]:
    tables: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for case in result["cases"]:
        tables[_kind(case), case["pass"], case["dtype"]].append(case)
    return tables


def _variant_names(cases: list[Result]) -> list[str]:
    """In the order they came; the dense FFN is 1 by definition, and ours in fp32 has a column of its own."""
    names = dict.fromkeys(name for case in cases for name in case["variants"])
    return [name for name in names if name not in ("dense", "ours_fp32")]


def _kind(case: Result) -> str:
    return " ".join([case["op"], *(f"{name}={value}" for name, value in case["options"].items())])


def _size(case: Result) -> str:
    size = case["size"]
    letters = ", ".join(str(value) for letter, value in size.items() if letter != "routing")
    return letters if size["routing"] == "uniform" else f"{letters} {size['routing']}"


def _cell(case: Result, name: str) -> str:
    return _number(case["variants"].get(name, {}).get("ratio_to_dense"))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
