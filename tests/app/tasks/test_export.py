"""Exports: each format gives the logits of the training network, and opens without this library where it can."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dkel_lightning import DistillationModule
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.export import FORMATS, Preprocessing, export, formats, open_exported
from tests.app.tasks.exporting import digits, exported, logits_of, trained


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def folders(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One peer of the teacher in every format."""
    root = tmp_path_factory.mktemp("exports")
    folders = {}
    for kind in FORMATS:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".* in training mode")
            folders[kind] = exported(checkpoint, root, f"export.format={kind}", "deploy.peer=1").path.parent
        assert folders[kind] == root / f"teacher_1_{kind}"
    return folders


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_logits_of_the_training_network_in_batches_of_any_size(
    kind: str, folders: dict[str, Path], checkpoint: Path
) -> None:
    stored, images = digits(11)
    opened = open_exported(folders[kind], trust=True)
    expected = logits_of(checkpoint, "teacher_1", images)
    received = torch.cat([opened.classify(batch) for batch in images.split([1, 3, 7])])
    torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-5)
    prepared = opened.record.preprocessing
    torch.testing.assert_close(prepared.normalised(stored), images)
    assert (prepared.shape, prepared.name(3)) == ((1, 8, 8), "3")
    assert {path.name for path in folders[kind].iterdir()} == {"README.md", "export.json", formats.FILES[kind]}
    assert "its logits differ from those of the trained network by at most" in (folders[kind] / "README.md").read_text()


def test_another_peer_and_the_ensemble_are_exported_on_request(checkpoint: Path, tmp_path: Path) -> None:
    images = digits(5)[1]
    for member, overrides in {
        "student_0": ("deploy.network=student", "deploy.peer=0"),
        "ensemble": ("deploy.network=ensemble",),
    }.items():
        path = exported(checkpoint, tmp_path, *overrides).path
        opened = open_exported(path)
        assert opened.record.member == member
        torch.testing.assert_close(opened.classify(images), logits_of(checkpoint, member, images), rtol=1e-4, atol=1e-5)


def test_a_file_that_a_later_export_in_its_folder_does_not_describe_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    to = f"export.to={tmp_path}"
    first = exported(checkpoint, tmp_path, to, "export.format=weights", "deploy.peer=0").path
    exported(checkpoint, tmp_path, to, "export.format=safetensors", "deploy.peer=1")
    with pytest.raises(
        CheckpointError, match=r"describes weights\.safetensors, a later export: export weights\.pt again"
    ):
        open_exported(first)


# Run by an interpreter that sees the installed packages, but nothing of this library.
ABSENT = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dkel_lightning", "lightning", "pytorch_lightning"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.path.append(sys.argv[1])
import numpy, torch
torch.set_num_threads(1)
folders, images = json.loads(sys.argv[2]), torch.from_numpy(numpy.load(sys.argv[3]))
networks = {}
"""
GRAPHS = """
import onnxruntime
session = onnxruntime.InferenceSession(folders["onnx"] + "/model.onnx")
networks["onnx"] = lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
networks["torch_export"] = torch.export.load(folders["torch_export"] + "/model.pt2").module()
"""
HOME = """
import timm, torchvision, transformers
read = lambda kind: torch.load(folders[kind] + "/weights.pt", weights_only=True)
networks["torchvision"] = torchvision.models.resnet18(num_classes=5)
networks["torchvision"].load_state_dict(read("torchvision"))
weights = folders["timm"] + "/weights.pt"
networks["timm"] = timm.create_model("test_vit", num_classes=5, img_size=32, checkpoint_path=weights)
config = transformers.AutoConfig.from_pretrained(folders["config"], num_labels=5)
hf = transformers.AutoModelForImageClassification.from_config(config)
hf.load_state_dict(read("hf"))
networks["hf"] = lambda x: hf(x).logits
for network in (networks["torchvision"], networks["timm"], hf):
    network.eval()
"""
ANSWER = """
with torch.no_grad():
    for kind, network in networks.items():
        numpy.save(f"{folders[kind]}/received.npy", torch.cat([network(x) for x in images.split([1, 3, 7])]).numpy())
