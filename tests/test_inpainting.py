"""Editing: what is known survives, the mask is repainted, and the seed still decides."""

import itertools
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_colours import LINEAR_GREY, PROFILE

from imagebart import ImageBART
from imagebart.data.colours import from_srgb
from imagebart.data.images import to_edit, to_pil, to_rgb, to_tensor
from imagebart.editing import pasting
from imagebart.editing.inpainting import (
    MaskedImage,
    inpaint,
    other_half,
    outpaint_steps,
    repainted,
    window_seed,
)
from imagebart.editing.pasting import Box, membrane
from imagebart.editing.process import PROCESSES, edit_steps

ORIENTATION = 0x0112  # the EXIF entry


def picture(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def blank(width: int = 32, height: int = 32) -> np.ndarray:
    return np.zeros((height, width), dtype=bool)


def corner() -> np.ndarray:
    """A mask over the upper left quarter: 2×2 of the 4×4 tokens."""
    mask = blank()
    mask[:16, :16] = True
    return mask


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()


# ── what is known ─────────────────────────────────────────────────────────────────────────────


def test_pixels_outside_the_mask_are_the_input(tiny):
    image, mask = picture(), corner()
    for edit in tiny.inpaint(image, mask, 3, seed=1):
        before, after = np.asarray(image), np.asarray(edit)
        assert np.array_equal(after[~mask], before[~mask])
        assert not np.array_equal(after[mask], before[mask])


def test_the_mask_is_painted_with_what_the_chain_drew(tiny):
    """The chain sees the filled picture; what it decodes is shifted to the colours around it."""
    image, mask = picture(), corner()
    edit = MaskedImage(tiny, image, mask)
    x_1 = tiny.encode(to_pil(edit.filled))
    *_, last = edit_steps(tiny, x_1, edit.masked, 2, seed=1)
    marked, size = torch.from_numpy(mask)[None, None], (image.height, image.width)
    redrawn = edit.box.pixels(edit.masked, size)[None, None]
    painted = membrane(tiny.generate(last.tokens), to_tensor(image)[None], marked, redrawn)
    got = tiny.inpaint(image, mask, 2, seed=1)
    for one, whole in zip(got, to_pil(painted), strict=True):
        assert np.array_equal(np.asarray(one)[mask], np.asarray(whole)[mask])


def test_an_empty_mask_warns_and_returns_the_input(tiny):
    image = picture()
    for mask in (blank(), []):
        with pytest.warns(UserWarning, match="the mask is empty: nothing is repainted") as told:
            edits = tiny.inpaint(image, mask, 2, seed=3)
        assert told[0].filename == __file__  # the caller's line
        assert len(edits) == 2 and all(same(edit, image) for edit in edits)


# ── what is under the mask ────────────────────────────────────────────────────────────────────


def random_mask(width: int, height: int, seed: int) -> np.ndarray:
    """A rectangle, a disc, or scattered pixels."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    top, left = random.integers(height), random.integers(width)
    if seed % 3 == 0:
        return (y >= top) & (y < top + 20) & (x >= left) & (x < left + 20)
    if seed % 3 == 1:
        return (x - left) ** 2 + (y - top) ** 2 < random.integers(1, 400)
    return random.random((height, width)) < random.random() ** 2


def exchanged(image: Image.Image, mask: np.ndarray, seed: int) -> Image.Image:
    """Other pixels under the mask."""
    other = np.asarray(picture(*image.size, seed=seed + 1000))
    return Image.fromarray(np.where(mask[..., None], other, np.asarray(image)))


@given(st.integers(0, 10**6), st.integers(16, 48), st.integers(16, 48), st.integers(0, 2))
@settings(max_examples=200)
def test_no_pixel_under_the_mask_is_seen_and_no_other_is_changed(seeing, seed, width, height, soft):
    """Neither by the model, which sees x_0, nor in what is made of the tokens that it draws, by a
    VQGAN that sees all pixels that are known."""
    image, mask = picture(width, height, seed), random_mask(width, height, seed)
    mask[0, 0] = True
    other = exchanged(image, mask, seed)
    one, two = (MaskedImage(seeing, each, mask, feather=soft) for each in (image, other))
    tokens = torch.arange(seed, seed + 16).reshape(1, 4, 4) % 12
    assert torch.equal(one.x_0, two.x_0) and torch.equal(one.masked, two.masked)
    result = one.result(tokens)
    assert torch.equal(result, two.result(tokens))
    assert torch.equal(result[0, :, ~mask], one.x[0, :, ~mask])


def test_a_vqgan_that_fits_known_pixels_is_told_of_them(seeing, tiny):
    """Of the crop, at the model's size; what it draws there then depends on them."""
    image, mask = picture(64, 64, 5), np.zeros((64, 64), bool)
    mask[3:22, 7:30] = True
    edit = MaskedImage(seeing, image, mask, box=Box(0, 0, 64, 64))
    pixels, known = edit.known().split([3, 1], dim=1)
    assert torch.equal(known[0, 0] == 0, torch.from_numpy(mask.reshape(32, 2, 32, 2).any((1, 3))))
    assert torch.equal(pixels, edit.x_0 * known)
    other = Image.fromarray(np.where(mask[..., None], np.asarray(image), 255 - np.asarray(image)))
    tokens, inside = torch.zeros(1, 4, 4, dtype=torch.long), torch.from_numpy(mask)
    seen, unseen = (
        [model.generate(tokens, MaskedImage(model, each, mask).known()) for each in (image, other)]
        for model in (seeing, tiny)
    )
    assert not torch.equal(*seen) and torch.equal(*unseen)
    assert torch.equal(seeing.generate(tokens), unseen[0])
    assert not torch.equal(*(edit.result(x)[0, :, inside] for x in (tokens, tokens + 1)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"context": 1},
        {"process": "refined", "passes": 1},
        {"process": "annealed", "chains": 1},
    ],
)
def test_no_pixel_under_the_mask_reaches_an_edit(tiny, options):
    image, mask = picture(50, 41), random_mask(50, 41, 4)
    other = exchanged(image, mask, 0)
    one, two = (tiny.inpaint(each, mask, seed=1, **options)[0] for each in (image, other))
    assert same(one, two) and not same(one, image)


