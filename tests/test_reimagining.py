"""Counterfactual edits: the picture's own words give its tokens back, by noise that chose them."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import TEXT, new_model
from test_inpainting import picture, same
from test_process import tokens

from imagebart.editing.reimagining import (
    logits_of,
    noised,
    posterior_gumbel,
    reimagine_steps,
)
from imagebart.sampling import Filter, decode_parallel, draw, gumbel

WORDS = {"prompt": TEXT, "classes": "lake"}
MAP = np.zeros((4, 4, 3), int)


def of_the_picture(words: dict) -> dict:
    return {f"source_{name}": value for name, value in words.items()}


def last(model, x_1, num_images=1, **options) -> torch.Tensor:
    *_, step = reimagine_steps(model, x_1, num_images, **options)
    return step.tokens


# ── the picture's own words ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.5},
        {"temperature": [2.0, 0.3, 1.0]},
        {"method": "sequential"},
        {**WORDS, **of_the_picture(WORDS), "guidance": 3.0},
        {"prompt": TEXT, "source_prompt": TEXT, "guidance": [2.0, 4.0, 1.5], "temperature": 0.7},
    ],
    ids=str,
)
def test_the_same_words_give_the_tokens_back(conditional, how):
    """Of every picture, at every scale, for every seed."""
    for number in range(4):
        x_1 = tokens(number)
        steps = list(reimagine_steps(conditional, x_1, 5, seed=7 * number, **how))
        assert [step.t for step in steps] == [4, 3, 2, 1]
        levels = noised(conditional, x_1, 4, range(7 * number, 7 * number + 5))
        for step in steps:
            assert torch.equal(step.tokens.flatten(1), levels[step.t])
        assert torch.equal(steps[-1].tokens, x_1.expand(5, -1, -1))


def test_a_joint_network_gives_the_tokens_back():
    model = new_model(T=3, joint=True)
    assert torch.equal(last(model, tokens(), 3, seed=1), tokens().expand(3, -1, -1))


def test_other_words_change_it_and_the_seed_decides(conditional):
    x_1, how = tokens(), {"prompt": TEXT, "guidance": 2.0}
    several = last(conditional, x_1, 3, seed=5, **how)
    assert not torch.equal(several[0], several[1])
    assert not any(torch.equal(one, x_1[0]) for one in several)
    for i in range(3):
        assert torch.equal(last(conditional, x_1, seed=5 + i, **how)[0], several[i])


def test_guidance_between_two_classes_needs_no_condition_dropout():
    model, x_1 = new_model(conditions={"class": 3}), tokens()
    one = last(model, x_1, classes=1, source_classes=2, guidance=1.0, seed=3)
    more = last(model, x_1, classes=1, source_classes=2, guidance=8.0, seed=3)
    assert not torch.equal(one, more)
    assert torch.equal(last(model, x_1, classes=2, source_classes=2, guidance=8.0), x_1)


def test_a_picture_between_two_classes_needs_no_condition_dropout():
    model, image = new_model(conditions={"class": 3}), picture()
    how = dict(classes=1, source_classes=2, seed=3, guidance=8.0)
    expected = model.decode(last(model, model.encode(image), **how), "pt")
    assert torch.equal(model.reimagine(image, output_type="pt", **how), expected)


def test_each_image_has_its_own_words(conditional):
    x_1, prompts, seeds = tokens(), [TEXT, None, TEXT], [3, 3, 3]
    got = last(conditional, x_1, 3, seed=seeds, prompt=prompts, source_prompt=[None, None, TEXT])
    assert not torch.equal(got[0], x_1[0])
    assert torch.equal(got[1], x_1[0]) and torch.equal(got[2], x_1[0])


def test_strength_is_the_part_of_the_scales_that_run_again(conditional):
    x_1 = tokens()
    for strength, start in ((0, 1), (0.1, 1), (1 / 3, 2), (0.6, 3), (1, 4)):
        steps = list(reimagine_steps(conditional, x_1, prompt=TEXT, strength=strength))
        assert [step.t for step in steps] == [*range(start, 0, -1)]
        assert torch.equal(steps[0].tokens.flatten(1), noised(conditional, x_1, start, [0])[start])
        assert [step.done for step in steps][-1] == 1 and steps[0].done == float(start == 1)


def test_fewer_passes_than_a_sample_if_nothing_changes(tiny):
    """The picture's tokens are the first guess, so every window agrees at once."""
    passes = []
    decode = partial(decode_parallel, on_pass=lambda t, _: passes.append(t))
    last(tiny, tokens(), method=decode)
    assert passes == [4, 3, 2]


# ── the noise ─────────────────────────────────────────────────────────────────────────────────


