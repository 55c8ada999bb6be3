"""What to paint: absent conditions are unseen, guidance leads, and words become tokens."""

import warnings

import numpy as np
import pytest
import torch

from imagebart import ImageBART
from imagebart.data.maps import commonest_kinds
from imagebart.data.text import encode_text
from imagebart.data.tokens import TokenFile, TokenWriter
from imagebart.denoiser import ABSENT, DenoiserConfig
from imagebart.guidance import ask, condition_of, drop, encode_ended, pieces_in
from imagebart.sampling import sample_steps

NAMES = ("desert", "forest", "lake")
SAID = dict(classes=3, text_length=6, text_pieces=8, map_kinds=4, droppable=True)
TEXT = "a lake at night"


@pytest.fixture(scope="module")
def model(make_model) -> ImageBART:
    """T = 4, led by class, text and map; knows the pieces of TEXT."""
    model = make_model(**SAID)
    model.class_names = NAMES
    for denoiser in model.denoisers.values():
        denoiser.know_text(pieces_in([TEXT], 6))
    return model


def tokens_of(model, **options) -> torch.Tensor:
    *_, last = sample_steps(model, 3, **options)
    return last.tokens


# ── what is absent ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("t", [2, 3])
def test_a_denoiser_told_nothing_is_the_unconditional_one(make_denoiser, t):
    """With the same weights, whatever stands in the tables of the absent parts."""
    conditional, plain = make_denoiser(t, **SAID), make_denoiser(t)
    weights = conditional.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    x_prev, x_t = torch.randint(12, (2, 2, 16), generator=torch.Generator().manual_seed(0))
    nothing = torch.full((2, 1 + 6 + 16), ABSENT)
    expected = plain(x_prev, x_t)
    torch.testing.assert_close(conditional(x_prev, x_t, nothing), expected, rtol=0, atol=1e-4)
    decoding, at = conditional.start(x_t, nothing), torch.arange(16).expand(2, 16)
    stepped = conditional.step(x_prev, at, decoding)
    torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("t", [2, 3])
def test_padding_of_a_text_is_not_seen(make_denoiser, t):
    """Whatever vectors stand at the places behind its end."""
    denoiser = make_denoiser(t, text_length=6)
    x_prev, x_t = torch.randint(12, (2, 1, 16), generator=torch.Generator().manual_seed(0))
    short, cut = encode_ended(["lake"], 6)
    assert short.tolist()[0][3:] == [ABSENT] * 3 and cut == [False]
    before = denoiser(x_prev, x_t, short)
    prefix = denoiser.encoder_prefix if denoiser.sees_x_t else denoiser.prefix
    kept = prefix.text.positions.data.clone()
    prefix.text.positions.data[3:] += 100
    assert torch.equal(denoiser(x_prev, x_t, short), before)
    prefix.text.positions.data[:3] += 1
    assert not torch.equal(denoiser(x_prev, x_t, short), before)
    prefix.text.positions.data.copy_(kept)


def test_a_bang_inside_a_text_is_no_padding():
    ids, _ = encode_ended(["lake!?", ""], 8)
    raw, _ = encode_text(["lake!?"], 8)
    end = raw[0].tolist().index(49407)
    assert torch.equal(ids[0, : end + 1], raw[0, : end + 1])
    assert (ids[0, end + 1 :] == ABSENT).all() and (ids[1] == ABSENT).all()


def test_a_denoiser_not_trained_to_drop_refuses_to(make_denoiser):
    denoiser = make_denoiser(2, classes=3, text_length=6)
    x = torch.zeros(1, 16, dtype=torch.int64)
    text, _ = encode_ended(["lake"], 6)
    denoiser(x, x, torch.cat([torch.tensor([[1]]), text], 1))
    for part in (torch.full((1, 1), ABSENT), torch.tensor([[1]])):
        with pytest.raises(ValueError, match=r"trained to have (classes|text) always"):
            denoiser(x, x, torch.cat([part, text if part[0, 0] < 0 else text * 0 - 1], 1))


def test_a_small_table_sees_the_pieces_it_knows(make_denoiser):
    denoiser = make_denoiser(2, **SAID | dict(classes=0, map_kinds=0))
    denoiser.know_text(pieces_in(["a lake"], 6))
    x = torch.zeros(1, 16, dtype=torch.int64)
    ids = {text: encode_ended([text], 6)[0] for text in ("lake", "lake volcano", "a", "volcano")}
    assert torch.equal(
        denoiser(x, x, ids["volcano"][:, [0, 1, 2, 3, 4, 5]]),
        denoiser(x, x, ids["a"].where(ids["a"] != ids["a"][0, 1], ABSENT)),
    )
    assert not torch.equal(denoiser(x, x, ids["lake"]), denoiser(x, x, ids["a"]))
    with pytest.raises(ValueError, match="text_pieces must be at least 9"):
        denoiser.know_text(torch.arange(9))