@pytest.mark.parametrize("keep", ["upper", "lower", "left", "right"])
def test_no_pixel_of_the_other_half_reaches_a_completion(tiny, keep):
    image = picture(40, 36)
    mask = np.zeros((36, 40), bool)
    lines = mask.T if keep in ("left", "right") else mask
    half = len(lines) // 2
    lines[half:] = keep in ("upper", "left")
    lines[:half] = keep in ("lower", "right")
    other = exchanged(image, mask, 0)
    assert same(*(tiny.complete(one, keep=keep, seed=2)[0] for one in (image, other)))


def test_no_hidden_pixel_reaches_an_outpainting(tiny):
    """Colours that transparency hides; a picture on white is what is seen of them."""
    alpha = Image.fromarray(np.where(corner(), 0, 255).astype(np.uint8))
    one, two = picture(seed=1), exchanged(picture(seed=1), corner(), 1)
    for image in (one, two):
        image.putalpha(alpha)
    one, two = (tiny.outpaint(image, right=20, seed=2)[0] for image in (one, two))
    assert same(to_rgb(one), to_rgb(two)) and not same(one, two)


# ── pictures stay what they are ───────────────────────────────────────────────────────────────


def photograph(kind: str) -> Image.Image:
    """A picture with a colour profile, an orientation, or transparency."""
    image = picture(40, 32)
    if kind == "profile":
        image.info["icc_profile"] = PROFILE
    if kind == "orientation":
        image.getexif()[ORIENTATION] = 6
    if kind == "transparency":
        image.putalpha(picture(40, 32, seed=1).convert("L"))
    return image


