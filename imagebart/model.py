"""ImageBART: a VQGAN, a diffusion and the denoisers of scales 2 .. T, loaded as one model.

    x_T ~ uniform  →  x_{t-1} ~ p_θ^{t-1}(· | x_t), t = T .. 2  →  x_0 = G(x_1)

folders.py describes the files of a model.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from imagebart import hub
from imagebart.conditions import CONDITIONS, ConditionShape
from imagebart.data.images import as_given, fit, to_pil, to_rgb, to_tensor
from imagebart.denoiser import Denoiser
from imagebart.diffusion import MultinomialDiffusion
from imagebart.distributed import pick_device
from imagebart.fitting import Undrawn
from imagebart.folders import (
    OPTIONAL_ENTRIES,
    find_folder,
    load_denoisers,
    load_vqgan,
    read_config,
    read_entries,
    remove_other_scales,
    require_dtype,
    save_scale,
    save_vqgan,
    scale_name,
    share_vqgan,
    update_config,
)
from imagebart.isolation import isolated, plain_settings
from imagebart.known_pixels import Known
from imagebart.notation import Float, Grid, Images, Tokens
from imagebart.options import (
    Conditions,
    EditingOptions,
    InpaintOptions,
    Marks,
    MaskOptions,
    PanoramaOptions,
    ReimaginingOptions,
    SamplingOptions,
    with_options,
)
from imagebart.vqgan import VQGAN

if TYPE_CHECKING:
    from imagebart.sampling import Step

OUTPUT_TYPES = ("pil", "pt", "np")
Pictures = list[Image.Image] | Tensor | np.ndarray
"""What `decode` gives, by `output_type`."""


class ImageBART(nn.Module):
    """The whole chain. `vqgan`, `diffusion`, `denoisers[t]` for t = 2 .. T, `T`, `K`.

    `conditions` are those that it takes, {name: shape}; `names["class"]` are its classes and
    `names["map"]` the kinds of a semantic map; `guidance` is what sampling takes if nobody says,
    one number or one a scale.
    With `draws_class` a sample of which nothing is said shows the class of its seed
    (`guidance.classes_of_seeds`); without, whatever the chain makes of no condition.

    The parts are not copied: the caller's own VQGAN and denoisers are set to `eval()`, and their
    weights to need no gradient. Of a denoiser that still learns, give a copy.

    Raises ValueError if a scale is missing, if the parts do not fit each other, for names that are
    not of a condition, or not as many as it has tokens, for a guidance that is negative, or not one
    number or one a scale, and if it draws classes but has none.
    """

    def __init__(
        self,
        vqgan: VQGAN,
        diffusion: MultinomialDiffusion,
        denoisers: dict[int, Denoiser],
        *,
        names: dict[str, Sequence[str]] | None = None,
        guidance: float | Sequence[float] = 1.0,
        draws_class: bool = False,
    ):
        from imagebart.guidance import checked_guidance, require_unguided

        super().__init__()
        require_fit(vqgan, diffusion, denoisers)
        require_names_fit(names or {}, denoisers[2].config.conditions)
        if draws_class and "class" not in denoisers[2].config.conditions:
            raise ValueError("draws_class must be false for a model without classes, got true")
        scales = checked_guidance(guidance, diffusion.T)
        if not denoisers[2].config.condition_dropout:
            require_unguided(scales, guidance)
        self.vqgan, self.diffusion = vqgan, diffusion
        self.names = {name: tuple((names or {}).get(name, ())) for name in CONDITIONS}
        self.guidance = scales if len(set(scales)) > 1 else scales[0]
        self.draws_class = draws_class
        self._scales = nn.ModuleDict({str(t): denoisers[t] for t in sorted(denoisers)})
        self.eval().requires_grad_(False)

    @property
    def denoisers(self) -> dict[int, Denoiser]:
        return {int(t): cast(Denoiser, denoiser) for t, denoiser in self._scales.items()}

    @property
    def T(self) -> int:
        return self.diffusion.T

    @property
    def K(self) -> int:
        return self.diffusion.K

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens (h, w) of an image."""
        return self.denoisers[2].config.grid

    @property
    def image_size(self) -> tuple[int, int]:
        """Pixels (H, W) of an image."""
        h, w = self.grid
        return h * self.vqgan.f, w * self.vqgan.f

    @property
    def conditions(self) -> dict[str, ConditionShape]:
        """What the model can be given, by name ("class", "text", "map")."""
        return self.denoisers[self.T].config.conditions

    @property
    def condition_dropout(self) -> bool:
        """Whether the model was trained to do without any of its conditions."""
        return self.denoisers[self.T].config.condition_dropout

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # ── from noise to images ──────────────────────────────────────────────────────────────────

    @with_options
    def sample(
        self, num_images: int = 1, *, output_type: str = "pil", **options: Unpack[SamplingOptions]
    ) -> Pictures:
        """Draw images; `output_type` as `decode`.

        They are drawn in batches that fit the memory, as by `sample_stream`. Raises ValueError for
        values out of range, and for a condition that the model was not trained on.
        """
        return joined(list(self.sample_stream(num_images, output_type=output_type, **options)))

    @with_options
    def sample_stream(
        self,
        num_images: int = 1,
        *,
        output_type: str = "pil",
        batch: int | None = None,
        part: range | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Pictures]:
        """Draw images by the thousand: the same as `sample`, a batch of them after another.

        `batch` is how many at a time (as many as suit the hardware unless given), `part` a range
        of the images (all unless given), e.g. one process's of several. Memory does not grow
        with `num_images`. `output_type` as `decode`. The first batch raises ValueError as `sample`.
        """
        from imagebart.streaming import sample_stream

        require_output(output_type)
        for tokens in sample_stream(self, num_images, batch=batch, part=part, **options):
            yield self.decode(tokens, output_type)

    @with_options
    def sample_steps(
        self, num_images: int = 1, **options: Unpack[SamplingOptions]
    ) -> "Iterator[Step]":
        """The chain as it runs: `step.t` from T (noise) to 1, `step.tokens` (b, h, w), `step.done`.

        The first step raises ValueError for values out of range, and for a condition that the model
        was not trained on.
        """
        from imagebart.sampling import sample_steps

        return sample_steps(self, num_images, **options)

    @with_options
    def inpaint(
        self,
        image: Image.Image,
        mask: Marks,
        num_images: int = 1,
        *,
        output_type: str = "pil",
        **options: Unpack[InpaintOptions],
    ) -> Pictures:
        """Repaint where the mask marks the image; elsewhere pixels stay the input's exactly.

        True, white, or opaque in a mask with transparency is marked (`masks.pixel_mask`). Image and
        mask have one size, any. Pictures have the image's colour profile and, where it is not
        marked, its transparency; arrays and tensors are sRGB on white. See `inpainting.inpaint`.
        `output_type` as `decode`.
        """
        from imagebart.editing.inpainting import repainted

        require_output(output_type)
        results = repainted(self, image, mask, num_images, options)
        if output_type == "pil":
            return [picture for edit, one in results for picture in edit.pictures(one)]
        return self.present(torch.cat([one for _, one in results]), output_type)

    @with_options
    def complete(
        self,
        image: Image.Image,
        num_images: int = 1,
        *,
        keep: str = "lower",
        output_type: str = "pil",
        **options: Unpack[MaskOptions],
    ) -> Pictures:
        """Keep a half ("upper", "lower", "left", "right") and draw the other; as `inpaint`."""
        from imagebart.editing.inpainting import other_half

        mask = other_half(keep, as_given(image).size)
        return self.inpaint(image, mask, num_images, output_type=output_type, **options)

    @with_options
    def outpaint(
        self,
        image: Image.Image,
        num_images: int = 1,
        *,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        overlap: int = 0,
        output_type: str = "pil",
        **options: Unpack[EditingOptions],
    ) -> Pictures:
        """Go on beyond the borders by so many pixels on each side, and draw `overlap` pixels of the
        image anew at the sides that grow; as `inpaint`.

        See `inpainting.outpaint_steps`.
        """
        from imagebart.editing.inpainting import outpaint

        require_output(output_type)
        margins = {"left": left, "right": right, "top": top, "bottom": bottom}
        pictures = outpaint(self, image, num_images, **margins, overlap=overlap, **options)
        if output_type == "pil":
            return pictures
        images = to_tensor([to_rgb(picture) for picture in pictures])
        return self.present(images.to(self.device), output_type)

    @with_options
    def reimagine(
        self,
        image: Image.Image,
        num_images: int = 1,
        *,
        output_type: str = "pil",
        **options: Unpack[ReimaginingOptions],
    ) -> Pictures:
        """The whole picture as it would have been under other words: no mask, and what need not
        change stays. `prompt` are the new words, `source_prompt` those of the picture.

        Of the picture's own noise and the new words the chain makes the new picture, of the model's
        size; see `reimagining.reimagine`. `output_type` as `decode`.
        """
        from imagebart.editing.reimagining import reimagine

        require_output(output_type)
        return self.present(reimagine(self, image, num_images, **options), output_type)

    @with_options
    def panorama(
        self,
        width: int,
        height: int | None = None,
        *,
        output_type: str = "pil",
        **options: Unpack[PanoramaOptions],
    ) -> Pictures:
        """One picture of width × height pixels, beyond the training size, in a list.

        See `panorama.panorama_steps`; `output_type` as `decode`.
        """
        from imagebart.editing.panorama import panorama

        require_output(output_type)
        return self.present(panorama(self, width, height, **options), output_type)

    # ── x_0 ↔ x_1 ─────────────────────────────────────────────────────────────────────────────

    @isolated
    def encode(self, images: Image.Image | Sequence[Image.Image] | Tensor) -> Grid:
        """x_1: tokens (b, h, w) int64 of PIL images (resized and cropped to the model's size) or
        of a tensor b×3×H×W in [0, 1] (taken as it is; H and W multiples of f)."""
        return torch.cat([self.vqgan.encode(part) for part in self.parts(self.pixels(images))])

    def decode(self, tokens: Grid, output_type: str = "pil") -> Pictures:
        """G(x_1): images of tokens (b, h, w), as PIL images, "pt" (b×3×H×W in [0, 1]) or "np"
        (b×H×W×3 in [0, 1]). Raises ValueError for tokens outside [0, K)."""
        require_output(output_type)
        return self.present(self.generate(tokens), output_type)

    @isolated
    def generate(self, tokens: Grid, known: Known | None = None) -> Images:
        """G(x_1), as the network gives it: about [-1, 1]; made to fit the `known` pixels of
        these images by a VQGAN that has learned to (known_pixels.py)."""
        parts = self.parts(require_tokens(tokens, self.K).to(self.device))
        if known is None:
            return torch.cat([self.vqgan.decode(part).float() for part in parts])
        both = zip(parts, self.parts(known.to(self.device)), strict=True)
        return torch.cat([self.vqgan.decode(part, one).float() for part, one in both])

    def parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        """So many images as go through the VQGAN together: on a CPU one, which then does not depend
        on those beside it."""
        return batch.split(1 if self.device.type == "cpu" else 32)

    @isolated
    def pixels(self, images: Image.Image | Sequence[Image.Image] | Tensor) -> Tensor:
        """PIL images or a tensor in [0, 1] as x_0: b×3×H×W in [-1, 1] on the model's device."""
        if isinstance(images, Tensor):
            require_pixels(images)
            return 2 * images.to(self.device, torch.float32).clamp(0, 1) - 1
        images = [images] if isinstance(images, Image.Image) else list(images)
        if not images:
            raise ValueError("images must be at least one, got none")
        fitted = [to_tensor(fit(to_rgb(image), self.image_size)) for image in images]
        return torch.stack(fitted).to(self.device)

    @isolated
    def present(self, images: Tensor, output_type: str) -> Pictures:
        """x_0 in [-1, 1] as the caller wants it."""
        require_output(output_type)
        if output_type == "pil":
            return to_pil(images)
        images = (images.clamp(-1, 1) + 1) / 2
        if output_type == "pt":
            return images
        return rearrange(images, "b c h w -> b h w c").cpu().numpy()

    # ── the bound ─────────────────────────────────────────────────────────────────────────────

    @with_options
    def bits_per_token(
        self,
        images: Image.Image | Sequence[Image.Image] | Tensor,
        *,
        seed: int = 0,
        **conditions: Unpack[Conditions],
    ) -> dict[int, Float[Tensor, "b"]]:
        """{t: L_t of each image in bits per token}, one Monte-Carlo draw of the noise."""
        return self.bits_per_token_of(self.encode(images), seed=seed, **conditions)

    @with_options
    @isolated
    def bits_per_token_of(
        self, tokens: Grid, *, seed: int = 0, **conditions: Unpack[Conditions]
    ) -> dict[int, Float[Tensor, "b"]]:
        """The terms L_2 .. L_T for tokens x_1 (b, h, w), given their conditions.   [eq. 2]

        The noise of image i is that of seed + i, whatever is beside it. Images go in batches that
        fit the memory.
        """
        from imagebart.guidance import encode_condition
        from imagebart.sampling import image_seeds
        from imagebart.streaming import batch_that_fits

        tokens = torch.as_tensor(tokens)
        if tuple(tokens.shape[1:]) != self.grid:
            (h, w), (H, W) = self.grid, self.image_size
            got = f"got shape {tuple(tokens.shape)}"
            raise ValueError(f"tokens must be b×{h}×{w}, of images of {W}×{H} pixels, {got}")
        tokens = require_tokens(tokens, self.K)
        x_1 = rearrange(tokens, "b h w -> b (h w)").to(self.device)
        seeds = image_seeds(seed, len(x_1))
        condition = encode_condition(self, len(x_1), guidance=1.0, **conditions).condition
        bits: dict[int, list[Tensor]] = {t: [] for t in self.denoisers}
        size = batch_that_fits(self)
        for images in [slice(i, i + size) for i in range(0, len(x_1), size)]:
            own = None if condition is None else condition[images]
            for t, denoiser in self.denoisers.items():
                x_prev, x_t = self._forgotten(x_1[images], t, seeds[images])
                logits = denoiser(x_prev, x_t, own)
                nats = self.diffusion.loss_t(logits, x_t, x_1[images], t)
                bits[t].append(nats.mean(1) / float(np.log(2)))
        return {t: torch.cat(parts) for t, parts in bits.items()}

    def _forgotten(self, x_1: Tokens, t: int, seeds: list[int]) -> tuple[Tokens, Tokens]:
        """(x_{t-1}, x_t) of each image, with the noise of its own seed."""
        from imagebart.sampling import generator_of

        each = zip(x_1.cpu().split(1), seeds, strict=True)
        pairs = [
            self.diffusion.q_sample_pair(one, t, generator_of(seed, t, 0, "bound"))
            for one, seed in each
        ]
        x_prev, x_t = (torch.cat(tokens).to(self.device) for tokens in zip(*pairs, strict=True))
        return x_prev, x_t

    # ── folders ───────────────────────────────────────────────────────────────────────────────

    @classmethod
    @plain_settings()
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> "ImageBART":
        """A model from a folder or a Hugging Face Hub id; None is the shipped scenery model.

        Weights run in float32 unless `dtype` says otherwise. Raises ValueError, in a sentence, for
        a folder that is missing or holds something else, and for a `dtype` that computes nothing.
        """
        require_dtype(dtype)
        folder = find_folder(source, revision, local_files_only)
        config = read_config(folder)
        with Undrawn():
            vqgan = load_vqgan(folder)
            diffusion = MultinomialDiffusion(config["alpha_bar"], vqgan.K)
            denoisers = load_denoisers(folder, config["denoisers"], diffusion)
        named = {name: config[name] for name in OPTIONAL_ENTRIES if name in config}
        model = cls(vqgan, diffusion, denoisers, **named)
        return model.to(device=pick_device(None if device is None else str(device)), dtype=dtype)

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, vqgan_of: str | None = None
    ) -> None:
        """Write the folder that `from_pretrained` reads.

        `dtype` is what weights are stored in: torch.float16 halves the files, torch.int8 quarters
        those of the scales (int8.py; their VQGAN is then float16, since tokens must not change).
        `vqgan_of` names a model's folder beside this one whose VQGAN is the same, but for rounding
        to the type that it is stored in there: it is then not stored again. Scales of another model
        that the folder had are removed. Raises ValueError, and leaves the folder as it is, if there
        is no such VQGAN, if weights cannot be of this `dtype`, and if the folder is of a format
        that this version does not know.
        """
        require_dtype(dtype, torch.int8)
        folder = Path(folder)
        if (folder / "config.json").exists():
            read_entries(folder)
        if vqgan_of is None:
            save_vqgan(self.vqgan, folder, dtype)
        else:
            share_vqgan(self.vqgan, folder, vqgan_of)
        by_name = {scale_name(scale.config, t): (t, scale) for t, scale in self.denoisers.items()}
        for t, scale in by_name.values():  # a joint network has one name, and is written once
            save_scale(scale.state_dict(), scale.config, self.diffusion, t, folder, dtype)
        update_config(folder, {name: getattr(self, name) for name in OPTIONAL_ENTRIES})
        remove_other_scales(folder, by_name)

    push_to_hub = hub.push_to_hub


