"""Measured block sizes: found, remembered, and never trusted over the numbers."""

import pytest
import torch

pytest.importorskip("triton")

from moevision.errors import UsageError
from moevision.kernels import tune
from moevision.kernels.triton import common, configs, tuned
from moevision.kernels.triton.tuned import Blocks

KEY = "grouped_gemm 64 float32"


@pytest.fixture
def device(monkeypatch, tmp_path):
    """A GPU's name and an empty cache folder, without the GPU."""
    monkeypatch.setenv("MOEVISION_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: "Some GPU (80 GB)")
    tuned._table.cache_clear()
    yield tuned.cache_file("Some GPU (80 GB)")
    tuned._table.cache_clear()


def test_the_cache_file_names_the_device_and_lies_in_the_cache_folder(device, tmp_path):
    assert device.name == "Some-GPU-80-GB.json"
    assert tmp_path in device.parents


def test_what_was_measured_overrules_the_formula_except_while_recording(device):
    formula, measured = configs.grouped_gemm(64, torch.float32), Blocks(16, 16, 16, 4, 1)
    assert formula != measured
    device.parent.mkdir(parents=True)
    device.write_text(tuned.dump({KEY: measured}))
    tuned._table.cache_clear()
    assert configs.grouped_gemm(64, torch.float32) == measured
    with common.recorded_launches():
        assert configs.grouped_gemm(64, torch.float32) == formula


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}', '{"a": {"rows": 1}}', "\x00"])
def test_a_damaged_cache_file_is_reported_and_the_formula_used(device, text, caplog):
    device.parent.mkdir(parents=True)
    device.write_text(text)
    formula = configs.grouped_gemm.__wrapped__(64, torch.float32)
    assert configs.grouped_gemm(64, torch.float32) == formula
    assert str(device) in caplog.text
    assert "moevision tune" in caplog.text


def test_the_fastest_candidate_with_the_same_numbers_wins():
    # Rows of 128 are fastest but wrong, 8 warps cannot be launched, fewer rows are faster than the formula.
    def run():
        blocks = configs.grouped_gemm(64, torch.float32)
        if blocks.warps == 8:
            raise RuntimeError("out of resources")
        return [torch.full((2,), float(blocks.rows == 128))]

    def clock(call):
        call()
        blocks = configs.grouped_gemm(64, torch.float32)
        return 1000.0 / blocks.rows if blocks.rows == 128 else float(blocks.rows)

    result = tune.choose(run, clock)[KEY]
    assert result["blocks"].rows == 32
    assert result["best_ms"] < result["formula_ms"]
    assert not tuned._forced


def test_there_are_at_most_twelve_candidates_and_the_formula_is_none_of_them():
    formula = configs.expert_ffn(64, torch.bfloat16, 1024)
    found = list(tune.candidates(formula))
    assert formula not in found
    assert 4 <= len(set(found)) == len(found) <= tune.MOST_CANDIDATES


def test_without_a_gpu_there_is_nothing_to_tune(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        tune.tune()
    from moevision.cli import tune as command

    with pytest.raises(UsageError, match="needs a CUDA device"):
        command.tune()