# ── guidance ──────────────────────────────────────────────────────────────────────────────────


def test_guidance_1_is_conditional_sampling_and_0_is_unconditional(model):
    conditional = tokens_of(model, classes="lake", guidance=1.0)
    assert not torch.equal(conditional, tokens_of(model))
    assert torch.equal(tokens_of(model, classes="lake", guidance=0.0), tokens_of(model))
    assert torch.equal(tokens_of(model, guidance=3.0), tokens_of(model))  # nothing to lead to
    assert torch.equal(conditional, tokens_of(model, classes=[2, 2, 2]))


def test_guidance_leads_the_logits(model):
    """z_against + s·(z - z_against), by hand, at every scale its own s."""
    asked = ask(model, 1, prompt=TEXT, negative_prompt="a", classes="lake", guidance=[2, 3, 1])
    for t, scale in ((2, 2), (3, 3)):
        denoiser = model.denoisers[t]
        x_prev, x_t = torch.randint(12, (2, 1, 16), generator=torch.Generator().manual_seed(t))
        at = torch.arange(16)[None]
        z = denoiser(x_prev, x_t, asked.condition)
        z_against = denoiser(x_prev, x_t, asked.against)
        led = asked.at(denoiser)
        got = led.step(x_prev, at, led.start(x_t, asked.condition))
        torch.testing.assert_close(got, z_against + scale * (z - z_against), rtol=0, atol=1e-3)
    assert asked.at(model.denoisers[4]) is model.denoisers[4]


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


