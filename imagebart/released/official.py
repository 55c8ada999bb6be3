"""The released models: their tensors and configurations → ours.   [section 3]

The CompVis release (ImageBART, and the taming-transformers VQGANs) stores a scale as a state dict
and a configuration. Here, and nowhere else, its conventions become ours:

    their t = 1 .. T-1 counts tokens as x_0      ours is the paper's: t + 1
    scale, class and codes share one table       a start vector, a class table, a token table
    the first places belong to the prefix        the prefix's places are added to its vectors
    q, k, v apart                                one matrix each, stacked
    averaged weights named without dots          ema=True reads them

Dead weights (the encoder's output layer, stored masks, places past the end) are left behind. Every
name, shape and type is checked against the configuration before a weight is read.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imagebart.denoiser import Denoiser, DenoiserConfig
from imagebart.diffusion import MultinomialDiffusion, geometric
from imagebart.vqgan import VQGAN, VQGANConfig

FIRST_STAGE = "first_stage_model."
"""Under this prefix a scale's file holds the VQGAN."""

# ── the public door ───────────────────────────────────────────────────────────────────────────


def vqgan_from_released(state_dict: Mapping, config: dict) -> VQGAN:
    """A released VQGAN as ours.

    `state_dict` and `config` are a VQGAN's own, or those of a scale, which hold one. The used
    entries of a shrunk codebook come along. Raises ValueError if the tensors do not fit the
    configuration.
    """
    shape = vqgan_config(config)
    if any(name.startswith(FIRST_STAGE) for name in state_dict):
        state_dict = under(FIRST_STAGE, state_dict)
    return convert_vqgan(state_dict, shape)


def denoiser_from_released(
    state_dict: Mapping,
    config: dict,
    ema: bool = True,
    *,
    grid: tuple[int, int] | None = None,
) -> tuple[Denoiser, MultinomialDiffusion, int]:
    """A released scale as (denoiser, diffusion, t), t being the paper's.

    `ema` takes the averaged weights, else those last trained. A configuration without
    `single_scale` is a joint network: t is then T, and `denoiser.at(t)` serves the others. A
    configuration knows the number of tokens, not how they lie: `grid` says (h, w) if it is not
    the square, or not the training resolution's. Raises ValueError if the tensors do not fit.
    """
    scale = read_scale(config, grid)
    params = _entry(config, "params")
    diffusion = schedule(state_dict, params.get("redraw_prob"), scale)
    return convert_denoiser(state_dict, scale, diffusion, ema), diffusion, scale.t


# ── configurations ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Scale:
    """What has to be known of a released scale to read it."""

    denoiser: DenoiserConfig
    K: int
    T: int
    t: int
    vocabulary: int  # rows of the table that codes, classes and scales share
    sos: int = 0  # row of the decoder's table that begins the sequence

    @property
    def decoder_only(self) -> bool:
        return self.t == self.T and not self.denoiser.joint


ENCODER_DECODERS = {"XTransformer": "plain", "ResidualScaledXTransformer": "residual"}
HEAD_WIDTH = 64
"""Of the released encoder-decoders, whatever their width."""

KNOWN_OPTIONS = {
    *("wrap_decoder", "tie_token_emb", "dim", "n_scales", "scale_pos", "xt_start", "xt_size"),
    *(f"{side}_{name}" for side in ("enc", "dec") for name in ("num_tokens", "depth", "heads")),
    *("enc_max_seq_len", "dec_max_seq_len"),
    *("vocab_size", "input_vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_unmasked"),
    *("embd_pdrop", "resid_pdrop", "attn_pdrop"),
}


def read_scale(config: dict, grid: tuple[int, int] | None = None) -> Scale:
    """The shape of a scale from its released configuration."""
    params = _entry(config, "params")
    network = _entry(params, "transformer_config")
    kind, options = str(network.get("target")).rpartition(".")[2], _entry(network, "params")
    unknown = sorted(set(options) - KNOWN_OPTIONS)
    if unknown:
        raise ValueError(f"options of a transformer must be known ones, got {', '.join(unknown)}")
    if options.get("wrap_decoder") or options.get("tie_token_emb"):
        raise ValueError("wrap_decoder and tie_token_emb must be off, as in every released model")
    readers = dict.fromkeys(ENCODER_DECODERS, _encoder_decoder) | {"GPT": _decoder_only}
    if kind not in readers:
        raise ValueError(f"the transformer must be one of {', '.join(readers)}, got {kind}")
    try:
        return readers[kind](kind, params, options, grid)
    except KeyError as error:
        raise ValueError(f"the configuration must hold {error}, got {sorted(options)}") from None


