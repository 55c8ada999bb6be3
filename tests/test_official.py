"""The released models give the released outputs: fixtures hold what the published code computed."""

import gzip
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from released import (
    FIXTURE_VQGAN,
    VQGANReference,
    encoder_decoder,
    encoder_decoder_shapes,
    gpt,
    gpt_shapes,
    random_tensors,
    scale_file,
    stored,
)
from safetensors.torch import load_file

from imagebart.conditions import by_class, class_count, text_shape
from imagebart.data.images import to_pil
from imagebart.denoiser import Denoiser, DenoiserConfig
from imagebart.diffusion import MultinomialDiffusion, cross_entropy, geometric
from imagebart.editing import inpainting, process
from imagebart.presets import PRESETS
from imagebart.released.official import convert_denoiser, convert_vqgan, require_schedule
from imagebart.released.untrusted import StoredTensor
from imagebart.sampling import Filter, decode_parallel, decode_sequential

FIXTURES = Path(__file__).parent / "fixtures" / "official_a"
WEIGHTS = ("raw", "ema")
CLOSE = dict(rtol=0, atol=1e-4)
GREEDY = Filter(temperature=0.0)

TWO_SCALES = PRESETS["ffhq-2"].alpha_bar
SMALL = dict(grid=(4, 4), axial_positions=False)
ENCODER_DECODER = DenoiserConfig(
    **SMALL, width=48, heads=3, head_width=64, encoder_depth=2, decoder_depth=2
)
DECODER = dict(encoder_depth=1, decoder_depth=3, bias=True, head_bias=False, output="plain")
SCALES = {
    "encdec_residual": (replace(ENCODER_DECODER, output="residual"), geometric(5), 3),
    "encdec_plain": (replace(ENCODER_DECODER, output="plain"), TWO_SCALES, 2),
    "deconly": (
        DenoiserConfig(**SMALL, width=56, heads=4, head_width=14, **DECODER),
        TWO_SCALES,
        3,
    ),
}
"""{fixture: (its shape, ᾱ_1 .. ᾱ_T, t)}, of 40 codes each."""


def fixture(name: str) -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / f"{name}.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("released")


@pytest.fixture(scope="module")
def vqgan(folder):
    return convert_vqgan(stored(fixture("vqgan_weights"), folder), FIXTURE_VQGAN).eval()


@pytest.fixture(scope="module", params=[(s, w) for s in SCALES for w in WEIGHTS], ids="-".join)
def scale(request, folder):
    """(denoiser, diffusion, expected): a scale and what the released code gives for it."""
    name, weights = request.param
    config, alpha_bar, t = SCALES[name]
    file, diffusion = stored(fixture(f"{name}_ckpt"), folder), MultinomialDiffusion(alpha_bar, 40)
    require_schedule(file, alpha_bar)
    denoiser = convert_denoiser(file, config, diffusion, t, ema=weights == "ema")
    expected = fixture(f"{name}_io")
    own = {k.removeprefix(f"{weights}."): v for k, v in expected.items()}
    return denoiser.eval(), diffusion, own


# ── the VQGAN ─────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_vqgan_encodes_as_released(vqgan):
    io = fixture("vqgan_io")
    image = io["square.image"]
    torch.testing.assert_close(vqgan.encoder(image), io["square.encoder_out"], **CLOSE)
    torch.testing.assert_close(vqgan.latents(image), io["square.prequant"], **CLOSE)


@torch.no_grad()
def test_vqgan_tokens_are_the_released_ones_where_a_code_has_one(vqgan):
    io = fixture("vqgan_io")
    z = vqgan.latents(io["square.image"])
    assert torch.equal(vqgan.quantiser.nearest(z), io["square.raw_indices"])
    known = io["square.known_mask"]
    tokens = vqgan.encode(io["square.image"])
    assert torch.equal(tokens[known], io["square.remapped_indices_seed123"][known])
    assert (tokens[~known] < vqgan.K).all() and not known.all()