# ── words ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "asked, message",
    [
        (dict(classes="laek"), r"names \(\w+, \w+, \w+\), got 'laek': did you mean lake\?"),
        (dict(classes="castle"), r"names \(\w+, \w+, \w+\), got 'castle'$"),
        (dict(classes=3), r"ids in \[0, 3\)"),
        (dict(classes=["lake"]), "one, or 2 of them"),
        (dict(prompt=["a", 3]), "prompt must be one, or 2 of them"),
        (dict(prompt=3), "prompt must be one, or 2 of them, got 3"),
        (dict(classes=1.5), "classes must be one, or 2 of them, got 1.5"),
        (dict(guidance=-1.0), "guidance must be a number, at least 0"),
        (dict(guidance=float("nan")), "guidance must be a number, at least 0"),
        (dict(guidance=[1, 2]), "guidance must be one number, or 3"),
        (dict(semantic_map=np.full((4, 4), 4)), r"kinds must lie in \[0, 4\)"),
        (dict(semantic_map=np.zeros((4, 4, 3), int)), "H×W whole numbers"),
        (dict(semantic_map=np.zeros((4, 4))), "H×W whole numbers"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(model, asked, message):
    with pytest.raises(ValueError, match=message):
        ask(model, 2, **asked)


def test_a_model_refuses_what_it_takes_not(tiny, make_model):
    for asked, message in (
        (dict(prompt="lake"), "takes no text"),
        (dict(negative_prompt="lake"), "takes no text"),
        (dict(classes=0), "takes no classes"),
        (dict(semantic_map=np.zeros((4, 4), int)), "takes no semantic map"),
        (dict(guidance=2.0), "not trained to drop"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(tiny, 1, **asked)
    assert ask(tiny, 1, prompt="", classes=None).condition is None
    always = make_model(classes=3)
    with pytest.raises(ValueError, match="given classes always"):
        ask(always, 1)
    with pytest.raises(ValueError, match="not trained to drop"):
        ask(always, 1, classes=0, guidance=2.0)


@pytest.mark.parametrize("text", ["\0", "🏔️ 🌊 🌋", "בוקר טוב", "lake " * 10_000, "volcano"])
def test_any_prompt_can_be_read_and_what_is_lost_is_told(model, text):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        condition = ask(model, 1, prompt=text).condition
    told = " ".join(str(one.message) for one in said)
    assert condition.shape == (1, 1 + 6 + 16)
    assert ("only its first 4 pieces" in told) == (text.startswith("lake") or not text.isascii())
    assert ("never seen" in told) == (not text.startswith(("lake", "\0")))


def test_names_and_default_guidance_travel_with_the_folder(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    again = ImageBART.from_pretrained(tmp_path / "model", device="cpu")
    assert again.class_names == list(NAMES) and again.guidance == 1.0 and again.takes_text
    assert torch.equal(tokens_of(again, prompt=TEXT), tokens_of(model, prompt=TEXT))
    monkeypatch.setattr(model, "guidance", [1.0, 2.0, 3.0])  # one a scale
    model.save_pretrained(tmp_path / "each")
    assert ImageBART.from_pretrained(tmp_path / "each", device="cpu").guidance == [1.0, 2.0, 3.0]


# ── training data ─────────────────────────────────────────────────────────────────────────────


def test_a_map_gives_each_token_what_covers_most_of_it():
    kinds = np.array([[0, 0, 1, 1], [0, 2, 3, 1], [-1, -1, 2, 0], [-1, 3, 2, 0]])
    assert commonest_kinds(kinds, (2, 2)).tolist() == [[0, 1], [-1, 0]]
    assert commonest_kinds(kinds, (4, 4)).tolist() == kinds.tolist()
    assert commonest_kinds(np.array([[1, 2]]), (2, 4)).tolist() == [[1, 1, 2, 2]] * 2
    flat = np.array([[3, 1, 1, 1, 3, 1, 1, 1]])  # coarser than the grid below, finer across
    assert commonest_kinds(flat, (2, 2)).tolist() == [[1, 1]] * 2


def test_of_a_map_the_model_sees_what_it_would_see_of_a_picture(model):
    wide = np.array([[1, 1, 0, 0, 0, 0, 2, 2]] * 4)
    assert ask(model, 1, semantic_map=wide).condition[0, -16:].tolist() == [0] * 16
    assert ask(model, 1, semantic_map=wide.T.copy()).condition[0, -16:].tolist() == [0] * 16
    for thin in (wide[:1, :4], wide[:4, :1], wide[:1]):  # half a place at each end is cut off
        assert ask(model, 1, semantic_map=thin).condition[0, -16:].min() >= 0


def test_a_negative_prompt_that_is_not_read_is_told(model):
    with pytest.warns(UserWarning, match="negative_prompt: not read at guidance 1"):
        ask(model, 1, prompt=TEXT, negative_prompt=TEXT, guidance=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(model, 1, prompt=TEXT, negative_prompt=TEXT, guidance=[1, 2, 1])
        ask(model, 1, prompt=TEXT, negative_prompt="", guidance=1)


def test_a_token_file_tells_what_each_image_shows(tmp_path):
    config = DenoiserConfig(grid=(2, 2), **SAID)
    maps = np.arange(12).reshape(3, 2, 2) % 4
    with TokenWriter(tmp_path / "all", 3, (2, 2), 12) as writer:
        writer.append(torch.zeros(3, 2, 2, dtype=torch.int64), [2, -1, 0], ["lake", "", "a"], maps)
    got = condition_of(TokenFile(tmp_path / "all"), np.array([2, 1]), config)
    text, _ = encode_ended(["a", ""], 6)
    assert got[:, 0].tolist() == [0, ABSENT]
    assert torch.equal(got[:, 1:7], text)
    assert got[:, 7:].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    with TokenWriter(tmp_path / "none", 1, (2, 2), 12) as writer:
        writer.append(torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="must hold classes"):
        condition_of(TokenFile(tmp_path / "none"), np.array([0]), config)


def test_condition_dropout_drops_whole_parts_with_their_chance():
    config = DenoiserConfig(grid=(2, 2), **SAID)
    condition = torch.ones(4000, 1 + 6 + 4, dtype=torch.int64)
    chances = {"classes": 0.5, "text": 0.2, "map": 0.0}
    gone = drop(condition, config, chances, torch.Generator().manual_seed(0)) == ABSENT
    parts = dict(zip(chances, gone.split([1, 6, 4], 1), strict=True))
    for name, part in parts.items():
        assert torch.equal(part.any(1), part.all(1))
        assert abs(part.float().mean() - chances[name]) < 0.03
    both = (parts["classes"][:, 0] & parts["text"][:, 0]).float().mean()
    assert abs(both - 0.1) < 0.02  # independently


def test_a_map_is_dropped_whole_or_in_a_box():
    config = DenoiserConfig(grid=(6, 8), map_kinds=3, droppable=True)
    condition = torch.ones(6000, 48, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    gone = (drop(condition, config, {"map": 0.4}, generator) == ABSENT).unflatten(1, (6, 8))
    whole = gone.flatten(1).all(1)
    assert abs(whole.float().mean() - 0.2) < 0.03
    rows, columns = gone.any(2), gone.any(1)
    assert torch.equal(gone, rows[:, :, None] & columns[:, None])  # a box
    for side in (rows, columns):
        assert (side.int().diff(dim=1).abs().sum(1) <= 2).all()  # without a gap
    part = gone[~whole].any(2).any(1).float().mean()
    assert 0.15 < part < 0.2 / 0.8  # a few boxes are too small to hold a place
