"""Other methods: the naive decoder, Hugging Face's BART, a pixel diffusion model."""

import copy
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from timing import timed
from torch import nn

from imagebart.denoiser import Denoiser
from imagebart.linear import Linear

PREFIXES = 8  # lengths at which the naive decoder is timed

DDPM = {  # UNet2DModel's options for the published google/ddpm-celebahq-256
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
SAMPLERS = {"DDPM, 1000 steps": 1000, "DDIM, 100 steps": 100, "DDIM, 50 steps": 50}


def naive_seconds(denoiser: Denoiser, x_t: torch.Tensor, condition, repeats: int) -> float:
    """Encoder and whole prefix recomputed for every token: n times the mean over a few lengths.

    With PyTorch's own linear layers, as in the released code.
    """
    denoiser, n, seconds = with_plain_layers(denoiser), denoiser.n, []
    for i in range(PREFIXES):
        length = int((i + 0.5) / PREFIXES * n) + 1
        run = partial(naive_pass, denoiser, x_t, length, condition)
        seconds.append(timed(run, repeats, x_t.device, 1)["median_s"])
    return n * float(np.mean(seconds))


def naive_pass(denoiser: Denoiser, x_t: torch.Tensor, length: int, condition) -> torch.Tensor:
    """The network's output (1, K) at position `length - 1`, after the first tokens of x_t."""
    memory, there = denoiser.encode(x_t, condition)
    prefix, present = denoiser.decoder_prefix(1, condition)
    x = torch.cat([prefix, denoiser.tokens(x_t[:, : length - 1])], dim=1)
    at = F.pad(denoiser.positions()[:length], (0, 0, denoiser.prefix.length - 1, 0))
    return denoiser.head(denoiser.decoder(x + at, memory, there, present)[:, -1])


def with_plain_layers(module: nn.Module) -> nn.Module:
    """The same weights, shared, in a module whose linear layers are PyTorch's own."""
    plain = copy.deepcopy(module, {id(p): p for p in module.parameters()})
    for parent in list(plain.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, Linear):
                parent.register_module(name, nn.Linear(1, 1, device="meta"))
                parent.get_submodule(name).weight = layer.weight
                parent.get_submodule(name).bias = layer.bias
    return plain


def bart_seconds(denoiser: Denoiser, x_t: torch.Tensor, repeats: int) -> dict:
    """Hugging Face's BART of this width, these depths, lengths and precision, sampling with its
    cache."""
    bart = bart_like(denoiser).to(x_t.device)
    source, n = x_t if denoiser.sees_x_t else x_t[:, :1], denoiser.n

    def run() -> None:
        bart.generate(source, do_sample=True, min_new_tokens=n, max_new_tokens=n, top_k=0)

    return timed(run, repeats, x_t.device, 1)


def bart_like(denoiser: Denoiser) -> nn.Module:
    """A BART with random weights that has this denoiser's sizes."""
    from transformers import BartConfig, BartForConditionalGeneration  # seconds, so only here

    shape, n, K = denoiser.config, denoiser.n, denoiser.K
    heads = max(h for h in range(1, shape.heads + 1) if shape.width % h == 0)
    sizes = {"vocab_size": K + 4, "d_model": shape.width, "max_position_embeddings": n + 8}
    for part, depth in (("encoder", shape.encoder_depth), ("decoder", shape.decoder_depth)):
        depth = depth if part == "decoder" or denoiser.sees_x_t else 1
        sizes |= {f"{part}_layers": depth, f"{part}_attention_heads": heads}
        sizes[f"{part}_ffn_dim"] = 4 * shape.width
    ids = {"bos_token_id": K, "pad_token_id": K + 1, "eos_token_id": K + 2}
    bart = BartForConditionalGeneration(
        BartConfig(**sizes, **ids, decoder_start_token_id=K, forced_eos_token_id=None)
    )
    return bart.eval().to(next(denoiser.parameters()).dtype)


@torch.inference_mode()
def ddpm_seconds(
    size: tuple[int, int], repeats: int, device: torch.device, dtype: torch.dtype
) -> dict:
    """Seconds per image of a pixel diffusion model: a few steps timed, the total computed."""
    unet = ddpm_unet().eval()
    nn.Module.to(unet, device, dtype)
    x = torch.randn(1, 3, *size, device=device, dtype=dtype)
    step = timed(lambda: unet(x, 500), repeats, device, 1)
    return {
        "unet": "google/ddpm-celebahq-256's shape with random weights",
        "parameters": sum(p.numel() for p in unet.parameters()),
        "image_size": list(size),
        "step": step,
        "steps_timed": repeats,
        "computed": "the median step times the number of steps; nothing between steps is counted",
        "seconds": {name: steps * step["median_s"] for name, steps in SAMPLERS.items()},
    }


def ddpm_unet() -> nn.Module:
    """The network of DDPM for 256×256 pixels, with random weights; it takes any multiple of 32."""
    from diffusers import UNet2DModel  # seconds, so only here

    return UNet2DModel(sample_size=256, in_channels=3, out_channels=3, **DDPM)