@pytest.mark.parametrize("kind", ["profile", "orientation", "transparency"])
def test_an_edit_is_a_picture_like_the_one_that_was_given(tiny, kind):
    """The same colours, upright, as transparent as before: all but the edit, bit for bit."""
    image = photograph(kind)
    upright = image.transpose(Image.Transpose.ROTATE_270) if kind == "orientation" else image
    mask = random_mask(*upright.size, seed=0)
    keep = np.arange(upright.height)[:, None] >= upright.height // 2
    keep = np.broadcast_to(keep, mask.shape)
    results = [(tiny.inpaint(image, mask, seed=1)[0], ~mask)]
    results += [(tiny.complete(image, keep="lower", seed=1)[0], keep)]
    wide = tiny.outpaint(image, right=8, seed=1)[0]
    results += [(wide.crop((0, 0, *upright.size)), np.ones_like(mask))]
    for result, kept in results:
        assert result.mode == upright.mode and result.size == upright.size
        assert result.info.get("icc_profile") == upright.info.get("icc_profile")
        after, before = np.asarray(result), np.asarray(upright)
        assert np.array_equal(after[kept], before[kept])
        assert kept.all() or (after[~kept] != before[~kept]).any()
        if kind == "transparency":
            assert (after[~kept][:, 3] == 255).all()
    assert wide.info.get("icc_profile") == upright.info.get("icc_profile")


def test_an_inverted_mask_keeps_what_it_marks(tiny):
    image, mask = picture(), corner()
    how = dict(seed=1, context=1)
    inverted = tiny.inpaint(image, mask, invert_mask=True, **how)[0]
    assert same(inverted, tiny.inpaint(image, ~mask, **how)[0])
    (whole,) = tiny.inpaint(image, blank(), invert_mask=True, seed=2)
    assert same(whole, tiny.inpaint(image, ~blank(), seed=2)[0])


def test_what_the_model_sees_and_draws_is_srgb(tiny):
    """Tensors of an edit are; a picture of it shows the same colours in its profile."""
    image, mask = photograph("profile"), random_mask(40, 32, seed=0)
    seen = to_rgb(image)
    assert torch.equal(MaskedImage(tiny, image, mask).x_0, MaskedImage(tiny, seen, mask).x_0)
    tensors = [tiny.inpaint(one, mask, seed=1, output_type="pt") for one in (image, seen)]
    assert torch.equal(*tensors)
    drawn, expected = tiny.inpaint(image, mask, seed=1)[0], to_pil(2 * tensors[0] - 1)[0]
    assert not same(drawn, expected)
    inside = np.asarray(from_srgb(expected, PROFILE))[mask]
    assert np.array_equal(np.asarray(drawn)[mask], inside)
    wide = [tiny.outpaint(one, right=8, seed=1, output_type="pt") for one in (image, seen)]
    assert torch.equal(*(one[..., :40] for one in wide))


@pytest.mark.parametrize("size", [(160, 120), (37, 90)])
def test_a_circle_comes_back_as_a_circle(tiny, size):
    """Whatever the size of a token in the picture, all marked pixels are new, and no other."""
    image, (y, x) = picture(*size), np.mgrid[: size[1], : size[0]]
    mask = (x - size[0] // 2) ** 2 + (y - size[1] // 2) ** 2 < 15**2
    changed = (np.asarray(tiny.inpaint(image, mask, seed=1)[0]) != np.asarray(image)).any(2)
    assert not changed[~mask].any() and changed[mask].mean() > 0.99


def test_a_soft_mask_fades_inside(tiny):
    """From half, where it is the image, to white, where it is what a hard mask gives."""
    image = picture()
    levels = np.zeros((32, 32), np.uint8)
    levels[8:24, 8:24], levels[10:22, 10:22] = 191, 255
    hard, soft = (tiny.inpaint(image, one, seed=1)[0] for one in (levels > 0, levels))
    before, hard, soft = (np.asarray(one).astype(float) for one in (image, hard, soft))
    assert np.array_equal(soft[levels == 255], hard[levels == 255])
    assert np.array_equal(soft[levels == 0], before[levels == 0])
    mixed = (before + hard)[levels == 191] / 2
    np.testing.assert_allclose(soft[levels == 191], mixed, atol=1.01)


def test_a_feather_is_soft_in_pixels_of_the_picture(tiny):
    """It fades into the filling: a quarter, a half, three quarters, then all, at any size."""
    image, mask = picture(96, 96), blank(96, 96)
    mask[20:76, 20:76] = True
    plain = np.asarray(tiny.inpaint(image, mask, seed=1)[0]).astype(float)
    soft = np.asarray(tiny.inpaint(image, mask, seed=1, feather=3)[0]).astype(float)
    filled = np.asarray(to_pil(MaskedImage(tiny, image, mask).filled)[0]).astype(float)
    for depth, part in enumerate((0.25, 0.5, 0.75, 1.0)):
        row = 20 + depth, slice(30, 66)
        mixed = filled[row] + part * (plain[row] - filled[row])
        np.testing.assert_allclose(soft[row], mixed, atol=1.01)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"nonsense": 1}, TypeError),
        ({"temperature": -1}, ValueError),
        ({"process": "refined", "passes": -1}, ValueError),
        ({"process": "annealed", "chains": 0}, ValueError),
        ({"resampling_passes": -1}, ValueError),
    ],
)
@pytest.mark.filterwarnings("ignore:the mask is empty")
def test_options_are_checked_where_there_is_nothing_to_do(tiny, options, error):
    with pytest.raises(error):
        tiny.inpaint(picture(), blank(), **options)


