"""The masked process: known tokens are held at every scale, and every pass is what it says."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_inpainting import corner, picture, same

from imagebart import ImageBART
from imagebart.diffusion import MultinomialDiffusion
from imagebart.editing import process
from imagebart.editing.process import (
    annealed_steps,
    edit_steps,
    redraw,
    refined_steps,
    released_chains,
    require_masked,
)
from imagebart.sampling import Filter, decode_parallel, decode_sequential, gumbel, uniform_tokens


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(12, (1, 4, 4), generator=torch.Generator().manual_seed(seed))


def masks(count: int) -> list[torch.Tensor]:
    """Masks of every size, as (1, 4, 4) booleans."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.linspace(0.05, 0.95, count)
    return [torch.rand(1, 4, 4, generator=generator) < part for part in parts]


@pytest.mark.parametrize("method", ["parallel", "sequential"])
def test_known_tokens_survive(tiny, method):
    """At every scale they are the image's own, clean; masked tokens start as noise."""
    x_1 = tokens()
    for masked in masks(3):
        here = masked.expand(3, -1, -1)
        steps = list(edit_steps(tiny, x_1, masked, 3, seed=5, method=method))
        assert [step.t for step in steps] == [4, 3, 2, 1]
        for step in steps:
            assert torch.equal(step.tokens[~here], x_1.expand(3, -1, -1)[~here])
        noise = uniform_tokens([5, 6, 7], 4, 16, 12).view(3, 4, 4)
        assert torch.equal(steps[0].tokens[here], noise[here])
        assert not masked.any() or not torch.equal(steps[-1].tokens[here], steps[0].tokens[here])


@pytest.mark.parametrize("steps", [edit_steps, annealed_steps, refined_steps])
@pytest.mark.parametrize(
    "x_1, says",
    [
        (torch.full((1, 4, 4), 12), r"tokens must lie in \[0, 12\), got 12 to 12"),
        (tokens().expand(2, -1, -1), r"x_1 must be \(1, 4, 4\) tokens, got shape \(2, 4, 4\)"),
    ],
)
def test_what_are_no_tokens_of_an_image_is_refused(tiny, steps, x_1, says):
    with pytest.raises(ValueError, match=says):
        next(steps(tiny, x_1, masks(1)[0]))


