"""task=export: what is written loads without this library and says what the training network says."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dkel_lightning import DistillationModule
from dkel_lightning.app import tasks
from dkel_lightning.app.config import checks
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.train import train
from dkel_lightning.errors import CheckpointError, ConfigError, DiskFullError
from dkel_lightning.export import FORMATS, Preprocessing, export, exporter, formats, open_exported
from dkel_lightning.export.costs import BATCHES
from tests.app.tasks.exporting import QUICK, digits, exported, logits_of, trained, values_of
from tests.commands import dkel
from tests.compose import compose, prepare, tiny_run
from tests.disks import as_root, fill, small_disk
from tests.reliability.harness import in_a_child


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def folders(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hold one peer of the teacher in every format."""
    root = tmp_path_factory.mktemp("exports")
    found = {}
    for kind in FORMATS[1:]:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".* in training mode")
            result = exported(checkpoint, root, f"export.format={kind}", "deploy.peer=1")
        assert result.shipped.folder == root / f"teacher_1_{kind}"
        found[kind] = result.shipped.folder
    return found


# Run by an interpreter that sees the installed packages, but no checkout and nothing of this library's.
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
RECEIVER = """
import onnxruntime
session = onnxruntime.InferenceSession(folders["onnx"] + "/model.onnx")
networks["onnx"] = lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
networks["torch_export"] = torch.export.load(folders["torch_export"] + "/model.pt2").module()
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
    found = {kind: torch.from_numpy(np.load(file)) for kind, file in files.items()}
    for file in files.values():
        file.unlink()
    return found


@pytest.mark.slow
def test_graphs_give_the_training_networks_logits_where_this_library_cannot_be_imported(
    folders: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    images = digits(11)[1]
    expected = logits_of(checkpoint, "teacher_1", images)
    found = received_elsewhere(RECEIVER, folders, images, tmp_path)
    assert found.keys() == {"onnx", "torch_export"}
    for kind, received in found.items():
        torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-5, msg=f"{kind} differs")


HOME = """
import timm, torchvision, transformers
read = lambda kind: torch.load(folders[kind] + "/weights.pt", weights_only=True)
networks["torchvision"] = torchvision.models.resnet18(num_classes=5)
networks["torchvision"].load_state_dict(read("torchvision"))
weights = folders["timm"] + "/weights.pt"
networks["timm"] = timm.create_model("test_vit", num_classes=5, img_size=32, checkpoint_path=weights)
hf = transformers.AutoModelForImageClassification.from_pretrained(folders["hf"])
assert hf.config.id2label[4] == "e"
networks["hf"] = lambda x: hf(x).logits
for network in (networks["torchvision"], networks["timm"], hf):
    network.eval()
