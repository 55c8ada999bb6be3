"""The part of a picture that the model sees: where it lies, what it cuts, and the seam."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagebart.editing.pasting import (
    FADE,
    MOST_WINDOWS,
    Box,
    box_around,
    boxes_over,
    fill_unknown,
    membrane,
    outward,
    smoothly,
    softened,
    step_of_border,
)

SIDES = st.integers(1, 60)


def numbered(height: int, width: int) -> Image.Image:
    """Every pixel another colour."""
    place = np.arange(height * width).reshape(height, width)
    return Image.fromarray(np.stack([place // 256, place % 256, 0 * place], -1).astype(np.uint8))


@given(SIDES, SIDES, SIDES, SIDES, st.data())
def test_a_box_holds_the_masked_part_and_stays_inside_if_it_can(height, width, h, w, data):
    mask = np.zeros((height, width), bool)
    for _ in range(2):
        y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        mask[y, x] = True
    box = box_around(mask, (h, w))
    assert not mask[~box.inside((height, width))].any()
    assert abs(box.width * h - box.height * w) <= max(h, w)
    if box.height <= height:
        assert 0 <= box.top <= height - box.height
    if box.width <= width:
        assert 0 <= box.left <= width - box.width
    assert box.width * h >= min(width * h, height * w) - 1e-6


@given(SIDES, SIDES, SIDES, SIDES, st.data())
def test_a_box_holds_what_is_not_marked(height, width, h, w, data):
    """Of a large mask too: a quarter of it, or half of the picture's share, or all the picture."""
    top, bottom = sorted(data.draw(st.integers(0, height - 1)) for _ in range(2))
    left, right = sorted(data.draw(st.integers(0, width - 1)) for _ in range(2))
    mask = np.zeros((height, width), bool)
    mask[top : bottom + 1, left : right + 1] = True
    box = box_around(mask, (h, w))
    part = mask[box.part((height, width))]
    known = 1 - part.mean()
    assert part.size == mask.size or known >= min(1 / 4, (1 - mask.mean()) / 2)


