"""Plain operators do what the kernels do, exported files what networks do, and what does not fit is refused."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moevision import exported, kernels
from moevision.api import export_model, restoration_task, segmentation_task
from moevision.checkpoint import save_model
from moevision.errors import InputError, MissingExtraError, MoevisionError, UsageError, WeightsError
from moevision.export import Portable, cached_file, open_runner, write_file
from moevision.export.graph import _PlainOperators
from moevision.imaging.picture import picture_from_array
from moevision.tasks.fusion.model import PRESETS as FUSION_PRESETS
from moevision.tasks.fusion.model import FusionNet
from moevision.tasks.restoration.model import PRESETS, RestorationNet
from moevision.tasks.restoration.portable import WholePicture, picture_inputs
from moevision.tasks.restoration.scene import _rounded
from moevision.tasks.restoration.weathers import WEATHERS
from moevision.tasks.segmentation.model import PRESETS as SEGMENTATION_PRESETS
from moevision.tasks.segmentation.model import SegmentationConfig, SegmentationNet

ROOT = Path(__file__).parents[2]


def exported_to(folder, weights):
    """The ONNX file of some weights, which gives what their network gives."""
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    path = folder / weights.with_suffix(".onnx").name
    assert export_model(weights, path, to="onnx") < 1e-5
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    net = RestorationNet(PRESETS["test"]()).eval()
    with torch.no_grad():  # an untrained network changes nothing
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_model(net, path, task="restoration", training={})
    return path


@pytest.fixture(scope="module")
def onnx_file(weights, tmp_path_factory):
    return exported_to(tmp_path_factory.mktemp("onnx"), weights)


def picture(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return picture_from_array(np.ascontiguousarray(pixels.repeat(8, 0).repeat(8, 1)[:height, :width]))


def plainly(function, *arguments, **options):
    with _PlainOperators():
        return function(*arguments, **options)


@pytest.mark.parametrize("variance_scale", [0.0, 0.11])
def test_routing_in_plain_operators_chooses_the_same(variance_scale):
    x, w = torch.randn(50, 12), torch.randn(6, 12)
    for got, wanted in zip(
        plainly(kernels.route, x, w, 2, variance_scale), kernels.route(x, w, 2, variance_scale), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("site", ["input", "hidden"])
@pytest.mark.parametrize("fuse", ["activations", "outputs"])
def test_film_experts_in_plain_operators_with_empty_slots(site, fuse):
    width = 8 if site == "input" else 20
    tensors = [torch.randn(shape) for shape in ((30, 8), (8, 20), (20,), (20, 8), (8,), (5, width), (5, width))]
    gate, index = torch.rand(30, 2), torch.randint(-1, 5, (30, 2))
    arguments = *tensors, gate, index
    wanted = kernels.film_ffn(*arguments, site=site, fuse=fuse)
    torch.testing.assert_close(plainly(kernels.film_ffn, *arguments, site=site, fuse=fuse), wanted)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_full_experts_in_plain_operators_with_empty_slots(activation):
    x, w1, b1, w2, b2 = (torch.randn(s) for s in ((30, 8), (5, 8, 16), (5, 16), (5, 16, 6), (5, 6)))
    gate, index = torch.rand(30, 2), torch.randint(-1, 5, (30, 2))

    def compute():
        return kernels.expert_ffn(x, w1, b1, w2, b2, gate, *kernels.plan(index, 5), activation)

    torch.testing.assert_close(plainly(compute), compute())


def test_convolution_experts_in_plain_operators_with_empty_windows():
    arguments = torch.randn(6, 4, 9, 7), torch.randn(3, 4, 3, 3), torch.randn(3, 4), torch.tensor([0, 2, -1, 1, 1, 7])
    torch.testing.assert_close(plainly(kernels.grouped_conv, *arguments), kernels.grouped_conv(*arguments))


@pytest.mark.parametrize(
    ("size", "out"), [((97, 33), (40, 16)), ((50, 201), (24, 96)), ((9, 30), (32, 96)), ((8, 8), (8, 8))]
)
def test_an_antialiased_thumbnail_is_two_products(size, out):
    x = torch.rand(2, 3, *size)
    options = {"size": list(out), "mode": "bilinear", "antialias": True, "align_corners": False}
    torch.testing.assert_close(plainly(F.interpolate, x, **options), F.interpolate(x, **options), atol=2e-6, rtol=0)


def test_a_norm_over_channels_needs_no_transposition():
    x, weight, bias = torch.randn(2, 5, 7, 12), torch.randn(12), torch.randn(12)
    wanted = F.layer_norm(x, (12,), weight, bias, 1e-6)
    torch.testing.assert_close(plainly(F.layer_norm, x, (12,), weight, bias, 1e-6), wanted, atol=1e-5, rtol=1e-5)


def test_sides_of_a_thumbnail_are_rounded_half_to_even_as_python_does():
    assert all(_rounded(12 * a, b) == round(12 * a / b) for b in range(1, 400) for a in range(1, b + 1))


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("size", [(88, 104), (5, 7), (231, 147), (64, 300)])
def test_a_file_takes_pictures_of_any_size(onnx_file, weights, runtime, size):
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime), reason=f"the extra {runtime} is not installed")
    net = WholePicture(restoration_task(model=weights, device="cpu", precision="fp32").model)
    told = None if size[0] % 2 else torch.tensor([[1.0, 0.0, 0.5, torch.nan]])
    inputs = picture_inputs(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)), told)
    results = open_runner(onnx_file, runtime)({name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.inference_mode():
        restored, probability = net(*inputs.values())
    np.testing.assert_allclose(results["restored"], restored.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(results["probability"], probability.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_file_restores_as_the_weights_do(onnx_file, weights, runtime):
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime), reason=f"the extra {runtime} is not installed")
    source = (picture(75, 90),)
    options = {"strength": 0.7, "weather": ["rain", "haze"], "device": "cpu", "precision": "fp32"}
    wanted = restoration_task(model=weights, **options)(source)
    task = restoration_task(model=onnx_file, runtime=runtime, **options)
    got = task(source)
    difference = got.picture.pixels_HWC.astype(int) - wanted.picture.pixels_HWC.astype(int)
    assert abs(difference).max() <= 1
    assert got.facts["weather"] == wanted.facts["weather"]
    assert got.facts["weathers"] == pytest.approx(wanted.facts["weathers"], abs=2e-3)
    task.model.whole_px = task.whole_px = 64
    with pytest.raises(InputError, match="--model restoration-small"):
        task(source)


def test_pictures_too_large_to_be_whole_are_measured_by_torch_and_restored_in_tiles(weights, monkeypatch):
    """The forms themselves in the place of their files, which `write_file` compares with them."""
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    forms = {}

    def keep(make, key):
        forms[key] = make()
        return Path(key)

    def run(path, runtime, *, bf16):
        portable = forms[str(path)]
        names = list(portable.examples[0])

        @torch.inference_mode()
        def runner(inputs):
            assert list(inputs) == names
            results = portable.module(*(torch.from_numpy(array) for array in inputs.values()))
            return {name: tensor.numpy() for name, tensor in zip(portable.outputs, results, strict=True)}

        runner.facts = portable.facts
        return runner

    monkeypatch.setattr(exported, "cached_file", keep)
    monkeypatch.setattr(exported, "open_runner", run)
    source = (picture(150, 130),)
    options = {"model": weights, "device": "cpu", "precision": "fp32", "tile_px": 80}
    wanted = restoration_task(**options)(source)
    task = restoration_task(runtime="onnx", **options)
    assert len(forms) == 1  # the second is made when it is needed
    got = task(source)
    assert len(forms) == 2
    assert abs(got.picture.pixels_HWC.astype(int) - wanted.picture.pixels_HWC.astype(int)).max() <= 1
    assert got.facts["tiles"] == wanted.facts["tiles"] > 1


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    torch.manual_seed(0)
    classes = ("ground", "sky", "thing")
    config = SegmentationConfig(SEGMENTATION_PRESETS["test"](), classes, ((0, 0, 0), (1, 2, 3), (9, 9, 9)), 8)
    path = tmp_path_factory.mktemp("weights") / "segmenter.safetensors"
    save_model(SegmentationNet(config).eval(), path, task="segmentation", training={"work_px": 96})
    return path


@pytest.fixture(scope="module")
def segmenter_file(segmenter, tmp_path_factory):
    return exported_to(tmp_path_factory.mktemp("onnx"), segmenter)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("size", [(75, 90), (5, 7), (130, 61)])
@pytest.mark.parametrize("tile_px", [None, 48])
def test_a_file_labels_as_the_weights_do(segmenter, segmenter_file, runtime, size, tile_px):
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime), reason=f"the extra {runtime} is not installed")
    options = {"device": "cpu", "precision": "fp32", "tile_px": tile_px}
    task = segmentation_task(model=segmenter_file, runtime=runtime, **options)
    assert task.size_px == 96  # what the weights were made for, and the classes, travel in the file
    got, wanted = task.segment(picture(*size)), segmentation_task(model=segmenter, **options).segment(picture(*size))
    assert got.classes == wanted.classes
    assert got.palette == wanted.palette
    assert got.facts == wanted.facts
    assert (got.ids_HW != wanted.ids_HW).mean() < 0.001  # where two classes are equal to rounding


def test_a_segmenter_is_exported_when_it_is_first_asked_for(segmenter, tmp_path, monkeypatch):
    for module in ("onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason="the extra onnx is not installed")
    monkeypatch.setenv("MOEVISION_CACHE", str(tmp_path))
    for _ in range(2):
        found = segmentation_task(model=segmenter, runtime="onnx", device="cpu").segment(picture(40, 50))
        assert found.ids_HW.shape == (40, 50)
        (file,) = tmp_path.rglob("*.onnx")
        assert file.name.startswith("segmenter-")


def test_an_exported_segmenter_cannot_change_its_experts_or_task(segmenter_file):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    with pytest.raises(UsageError, match="--experts 1"):
        segmentation_task(model=segmenter_file, runtime="onnx", experts=1)
    with pytest.raises(UsageError, match="the task segmentation, not for a picture and the task restoration"):
        restoration_task(model=segmenter_file, runtime="onnx")


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_an_exported_fusion_network_fuses_pairs_of_any_size(runtime, tmp_path):
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime), reason=f"the extra {runtime} is not installed")
    torch.manual_seed(0)
    net = FusionNet(FUSION_PRESETS["test"]()).eval()
    with torch.no_grad():  # an untrained network gives the brighter of the two
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(net, tmp_path / "own.safetensors", task="fusion", training={})
    runner = open_runner(exported_to(tmp_path, tmp_path / "own.safetensors"), runtime)
    for size in [(40, 50), (231, 147), (5, 7)]:
        visible, infrared = torch.rand(2, 1, 1, *size)
        results = runner({"visible": visible.numpy(), "infrared": infrared.numpy()})
        with torch.inference_mode():
            wanted = net(visible, infrared)
        np.testing.assert_allclose(results["fused"], wanted.fused_B1HW.clamp(0, 1).numpy(), atol=1e-4, rtol=0)
        np.testing.assert_allclose(results["weight"], wanted.weight_B1HW.numpy(), atol=1e-4, rtol=0)


def test_a_file_in_the_cache_is_made_once_for_each_key(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    monkeypatch.setenv("MOEVISION_CACHE", str(tmp_path))
    made = []
    for key in ("a", "a", "b"):
        path = cached_file(lambda: made.append(1) or scaled(2.0), key)
        np.testing.assert_array_equal(open_runner(path, "onnx")({"x": np.ones((4, 7), np.float32)})["y"], 2.0)
    assert len(made) == 2
    assert sorted(tmp_path.rglob("*.onnx")) == sorted(tmp_path.glob("export/[ab]-*.onnx"))


def test_a_file_that_does_not_say_what_it_was_made_of_is_refused(tmp_path):
    facts = {"moevision.task": "restoration", "moevision.form": "picture", "moevision.weathers": ",".join(WEATHERS)}
    write_file(replace(scaled(2.0), facts=facts), tmp_path / "a.pt2", "pt2")
    with pytest.raises(WeightsError, match="made of"):
        restoration_task(model=tmp_path / "a.pt2")
    made_of = {"moevision.model": "a", "moevision.config": "{}", "moevision.training": "{}"}
    facts |= made_of | {"moevision.weathers": "rain,ash"}
    write_file(replace(scaled(2.0), facts=facts), tmp_path / "b.pt2", "pt2")
    with pytest.raises(WeightsError, match=r"b\.pt2: knows other weathers"):
        restoration_task(model=tmp_path / "b.pt2")


class Scaled(nn.Module):
    """Twice its input; in a graph `factor` times."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return (x * (self.factor if torch.compiler.is_compiling() else 2.0),)