@pytest.mark.parametrize("process", PROCESSES)
def test_an_empty_mask_returns_the_input_of_any_size(tiny, process):
    image = picture(50, 41)
    with pytest.warns(UserWarning, match="the mask is empty"):
        assert same(tiny.inpaint(image, blank(50, 41), process=process, feather=2)[0], image)


def test_a_full_mask_is_plain_sampling(tiny):
    edits = tiny.inpaint(picture(), ~blank(), 3, seed=11, top_k=5)
    for edit, sample in zip(edits, tiny.sample(3, seed=11, top_k=5), strict=True):
        assert same(edit, sample)


# ── the seed decides ──────────────────────────────────────────────────────────────────────────


def test_an_edit_alone_is_the_edit_in_company(tiny):
    together = tiny.inpaint(picture(), corner(), 3, seed=4)
    for i in range(3):
        assert same(tiny.inpaint(picture(), corner(), seed=4 + i)[0], together[i])


def test_an_unknown_process_is_refused(tiny):
    with pytest.raises(ValueError, match="process must be one of"):
        tiny.inpaint(picture(), corner(), process="magic")


# ── which images can be edited ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["I;16", "CMYK", "grey with a profile"])
def test_a_picture_that_cannot_stay_as_it_is_warns(tiny, mode):
    kind = "L" if "profile" in mode else mode
    image = Image.new(kind, (32, 32))
    if kind == "L":
        image.info["icc_profile"] = LINEAR_GREY
    said = f"an image of mode {kind}.* is converted: the result is 8-bit RGB everywhere"
    with pytest.warns(UserWarning, match=said):
        tiny.inpaint(image, corner())
    with pytest.warns(UserWarning, match=said):
        tiny.outpaint(image, right=4)
    assert to_edit(picture()).tobytes() == picture().tobytes()


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGB", "RGBA", "1"])
def test_a_picture_that_stays_as_it_is_does_not_warn(tiny, mode, recwarn):
    tiny.inpaint(picture().convert(mode), corner())
    assert not list(recwarn)


@pytest.mark.filterwarnings("ignore:an image of mode CMYK is converted")
@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_any_mode_is_edited_as_rgb(tiny, mode):
    image = picture().convert(mode)
    edit = np.asarray(tiny.inpaint(image, corner())[0])
    assert np.array_equal(edit[~corner()], np.asarray(image.convert("RGB"))[~corner()])


def test_transparent_parts_are_white(tiny):
    image = picture().convert("RGBA")
    image.putalpha(0)
    seen = np.asarray(to_rgb(tiny.inpaint(image, corner())[0]))
    assert (seen[~corner()] == 255).all() and (seen[corner()] != 255).any()


def test_the_mask_lies_on_the_upright_image(tiny, tmp_path):
    """A photo stored lying on its side is 32×64 to the eye, and so is its mask."""
    upright, mask = picture(32, 64), blank(32, 64)
    mask[16:24, :] = True  # the model sees rows 4 to 35, three rows of tokens are touched
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / "photo.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    with Image.open(path) as photo:
        assert photo.size == (64, 32)
        edit = tiny.inpaint(photo, mask, seed=2)[0]
    assert same(edit, tiny.inpaint(upright, mask, seed=2)[0])
    changed = (np.asarray(edit) != np.asarray(upright)).any((1, 2))
    assert changed[16:24].all() and not changed[:16].any() and not changed[24:].any()


