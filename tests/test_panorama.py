"""Wide pictures: a sample where they are no wider, seeds that hold, ends that meet."""

import itertools
from itertools import pairwise

import numpy as np
import pytest
import seams
import torch
from conftest import new_model

from imagebart import ImageBART
from imagebart.conditions import text_tokens
from imagebart.editing.panorama import (
    Blended,
    ConditionsAlongX,
    WideNoise,
    WideScale,
    decode_wide,
    encode_along_x,
    origins,
    panorama_steps,
    triangular_window,
)
from imagebart.guidance import encode_condition
from imagebart.sampling import Filter, draw, gumbel

BOTH = pytest.mark.parametrize("mode", ["fast", "exact"])
SAID = dict(conditions={"class": 3, "text": 6}, condition_dropout=True)


@pytest.fixture(scope="module")
def asking(make_model):
    """A chain that takes classes and text."""
    model = make_model(T=3, **SAID)
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens(["a lake at night"], 6)[0])
    return model


def tokens(model, *size, **options) -> torch.Tensor:
    *_, last = panorama_steps(model, *size, **options)
    return last.tokens


@BOTH
def test_of_the_training_size_it_is_the_sample(tiny, mode):
    for seed in range(8):
        wide = tiny.panorama(32, seed=seed, mode=mode, output_type="pt")
        assert torch.equal(wide, tiny.sample(seed=seed, output_type="pt"))
    *_, last = tiny.sample_steps(seed=3, top_k=3, temperature=0.7)
    assert torch.equal(tokens(tiny, 32, seed=3, top_k=3, temperature=0.7, mode=mode), last.tokens)


@BOTH
@pytest.mark.parametrize("size", [(120,), (64, 56), (75, 41)])
def test_any_size_from_the_training_size_on(tiny, mode, size):
    image = tiny.panorama(*size, seed=1, mode=mode)[0]
    assert image.size == (size[0], size[1] if len(size) > 1 else 32)
    again = tiny.panorama(*size, seed=1, mode=mode, method="sequential")[0]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(again))
    other = tiny.panorama(*size, seed=2, mode=mode)[0]
    assert (np.asarray(image) != np.asarray(other)).any()


@BOTH
def test_a_seed_holds_while_the_picture_grows(tiny, mode):
    """Both read the noise of places: what a window saw does not depend on what lies beyond it."""
    short, long = tokens(tiny, 64, seed=5, mode=mode), tokens(tiny, 160, seed=5, mode=mode)
    steps = list(panorama_steps(tiny, 64, seed=5, mode=mode))
    assert torch.equal(steps[0].tokens, next(panorama_steps(tiny, 160, seed=5)).tokens[..., :8])
    if mode == "fast":
        assert torch.equal(short, long[..., :8])
        *_, sample = tiny.sample_steps(seed=5)
        assert torch.equal(long[..., :4], sample.tokens)
    assert [step.t for step in steps[:2]] == [4, 3] and steps[-1].done == 1
    assert all(a.done < b.done for a, b in pairwise(steps))


def test_exact_draws_each_token_in_the_window_around_it(tiny):
    """A token by hand: the window centred at it, all tokens before it in that window."""
    noise = WideNoise(7, tiny, (4, 9))
    x_T = noise.tokens()
    conditions = ConditionsAlongX(encode_along_x(tiny, 9, 0, None, None), 9, False)
    scale = WideScale(tiny.denoisers[3], Filter(), conditions, x_T, noise, False)
    for _ in scale.tokens():
        pass
    for row, column in ((0, 0), (2, 5), (3, 8), (1, 7)):
        left = min(max(column - 2, 0), 5)
        view = slice(0, 4), slice(left, left + 4)
        x_prev, x_t = (x[view].reshape(1, 16) for x in (scale.x_prev, x_T))
        i = 4 * row + column - left
        logits = tiny.denoisers[3](x_prev, x_t)[:, i : i + 1]
        at = torch.arange(4)[:, None], torch.arange(left, left + 4)
        expected = draw(logits, noise.window(3, *at)[:, i : i + 1], Filter())
        assert scale.x_prev[row, column] == expected[0, 0]