def scaled(factor):
    examples = [{"x": torch.rand(4, 20)}, {"x": torch.rand(4, 33)}]
    return Portable(Scaled(factor), ("y",), examples, {"x": {1: ("length", 2)}}, {"moevision.task": "test"})


def test_a_torch_archive_knows_its_names_and_facts(tmp_path):
    assert write_file(scaled(2.0), tmp_path / "a.pt2", "pt2") == 0
    runner = open_runner(tmp_path / "a.pt2", "torch")
    assert runner.facts == {"moevision.task": "test"}
    np.testing.assert_array_equal(runner({"x": np.ones((4, 7), np.float32)})["y"], np.full((4, 7), 2.0))


@pytest.mark.parametrize("factor", [2.001, float("nan")])
def test_a_file_that_does_something_else_is_not_kept(tmp_path, factor):
    with pytest.raises(MoevisionError, match="not written"):
        write_file(scaled(factor), tmp_path / "a.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_openvino_has_files_of_its_own(tmp_path):
    for module in ("onnxscript", "openvino"):
        pytest.importorskip(module, reason="the extras onnx and openvino are not installed")
    assert write_file(scaled(2.0), tmp_path / "a.xml", "openvino") < 1e-6
    assert {path.name for path in tmp_path.iterdir()} == {"a.xml", "a.bin"}
    assert open_runner(tmp_path / "a.xml", "openvino").facts["moevision.task"] == "test"


def test_what_does_not_fit_is_refused(tmp_path, weights):
    with pytest.raises(UsageError, match=r"onnx \(\*\.onnx\)"):
        export_model(weights, tmp_path / "a.onnx", to="tflite")
    with pytest.raises(UsageError, match="do not go together"):
        export_model(weights, tmp_path / "a.onnx", to="pt2")
    with pytest.raises(UsageError, match="no such folder"):
        export_model(weights, tmp_path / "no" / "a.onnx", to="onnx")
    with pytest.raises(UsageError, match="anomaly models cannot be exported"):
        export_model("anomaly-ped2", tmp_path / "a.onnx", to="onnx")
    with pytest.raises(UsageError, match="choose one of torch, onnx, openvino"):
        restoration_task(model=weights, runtime="tensorrt")
    with pytest.raises(UsageError, match="computes on the CPU"):
        restoration_task(model=weights, runtime="onnx", device="cuda")
    with pytest.raises(UsageError, match="--precision fp32"):
        restoration_task(model=weights, runtime="onnx", precision="bf16")
    with pytest.raises(UsageError, match=r"reads \.pt2"):
        restoration_task(model=tmp_path / "no.onnx")


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_damaged_and_foreign_files_are_refused(tmp_path, runtime):
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime), reason=f"the extra {runtime} is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    write_file(scaled(2.0), tmp_path / "a.onnx", "onnx")
    with pytest.raises(UsageError, match="the task test"):
        restoration_task(model=tmp_path / "a.onnx", runtime=runtime)
    with pytest.raises(WeightsError, match="no such file"):
        restoration_task(model=tmp_path / "no.onnx", runtime=runtime)
    data = (tmp_path / "a.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(data[: len(data) // 2])
    (tmp_path / "foreign.onnx").write_bytes(data.replace(b"moevision.task", b"someotherstask"))
    with pytest.raises(WeightsError, match="cannot read it"):
        open_runner(tmp_path / "half.onnx", runtime)
    with pytest.raises(WeightsError, match="not a file from `moevision export`"):
        open_runner(tmp_path / "foreign.onnx", runtime)


@pytest.mark.parametrize(("module", "runtime"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module, runtime):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(MissingExtraError, match=rf"moevision\[{runtime}"):
        open_runner(tmp_path / "a.onnx", runtime)


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime", "openvino"])
def test_each_is_imported_in_one_file_at_most(module):
    statement = re.compile(rf"^\s*(import|from) {module}\b", re.MULTILINE)
    folders = ("moevision", "kernels", "tasks", "datasets", "app")
    files = [path for folder in folders for path in (ROOT / folder).glob("**/*.py") if not path.is_symlink()]
    found = {path.resolve() for path in files if statement.search(path.read_text())}
    assert len(found) == (module in ("onnxruntime", "openvino"))
