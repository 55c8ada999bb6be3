"""One row per experiment: the shapes, the schedule, and how each part is trained.

A preset is data. `train/compression.py` reads its `vqgan` and `compression`, `train/scale.py` its
`alpha_bar`, its denoiser of scale t and `scale`.
"""

from dataclasses import dataclass, field, replace

from imagebart.conditions import ConditionShape, by_class, text_shape
from imagebart.denoiser import DenoiserConfig
from imagebart.diffusion import geometric
from imagebart.vqgan import VQGANConfig


@dataclass(frozen=True)
class CompressionRecipe:
    """How a VQGAN is trained."""

    steps: int
    batch: int  # images a step, over all ranks
    learning_rate: float = 4e-4  # at the top of a warm-up and cosine
    warmup_steps: int = 200
    perceptual: str = "lpips"  # f_rec's features: "lpips", "imagenet" or "random"
    perceptual_weight: float = 1.0
    detail: float = 0.0  # extra weight of pixels that differ from their surroundings
    edges: float = 0.0  # weight of differences between neighbouring pixels
    adversarial_weight: float = 0.8
    adversarial_start: int = 10_000  # step from which the discriminator's word counts
    discriminator_head_start: int = 0  # steps that it learns before
    discriminator_learning_rate: float = 4e-4  # constant
    lecam_weight: float = 0.0  # of the discriminator's regularisation
    ema_decay: float = 0.0  # of the averaged weights, which are those that are saved; 0: no average
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    quantise_start: int = 0  # step from which latents are quantised; an autoencoder before
    revive_every: int = 100  # steps between revivals of codes that nobody used
    precision: str = "bf16"

    def lasting(self, steps: int) -> "CompressionRecipe":
        """The same recipe in other many steps: what begins later begins in proportion."""
        names = ("warmup_steps", "adversarial_start", "discriminator_head_start", "quantise_start")
        begins = {name: round(getattr(self, name) * steps / self.steps) for name in names}
        return replace(self, steps=steps, **begins)


@dataclass(frozen=True)
class ScaleRecipe:
    """How one scale is trained, or the joint network of all."""

    steps: int
    batch: int  # images a step, over all ranks
    learning_rate: float = 1e-3
    muon: float = 0.0  # Muon's, for the layers' matrices; 0: they learn by AdamW as all else
    warmup_steps: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm
    ema_decay: float = 0.999
    precision: str = "bf16"
    condition_dropout: dict[str, float] = field(default_factory=dict)
    """Chance that an image is learned without its class, its text, its map (or a box of it)."""
    repeated: dict[str, int] = field(default_factory=dict)
    """How often an epoch has the images whose text has a word: rare things are learned sooner."""

    def lasting(self, steps: int) -> "ScaleRecipe":
        """The same recipe in other many steps: the warm-up is as large a part of them."""
        return replace(
            self, steps=steps, warmup_steps=round(self.warmup_steps * steps / self.steps)
        )

    def at_rate(self, learning_rate: float) -> "ScaleRecipe":
        """The same recipe at another learning rate, Muon's in proportion."""
        muon = self.muon * learning_rate / self.learning_rate
        return replace(self, learning_rate=learning_rate, muon=muon)


@dataclass(frozen=True)
class Preset:
    """An experiment: `between` is the denoiser of scales t < T, `last` that of t = T. Of a joint
    preset they are one network, trained on all scales in one run."""

    about: str
    vqgan: VQGANConfig
    alpha_bar: tuple[float, ...]
    between: DenoiserConfig
    last: DenoiserConfig
    compression: CompressionRecipe
    scale: ScaleRecipe
    codes_in_use: int = 0  # tokens left once the codebook is shrunk; 0: all of it
    train_images: int = 0  # images of the procedural data set that the VQGAN learns from
    token_images: int = 0  # of these, images that the chain learns from
    guidance: float | tuple[float, ...] = 1.0  # of all t or of each, if nobody says
    draws_class: bool = False  # a sample of which nothing is said has the class of its seed

    @property
    def T(self) -> int:
        return len(self.alpha_bar)

    @property
    def K(self) -> int:
        """Tokens that the chain knows."""
        return self.codes_in_use or self.vqgan.K

    @property
    def joint(self) -> bool:
        """Whether one network serves all scales."""
        return self.last.joint

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

