"""Files and networks in the released form, written from what is known of them and not from ours:
names and shapes of the tensors, and the forward passes as plain functions of them."""

from pathlib import Path

import torch
import torch.nn.functional as F

from imagebart.released.untrusted import StoredTensor, read_checkpoint
from imagebart.vqgan import VQGANConfig

HEAD = 64  # width of an encoder-decoder's heads

FIXTURE_VQGAN = VQGANConfig(
    image_size=64,
    K=64,
    embed_dim=32,
    z_channels=32,
    channels=32,
    multipliers=(1, 1, 1, 2, 2),
    blocks=1,
    attention_levels=(2,),
)
"""The shape of fixtures/official_a/vqgan_weights.safetensors."""


def stored(tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, StoredTensor]:
    """The tensors as the importer meets them: in a checkpoint, not read."""
    path = folder / f"released_{len(list(folder.iterdir()))}.ckpt"
    torch.save({"state_dict": tensors}, path)
    return read_checkpoint(path)


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator)
        fan_in = max(1, x[0].numel()) if len(shape) > 1 else 4
        tensors[name] = x / fan_in**0.5 + (1 if "norm" in name or ".ln" in name else 0) * 0.5
    return tensors


def scale_file(
    transformer: dict[str, torch.Tensor], alphacum: list[float], first_stage: dict | None = None
) -> dict[str, torch.Tensor]:
    """A scale's state dict: the network, its average (here another network), the VQGAN."""
    alphacum = torch.tensor(alphacum)
    ratio = alphacum[1:] / alphacum[:-1]
    average = {
        name.replace(".", ""): 0.5 * x.flip(0)
        for name, x in transformer.items()
        if not name.endswith("attn.mask")
    }
    average |= {"decay": torch.tensor(0.9999), "num_updates": torch.tensor(7, dtype=torch.int32)}
    return {
        "sos_token": torch.zeros(1, dtype=torch.int64),
        "alphats": torch.cat([torch.ones(1), ratio]),
        "alphacum": alphacum,
        **{f"first_stage_model.{k}": v for k, v in (first_stage or {}).items()},
        **{f"transformer.{k}": v for k, v in transformer.items()},
        **{f"transformer_ema.{k}": v for k, v in average.items()},
    }


# ── names and shapes ──────────────────────────────────────────────────────────────────────────


def encoder_decoder_shapes(
    dim: int, heads: int, depths: tuple[int, int], rows: int, K: int, places: int, n: int,
    scales: int = 0,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    inner = heads * HEAD
    shapes = {"log_scalors": (scales,)} if scales else {}
    sides = (("encoder", "af", depths[0], rows, places), ("decoder", "acf", depths[1], K, n))
    for side, kinds, depth, tokens, positions in sides:
        shapes[f"{side}.token_emb.weight"] = (tokens, dim)
        shapes[f"{side}.pos_emb.emb.weight"] = (positions, dim)
        for i, kind in enumerate(kinds * depth):
            layer = f"{side}.attn_layers.layers.{i}"
            shapes |= {f"{layer}.0.weight": (dim,), f"{layer}.0.bias": (dim,)}
            if kind == "f":
                shapes |= {f"{layer}.1.net.0.0.weight": (4 * dim, dim)}
                shapes |= {f"{layer}.1.net.0.0.bias": (4 * dim,)}
                shapes |= {f"{layer}.1.net.2.weight": (dim, 4 * dim)}
                shapes |= {f"{layer}.1.net.2.bias": (dim,)}
            else:
                shapes |= {f"{layer}.1.to_{x}.weight": (inner, dim) for x in "qkv"}
                shapes |= {f"{layer}.1.to_out.weight": (dim, inner)}
                shapes |= {f"{layer}.1.to_out.bias": (dim,)}
        shapes |= {f"{side}.norm.weight": (dim,), f"{side}.norm.bias": (dim,)}
        shapes |= {f"{side}.to_logits.weight": (tokens, dim), f"{side}.to_logits.bias": (tokens,)}
    return shapes


def gpt_shapes(width: int, depth: int, rows: int, K: int, block: int) -> dict:
    shapes = {"pos_emb": (1, block, width), "tok_emb.weight": (rows, width)}
    for i in range(depth):
        layer = f"blocks.{i}"
        for name in ("ln1", "ln2"):
            shapes |= {f"{layer}.{name}.weight": (width,), f"{layer}.{name}.bias": (width,)}
        shapes[f"{layer}.attn.mask"] = (1, 1, block, block)
        for name in ("key", "query", "value", "proj"):
            shapes |= {f"{layer}.attn.{name}.weight": (width, width)}
            shapes |= {f"{layer}.attn.{name}.bias": (width,)}
        shapes |= {f"{layer}.mlp.0.weight": (4 * width, width), f"{layer}.mlp.0.bias": (4 * width,)}
        shapes |= {f"{layer}.mlp.2.weight": (width, 4 * width), f"{layer}.mlp.2.bias": (width,)}
    return shapes | {"ln_f.weight": (width,), "ln_f.bias": (width,), "head.weight": (K, width)}


# ── forward passes ────────────────────────────────────────────────────────────────────────────


def norm(w: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))


def attention(q, k, v, heads: int, visible) -> torch.Tensor:
    """q, k, v as b×s×(heads·width); visible s×s, or None."""
    outs = []
    for q_h, k_h, v_h in zip(
        q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True
    ):
        scores = torch.einsum("bqd,bkd->bqk", q_h, k_h) / q_h.shape[-1] ** 0.5
        if visible is not None:
            scores = scores.masked_fill(~visible, -1e30)
        outs.append(scores.softmax(-1) @ v_h)
    return torch.cat(outs, -1)


