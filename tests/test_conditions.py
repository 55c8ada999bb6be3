"""Conditions: words become tokens, and absent ones are not attended to."""

import warnings

import numpy as np
import pytest
import torch
from conftest import ALL_CONDITIONS, NAMES, TEXT, tokens_of

from imagebart import ImageBART
from imagebart.conditions import (
    ABSENT,
    CONDITIONS,
    ConditionShape,
    checked,
    drop,
    option_names,
    text_shape,
    text_tokens,
)
from imagebart.data.maps import commonest_kinds
from imagebart.data.text import encode_text
from imagebart.data.tokens import TokenFile, TokenWriter
from imagebart.guidance import encode_condition
from imagebart.options import SamplingOptions, rows

SHAPES = {"class": ConditionShape(3, 1), "text": text_shape(6), "map": ConditionShape(4, 2 * 2)}


# ── what is absent ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("t", [2, 3])
def test_a_conditional_denoiser_without_a_condition_is_the_unconditional_one(make_denoiser, t):
    """With the same weights, whatever stands in the tables of the absent parts."""
    conditional, plain = make_denoiser(t, **ALL_CONDITIONS), make_denoiser(t)
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
def test_padding_of_a_text_is_not_attended_to(make_denoiser, t):
    """Whatever vectors stand at the places behind its end."""
    denoiser = make_denoiser(t, conditions={"text": text_shape(6)})
    x_prev, x_t = torch.randint(12, (2, 1, 16), generator=torch.Generator().manual_seed(0))
    short, cut = text_tokens(["lake"], 6)
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
    ids, _ = text_tokens(["lake!?", ""], 8)
    raw, _ = encode_text(["lake!?"], 8)
    end = raw[0].tolist().index(49407)
    assert torch.equal(ids[0, : end + 1], raw[0, : end + 1])
    assert (ids[0, end + 1 :] == ABSENT).all() and (ids[1] == ABSENT).all()


def test_a_denoiser_trained_without_condition_dropout_must_have_all(make_denoiser):
    denoiser = make_denoiser(2, conditions={"class": 3, "text": text_shape(6)})
    x = torch.zeros(1, 16, dtype=torch.int64)
    text, _ = text_tokens(["lake"], 6)
    denoiser(x, x, torch.cat([torch.tensor([[1]]), text], 1))
    for part in (torch.full((1, 1), ABSENT), torch.tensor([[1]])):
        with pytest.raises(ValueError, match=r"trained to have (class|text) always"):
            denoiser(x, x, torch.cat([part, text if part[0, 0] < 0 else text * 0 - 1], 1))


def test_a_small_table_attends_to_the_pieces_it_knows(make_denoiser):
    denoiser = make_denoiser(2, **ALL_CONDITIONS | dict(conditions={"text": 6}))
    denoiser.know_text(text_tokens(["a lake"], 6)[0])
    x = torch.zeros(1, 16, dtype=torch.int64)
    ids = {text: text_tokens([text], 6)[0] for text in ("lake", "lake volcano", "a", "volcano")}
    assert torch.equal(
        denoiser(x, x, ids["volcano"][:, [0, 1, 2, 3, 4, 5]]),
        denoiser(x, x, ids["a"].where(ids["a"] != ids["a"][0, 1], ABSENT)),
    )
    assert not torch.equal(denoiser(x, x, ids["lake"]), denoiser(x, x, ids["a"]))
    with pytest.raises(ValueError, match="vectors of text must be at least 13, got 8"):
        denoiser.know_text(torch.arange(9)[None])  # beside the four of "a lake"


@pytest.mark.parametrize(
    "shapes, sentence",
    [
        ({"class": ConditionShape(3, 1, 2)}, "vectors of class must be 0"),
        ({"map": dict(vocabulary=4, length=4, vectors=1)}, "vectors of map must be 0"),
        ({"map": ConditionShape(4, 5)}, "length of map must be 4, got 5"),
        ({"depth": ConditionShape(4, 4)}, "must be one of class, text, map, got 'depth'"),
    ],
)
def test_shapes_that_are_no_condition_of_the_table_are_refused(shapes, sentence):
    with pytest.raises(ValueError, match=sentence):
        checked(shapes, (2, 2))