def test_codebook_is_shrunk_as_released(vqgan):
    io = fixture("vqgan_io")
    known = io["remap.known_mask"]
    token = vqgan.quantiser.token_of[io["remap.full_indices"]]
    assert torch.equal(token[known], io["remap.expected_where_known"][known])
    assert torch.equal(vqgan.quantiser.used, io["remap.unmap_all"])


@torch.no_grad()
def test_vqgan_decodes_as_released(vqgan):
    io = fixture("vqgan_io")
    z_q = vqgan.quantiser.lookup(io["square.dec_indices"])
    torch.testing.assert_close(z_q, io["square.dec_quant"], **CLOSE)
    torch.testing.assert_close(
        vqgan.decode(io["square.dec_indices"]), io["square.dec_image"], **CLOSE
    )


@torch.no_grad()
def test_vqgan_reconstructs_with_the_full_codebook_as_released(vqgan):
    io = fixture("vqgan_io")
    back, _, _ = vqgan(io["square.image"])
    torch.testing.assert_close(back, io["square.reconstruction"], **CLOSE)


# ── a scale ───────────────────────────────────────────────────────────────────────────────────


def test_scale_numbers_are_the_papers(scale):
    denoiser, diffusion, io = scale
    assert denoiser.t == io["scale_token"][0, 0] + 1
    torch.testing.assert_close(diffusion.alpha_bar[1:].float(), io["alphacum"], rtol=0, atol=1e-6)
    torch.testing.assert_close(diffusion.beta[2:].float(), io["beta"][1:], rtol=0, atol=1e-6)


@torch.no_grad()
def test_logits_are_the_released_ones(scale):
    denoiser, _, io = scale
    torch.testing.assert_close(denoiser(io["x_tm1"], io["x_t"]), io["logits"], **CLOSE)


@torch.no_grad()
def test_encoder_hidden_states_are_the_released_ones(scale):
    denoiser, _, io = scale
    if denoiser.sees_x_t:
        torch.testing.assert_close(
            denoiser.encode(io["x_t"], None)[0], io["encoder_hidden"], **CLOSE
        )
    else:
        assert "encoder_hidden" not in io


def test_posteriors_are_the_released_ones(scale):
    denoiser, diffusion, io = scale
    ours = diffusion.q_posterior(io["x_t"], io["x0"], denoiser.t)
    torch.testing.assert_close(ours.mT, io["posterior"].flatten(2), **CLOSE)
    for s in range(2, diffusion.T + 1):
        step = f"post_t{s - 1}."
        released = {k.removeprefix(step): v for k, v in io.items() if k.startswith(step)}
        ours = diffusion.q_posterior(released["x_t"], released["x0"], s)
        torch.testing.assert_close(ours.mT, released["posterior"].flatten(2), **CLOSE)


@torch.no_grad()
def test_losses_are_the_released_ones(scale):
    denoiser, diffusion, io = scale
    logits = denoiser(io["x_tm1"], io["x_t"])
    hard = cross_entropy(logits, io["x_tm1"]).mean()
    soft = diffusion.posterior_kl(logits, io["x_t"], io["x0"], denoiser.t).mean()
    for alpha, name in (
        (0, "hard"),
        (1, "soft"),
        (0, "alpha0.0"),
        (1, "alpha1.0"),
        (0.35, "alpha0.35"),
    ):
        ours = alpha * soft + (1 - alpha) * hard
        torch.testing.assert_close(ours, io[f"loss_{name}"].squeeze(), **CLOSE)


@pytest.mark.parametrize("decode", [decode_sequential, decode_parallel])
def test_greedy_decoding_is_the_released_one(scale, decode):
    denoiser, diffusion, io = scale
    noise = torch.zeros(*io["x_t"].shape, diffusion.K)
    with torch.inference_mode():
        assert torch.equal(decode(denoiser, io["x_t"], noise, GREEDY), io["greedy"])


@pytest.mark.parametrize("decode", [decode_sequential, decode_parallel])
def test_guided_greedy_decoding_is_the_released_one(scale, decode):
    denoiser, diffusion, io = scale
    known, start = io["inpaint.mask"].bool(), io["inpaint.mixed_start"]
    noise = torch.zeros(*start.shape, diffusion.K)
    with torch.inference_mode():
        drawn = decode(denoiser, start, noise, GREEDY, None, known, start)
    assert torch.equal(drawn, io["greedy_guided"])


