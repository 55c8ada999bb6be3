"""Guidance: logits are extrapolated from the negative condition's to the condition's."""

import warnings

import numpy as np
import pytest
import torch
from conftest import TEXT, tokens_of

from imagebart import ImageBART
from imagebart.editing.process import edit_steps
from imagebart.guidance import encode_condition, per_scale
from imagebart.sampling import (
    Filter,
    decode_parallel,
    decode_sequential,
    gumbel,
    sample_steps,
    uniform_tokens,
)
from imagebart.streaming import sample_stream

# ── guidance ──────────────────────────────────────────────────────────────────────────────────


def test_guidance_1_is_conditional_sampling_and_0_is_unconditional(conditional):
    lake, nothing = tokens_of(conditional, classes="lake", guidance=1.0), tokens_of(conditional)
    assert not torch.equal(lake, nothing)
    assert torch.equal(tokens_of(conditional, classes="lake", guidance=0.0), nothing)
    assert torch.equal(tokens_of(conditional, guidance=3.0), nothing)  # nothing to guide to
    assert torch.equal(tokens_of(conditional, classes=[2, 2, 2]), lake)


@pytest.fixture
def drawing(conditional):
    """`conditional`, which draws the class of a sample of which nothing is said."""
    parts = conditional.vqgan, conditional.diffusion, conditional.denoisers
    return ImageBART(*parts, names=conditional.names, guidance=2.0, draws_class=True)


def test_a_sample_of_which_nothing_is_said_shows_the_class_of_its_seed(drawing, conditional):
    count = conditional.conditions["class"].vocabulary
    seeds = [5, count + 1, 2**62]
    classes = [seed % count for seed in seeds]
    said = tokens_of(conditional, classes=classes, seed=seeds, guidance=2.0)
    assert torch.equal(tokens_of(drawing, seed=seeds), said)
    assert torch.equal(tokens_of(drawing, seed=seeds, prompt=""), said)
    assert torch.equal(torch.cat([*sample_stream(drawing, 3, seed=seeds, batch=1)]), said)
    assert not torch.equal(tokens_of(conditional, seed=seeds, guidance=2.0), said)


def test_a_class_is_drawn_for_those_images_alone_of_which_nothing_is_said(drawing, conditional):
    words = {"prompt": [TEXT, None, None], "classes": [None, "lake", None], "seed": 4}
    some = tokens_of(drawing, **words)
    words["classes"][2] = 6 % conditional.conditions["class"].vocabulary
    assert torch.equal(some, tokens_of(conditional, **words, guidance=2.0))


def test_a_panorama_of_which_nothing_is_said_shows_one_class(drawing, conditional):
    wide = drawing.panorama(48, seed=7, output_type="pt")
    classes = 7 % conditional.conditions["class"].vocabulary
    said = conditional.panorama(48, seed=7, classes=classes, guidance=2.0, output_type="pt")
    assert torch.equal(wide, said)


def test_an_edit_of_which_nothing_is_said_has_no_class(drawing, conditional):
    x_1 = tokens_of(conditional)[:1]
    masked = torch.zeros(1, 4, 4, dtype=torch.bool)
    masked[:, :2] = True
    ours, theirs = ([*edit_steps(one, x_1, masked)][-1] for one in (drawing, conditional))
    assert torch.equal(ours.tokens, theirs.tokens)


def test_drawing_classes_is_kept_in_the_folder(drawing, tmp_path):
    drawing.save_pretrained(tmp_path)
    assert ImageBART.from_pretrained(tmp_path).draws_class


def predicted(denoiser, x_prev, x_t, condition) -> torch.Tensor:
    """The network's output f at all positions, in one pass."""
    return denoiser.head(denoiser.features(x_prev, x_t, condition))


def test_guidance_extrapolates_the_predictions(conditional):
    """f_negative + s·(f - f_negative), by hand, at every scale its own s; then noise is added."""
    encoded = encode_condition(
        conditional, 1, prompt=TEXT, negative_prompt="a", classes="lake", guidance=[2, 3, 1]
    )
    for t, s in ((2, 2), (3, 3)):
        denoiser = conditional.denoisers[t]
        x_prev, x_t = torch.randint(12, (2, 1, 16), generator=torch.Generator().manual_seed(t))
        at = torch.arange(16)[None]
        f = predicted(denoiser, x_prev, x_t, encoded.condition)
        f_negative = predicted(denoiser, x_prev, x_t, encoded.negative)
        guided, choose = encoded.steered(denoiser)
        got = guided.step(x_prev, at, guided.start(x_t, encoded.condition))
        expected = denoiser.logits(f_negative + s * (f - f_negative), x_t)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
        assert choose == Filter()
    assert encoded.steered(conditional.denoisers[4])[0] is conditional.denoisers[4]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_what_the_process_leaves_open_stays_open(conditional, guidance):
    """However strong guidance and filter are, x_{t-1} has the noise that q(x_{t-1} | x_1) gives it:
    at t = T, where x_t says nothing, a share ᾱ_{T-1} of predictions and the rest anything."""
    denoiser, alpha_bar = conditional.denoisers[4], float(conditional.diffusion.alpha_bar[3])
    encoded = encode_condition(conditional, 1, prompt=TEXT, guidance=guidance)
    scale, choose = encoded.steered(denoiser, Filter(temperature=0))
    x = torch.zeros(1, 16, dtype=torch.int64)
    at, state = torch.arange(16)[None], scale.start(x, encoded.condition)
    p = scale.step(x, at, state).softmax(-1)
    assert choose == Filter()
    noise = torch.full_like(p[..., 0], (1 - alpha_bar) / 12)
    torch.testing.assert_close(p.amin(-1), noise)
    torch.testing.assert_close(p.amax(-1), noise + alpha_bar)