def test_conditions_come_in_the_order_of_the_table():
    given = {"map": ConditionShape(4, 4), "text": text_shape(6, 8), "class": ConditionShape(3, 1)}
    assert list(checked(given, (2, 2)).items()) == [*given.items()][::-1]


# ── words ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "asked, message",
    [
        (dict(classes="laek"), r"names \(\w+, \w+, \w+\), got 'laek': did you mean lake\?"),
        (dict(classes="castle"), r"names \(\w+, \w+, \w+\), got 'castle'$"),
        (dict(classes=3), r"ids in \[0, 3\)"),
        (dict(classes=["lake"]), "one, or 2 of them"),
        (dict(prompt=["a", 3]), "prompt must be text: one, or 2 of them"),
        (dict(prompt=3), "prompt must be text: one, or 2 of them, got 3"),
        (dict(classes=1.5), "classes must be a whole number or text: one, or 2 of them, got 1.5"),
        (dict(guidance=-1.0), "guidance must be a number, at least 0"),
        (dict(guidance=float("nan")), "guidance must be a number, at least 0"),
        (dict(guidance=[1, 2]), "guidance must be one number, or 3"),
        (dict(semantic_map=np.full((4, 4), 4)), r"kinds of semantic_map must lie in \[0, 4\)"),
        (dict(semantic_map=np.zeros((4, 4, 3), int)), "H×W whole numbers"),
        (dict(semantic_map=np.zeros((4, 4))), "H×W whole numbers"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(conditional, asked, message):
    with pytest.raises(ValueError, match=message):
        encode_condition(conditional, 2, **asked)


def test_a_model_refuses_what_it_takes_not(tiny, make_model):
    for asked, message in (
        (dict(prompt="lake"), "takes no text"),
        (dict(negative_prompt="lake"), "takes no text"),
        (dict(classes=0), "takes no class"),
        (dict(semantic_map=np.zeros((4, 4), int)), "takes no map"),
        (dict(guidance=2.0), "trained without condition dropout"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_condition(tiny, 1, **asked)
    assert encode_condition(tiny, 1, prompt="", classes=None).condition is None
    always = make_model(conditions={"class": 3})
    with pytest.raises(ValueError, match="given class always"):
        encode_condition(always, 1)
    with pytest.raises(ValueError, match="trained without condition dropout"):
        encode_condition(always, 1, classes=0, guidance=2.0)


@pytest.mark.parametrize("text", ["\0", "🏔️ 🌊 🌋", "בוקר טוב", "lake " * 10_000, "volcano"])
def test_any_prompt_can_be_read_and_what_is_lost_is_told(conditional, text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        condition = encode_condition(conditional, 1, prompt=text).condition
    message = " ".join(str(one.message) for one in caught)
    assert condition.shape == (1, 1 + 6 + 16)
    assert ("only its first 4 pieces" in message) == (text.startswith("lake") or not text.isascii())
    assert ("never seen" in message) == (not text.startswith(("lake", "\0")))


def test_names_and_default_guidance_travel_with_the_folder(conditional, tmp_path, monkeypatch):
    conditional.save_pretrained(tmp_path / "model")
    again = ImageBART.from_pretrained(tmp_path / "model", device="cpu")
    assert again.names["class"] == NAMES and again.guidance == 1.0
    assert torch.equal(tokens_of(again, prompt=TEXT), tokens_of(conditional, prompt=TEXT))
    monkeypatch.setattr(conditional, "guidance", [1.0, 2.0, 3.0])  # one a scale
    conditional.save_pretrained(tmp_path / "each")
    assert ImageBART.from_pretrained(tmp_path / "each", device="cpu").guidance == [1.0, 2.0, 3.0]


def test_the_options_of_callers_are_those_of_the_table():
    """`options.py` shows and documents what `CONDITIONS` encodes."""
    shown = {name: row for name, row in rows(SamplingOptions).items() if row.option.per == "image"}
    assert shown.keys() == option_names()
    for kind in CONDITIONS.values():
        assert shown[kind.option].one == kind.value
    with pytest.raises(TypeError, match=r"given by classes, .*, got promt"):
        encode_condition(None, 1, promt="lake")


# ── training data ─────────────────────────────────────────────────────────────────────────────


def test_a_map_gives_each_token_what_covers_most_of_it():
    kinds = np.array([[0, 0, 1, 1], [0, 2, 3, 1], [-1, -1, 2, 0], [-1, 3, 2, 0]])
    assert commonest_kinds(kinds, (2, 2)).tolist() == [[0, 1], [-1, 0]]
    assert commonest_kinds(kinds, (4, 4)).tolist() == kinds.tolist()
    assert commonest_kinds(np.array([[1, 2]]), (2, 4)).tolist() == [[1, 1, 2, 2]] * 2
    flat = np.array([[3, 1, 1, 1, 3, 1, 1, 1]])  # coarser than the grid below, finer across
    assert commonest_kinds(flat, (2, 2)).tolist() == [[1, 1]] * 2


def test_of_a_map_the_model_sees_what_it_would_see_of_a_picture(conditional):
    wide = np.array([[1, 1, 0, 0, 0, 0, 2, 2]] * 4)
    for kinds in (wide, wide.T.copy()):
        condition = encode_condition(conditional, 1, semantic_map=kinds).condition
        assert condition[0, -16:].tolist() == [0] * 16
    for thin in (wide[:1, :4], wide[:4, :1], wide[:1]):  # half a place at each end is cut off
        assert encode_condition(conditional, 1, semantic_map=thin).condition[0, -16:].min() >= 0


def test_a_token_file_tells_what_each_image_shows(tmp_path):
    maps = np.arange(12).reshape(3, 2, 2) % 4
    said = {"class": [2, -1, 0], "text": ["lake", "", "a"], "map": maps}
    with TokenWriter(tmp_path / "all", 3, (2, 2), 12) as writer:
        tokens = {name: CONDITIONS[name].tokenise(said[name], (2, 2)) for name in said}
        writer.append(torch.zeros(3, 2, 2, dtype=torch.int64), tokens)
    got = TokenFile(tmp_path / "all").condition(np.array([2, 1]), SHAPES)
    text, _ = text_tokens(["a", ""], 6)
    assert got[:, 0].tolist() == [0, ABSENT]
    assert torch.equal(got[:, 1:7], text)
    assert got[:, 7:].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    with TokenWriter(tmp_path / "none", 1, (2, 2), 12) as writer:
        writer.append(torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="must hold class for this denoiser, got none"):
        TokenFile(tmp_path / "none").condition(np.array([0]), SHAPES)


def test_condition_dropout_drops_whole_parts_with_their_chance():
    condition = torch.ones(4000, 1 + 6 + 4, dtype=torch.int64)
    chances = {"class": 0.5, "text": 0.2, "map": 0.0}
    generator = torch.Generator().manual_seed(0)
    gone = drop(condition, SHAPES, chances, (2, 2), generator) == ABSENT
    parts = dict(zip(chances, gone.split([1, 6, 4], 1), strict=True))
    for name, part in parts.items():
        assert torch.equal(part.any(1), part.all(1))
        assert abs(part.float().mean() - chances[name]) < 0.03
    both = (parts["class"][:, 0] & parts["text"][:, 0]).float().mean()
    assert abs(both - 0.1) < 0.02  # independently


def test_a_map_is_dropped_whole_or_in_a_box():
    shapes = {"map": ConditionShape(3, 48)}
    condition = torch.ones(6000, 48, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    gone = (drop(condition, shapes, {"map": 0.4}, (6, 8), generator) == ABSENT).unflatten(1, (6, 8))
    whole = gone.flatten(1).all(1)
    assert abs(whole.float().mean() - 0.2) < 0.03
    rows, columns = gone.any(2), gone.any(1)
    assert torch.equal(gone, rows[:, :, None] & columns[:, None])  # a box
    for side in (rows, columns):
        assert (side.int().diff(dim=1).abs().sum(1) <= 2).all()  # without a gap
    part = gone[~whole].any(2).any(1).float().mean()
    assert 0.15 < part < 0.2 / 0.8  # a few boxes are too small to hold a place