def encoder_decoder(w: dict, t: int, x_t, x_prev, classes, K: int, alpha: float | None):
    """(logits, encoder's output); t is the file's own, alpha the chance to keep at this scale."""
    heads = w["encoder.attn_layers.layers.0.1.to_q.weight"].shape[0] // HEAD

    def side(name: str, kinds: str, x, memory=None, visible=None):
        i = 0
        while f"{name}.attn_layers.layers.{i}.0.weight" in w:
            layer, kind = f"{name}.attn_layers.layers.{i}", kinds[i % len(kinds)]
            y = norm(w, f"{layer}.0", x)
            if kind == "f":
                y = F.gelu(linear(w, f"{layer}.1.net.0.0", y))
                y = linear(w, f"{layer}.1.net.2", y)
            else:
                read = y if kind == "a" else memory
                q = linear(w, f"{layer}.1.to_q", y)
                k, v = linear(w, f"{layer}.1.to_k", read), linear(w, f"{layer}.1.to_v", read)
                y = attention(q, k, v, heads, visible if kind == "a" else None)
                y = linear(w, f"{layer}.1.to_out", y)
            x, i = x + y, i + 1
        return norm(w, f"{name}.norm", x)

    b, n = x_t.shape
    source = [torch.full((b, 1), t), *([] if classes is None else [classes[:, None]]), x_t]
    ids = torch.cat(source, 1)
    x = w["encoder.token_emb.weight"][ids] + w["encoder.pos_emb.emb.weight"][: ids.shape[1]]
    memory = side("encoder", "af", x)

    ids = torch.cat([torch.zeros(b, 1, dtype=torch.int64), x_prev[:, :-1]], 1)
    x = w["decoder.token_emb.weight"][ids] + w["decoder.pos_emb.emb.weight"][:n]
    causal = torch.ones(n, n).tril().bool()
    logits = linear(w, "decoder.to_logits", side("decoder", "acf", x, memory, causal))
    if alpha is not None:
        noise = alpha * F.one_hot(x_t, K) + (1 - alpha) / K
        logits = w["log_scalors"][t - 1].exp() * logits + noise.log()
    return logits, memory


def gpt(w: dict, t: int, x_prev, classes, heads: int):
    b = len(x_prev)
    prefix = [torch.full((b, 1), t), *([] if classes is None else [classes[:, None]])]
    ids = torch.cat([*prefix, x_prev[:, :-1]], 1)
    x = w["tok_emb.weight"][ids] + w["pos_emb"][0, : ids.shape[1]]
    visible = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
    visible[: len(prefix), : len(prefix)] = True
    i = 0
    while f"blocks.{i}.ln1.weight" in w:
        layer = f"blocks.{i}"
        y = norm(w, f"{layer}.ln1", x)
        q, k, v = (linear(w, f"{layer}.attn.{part}", y) for part in ("query", "key", "value"))
        x = x + linear(w, f"{layer}.attn.proj", attention(q, k, v, heads, visible))
        y = F.gelu(linear(w, f"{layer}.mlp.0", norm(w, f"{layer}.ln2", x)))
        x, i = x + linear(w, f"{layer}.mlp.2", y), i + 1
    return linear(w, "head", norm(w, "ln_f", x))[:, len(prefix) - 1 :]


class VQGANReference:
    """The VQGAN's two networks from its tensors."""

    def __init__(self, w: dict, levels: int, blocks: int):
        self.w, self.levels, self.blocks = w, levels, blocks

    def conv(self, name: str, x, **options):
        return F.conv2d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], **options)

    def norm(self, name: str, x):
        return F.group_norm(x, 32, self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-6)

    def swish(self, name: str, x):
        x = self.norm(name, x)
        return x * x.sigmoid()

    def block(self, name: str, x):
        h = self.conv(f"{name}.conv1", self.swish(f"{name}.norm1", x), padding=1)
        h = self.conv(f"{name}.conv2", self.swish(f"{name}.norm2", h), padding=1)
        return (self.conv(f"{name}.nin_shortcut", x) if h.shape != x.shape else x) + h

    def attend(self, name: str, x):
        if f"{name}.q.weight" not in self.w:
            return x
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2).mT for part in "qkv")
        a = attention(q, k, v, 1, None).mT.unflatten(2, x.shape[2:])
        return x + self.conv(f"{name}.proj_out", a)

    def middle(self, name: str, x):
        x = self.attend(f"{name}.attn_1", self.block(f"{name}.block_1", x))
        return self.block(f"{name}.block_2", x)

    def prequant(self, image):
        h = self.conv("encoder.conv_in", image, padding=1)
        for i in range(self.levels):
            for j in range(self.blocks):
                h = self.block(f"encoder.down.{i}.block.{j}", h)
                h = self.attend(f"encoder.down.{i}.attn.{j}", h)
            if i < self.levels - 1:
                h = self.conv(f"encoder.down.{i}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
        h = self.swish("encoder.norm_out", self.middle("encoder.mid", h))
        return self.conv("quant_conv", self.conv("encoder.conv_out", h, padding=1))

    def image(self, z_q):
        h = self.conv("decoder.conv_in", self.conv("post_quant_conv", z_q), padding=1)
        h = self.middle("decoder.mid", h)
        for i in reversed(range(self.levels)):
            for j in range(self.blocks + 1):
                h = self.block(f"decoder.up.{i}.block.{j}", h)
                h = self.attend(f"decoder.up.{i}.attn.{j}", h)
            if i:
                h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
                h = self.conv(f"decoder.up.{i}.upsample.conv", h, padding=1)
        return self.conv("decoder.conv_out", self.swish("decoder.norm_out", h), padding=1)