_SMALL_VQGAN = VQGANConfig(
    image_size=128,
    K=1024,
    embed_dim=8,
    z_channels=128,
    channels=64,
    multipliers=(1, 2),
    blocks=1,
    attention_levels=(),
    mid_attention=False,
    patch=4,
)
_TEXT = text_shape(32, vectors=128)

_SCENERY_2 = Preset(
    about="what chains are compared with: T = 2, without conditions, 1024 codes",
    vqgan=_SMALL_VQGAN,
    alpha_bar=tuple(geometric(2)),
    between=DenoiserConfig(width=192, heads=6, encoder_depth=4, decoder_depth=3),
    last=DenoiserConfig(width=192, heads=6, decoder_depth=16),
    compression=CompressionRecipe(
        steps=4_500,
        batch=8,
        learning_rate=1e-3,
        warmup_steps=50,
        perceptual="random",
        perceptual_weight=0.4,
        detail=50.0,
        adversarial_start=4_500,  # never: at this size and time it sharpened less than `detail`
        quantise_start=600,
        revive_every=50,
    ),
    scale=ScaleRecipe(steps=1_400, batch=16, learning_rate=2e-3),
    train_images=1_000_000,
    token_images=40_000,
)

_RARE = {"cabin": 3, "tent": 2, "lighthouse": 4, "boat": 4, "boats": 4}
_BY_MUON = ScaleRecipe(steps=8_500, batch=16, learning_rate=1.5e-3, muon=3e-3)
_ONE = DenoiserConfig(
    width=256,
    heads=4,
    head_width=64,
    encoder_depth=5,
    decoder_depth=4,
    rotary=True,
    qk_norm=True,
    conditions={"class": ConditionShape(12, 1), "text": _TEXT, "map": ConditionShape(18, 16 * 16)},
    condition_dropout=True,
    joint=True,
    map_in_place=True,
)
_SCENERY = Preset(
    about="the shipped model: scenery by text, class, map or nothing, T = 5, one network",
    vqgan=replace(_SMALL_VQGAN, K=4096, channels=96, pixel_channels=24),
    alpha_bar=(1.0, 0.7, 0.4, 0.1, 0.0),
    between=_ONE,
    last=_ONE,
    compression=replace(
        _SCENERY_2.compression,
        steps=7_000,
        perceptual="imagenet",
        perceptual_weight=1.0,
        edges=1.0,
        adversarial_weight=0.3,
        adversarial_start=6_000,
        discriminator_head_start=300,
        discriminator_channels=48,
        lecam_weight=0.01,
        ema_decay=0.999,
    ),
    scale=replace(
        _BY_MUON, condition_dropout={"class": 0.6, "text": 0.2, "map": 0.7}, repeated=_RARE
    ),
    train_images=1_000_000,
    token_images=40_000,
    guidance=(8.0, 4.0, 1.0, 2.0),  # with 4 everywhere fewer objects are found
    draws_class=True,
)

_ALONE = replace(_ONE, conditions={}, condition_dropout=False, map_in_place=False)
_PHOTOS = replace(
    _SCENERY,
    about="pictures of your own, unconditional: the network of `scenery`",
    between=_ALONE,
    last=_ALONE,
    compression=replace(_SCENERY.compression, steps=9_000),
    scale=replace(_BY_MUON, steps=20_000),
    train_images=0,
    token_images=0,
    guidance=1.0,
    draws_class=False,
)

_MINI_VQGAN = replace(_TINY_VQGAN, K=256)
_MINI_SHAPES = {2: (128, 15, 1, 1), 3: (128, 7, 3, 3), 5: (128, 3, 2, 1), 9: (96, 2, 1, 1)}
"""{T: width, layers at t = T, encoder and decoder layers of every other scale}: 2.9 to 3.1 million
parameters in all."""


