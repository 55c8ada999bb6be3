"""Guidance: logits are extrapolated from the negative condition's to the condition's."""

import warnings

import numpy as np
import pytest
import torch

from imagebart import ImageBART
from imagebart.conditions import text_tokens
from imagebart.guidance import encode_condition
from imagebart.sampling import sample_steps

NAMES = ("desert", "forest", "lake")
SAID = dict(conditions={"class": 3, "text": 6, "map": 4}, condition_dropout=True)
TEXT = "a lake at night"


@pytest.fixture(scope="module")
def model(make_model) -> ImageBART:
    """T = 4, by class, text and map; knows the pieces of TEXT."""
    model = make_model(**SAID)
    model.names["class"] = NAMES
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens([TEXT], 6)[0])
    return model


def tokens_of(model, **options) -> torch.Tensor:
    *_, last = sample_steps(model, 3, **options)
    return last.tokens


# ── guidance ──────────────────────────────────────────────────────────────────────────────────


def test_guidance_1_is_conditional_sampling_and_0_is_unconditional(model):
    conditional = tokens_of(model, classes="lake", guidance=1.0)
    assert not torch.equal(conditional, tokens_of(model))
    assert torch.equal(tokens_of(model, classes="lake", guidance=0.0), tokens_of(model))
    assert torch.equal(tokens_of(model, guidance=3.0), tokens_of(model))  # nothing to guide to
    assert torch.equal(conditional, tokens_of(model, classes=[2, 2, 2]))


def test_guidance_extrapolates_the_logits(model):
    """z_negative + s·(z - z_negative), by hand, at every scale its own s."""
    encoded = encode_condition(
        model, 1, prompt=TEXT, negative_prompt="a", classes="lake", guidance=[2, 3, 1]
    )
    for t, scale in ((2, 2), (3, 3)):
        denoiser = model.denoisers[t]
        x_prev, x_t = torch.randint(12, (2, 1, 16), generator=torch.Generator().manual_seed(t))
        at = torch.arange(16)[None]
        z = denoiser(x_prev, x_t, encoded.condition)
        z_negative = denoiser(x_prev, x_t, encoded.negative)
        guided = encoded.guided(denoiser)
        got = guided.step(x_prev, at, guided.start(x_t, encoded.condition))
        torch.testing.assert_close(got, z_negative + scale * (z - z_negative), rtol=0, atol=1e-3)
    assert encoded.guided(model.denoisers[4]) is model.denoisers[4]


def test_guided_decoding_is_exact_and_an_image_alone_is_as_in_company(model):
    how = dict(prompt=TEXT, guidance=2.5, negative_prompt="a")
    together = tokens_of(model, seed=5, **how)
    assert torch.equal(tokens_of(model, seed=5, method="sequential", **how), together)
    *_, alone = sample_steps(model, 1, seed=6, **how)
    assert torch.equal(alone.tokens[0], together[1])


def test_a_guided_edit_with_a_full_mask_is_a_guided_sample(model):
    from PIL import Image

    image = Image.new("RGB", (32, 32), "teal")
    how = dict(prompt=TEXT, classes="forest", guidance=2.0, seed=3, output_type="pt")
    assert torch.equal(model.inpaint(image, np.ones((32, 32), bool), **how), model.sample(**how))


def test_a_negative_prompt_that_is_not_read_is_told(model):
    with pytest.warns(UserWarning, match="negative_prompt: not read at guidance 1"):
        encode_condition(model, 1, prompt=TEXT, negative_prompt=TEXT, guidance=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_condition(model, 1, prompt=TEXT, negative_prompt=TEXT, guidance=[1, 2, 1])
        encode_condition(model, 1, prompt=TEXT, negative_prompt="", guidance=1)
