"""What a preset takes, before anything is run: memory of a GPU, and operations an image, a stage.

    python train/plan.py --preset imagenet-5 --gpus 1 8 --memory 80

Measured with fake tensors (memory.py): it needs no GPU, and half a minute for the largest scale.
"""

from dataclasses import dataclass, replace

from memory import CHAIN_ADVICE, GIB, VQGAN_ADVICE, Cost, cost_of, cost_of_compression
from training import errors_said, read_options

from imagebart.arguments import as_int
from imagebart.diffusion import MultinomialDiffusion
from imagebart.presets import find_preset


@dataclass(frozen=True)
class Config:
    preset: str = "scenery"  # a row of imagebart/presets.py; "list" prints them
    gpus: tuple[int, ...] = (1, 8)  # numbers of GPUs to plan for
    memory: float = 80  # GiB of a GPU
    precision: str | None = None  # instead of the preset's: "fp32" or "bf16"
    recompute: bool = False  # with activation checkpointing
    shard: bool = False  # a part of the weights on each GPU


def main(config: Config) -> None:
    """Print a line for each stage of the preset and each number of GPUs."""
    preset = find_preset(config.preset)
    for gpus in config.gpus:
        as_int(gpus, "--gpus", 1)
    precision = config.precision or preset.scale.precision
    diffusion = MultinomialDiffusion(preset.alpha_bar, preset.K)
    compression = replace(
        preset.compression, precision=config.precision or preset.compression.precision
    )
    for gpus in config.gpus:
        cost = cost_of_compression(preset.vqgan, compression, gpus)
        print(plan_line(config, "VQGAN", cost, compression.batch, gpus, VQGAN_ADVICE))
    for t in [preset.T] if preset.joint else sorted({2, preset.T}):  # two shapes at most
        for gpus in config.gpus:
            how = precision, config.recompute, gpus, config.shard and gpus > 1
            cost = cost_of(preset.denoiser(t), diffusion, t, *how)
            print(plan_line(config, f"t = {t}", cost, preset.scale.batch, gpus, CHAIN_ADVICE))


def plan_line(config: Config, stage: str, cost: Cost, batch: int, gpus: int, advice: str) -> str:
    """What a stage takes on so many GPUs, or why it cannot be there."""
    share = -(-batch // gpus)
    head = f"{config.preset}, {stage}, {cost.parameters / 1e6:.0f} M parameters, "
    head += f"{cost.image_flops / 1e9:.0f} GFLOP an image, {gpus} GPUs: "
    try:
        at_once = cost.fitting(share, int(config.memory * GIB), advice)
    except ValueError as error:
        return f"{head}{error}"
    used = cost.bytes(at_once) / GIB
    return f"{head}{at_once} images × {-(-share // at_once)} passes, about {used:.1f} GiB each"


if __name__ == "__main__":
    config = read_options(Config, __doc__)
    with errors_said():
        main(config)