def _encoder_decoder(kind: str, params: dict, options: dict, grid) -> Scale:
    if options["enc_heads"] != options["dec_heads"]:
        raise ValueError(
            "encoder and decoder must have as many heads, "
            f"got {options['enc_heads']} and {options['dec_heads']}"
        )
    conditional = "conditioner_config" in params
    if options.get("xt_start", 1 + conditional) != 1 + conditional:
        raise ValueError(f"xt_start must be {1 + conditional}, got {options['xt_start']}")
    n = options["dec_max_seq_len"]
    if options.get("xt_size", n) != n:
        raise ValueError(f"xt_size must be dec_max_seq_len, {n}, got {options['xt_size']}")
    joint = params.get("single_scale") is None
    denoiser = DenoiserConfig(
        grid=_grid((n,), params, grid),
        width=options["dim"],
        heads=options["enc_heads"],
        head_width=HEAD_WIDTH,
        encoder_depth=options["enc_depth"],
        decoder_depth=options["dec_depth"],
        classes=options["enc_num_tokens"] if conditional else 0,
        axial_positions=False,
        output=ENCODER_DECODERS[kind],
        joint=joint,
    )
    T, sos = params["n_scales"] + 1, params.get("sos_token", 0)
    if not 0 <= sos < options["dec_num_tokens"]:
        raise ValueError(f"sos_token must be a code, got {sos}")
    return Scale(
        denoiser,
        K=options["dec_num_tokens"],
        T=T,
        t=T if joint else params["single_scale"] + 1,
        vocabulary=options["enc_num_tokens"],
        sos=sos,
    )


def _decoder_only(kind: str, params: dict, options: dict, grid) -> Scale:
    conditional = "conditioner_config" in params
    if options.get("n_unmasked", 0) != 2 * conditional:
        raise ValueError(
            "a prefix must see itself and nothing else: n_unmasked must be "
            f"{2 * conditional}, got {options.get('n_unmasked', 0)}"
        )
    T, K, block = params["n_scales"] + 1, options["vocab_size"], options["block_size"]
    if params.get("single_scale") != T - 1:
        raise ValueError(
            f"a decoder without encoder must be the last scale, {T - 1} of theirs, "
            f"got {params.get('single_scale')}"
        )
    if options["n_embd"] % options["n_head"]:
        raise ValueError(f"n_embd must be a multiple of n_head, got {options}")
    vocabulary = options.get("input_vocab_size", K)
    # Released: 256 places for 256 tokens, 258 with a class, of which the last is never used.
    fitting = (block - 2, block - 1) if conditional else (block, block - 1)
    denoiser = DenoiserConfig(
        grid=_grid(fitting, params, grid),
        width=options["n_embd"],
        heads=options["n_head"],
        head_width=options["n_embd"] // options["n_head"],
        encoder_depth=1,
        decoder_depth=options["n_layer"],
        bias=True,
        head_bias=False,
        classes=vocabulary if conditional else 0,
        axial_positions=False,
        output="plain",
    )
    return Scale(denoiser, K=K, T=T, t=T, vocabulary=vocabulary)


def _grid(fitting: tuple[int, ...], params: dict, grid) -> tuple[int, int]:
    """How n tokens lie, n being one of `fitting`: as said, as trained, or as near to a square."""
    if grid is not None:
        if grid[0] * grid[1] not in fitting:
            raise ValueError(f"grid must have {fitting[0]} tokens, got {grid}")
        return grid
    side = vqgan_config(params).grid[0]
    if side * side in fitting:
        return side, side
    n = next((n for n in fitting if n % side == 0), fitting[0])
    height = side if n % side == 0 else math.isqrt(n)
    while n % height:
        height -= 1
    return height, n // height