print(sorted(name for name in sys.modules if name.startswith(("dkel", "lightning"))))
"""


def received_elsewhere(code: str, folders: dict[str, Path], images: Tensor, place: Path) -> dict[str, Tensor]:
    np.save(place / "images.npy", images.numpy())
    places = json.dumps({kind: str(folder) for kind, folder in folders.items()})
    command = [sys.executable, "-I", "-S", "-B", "-c", ABSENT + code + ANSWER, sysconfig.get_path("purelib"), places]
    done = subprocess.run(
        [*command, str(place / "images.npy")], capture_output=True, text=True, cwd=place, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    files = {kind: folder / "received.npy" for kind, folder in folders.items() if (folder / "received.npy").exists()}
    return {kind: torch.from_numpy(np.load(file)) for kind, file in files.items()}


@pytest.mark.slow
def test_graphs_run_where_this_library_cannot_be_imported(
    folders: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    places = {kind: Path(shutil.copytree(folders[kind], tmp_path / kind)) for kind in ("onnx", "torch_export")}
    images = digits(11)[1]
    received = received_elsewhere(GRAPHS, places, images, tmp_path)
    assert received.keys() == {"onnx", "torch_export"}
    for kind, logits in received.items():
        torch.testing.assert_close(
            logits, logits_of(checkpoint, "teacher_1", images), rtol=1e-4, atol=1e-5, msg=f"{kind} differs"
        )


@pytest.mark.slow
def test_weights_go_home_to_torchvision_timm_and_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    config.save_pretrained(tmp_path / "config")
    names = {"torchvision": "torchvision:resnet18", "timm": "timm:test_vit", "hf": f"hf:{tmp_path / 'config'}"}
    images = torch.randn(11, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prepared = Preprocessing(3, 32, 32, (0.5,) * 3, (0.25,) * 3, tuple("abcde"))
    folders, expected = {"config": tmp_path / "config"}, {}
    for source, name in names.items():
        cut = {"timm": "blocks.4", "hf": "vit.layers.2"}.get(source)
        module = DistillationModule.build(name, 5, "dkel", 2, split_at=cut, image_size=(32, 32))
        folders[source] = export(module, tmp_path / source, prepared, format="weights", peer=1).path.parent
        with torch.no_grad():
            expected[source] = module.evaluate(images).logits[module.scores.members.index("teacher_1")]
        again = open_exported(tmp_path / source, trust=True).classify(images)
        torch.testing.assert_close(again, expected[source], rtol=1e-3, atol=1e-4)
    with pytest.raises(CheckpointError, match=r"was trained with hf:.*, and no file chooses a folder that is read"):
        open_exported(tmp_path / "hf")
    received = received_elsewhere(HOME, folders, images, tmp_path)
    assert received.keys() == names.keys()
    for source, logits in received.items():
        torch.testing.assert_close(logits, expected[source], rtol=1e-3, atol=1e-4, msg=f"{source} differs")


class Own(nn.Module):
    """A network of the user's own, with a branch on its input's size and a buffer that is not among the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer4 = Pooled()
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.layer4(self.stem(images)))
        return logits


class Pooled(nn.Module):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(3.0), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        return (maps.relu() * self.scale).mean((2, 3)) if maps.shape[2] > 2 else maps.flatten(1)


def test_a_network_of_ones_own_is_exported_from_python(tmp_path: Path) -> None:
    module = DistillationModule.build(Own(), 5, "dkel", 2, split_at="layer4", classifier="fc", image_size=(9, 9))
    images = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    prepared = Preprocessing(3, 9, 9, (0.5,) * 3, (0.25,) * 3)
    own = Own()
    path = export(module, tmp_path / "own", prepared, network="student", peer=1, images=images).path
    own.load_state_dict(load_file(path))
    with torch.no_grad():
        torch.testing.assert_close(own.eval()(images), module.evaluate(images).logits[1])
    with pytest.raises(CheckpointError, match="a custom network, which cannot be rebuilt by name"):
        open_exported(path)
    with pytest.raises(ConfigError, match=r"The images to compare on are \[6, 3, 9, 9\], but the preprocessing gives"):
        export(module, tmp_path / "other", Preprocessing(1, 9, 9, (0.5,), (0.25,)), images=images)
    assert not (tmp_path / "other").exists()


def test_a_module_in_bf16_is_exported_in_float32(tmp_path: Path) -> None:
    module = DistillationModule.build("resnet8", 10, "dkel", 2, in_channels=1, image_size=(8, 8)).to(torch.bfloat16)
    images = digits(6)[1]
    path = export(module, tmp_path, Preprocessing(1, 8, 8, (0.5,), (0.25,)), peer=1).path
    assert {value.dtype for value in load_file(path).values()} == {torch.float32, torch.int64}
    with torch.no_grad():
        torch.testing.assert_close(open_exported(path).classify(images), module.deploy(peer=1)(images))
    assert module.dtype == torch.bfloat16


@pytest.mark.parametrize("by", [0.01, float("nan")])
def test_a_file_with_other_logits_is_refused_and_the_earlier_export_stays(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    folder = exported(checkpoint, tmp_path).path.parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    honest = formats.open_file

    def shifted(*given: Any) -> formats.Classifier:
        classify = honest(*given)
        return lambda images: classify(images) + by

    monkeypatch.setattr(formats, "open_file", shifted)
    with pytest.raises(CheckpointError, match=r"differ by up to (0\.01|nan), .*Nothing was written"):
        exported(checkpoint, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def edit_recipe(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / "export.json").read_text())
    record["recipe"] |= changes
    (folder / "export.json").write_text(json.dumps(record))


def test_what_does_not_belong_together_or_could_run_code_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.pt2 may contain objects that run code on loading"):
        open_exported(folders["torch_export"])
    folder = Path(shutil.copytree(folders["weights"], tmp_path / "weights"))
    edit_recipe(folder, backbone="resnet32")
    with pytest.raises(CheckpointError, match=r"weights\.pt do not fit the network of the export"):
        open_exported(folder)
    edit_recipe(folder, backbone="hf:/dev")
    with pytest.raises(CheckpointError, match="was trained with hf:/dev, and no file chooses a folder that is read"):
        open_exported(folder)
    edit_recipe(folder, backbone="resnet8")
    (folder / "weights.pt").write_bytes((folder / "weights.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"weights\.pt is damaged .*: export again"):
        open_exported(folder)
    (folder / "export.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"export\.json is missing or damaged"):
        open_exported(folder)


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnxscript"), ("safetensors", "safetensors")])
def test_a_missing_package_is_named_with_its_extra(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf'{kind} needs {package} .*pip install "dkel-lightning\[export\]"'):
        formats.check(kind)
