"""Which body runs: chosen by environment and device, never silently other than asked."""

import warnings

import pytest
import torch

from moevision.kernels import bodies, cpu, route


class CudaTensor:
    """What `bodies` looks at of a tensor on a GPU that is not here."""

    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self, dtype=torch.float32):
        self.dtype = dtype

    def is_floating_point(self):
        return self.dtype.is_floating_point


@pytest.fixture
def gpu(monkeypatch):
    """A machine that has triton and a recent device; bodies run without a device guard."""
    monkeypatch.setattr(bodies, "_triton_installed", lambda: True)
    monkeypatch.setattr(bodies, "_capability", lambda index: (9, 0))
    monkeypatch.setattr(bodies, "_prepared", lambda device: warnings.catch_warnings())
    monkeypatch.delenv("MOEVISION_BACKEND", raising=False)
    bodies._warn_once.cache_clear()
    return monkeypatch


def test_an_unknown_backend_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("MOEVISION_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="must be one of auto, triton, torch, interpret"):
        route(torch.ones(2, 3), torch.ones(4, 3), 1)


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_tensors_on_the_cpu_run_in_torch(monkeypatch, name):
    monkeypatch.setenv("MOEVISION_BACKEND", name)
    assert route(torch.ones(2, 3), torch.ones(4, 3), 1)[1].tolist() == [[0], [0]]


@pytest.mark.parametrize(("name", "remedy"), [("triton", "not on a CUDA device"), ("interpret", "TRITON_INTERPRET=1")])
def test_a_backend_asked_for_that_cannot_run_says_why(monkeypatch, name, remedy):
    monkeypatch.setenv("MOEVISION_BACKEND", name)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=remedy):
        route(torch.ones(2, 3), torch.ones(4, 3), 1)


def test_on_a_recent_gpu_the_kernel_runs(gpu):
    gpu.setattr(bodies, "_triton_body", lambda operator: lambda lead, *rest: (operator, rest))
    assert bodies.run("route", CudaTensor(), 2) == ("route", (2,))


@pytest.mark.parametrize(
    ("patch", "dtype", "reason"),
    [
        (("_triton_installed", lambda: False), torch.float32, "triton is not installed"),
        (("_capability", lambda index: (7, 5)), torch.float32, r"\(7, 5\) is below \(8, 0\)"),
        (("_capability", lambda index: (9, 0)), torch.float64, "no kernels for torch.float64"),
    ],
)
def test_where_triton_cannot_run_torch_does_with_one_warning(gpu, patch, dtype, reason):
    gpu.setattr(bodies, *patch)
    gpu.setattr(cpu, "route", lambda lead, *rest: "torch")
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        assert [bodies.run("route", CudaTensor(dtype), 2) for _ in range(3)] == ["torch"] * 3
    assert len(caught) == 1
    gpu.setenv("MOEVISION_BACKEND", "triton")
    with pytest.raises(RuntimeError, match=reason):
        bodies.run("route", CudaTensor(dtype), 2)


class OutOfResources(Exception):  # noqa: N818  (triton's name)
    pass


@pytest.mark.parametrize("error", [bodies.Unsupported("too wide"), OutOfResources("shared memory")])
def test_a_kernel_too_large_for_the_device_falls_back_unless_it_was_asked_for(gpu, error):
    def too_large(lead, *rest):
        raise error

    gpu.setattr(bodies, "_triton_body", lambda operator: too_large)
    gpu.setattr(cpu, "route", lambda lead, *rest: "torch")
    with pytest.warns(RuntimeWarning, match="torch path for route"):
        assert bodies.run("route", CudaTensor(), 2) == "torch"
    gpu.setenv("MOEVISION_BACKEND", "triton")
    with pytest.raises(type(error)):
        bodies.run("route", CudaTensor(), 2)


def test_a_bug_in_a_kernel_is_not_hidden_by_the_fallback(gpu):
    def broken(lead, *rest):
        raise ZeroDivisionError

    gpu.setattr(bodies, "_triton_body", lambda operator: broken)
    with pytest.raises(ZeroDivisionError):
        bodies.run("route", CudaTensor(), 2)


@pytest.mark.parametrize("operator", bodies._FILES)
def test_every_operator_has_a_torch_body_and_a_triton_body_of_its_name(operator):
    pytest.importorskip("triton")
    assert callable(getattr(cpu, operator))
    assert callable(bodies._triton_body(operator))