@pytest.mark.parametrize("t", [2, 4])
def test_guided_decoding_is_the_fixed_point_of_the_guided_predictions(conditional, t):
    """With a known start, and rows that are done early: x = draw(logits of the guided f)."""
    x_t, x_known = uniform_tokens(range(3), t, 16, 12), uniform_tokens(range(3), 1, 16, 12)
    known = torch.arange(16).expand(3, 16) < 4
    known = known | (torch.arange(3)[:, None] == 1) & (torch.arange(16) > 5)
    encoded = encode_condition(
        conditional, 3, prompt=[TEXT, None, "a"], classes="lake", negative_prompt="a", guidance=2
    )
    denoiser, noise = conditional.denoisers[t], gumbel(range(3), t, 16, 12)
    guided, condition = encoded.steered(denoiser)[0], encoded.condition
    assert (guided.n, guided.K, guided.t) == (16, 12, t)
    for decode in (decode_sequential, decode_parallel):
        x = decode(guided, x_t, noise, Filter(), condition, known, x_known)
        f, f_negative = (predicted(denoiser, x, x_t, one) for one in (condition, encoded.negative))
        drawn = (denoiser.logits(2 * f - f_negative, x_t) + noise).argmax(-1)
        assert torch.equal(x, torch.where(known, x_known, drawn))


def test_scales_are_guided_as_the_caller_says_or_as_the_model_does(conditional, tiny, monkeypatch):
    monkeypatch.setattr(conditional, "guidance", [1.0, 2.0, 3.0])
    assert encode_condition(conditional, 1, classes=0).guidance == {2: 1, 3: 2, 4: 3}
    assert encode_condition(conditional, 1, classes=0, guidance=4).guidance == {2: 4, 3: 4, 4: 4}
    nothing = encode_condition(conditional, 1, guidance=4)  # to guide to
    assert nothing.guidance == {2: 1, 3: 1, 4: 1} and nothing.given(1) == [False]
    assert encode_condition(conditional, 2, classes=[None, 1]).given(2) == [False, True]
    assert encode_condition(tiny, 2).given(2) == [False, False]


def test_one_value_is_for_every_scale():
    assert per_scale(0.5, 4, "guidance") == [0.5, 0.5, 0.5]
    assert per_scale(np.array([1, 2]), 3, "guidance") == [1, 2] == per_scale((1, 2), 3, "guidance")
    assert per_scale("12", 3, "guidance") == ["12", "12"]  # refused as no number, later
    with pytest.raises(ValueError, match=r"^top_k must be one number, or 2 for t = 2 to 3, got \["):
        per_scale([1], 3, "top_k")


def test_guided_decoding_is_exact_and_an_image_alone_is_as_in_company(conditional):
    how = dict(prompt=TEXT, guidance=2.5, negative_prompt="a")
    together = tokens_of(conditional, seed=5, **how)
    assert torch.equal(tokens_of(conditional, seed=5, method="sequential", **how), together)
    *_, alone = sample_steps(conditional, 1, seed=6, **how)
    assert torch.equal(alone.tokens[0], together[1])


def test_a_guided_edit_with_a_full_mask_is_a_guided_sample(conditional):
    from PIL import Image

    image = Image.new("RGB", (32, 32), "teal")
    how = dict(prompt=TEXT, classes="forest", guidance=2.0, seed=3, output_type="pt")
    assert torch.equal(
        conditional.inpaint(image, np.ones((32, 32), bool), **how), conditional.sample(**how)
    )


def test_a_negative_prompt_that_is_not_read_is_told(conditional):
    with pytest.warns(UserWarning, match=r"^negative_prompt: not read at guidance 1$"):
        encode_condition(conditional, 1, prompt=TEXT, negative_prompt=TEXT, guidance=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_condition(conditional, 1, prompt=TEXT, negative_prompt=TEXT, guidance=[1, 2, 1])
        encode_condition(conditional, 1, prompt=TEXT, negative_prompt="", guidance=1)


def test_a_model_without_condition_dropout_asks_for_the_condition_of_every_image(make_model):
    model = make_model(T=3, conditions={"class": 2})
    model.names["class"] = ["lake", "desert"]
    encode_condition(model, 2, classes=["lake", "desert"])
    for classes in (None, ["lake", None]):
        with pytest.raises(ValueError, match="to be given class always, got no classes"):
            encode_condition(model, 2, classes=classes)


def test_a_model_without_condition_dropout_may_draw_the_class_of_every_image(make_model):
    model = make_model(T=3, conditions={"class": 2})
    parts = model.vqgan, model.diffusion, model.denoisers
    drawing, how = ImageBART(*parts, draws_class=True), {"seed": 3, "output_type": "pt"}
    said = model.sample(3, classes=[1, 0, 1], **how)
    assert torch.equal(drawing.sample(3, **how), said)
    assert torch.equal(drawing.sample(3, classes=[None, 0, None], **how), said)
    wide = model.panorama(48, classes=1, **how)
    assert torch.equal(drawing.panorama(48, **how), wide)
    with pytest.raises(ValueError, match="to be given class always, got no classes"):
        drawing.bits_per_token(said)


def test_a_class_that_is_drawn_is_not_all_that_a_model_must_be_given(make_model):
    model = make_model(T=3, conditions={"class": 2, "text": 6})
    parts = model.vqgan, model.diffusion, model.denoisers
    with pytest.raises(ValueError, match="to be given text always, got no prompt"):
        ImageBART(*parts, draws_class=True).sample()
