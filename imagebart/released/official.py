"""Conversion of the released tensors to ours.   [section 3]

The CompVis release (ImageBART, and the taming-transformers VQGANs) stores a scale as a state dict.
Its shapes and schedule are a row of presets.py; its conventions are converted here only:

    their t = 1 .. T-1 counts tokens as x_0      ours is the paper's: t + 1
    scale, class and codes share one table       a start vector, a class table, a token table
    the first positions belong to the prefix     the prefix's positions are added to its vectors
    q, k, v separate                             one stacked matrix
    averaged weights named without dots          read by ema=True

Unused weights (the encoder's output layer, stored masks, positions past the end) are dropped. Every
name, shape and type is checked against the configuration before a weight is read.
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from imagebart.arguments import shown
from imagebart.conditions import class_count
from imagebart.denoiser import Denoiser, DenoiserConfig
from imagebart.diffusion import MultinomialDiffusion
from imagebart.released.untrusted import StoredTensor
from imagebart.vqgan import VQGAN, VQGANConfig

FIRST_STAGE = "first_stage_model."
"""Prefix of the VQGAN's tensors in a scale's file."""

Tensors = dict[str, StoredTensor]
Weights = dict[str, Tensor]

# ── the schedule ──────────────────────────────────────────────────────────────────────────────


def require_schedule(tensors: Tensors, alpha_bar: Sequence[float]) -> None:
    """ValueError unless a scale's `alphacum` is ᾱ_1 .. ᾱ_T, as float32 rounds it."""
    if "alphacum" not in tensors:
        raise ValueError("a released scale must hold alphacum, got a file without")
    stored, expected = tensors["alphacum"], torch.tensor(alpha_bar)
    if stored.shape != (len(alpha_bar),):
        raise ValueError(f"alphacum must have {len(alpha_bar)} entries, got shape {stored.shape}")
    if not torch.allclose(stored.read().float(), expected, rtol=0, atol=1e-5):
        raise ValueError(f"alphacum must be {list(alpha_bar)}, got {stored.read().tolist()}")


# ── tensors ───────────────────────────────────────────────────────────────────────────────────


class ReleasedTensors:
    """Released tensors by name; `key` maps a parameter's name to its name in the file.

    While `checking`, nothing is read: `take` checks and returns meta tensors.
    """

    def __init__(self, tensors: Tensors, key: Callable[[str], str] = str):
        self.tensors, self.key, self.checking = tensors, key, True
        self.taken: set[str] = set()

    def take(self, name: str, *shape: int, spare: int = 0) -> Tensor:
        """The tensor `name` of this shape; up to `spare` additional rows are dropped."""
        key = self.key(name)
        if key not in self.tensors:
            raise ValueError(f"{key} must be there, of shape {shape}, got nothing")
        stored = self.tensors[key]
        shapes = [shape, *((shape[0] + more, *shape[1:]) for more in range(1, spare + 1))]
        if stored.shape not in shapes:
            raise ValueError(f"{key} must be of shape {shape}, got {stored.shape}")
        if not stored.dtype.is_floating_point:
            raise ValueError(f"{key} must hold floating-point numbers, got {stored.dtype}")
        self.taken.add(key)
        if self.checking:
            return torch.empty(shape, device="meta")
        x = stored.read().float()
        if not x.isfinite().all():
            raise ValueError(f"{key} must be finite, got NaN or infinity")
        return x[: shape[0]].clone() if stored.shape != shape else x

    def require_nothing_else(self, dead: str) -> None:
        """ValueError if any tensor was neither taken nor matches `dead`."""
        left = [k for k in self.tensors if k not in self.taken and not re.fullmatch(dead, k)]
        if left:
            raise ValueError(
                f"the tensors must be those of the configuration, got {len(left)} more, "
                f"such as {shown(left[0])}"
            )


def _fill(
    module: nn.Module, source: ReleasedTensors, weights: Callable[[], Weights], dead: str
) -> None:
    """Load the weights of a meta module: everything is checked first, then read."""
    wanted = {name: tuple(x.shape) for name, x in module.state_dict().items()}
    found = {name: tuple(x.shape) for name, x in weights().items()}
    assert wanted == found, set(wanted.items()) ^ set(found.items())
    source.require_nothing_else(dead)
    source.checking = False
    module.load_state_dict(weights(), assign=True)


def under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


# ── the VQGAN ─────────────────────────────────────────────────────────────────────────────────

