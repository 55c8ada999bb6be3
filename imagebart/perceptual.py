"""What trains the VQGAN: how far a reconstruction is, to the eye.   [section 3.2]

    -log p_θ^0(x_0 | x_1) ∝ f_rec(x_0, G(x_1)) + adversarial term =: L_rec + L_adv

f_rec is L1 plus a distance of deep features. Three kinds of features: `LPIPS`, the paper's, which
needs the weights of a trained network on disk, `ImageNetFeatures`, whose weights a package brings,
and `RandomFeatures`, which needs nothing. Sampling never imports this file.
"""

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagebart.efficientnet import EfficientNetLite0, find_weights
from imagebart.notation import Float, Images

VGG_FILE = "vgg16-397923af.pth"
VGG_ADDRESS = f"https://download.pytorch.org/models/{VGG_FILE}"


class LPIPS(nn.Module):
    """Learned perceptual distance on VGG16 features, one number an image: f_rec.

    Raises ValueError if the backbone's weights are not on disk: nothing is downloaded silently. Not
    `trained`, it needs none, and only its shape is right.
    """

    def __init__(self, trained: bool = True):
        super().__init__()
        path = Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
        if trained and not path.is_file():
            raise ValueError(f"LPIPS needs {VGG_ADDRESS} at {path}, or choose random features")
        import lpips

        read = dict(pretrained=trained, pnet_rand=not trained)
        with warnings.catch_warnings(category=UserWarning, action="ignore"):  # of old options
            self.distance = lpips.LPIPS(net="vgg", verbose=False, **read)
        self.eval().requires_grad_(False)

    def forward(self, image: Images, reconstruction: Images) -> Float[Tensor, "b"]:
        return self.distance(image, reconstruction).flatten()


