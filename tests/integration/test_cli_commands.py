"""The thin commands: what they pass on, and what they print."""

import json
import sys
import types
from pathlib import Path

import pytest

from moevision.errors import InputError


@pytest.fixture
def stand_in(monkeypatch):
    """`stand_in("package.module", name=function)` puts a module in place of the real one."""

    def replace(module_name, **members):
        module = types.ModuleType(module_name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, module_name, module)

    return replace


def test_models_lists_the_manifest(cli, fake_api):
    fake_api.models = [
        {
            "name": "restoration-small",
            "task": "restore",
            "params": 680_000,
            "bytes": 2_700_000,
            "metrics": {"a_dev": {"n": 3, "psnr": 27.123456, "baselines": {"identity": {"psnr": 20.0}}}, "miou": 0.5},
            "limits": ["rain at night"],
        },
        {"name": "odd"},
    ]
    result = cli("models")
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if line.startswith("restoration-small"))
    assert {"0.68 M", "2.7 MB", "a_dev psnr 27.12, miou 0.5"} == {part.strip() for part in line.split("  ") if part} - {
        "restoration-small",
        "restore",
    }
    assert json.loads(cli("models", "--json").stdout) == fake_api.models


def test_evaluate_prints_the_metrics_and_writes_all(cli, folder, stand_in, fake_api):
    metrics = {"psnr": 27.12341, "ssim": 0.9, "baselines": {"identity": {"psnr": 20.0}}}
    seen = []

    def evaluate(data, task):
        seen.append(data)
        return {"task": "restoration", "n": 1, "metrics": metrics, "per_item": [], "seconds": 1.0}

    stand_in("moevision.tasks.restoration.evaluate", evaluate=evaluate)
    options = ("--json", "deep/m.json", "--device", "cpu", "--tile", "256", "--weather", "rain")
    result = cli("evaluate", "restoration", "--data", "in", *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == ["psnr 27.1234", "ssim 0.9000", "baselines.identity.psnr 20.0000"]
    assert json.loads(Path("deep/m.json").read_text())["metrics"] == metrics
    assert seen == [Path("in")]
    expected = {
        "model": "restoration-small",
        "device": "cpu",
        "precision": "auto",
        "tile_px": 256,
        "weather": ("rain",),
    }
    assert fake_api.requests == [expected]


def test_train_and_preview_pass_their_options_on(cli, folder, stand_in):
    seen = {}

    def train(data, out, **options):
        seen.update(options, data=data, out=out)
        options["say"]("step 1")
        return out / "model.safetensors"

    stand_in("moevision.tasks.restoration.train", train=train)
    result = cli("train", "restoration", "--data", "in", "--out", "runs/x", "--steps", "5", "--seed", "7", "--resume")
    assert result.exit_code == 0, result.stderr
    assert (seen["steps"], seen["seed"], seen["resume"], seen["out"]) == (5, 7, True, Path("runs/x"))
    assert result.stdout == "runs/x/model.safetensors\n"
    assert result.stderr == "step 1\n"
    stand_in("moevision.datasets.preview", preview_sheet=lambda data, output, seed: [output / f"rain-{seed}.png"])
    assert cli("datasets", "preview", "--data", "in", "-o", "sheet", "--seed", "2").stdout == "sheet/rain-2.png\n"


def test_bench_mofme_prints_ratios(cli, folder, stand_in):
    values = {"params_ratio": 0.15, "time_ratio_sparse_moe": 0.7, "seconds": 3.0}
    stand_in("moevision.tasks.restoration.bench", bench_mofme=lambda **_: values)
    result = cli("bench", "mofme", "--json", "b.json")
    assert result.stdout.splitlines() == ["params_ratio 0.1500", "time_ratio_sparse_moe 0.7000"]
    assert json.loads(Path("b.json").read_text()) == values


def test_expected_and_unexpected_errors_are_one_line(cli, folder, stand_in):
    def evaluate(data, _):
        raise InputError(f"{data}: no folder\ninput/") if data.name == "in" else ZeroDivisionError("div")

    stand_in("moevision.tasks.restoration.evaluate", evaluate=evaluate)
    result = cli("evaluate", "restoration", "--data", "in")
    assert (result.exit_code, result.stderr) == (3, "moevision: error: in: no folder input/\n")
    result = cli("evaluate", "restoration", "--data", "other")
    assert result.exit_code == 1
    assert result.stderr.startswith("moevision: error: bug: ZeroDivisionError: div; run with --debug")
    assert len(result.stderr.splitlines()) == 1
    result = cli("evaluate", "restoration", "--data", "other", "--debug")
    assert "Traceback" in result.stderr