MIDDLE = ("block_1", "attn_1", "block_2")
VQGAN_WORDS = (
    (r"\bblocks\b", "block"),
    (r"\battention\b", "attn"),
    (r"(attn\S*)\.out\b", r"\1.proj_out"),
    (r"\bshortcut\b", "nin_shortcut"),
    (r"\bquantiser\.codebook\b", "quantize.embedding"),
)
VQGAN_DEAD = r"loss\..*|quantize\.used"


def convert_vqgan(tensors: Tensors, config: VQGANConfig) -> VQGAN:
    """A VQGAN of the given shape from released tensors.

    A shrunk codebook keeps its used entries. Raises ValueError if the tensors do not fit.
    """
    with torch.device("meta"):
        vqgan = VQGAN(config)
    source = ReleasedTensors(tensors)

    def weights() -> Weights:
        levels = len(config.multipliers)
        return {
            name: source.take(_vqgan_name(name, levels), *x.shape)
            for name, x in vqgan.state_dict().items()
        }

    used = _used(tensors, config)
    _fill(vqgan, source, weights, VQGAN_DEAD)
    if used is not None:
        # An unused code is mapped to a random used one, with a fixed seed.
        vqgan.quantiser.shrink(used, torch.Generator().manual_seed(0))
    return vqgan


def _used(tensors: Tensors, config: VQGANConfig) -> Tensor | None:
    if "quantize.used" not in tensors:
        return None
    used = tensors["quantize.used"]
    if used.dtype != torch.int64 or len(used.shape) != 1 or used.shape[0] > config.K:
        raise ValueError(f"quantize.used must be at most {config.K} numbers, got {used.shape}")
    return used.read()


def _vqgan_name(name: str, levels: int) -> str:
    """Our name of a VQGAN's parameter → theirs."""
    side, *rest = name.split(".")
    if rest and rest[0] == "levels":
        ours = int(rest[1])
        stage = f"down.{ours}" if side == "encoder" else f"up.{levels - 1 - ours}"
        sampler = "downsample" if side == "encoder" else "upsample"
        name = ".".join([side, stage, *(sampler if r == "after" else r for r in rest[2:])])
    elif rest and rest[0] == "mid":
        part = MIDDLE[int(rest[1])]
        name = ".".join([side, "mid", part, *rest[2:]])
    for word, theirs in VQGAN_WORDS:
        name = re.sub(word, theirs, name)
    return name


# ── a scale ───────────────────────────────────────────────────────────────────────────────────

SCALE_DEAD = (
    r"encoder\.?to_logits\.?(weight|bias)"  # an unused output layer
    r"|blocks\.?\d+\.?attn\.?mask"  # the causal mask, stored once a block
    r"|decay|num_updates"  # of the average
)

# Ours: which of the sub-layers of a block, and their names in it. The last is -1.
SUBLAYERS = {
    "norm1": (0, ("0",)),
    "attention.qkv": (0, ("1.to_q", "1.to_k", "1.to_v")),
    "attention.out": (0, ("1.to_out",)),
    "norm_cross": (1, ("0",)),
    "cross.q": (1, ("1.to_q",)),
    "cross.kv": (1, ("1.to_k", "1.to_v")),
    "cross.out": (1, ("1.to_out",)),
    "norm2": (-1, ("0",)),
    "mlp.up": (-1, ("1.net.0.0",)),
    "mlp.down": (-1, ("1.net.2",)),
}
GPT_LAYERS = {
    "norm1": ("ln1",),
    "attention.qkv": ("attn.query", "attn.key", "attn.value"),
    "attention.out": ("attn.proj",),
    "norm2": ("ln2",),
    "mlp.up": ("mlp.0",),
    "mlp.down": ("mlp.2",),
}


