"""On a GPU as on a CPU: what is computed together lies together. No GPU is needed to see it.

Fake tensors have a shape, a type and a device, and no values: one of "cuda" that meets one of the
CPU is an error, as it would be there.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from imagebart import model, probe, streaming
from imagebart.conditions import ConditionShape, text_shape
from imagebart.denoiser import OUTPUTS, Denoiser, DenoiserConfig
from imagebart.diffusion import MultinomialDiffusion, geometric
from imagebart.editing.panorama import Blended
from imagebart.guidance import Guided
from imagebart.probe import Probe, ProbeHeads
from imagebart.sampling import Draft, Filter, draw, span
from imagebart.vqgan import VQGAN

B, N, K, T = 3, 16, 12, 4
CONDITIONS = {"class": ConditionShape(3, 1), "text": text_shape(6, 8), "map": ConditionShape(5, N)}
SAID = dict(conditions=CONDITIONS, condition_dropout=True)
CHOOSE = Filter(temperature=0.9, top_k=5, top_p=0.8)


@pytest.fixture
def gpu(monkeypatch):
    """Tensors are fake; what looks at their values is told something, or does not look."""
    monkeypatch.setattr(Denoiser, "_checked", lambda self, condition: condition)
    monkeypatch.setattr(model, "require_fit", lambda *parts: None)
    monkeypatch.setattr(streaming, "bytes_of_memory", lambda device: 2**33)
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: 0.5)  # of ᾱ_t
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def tokens(*shape: int) -> torch.Tensor:
    return torch.zeros(shape or (B, N), dtype=torch.int64, device="cuda")


def noise(*shape: int) -> torch.Tensor:
    return torch.zeros(shape or (B, N, K), device="cuda")


def scale(t: int, diffusion: MultinomialDiffusion, **shape) -> Denoiser:
    """A denoiser on the GPU; what a diffusion holds stays on the CPU, as it does there."""
    small = dict(grid=(4, 4), width=16, heads=2, head_width=8, encoder_depth=1, decoder_depth=2)
    with torch.device("cuda"):
        return Denoiser(DenoiserConfig(**small, **shape), diffusion, t).requires_grad_(False)


@pytest.fixture
def diffusion():
    return MultinomialDiffusion(geometric(T), K)


def condition_of(denoiser: Denoiser) -> torch.Tensor | None:
    length = sum(shape.length for shape in denoiser.config.conditions.values())
    return tokens(B, length) if length else None


each_output = pytest.mark.parametrize("output", OUTPUTS)
each_scale = pytest.mark.parametrize("t", [2, 3, T])
each_condition = pytest.mark.parametrize("said", [{}, SAID], ids=["nothing", "all"])


@each_output
@each_scale
@each_condition
def test_a_sequence_is_read_where_its_tokens_are(diffusion, gpu, output, t, said):
    denoiser = scale(t, diffusion, output=output, **said)
    logits = denoiser(tokens(), tokens(), condition_of(denoiser))
    assert logits.shape == (B, N, K) and logits.device.type == "cuda"
    assert diffusion.loss_t(logits, tokens(), tokens(), t).device.type == "cuda"


@each_output
@each_scale
@each_condition
def test_tokens_are_drawn_where_the_noise_is(diffusion, gpu, output, t, said):
    """As `decode_parallel` goes: a draft, a start, a read, steps, and an update of the draft."""
    denoiser, draft = scale(t, diffusion, output=output, **said), Draft(diffusion)
    encoded = condition_of(denoiser)
    ways = [denoiser] if encoded is None else [denoiser, Guided(denoiser, CHOOSE, encoded, 2.0)]
    with torch.inference_mode():
        for way in ways:
            x_prev = draft.propose(tokens(), t, noise(), CHOOSE)
            decoding = way.start(tokens(), encoded)
            way.read(x_prev, 3, decoding)
            at = torch.arange(3, 7, device="cuda").expand(B, 4)
            z = way.step(x_prev, at, decoding)
            x_prev[:, 3:7] = draw(z, noise()[:, 3:7], CHOOSE)
            draft.update(noise(), tokens(), t)
            assert draft.propose(tokens(), t, noise(), CHOOSE).device.type == "cuda"
        first, end = span(tokens(), tokens() == 0)
        assert first.device.type == end.device.type == x_prev.device.type == "cuda"


def test_conditions_are_blended_where_the_tokens_are(diffusion, gpu):
    denoiser = scale(2, diffusion, **SAID)
    own = condition_of(denoiser)[:1]
    encoded = SimpleNamespace(steered=lambda scale, choose: (scale, choose), condition=own)
    blended = Blended([encoded, encoded], denoiser, Filter(), noise(2, N))
    decoding = blended.start(tokens(1, N))
    at = torch.arange(4, device="cuda")[None]
    assert blended.step(tokens(1, N), at, decoding).device.type == "cuda"


def test_forgetting_happens_where_the_tokens_are(diffusion, gpu):
    frequency = torch.ones(K)  # counted on the CPU
    for q in (
        diffusion.q_posterior(tokens(), tokens(), 3),
        diffusion.log_likelihood(tokens(), 3),
        diffusion.closed_form_predictor(tokens(), 3, frequency),
    ):
        assert q.device.type == "cuda"


@pytest.fixture
def chain(diffusion, make_vqgan, gpu):
    """A whole model on the GPU."""
    with torch.device("cuda"):
        vqgan = VQGAN(make_vqgan().config)
    return model.ImageBART(vqgan, diffusion, {t: scale(t, diffusion) for t in range(2, T + 1)})


def test_bits_are_counted_where_the_model_is(chain, monkeypatch):
    monkeypatch.setattr(model, "require_tokens", lambda tokens, K: tokens)  # it looks at them
    grid = torch.zeros(B, 4, 4, dtype=torch.int64)
    for x_1 in (grid, grid.to("cuda")):
        bits = chain.bits_per_token_of(x_1)
        assert {value.device.type for value in bits.values()} == {"cuda"}


def test_images_go_through_the_vqgan_together(chain, monkeypatch):
    """32 at a time, where a CPU takes one."""
    encode, counts = chain.vqgan.encode, []
    monkeypatch.setattr(
        VQGAN, "encode", lambda _, image: counts.append(len(image)) or encode(image)
    )
    monkeypatch.setattr(model, "require_pixels", lambda images: None)
    assert chain.encode(torch.zeros(40, 3, 32, 32)).shape == (40, 4, 4)
    assert counts == [32, 8]


def test_what_the_probe_sees_comes_to_the_cpu(gpu, monkeypatch):
    eyes = Probe.__new__(Probe)
    nn.Module.__init__(eyes)
    with torch.device("cuda"):
        eyes.heads = ProbeHeads(8)
    eyes.model = SimpleNamespace(device=torch.device("cuda"))
    pixels = {"pixel_values": noise(2, 3, 32, 32)}
    eyes.processor = lambda **_: SimpleNamespace(to=lambda device: pixels)
    monkeypatch.setattr(probe, "read", lambda *_: (noise(2, 8), noise(2, 64, 8)))
    seen = eyes.predict(torch.zeros(2, 3, 32, 32))
    parts = [seen.features, seen.kinds, *seen.attributes.values()]
    assert {part.device.type for part in parts} == {"cpu"}
