"""moevision inside mmsegmentation: the documented config trains, its checkpoint is published, loaded and asked."""

import functools
import importlib
import importlib.util
import os
import pickle
import re
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import moevision
from moevision.checkpoint import save_model
from moevision.errors import InputError, MissingExtraError, UsageError, WeightsError

pytest.importorskip("mmseg", reason='needs pip install "moevision[mmseg]"')

from moevision.tasks.segmentation import mmcv_ops, mmseg  # before mmseg.models and mmseg.apis
from moevision.tasks.segmentation.mmseg import MoEVisionBackbone, MoEVisionBalanceHead, MoEVisionRestore, publish
from moevision.tasks.segmentation.model import PRESETS, SegmentationConfig, SegmentationNet

pytestmark = pytest.mark.filterwarnings("ignore:Fail to import ``MultiScaleDeformableAttention``")

GUIDE = Path(__file__).parents[2] / "docs" / "mmsegmentation.md"
CLASSES = 11


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return MoEVisionBackbone(preset="test")


def write_weights(path, preset="small"):
    """A segmentation model as it is before training."""
    torch.manual_seed(1)
    config = SegmentationConfig(PRESETS[preset](), ("a", "b"), ((0, 0, 0), (255, 255, 255)))
    net = SegmentationNet(config)
    save_model(net, path, task="segmentation", training={})
    return net


def write_scene(folder, seed):
    """Blocks, each in the colour of its class."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(9).integers(0, 256, (CLASSES + 1, 3), np.uint8)
    labels = np.kron(rng.integers(0, CLASSES + 1, (5, 7)), np.ones((20, 20), np.uint8)).astype(np.uint8)[:97, :131]
    for part, pixels, suffix in (("images", colours[labels], "jpg"), ("labels", labels, "png")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / part / f"{seed}.{suffix}"), pixels)


def documented_config(folder, data, weights):
    """The config of the guide as a file, with other data, weights and numbers."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    (text,) = (block for block in blocks if "custom_imports" in block)
    replacements = {
        'data_root = "camvid"': f"data_root = {str(data)!r}",
        '"segmentation-camvid"': repr(str(weights)),
        '"work_dirs/camvid"': repr(str(folder / "run")),
        "num_workers=2": "num_workers=0",
        "iterations = 4000": "iterations = 2",
        "val_interval=500": "val_interval=2",
        "interval=500": "interval=2",
        "interval=50,": "interval=1,",
        "crop = (320, 320)": "crop = (64, 64)",
        "batch_size=8": "batch_size=2",
    }
    for old, new in replacements.items():
        assert old in text, f"the guide has no {old}"
        text = text.replace(old, new)
    path = folder / "camvid.py"
    path.write_text(text)
    return path