def require_fit(
    vqgan: VQGAN, diffusion: MultinomialDiffusion, denoisers: dict[int, Denoiser]
) -> None:
    """ValueError unless these are the parts of one chain."""
    T, K = diffusion.T, diffusion.K
    if set(denoisers) != set(range(2, T + 1)):
        raise ValueError(f"a chain of T = {T} needs scales 2 to {T}, got {sorted(denoisers)}")
    if vqgan.K != K:
        raise ValueError(f"K must be the VQGAN's {vqgan.K}, got a diffusion with {K}")
    schedule = diffusion.alpha_bar[1:].tolist()
    first = denoisers[2].config
    for t, denoiser in denoisers.items():
        shape, own = denoiser.config, denoiser.diffusion
        for name, wanted, got in (
            ("t", t, denoiser.t),
            ("K", K, denoiser.K),
            ("schedule", schedule, own.alpha_bar[1:].tolist()),
            ("grid", first.grid, shape.grid),
            ("conditions", first.conditions, shape.conditions),
            ("condition_dropout", first.condition_dropout, shape.condition_dropout),
            ("joint", first.joint, shape.joint),
        ):
            if got != wanted:
                raise ValueError(f"{name} of scale {t} must be {wanted}, got {got}")
        if shape.joint and denoiser.head is not denoisers[2].head:
            raise ValueError(f"scale {t} must share the joint network's weights, got its own")