SIZES = st.integers(1, 90)


@given(SIZES, SIZES, st.integers(0, 2), st.integers(0, 2), st.data())
@settings(max_examples=40)
def test_known_pixels_are_exact_at_any_size(tiny, width, height, context, feather, data):
    """Every masked pixel may change; all others are the input, bit for bit."""
    image, mask = picture(width, height), blank(width, height)
    for _ in range(data.draw(st.integers(1, 3))):
        x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        mask[y : y + data.draw(st.integers(1, 40)), x : x + data.draw(st.integers(1, 40))] = True
    how = dict(seed=1, context=context, feather=feather)
    ((edit, one),) = repainted(tiny, image, mask, 1, how)
    assert np.array_equal(edit.marked, mask) or (context and edit.marked.numpy()[mask].all())
    result = np.asarray(edit.pictures(one)[0])
    assert np.array_equal(result, np.asarray(tiny.inpaint(image, mask, **how)[0]))
    assert result.shape == (height, width, 3)
    outside = ~edit.marked.numpy()
    assert np.array_equal(result[outside], np.asarray(image)[outside])
    assert (result[~outside] != np.asarray(image)[~outside]).any()


def test_a_large_picture_is_edited_around_its_mask(tiny):
    """The model sees as much as it can; a mask beyond that has a larger box."""
    image, mask = picture(96, 48), blank(96, 48)
    mask[20:24, 80:84] = True
    edit = MaskedImage(tiny, image, mask)
    assert (edit.box.left, edit.box.top, edit.box.width, edit.box.height) == (48, 0, 48, 48)
    changed = (np.asarray(tiny.inpaint(image, mask)[0]) != np.asarray(image)).any(2)
    assert np.array_equal(changed, mask)
    mask[:24] = True
    wide = MaskedImage(tiny, image, mask)
    assert (wide.box.left, wide.box.top, wide.box.width, wide.box.height) == (0, -24, 96, 96)
    assert torch.equal(wide.marked, torch.from_numpy(mask))


def test_the_sky_of_a_wide_picture_is_painted_window_after_window(tiny):
    """As by hand, each window from what those before it have painted; seed by seed, with maps and
    soft masks; the number of pictures changes nothing."""
    image, mask = picture(80, 32), np.zeros((32, 80), np.uint8)
    mask[:12], mask[12:16] = 255, 180  # half of a soft edge
    one, two = tiny.inpaint(image, mask, 2, seed=5, feather=1)
    assert same(tiny.inpaint(image, mask, seed=6, feather=1)[0], two) and not same(one, two)
    boxes = MaskedImage(tiny, image, mask).boxes()
    assert [box.left for box in boxes] == [0, 16, 32, 48]
    by_hand, left = image, mask.copy()
    for i, box in enumerate(boxes):
        how = dict(box=box, feather=1, seed=window_seed(5, i))
        (by_hand,) = to_pil(inpaint(tiny, by_hand, left, **how))
        left[box.inside((32, 80))] = 0
    assert same(by_hand, one)
    hidden = np.asarray(image).copy()
    hidden[:12] = 255 - hidden[:12]
    assert same(tiny.inpaint(Image.fromarray(hidden), mask, seed=5, feather=1)[0], one)


def test_windows_are_told_their_part_of_a_map_and_their_own_words(make_model):
    model = make_model(T=2, conditions={"text": 6, "map": 3}, condition_dropout=True)
    image, mask = picture(64, 32), np.ones((32, 64), bool)
    kinds = np.repeat([[0, 1]], 32, 1).repeat(32, 0)
    seen = []
    encode = MaskedImage.maps

    def noted(edit, given, count):
        found = encode(edit, given, count)
        seen.append([one.mean() for one in found["semantic_map"]])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedImage, "maps", noted)
        model.inpaint(image, mask, 2, semantic_map=[kinds, 1 - kinds], prompt=["a", "b"])
    assert seen == [[0], [0.5], [1], [1], [0.5], [0]]


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (3, 500)])
def test_pictures_of_odd_sizes_are_edited(tiny, size):
    image, mask = picture(*size), blank(*size)
    mask[0, 0] = True
    result = tiny.inpaint(image, mask, seed=2)[0]
    assert result.size == size
    assert np.asarray(result)[0, 0].tolist() != np.asarray(image)[0, 0].tolist()


