import logging

import pytest
import torch

from moevision import devices
from moevision.devices import has_native_bf16, is_out_of_memory, pick_device, pick_precision, retry_smaller
from moevision.errors import MemoryExhaustedError, UsageError

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """`machine(cuda=2, mps=True)`: pretend to have these devices."""

    def pretend(cuda=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(0, False, "cpu"), (0, True, "mps"), (1, False, "cuda"), (1, True, "cuda")]
)
def test_auto_takes_the_fastest_device_there(machine, cuda, mps, expected):
    machine(cuda, mps)
    assert pick_device("auto").type == expected


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "gpu", "", "cuda:x", "meta", "xpu"])
def test_a_device_that_is_not_there_is_refused(machine, name):
    machine()
    with pytest.raises(UsageError, match="--device"):
        pick_device(name)


def test_device_numbers_are_checked(machine):
    machine(cuda=2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="only 2"):
        pick_device("cuda:2")


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bf16_only_where_it_is_native(monkeypatch, native, expected):
    monkeypatch.setattr(devices, "has_native_bf16", lambda device: native)
    assert pick_precision(CPU, "auto") == expected
    assert pick_precision(CPU, "fp32") == torch.float32


def test_bf16_is_given_when_asked_for_with_a_warning_where_it_is_slow(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "moevision")
    monkeypatch.setattr(logging.getLogger("moevision"), "propagate", True)
    monkeypatch.setattr(devices, "has_native_bf16", lambda device: True)
    assert pick_precision(CPU, "bf16") == torch.bfloat16
    assert not caplog.records
    monkeypatch.setattr(devices, "has_native_bf16", lambda device: False)
    assert pick_precision(CPU, "bf16") == torch.bfloat16
    assert "slower" in caplog.text


def test_an_unknown_precision_is_refused():
    with pytest.raises(UsageError, match="fp16"):
        pick_precision(CPU, "fp16")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({}, False), ({"avx512_f": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)],
)
def test_native_bf16_needs_an_instruction_for_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_native_bf16(CPU) is expected


@pytest.mark.parametrize(
    ("start", "tried"),
    [
        (1024, [1024, 512, 256, 128]),
        (0, [0, 512, 256, 128]),
        (300, [300, 150, 128]),
        (128, [128]),
        (96, [96]),
        (200, [200, 128]),
    ],
)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory (allocated 3 GB)"),
    ],
)
def test_tiles_shrink_until_the_smallest(start, tried, error):
    seen = []

    def fail(tile_px):
        seen.append(tile_px)
        raise error

    with pytest.raises(MemoryExhaustedError, match="out of memory"):
        retry_smaller(fail, start)
    assert seen == tried


def test_the_first_tile_that_fits_gives_the_result():
    def fits_below_300(tile_px):
        if tile_px >= 300:
            raise MemoryError
        return tile_px

    assert retry_smaller(fits_below_300, 1024) == 256


def test_other_errors_are_not_taken_for_memory():
    calls = []

    def fail(tile_px):
        calls.append(tile_px)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        retry_smaller(fail, 512)
    assert calls == [512]
    assert not is_out_of_memory(ValueError("out of memory"))