def require_names_fit(
    names: dict[str, Sequence[str]], conditions: dict[str, ConditionShape]
) -> None:
    """ValueError unless names are of conditions, and none or one a token of a model's own."""
    for name, given in names.items():
        if name not in CONDITIONS:
            raise ValueError(f"names must be of {', '.join(CONDITIONS)}, got {name!r}")
        if given and name in conditions and len(given) != conditions[name].vocabulary:
            count = conditions[name].vocabulary
            raise ValueError(f"names of {name} must be none or {count}, got {len(given)}")


def require_output(output_type: str) -> None:
    """ValueError for what `decode` does not give."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")


def require_tokens(tokens: Tensor, K: int) -> Grid:
    """The tokens in int64, NumPy's and lists too; ValueError unless these are (b, h, w), at least
    one, whole numbers in [0, K)."""
    tokens = torch.as_tensor(tokens)
    if tokens.ndim != 3 or tokens.numel() == 0:
        raise ValueError(f"tokens must be (b, h, w), at least one, got {tuple(tokens.shape)}")
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens must be whole numbers, got {tokens.dtype}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= K:
        raise ValueError(f"tokens must lie in [0, {K}), got {low} to {high}")
    return tokens.long()


def require_x_1(model: ImageBART, x_1: Tensor) -> Grid:
    """The tokens in int64; ValueError unless they are those (1, h, w) of one image of the model's
    size."""
    if tuple(x_1.shape) != (1, *model.grid):
        (h, w), got = model.grid, tuple(x_1.shape)
        raise ValueError(f"x_1 must be (1, {h}, {w}) tokens, got shape {got}")
    return require_tokens(x_1, model.K)


def require_pixels(images: Tensor) -> None:
    """ValueError unless these are b×3×H×W, at least one, in [0, 1] but for rounding."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ValueError(f"images must be b×3×H×W, at least one, got shape {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating-point numbers in [0, 1], got {images.dtype}")
    low, high = images.min().item(), images.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"images must lie in [0, 1], got {low:.5g} to {high:.5g}")


def joined(batches: list) -> Pictures:
    """Batches of images, all of one type, as one."""
    if isinstance(batches[0], Tensor):
        return torch.cat(batches)
    if isinstance(batches[0], np.ndarray):
        return np.concatenate(batches)
    return [image for batch in batches for image in batch]