# ── other shapes, classes, grids that are no square ───────────────────────────────────────────

N, K, CLASSES = 15, 11, 17  # 3×5 tokens; more classes than codes
WIDE = dict(grid=(3, 5), axial_positions=False)
ALPHA_BAR = {"residual": [1.0, 2 / 3, 1 / 3, 0.0], "plain": [1.0, 0.9, 0.4, 0.0]}


@dataclass
class Case:
    """A random released scale of 3×5 tokens: its tensors, and what they are."""

    file: dict[str, torch.Tensor]
    config: DenoiserConfig
    t: int

    @property
    def diffusion(self) -> MultinomialDiffusion:
        return MultinomialDiffusion(ALPHA_BAR[self.config.output], K)

    def convert(self, folder: Path, ema: bool = False) -> Denoiser:
        return convert_denoiser(
            stored(self.file, folder), self.config, self.diffusion, self.t, ema=ema
        )

    def weights(self, ema: bool) -> dict[str, torch.Tensor]:
        """Those last trained, or their average, by the names of the network."""
        raw = {
            name.removeprefix("transformer."): x
            for name, x in self.file.items()
            if name.startswith("transformer.")
        }
        if not ema:
            return raw
        averaged = [name for name in raw if not name.endswith("mask")]
        return {name: self.file[f"transformer_ema.{name.replace('.', '')}"] for name in averaged}


def encoder_decoder_case(output: str, conditional: bool, t: int = 3) -> Case:
    rows, places = (max(CLASSES, K), N + 2) if conditional else (K, N + 1)
    scales = 3 if output == "residual" else 0
    shapes = encoder_decoder_shapes(40, 2, (3, 2), rows, K, places, N, scales)
    shape = dict(width=40, heads=2, head_width=64, encoder_depth=3, decoder_depth=2)
    conditions = by_class(CLASSES * conditional)
    config = DenoiserConfig(**WIDE, **shape, output=output, conditions=conditions)
    return Case(scale_file(random_tensors(shapes), ALPHA_BAR[output]), config, t)


def gpt_case(conditional: bool, spare: int) -> Case:
    rows, block = (max(CLASSES, K), N + 1) if conditional else (K, N)
    conditions = by_class(CLASSES * conditional)
    shape = DECODER | dict(width=36, heads=2, head_width=18, conditions=conditions)
    shapes = gpt_shapes(36, 3, rows, K, block + spare)
    file = scale_file(random_tensors(shapes), ALPHA_BAR["plain"])
    return Case(file, DenoiserConfig(**WIDE, **shape), 4)


def random_input(conditional: bool):
    torch.manual_seed(1)
    x_t, x_prev = torch.randint(K, (2, 2, N))
    return x_t, x_prev, torch.tensor([0, CLASSES - 1]) if conditional else None


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("output", ["plain", "residual"])
@torch.no_grad()
def test_encoder_decoders_of_other_shapes_agree_with_the_formulas(
    output, conditional, ema, tmp_path
):
    case = encoder_decoder_case(output, conditional)
    denoiser = case.convert(tmp_path, ema)
    x_t, x_prev, classes = random_input(conditional)
    alpha = 0.5 if output == "residual" else None
    logits, memory = encoder_decoder(case.weights(ema), 2, x_t, x_prev, classes, K, alpha)
    torch.testing.assert_close(denoiser.encode(x_t, classes)[0], memory, **CLOSE)
    torch.testing.assert_close(denoiser(x_prev, x_t, classes), logits, **CLOSE)


@pytest.mark.parametrize("spare", [0, 1])  # as released with a class, the last place is never used
@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
@torch.no_grad()
def test_decoders_of_other_shapes_agree_with_the_formulas(conditional, ema, spare, tmp_path):
    case = gpt_case(conditional, spare)
    denoiser = case.convert(tmp_path, ema)
    _, x_prev, classes = random_input(conditional)
    logits = gpt(case.weights(ema), 3, x_prev, classes, heads=2)
    torch.testing.assert_close(denoiser(x_prev, None, classes), logits, **CLOSE)