def vqgan_config(config: dict) -> VQGANConfig:
    """The shape of a VQGAN from its released configuration, or from that of a scale."""
    config = config.get("params", config)
    if "first_stage_config" in config:
        return vqgan_config(_entry(config, "first_stage_config"))
    try:
        d = config["ddconfig"]
        if d["double_z"] or d["in_channels"] != 3 or d["out_ch"] != 3:
            raise ValueError(f"a VQGAN must map RGB to RGB without double_z, got {d}")
        sides = [d["resolution"] // 2**level for level in range(len(d["ch_mult"]))]
        return VQGANConfig(
            image_size=d["resolution"],
            K=config["n_embed"],
            embed_dim=config["embed_dim"],
            z_channels=d["z_channels"],
            channels=d["ch"],
            multipliers=tuple(d["ch_mult"]),
            blocks=d["num_res_blocks"],
            attention_levels=tuple(i for i, s in enumerate(sides) if s in d["attn_resolutions"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"the configuration of a VQGAN must hold {error}") from None


def schedule(state_dict: Mapping, redraw_prob: str | None, scale: Scale) -> MultinomialDiffusion:
    """The diffusion of a released scale: `alphacum`, which its file holds, is ᾱ_1 .. ᾱ_T."""
    if "alphacum" not in state_dict:
        raise ValueError("a released scale must hold alphacum, got a file without")
    shape = tuple(state_dict["alphacum"].shape)
    if shape != (scale.T,):
        raise ValueError(f"alphacum must have {scale.T} entries, got shape {shape}")
    bar = _read(state_dict["alphacum"]).double().tolist()
    exact = geometric(scale.T) if redraw_prob == "geometric" else [1.0, *bar[1:-1], 0.0]
    # Stored in float32: rounded, but not to be mistaken for another schedule.
    if not all(abs(a - b) < 1e-5 for a, b in zip(bar, exact, strict=True)):
        raise ValueError(f"alphacum must be that of a {redraw_prob} schedule, got {bar}")
    return MultinomialDiffusion(exact, scale.K)


# ── tensors ───────────────────────────────────────────────────────────────────────────────────

Weights = dict[str, Tensor]


class Source:
    """Released tensors, taken by name; `key` turns a parameter's name into that in the file.

    The values are tensors, or anything with `shape`, `dtype` and `read()`. While `checking`,
    nothing is read: `take` checks and returns tensors without storage.
    """

    def __init__(self, tensors: Mapping, key: Callable[[str], str] = str):
        self.tensors, self.key, self.checking = tensors, key, True
        self.taken: set[str] = set()

    def take(self, name: str, *shape: int, spare: int = 0) -> Tensor:
        """The tensor called `name`, of this shape; up to `spare` more rows are cut off."""
        key = self.key(name)
        if key not in self.tensors:
            raise ValueError(f"{key} must be there, of shape {shape}, got nothing")
        stored = self.tensors[key]
        rows = stored.shape[0] if len(stored.shape) else 0
        shapes = [shape, *((shape[0] + more, *shape[1:]) for more in range(1, spare + 1))]
        if tuple(stored.shape) not in shapes:
            raise ValueError(f"{key} must be of shape {shape}, got {tuple(stored.shape)}")
        if not stored.dtype.is_floating_point:
            raise ValueError(f"{key} must hold floating-point numbers, got {stored.dtype}")
        self.taken.add(key)
        if self.checking:
            return torch.empty(shape, device="meta")
        x = _read(stored).detach()
        if not x.isfinite().all():
            raise ValueError(f"{key} must be finite, got NaN or infinity")
        # A copy: the caller's tensors stay the caller's.
        x = x.to(torch.float32, copy=isinstance(stored, Tensor))
        return x[: shape[0]].clone() if rows > shape[0] else x

    def require_nothing_else(self, dead: str) -> None:
        """ValueError if tensors are left that neither were taken nor match `dead`."""
        left = [k for k in self.tensors if k not in self.taken and not re.fullmatch(dead, k)]
        if left:
            raise ValueError(
                f"the tensors must be those of the configuration, got {len(left)} more, "
                f"such as {left[0]}"
            )


def _fill(module: nn.Module, source: Source, weights: Callable[[], Weights], dead: str) -> None:
    """Give a module without storage its weights: everything is checked first, then read."""
    wanted = {name: tuple(x.shape) for name, x in module.state_dict().items()}
    found = {name: tuple(x.shape) for name, x in weights().items()}
    assert wanted == found, set(wanted.items()) ^ set(found.items())
    source.require_nothing_else(dead)
    source.checking = False
    module.load_state_dict(weights(), assign=True)


def _read(stored) -> Tensor:
    return stored if isinstance(stored, Tensor) else stored.read()


def under(prefix: str, tensors: Mapping) -> dict:
    """The tensors whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _entry(config: dict, name: str) -> dict:
    if not isinstance(config, dict) or not isinstance(config.get(name), dict):
        raise ValueError(f"the configuration must hold {name}, got none")
    return config[name]


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


def convert_vqgan(state_dict: Mapping, config: VQGANConfig) -> VQGAN:
    """A VQGAN of the given shape from released tensors."""
    with torch.device("meta"):
        vqgan = VQGAN(config)
    source = Source(state_dict)

    def weights() -> Weights:
        levels = len(config.multipliers)
        return {
            name: source.take(_vqgan_name(name, levels), *x.shape)
            for name, x in vqgan.state_dict().items()
        }

    used = _used(state_dict, config)
    _fill(vqgan, source, weights, VQGAN_DEAD)
    if used is not None:
        # A code that has no token is mapped to a random one: the same whenever it is converted.
        vqgan.quantiser.shrink(used, torch.Generator().manual_seed(0))
    return vqgan


def _used(state_dict: Mapping, config: VQGANConfig) -> Tensor | None:
    if "quantize.used" not in state_dict:
        return None
    used = state_dict["quantize.used"]
    if used.dtype != torch.int64 or len(used.shape) != 1 or used.shape[0] > config.K:
        raise ValueError(
            f"quantize.used must be at most {config.K} numbers, got {tuple(used.shape)}"
        )
    return _read(used).clone()


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
    for ours, theirs in VQGAN_WORDS:
        name = re.sub(ours, theirs, name)
    return name


# ── a scale ───────────────────────────────────────────────────────────────────────────────────

SCALE_DEAD = (
    r"encoder\.?to_logits\.?(weight|bias)"  # an output layer that nothing reads
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
    state_dict: Mapping, scale: Scale, diffusion: MultinomialDiffusion, ema: bool
) -> Denoiser:
    """A denoiser of the given shape from a released scale's tensors."""
    with torch.device("meta"):
        denoiser = Denoiser(scale.denoiser, diffusion, scale.t)
    prefix = "transformer_ema." if ema else "transformer."
    source = Source(under(prefix, state_dict), _without_dots if ema else str)
    if not source.tensors:
        raise ValueError(f"a released scale must hold {prefix}*, got no such tensors")
    tables = _gpt_tables if scale.decoder_only else _encoder_decoder_tables
    names = _gpt_names if scale.decoder_only else _encoder_decoder_names

    def weights() -> Weights:
        found = tables(source, scale)
        for name, x in denoiser.state_dict().items():
            if name not in found:
                theirs = names(name)
                shape = (x.shape[0] // len(theirs), *x.shape[1:])
                found[name] = _stack([source.take(part, *shape) for part in theirs])
        return found

    _fill(denoiser, source, weights, SCALE_DEAD)
    if scale.denoiser.output == "residual" and not scale.denoiser.joint:
        _require_own_gain(source, scale)
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


def _encoder_decoder_tables(source: Source, scale: Scale) -> Weights:
    """The tables and what is cut from them: the first places are the prefix's own."""
    config, K, T, t = scale.denoiser, scale.K, scale.T, scale.t
    n, width, prefix = config.n, config.width, 1 + (config.classes > 0)
    table = source.take("encoder.token_emb.weight", scale.vocabulary, width)
    places = source.take("encoder.pos_emb.emb.weight", prefix + n, width, spare=1)
    written = source.take("decoder.token_emb.weight", K, width)
    start = table[1:T] if config.joint else table[t - 1]  # row 1 is their scale 1, our t = 2
    weights = {
        "noisy_tokens.weight": table[:K].clone(),
        "noisy_positions.table": places[prefix:].clone(),
        "encoder_prefix.vector": start + places[0],
        "tokens.weight": written,
        "positions.table": source.take("decoder.pos_emb.emb.weight", n, width, spare=1),
        "prefix.vector": written[scale.sos].clone(),
    }
    if config.classes:
        weights["encoder_prefix.classes.weight"] = table[: config.classes] + places[1]
    if config.output == "residual":
        gains = source.take("log_scalors", T - 1)
        weights["log_gain"] = gains if config.joint else gains[t - 2].clone()
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


def _gpt_tables(source: Source, scale: Scale) -> Weights:
    """As above. The slot before a token predicts it, so the last of the prefix has place 0."""
    config, K, t = scale.denoiser, scale.K, scale.t
    n, width, prefix = config.n, config.width, 1 + (config.classes > 0)
    table = source.take("tok_emb.weight", scale.vocabulary, width)
    places = _places(source, prefix - 1 + n, width)
    weights = {
        "tokens.weight": table[:K].clone(),
        "positions.table": places[prefix - 1 :].clone(),
        "prefix.vector": table[t - 1].clone(),
    }
    if config.classes:
        weights["prefix.vector"] += places[0]
        weights["prefix.classes.weight"] = table[: config.classes].clone()
    return weights


def _places(source: Source, count: int, width: int) -> Tensor:
    """pos_emb is 1×places×width; one place more than needed may be there."""
    stored = source.tensors.get(source.key("pos_emb"))
    spare = stored is not None and tuple(stored.shape) == (1, count + 1, width)
    return source.take("pos_emb", 1, count + spare, width)[0, :count]


def _require_own_gain(source: Source, scale: Scale) -> None:
    """Only a scale's own gain is ever trained: another one's gives away a file misnamed."""
    gains = _read(source.tensors[source.key("log_scalors")])
    trained = gains.nonzero().flatten() + 1
    if len(trained) and scale.t - 1 not in trained:
        raise ValueError(
            f"the file must hold scale {scale.t - 1}, got one where the gain of scale "
            f"{', '.join(map(str, trained.tolist()))} was trained"
        )
