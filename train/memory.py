"""What a step of train/scale.py or train/compression.py takes on a GPU, before it is run: bytes and
operations.

Shapes pass through the network as fake tensors (torch's FakeTensorMode): nothing is stored and
nothing computed, so the largest preset is measured in seconds and without a GPU.
"""

import re
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from training import say

from imagebart.denoiser import Denoiser, DenoiserConfig
from imagebart.diffusion import MultinomialDiffusion
from imagebart.distributed import Ranks
from imagebart.perceptual import (
    PatchDiscriminator,
    generator_loss,
    reconstruction_loss,
    untrained,
)
from imagebart.presets import CompressionRecipe
from imagebart.transformer import DecoderBlock, EncoderBlock
from imagebart.vqgan import VQGAN, VQGANConfig

GIB = 2**30
FILLED = 0.85
"""Part of a GPU's memory that a step may fill; the rest is CUDA's, and lost between blocks."""

CHAIN_ADVICE = "--recompute and --precision bf16 need less"
VQGAN_ADVICE = "--precision bf16 needs less"
"""What helps where a step does not fit: the options of train/scale.py, of train/compression.py."""

PEAK_FLOPS = {
    "GH200": 989e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 15.7e12,
}
"""Operations a second in bfloat16 without sparsity (V100: in float32, see `precision_on`), as the
vendor states them."""


