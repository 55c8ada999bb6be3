"""What images are compared by: networks that turn uint8 images b 3 H W into columns of numbers.

    legacy    Inception of 2015, images resized by TF1's bilinear rule: torch-fidelity's
              convention, and that of the papers of ImageBART's time (pytorch-fid has PyTorch's
              rule for pixels' centres, which gives other features)
    clean     the same network, images resized by PIL's bicubic filter: clean-fid's convention
    probe     the network that recognises scenery, where none of the others is at hand
    dinov2    DINOv2 in a folder in Hugging Face's layout

Every network has `columns`, {name: (type, numbers)}: "features", of some also "logits" (of its
classes, for IS) and "spatial" (for sFID). Nothing is downloaded.
"""

import io
import pickle
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from rows import Columns
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import normalize, resize

from imagebart.checkpoint import sha256_of
from imagebart.folders import model_sha256
from imagebart.probe import ATTRIBUTES, SHIPPED_PROBE, Probe

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIDE = 299  # of the images that Inception reads
LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1"),
    *("Conv2d_4a_3x3", "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b"),
    *("Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)
SPATIAL = "Mixed_6d"
"""mixed_6 of the TF1 graph: its first seven channels at 17×17 places are sFID's features."""


class Inception(nn.Module):
    """The published network: 2048 features, 1008 logits without bias, 7·17·17 spatial features."""

    columns: ClassVar[Columns] = {
        "features": ("f4", 2048),
        "logits": ("f4", 1008),
        "spatial": ("f4", 2023),
    }

    def __init__(self, path: Path | None = None, clean: bool = False):
        super().__init__()
        path = path or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
        if not path.is_file():
            raise ValueError(f"Inception's weights must be at {path}, get them at {INCEPTION_URL}")
        try:
            # The network's own loader unpickles without checks, so it is given weights read safely.
            weights = io.BytesIO()
            torch.save(torch.load(path, map_location="cpu", weights_only=True), weights)
            weights.seek(0)
            self.net = FeatureExtractorInceptionV3("inception", ["2048"], weights)
        except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError) as error:
            raise ValueError(f"{path} must hold Inception's weights") from error
        self.resize = resized_clean if clean else resized_like_tensorflow
        self.sha256 = sha256_of(path)
        self.published = self.sha256 == INCEPTION_SHA256

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        # TF32 would change the features: in full precision all machines agree.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            x = (self.resize(images) - 128) / 128
            for name in LAYERS:
                x = getattr(self.net, name)(x)
                if name == SPATIAL:
                    spatial = x[:, :7].flatten(1)
            features = x.flatten(1)
            logits = features @ self.net.fc.weight.T
        return {"features": features, "logits": logits, "spatial": spatial}


def resized_like_tensorflow(images: Tensor) -> Tensor:
    """TF1's bilinear rule, without antialiasing; float32 in [0, 255]."""
    return interpolate_bilinear_2d_like_tensorflow1x(
        images.float(), size=(SIDE, SIDE), align_corners=False
    )


def resized_clean(images: Tensor) -> Tensor:
    """PIL's bicubic filter with antialiasing, a channel at a time in float32, not rounded."""
    rows = [
        np.asarray(Image.fromarray(channel).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for channel in rearrange(images, "b c h w -> (b c) h w").cpu().float().numpy()
    ]
    resized = torch.from_numpy(np.stack(rows)).clamp(0, 255)
    return rearrange(resized, "(b c) h w -> b c h w", c=3).to(images.device)


class ProbeNetwork(nn.Module):
    """The probe: its pooled features, and log-probabilities of the kind of place."""

    published = True

    def __init__(self, folder: Path | None = None):
        super().__init__()
        self.probe = Probe(folder)
        self.sha256 = model_sha256(folder or SHIPPED_PROBE)
        width = self.probe.model.config.vision_config.hidden_size
        self.columns = {"features": ("f4", width), "logits": ("f4", len(ATTRIBUTES["kind"]))}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.probe.predict(images.cpu())
        return {
            "features": found.features,
            "logits": found.attributes["kind"].clamp(min=1e-30).log(),
        }


class DINOv2(nn.Module):
    """The class token of a DINOv2 in a folder, of whole images resized to 224×224 (bicubic), as
    FD-DINOv2 is published: the model's own processor would crop them."""

    published = True
    SIDE = 224

    def __init__(self, folder: Path | None):
        super().__init__()
        if folder is None or not (folder / "config.json").is_file():
            raise ValueError(f"dinov2 needs --dinov2, the folder of a DINOv2 model, got {folder}")
        from transformers import AutoImageProcessor, Dinov2Model  # seconds, so only when asked for

        self.net = Dinov2Model.from_pretrained(folder, local_files_only=True).eval()
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self.mean, self.std = processor.image_mean, processor.image_std
        self.sha256 = model_sha256(folder)
        self.columns = {"features": ("f4", self.net.config.hidden_size)}

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        resized = resize(images, [self.SIDE, self.SIDE], InterpolationMode.BICUBIC)
        pixels = normalize(resized.float() / 255, self.mean, self.std)
        return {"features": self.net(pixels.to(self.net.device)).last_hidden_state[:, 0]}


TITLES = {"legacy": "", "clean": "clean-", "probe": "probe-", "dinov2": "DINOv2-"}
"""What stands before the name of a metric by each network."""


def open_network(
    name: str,
    inception: Path | None = None,
    probe: Path | None = None,
    dinov2: Path | None = None,
) -> nn.Module:
    """The network of this name, from the weights given or from where they are by default."""
    if name == "dinov2":
        return DINOv2(dinov2)
    return ProbeNetwork(probe) if name == "probe" else Inception(inception, clean=name == "clean")