def test_the_noise_belongs_to_the_place(tiny):
    noise = WideNoise(3, tiny, (8, 11))
    at = torch.arange(2, 6)[:, None], torch.tensor([9, 10, 0, 1])
    window = noise.window(2, *at).reshape(4, 4, 12)
    for r in range(4):
        for c in range(4):
            i, j = int(at[0][r]), int(at[1][c])
            whole = gumbel([noise.block_seed(i // 4, j // 4)], 2, 16, 12).reshape(4, 4, 12)
            assert torch.equal(window[r, c], whole[i % 4, j % 4])
    assert noise.block_seed(0, 0) == 3 and len(noise.blocks) <= 4
    assert len({noise.block_seed(i, j) for i in range(5) for j in range(5)}) == 25


@BOTH
def test_a_wrapped_picture_goes_on_at_its_other_end(tiny, mode):
    """The last columns are drawn with the first beside them, the first fade into the last."""
    plain = tokens(tiny, 96, seed=4, mode=mode)
    wrapped = tokens(tiny, 96, seed=4, mode=mode, wrap=True)
    assert wrapped.shape == (1, 4, 12)
    assert torch.equal(plain[..., :1], wrapped[..., :1])  # drawn before anything was beyond it
    assert not torch.equal(plain, wrapped)
    turned = decode_wide(tiny, wrapped.roll(4, 2), wrap=True)
    torch.testing.assert_close(turned, decode_wide(tiny, wrapped, wrap=True).roll(32, 3))
    for size in (24, 25, 31, 40):
        covered = {(left + i) % size for left in origins(size, 16, True) for i in range(16)}
        assert covered == set(range(size))
        assert {(left + i) for left in origins(size, 16, False) for i in range(16)} == covered


def test_the_fade_is_one_everywhere():
    cover = torch.zeros(32)
    for start in (0, 8, 16):
        cover[start : start + 16] += triangular_window(16)
    torch.testing.assert_close(cover[8:24], torch.ones(16))


# ── conditions ────────────────────────────────────────────────────────────────────────────────


@BOTH
def test_conditions_change_along_the_width(asking, mode):
    how = dict(seed=2, mode=mode, guidance=1.0)
    two = tokens(asking, 192, prompts=["a lake", "night"], **how)
    first, second = (tokens(asking, 192, prompts=one, **how) for one in ("a lake", "night"))
    assert torch.equal(two[..., :4], first[..., :4])
    assert not torch.equal(two[..., 12:], first[..., 12:])
    assert not torch.equal(first, second)
    by_class = tokens(asking, 64, classes=[0, 2], prompts=["night", ""], **how)
    assert by_class.shape == (1, 4, 8)


def test_weights_go_over_from_condition_to_condition():
    conditions = ConditionsAlongX([None, None], 16, False)
    weights = conditions.weights(torch.arange(16))
    assert weights[0, :4].eq(1).all() and weights[1, 12:].eq(1).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(16))
    assert (weights[0].diff() <= 0).all() and 0.4 < weights[0, 7] < 0.6
    wrapped = ConditionsAlongX([None] * 3, 16, True).weights(torch.arange(16))
    torch.testing.assert_close(wrapped.sum(0), torch.ones(16))
    assert wrapped[2, 0] > 0 and wrapped[0, 15] > 0


def test_neighbours_of_one_condition_are_one(asking):
    """A class that is repeated to hold it costs no more than one, and draws the same."""
    encoded = [encode_condition(asking, 1, classes=k, guidance=2.0) for k in (0, 0, 1, 1)]
    conditions, columns = ConditionsAlongX(encoded, 16, False), torch.arange(16)
    (held,) = conditions.counted(columns[:6])
    assert held[0] is encoded[0] and held[1].eq(1).all()
    counted = conditions.counted(columns)
    assert [one for one, _ in counted] == [encoded[0], encoded[2]]
    weights = conditions.weights(columns)
    assert torch.equal(counted[0][1], weights[0] + weights[1])
    scale, _, condition = conditions.at(asking.denoisers[2], Filter(), columns[:4])
    assert not isinstance(scale, Blended) and torch.equal(condition, encoded[0].condition)
    others = [encode_condition(asking, 1, classes=k, guidance=g) for k, g in ((0, 3.0), (2, 2.0))]
    assert not any(encoded[0].same_as(other) for other in others)


def test_blended_logits_are_the_weighted_ones(asking):
    encoded = [encode_condition(asking, 1, classes=k, guidance=2.0) for k in (0, 1)]
    weights = torch.rand(16, generator=torch.Generator().manual_seed(0))
    weights = torch.stack([weights, 1 - weights])
    x_prev, x_t = torch.randint(12, (2, 1, 16), generator=torch.Generator().manual_seed(1))
    denoiser, at = asking.denoisers[2], torch.arange(16)[None]
    blended = Blended(encoded, denoiser, Filter(), weights)
    got = blended.step(x_prev, at, blended.start(x_t))
    each = []
    for one in encoded:
        guided = one.steered(denoiser)[0]
        each.append(guided.step(x_prev, at, guided.start(x_t, one.condition)).log_softmax(-1))
    expected = weights[0][:, None] * each[0] + weights[1][:, None] * each[1]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_numbers_may_be_numpys(asking):
    odd = dict(seed=np.int64(2), classes=np.array([0, 1]))
    assert torch.equal(
        tokens(asking, np.int64(64), **odd), tokens(asking, 64, seed=2, classes=[0, 1])
    )
    one = tokens(asking, 64, classes=np.int64(1))
    assert torch.equal(one, tokens(asking, 64, classes=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(width=31), "width must be at least the model's 32, got 31"),
        (dict(width=64, height=8), "height must be at least the model's 32, got 8"),
        (dict(width=40, wrap=True), "at least 48 to wrap around, got 40"),
        (dict(width=100, wrap=True), "width must be a multiple of 8 to wrap around, got 100"),
        (dict(width=64, mode="best"), "mode must be one of"),
        (dict(width=64, seed=-1), "seed must be a whole number"),
        (dict(width=64, seed=[1, 2]), "seed must be a whole number"),
        (dict(width=64, classes=[0, 7]), r"^classes must be ids in \[0, 3\)"),
        (dict(width=64, prompts=["night", 3]), "^prompts must be text"),
        (dict(width=64, classes=[0] * 9), "must be at most 8, got 9"),
        (dict(width=64, classes=[]), "must be one, or as many of each"),
        (dict(width=64, classes=[0, 1], prompts=["a"] * 3), "as many of each"),
        (dict(width=64, classes=[7]), r"ids in \[0, 3\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(asking, options, message):
    with pytest.raises(ValueError, match=message):
        tokens(asking, options.pop("width"), **options)


def test_a_panorama_has_no_map_for_a_model_that_needs_one():
    with pytest.raises(ValueError, match="a panorama takes no map, and this model was trained to"):
        tokens(new_model(conditions={"map": 5}), 64)
    with pytest.raises(TypeError, match="got 'semantic_map', it takes width, height, "):
        new_model().panorama(64, semantic_map=np.zeros((4, 4), int))


@pytest.mark.parametrize("seed", [[0], "a", None, True])
def test_a_seed_is_checked_before_it_draws_a_class(asking, seed):
    parts = asking.vqgan, asking.diffusion, asking.denoisers
    with pytest.raises(ValueError, match=r"^seed must be a whole number, from 0 to \d+, got"):
        tokens(ImageBART(*parts, draws_class=True), 64, seed=seed)


def test_a_word_that_is_not_known_is_told_of_by_the_name_of_the_option(asking):
    with pytest.warns(UserWarning, match="^prompts: this model has never seen zebra$"):
        tokens(asking, 64, prompts=["night", "zebra"])


def test_a_seam_is_a_step_at_a_border_of_windows(tiny):
    at = seams.borders(tiny, 80, seed=0)
    assert at == [
        8 * (start + 4) for start in (0, 2, 4)
    ]  # windows of 4 tokens, half a window apart
    picture = torch.arange(80.0).expand(1, 3, 16, 80).clone()  # every column one more than before
    assert seams.seam(picture, at, 8) == pytest.approx(1)
    for x in at:
        picture[..., x:] += 2
    assert seams.seam(picture, at, 8) == pytest.approx(3)


def test_a_rhythm_is_seen_where_it_lies(tiny):
    """Steps at every second border of tokens, where windows of 4 are half their size apart."""
    picture = torch.arange(80.0).expand(1, 3, 16, 80).clone()
    assert seams.rhythm(picture, tiny) == pytest.approx([1, 1])
    for x in range(16, 80, 16):
        picture[..., x:] += 2
    assert seams.rhythm(picture, tiny) == pytest.approx([1 / 3, 3])


def test_windows_have_no_rhythm(tiny):
    """They go on by a quarter to a half, and by other steps at every scale and for every seed."""
    noises = [WideNoise(seed, tiny, (4, 400)) for seed in range(4)]
    steps = {
        (noise.seed, t): tuple(itertools.islice(noise.strides(t, 16, "along"), 80))
        for noise in noises
        for t in (2, 3)
    }
    assert len(set(steps.values())) == len(steps)
    assert {step for each in steps.values() for step in each} == {5, 6, 7, 8}
    starts = origins(400, 16, False, iter(steps[0, 2]))
    assert starts[0] == 0 and starts[-1] == 384
    assert set(np.diff(starts[:-1])) == {5, 6, 7, 8} and 0 < starts[-1] - starts[-2] <= 8


def test_seams_of_panoramas_are_reported(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    where = str(tmp_path / "model")
    config = seams.Config(model=where, width=64, n=2, modes=("fast", "exact"))
    rows = seams.main(config)["rows"]
    wide = [tiny.panorama(64, seed=i, output_type="pt") for i in range(2)]
    expected = [seams.seam(one, seams.borders(tiny, 64, i), 8) for i, one in enumerate(wide)]
    assert rows[0]["seam"] == pytest.approx(sum(expected) / 2, rel=1e-4)
    expected = np.mean([seams.rhythm(one, tiny) for one in wide], axis=0)
    assert rows[0]["rhythm"] == pytest.approx(expected.tolist(), rel=1e-4)
    assert [row["mode"] for row in rows] == ["fast", "exact"]