def _mini(T: int) -> Preset:
    """A chain of 8×8 tokens of scenery in 20 minutes of one core, VQGAN included: rows of table 3
    at equal parameters and, as every scale has as many steps, equal compute."""
    width, last, encoder, decoder = _MINI_SHAPES[T]
    shape = DenoiserConfig(grid=(8, 8), width=width, heads=4, decoder_depth=last)
    return Preset(
        about=f"64×64 scenery, T = {T}, 20 minutes of one core: a row of table 3 in small",
        vqgan=_MINI_VQGAN,
        alpha_bar=tuple(geometric(T)),
        between=replace(shape, encoder_depth=encoder, decoder_depth=decoder),
        last=shape,
        compression=CompressionRecipe(
            steps=1_500,
            batch=16,
            learning_rate=2e-3,
            warmup_steps=50,
            perceptual="random",
            perceptual_weight=0.4,
            detail=20.0,
            adversarial_start=1_500,  # never
            quantise_start=200,
            revive_every=25,
        ),
        scale=ScaleRecipe(steps=1_500, batch=32, learning_rate=2e-3, warmup_steps=50),
        train_images=100_000,
        token_images=10_000,
    )


def _mini_joint(T: int) -> Preset:
    """`mini-T` with one network for all scales, as large as one of those at t < T, and as many
    steps as all of them together: equal compute in training and in sampling."""
    apart = _mini(T)
    one = replace(apart.between, joint=True)
    return replace(
        apart,
        about=f"64×64 scenery, T = {T}, one network for all scales: joint training in small",
        between=one,
        last=one,
        scale=replace(apart.scale, steps=(T - 1) * apart.scale.steps),
    )


def _mini_changed(muon: float = 0.0, **change) -> Preset:
    """`mini-5` by Muon, or with other fields of the scales t < T: a row of eval/ablation.py."""
    plain = _mini(5)
    said = ", ".join(f"{name}={value}" for name, value in change.items()) or f"muon={muon}"
    return replace(
        plain,
        about=f"mini-5 with {said}: a row of eval/ablation.py",
        between=replace(plain.between, **change),
        scale=replace(plain.scale, muon=muon),
    )


_MINI_CHANGED = {
    "place-vectors": _mini_changed(axial_positions=False),
    "rotary": _mini_changed(rotary=True),
    "qk-norm": _mini_changed(qk_norm=True),
    "rotary-qk-norm": _mini_changed(rotary=True, qk_norm=True),
    "residual-output": _mini_changed(output="residual"),
    "plain-output": _mini_changed(output="plain"),
    "muon": _mini_changed(muon=4e-3),
}

_MINI_LAYERS = {1: 11, 2: 9, 4: 7, 5: 5, 7: 3}
"""{decoder layers: encoder layers} at equal parameters, within 5 %: figure 8 left in small."""


def _mini_layers(decoder: int) -> Preset:
    """`mini-5`, narrower and deeper, with so many decoder layers: a row of eval/ablation.py."""
    plain, encoder = _mini(5), _MINI_LAYERS[decoder]
    return replace(
        plain,
        about=f"mini-5 of width 64, layers {encoder} + {decoder}: a row of eval/ablation.py",
        between=replace(
            plain.between, width=64, heads=2, encoder_depth=encoder, decoder_depth=decoder
        ),
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
        token_images=2_000,
    ),
    **{f"mini-{T}": _mini(T) for T in _MINI_SHAPES},
    "mini-5-joint": _mini_joint(5),
    **{f"mini-5-{name}": preset for name, preset in _MINI_CHANGED.items()},
    **{f"mini-5-decoder-{layers}": _mini_layers(layers) for layers in _MINI_LAYERS},
    "scenery": _SCENERY,
    "scenery-2": _SCENERY_2,
    "photos": _PHOTOS,
}

# ── the released models, and the paper's that were not ────────────────────────────────────────

_F16 = VQGANConfig()  # 256×256 pixels, 16×16 tokens
_F16_16384 = VQGANConfig(K=16_384)
_F16_RECIPE = CompressionRecipe(  # of taming-transformers, on 8 GPUs; the one for FFHQ is not known
    steps=500_000,
    batch=32,
    learning_rate=1.44e-4,  # 4.5e-6 an image
    adversarial_start=250_000,
)
_LARGE = DenoiserConfig(width=1152, heads=16, head_width=64, encoder_depth=32, decoder_depth=6)
_SMALL = DenoiserConfig(width=752, heads=16, head_width=64, encoder_depth=18, decoder_depth=6)
_LARGE_LAST = DenoiserConfig(width=1216, heads=16, head_width=76, encoder_depth=1, decoder_depth=36)
_SMALL_LAST = DenoiserConfig(width=800, heads=16, head_width=50, encoder_depth=1, decoder_depth=26)