def test_results_come_one_by_one(tiny):
    """So that a batch of large pictures is never held."""
    image, mask = picture(50, 41), blank(50, 41)
    mask[5:20, 10:30] = True
    edit = MaskedImage(tiny, image, mask)
    tokens = torch.arange(3 * 16).reshape(3, 4, 4) % 12
    results = list(edit.results(tokens))
    assert [one.shape for one in results] == [(1, 3, 41, 50)] * 3
    assert torch.equal(torch.cat(results), edit.result(tokens))
    assert torch.equal(edit.result(tokens[1:2]), results[1])


def test_of_many_pictures_one_result_is_held_at_a_time(tiny, monkeypatch):
    """Each is a picture before the next is computed: floats take 12 bytes a pixel."""
    alive, most, pictures = [], [], MaskedImage.pictures

    def watched(self, images):
        alive.append(weakref.ref(images))
        most.append(sum(one() is not None for one in alive))
        return pictures(self, images)

    monkeypatch.setattr(MaskedImage, "pictures", watched)
    assert len(tiny.inpaint(picture(), corner(), 4, seed=1)) == len(most) == 4
    assert max(most) <= 2  # the one before is let go when the next is there


def test_a_mask_is_dilated_by_its_context(tiny):
    image, mask = picture(), blank()
    mask[8, 8] = True
    dilations = [MaskedImage(tiny, image, mask, context=c).masked[0] for c in (0, 1, 2)]
    assert [one.sum().item() for one in dilations] == [1, 9, 16]
    for name in ("context", "feather"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number, at least 0"):
            tiny.inpaint(image, mask, **{name: -1})


def test_of_a_map_the_model_is_told_what_it_sees(make_model):
    """A map of the whole picture, of another size than it; the box is the left half."""
    model = make_model(T=3, conditions={"map": 4}, condition_dropout=True)
    image, mask = picture(128, 64), blank(128, 64)
    mask[:, 20:40] = True
    kinds = np.repeat([[0, 1, 2, 2]], 2, axis=0)  # a place is 32×32 pixels
    box = MaskedImage(model, image, mask).box
    assert (box.left, box.top, box.width, box.height) == (0, 0, 64, 64)
    maps = MaskedImage(model, image, mask).maps(kinds, 2)["semantic_map"]
    assert [one.shape for one in maps] == [(32, 32)] * 2
    assert (maps[0][:, :16] == 0).all() and (maps[0][:, 16:] == 1).all()
    whole = model.inpaint(image, mask, semantic_map=kinds, output_type="pt")
    part = model.inpaint(
        image.crop((0, 0, 64, 64)), mask[:, :64], semantic_map=kinds[:, :2], output_type="pt"
    )
    assert torch.equal(whole[..., :64], part)
    with pytest.raises(ValueError, match="semantic_map must be H×W whole numbers, got int64"):
        model.inpaint(image, mask, semantic_map=kinds[0])


def test_beyond_the_picture_the_map_goes_on(make_model):
    box = pasting.Box(-32, 0, 64, 64)
    kinds = np.array([[0, 1], [2, 3]])
    assert box.kinds(kinds, (64, 64), (1, 1)).tolist() == [[0] * 8] * 4 + [[2] * 8] * 4


# ── completions ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("keep", "known"),
    [
        ("lower", np.s_[16:]),
        ("upper", np.s_[:16]),
        ("left", np.s_[:, :16]),
        ("right", np.s_[:, 16:]),
    ],
)
def test_a_half_is_kept_and_the_other_drawn(tiny, keep, known):
    image = picture()
    mask = ~blank()
    mask[known] = False
    for got, expected in zip(
        tiny.complete(image, 2, keep=keep, seed=3),
        tiny.inpaint(image, mask, 2, seed=3),
        strict=True,
    ):
        assert same(got, expected)
        assert np.array_equal(np.asarray(got)[known], np.asarray(image)[known])
    with pytest.raises(ValueError, match="keep must be one of"):
        tiny.complete(image, keep="middle")