class RandomFeatures(nn.Module):
    """Distance of features of a fixed random network, one number an image.

    Convolutions nobody trained still compare edges and textures at several sizes, tolerant of
    small shifts; squares make a lost star or window cost more than a slightly wrong sky, and the
    discriminator does the rest. No download, and the same for everybody: the weights are drawn
    from seed 0.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128)):
        super().__init__()
        self.stages = nn.ModuleList()
        generator = torch.Generator().manual_seed(0)
        width = 3
        for out in widths:
            conv = nn.Conv2d(width, out, 5, stride=2, padding=2, bias=False)
            nn.init.orthogonal_(conv.weight, gain=2**0.5, generator=generator)
            self.stages.append(conv)
            width = out
        self.requires_grad_(False)

    def forward(self, image: Images, reconstruction: Images) -> Float[Tensor, "b"]:
        both = torch.cat([image, reconstruction])
        distance = both.new_zeros(len(image), dtype=torch.float32)
        for stage in self.stages:
            both = F.leaky_relu(stage(both), 0.1)
            a, b = both.float().chunk(2)
            scale = a.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + 1e-3
            distance = distance + ((a - b) / scale).square().mean(dim=(1, 2, 3))
        return distance / len(self.stages)


class ImageNetFeatures(nn.Module):
    """Perceptual distance on features of EfficientNet-Lite0, one number an image.

    As LPIPS without its learned weights: at every place of four maps, features are scaled to unit
    length; squared differences are summed over channels and averaged over places and maps.
    Raises ValueError if the package with the weights is not installed. Not `trained`, it needs
    none, and only its shape is right.
    """

    def __init__(self, trained: bool = True):
        super().__init__()
        self.network = EfficientNetLite0()
        if trained:
            weights = torch.load(find_weights(), map_location="cpu", weights_only=True)
            self.network.load_published(weights)
        self.eval().requires_grad_(False)

    def forward(self, image: Images, reconstruction: Images) -> Float[Tensor, "b"]:
        with torch.no_grad():
            wanted = [unit_length(h) for h in self.network(image)]
        got = [unit_length(h) for h in self.network(reconstruction)]
        each = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(wanted, got, strict=True)]
        return torch.stack(each).mean(0)


def unit_length(h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """h / ‖h‖ at every place, in float32."""
    h = h.float()
    return h / (h.square().sum(1, keepdim=True) + 1e-10).sqrt()


PERCEPTUAL = {"random": RandomFeatures, "imagenet": ImageNetFeatures, "lpips": LPIPS}


def untrained(name: str) -> nn.Module:
    """The perceptual network of that name, right in shape alone: for the memory that it takes."""
    return RandomFeatures() if name == "random" else PERCEPTUAL[name](trained=False)


class PatchDiscriminator(nn.Module):
    """D_φ: says of every patch whether it is real.

    It is shown the picture and, four times as strong, what a blur would lose of it: soft edges are
    then told from sharp ones within a hundred steps (without, within thousands). Group instead of
    batch normalisation, so that ranks need not talk and small batches work.
    """

    def __init__(self, channels: int = 64, layers: int = 3):
        super().__init__()
        blocks = [nn.Conv2d(6, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, layers + 1):
            out, stride = channels * min(2**i, 8), 1 if i == layers else 2
            blocks += [nn.Conv2d(width, out, 4, stride, 1, bias=False), nn.GroupNorm(8, out)]
            blocks += [nn.LeakyReLU(0.2)]
            width = out
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(width, 1, 4, 1, 1))

    def forward(self, image: Images) -> Float[Tensor, "b 1 h w"]:
        return self.blocks(torch.cat([image, 4 * high_pass(image)], dim=1))


def reconstruction_loss(
    image: Images,
    reconstruction: Images,
    perceptual: nn.Module,
    weight: float,
    detail: float = 0.0,
    edges: float = 0.0,
) -> Tensor:
    """L_rec = mean w · |x_0 - G(x_1)| + weight · f_rec(x_0, G(x_1)) + edges · slopes.   [eq. 3]

    w = 1 + detail · |x_0 - blurred x_0|: where the eye rests, on a star or a lit window, an error
    counts for more. A plain mean (detail = 0, the paper's) would rather lose a star than place it
    one pixel off. slopes = mean |∇x_0 - ∇G(x_1)|, of neighbouring pixels: a weave in a flat sky is
    small in every pixel, and all slope.
    """
    w = 1 + detail * high_pass(image).abs()
    error = image - reconstruction.float()
    loss = (w * error.abs()).mean() + weight * perceptual(image, reconstruction).mean()
    return loss + edges * sharpness(error).mean() if edges else loss


def high_pass(image: Images) -> Images:
    """What a 9×9 blur would lose: stars, windows, edges, texture."""
    return image - F.avg_pool2d(image, 9, stride=1, padding=4, count_include_pad=False)


def generator_loss(fake: Tensor) -> Tensor:
    """L_adv for the generator: the hinge form of -log D_φ(G(x_1))."""
    return -fake.float().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of D_φ on images and reconstructions.   [eq. 4]"""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def lecam(real: Tensor, fake: Tensor, averages: Float[Tensor, "2"]) -> Tensor:
    """Keeps D_φ from telling too well: its outputs are drawn to the other side's moving average.

        mean max(0, D(x_0) - ā_fake)² + mean max(0, ā_real - D(G(x_1)))²

    `averages` holds ā_real, ā_fake. Tseng et al., *Regularizing GANs under limited data* (2021).
    """
    above, below = real.float() - averages[1], averages[0] - fake.float()
    return F.relu(above).square().mean() + F.relu(below).square().mean()


def adaptive_weight(rec_gradient: Tensor, adv_gradient: Tensor) -> Tensor:
    """λ = ‖∇L_rec‖ / (‖∇L_adv‖ + 1e-4) at the last layer: neither term drowns the other."""
    return (rec_gradient.norm() / (adv_gradient.norm() + 1e-4)).clamp(0, 1e4).detach()


def sharpness(image: Images) -> Float[Tensor, "b"]:
    """Mean absolute difference of neighbouring pixels, one number an image."""
    down = image.diff(dim=2).abs().mean(dim=(1, 2, 3))
    right = image.diff(dim=3).abs().mean(dim=(1, 2, 3))
    return (down + right) / 2