# ᾱ_1 .. ᾱ_T: every step costs the same perceptual distance.
_FFHQ_3 = (1.0, 0.6360475420951843, 0.0)
_IMAGENET_4 = (1.0, 0.8482712507247925, 0.652629554271698, 0.0)
_IMAGENET_5 = (1.0, 0.8870543241500854, 0.7619231939315796, 0.5747190713882446, 0.0)
_IMAGENET_6 = (
    *(1.0, 0.9098888635635376, 0.8150968551635742),
    *(0.7016333937644958, 0.5149837732315063, 0.0),
)


def _published(
    about: str,
    vqgan: VQGANConfig,
    codes_in_use: int,
    alpha_bar: tuple[float, ...],
    steps: int,
    batch: int,
    large: bool = True,
    learning_rate: float = 2e-4,
    output: str = "plain",
    conditions: dict[str, ConditionShape] | None = None,
) -> Preset:
    """A row of the paper: batch and learning rate are those of one GPU, with accumulation."""
    between, last = (
        replace(shape, axial_positions=False, conditions=conditions or {})
        for shape in ((_LARGE, _LARGE_LAST) if large else (_SMALL, _SMALL_LAST))
    )
    return Preset(
        about=about,
        vqgan=vqgan,
        alpha_bar=alpha_bar,
        between=replace(between, output=output),
        last=replace(last, output="plain", bias=True, head_bias=False),
        compression=_F16_RECIPE,
        scale=ScaleRecipe(
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            warmup_steps=10_000,
            clip=float("inf"),
            ema_decay=0.9999,
        ),
        codes_in_use=codes_in_use,
    )


_FFHQ_4 = _published(
    *("FFHQ, T = 5, geometric: the released model of four scales", _F16, 548),
    *(tuple(geometric(5)), 1_500_000, 16),
    large=False,
    learning_rate=1e-4,
    output="residual",
)
_JOINT = replace(_FFHQ_4.between, joint=True)

PRESETS |= {
    "ffhq-2": _published(
        *("FFHQ, T = 3: the released model of two scales", _F16, 548, _FFHQ_3, 1_500_000, 18),
        learning_rate=1.125e-4,
    ),
    "ffhq-4": _FFHQ_4,
    "ffhq-4-joint": replace(
        _FFHQ_4, about="FFHQ, T = 5: one network for all four scales", between=_JOINT, last=_JOINT
    ),
    "churches": _published(
        "LSUN churches, T = 4: the released model",
        *(_F16_16384, 1022, _IMAGENET_4, 1_300_000, 32),
    ),
    "bedrooms": _published(
        "LSUN bedrooms, T = 4: the released model",
        *(_F16_16384, 1017, _IMAGENET_4, 5_000_000, 32),
    ),
    "cats": _published(
        "LSUN cats, T = 4: the released model",
        *(_F16_16384, 1014, _IMAGENET_4, 5_000_000, 32),
    ),
    "imagenet-4": _published(
        "ImageNet by class, T = 5, geometric: the released model of four scales",
        *(_F16_16384, 973, tuple(geometric(5)), 10_000_000, 32),
        output="residual",
        conditions=by_class(1000),
    ),
    "imagenet-5": _published(
        "ImageNet by class, T = 6: the released model of five scales",
        *(_F16_16384, 973, _IMAGENET_6, 10_000_000, 32),
        conditions=by_class(1000),
    ),
    "captions": _published(
        "Conceptual Captions by text, T = 5: never released; sizes as for ImageNet",
        *(_F16_16384, 973, _IMAGENET_5, 10_000_000, 32),
        conditions={"text": text_shape(77)},
    ),
    "semantic": _published(
        "Landscapes by semantic map, T = 5, geometric: never released; sizes as for ImageNet",
        *(_F16_16384, 973, tuple(geometric(5)), 1_500_000, 32),
        output="residual",
        conditions={"map": ConditionShape(182, 16 * 16)},
    ),
}


def find_preset(name: str) -> Preset:
    """The preset called `name`; ValueError names the known ones."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


def table() -> str:
    """A line for each preset: its name, what it is."""
    width = max(map(len, PRESETS))
    return "\n".join(f"{name:{width}}  {preset.about}" for name, preset in PRESETS.items())