def test_the_noise_chooses_the_picture():
    """For logits of every size, also where the token is all but impossible."""
    generator = torch.Generator().manual_seed(0)
    for size in (0.1, 1.0, 10.0, 300.0):
        logits = size * torch.randn(40, 16, 12, generator=generator)
        x = torch.randint(12, (40, 16), generator=generator)
        noise = posterior_gumbel(logits, x, gumbel(range(40), 2, 16, 12))
        assert noise.isfinite().all()
        assert torch.equal(draw(logits, noise, Filter()), x)


def test_the_noise_chooses_the_picture_where_another_code_comes_as_near_as_it_can():
    """The prior of another code is so large that, truncated, it rounds to the maximum."""
    logits, x, prior = torch.zeros(1, 2, 3), torch.tensor([[1, 2]]), torch.zeros(1, 2, 3)
    prior[..., 0] = 50
    assert torch.equal(draw(logits, posterior_gumbel(logits, x, prior), Filter()), x)


def test_posterior_noise_of_drawn_tokens_is_gumbel_noise():
    """If the token is a draw of these logits, its noise is Gumbel: mean γ, variance π²/6, codes
    uncorrelated. 40000 draws, within 5 standard deviations."""
    n, logits = 40_000, torch.tensor([1.0, -0.5, 0.2])
    prior = gumbel([3], 2, n, 3)
    x = draw(logits.expand(1, n, 3), gumbel([4], 2, n, 3), Filter())
    noise = posterior_gumbel(logits.expand(1, n, 3), x, prior)[0]
    mean, variance = torch.tensor(0.57722), torch.pi**2 / 6
    assert (noise.mean(0) - mean).abs().max() < 5 * (variance / n) ** 0.5
    assert (noise.var(0) - variance).abs().max() < 5 * (4.4 * variance**2 / n) ** 0.5
    together = noise.T.corrcoef() - torch.eye(3)
    assert together.abs().max() < 5 / n**0.5


def test_logits_are_those_that_decoding_sees(tiny):
    denoiser, x_prev, x_t = tiny.denoisers[3], tokens(1).flatten(1), tokens(2).flatten(1)
    got = logits_of(denoiser, x_t, x_prev, None)
    torch.testing.assert_close(got, denoiser(x_prev, x_t), atol=1e-3, rtol=1e-3)


# ── images ────────────────────────────────────────────────────────────────────────────────────


def test_a_picture_under_its_own_words_is_its_reconstruction(conditional):
    image = picture(48, 40)
    whole = conditional.decode(conditional.encode(image))[0]
    for one in conditional.reimagine(image, 2, seed=3):
        assert same(one, whole)


def test_images_are_the_same_in_any_batch(conditional, monkeypatch):
    how = {"prompt": [TEXT, "night", ""], "source_prompt": ["a lake", "", TEXT], "seed": 2}
    together = conditional.reimagine(picture(), 3, output_type="pt", **how)
    monkeypatch.setattr("imagebart.streaming.batch_that_fits", lambda _: 1)
    assert torch.equal(conditional.reimagine(picture(), 3, output_type="pt", **how), together)


@pytest.mark.parametrize("option", ["prompt", "source_prompt"])
def test_a_word_that_is_not_known_is_told_of_by_the_name_of_the_option(conditional, option):
    with pytest.warns(UserWarning, match="never seen") as told:
        conditional.reimagine(picture(), **{option: "zebra"})
    assert {str(one.message) for one in told} == {f"{option}: this model has never seen zebra"}
    assert {one.filename for one in told} == {__file__}  # the caller's line


def test_what_cannot_be_is_refused(conditional, tiny):
    for model, how, sentence in (
        (tiny, {"strength": 1.5}, r"strength must lie in \[0, 1\], got 1.5"),
        (tiny, {"temperature": 0.0}, "temperature must be more than 0"),
        (tiny, {"source_prompt": "a lake"}, "this model takes no text"),
        (tiny, {"source_prompt": "a lake"}, "got source_prompt 'a lake'"),
        (conditional, {"classes": 7}, "^classes must be ids"),
        (conditional, {"source_classes": 7}, "^source_classes must be ids"),
        (conditional, {"source_prompt": 7}, "^source_prompt must be text"),
        (conditional, {"source_semantic_map": MAP}, "^source_semantic_map must be H×W"),
        (conditional, {"source_semantic_map": MAP[0] + 9}, "^kinds of source_semantic_map must"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.reimagine(picture(), **how)
    with pytest.raises(ValueError, match=r"x_1 must be \(1, 4, 4\) tokens, got shape"):
        last(tiny, tokens().expand(2, -1, -1))
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 12\), got 12 to 12"):
        last(tiny, torch.full((1, 4, 4), 12))