@torch.no_grad()
def test_a_joint_network_agrees_with_the_formulas_at_every_scale(tmp_path):
    """It is one scale's network but for what tells the scales apart: row t, the gain."""
    case = encoder_decoder_case("residual", conditional=False)
    weights, tensors = case.weights(ema=False), case.convert(tmp_path).state_dict()
    starts = weights["encoder.token_emb.weight"][1:4] + weights["encoder.pos_emb.emb.weight"][0]
    tensors |= {"encoder_prefix.vector": starts, "log_gain": weights["log_scalors"]}
    tensors["scale_vectors"] = torch.zeros(3, case.config.width)
    joint = Denoiser(replace(case.config, joint=True), case.diffusion, 4).eval()
    joint.load_state_dict(tensors)
    x_t, x_prev, _ = random_input(False)
    for t in (2, 3, 4):
        alpha = float(case.diffusion.alpha[t])
        logits, _ = encoder_decoder(weights, t - 1, x_t, x_prev, None, K, alpha)
        torch.testing.assert_close(joint.at(t)(x_prev, x_t), logits, **CLOSE)
        noise = torch.zeros(2, N, K)
        with torch.inference_mode():
            drawn = decode_parallel(joint.at(t), x_t, noise, GREEDY)
            assert torch.equal(drawn, decode_sequential(joint.at(t), x_t, noise, GREEDY))


@torch.no_grad()
def test_vqgan_of_another_shape_on_a_wide_image_agrees_with_the_formulas(vqgan):
    reference = VQGANReference(fixture("vqgan_weights"), levels=5, blocks=1)
    torch.manual_seed(0)
    image = torch.rand(2, 3, 32, 80) * 2 - 1
    z = reference.prequant(image)
    torch.testing.assert_close(vqgan.latents(image), z, **CLOSE)
    torch.testing.assert_close(vqgan.generate(z), reference.image(z), **CLOSE)
    assert vqgan.encode(image).shape == (2, 2, 5)


# ── what does not fit is refused before it is read ────────────────────────────────────────────