@pytest.mark.parametrize(
    "margins",
    [dict(right=10), dict(left=50), dict(top=7, bottom=40), dict(left=1, right=1, top=33)],
)
@pytest.mark.parametrize("size", [(32, 32), (50, 40)])
def test_a_picture_goes_on_beyond_its_borders(tiny, margins, size):
    image = picture(*size)
    one, two = tiny.outpaint(image, 2, seed=5, **margins)
    left, top = margins.get("left", 0), margins.get("top", 0)
    wide = size[0] + left + margins.get("right", 0)
    assert one.size == two.size == (wide, size[1] + top + margins.get("bottom", 0))
    inner = np.s_[top : top + size[1], left : left + size[0]]
    for result in (one, two):
        assert np.array_equal(np.asarray(result)[inner], np.asarray(image))
    assert not same(one, two) and same(tiny.outpaint(image, seed=6, **margins)[0], two)


def test_an_outpainting_that_grows_nowhere_warns(tiny):
    image = picture(40, 40)
    with pytest.warns(UserWarning, match="no side grows: the image is returned as it is"):
        (same,) = tiny.outpaint(image, overlap=4)
    assert np.array_equal(np.asarray(same), np.asarray(image))


def test_a_completion_goes_on_from_what_is_kept_of_a_tall_picture(tiny):
    """Its mask is as large as the crop would be: the crop is larger."""
    mask = other_half("lower", (32, 80))
    edits = [MaskedImage(tiny, picture(32, 80, seed), mask) for seed in (0, 1)]
    assert all(not edit.masked.all() for edit in edits)
    known = ~edits[0].masked
    assert (edits[0].x_1() != edits[1].x_1())[known].any()


def test_outpainting_draws_every_pixel_once_and_nothing_it_was_not_asked_for(tiny):
    image = picture()
    assert same(tiny.outpaint(image)[0], image)
    narrow = tiny.outpaint(image, right=16, seed=1)[0]
    wide = tiny.outpaint(image, right=40, seed=1)[0]
    assert np.array_equal(np.asarray(wide)[:, :48], np.asarray(narrow))
    with pytest.raises(ValueError, match="left must be a whole number, at least 0, got -1"):
        tiny.outpaint(image, left=-1)
    with pytest.raises(ValueError, match="sides must be at most 16384"):
        tiny.outpaint(image, top=20_000)
    with pytest.raises(ValueError, match="at least 4 pixels a side"):
        tiny.outpaint(picture(3, 30), top=2)


@pytest.mark.filterwarnings("ignore:no side grows")
def test_outpainting_is_told_window_by_window(tiny):
    """What is known stays as it is; the last step is the picture, and every image has its words."""
    image = picture()
    *steps, (last, done) = outpaint_steps(tiny, image, left=16, bottom=32, seed=4)
    assert done == 1 and same(last, tiny.outpaint(image, left=16, bottom=32, seed=4)[0])
    assert [part for _, part in steps] == [i / len(steps) for i in range(len(steps))]
    for grown, _ in steps:
        assert np.array_equal(np.asarray(grown)[:32, 16:], np.asarray(image))
        assert not same(grown, last)
    assert [done for _, done in outpaint_steps(tiny, image)] == [1]


@pytest.mark.parametrize("seed", [[4], "4", None, -1, 2**63])
def test_steps_of_an_outpainting_have_one_seed(tiny, seed):
    with pytest.raises(ValueError, match=r"^seed must be a whole number, from 0 to \d+, got"):
        next(outpaint_steps(tiny, picture(), left=16, seed=seed))