def train(config):
    from mmengine.config import Config
    from mmengine.runner import Runner

    runner = Runner.from_cfg(Config.fromfile(config))
    runner.train()
    return runner


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, runner) after two steps and a validation on pictures made here."""
    folder = tmp_path_factory.mktemp("mmseg")
    for seed in range(4):
        write_scene(folder / "data" / ("val" if seed == 3 else "train"), seed)
    write_weights(folder / "start.safetensors")
    return folder, train(documented_config(folder, folder / "data", folder / "start.safetensors"))


def test_the_documented_config_trains_and_the_balance_loss_is_part_of_the_loss(run):
    _, runner = run
    scalars = {name: history.current() for name, history in runner.message_hub.log_scalars.items()}
    parts = scalars["train/decode.loss_ce"], scalars["train/aux.loss_balance"]
    assert 0 < parts[1] < 0.5
    assert scalars["train/loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert 0 <= scalars["val/mIoU"] <= 100


def test_a_checkpoint_is_published_loaded_and_asked(run, tmp_path):
    from mmseg.apis import inference_model, init_model

    folder, runner = run
    checkpoint, config = folder / "run" / "iter_2.pth", str(folder / "camvid.py")
    with pytest.raises(pickle.UnpicklingError):
        init_model(config, str(checkpoint), device="cpu")
    publish(checkpoint, tmp_path / "net.pth")
    assert set(torch.load(tmp_path / "net.pth")) == {"state_dict", "meta"}
    (folder / "start.safetensors").unlink()  # what training began with is not needed any more
    model = init_model(config, str(tmp_path / "net.pth"), device="cpu")
    for name, tensor in runner.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    runner.load_checkpoint(str(tmp_path / "net.pth"))  # what load_from does
    assert model.dataset_meta["classes"][0] == "sky"
    assert model.dataset_meta["palette"][1] == [128, 0, 0]
    picture = str(next((folder / "data" / "val" / "images").iterdir()))
    labels = inference_model(model, picture).pred_sem_seg.data
    assert labels.shape == (1, 97, 131)
    assert 0 <= labels.min() <= labels.max() < CLASSES


@pytest.mark.skipif("MOEVISION_DATA" not in os.environ, reason="needs MOEVISION_DATA")
def test_the_documented_config_trains_on_camvid(tmp_path):
    write_weights(tmp_path / "start.safetensors")
    data = Path(os.environ["MOEVISION_DATA"]) / "segmentation" / "camvid"
    config = documented_config(tmp_path, data, tmp_path / "start.safetensors")
    config.write_text(config.read_text().replace('img_suffix=".jpg"', 'img_suffix=".jpg", indices=4'))
    scalars = train(config).message_hub.log_scalars
    assert np.isfinite(scalars["train/loss"].current())
    assert scalars["val/mIoU"].current() > 0


def test_the_extra_leaves_opencv_whole():
    assert hasattr(cv2, "imreadWithMetadata")  # opencv-python, which mmengine requires, has the same folder
    assert int(cv2.__version__.split(".")[0]) >= 5


def test_publishing_runs_nothing_that_is_in_the_file(tmp_path):
    class Touch:
        def __init__(self, function, *arguments):
            self.reduced = function, arguments

        def __reduce__(self):
            return self.reduced

    mark = tmp_path / "mark"
    weights = {"a": torch.ones(2)}
    meta = {"dataset_meta": {"classes": ("x",), "palette": np.ones((1, 3))}}
    torch.save({"state_dict": weights, "meta": meta, "hub": Touch(open, str(mark), "w")}, tmp_path / "a.pth")
    publish(tmp_path / "a.pth", tmp_path / "out.pth")
    saved = torch.load(tmp_path / "out.pth")
    assert torch.equal(saved["state_dict"]["a"], torch.ones(2))
    assert saved["meta"] == {"dataset_meta": {"classes": ("x",)}}
    torch.save({"state_dict": weights, "hub": Touch(os.mkdir, str(mark))}, tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"b\.pth: not a checkpoint"):
        publish(tmp_path / "b.pth", tmp_path / "out.pth")
    assert not mark.exists()


def test_what_cannot_be_published_is_named(tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1], tmp_path / "list.pth")
    torch.save({"optimizer": 1}, tmp_path / "other.pth")
    for name in ("missing", "text", "list", "other"):
        with pytest.raises(InputError, match=rf"{name}\.pth: "):
            publish(tmp_path / f"{name}.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 50), (1, 17)])
def test_stages_have_the_sizes_that_heads_expect(backbone, height, width):
    with torch.no_grad():
        features = backbone.eval()(torch.rand(2, 3, height, width))
    assert isinstance(features, tuple)
    assert backbone.out_channels == (16, 24, 40, 16)
    for y, channels, stride in zip(features, backbone.out_channels, (2, 4, 8, 16), strict=True):
        assert y.shape == (2, channels, -(-height // stride), -(-width // stride))
    chosen = MoEVisionBackbone(sizes={"width": 8, "blocks": 1, "experts": 0}, out_indices=(3,)).eval()
    assert chosen.out_channels == (32,)
    assert [y.shape[1] for y in chosen(torch.rand(1, 3, 32, 32))] == [32]


def test_the_balance_loss_reaches_the_router_with_its_weight(backbone):
    x = torch.rand(2, 3, 32, 32)
    gradients = []
    for weight in (1.0, 3.0):
        backbone.zero_grad()
        MoEVisionBalanceHead(loss_weight=weight).loss(backbone(x))["loss_balance"].backward()
        gradients.append(backbone.body.stage16[0].ffn.router.scorer.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], 3 * gradients[0], rtol=0.05, atol=1e-7)
    dense = MoEVisionBackbone(sizes={"width": 4, "blocks": 1, "heads": 2, "experts": 0})
    assert MoEVisionBalanceHead().loss(dense(x))["loss_balance"] == 0


def test_a_neck_in_the_backbone_keeps_the_loss_and_one_outside_is_refused():
    neck = {"type": "FPN", "in_channels": [24, 40, 16], "out_channels": 8, "num_outs": 3}
    backbone = MoEVisionBackbone(preset="test", out_indices=(1, 2, 3), neck=neck)
    backbone.init_weights()
    features = backbone(torch.rand(2, 3, 32, 32))
    assert [y.shape for y in features] == [(2, 8, 8, 8), (2, 8, 4, 4), (2, 8, 2, 2)]
    assert MoEVisionBalanceHead().loss(features)["loss_balance"] > 0
    with pytest.raises(UsageError, match="put a neck into it"):
        MoEVisionBalanceHead().loss(tuple(features))


def test_a_balance_loss_that_nobody_takes_is_warned_of(backbone, recwarn):
    def warned():
        return ["nothing took its balance loss" in str(recwarn.pop(UserWarning).message) for _ in recwarn.list]

    x = torch.rand(2, 3, 32, 32)
    backbone(x)
    assert warned() == [True]
    MoEVisionBalanceHead().loss(backbone(x))
    backbone.eval()(x)
    with torch.no_grad():
        backbone.train()(x)
    assert warned() == []


def test_it_begins_with_the_backbone_of_our_weights(tmp_path):
    net = write_weights(tmp_path / "w.safetensors", "test")
    pretrained = functools.partial(dict, type="Pretrained")
    init_cfg = pretrained(checkpoint=str(tmp_path / "w.safetensors"))
    backbone = MoEVisionBackbone(preset="test", init_cfg=init_cfg)
    backbone.init_weights()
    for name, tensor in net.backbone.state_dict().items():
        assert torch.equal(backbone.body.state_dict()[name], tensor)
    with pytest.raises(UsageError, match="has width 4, not 32"):
        MoEVisionBackbone(init_cfg=init_cfg).init_weights()
    with pytest.raises(UsageError, match="of a restoration model"):
        MoEVisionBackbone(init_cfg=pretrained(checkpoint="restoration-small")).init_weights()
    with pytest.raises(WeightsError, match="no such weights file"):
        MoEVisionBackbone(init_cfg=pretrained(checkpoint="no/where.safetensors")).init_weights()
    with pytest.raises(UsageError, match="init_cfg is"):
        MoEVisionBackbone(init_cfg={"type": "Xavier"})
    with pytest.raises(UsageError, match="no preset 'huge'"):
        MoEVisionBackbone(preset="huge")


def test_another_normalisation_is_refused_at_the_first_batch(backbone):
    for x in (torch.randn(1, 3, 32, 32), 255 * torch.rand(1, 3, 32, 32)):
        with pytest.raises(UsageError, match=r"RGB in \[0, 1\]"):
            backbone(x)


def test_restoration_is_a_step_of_a_pipeline(tmp_path):
    import mmseg.datasets  # noqa: F401  registers the steps
    from mmengine.dataset import Compose
    from mmseg.registry import TRANSFORMS

    write_scene(tmp_path, 0)
    options = {"weather": ["haze"], "strength": 0.8, "precision": "fp32"}
    load = [TRANSFORMS.build({"type": name}) for name in ("LoadImageFromFile", "LoadAnnotations")]
    restore = TRANSFORMS.build({"type": "MoEVisionRestore", **options})
    pack = TRANSFORMS.build({"type": "PackSegInputs"})
    source = {"img_path": str(tmp_path / "images" / "0.jpg"), "seg_map_path": str(tmp_path / "labels" / "0.png")}
    source |= {"seg_fields": [], "reduce_zero_label": False, "label_map": None}
    plain, restored = (Compose(steps)({**source, "seg_fields": []}) for steps in (load, [*load, restore]))
    assert restored.keys() == plain.keys()
    expected = moevision.restore(plain["img"][..., ::-1], device="cpu", **options)
    np.testing.assert_array_equal(restored["img"], expected[..., ::-1])
    assert np.abs(restored["img"].astype(int) - plain["img"]).max() > 0
    for key in plain.keys() - {"img"}:
        assert np.array_equal(restored[key], plain[key])
    packed = Compose([*load, restore, pack])({**source, "seg_fields": []})
    assert packed["inputs"].shape == (3, 97, 131)
    assert packed["data_samples"].img_shape == (97, 131)


def test_restoration_keeps_every_kind_of_picture():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 32, 3), np.uint8)
    restore = MoEVisionRestore(precision="fp32")
    wanted = restore({"img": image})["img"]
    assert wanted.dtype == np.uint8
    assert wanted.flags.c_contiguous
    floats = restore({"img": image.astype(np.float32)})["img"]
    assert floats.dtype == np.float32
    assert np.abs(floats - wanted).max() <= 0.51
    alpha = rng.integers(0, 256, (24, 32, 1), np.uint8)
    with_alpha = restore({"img": np.concatenate([image, alpha], 2)})["img"]
    np.testing.assert_array_equal(with_alpha, np.concatenate([wanted, alpha], 2))
    for grey in (image[..., 0], image[..., :1], image[..., 0].astype(np.uint16) * 257):
        result = restore({"img": grey})["img"]
        assert (result.shape, result.dtype) == (grey.shape, grey.dtype)
    kept = MoEVisionRestore(strength=0.0)({"img": image, "other": 1})
    np.testing.assert_array_equal(kept["img"], image)
    assert kept["other"] == 1
    assert pickle.loads(pickle.dumps(restore)).options == restore.options  # on its way to a worker


def test_restoration_refuses_what_it_cannot_do(tmp_path):
    write_weights(tmp_path / "w.safetensors", "test")
    with pytest.raises(UsageError, match="weather 'fog'"):
        MoEVisionRestore(weather="fog")
    with pytest.raises(UsageError, match="strength"):
        MoEVisionRestore(strength=2)
    with pytest.raises(InputError, match="after LoadImageFromFile"):
        MoEVisionRestore()({"img_path": "a.jpg"})
    with pytest.raises(InputError, match="is not an image"):
        MoEVisionRestore()({"img": np.zeros((4, 4, 7), np.uint8)})
    with pytest.raises(UsageError, match="of a segmentation model"):
        MoEVisionRestore(model=tmp_path / "w.safetensors")({"img": np.zeros((4, 4, 3), np.uint8)})


@pytest.fixture
def forgotten(monkeypatch):
    """`forgotten("mmcv")`: from now on these packages are as if never imported, and so is our module."""

    def forget(*packages):
        for name in list(sys.modules):
            if name.split(".")[0] in packages or name == mmseg.__name__:
                monkeypatch.delitem(sys.modules, name)

    return forget


@pytest.mark.parametrize("missing", ["mmseg", "mmcv", "mmengine"])
def test_a_missing_package_is_named_with_the_extra(missing, forgotten, monkeypatch):
    forgotten("mmseg", "mmcv", "mmengine")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=rf'needs {missing}, .*: pip install "moevision\[mmseg\]"$'):
        importlib.import_module(mmseg.__name__)


def test_an_mmcv_that_mmseg_refuses_is_named_with_the_right_one(forgotten, monkeypatch):
    forgotten("mmseg", "mmcv")
    mmcv = types.ModuleType("mmcv")
    mmcv.__version__, mmcv.__path__ = "2.2.0", []
    monkeypatch.setitem(sys.modules, "mmcv", mmcv)
    with pytest.raises(UsageError, match=r"MMCV==2\.2\.0 .*: pip install mmcv-lite==2\.1\.0") as error:
        importlib.import_module(mmseg.__name__)
    assert "\n" not in str(error.value)


def test_the_stand_in_has_classes_that_refuse_and_no_hidden_names():
    ops = mmcv_ops.StandIn("mmcv.ops")
    assert isinstance(ops.DeformConv2d, type)
    assert ops.DeformConv2d is ops.DeformConv2d
    assert not isinstance(torch.nn.Conv2d(1, 1, 1), (ops.DeformConv2d, ops.ModulatedDeformConv2d))
    with pytest.raises(MissingExtraError, match=r"mmcv\.ops\.CrissCrossAttention is a compiled operator"):
        ops.CrissCrossAttention(4)
    for name in ("__file__", "__path__", "__wrapped__", "__all__", "_ext"):
        with pytest.raises(AttributeError, match=name):
            getattr(ops, name)


def test_the_stand_in_is_put_only_where_there_are_no_operators(monkeypatch):
    import mmcv

    monkeypatch.setattr(mmcv, "ops", None, raising=False)
    monkeypatch.delitem(sys.modules, "mmcv.ops", raising=False)
    compiled = types.ModuleType("mmcv._ext")
    compiled.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    assert not mmcv_ops.install_mmcv_stand_in()
    assert "mmcv.ops" not in sys.modules
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert mmcv_ops.install_mmcv_stand_in()
    assert mmcv_ops.install_mmcv_stand_in()
    from mmcv.ops import get_compiler_version, point_sample

    assert (get_compiler_version(), point_sample) == ("n/a", mmcv_ops.point_sample)
    there = types.ModuleType("mmcv.ops")
    monkeypatch.setitem(sys.modules, "mmcv.ops", there)
    assert not mmcv_ops.install_mmcv_stand_in()
    assert sys.modules["mmcv.ops"] is there


def test_point_sampling_is_mmcvs():
    import mmcv

    source = Path(mmcv.__file__).parent / "ops" / "point_sample.py"
    spec = importlib.util.spec_from_file_location("their_point_sample", source)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    map_BCHW = torch.rand(2, 3, 5, 7)
    for shape in ((2, 9, 2), (2, 4, 3, 2)):
        for align_corners in (False, True):
            points = torch.rand(shape)
            ours = mmcv_ops.point_sample(map_BCHW, points, align_corners=align_corners)
            assert torch.equal(ours, theirs.point_sample(map_BCHW, points, align_corners=align_corners))