def test_a_mask_has_a_truth_value_for_every_token(tiny, monkeypatch):
    (masked,) = masks(1)
    for wrong in (masked[:, :3], masked[0], masked.float(), masked.expand(2, -1, -1)):
        with pytest.raises(ValueError, match=r"masked must be \(1, 4, 4\) truth values, got torch"):
            require_masked(wrong, tiny.grid)
    monkeypatch.setattr(process, "require_masked", lambda masked, grid: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(edit_steps(tiny, tokens(), masked))


@pytest.mark.parametrize("choice", [dict(), dict(temperature=0.6, top_k=4)])
def test_parallel_is_sequential_with_masks(tiny, choice):
    x_1 = tokens(1)
    for masked in masks(4):
        parallel, sequential = (
            [s.tokens for s in edit_steps(tiny, x_1, masked, 8, seed=9, method=m, **choice)]
            for m in ("parallel", "sequential")
        )
        for a, b in zip(parallel, sequential, strict=True):
            assert torch.equal(a, b)


def test_known_tokens_cost_no_pass(make_model):
    """A window that holds one unknown position converges in one pass, two at most."""
    model = make_model(T=2)
    masked = torch.zeros(1, 4, 4, dtype=torch.bool)
    masked[0, 3, 3] = True
    passes = []
    decode = partial(decode_parallel, on_pass=lambda t, at: passes.append(t))
    list(edit_steps(model, torch.zeros(1, 4, 4, dtype=torch.int64), masked, method=decode))
    assert 1 <= len(passes) <= 2


# ── several times down every scale ────────────────────────────────────────────────────────────


def test_known_tokens_survive_annealing(tiny):
    x_1 = tokens()
    (masked,) = masks(1)
    steps = list(annealed_steps(tiny, x_1, masked, 3, seed=5, chains=[3, 2, 1]))
    assert [step.t for step in steps] == [4, 3, 2, 1]
    known = ~masked.expand(3, -1, -1)
    for step in steps:
        assert torch.equal(step.tokens[known], x_1.expand(3, -1, -1)[known])


def test_once_down_every_scale_is_the_single_process(tiny):
    once = tiny.inpaint(picture(), corner(), 2, seed=4, process="annealed", chains=1)
    twice = tiny.inpaint(picture(), corner(), 2, seed=4, process="annealed", chains=2)
    single = tiny.inpaint(picture(), corner(), 2, seed=4, resampling_passes=0)
    assert all(same(a, b) for a, b in zip(once, single, strict=True))
    assert not any(same(a, b) for a, b in zip(twice, single, strict=True))


def test_an_annealed_edit_alone_is_the_edit_in_company(tiny):
    options = dict(process="annealed", chains=2)
    together = tiny.inpaint(picture(), corner(), 3, seed=4, **options)
    for i in range(3):
        assert same(tiny.inpaint(picture(), corner(), seed=4 + i, **options)[0], together[i])


def test_a_first_redraw_is_the_step_of_forgetting():
    """Chance β_t of a new token: the frequency in 40 000 draws, within 5 standard deviations."""
    x = torch.zeros(4, 10_000, dtype=torch.int64)
    changed = (redraw(x, 0.3, 10, [1, 2, 3, 4], 2, [1] * 4) != x).double().mean().item()
    assert abs(changed - 0.27) < 5 * (0.27 * 0.73 / 40_000) ** 0.5
    assert torch.equal(redraw(x, 0.0, 10, [1, 2, 3, 4], 2, [1] * 4), x)


def test_what_a_seed_redraws_is_the_same_in_every_version():
    expected = [[0, 3, 8, 0, 9, 11, 6, 0], [0, 7, 0, 10, 6, 0, 7, 0]]
    x = torch.zeros(2, 8, dtype=torch.int64)
    assert redraw(x, 0.5, 12, [7, 8], 3, [1, 2]).tolist() == expected


def test_scales_are_repeated_as_released(tiny, make_denoiser):
    assert released_chains(tiny) == {2: 3, 3: 3, 4: 1}
    uneven = MultinomialDiffusion([1.0, 0.9, 0.0], 12)
    scales = {t: make_denoiser(t) for t in (2, 3)}
    for denoiser in scales.values():
        denoiser.diffusion = uneven
    assert released_chains(ImageBART(tiny.vqgan, uneven, scales)) == {2: 5, 3: 1}


@pytest.mark.parametrize("chains", [0, -1, 1.5, [1, 2], [1, 2, 0]])
def test_every_scale_is_run_at_least_once(tiny, chains):
    with pytest.raises(ValueError, match="chains must be"):
        tiny.inpaint(picture(), corner(), process="annealed", chains=chains)


# ── resampling ────────────────────────────────────────────────────────────────────────────────


def scales_that_ran(model, **options) -> list[int]:
    """t of every decoding of an edit, in order."""
    ran = []

    def decode(scale, *rest, **more):
        ran.append(scale.t)
        return decode_parallel(scale, *rest, **more)

    model.inpaint(picture(), method=decode, **options)
    return ran


def test_scales_run_once_but_where_passes_are_asked_for(tiny, make_model):
    """T = 4: t = 3 as often as asked, and then never t = 4; unless nothing is known, or T is 2."""
    mask, everything = corner(), np.ones((32, 32), bool)
    assert scales_that_ran(tiny, mask=mask) == [4, 3, 2]
    assert scales_that_ran(tiny, mask=mask, resampling_passes=4) == [3] * 4 + [2]
    assert scales_that_ran(tiny, mask=mask, resampling_passes=1) == [3, 2]
    assert scales_that_ran(tiny, mask=mask, resampling_passes=0) == [4, 3, 2]
    assert scales_that_ran(tiny, mask=everything, resampling_passes=4) == [4, 3, 2]
    assert scales_that_ran(make_model(T=2), mask=mask, resampling_passes=4) == [2]
    conditional = make_model(conditions={"class": 3}, condition_dropout=True)
    assert scales_that_ran(conditional, mask=mask, classes=1, resampling_passes=2) == [3, 3, 2]
    refined = dict(process="refined", passes=2, resampling_passes=2)
    assert scales_that_ran(make_model(T=3), mask=mask, **refined) == [2] * 4


@pytest.mark.parametrize("T", [2, 3, 4])
def test_particles_are_those_of_each_image(make_model, T):
    """Those that are asked for, or by default several of an image of which nothing is said; one
    where no known token comes after the mask."""
    model = make_model(T=T, conditions={"class": 3}, condition_dropout=True)
    first, last, everything = (torch.zeros(1, 4, 4, dtype=torch.bool) for _ in range(3))
    first[0, 0, 0] = last[0, 3, 3] = everything[:] = True

    def particles(*how, masked=first, classes=(None, 2)):
        own = process.MaskedProcess(model, tokens(), masked, 2, classes=list(classes))
        return own.particles(*how)

    assert particles(None, None) == [2, 1]
    assert particles(None, None, classes=(1, 2)) == [1, 1]
    assert particles(None, 5) == particles(0, 5) == [5, 5]
    assert particles(0, None) == particles(3, None) == [1, 1]
    assert particles(None, None, masked=last) == particles(None, 5, masked=everything) == [1, 1]


@pytest.mark.parametrize("T", [3, 4])
@pytest.mark.parametrize("how", [{}, dict(process="refined", passes=2)], ids=["single", "refined"])
def test_an_image_is_edited_by_its_own_condition_alone(make_model, T, how):
    """Beside images with a condition, one without is edited as it is alone, and they too."""
    model = make_model(T=T, conditions={"class": 3}, condition_dropout=True)
    classes = [1, None, 2]
    together = model.inpaint(picture(), corner(), 3, seed=4, classes=classes, **how)
    for i, one in enumerate(classes):
        (alone,) = model.inpaint(picture(), corner(), seed=4 + i, classes=one, **how)
        assert same(alone, together[i])


@pytest.mark.parametrize("share, count", [(1, 2), (32, 2), (64, 4), (96, 6), (128, 8), (255, 8)])
def test_a_larger_mask_has_more_particles(share, count):
    """`share` tokens of 256 are masked."""
    masked = torch.arange(256) < share
    assert process.default_particles(masked) == count


def test_every_pass_over_a_mask_has_noise_of_its_own(make_model, monkeypatch):
    passes, draw = [], process.gumbel
    monkeypatch.setattr(process, "gumbel", lambda *a: (passes.append((a[1], *a[4:])), draw(*a))[1])
    make_model(T=3).inpaint(picture(), corner(), process="refined", passes=2, resampling_passes=3)
    assert len(passes) == len(set(passes)) == 5


@pytest.mark.parametrize("passes", [-1, 1.5])
def test_resampling_passes_are_whole_numbers(tiny, passes):
    with pytest.raises(ValueError, match="resampling_passes must be a whole number, at least 0"):
        tiny.inpaint(picture(), corner(), resampling_passes=passes)


# ── passes on the finest scale ────────────────────────────────────────────────────────────────


def test_no_pass_is_the_single_pass(tiny):
    x_1 = tokens()
    masked = masks(3)[1]
    once = list(edit_steps(tiny, x_1, masked, 2, seed=3))
    for passes in (0, 2):
        steps = list(refined_steps(tiny, x_1, masked, 2, seed=3, passes=passes))
        assert [step.t for step in steps[:4]] == [4, 3, 2, 1]
        for a, b in zip(once, steps, strict=False):
            assert torch.equal(a.tokens, b.tokens)
        assert len(steps) <= 4 + passes and steps[-1].done == 1


def test_a_pass_noises_the_mask_to_t_2_and_denoises_it(tiny):
    """Each pass by hand: redraw masked tokens with chance β_2, then the scale t = 2 once more."""
    x_1 = tokens()
    masked = masks(3)[2]
    steps = list(refined_steps(tiny, x_1, masked, 1, seed=3, passes=3))
    known, beta = ~masked.flatten(1), float(tiny.diffusion.beta[2])
    for i, (before, after) in enumerate(pairwise(steps[3:]), 1):
        x_2 = redraw(before.tokens.flatten(1), beta, 12, [3], 2, [i])
        x_2 = torch.where(known, x_1.flatten(1), x_2)
        noise = gumbel([3], 2, 16, 12, i)
        expected = decode_sequential(
            tiny.denoisers[2], x_2, noise, Filter(), None, known, x_1.flatten(1)
        )
        assert torch.equal(after.tokens.flatten(1), expected)


def test_an_image_refines_alone_as_in_a_batch_and_stays_once_converged(tiny):
    x_1 = tokens()
    masked = torch.zeros(1, 4, 4, dtype=torch.bool)
    masked[0, 1, 1] = True
    batch = list(refined_steps(tiny, x_1, masked, 6, seed=20, passes=12))
    for i in range(6):
        alone = list(refined_steps(tiny, x_1, masked, 1, seed=20 + i, passes=12))
        for a, b in zip(alone, batch, strict=False):
            assert torch.equal(a.tokens[0], b.tokens[i])
        assert torch.equal(alone[-1].tokens[0], batch[-1].tokens[i])
    assert len(batch) < 4 + 12  # one token converges soon
    assert torch.equal(batch[-1].tokens, batch[-2].tokens)


@pytest.mark.parametrize("passes", [-1, 1.5, "2"])
def test_passes_are_a_whole_number(tiny, passes):
    with pytest.raises(ValueError, match="passes must be a whole number, at least 0"):
        tiny.inpaint(picture(), corner(), process="refined", passes=passes)


def test_refined_edits_keep_every_known_pixel(tiny):
    image, mask = picture(), corner()
    single = tiny.inpaint(image, mask, 2, seed=1)
    refined = tiny.inpaint(image, mask, 2, seed=1, process="refined", passes=3)
    for edit in refined:
        assert np.array_equal(np.asarray(edit)[~mask], np.asarray(image)[~mask])
    assert any(not same(a, b) for a, b in zip(single, refined, strict=True))