@pytest.mark.filterwarnings("ignore:no side grows")
def test_an_overlap_is_drawn_anew_at_the_sides_that_grow(tiny):
    """It is like the margin: no pixel of it reaches the result, transparent or not."""
    image, how = picture(40, 32), dict(left=16, bottom=8, overlap=5, seed=2)
    image.putalpha(picture(40, 32, seed=1).convert("L"))
    kept = np.zeros((32, 40), bool)
    kept[:-5, 5:] = True
    other = Image.fromarray(
        np.where(kept[..., None], image, 255 - np.asarray(image)).astype(np.uint8)
    )
    got, again = (tiny.outpaint(one, **how)[0] for one in (image, other))
    assert same(got, again) and got.size == (56, 40)
    inner = np.asarray(got)[:32, 16:]
    assert np.array_equal(inner[kept], np.asarray(image)[kept])
    assert (inner[~kept][:, 3] == 255).all() and (inner != np.asarray(image))[~kept].any()
    for grown, _ in outpaint_steps(tiny, image, **how):
        assert np.array_equal(np.asarray(grown)[:32, 16:][kept], np.asarray(image)[kept])
    assert same(tiny.outpaint(image, overlap=5)[0], image)  # no side grows
    with pytest.raises(ValueError, match="overlap must be a whole number, from 0 to 8, got 9"):
        tiny.outpaint(image, left=8, overlap=9)


def test_every_image_of_an_outpainting_has_its_own_words(make_model):
    model, image = make_model(T=2, conditions={"class": 4}), picture()
    two = model.outpaint(image, 2, right=32, seed=[9, 9], classes=[1, 3])
    for got, one in zip(two, (1, 3), strict=True):
        assert same(got, model.outpaint(image, right=32, seed=9, classes=one)[0])
    assert not same(*two)
    for classes in ((1, 3), np.array([1, 3])):
        others = model.outpaint(image, 2, right=32, seed=[9, 9], classes=classes)
        assert all(map(same, others, two))
    with pytest.raises(ValueError, match=r"text: one, or 2 of them, got \[1, 2, 3\]"):
        model.outpaint(image, 2, right=16, classes=[1, 2, 3])


def test_a_half_is_that_of_the_upright_picture(tiny, tmp_path):
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    picture(48, 32).save(tmp_path / "turned.jpg", exif=turned)
    image = Image.open(tmp_path / "turned.jpg")
    got = tiny.complete(image, keep="upper", seed=1)[0]
    assert got.size == (32, 48) and np.array_equal(
        np.asarray(got)[:24], np.asarray(to_rgb(image))[:24]
    )


@pytest.mark.parametrize(
    ("image", "mask", "count", "sentence"),
    [
        (None, blank(), 1, "an image must be a PIL image of a pixel at least, got <class 'None"),
        ("a.png", blank(), 1, "an image must be a PIL image of a pixel at least, got <class 'str"),
        (Image.new("RGB", (0, 5)), blank(0, 5), 1, "of a pixel at least, got 0×5"),
        (picture(), blank(), 0, "num_images must be a whole number, at least 1, got 0"),
        (picture(), blank(), "2", "num_images must be a whole number, at least 1, got '2'"),
    ],
)
def test_what_cannot_be_edited_is_one_sentence(tiny, image, mask, count, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny.inpaint(image, mask, count)


def test_the_output_is_what_was_asked_for(tiny):
    image, mask = picture(), corner()
    pil = tiny.inpaint(image, mask, 2, seed=0)
    pt = tiny.inpaint(image, mask, 2, seed=0, output_type="pt")
    as_array = tiny.inpaint(image, mask, 2, seed=0, output_type="np")
    assert pt.shape == (2, 3, 32, 32) and as_array.shape == (2, 32, 32, 3)
    for i in range(2):
        assert np.array_equal(np.round(as_array[i] * 255), np.asarray(pil[i]))
        assert np.allclose(pt[i].permute(1, 2, 0).numpy(), as_array[i])


def test_what_is_added_shows_no_joint(tiny, monkeypatch):
    """Of the frame and of windows: each is painted with light rows where those before it have dark
    ones, and no step between two columns is a third of that."""
    rows = torch.arange(32) % 2 * 2 - 1.0
    stripes = 0.3 * rows[:, None].expand(1, 3, 32, 32)
    signs = itertools.cycle([-1, 1])
    monkeypatch.setattr(ImageBART, "generate", lambda *_: next(signs) * stripes)
    (grown,) = tiny.outpaint(to_pil(stripes)[0], right=40, left=16, output_type="pt")
    steps = (2 * grown).diff(dim=2).abs()
    assert steps.max() < 0.2
    assert (steps.amax((0, 1)) > 0.08).sum() >= 4  # there were four joints