@given(st.integers(1, 200), SIDES, st.data())
def test_windows_hold_the_mask_and_go_outward(width, height, data):
    left, right = sorted(data.draw(st.integers(0, width - 1)) for _ in range(2))
    top, bottom = sorted(data.draw(st.integers(0, height - 1)) for _ in range(2))
    mask = np.zeros((height, width), bool)
    mask[top : bottom + 1, left : right + 1] = True
    boxes = boxes_over(mask, (8, 8))
    covered = np.any([box.inside(mask.shape) for box in boxes], axis=0)
    assert covered[mask].all() and len(boxes) <= MOST_WINDOWS
    if width <= height or len(boxes) == 1:
        assert boxes == [box_around(mask, (8, 8))]
        return
    assert all(box.part(mask.shape)[1] == slice(box.left, box.left + height) for box in boxes)
    for i, box in enumerate(boxes[1:], 1):  # beside one that is painted, by half at most
        assert min(abs(box.left - other.left) for other in boxes[:i]) <= max(height // 2, 1)
        assert mask[box.part(mask.shape)].any()
    first = mask[boxes[0].part(mask.shape)].mean()
    assert all(first <= mask[box.part(mask.shape)].mean() for box in boxes)


def test_there_is_no_window_between_two_marks():
    mask = np.zeros((16, 160), bool)
    mask[:, :8] = mask[:, -8:] = True
    boxes = boxes_over(mask, (8, 8))
    assert [box.left for box in boxes] == [0, 144] and all(box.width == 16 for box in boxes)


@pytest.mark.parametrize("height, width, rows", [(128, 228, 8), (128, 512, 8), (50, 16, 11)])
def test_what_lies_beyond_a_marked_border_is_marked(height, width, rows):
    """The sky of a wide picture, and the upper part of a tall one, which has neighbours beyond its
    sides: what is known of the crop are its lower tokens."""
    mask = np.zeros((height, width), bool)
    mask[: height // 2] = True
    box = box_around(mask, (64, 64))
    assert box.part((height, width)) == (slice(0, height), slice(0, width)) or height > width
    masked = box.tokens(mask, (16, 16))[0]
    assert masked[:rows].all() and not masked[rows + 1 :].any()


def test_a_box_cuts_what_it_says_and_goes_on_beyond_the_border():
    image = numbered(20, 30)
    pixels = np.asarray(image)
    inside = np.asarray(Box(5, 3, 8, 6).cut(image, (6, 8)))
    assert np.array_equal(inside, pixels[3:9, 5:13])
    beyond = np.asarray(Box(-2, 17, 8, 6).cut(image, (6, 8)))
    assert np.array_equal(beyond[:3, 2:], pixels[17:, :6])
    assert (beyond[3:, 2:] == pixels[19, :6]).all() and (beyond[:3, :2] == pixels[17:, :1]).all()
    assert Box(0, 0, 30, 20).cut(image, (40, 60)).size == (60, 40)


@given(
    st.integers(-9, 9), st.integers(-9, 9), st.integers(10, 40), st.integers(10, 40), SIDES, SIDES
)
def test_a_crop_is_that_of_a_larger_picture_with_its_edge_repeated(left, top, width, height, h, w):
    """Sides are resized one after the other, as Pillow does it; to and fro."""
    image, box = numbered(10, 10), Box(left, top, width, height)
    rows, columns = (np.arange(n, n + m).clip(0, 9) for n, m in ((top, height), (left, width)))
    whole = Image.fromarray(np.asarray(image)[np.ix_(rows, columns)])
    expected = np.asarray(whole.resize((w, h), Image.Resampling.LANCZOS)).astype(int)
    off = 16 * (left < 0 or left + width > 10)  # what is rounded and clipped first differs
    assert abs(np.asarray(box.cut(image, (h, w))) - expected).max() <= off
    small = torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(h))
    there, large = box.part((10, 10)), smoothly(small, (height, width))
    seen = large[..., there[0].start - top : there[0].stop - top, :]
    seen = seen[..., there[1].start - left : there[1].stop - left]
    torch.testing.assert_close(box.resized(small, (10, 10)), seen)


@pytest.mark.parametrize("height, width", [(16, 16_000), (16_000, 16)])
def test_a_long_picture_costs_what_it_has_itself(height, width):
    """Not what a box of its longer side squared would."""
    image, side = Image.new("RGB", (width, height)), max(height, width)
    box = Box((width - side) // 2, (height - side) // 2, side, side)
    tracemalloc.start()
    assert box.cut(image, (32, 32)).size == (32, 32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * height * width
    assert box.resized(torch.rand(1, 3, 32, 32), (height, width)).shape == (1, 3, height, width)


@given(st.integers(-3, 9), st.integers(-3, 9), st.integers(4, 40), st.integers(4, 40), st.data())
def test_every_masked_pixel_masks_its_token_and_lies_in_it(left, top, width, height, data):
    box, mask = Box(left, top, width, height), np.zeros((24, 24), bool)
    y, x = data.draw(st.integers(0, 23)), data.draw(st.integers(0, 23))
    mask[y, x] = True
    masked = box.tokens(mask, (4, 4))
    assert bool(box.pixels(masked, (24, 24))[y, x]) == bool(box.inside((24, 24))[y, x])
    other = ~masked
    assert not box.pixels(other, (24, 24))[y, x]
    if width >= 4 and height >= 4:  # a pixel touches two tokens a side at most
        assert masked.sum() <= 4


def test_a_thin_stroke_marks_all_it_crosses():
    mask = np.zeros((320, 320), bool)
    mask[100] = True
    masked = Box(0, 0, 320, 320).tokens(mask, (4, 4))[0]
    assert masked.tolist() == [[False] * 4, [True] * 4, [False] * 4, [False] * 4]


def test_a_crop_is_placed_in_the_picture():
    """The part of a box that lies in the picture, at the picture's size."""
    box = Box(-2, 2, 8, 8)
    assert box.part((9, 9)) == (slice(2, 9), slice(0, 6))
    place = torch.arange(64.0).reshape(1, 1, 8, 8).expand(2, 3, 8, 8)
    assert torch.equal(box.resized(place, (9, 9)), place[..., :7, 2:])
    half = place[..., ::2, ::2].clone()
    assert box.resized(half, (9, 9)).shape == (2, 3, 7, 6)


def test_a_larger_picture_has_no_rings():
    """Beside an edge bicubic goes beyond both of its colours; this does not, and a ramp is one."""
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    large = smoothly(edge, (64, 64))
    assert large.min() == 0 and large.max() == 1
    assert F.interpolate(edge, (64, 64), mode="bicubic").max() > 1.01
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    middle = smoothly(ramp, (64, 64))[0, 0, 32, 16:48]
    torch.testing.assert_close(middle, (torch.arange(16, 48) + 0.5) / 8 - 0.5, atol=0.02, rtol=0)


EVERYTHING = torch.ones(1, 1, 32, 32, dtype=torch.bool)


def marked_right() -> torch.Tensor:
    marked = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    marked[..., 16:] = True
    return marked


def test_colours_go_on_across_the_border_and_edges_stay():
    """A decoder that gives everything back a little darker, with an edge of its own behind the
    border."""
    x = torch.full((1, 3, 32, 32), 0.2)
    painted = torch.full((2, 3, 32, 32), 0.1)
    painted[1, :, :, 22:] = 0.3
    shifted = membrane(painted, x, marked_right(), EVERYTHING)
    torch.testing.assert_close(shifted[0, :, :, 16:], x[0, :, :, 16:], atol=0.01, rtol=0)
    torch.testing.assert_close(shifted[1, :, :, 16:22], x[0, :, :, 16:22], atol=0.01, rtol=0)
    torch.testing.assert_close(shifted[1, :, :, 22:], x[0, :, :, 22:] + 0.2, atol=0.01, rtol=0)


def test_a_thing_that_was_not_painted_shifts_no_colours():
    """A dark bird that stays before a sky that is repainted without it."""
    x, painted = torch.full((1, 3, 32, 32), 0.4), torch.full((1, 3, 32, 32), 0.5)
    marked = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    marked[..., 10:13, 10:20] = False
    x[..., 10:13, 10:20] = -0.9
    torch.testing.assert_close(membrane(painted, x, marked, EVERYTHING), painted, atol=0.04, rtol=0)


@pytest.mark.parametrize("land, shift", [(0.4, 0.2), (-0.7, 0.0)])
def test_a_miss_does_not_go_on_across_an_edge(land, shift):
    """Where the painted sky ends at the border, a land painted too dark says nothing of the sky."""
    painted, sky = torch.full((1, 3, 32, 32), 0.4), ~marked_right()
    painted[..., 16:] = land
    shifted = membrane(painted, painted + 0.2, sky, EVERYTHING)
    torch.testing.assert_close(shifted[..., :16], painted[..., :16] + shift, atol=0.03, rtol=0)


def test_the_miss_of_a_known_token_always_counts():
    """A sky in another light than its land: what is painted has an edge at a token's border."""
    painted, sky = torch.full((1, 3, 32, 32), 0.4), ~marked_right()
    painted[..., 16:] = -0.7
    shifted = membrane(painted, painted + 0.2, sky, sky)
    assert (shifted[..., 15] - (painted + 0.2)[..., 16]).abs().max() < 0.25  # of 1.1


def stripes(*signs: float) -> torch.Tensor:
    """Rows that alternate between light and dark, a picture for each of these contrasts."""
    rows = torch.arange(32) % 2 * 2 - 1.0
    return torch.stack([sign * rows[:, None].expand(3, 32, 32) for sign in signs])


def test_a_step_that_changes_along_the_border_is_spread_over_some_pixels():
    """Dark rows meet light ones: a smooth shift alone would leave the whole step. The same for
    borders of another direction, and whatever is under the mask."""
    x, painted, marked = stripes(0.1), stripes(-0.1, 0.1), marked_right()
    shifted = membrane(painted, x, marked, EVERYTHING)
    steps = torch.where(marked, shifted, x).diff(dim=3).abs()[:, :, :, 15:21]
    assert (steps[0].amax((0, 1)) < 0.08).all()  # of 0.2 in all
    assert (steps[1] < 1e-3).all()
    torch.testing.assert_close(shifted[..., 21:], painted[..., 21:], atol=0.03, rtol=0)
    turned = [one.transpose(2, 3) for one in (painted, x, marked)]
    torch.testing.assert_close(membrane(*turned, EVERYTHING).transpose(2, 3), shifted)
    hidden = torch.where(marked, torch.nan, x)
    assert torch.equal(membrane(painted, hidden, marked, EVERYTHING)[..., 16:], shifted[..., 16:])


def test_a_marked_pixel_lacks_what_the_known_ones_beside_it_are_trusted_with():
    """Along a border of any shape; further inside the weights fall, to 0."""
    random = np.random.default_rng(0)
    marked = torch.from_numpy(random.random((9, 11)) < 0.6)
    marked[2:, 3:] = True
    x, painted = torch.rand(1, 3, 9, 11), torch.rand(1, 3, 9, 11)
    trusted = torch.rand(1, 1, 9, 11)
    step, weight = step_of_border(painted, x, marked[None, None], trusted)
    for i, j in itertools.product(range(9), range(11)):
        beside = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
        inside = [(a, b) for a, b in beside if 0 <= a < 9 and 0 <= b < 11]
        known = [at for at in inside if not marked[at]]
        if marked[i, j] and known:
            more = [trusted[0, 0, *at] * (x[0, :, *at] - painted[0, :, i, j]) for at in known]
            torch.testing.assert_close(step[0, :, i, j], torch.stack(more).mean(0))
            assert weight[0, 0, i, j].item() == pytest.approx(1 - 1 / (FADE + 1))
        else:
            assert weight[0, 0, i, j] < 0.8 and (marked[i, j] or not weight[0, 0, i, j])
    assert weight[0, 0, 8, 10] == 0


def test_where_nothing_is_known_nothing_is_shifted():
    painted = torch.rand(1, 3, 8, 8)
    everything = EVERYTHING[..., :8, :8]
    assert torch.equal(membrane(painted, torch.zeros(1, 3, 8, 8), everything, everything), painted)


def test_a_border_is_softened_inside_the_mask():
    marked = marked_right()
    soft = softened(marked, 3)[0, 0, 5]
    assert soft[14:22].tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert torch.equal(softened(marked, 0), marked.float())
    assert not softened(torch.zeros_like(marked), 3).any()


@pytest.mark.parametrize("place", [(0, 0), (12, 9), (26, 20)])
@pytest.mark.parametrize("width", [1, 2, 9])
def test_a_small_mask_is_softened_as_in_the_whole_picture(place, width):
    marked = torch.zeros(1, 1, 32, 26, dtype=torch.bool)
    y, x = place
    marked[:, :, y : y + 6, x : x + 6] = True
    inner, depth = marked.float(), marked.float()
    for _ in range(width):
        inner = -F.max_pool2d(-inner, 3, 1, 1)
        depth += inner
    assert torch.equal(softened(marked, width), depth / (width + 1))


@given(st.integers(8, 30), st.integers(8, 30), st.tuples(*[st.integers(0, 40)] * 4))
def test_windows_go_outwards_over_known_ground(height, width, margins):
    left, right, top, bottom = margins
    known = np.zeros((height + top + bottom, width + left + right), bool)
    known[top : top + height, left : left + width] = True
    for box in outward(known, (8, 8)):
        inside = box.inside(known.shape)
        assert inside.sum() == box.width * box.height  # within the canvas
        assert known[inside].mean() >= 0.25
        known |= inside
    assert known.all()


def test_the_unknown_is_filled_from_the_nearest_known():
    pixels = np.asarray(numbered(4, 5)).copy()
    known = np.zeros((4, 5), bool)
    known[1:3, 1:3] = True
    got = fill_unknown(pixels, known)
    assert np.array_equal(got[known], pixels[known])
    assert np.array_equal(got[1], pixels[1, [1, 1, 2, 2, 2]])
    assert np.array_equal(got[0], got[1]) and np.array_equal(got[3], got[2])


def test_a_known_place_is_found_in_both_directions():
    pixels = np.asarray(numbered(1, 6)).copy()
    known = np.array([[False, True, False, False, False, True]])
    assert np.array_equal(fill_unknown(pixels, known)[0], pixels[0, [1, 1, 1, 1, 5, 5]])


@pytest.mark.parametrize("size", [(8, 8), (8, 16)])
def test_nothing_to_do_needs_no_window(size):
    assert list(outward(np.ones((16, 16), bool), size)) == []


@pytest.mark.parametrize(("known", "size"), [((1, 1), (8, 8)), ((8, 8), (8, 64))])
def test_a_window_needs_four_known_pixels(known, size):
    """Half of one is no step outwards."""
    (h, w), around = known, np.zeros((16, 16), bool)
    around[:h, :w] = True
    with pytest.raises(ValueError, match=f"must hold 2×2 pixels.*, got {h}×{w} pixels"):
        list(outward(around, size))
