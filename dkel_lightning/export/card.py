"""The model card: README.md of an exported folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from dkel_lightning.export.costs import Cost
from dkel_lightning.export.formats import FOLDER
from dkel_lightning.export.metadata import Agreement, Facts, Record, backbone_of
from dkel_lightning.networks import size_arguments
from dkel_lightning.runtime.texts import markdown

LICENCE = (
    "dkel_lightning is under the MIT licence, and claims nothing on what is exported with it. The weights were "
    "learnt from the data named above: its terms hold for them too. Nothing here was tested beyond the test set named."
)


def write(
    record: Record,
    files: Sequence[str],
    agreement: Agreement,
    costs: Sequence[Cost],
    facts: Facts,
    where: Mapping[str, Any],
    title: str,
) -> str:
    """Write the card as Markdown."""
    lines = [f"# {markdown(title)}", "", *_use(record, files[0]), *_preprocessing(record)]
    for heading, section in (("Data", facts.data), ("Protocol", facts.protocol), ("Accuracy", facts.accuracy)):
        lines += _section(heading, section)
    lines += _checked(agreement, files[0])
    if costs:
        lines += [*_costs(costs, where)]
    lines += _section("Provenance", facts.provenance)
    return "\n".join([*lines, "## Licence", "", LICENCE, ""])


_BUILT = """\
from pathlib import Path

from dkel_lightning.export import open_exported

exported = open_exported(Path("{file}"))
logits = exported.classify(exported.record.preprocessing.normalised(images))  # images: uint8 [B, C, H, W]"""
_OWN = {
    "torchvision": """\
import torch
from torchvision.models import get_model

network = get_model("{name}", num_classes={classes}{size})
network.load_state_dict(torch.load("{file}", weights_only=True))""",
    "timm": """\
import timm

network = timm.create_model("{name}", num_classes={classes}, in_chans={channels}{size}, checkpoint_path="{file}")""",
    "hf": """\
from transformers import AutoModelForImageClassification

network = AutoModelForImageClassification.from_pretrained(".")""",
    ".pt": """\
import torch

network.load_state_dict(torch.load("{file}", weights_only=True))  # a network of the class that was trained""",
    ".safetensors": """\
from safetensors.torch import load_file

network.load_state_dict(load_file("{file}"))  # a network of the class that was trained""",
}
_TRACED = """\
import torch

network = torch.export.load("model.pt2").module()
logits = network(images)  # prepared as below, a batch of any size"""
_ONNX = """\
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {{"images": images}})  # prepared as below, a batch of any size"""
_USE = {
    "original": ("Its weights have the names that the network's own library gives them.", ""),
    "state_dict": ("Read with `weights_only`; this library builds the network.", _BUILT),
    "safetensors": ("This library builds the network.", _BUILT),
    "torch_export": (
        "Needs torch alone. As every .pt2 it may hold objects that run code on loading: know where it comes from.",
        _TRACED,
    ),
    "onnx": ("Needs onnxruntime, or another runtime of ONNX.", _ONNX),
}


def _use(record: Record, file: str) -> list[str]:
    channels, height, width = record.preprocessing.shape
    backbone = backbone_of(record.recipe, record.member)
    source, _, name = backbone.rpartition(":")
    needs, code = _USE["original" if record.recipe is None and file.startswith("weights.") else record.format]
    size = "".join(f", {key}={value}" for key, value in size_arguments(backbone, (height, width)).items())
    own = "hf" if file == FOLDER else source or PurePath(file).suffix
    code = code or _OWN[own]
    code = code.format(file=file, name=name, classes=record.num_classes, channels=channels, size=size)
    form = f"Images [B, {channels}, {height}, {width}], float32 -> logits [B, {record.num_classes}]."
    return [f"`{file}`: {form} {needs}", "", "```python", code, "```", ""]


def _preprocessing(record: Record) -> list[str]:
    known = record.preprocessing
    shown = ", ".join(name if name == str(i) else f"{i} {name}" for i, name in enumerate(known.classes[:20]))
    more = f", ... ({len(known.classes)} in all)" if len(known.classes) > 20 else ""
    section = {
        "steps": str(known.as_dict()["steps"]),
        "mean": _numbers(known.mean),
        "std": _numbers(known.std),
        "classes": f"{shown}{more}" if known.classes else f"{record.num_classes}, without names",
    }
    return _section("Preprocessing", section)


def _checked(agreement: Agreement, file: str) -> list[str]:
    return [
        "## Checked",
        "",
        f"When it was written, `{file}` was opened and asked about {agreement.images} real images, alone and in "
        f"batches. Its logits differ from those of the training network by at most {agreement.largest_difference:.2g} "
        f"(the largest logit is {agreement.largest_logit:.3g}; {agreement.tolerance:g} of it was allowed). Both name "
        f"the same class for {agreement.same_class} of {agreement.images}.",
        "",
    ]


def _costs(costs: Sequence[Cost], where: Mapping[str, Any]) -> Iterator[str]:
    sizes = [latency.batch for latency in costs[0].latencies]
    yield from ("## Costs", "")
    yield f"| | parameters | bytes | FLOPs an image | {' | '.join(f'ms, batch {size}' for size in sizes)} |"
    yield f"| --- | ---: | ---: | ---: | {' | '.join('---:' for _ in sizes)} |"
    for cost in costs:
        times = " | ".join(latency.milliseconds for latency in cost.latencies)
        yield f"| {cost.name} | {_count(cost.parameters)} | {cost.bytes:,} | {_count(cost.flops)} | {times} |"
    repeats = sorted({latency.repeats for cost in costs for latency in cost.latencies})
    yield ""
    yield (
        f"Median of {' to '.join(str(n) for n in dict.fromkeys((repeats[0], repeats[-1])))} passes on the CPU "
        f"({where['threads']} threads, {markdown(_processor(where))}, torch {where['torch']}), float32. Bytes are of "
        "the file, or of weights and statistics in memory. FLOPs are of convolutions and matrix products, a "
        "multiplication and an addition counted as two. The training network answers with all students, teachers and "
        "ensembles."
    )
    yield ""


def _processor(where: Mapping[str, Any]) -> str:
    device = where["device"]
    return ", ".join(device["names"]) if device["kind"] == "cpu" else f"beside {', '.join(device['names'])}"


def _section(heading: str, lines: Mapping[str, str]) -> list[str]:
    if not lines:
        return []
    return [f"## {heading}", "", *(f"- **{markdown(name)}**: {markdown(text)}" for name, text in lines.items()), ""]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
