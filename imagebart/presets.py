"""One row per experiment: the shapes, the schedule, and how each part is trained.

A preset is data. `train/compression.py` reads its `vqgan` and `compression`, `train/scale.py` its
`alpha_bar`, its denoiser of scale t and `scale`.
"""

from dataclasses import dataclass, field

from imagebart.denoiser import DenoiserConfig
from imagebart.diffusion import geometric
from imagebart.vqgan import VQGANConfig


@dataclass(frozen=True)
class CompressionRecipe:
    """How a VQGAN is trained (eq. 4)."""

    steps: int
    batch: int  # images a step, over all ranks
    learning_rate: float = 4e-4  # at the top of a warm-up and cosine
    warmup_steps: int = 200
    perceptual: str = "lpips"  # f_rec's features: "lpips" or "random"
    perceptual_weight: float = 1.0
    adversarial_weight: float = 0.8
    adversarial_start: int = 10_000  # step at which the discriminator joins
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    revive_every: int = 100  # steps between revivals of codes that nobody used
    precision: str = "bf16"


@dataclass(frozen=True)
class ScaleRecipe:
    """How one scale is trained (eq. 7, 8)."""

    steps: int
    batch: int  # images a step, over all ranks
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm
    ema_decay: float = 0.999
    precision: str = "bf16"


@dataclass(frozen=True)
class Preset:
    """An experiment: `between` is the denoiser of scales t < T, `last` that of t = T."""

    about: str
    vqgan: VQGANConfig
    alpha_bar: tuple[float, ...]
    between: DenoiserConfig
    last: DenoiserConfig
    compression: CompressionRecipe
    scale: ScaleRecipe
    train_images: int = 0  # images of the procedural data set used for training
    encode_images: int = 0  # of which tokens are written for the chain
    extra: dict = field(default_factory=dict)

    @property
    def T(self) -> int:
        return len(self.alpha_bar)

    def denoiser(self, t: int) -> DenoiserConfig:
        """The shape of scale t's transformer."""
        return self.last if t == self.T else self.between


_TINY_VQGAN = VQGANConfig(
    image_size=64,
    K=64,
    embed_dim=16,
    z_channels=32,
    channels=32,
    multipliers=(1, 1),
    blocks=1,
    attention_levels=(),
    mid_attention=False,
    patch=4,
)

_SCENERY_VQGAN = VQGANConfig(
    image_size=128,
    K=1024,
    embed_dim=32,
    z_channels=192,
    channels=96,
    multipliers=(1, 2),
    blocks=2,
    attention_levels=(),
    mid_attention=False,
    patch=4,
)

PRESETS = {
    "tiny": Preset(
        about="64×64 scenery in minutes: shows that every part runs, not what it can do",
        vqgan=_TINY_VQGAN,
        alpha_bar=tuple(geometric(3)),
        between=DenoiserConfig(grid=(8, 8), width=64, heads=2, encoder_depth=2, decoder_depth=1),
        last=DenoiserConfig(grid=(8, 8), width=64, heads=2, decoder_depth=3),
        compression=CompressionRecipe(
            steps=400,
            batch=16,
            learning_rate=2e-3,
            warmup_steps=20,
            perceptual="random",
            adversarial_start=300,
            discriminator_channels=16,
            discriminator_layers=2,
            revive_every=25,
        ),
        scale=ScaleRecipe(steps=400, batch=64, learning_rate=3e-3, warmup_steps=20, ema_decay=0.99),
        train_images=10_000,
        encode_images=4_000,
    ),
    "scenery": Preset(
        about="the shipped model: 128×128 scenery, 16×16 tokens, T = 3",
        vqgan=_SCENERY_VQGAN,
        alpha_bar=tuple(geometric(3)),
        between=DenoiserConfig(width=256, heads=8, encoder_depth=6, decoder_depth=3),
        last=DenoiserConfig(width=256, heads=8, decoder_depth=9),
        compression=CompressionRecipe(
            steps=3_200,
            batch=16,
            learning_rate=5e-4,
            perceptual="random",
            adversarial_weight=0.5,
            adversarial_start=1_000,
            discriminator_channels=32,
            discriminator_layers=2,
            revive_every=50,
        ),
        scale=ScaleRecipe(steps=6_000, batch=32),
        train_images=1_000_000,
        encode_images=60_000,
    ),
}


def find_preset(name: str) -> Preset:
    """The preset called `name`; ValueError names the known ones."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
