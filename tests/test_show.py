"""Pictures say what they are given, and drawing them changes nothing else."""

import inspect
import io

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import repeat
from PIL import Image

from imagebart import show
from imagebart.diffusion import MultinomialDiffusion
from imagebart.editing.pasting import Box
from imagebart.model import ImageBART
from imagebart.sampling import (
    Filter,
    Step,
    decode_parallel,
    decode_sequential,
    gumbel,
    sample_steps,
)

RED, GREEN, BLUE, GREY = (200, 20, 30), (20, 190, 40), (30, 40, 210), (120, 120, 120)
PAINT = torch.tensor([RED, GREEN, BLUE, GREY, (250, 250, 0)], dtype=torch.uint8)


class Painter:
    """A model whose decoder paints the token k as 4×4 pixels of the colour PAINT[k]."""

    T, K = 3, 5

    def decode(self, tokens, output_type="pil"):
        pixels = repeat(PAINT[tokens], "b h w c -> b (h y) (w x) c", y=4, x=4)
        if output_type == "pt":
            return pixels.permute(0, 3, 1, 2).float() / 255
        return [Image.fromarray(image.numpy()) for image in pixels]


def plain(colour, size=(32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


def rgb(code: str) -> tuple[int, int, int]:
    """ "#3a6ea5" as three bytes."""
    return tuple(bytes.fromhex(code[1:]))


def colours_in(picture) -> set:
    """Colours of more than a hundred pixels."""
    image = picture.image if isinstance(picture, show.Picture) else picture
    return {colour for count, colour in image.getcolors(1 << 24) if count > 100}


# ── code ──────────────────────────────────────────────────────────────────────────────────────


def test_source_is_the_code_that_runs():
    code = show.source(MultinomialDiffusion.q_step).text
    assert code.startswith("# imagebart/diffusion.py, eq. 5\ndef q_step(self")
    body = inspect.getsource(MultinomialDiffusion.q_step)
    assert [line.strip() for line in code.splitlines()[1:]] == [
        line.strip() for line in body.splitlines()
    ]


def test_source_sees_through_decorators_and_properties():
    assert "yield step_of" in show.source(sample_steps).text
    assert "def image(self)" in show.source(Framed.image).text


class Framed:
    @property
    def image(self):
        return plain(RED)


def test_source_of_several_functions_keeps_their_order():
    code = show.source(show.strip, show.grid).text
    assert code.index("def strip") < code.index("def grid")
    assert show.source(show.strip, show.grid)._repr_markdown_() == f"```python\n{code}\n```"


def checked_scale(
    tokens: torch.Tensor,
    t: int = 2,
    *,
    most: int = 9,
) -> torch.Tensor:
    """A docstring.   [eq. 12]"""
    from math import sqrt

    if t < 2:
        least = 2
        raise ValueError(f"t must be at least {least}, got {t}")
    for one in (t, most):
        if one != int(one):
            raise ValueError(f"scales must be whole numbers, got {one}")
    for _ in range(2):
        if t > most:
            t = most
    show.framed(plain(RED), [])  # calls that compute stay

    return sqrt(t) * tokens  # as do comments beside code


def test_a_body_is_the_lines_that_compute():
    assert show.source(checked_scale, body=True).text.splitlines()[1:] == [
        "def checked_scale(tokens, t=2, *, most=9):",
        "    for _ in range(2):",
        "        if t > most:",
        "            t = most",
        "    show.framed(plain(RED), [])  # calls that compute stay",
        "    return sqrt(t) * tokens  # as do comments beside code",
    ]


def test_a_body_has_no_check_and_no_decorator():
    code = show.source(ImageBART.decode, body=True).text.splitlines()
    assert code[1:] == [
        'def decode(self, tokens: Grid, output_type: str = "pil") -> Pictures:',
        "    return self.present(self.generate(tokens), output_type)",
    ]
    assert show.source(ImageBART.generate, body=True).text.splitlines()[1].startswith("def gen")


def test_a_long_signature_loses_its_defaults():
    _, signature, *_ = show.source(decode_sequential, body=True).text.splitlines()
    assert signature.startswith("def decode_sequential(denoiser, x_t, noise, choose, condition, ")
    assert len(signature) <= 100


@pytest.mark.parametrize("body", [False, True])
def test_source_names_the_equation(body):
    assert show.source(checked_scale, body=body).text.startswith("# test_show.py, eq. 12\n")
    assert show.source(checked, body=body).text.startswith("# test_show.py\n")


def checked():
    pass


def test_what_is_not_written_in_python_has_no_source():
    with pytest.raises(ValueError, match="written in Python"):
        show.source(len)


# ── images side by side ───────────────────────────────────────────────────────────────────────


def test_a_grid_reads_row_by_row():
    picture = show.grid([plain(c) for c in (RED, GREEN, BLUE, GREY)], columns=2, height=32).image
    step = 32 + show.GAP
    assert picture.size == (32 + step, 32 + step)
    at = [picture.getpixel((x + 16, y + 16)) for y in (0, step) for x in (0, step)]
    assert at == [RED, GREEN, BLUE, GREY]


def test_captions_stand_above_and_cover_nothing():
    picture = show.strip([plain(RED)], ["x₁"], height=32).image
    assert picture.crop((0, picture.height - 32, 32, picture.height)).getcolors() == [(1024, RED)]
    assert picture.crop((0, 0, 32, picture.height - 32)).convert("L").getextrema()[0] < 120


@pytest.mark.parametrize("count", [1, 2, 5, 12])
@pytest.mark.parametrize("size", [(128, 128), (64, 64), (768, 256)])
def test_a_row_is_never_wider_than_the_page(count, size):
    picture = show.strip([plain(RED, size)] * count).image
    assert picture.width <= show.WIDTH and picture.height <= show.HEIGHT


def test_pictures_of_several_widths_share_a_height():
    picture = show.strip([plain(RED, (64, 32)), plain(BLUE)], height=32).image
    assert picture.size == (64 + show.GAP + 32, 32)


def test_captions_must_be_one_an_image():
    with pytest.raises(ValueError, match="captions must be one an image, 2, got 1"):
        show.strip([plain(RED), plain(BLUE)], ["red"])


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="needs an image"):
        show.strip([])


def test_a_chain_is_a_row_an_image_and_a_column_a_scale():
    grids = [torch.tensor([first, second])[:, None, None] for first, second in ((0, 1), (2, 3))]
    steps = [Step(t, x.expand(2, 2, 2), 0.0) for t, x in zip((3, 1), grids, strict=True)]
    picture = show.chain(Painter(), steps, height=32).image
    xs, ys = (16, picture.width - 16), (picture.height - 32 - show.GAP - 16, picture.height - 16)
    assert [picture.getpixel((x, y)) for y in ys for x in xs] == [RED, BLUE, GREEN, GREY]


def test_a_chain_of_no_step_is_refused():
    with pytest.raises(ValueError, match="grid needs an image and a column, got 0 and 0"):
        show.chain(Painter(), [])


def test_scales_are_called_by_their_symbols():
    names = [show.step_name(t, 12) for t in (12, 5, 1)]
    assert names == ["x₁₂ (noise)", "x₅", "x₁ (clean)"]
    assert show.symbol("β", 1234567890) == "β₁₂₃₄₅₆₇₈₉₀"


# ── tokens and masks ──────────────────────────────────────────────────────────────────────────


class Blurred(Painter):
    """Colours run one pixel over the edges of a token."""

    def decode(self, tokens, output_type="pil"):
        sharp = super().decode(tokens, output_type)
        return F.avg_pool2d(sharp, 3, stride=1, padding=1, count_include_pad=False)


@pytest.mark.parametrize("model", [Painter(), Blurred()], ids=["sharp", "blurred"])
def test_codes_have_the_colours_they_decode_to(model):
    assert torch.equal(show.code_colours(model), PAINT)


def test_a_token_map_shows_every_token():
    image = show.tokens(torch.tensor([[0, 1, 2], [3, 3, 0]]), PAINT)
    cell = image.height // 2
    middles = [(cell * x + cell // 2, cell * y + cell // 2) for y in range(2) for x in range(3)]
    assert [image.getpixel(at) for at in middles] == [RED, GREEN, BLUE, GREY, GREY, RED]


@pytest.mark.parametrize(
    "grid, sentence",
    [
        (torch.tensor([[0, 5]]), r"tokens must lie in \[0, 5\), got 0 to 5"),
        (torch.tensor([[-1, 0]]), r"tokens must lie in \[0, 5\), got -1 to 0"),
        (torch.zeros(2, 3, 3, dtype=torch.int64), "one grid"),
    ],
)
def test_tokens_that_are_no_grid_of_codes_are_refused(grid, sentence):
    with pytest.raises(ValueError, match=sentence):
        show.tokens(grid, PAINT)


def test_only_the_mask_is_tinted():
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:20, 4:] = True
    before, after = np.asarray(plain(GREY)), np.asarray(show.mask_overlay(plain(GREY), mask))
    assert np.array_equal((before != after).any(axis=2), mask)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="as large as the image"):
        show.mask_overlay(plain(RED), np.zeros((8, 8), dtype=bool))


def test_a_box_is_framed_where_it_is():
    boxes = Box(0, 0, 64, 64), Box(64, 128, 64, 64)
    pixels = np.asarray(show.framed(plain(GREY, (128, 192)), boxes))
    for box, colour in zip(boxes, show.COLOUR_CYCLE, strict=False):
        rows, columns = (pixels == rgb(colour)).all(2).nonzero()
        assert (rows.min(), rows.max()) == (box.top, box.top + 63)
        assert (columns.min(), columns.max()) == (box.left, box.left + 63)
    assert (pixels[32, 32] == GREY).all() and (pixels[160, 32] == GREY).all()


def test_a_heat_map_goes_from_white_over_blue_to_dark():
    image = show.heat(torch.tensor([[0.0, 1, 2], [-5, 9, 1]]), low=0, high=2)
    cell = image.height // 2
    middles = [(cell * x + cell // 2, cell * y + cell // 2) for y in range(2) for x in range(3)]
    paper, blue, ink = rgb(show.PAPER), rgb(show.COLOUR_CYCLE[0]), rgb(show.INK)
    assert [image.getpixel(at) for at in middles] == [paper, blue, ink, paper, ink, blue]


def test_a_heat_map_reaches_from_the_least_to_the_greatest():
    assert show.heat(torch.tensor([[3, 7]])).getcolors()[0][0] == 256 * 256
    assert colours_in(show.heat(torch.tensor([[3, 7]]))) == {rgb(show.PAPER), rgb(show.INK)}
    assert colours_in(show.heat(torch.eye(2).bool())) == {rgb(show.PAPER), rgb(show.INK)}
    assert colours_in(show.heat(torch.ones(2, 2))) == {rgb(show.PAPER)}


@pytest.mark.parametrize("values", [torch.zeros(3), torch.tensor([[0, torch.nan]])])
def test_what_is_no_grid_of_numbers_has_no_heat_map(values):
    with pytest.raises(ValueError, match="grid of finite numbers"):
        show.heat(values)


# ── numbers ───────────────────────────────────────────────────────────────────────────────────


def test_bars_are_as_high_as_their_values():
    image = np.asarray(show.bars({"a": [1.0], "b": [0.25]}).image)
    blue = (image == rgb(show.COLOUR_CYCLE[0])).all(axis=2)
    heights = blue[:, [image.shape[1] // 4, 3 * image.shape[1] // 4]].sum(axis=0)
    assert heights[1] / heights[0] == pytest.approx(0.25, abs=0.02)


def test_an_axis_that_is_fixed_does_not_follow_its_bars():
    charts = [np.asarray(show.bars({"a": [height]}, top=1).image) for height in (0.25, 0.5)]
    low, high = ((c == rgb(show.COLOUR_CYCLE[0])).all(2).any(1).sum() for c in charts)
    assert low / high == pytest.approx(0.5, abs=0.03)


def test_a_doubling_axis_has_equal_steps():
    x = [1, 2, 4, 8, 16]
    image = np.asarray(show.curves({"a": [0, 1, 0, 1, 0]}, x, doubling=True).image)
    blue = (image == rgb(show.COLOUR_CYCLE[0])).all(2)
    rows = blue.any(1).nonzero()[0]
    high, low = (blue[row].nonzero()[0] for row in (rows.min() + 1, rows.max() - 1))
    assert high.min() + high.max() == pytest.approx(low.min() + low.max(), abs=6)


def test_powers_are_a_straight_line_on_two_logarithmic_axes():
    x = [1, 4, 16, 64]
    image = show.curves({"": [1 / at for at in x]}, x, doubling=True, log=True).image
    rows, columns = (np.asarray(image) == rgb(show.COLOUR_CYCLE[0])).all(2).nonzero()
    line = np.polyval(np.polyfit(columns, rows, 1), columns)
    assert np.abs(line - rows).max() < 6


def test_an_axis_begins_where_it_is_told_to():
    """A line at half of the height of another one stands half as high above the bottom."""
    image = np.asarray(show.curves({"a": [4, 4], "b": [2, 2]}, bottom=0).image)
    plot = image[:, : int(0.7 * image.shape[1])]  # the names stand on the right
    high, low = ((plot == rgb(c)).all(2).nonzero()[0].mean() for c in show.COLOUR_CYCLE[:2])
    axis = (plot == rgb(show.QUIET)).all(2).sum(1).argmax()  # its row
    assert (axis - low) / (axis - high) == pytest.approx(0.5, abs=0.03)


def test_shares_have_no_tick_beyond_1(monkeypatch):
    monkeypatch.setattr(show, "drawn", lambda figure: figure)
    share = [k / 10 for k in range(11)]
    (ax,) = show.curves({"a": share}, share).axes
    low, high = ax.get_xlim()
    ticks = [round(float(tick), 9) for tick in ax.get_xticks() if low <= tick <= high]
    assert ticks == [0, 0.2, 0.4, 0.6, 0.8, 1]


@pytest.mark.parametrize("names, colours", [(None, 1), ("pqr", 3), ("pqrstuvwx", 1)])
def test_a_few_named_bars_have_colours_of_their_own(names, colours):
    house = {rgb(colour) for colour in show.COLOUR_CYCLE}
    chart = show.bars({"": [1] * len(names or "pqr")}, names and list(names))
    assert len(house & colours_in(chart)) == colours


def test_long_names_have_room_under_their_bars():
    short, long = (show.bars({"": [1] * 6}, [name] * 6).image.width for name in ("ab", "overcast"))
    assert short == 320 and long > 6 * 8 * 9


def test_a_short_line_ends_early():
    image = np.asarray(show.curves({"a": [1, 1], "b": [0, 0, 0, 0]}, x=[1, 2, 3, 4]).image)
    plot = image[:, : int(0.75 * image.shape[1])]  # the names stand on the right
    short, long = ((plot == rgb(c)).all(axis=2).nonzero()[1].max() for c in show.COLOUR_CYCLE[:2])
    assert 0.2 * long < short < 0.6 * long


def test_charts_look_the_same_whatever_matplotlib_is_set_to():
    charts = [lambda: show.bars({"a": [1, 2]}), lambda: show.curves({"a": [1, 2]})]
    before = [chart().image for chart in charts]
    with matplotlib.rc_context({"font.size": 20, "axes.titlesize": 20, "axes.spines.top": True}):
        assert [chart().image for chart in charts] == before


def test_figures_fit_the_page():
    many = show.bars({str(k): [0.5, 0.5] for k in range(12)}).image
    assert many.width <= 1200 and many.height <= 250


def test_a_chart_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one chart"):
        show.bars({})


# ── decoding, watched ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("t", [2, 3])
def test_passes_say_when_tokens_settle(make_denoiser, t):
    denoiser, x_t = make_denoiser(t), torch.randint(12, (1, 16))
    noise = gumbel([5], t, 16, 12)
    passes = show.Passes()
    tokens = decode_parallel(denoiser, x_t, noise, Filter(), on_pass=passes)
    assert torch.equal(tokens, decode_parallel(denoiser, x_t, noise, Filter()))

    settled = passes.settled(16)
    assert settled[0] == 1 and settled.max() == len(passes) <= 16
    assert (settled.diff() >= 0).all()
    for at in passes.at[1:]:  # a pass begins at the first token that it settles
        assert settled[at[0, 0]] == settled[at[0, 0] - 1] + 1


def test_a_token_a_pass_settles_a_token_a_pass(make_denoiser):
    passes, given = show.Passes(), (torch.randint(12, (1, 16)), gumbel([5], 2, 16, 12), Filter())
    decode_sequential(make_denoiser(2), *given, on_pass=passes)
    assert passes.settled(16).tolist() == list(range(1, 17))


def test_when_tokens_settle_is_said_of_one_image_only(make_denoiser):
    passes, given = show.Passes(), (torch.zeros(2, 16).long(), gumbel([5, 6], 2, 16, 12), Filter())
    decode_parallel(make_denoiser(2), *given, on_pass=passes)
    with pytest.raises(ValueError, match="settled needs one image, got 2"):
        passes.settled(16)


# ── side effects ──────────────────────────────────────────────────────────────────────────────


@matplotlib.rc_context({"font.size": 20})  # not the house's: a leak of it would show
def test_drawing_changes_no_global_state():
    settings, noise = dict(matplotlib.rcParams), torch.get_rng_state()
    numpy_noise = np.random.get_state()[1].copy()
    show.bars({"": [1]})
    show.curves({"": [1, 2]})
    show.strip([show.tokens(torch.zeros(1, 2, dtype=torch.int64), show.code_colours(Painter()))])
    assert dict(matplotlib.rcParams) == settings
    assert torch.equal(torch.get_rng_state(), noise)
    assert np.array_equal(np.random.get_state()[1], numpy_noise)


CHART, PHOTO = show.bars({"": [1, 2]}).image, Image.effect_noise((64, 64), 60).convert("RGB")


@pytest.mark.parametrize("image, kind", [(CHART, "image/png"), (PHOTO, "image/jpeg")])
def test_a_picture_is_stored_once_charts_without_loss(image, kind):
    bundle = show.Picture(image)._repr_mimebundle_()
    assert {name for name in bundle if name.startswith("image/")} == {kind}
    stored = Image.open(io.BytesIO(bundle[kind])).convert("RGB")
    assert np.array_equal(np.asarray(stored), np.asarray(image)) == (kind == "image/png")
    assert len(bundle[kind]) <= len(show.encoded(image, "PNG", optimize=True))


def test_a_picture_can_be_saved(tmp_path):
    show.strip([plain(RED)], height=32).save(tmp_path / "red.png")
    assert Image.open(tmp_path / "red.png").getcolors() == [(1024, RED)]