def convert_denoiser(
    tensors: Tensors, config: DenoiserConfig, diffusion: MultinomialDiffusion, t: int, ema: bool
) -> Denoiser:
    """The denoiser of scale t (the paper's), of the given shape, from a released scale's tensors.

    `ema` takes the averaged weights, else the last ones. Raises ValueError if the tensors do
    not fit.
    """
    with torch.device("meta"):
        denoiser = Denoiser(config, diffusion, t)
    prefix = "transformer_ema." if ema else "transformer."
    source = ReleasedTensors(under(prefix, tensors), _without_dots if ema else str)
    if not source.tensors:
        raise ValueError(f"a released scale must hold {prefix}*, got no such tensors")
    tables = _encoder_decoder_tables if denoiser.sees_x_t else _gpt_tables
    names = _encoder_decoder_names if denoiser.sees_x_t else _gpt_names

    def weights() -> Weights:
        found = tables(source, denoiser)
        for name, x in denoiser.state_dict().items():
            if name not in found:
                theirs = names(name)
                shape = (x.shape[0] // len(theirs), *x.shape[1:])
                found[name] = _stack([source.take(part, *shape) for part in theirs])
        return found

    _fill(denoiser, source, weights, SCALE_DEAD)
    if config.output == "residual":
        _require_own_gain(source, t)
    return denoiser


def _stack(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _without_dots(name: str) -> str:
    return name.replace(".", "")


def _encoder_decoder_names(name: str) -> tuple[str, ...]:
    """Our name in an encoder-decoder → theirs, to be stacked."""
    layer, _, kind = name.rpartition(".")
    if layer == "head":
        return (f"decoder.to_logits.{kind}",)
    side, blocks, *rest = layer.split(".", 3)
    if blocks == "norm":
        return (f"{side}.norm.{kind}",)
    number, part = rest
    sublayers = 2 if side == "encoder" else 3
    which, theirs = SUBLAYERS[part]
    at = sublayers * int(number) + which % sublayers
    return tuple(f"{side}.attn_layers.layers.{at}.{their}.{kind}" for their in theirs)


def _encoder_decoder_tables(source: ReleasedTensors, denoiser: Denoiser) -> Weights:
    """The embedding tables; the first positions are the prefix's."""
    config, K, t = denoiser.config, denoiser.K, denoiser.t
    n, width, classes = config.n, config.width, class_count(config.conditions)
    prefix = 1 + (classes > 0)
    table = source.take("encoder.token_emb.weight", max(K, classes), width)
    places = source.take("encoder.pos_emb.emb.weight", prefix + n, width, spare=1)
    written = source.take("decoder.token_emb.weight", K, width)
    weights = {
        "noisy_tokens.weight": table[:K].clone(),
        "noisy_positions.table": places[prefix:].clone(),
        "encoder_prefix.vector": table[t - 1] + places[0],
        "tokens.weight": written,
        "positions.table": source.take("decoder.pos_emb.emb.weight", n, width, spare=1),
        "prefix.vector": written[0].clone(),
    }
    if classes:
        weights["encoder_prefix.classes.weight"] = table[:classes] + places[1]
    if config.output == "residual":
        weights["log_gain"] = source.take("log_scalors", denoiser.diffusion.T - 1)[t - 2].clone()
    return weights


def _gpt_names(name: str) -> tuple[str, ...]:
    """Our name in a decoder → theirs, to be stacked."""
    layer, _, kind = name.rpartition(".")
    if layer == "head":
        return (f"head.{kind}",)
    if layer == "decoder.norm":
        return (f"ln_f.{kind}",)
    _, _, number, part = layer.split(".", 3)
    return tuple(f"blocks.{number}.{their}.{kind}" for their in GPT_LAYERS[part])


def _gpt_tables(source: ReleasedTensors, denoiser: Denoiser) -> Weights:
    """As above. The slot before a token predicts it, so the last prefix slot has position 0."""
    config, K, t = denoiser.config, denoiser.K, denoiser.t
    n, width, classes = config.n, config.width, class_count(config.conditions)
    prefix = 1 + (classes > 0)
    table = source.take("tok_emb.weight", max(K, classes), width)
    places = _places(source, prefix - 1 + n, width)
    weights = {
        "tokens.weight": table[:K].clone(),
        "positions.table": places[prefix - 1 :].clone(),
        "prefix.vector": table[t - 1].clone(),
    }
    if classes:
        weights["prefix.vector"] += places[0]
        weights["prefix.classes.weight"] = table[:classes].clone()
    return weights


def _places(source: ReleasedTensors, count: int, width: int) -> Tensor:
    """pos_emb is 1×positions×width, with at most one unused position."""
    stored = source.tensors.get(source.key("pos_emb"))
    spare = stored is not None and stored.shape == (1, count + 1, width)
    return source.take("pos_emb", 1, count + spare, width)[0, :count]


def _require_own_gain(source: ReleasedTensors, t: int) -> None:
    """ValueError if another scale's gain was trained: the file has the wrong name."""
    gains = source.tensors[source.key("log_scalors")].read()
    trained = gains.nonzero().flatten() + 1
    if len(trained) and t - 1 not in trained:
        raise ValueError(
            f"the file must hold scale {t - 1}, got one where the gain of scale "
            f"{', '.join(map(str, trained.tolist()))} was trained"
        )