NORM = "transformer.decoder.norm.bias"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: f.pop(NORM), "must be there"),
        (lambda f: f.update({"transformer.decoder.norm.more": torch.ones(1)}), "more"),
        (lambda f: f.update({NORM: torch.ones(41)}), r"of shape \(40,\)"),
        (lambda f: f.update({NORM: torch.ones(40).long()}), "floating"),
        (lambda f: f[NORM].fill_(torch.nan), "finite"),
        (lambda f: [f.pop(k) for k in list(f) if k[:12] == "transformer."], "no such tensors"),
        # only a scale's own gain is trained
        (
            lambda f: f["transformer.log_scalors"].copy_(torch.tensor([0.0, 0.0, 0.7])),
            r"must hold scale 2, got one .* scale 3",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(spoil, sentence, tmp_path):
    case = encoder_decoder_case("residual", conditional=False)
    spoil(case.file)
    with pytest.raises(ValueError, match=sentence):
        case.convert(tmp_path)


@pytest.mark.parametrize(
    ("alphacum", "sentence"),
    [
        (None, "must hold alphacum"),
        ([1.0, 0.5, 0.0], "4 entries"),
        ([0.3, 0.3, 0.3, 0.3], "alphacum must be"),
        ([1.0, 0.6667, 1 / 3, 0.0], "alphacum must be"),
        ([1.0, torch.nan, 1 / 3, 0.0], "alphacum must be"),
    ],
)
def test_schedules_of_another_chain_are_refused(alphacum, sentence, tmp_path):
    case = encoder_decoder_case("residual", conditional=False)
    require_schedule(stored(case.file, tmp_path), ALPHA_BAR["residual"])
    del case.file["alphacum"]
    if alphacum is not None:
        case.file["alphacum"] = torch.tensor(alphacum)
    with pytest.raises(ValueError, match=sentence):
        require_schedule(stored(case.file, tmp_path), ALPHA_BAR["residual"])


# ── presets: the released sizes, counted ──────────────────────────────────────────────────────

KEYS = json.loads(gzip.decompress((FIXTURES.parent / "official_keys.json.gz").read_bytes()))

# preset, t, released configuration, their parameters and buffers, ours
COUNTS = [
    ("ffhq-2", 2, "ffhq/2_scales/ffhq-custom-scale1", 614_638_024, 614_007_332),
    ("ffhq-2", 3, "ffhq/2_scales/ffhq-custom-scale2", 643_354_240, 640_996_160),
    ("ffhq-4", 2, "ffhq/4_scales/ffhq-geometric-scale1", 203_214_812, 202_802_917),
    ("ffhq-4", 5, "ffhq/4_scales/ffhq-geometric-scale4", 202_737_536, 201_034_400),
    ("ffhq-4-joint", 2, "ffhq/4_scales/ffhq-geometric-scale1", 203_214_812, 202_808_184),
    ("churches", 2, "lsun-churches/lsun-churches-scale1", 616_824_316, 615_645_950),
    ("churches", 4, "lsun-churches/lsun-churches-scale3", 644_507_008, 642_148_928),
    ("imagenet-4", 2, "imagenet/4_scales/imagenet_geometric_scale1", 616_660_665, 616_628_558),
    ("imagenet-4", 5, "imagenet/4_scales/imagenet_geometric_scale4", 644_460_112, 643_245_760),
    ("imagenet-5", 2, "imagenet/5_scales/imagenet-custom-scale1", 616_660_661, 616_628_557),
    ("imagenet-5", 6, "imagenet/4_scales/imagenet_geometric_scale4", 644_460_112, 643_245_760),
]


def parameters(preset: str, t: int) -> int:
    row = PRESETS[preset]
    diffusion = MultinomialDiffusion(row.alpha_bar, row.K)
    with torch.device("meta"):
        denoiser = Denoiser(row.denoiser(t), diffusion, t)
    return sum(p.numel() for p in denoiser.parameters())


@pytest.mark.parametrize(("preset", "t", "config", "theirs", "ours"), COUNTS)
def test_presets_have_the_released_parameters(preset, t, config, theirs, ours):
    """Ours are theirs less what is dropped plus what slicing a shared table duplicates."""
    row = PRESETS[preset]
    shapes = {
        name.removeprefix("transformer."): shape
        for name, shape, _ in KEYS[f"configs/{config}.yaml"]
        if name.startswith("transformer.")
    }
    assert sum(map(math.prod, shapes.values())) == theirs

    shape = row.denoiser(t)
    width, n = shape.width, 256
    classes = class_count(shape.conditions)
    dead = [name for name in shapes if "encoder.to_logits" in name or "attn.mask" in name]
    dropped = sum(math.prod(shapes[name]) for name in dead)
    if t == row.T:
        dropped += (shapes["pos_emb"][1] - n) * width
        dropped += (shapes["tok_emb.weight"][0] - row.K) * width  # rows of classes, now their own
        duplicated = width + classes * width  # the start vector; the class table
    else:
        dropped += (shapes["encoder.pos_emb.emb.weight"][0] - n) * width
        dropped += (shapes["encoder.token_emb.weight"][0] - row.K) * width
        scales = row.T - 1 if row.denoiser(t).joint else 1
        dropped += shapes.get("log_scalors", [scales])[0] - scales  # gains of other scales
        duplicated = scales * width + width + classes * width  # start vectors; the class table
        duplicated += scales * width if row.joint else 0  # ours tells the decoder too
    assert parameters(preset, t) == theirs - dropped + duplicated == ours


def test_presets_without_a_released_list_have_the_stated_sizes():
    for preset, millions in (("bedrooms", 615.6), ("cats", 615.6)):
        assert parameters(preset, 2) == pytest.approx(millions * 1e6, abs=0.05e6)
        assert parameters(preset, 4) == pytest.approx(642.1e6, abs=0.05e6)
    for t in (2, 5):  # text: 77 of 49408 tokens; maps: 256 of 182 kinds
        for preset, count, length in (("captions", 49_408, 77), ("semantic", 182, 256)):
            plain = "imagenet-4"
            width = PRESETS[preset].denoiser(t).width
            gains = 0 if preset == "semantic" or t == 5 else 1
            table = (count + length) * width
            assert parameters(preset, t) + gains == parameters(plain, t) - 1000 * width + table


class Zeros(StoredTensor):
    """A tensor of a file that need not be written."""

    dtype = torch.float32

    def __init__(self, *shape: int):
        object.__setattr__(self, "shape", shape)

    def read(self) -> torch.Tensor:
        return torch.zeros(self.shape)


@pytest.mark.parametrize(
    ("name", "preset"),
    [("taming_f16_1024_disc3", "ffhq-4"), ("taming_f16_16384_disc2", "imagenet-4")],
)
def test_vqgan_presets_have_the_released_tensors(name, preset):
    """A VQGAN is renamed, nothing else: every tensor of the list is taken, but for the losses."""
    file = {key: Zeros(*shape) for key, shape, _ in KEYS[name]}
    vqgan = convert_vqgan(file, PRESETS[preset].vqgan)
    theirs = sum(math.prod(x.shape) for key, x in file.items() if not key.startswith("loss."))
    assert sum(p.numel() for p in vqgan.parameters()) == theirs


def test_released_schedules_are_those_of_the_paper():
    """Table 5 prints the chance of redrawing, to three digits."""
    for preset, redraw in {
        "ffhq-2": [0.364, 1],
        "ffhq-4": [0.25, 0.333, 0.5, 1],
        "churches": [0.152, 0.231, 1],
        "imagenet-5": [0.09, 0.104, 0.139, 0.266, 1],
        "captions": [0.113, 0.141, 0.246, 1],
    }.items():
        row = PRESETS[preset]
        beta = MultinomialDiffusion(row.alpha_bar, row.K).beta[2:]
        assert beta.tolist() == pytest.approx(redraw, abs=6e-4)
    assert PRESETS["imagenet-4"].alpha_bar == tuple(geometric(5))


def test_averaged_names_without_dots_stay_distinct():
    for name, keys in KEYS.items():
        own = [key for key, *_ in keys if key.startswith("transformer.")]
        assert len({key.replace(".", "") for key in own}) == len(own), name


# ── conditions that nobody released ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("t", [2, 3])
@pytest.mark.parametrize(
    "shape",
    [
        dict(conditions={"text": text_shape(5)}),
        dict(conditions={"map": 7}),
        dict(conditions={"class": 3, "text": text_shape(5)}),
    ],
)
@torch.no_grad()
def test_text_and_maps_are_read_by_every_scale(make_denoiser, shape, t):
    denoiser = make_denoiser(t, T=3, K=12, **shape)
    parts = denoiser.config.conditions.values()
    torch.manual_seed(0)
    x_t, x_prev = torch.randint(12, (2, 2, 16))
    condition = torch.cat([torch.randint(one.vocabulary, (2, one.length)) for one in parts], 1)
    logits = denoiser(x_prev, x_t, condition)
    for i in range(condition.shape[1]):
        other = condition.clone()
        other[:, i] = (other[:, i] + 1) % 3
        assert not torch.allclose(denoiser(x_prev, x_t, other), logits)
    decoding, at = denoiser.start(x_t, condition), torch.arange(16).expand(2, 16)
    torch.testing.assert_close(denoiser.step(x_prev, at, decoding), logits, **CLOSE)
    with pytest.raises(ValueError, match="this denoiser takes"):
        denoiser(x_prev, x_t, condition[:, 1:])
    with pytest.raises(ValueError, match="must lie in"):
        denoiser(x_prev, x_t, condition - condition.max() - 1)


# ── the released way to edit ──────────────────────────────────────────────────────────────────


@pytest.fixture
def edit(make_model):
    """A function that edits a wide random image in the released way, and what it did on the way:
    one record a pass, (t, x_t, filter, x_{t-1})."""
    model, records = make_model(T=4, grid=(4, 4)), []

    def spy(denoiser, x_t, noise, choose, *rest, **options):
        x_prev = decode_parallel(denoiser, x_t, noise, choose, *rest, **options)
        of_predictions = getattr(denoiser, "choose", choose)  # at t > 2 it filters them itself
        records.append((denoiser.t, x_t, of_predictions, x_prev))
        return x_prev

    torch.manual_seed(0)
    x_1, masked = torch.randint(12, (1, 4, 4)), torch.rand(1, 4, 4) < 0.5

    def run(num_images: int = 2, process=process.annealed_steps, **options):
        records.clear()
        return list(process(model, x_1, masked, num_images, method=spy, **options)), list(records)

    return model, x_1, masked, run


def test_known_tokens_survive_the_annealed_process(edit):
    _, x_1, masked, run = edit
    steps, records = run()
    for step in steps:
        assert torch.equal(step.tokens[:, ~masked[0]], x_1[:, ~masked[0]].expand(2, -1))
    assert any((x_t[:, ~masked.flatten()] != x_1[~masked]).any() for _, x_t, *_ in records)


def test_annealed_passes_are_as_many_as_released(edit):
    model, _, _, run = edit
    _, records = run()
    assert [t for t, *_ in records] == [4, 3, 3, 3, 2, 2, 2]  # geometric: three, once at T
    model.diffusion.__init__([1.0, 0.9, 0.4, 0.0], model.K)
    _, records = run()
    assert [t for t, *_ in records] == [4] + 5 * [3] + 5 * [2]
    _, records = run(chains=[1, 4, 2])
    assert [t for t, *_ in records] == [4, 4, 3, 3, 3, 3, 2]
    for wrong in (0, [1, 2], [1, 2, 0], 1.5):
        with pytest.raises(ValueError, match="chains must be"):
            run(chains=wrong)


def test_one_pass_a_scale_is_the_single_process(edit):
    _, _, _, run = edit
    annealed, _ = run(chains=1, seed=3)
    single, _ = run(process=process.edit_steps, resampling_passes=0, seed=3)
    for a, b in zip(annealed, single, strict=True):
        assert torch.equal(a.tokens, b.tokens)


def test_a_scale_is_noised_less_at_every_pass(edit):
    """Of 200 images of 16 tokens, the share that changed is (1 - i/n)·β_t·(1 - 1/K) within 0.05:
    more than five standard deviations."""
    model, _, _, run = edit
    _, records = run(num_images=200, chains=4)
    for t in (3, 2):
        passes = [record for record in records if record[0] == t]
        for i in range(1, 4):
            changed = (passes[i][1] != passes[i - 1][3]).float().mean()
            expected = (1 - i / 4) * float(model.diffusion.beta[t]) * (1 - 1 / model.K)
            assert abs(changed - expected) < 0.05
        before = [record for record in records if record[0] == t + 1][-1]
        assert torch.equal(passes[0][1], before[3])  # the first pass takes it as it comes


def test_temperature_and_top_k_hold_at_every_scale_of_the_annealed_process(edit):
    _, _, _, run = edit
    _, records = run(temperature=[0.5, 0.7, 0.9], top_k=[2, 3, 4])
    for t, _, choose, _ in records:
        assert (choose.temperature, choose.top_k) == {2: (0.5, 2), 3: (0.7, 3), 4: (0.9, 4)}[t]


def test_annealed_edits_do_not_depend_on_their_neighbours(edit):
    _, _, _, run = edit
    both, _ = run(num_images=2, seed=[5, 6])
    alone, _ = run(num_images=1, seed=6)
    assert torch.equal(both[-1].tokens[1:], alone[-1].tokens)


def test_inpaint_offers_both_ways(make_model):
    model = make_model(T=4)
    torch.manual_seed(0)
    image = to_pil(torch.rand(1, 3, 32, 32) * 2 - 1)[0]
    mask = np.zeros((32, 32), bool)
    mask[:16] = True
    known = inpainting.inpaint(model, image, mask, seed=1, process="annealed", chains=2)
    single = inpainting.inpaint(model, image, mask, seed=1)
    assert torch.equal(known[..., 16:, :], single[..., 16:, :]) and not torch.equal(known, single)
    with pytest.raises(ValueError, match="process must be one of"):
        inpainting.inpaint(model, image, mask, process="other")
