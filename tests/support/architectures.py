"""Architectures of torchvision and timm on which fastcnn.convert is tested, and how small their images may be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import nn

from fastcnn._torchvision import import_torchvision

torchvision_models = import_torchvision().models

import timm  # noqa: E402 - it imports torchvision

# The smallest constructor of each of torchvision's families: pixels. Those with fixed position embeddings, windows
# or linear layers for one size need what stands here.
TORCHVISION = {
    **dict.fromkeys(("densenet121", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf"), 64),
    **dict.fromkeys(("regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5"), 64),
    **dict.fromkeys(("squeezenet1_1", "squeezenet1_0", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny"), 64),
    **dict.fromkeys(("alexnet", "vgg11", "vgg11_bn", "googlenet", "swin_t", "swin_v2_t", "wide_resnet50_2"), 64),
    **{"inception_v3": 299, "maxvit_t": 224, "vit_b_32": 224},
}

# Of timm, chosen for variety of layers.
TIMM = {
    **dict.fromkeys(
        ("resnet10t", "resnet18", "resnet26d", "seresnet18", "ecaresnet26t", "resnetaa50", "resnetblur18"), 64
    ),
    **dict.fromkeys(
        ("skresnet18", "resnest14d", "res2net50_14w_8s", "legacy_seresnet18", "resnetv2_18", "resnetv2_50"), 64
    ),
    **dict.fromkeys(("resnext26ts", "gcresnext26ts", "bat_resnext26ts", "eca_botnext26ts_256"), 256),
    **dict.fromkeys(("lambda_resnet26t", "halonet26t"), 256),
    **dict.fromkeys(("densenet121", "densenetblur121d", "dla34", "dla46x_c", "dla60_res2net", "dpn48b", "dpn68"), 64),
    **dict.fromkeys(("vgg11_bn", "inception_v3", "inception_v4", "legacy_xception", "xception41p"), 128),
    **dict.fromkeys(("vovnet39a", "ese_vovnet19b_slim_dw", "selecsls42", "hrnet_w18_small", "tresnet_m"), 64),
    **dict.fromkeys(("regnetx_002", "regnety_002", "regnetz_005", "gernet_s", "repvgg_a0", "mobileone_s0"), 64),
    **dict.fromkeys(("mobilenetv2_035", "mobilenetv3_small_050", "lcnet_035", "tinynet_e", "mnasnet_small"), 64),
    **dict.fromkeys(("efficientnet_b0", "tf_efficientnet_lite0", "mixnet_s", "spnasnet_100", "fbnetc_100"), 64),
    **dict.fromkeys(("hardcorenas_a", "ghostnet_050", "ghostnetv2_100", "repghostnet_050", "rexnet_100"), 64),
    **dict.fromkeys(("hgnet_tiny", "hgnetv2_b0", "cspresnet50", "cs3darknet_focus_s", "darknet17", "cspnext_tiny"), 64),
    **dict.fromkeys(("convmixer_768_32", "convnext_atto", "inception_next_atto", "fasternet_t0", "starnet_s050"), 64),
    **dict.fromkeys(("mobilevit_xxs", "mobilevitv2_050", "edgenext_xx_small", "repvit_m0_9", "poolformer_s12"), 64),
    **dict.fromkeys(("nf_resnet26", "eca_nfnet_l0", "mobilenetv4_conv_small_035", "fastvit_t8", "rdnet_tiny"), 64),
    **dict.fromkeys(("efficientvit_b0", "efficientformerv2_s0", "levit_128s", "pvt_v2_b0", "visformer_tiny"), 224),
    **dict.fromkeys(("deit_tiny_patch16_224", "mixer_s32_224"), 224),
}

# What the quick run takes of them.
QUICK = (
    *("resnet10t", "resnet26d", "skresnet18", "densenet121", "dla34", "dpn48b", "vovnet39a", "regnety_002"),
    *("mobilenetv3_small_050", "hgnetv2_b0", "resnetv2_18", "ghostnet_050"),
)


def build(library: str, name: str) -> nn.Module:
    """The architecture with random weights, running statistics away from 0 and 1, and nothing drawn at random."""
    create: Callable[..., Any] = torchvision_models.get_model if library == "torchvision" else timm.create_model
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = create(name, num_classes=10, **arguments(library, name))
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            with torch.no_grad():
                for tensor, low, high in (
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.7, 1.5),
                    (module.weight, 0.7, 1.3),
                    (module.bias, -0.3, 0.3),
                ):
                    if tensor is not None:
                        tensor.uniform_(low, high)
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
        if hasattr(module, "drop_rate"):
            module.drop_rate = 0.0
    return model


def arguments(library: str, name: str) -> dict[str, Any]:
    """What the constructor needs beside its name."""
    return {"init_weights": True} if library == "torchvision" and name in ("googlenet", "inception_v3") else {}


def on_meta(name: str) -> nn.Module:
    """One of torchvision's models without memory."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    # Some compute their sizes with tensors, which the meta device has no values of: so they are made here, where memory
    # that nobody has written to costs nothing.
    leave = {init: lambda tensor, *_, **__: tensor for init in vars(nn.init) if init.endswith("_") and init[0] != "_"}
    with mock.patch.multiple(nn.init, **leave), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = torchvision_models.get_model(name, **options)
    return model.to("meta")