@dataclass(frozen=True)
class Cost:
    """What a step takes on one rank."""

    parameters: int
    state_bytes: int  # weights, their gradients, Adam's two averages, the averaged weights
    fixed_bytes: int  # kept for the backward pass whatever the batch: weights in bfloat16
    image_bytes: int  # kept for the backward pass, an image
    image_flops: int  # forward and backward, an image; recomputation is not counted

    def bytes(self, images: int) -> int:
        """All that is there when the backward pass of so many images begins."""
        return self.state_bytes + self.fixed_bytes + images * self.image_bytes

    def fitting(self, share: int, memory: int, advice: str) -> int:
        """The most images at once, at most `share`, that fit into `memory` bytes, in equal parts;
        ValueError if one does not, which ends with the `advice`."""
        for parts in range(1, share + 1):
            images = -(-share // parts)
            if self.bytes(images) <= FILLED * memory:
                return images
        raise ValueError(
            f"a GPU must have {self.bytes(1) / FILLED / GIB:.1f} GiB for this network, "
            f"got {memory / GIB:.1f}: {advice}"
        )


def images_at_once(
    given: int | None, batch: int, share: int, ranks: Ranks, cost: Callable[[], Cost], advice: str
) -> tuple[int, Cost | None]:
    """Images of a rank in one pass, and the cost where a GPU's memory limits them.

    Those that are `given`, else as many of the rank's `share` of the `batch` as fit. ValueError for
    fewer than one, and if none fits, which ends with the `advice`.
    """
    if given is not None and given < 1:
        raise ValueError(f"at_once must be at least 1, got {given}")
    memory = memory_of(ranks.device)
    if memory is None:
        return share if given is None else given, None
    needs = cost()
    at_once = needs.fitting(share, memory, advice) if given is None else given
    if ranks.is_main:
        say(memory_line(needs, at_once, batch, ranks.world, memory))
    return at_once, needs


def memory_line(needs: Cost, at_once: int, batch: int, ranks: int, memory: int) -> str:
    """How a batch is computed, and the memory that it takes, in a line."""
    accumulation = -(-batch // (ranks * at_once))
    return (
        f"batch {batch}: {ranks} ranks × {at_once} images × {accumulation} passes, "
        f"about {needs.bytes(at_once) / GIB:.1f} GiB each of {memory / GIB:.0f} GiB"
    )


class Blocks:
    """The transformer blocks of a denoiser, for what is done to each of them."""

    def __init__(self, denoiser: Denoiser):
        kinds = EncoderBlock, DecoderBlock
        self.blocks = [module for module in denoiser.modules() if isinstance(module, kinds)]

    def recompute(self) -> None:
        """Activation checkpointing: of a block only its input is kept for the backward pass."""
        for block in self.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def compile(self) -> None:
        """Compile one block after another: all have the same code, so it is done once."""
        for block in self.blocks:
            block.compile()


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that were made inside the mode and still are there."""

    def __init__(self):
        super().__init__()
        self.storages: dict[int, tuple[weakref.ref, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.storages[storage._cdata] = weakref.ref(storage), storage.nbytes()
        return result

    def bytes(self) -> int:
        return sum(size for alive, size in self.storages.values() if alive() is not None)


def cost_of(
    config: DenoiserConfig,
    diffusion: MultinomialDiffusion,
    t: int,
    precision: str = "bf16",
    recompute: bool = False,
    ranks: int = 1,
    in_shards: bool = False,
) -> Cost:
    """Measure a step of scale t: an image, then two. Its output is taken to be the plain one: what
    others add is far below a hundredth, and needs numbers, which fake tensors have not."""
    config = replace(config, output="plain")
    with torch.random.fork_rng(), FakeTensorMode(allow_non_fake_inputs=True):
        denoiser = Denoiser(config, diffusion, t)
        denoiser._checked = lambda condition: condition  # the values of a fake are not known
        if recompute:
            Blocks(denoiser).recompute()
        passes = measured(partial(kept_bytes, denoiser, precision))
    numbers = numbers_of(denoiser)
    held = (5 if ranks == 1 else 6) * numbers  # several ranks sum their gradients in buckets
    if in_shards:
        blocks = [numbers_of(block) for block in Blocks(denoiser).blocks]
        gathered = numbers - sum(blocks) + 2 * max(blocks)  # one computes, the next one comes
        held = 5 * numbers // ranks + 2 * gathered  # weights and their gradients
    return Cost(numbers, 4 * held, *passes)


def measured(kept: Callable[[int], int]) -> tuple[int, int, int]:
    """`fixed_bytes`, `image_bytes` and `image_flops` of a cost, by the bytes that a forward pass of
    one image keeps, and of two."""
    with FlopCounterMode(display=False) as counter:
        one = kept(1)
    two = kept(2)
    flops = 3 * counter.get_total_flops()  # a backward pass is two forward passes
    return max(0, 2 * one - two), two - one, flops


def kept_bytes(denoiser: Denoiser, precision: str, images: int) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    tokens = torch.zeros(images, denoiser.n, dtype=torch.int64)
    lengths = [shape.length for shape in denoiser.config.conditions.values()]
    condition = torch.zeros(images, sum(lengths), dtype=torch.int64) if lengths else None
    with Live() as live, as_on_a_gpu(precision):
        loss = denoiser.loss(tokens, tokens, tokens, condition).mean()
        kept = live.bytes()
    del loss
    return kept


def cost_of_compression(config: VQGANConfig, recipe: CompressionRecipe, ranks: int = 1) -> Cost:
    """Measure a step of the VQGAN against its discriminator: the pass that keeps most, of the
    generator's loss. Weights of the perceptual network are not read: only their shapes count."""
    with torch.random.fork_rng(), FakeTensorMode(allow_non_fake_inputs=True):
        vqgan, features = VQGAN(config), untrained(recipe.perceptual)
        shape = recipe.discriminator_channels, recipe.discriminator_layers
        judge = PatchDiscriminator(*shape).requires_grad_(False)

        def kept(images: int) -> int:
            image = torch.zeros(images, 3, config.image_size, config.image_size)
            with Live() as live, as_on_a_gpu(recipe.precision):
                back, codebook, _ = vqgan(image)
                weights = recipe.perceptual_weight, recipe.detail, recipe.edges
                rec = reconstruction_loss(image, back, features, *weights)
                loss = rec + codebook + generator_loss(judge(back))
                bytes_kept = live.bytes()
            del loss
            return bytes_kept

        passes = measured(kept)
    copies = 4 if ranks == 1 else 5  # of both networks; and the averaged weights of one
    numbers = numbers_of(vqgan)
    state = copies * (numbers + numbers_of(judge)) + numbers + numbers_of(features)
    return Cost(numbers, 4 * state, *passes)


def as_on_a_gpu(precision: str) -> AbstractContextManager:
    """The precision of a GPU for tensors that lie on the CPU and hold no numbers."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def numbers_of(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def memory_of(device: torch.device) -> int | None:
    """Bytes of a GPU; None for a CPU, whose memory the system manages."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def peak_flops(device: torch.device) -> float | None:
    """Operations a second of a GPU in bfloat16; None if it is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = (peak for known, peak in PEAK_FLOPS.items() if re.search(rf"\b{known}\b", name))
    return next(found, None)