"""


@pytest.mark.slow
def test_weights_go_home_to_torchvision_timm_and_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    config.save_pretrained(tmp_path / "config")
    names = {"torchvision": "torchvision:resnet18", "timm": "timm:test_vit", "hf": f"hf:{tmp_path / 'config'}"}
    images = torch.randn(11, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    known = Preprocessing(3, 32, 32, (0.5,) * 3, (0.25,) * 3, tuple("abcde"))
    folders, expected = {}, {}
    for source, name in names.items():
        cut = {"timm": "blocks.4", "hf": "vit.layers.2"}.get(source)
        module = DistillationModule.build(name, 5, "dkel", 2, split_at=cut, image_size=(32, 32))
        shipped = export(module, images, tmp_path / source, known, format="original", peer=1, repeats=0)
        folders[source] = tmp_path / source
        with torch.no_grad():
            expected[source] = module.evaluate(images).logits[module.scores.members.index("teacher_1")]
        torch.testing.assert_close(
            open_exported(shipped.folder).classify(images), expected[source], rtol=1e-3, atol=1e-4
        )
    for source, found in received_elsewhere(HOME, folders, images, tmp_path).items():
        torch.testing.assert_close(found, expected[source], rtol=1e-3, atol=1e-4, msg=f"{source} differs")
        expected.pop(source)
    assert not expected


@pytest.mark.slow
def test_a_timm_student_of_the_command_line_goes_home(tmp_path: Path) -> None:
    chosen = ("backbone=timm:test_resnet", "backbone.split_at=layer4", "method.peers=2")
    prepare(list(chosen))
    train(tiny_run(tmp_path, *chosen))
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    result = exported(checkpoint, tmp_path, "export.format=original", "deploy.network=student", "deploy.peer=1")
    home = timm.create_model("test_resnet", num_classes=10, in_chans=1, checkpoint_path=str(result.shipped.file)).eval()
    images = digits(5)[1]
    with torch.no_grad():
        torch.testing.assert_close(home(images), logits_of(checkpoint, "student_1", images), rtol=1e-3, atol=1e-4)
    card = (result.shipped.folder / "README.md").read_text()
    assert 'timm.create_model("test_resnet", num_classes=10, in_chans=1, checkpoint_path="weights.pt")' in card


def test_files_card_and_agreement_are_written(folders: dict[str, Path]) -> None:
    inside = {kind: {path.name for path in folder.iterdir()} for kind, folder in folders.items()}
    both = {"README.md", "export.json"}
    assert inside == {
        "state_dict": both | {"weights.pt"},
        "safetensors": both | {"weights.safetensors"},
        "torch_export": both | {"model.pt2"},
        "onnx": both | {"model.onnx"},
    }
    for kind, folder in folders.items():
        record = json.loads((folder / "export.json").read_text())
        agreement = record["agreement"]
        assert (record["format"], record["member"], agreement["images"]) == (kind, "teacher_1", 40)
        assert 0 <= agreement["largest_difference"] <= 1e-4 * max(1, agreement["largest_logit"])
        assert agreement["same_class"] == 40
        card = (folder / "README.md").read_text()
        assert "**exported**: teacher_1: set beforehand, by the method or by deploy.*" in card
        assert "expected calibration error" in card
        assert "1,150 training, 287 validation, 360 test" in card
        assert "SHA-256" in card
        assert "\n## Licence\n" in card


@pytest.mark.parametrize("kind", FORMATS[1:])
def test_an_export_with_a_flipped_bit_is_refused(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / kind)
    (file,) = (path for path in folder.iterdir() if path.name not in ("README.md", "export.json"))
    whole, draws = file.read_bytes(), random.Random(0)
    for _ in range(20):
        content = bytearray(whole)
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{file.name} is damaged or was edited .*: export again"):
            open_exported(file, trust=True)
    file.write_bytes(whole)
    open_exported(file, trust=True)
    (folder / "export.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"export\.json is damaged .*: export again"):
        open_exported(file, trust=True)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"peers": 10**6}, None),
        ({"peers": ["resnet8"] * 10**6}, None),
        ({"num_classes": 10**7}, "asks for num_classes=10000000 than it holds"),
        ({"in_channels": 10**6}, "asks for in_channels=1000000 than it holds"),
        ({"image_size": [10**5, 10**5]}, "asks for images of"),
        ({"backbone": "wide_resnet20_8"}, "asks for networks of more weights than it holds"),
        ({"backbone": "hf:/dev"}, "was trained with hf:/dev, and no file chooses a folder that is read"),
    ],
)
def test_the_record_of_an_export_asks_for_no_more_than_its_file_holds(
    edit: dict[str, Any], message: str | None, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["state_dict"], tmp_path / "it")
    record = json.loads((folder / "export.json").read_text())
    record["recipe"] |= edit
    (folder / "export.json").write_text(json.dumps(record))
    started = time.process_time()
    if message is None:  # of a million peers one is in the file, and no other is drawn
        open_exported(folder)
    else:
        with pytest.raises(CheckpointError, match=message):
            open_exported(folder)
    assert time.process_time() - started < 10


def test_the_preprocessing_travels_inside_the_files(folders: dict[str, Path]) -> None:
    import onnx
    from safetensors import safe_open

    model = onnx.load(folders["onnx"] / "model.onnx")
    inside = {item.key: item.value for item in model.metadata_props}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not any(node.metadata_props for node in model.graph.node)  # paths of the machine that exported
    with safe_open(folders["safetensors"] / "weights.safetensors", framework="pt") as file:
        told = [inside["dkel_lightning"], file.metadata()["dkel_lightning"]]
    told += [json.dumps(json.loads((folder / "export.json").read_text())) for folder in folders.values()]
    for text in told:
        preprocessing = json.loads(text)["preprocessing"]
        assert (preprocessing["mean"], preprocessing["std"]) == ([0.3051], [0.3758])
        assert [preprocessing[name] for name in ("channels", "height", "width")] == [1, 8, 8]
        assert preprocessing["classes"] == [str(digit) for digit in range(10)]
    assert json.loads(inside["preprocessing"])["mean"] == [0.3051]


def test_another_peer_and_the_ensemble_are_exported_on_request(checkpoint: Path, tmp_path: Path) -> None:
    images = digits(5)[1]
    chosen = {"student_0": ("deploy.network=student", "deploy.peer=0"), "ensemble": ("deploy.network=ensemble",)}
    for member, overrides in chosen.items():
        result = exported(checkpoint, tmp_path, "export.format=state_dict", *overrides)
        assert result.shipped.member == result.scores.deployed == member
        opened = open_exported(result.shipped.file)
        expected = logits_of(checkpoint, member, images)
        torch.testing.assert_close(opened.classify(images), expected, rtol=1e-4, atol=1e-5)


def test_costs_are_those_counted_by_hand_and_stand_beside_the_training_networks(
    checkpoint: Path, tmp_path: Path
) -> None:
    result = exported(checkpoint, tmp_path, "export.repeats=2", f"export.to='{tmp_path / 'here'}'")
    assert result.shipped.folder == tmp_path / "here"
    file, deployed, training = result.shipped.costs
    # Weights of stem, three stages (the last two with shortcuts) and classifier, with BatchNorm's scale and shift.
    stages = (2 * 2304 + 64, 4608 + 9216 + 512 + 3 * 64, 18432 + 36864 + 2048 + 3 * 128)
    assert deployed.parameters == (144 + 32) + sum(stages) + 650 == 77_754
    # Multiplications at 8x8, 4x4 and 2x2 positions, twice.
    positions = 64 * (144 + 2 * 2304) + 16 * (4608 + 9216 + 512) + 4 * (18432 + 36864 + 2048) + 640
    assert deployed.flops == 2 * positions
    assert file.bytes == (result.shipped.folder / "weights.safetensors").stat().st_size
    # Students and teachers share a trunk each; the ensemble classifier reads the features of both peers.
    own = stages[2] + 650
    assert training.parameters == 2 * (77_754 + own) + (2 * 64 * 10 + 10)
    for cost in result.shipped.costs:
        assert [(time.batch, time.repeats) for time in cost.latencies] == [(size, 2) for size in BATCHES]
        assert all(time.seconds > 0 for time in cost.latencies)
    assert "| 77,754 | " in (result.shipped.folder / "README.md").read_text()


def shifted(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    honest = formats.received

    def wrong(*given: Any) -> formats.Classifier:
        classify = honest(*given)
        return lambda images: classify(images) + by

    monkeypatch.setattr(formats, "received", wrong)


@pytest.mark.parametrize("by", [0.01, float("nan")])
def test_a_file_with_other_logits_is_refused_and_the_earlier_export_stays(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    shifted(monkeypatch, by)
    with pytest.raises(
        CheckpointError, match=r"does not give the logits of teacher_\d: they differ by up to (0\.01|nan)"
    ):
        exported(checkpoint, tmp_path)
    assert list(tmp_path.iterdir()) == []
    earlier = tmp_path / "kept"
    earlier.mkdir()
    (earlier / "export.json").write_text("{}")
    with pytest.raises(CheckpointError, match="Nothing was written"):
        exported(checkpoint, tmp_path, f"export.to='{earlier}'")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (earlier / "export.json").read_text() == "{}"


@as_root
@pytest.mark.parametrize(
    ("kind", "leave", "file"),
    [
        ("state_dict", 0, r"weights\.pt"),
        ("state_dict", 100_000, r"weights\.pt"),
        ("safetensors", 100_000, r"weights\.safetensors"),
        ("torch_export", 100_000, r"model\.pt2"),
        ("onnx", 100_000, r"model\.onnx"),
    ],
)
def test_an_export_that_finds_no_room_names_its_file_and_leaves_nothing(
    kind: str, leave: int, file: str, checkpoint: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        fill(disk, leave)
        target = disk / "shipped" / "here"
        given = ("task=export", f"checkpoint='{checkpoint}'", f"export.format={kind}", f"export.to='{target}'", *QUICK)
        with pytest.raises(DiskFullError, match=rf"^Could not write {target}/{file} \(No space left on device\): free"):
            tasks.run(Run(values_of(checkpoint, *given), tmp_path))
        assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.slow
@as_root
def test_the_command_line_leaves_no_empty_folder_of_an_export_that_found_no_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        checkpoint = trained(disk / "run")
        before = sorted(disk.rglob("*"))
        filler = fill(disk, 100_000)
        done = dkel("task=export", f"checkpoint='{checkpoint}'", *QUICK)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert done.stderr.startswith(f"Error: Could not write {disk}/run/export_last/teacher_")
        filler.unlink()
        assert sorted(disk.rglob("*")) == before


def test_what_a_killed_export_has_left_goes_with_the_next_and_an_earlier_one_comes_back(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def killed(after_rename: bool) -> None:
        rename = Path.rename

        def dies(path: Path, target: Path) -> Path:
            if after_rename:
                rename(path, target)
            os._exit(9)

        with pytest.MonkeyPatch.context() as patch, exporter.whole_folder(place) as draft:
            (draft / "export.json").write_text("new")
            patch.setattr(Path, "rename", dies)

    place = shutil.copytree(folders["onnx"], tmp_path / "place")
    for after_rename in (False, True):
        assert in_a_child(lambda: killed(after_rename)) == 9  # noqa: B023  (runs at once)
        assert len([*tmp_path.iterdir()]) == 3
        assert place.exists() is not after_rename
        with pytest.raises(KeyboardInterrupt), exporter.whole_folder(place):
            raise KeyboardInterrupt
        assert [path.name for path in tmp_path.iterdir()] == ["place"]
        open_exported(place)


def test_an_earlier_export_is_replaced_whole_and_anything_else_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for name in ("export.json", "model.onnx"):
        (place / name).write_text("{}")
    exported(checkpoint, tmp_path, f"export.to='{place}'")
    assert {path.name for path in place.iterdir()} == {"README.md", "export.json", "weights.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("...")
    with pytest.raises(ConfigError, match="holds something else than an export"):
        exported(checkpoint, tmp_path, f"export.to='{tmp_path / 'thesis'}'")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
    (place / ".git").mkdir()  # a clone of where it is published
    with pytest.raises(ConfigError, match="holds something else than an export"):
        exported(checkpoint, tmp_path, f"export.to='{place}'")
    assert len([*place.iterdir()]) == 4
    for here in (".", ".."):
        with pytest.raises(ConfigError, match="takes the place of its whole folder"), exporter.whole_folder(Path(here)):
            pass


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnxscript"), ("safetensors", "safetensors")])
def test_a_missing_package_is_named_with_its_extra_before_anything_is_read(
    kind: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf'{kind} needs {package} .*pip install "dkel-lightning\[export\]"'):
        formats.check(kind)


class Own(nn.Module):
    """A network of one's own, with a branch on its input's size and a buffer that is not among the weights."""

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
    known = Preprocessing(3, 9, 9, (0.5,) * 3, (0.25,) * 3)
    shipped = export(module, images, tmp_path / "own", known, network="student", peer=1, repeats=0)
    assert shipped.member == "student_1"
    own = Own()
    own.load_state_dict(load_file(shipped.file))
    with torch.no_grad():
        torch.testing.assert_close(own.eval()(images), module.evaluate(images).logits[1])
    with pytest.raises(CheckpointError, match="a network of the user's own, which cannot be rebuilt by name"):
        open_exported(shipped.file)
    with pytest.raises(ConfigError, match=r"The images to compare on are \[6, 3, 9, 9\], the preprocessing gives"):
        export(module, images, tmp_path / "other", Preprocessing(1, 9, 9, (0.5,), (0.25,)))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_a_module_in_another_precision_is_exported_in_float32_and_keeps_its_own(
    kind: torch.dtype, tmp_path: Path
) -> None:
    module = DistillationModule.build("resnet8", 10, "dkel", 2, in_channels=1, image_size=(8, 8)).to(kind)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images, known = digits(6)[1], Preprocessing(1, 8, 8, (0.5,), (0.25,))
    shipped = export(module, images, tmp_path / "own", known, format="state_dict", peer=1, repeats=0)
    assert (shipped.agreement.same_class, shipped.agreement.holds) == (6, True)
    with torch.no_grad():
        expected = module.deploy(peer=1)(images)
    torch.testing.assert_close(open_exported(shipped.file).classify(images), expected)
    after = module.state_dict()
    assert module.dtype == kind
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def test_a_network_of_this_library_has_no_original_form(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"format=original is for networks of .*choose one of state_dict, safetensors"
    ):
        exported(checkpoint, tmp_path, "export.format=original")


def test_the_command_line_knows_the_formats_and_writes_beside_the_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"export.format must be one of original, state_dict, safetensors, torch_export, onnx"
    ):
        checks.check(compose("task=export", f"checkpoint='{checkpoint}'", "export.format=onxx"))
    (folder,) = [item for item in prepare(["task=export", f"checkpoint='{checkpoint}'"]) if "run.dir" in item]
    assert folder == f"hydra.run.dir={checkpoint.parent.parent.resolve() / 'export_last'}"
