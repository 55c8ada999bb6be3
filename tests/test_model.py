"""The whole chain as one object: folders that come back, sentences for those that cannot."""

import copy
import json
import os
import resource
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from imagebart import ImageBART
from imagebart.conditions import ConditionShape
from imagebart.data.text import TEXT_IDS
from imagebart.denoiser import Denoiser, DenoiserConfig
from imagebart.diffusion import MultinomialDiffusion, geometric
from imagebart.editing.process import edit_steps
from imagebart.editing.reimagining import reimagine_steps
from imagebart.fitting import LIMITS
from imagebart.folders import (
    MOST_SCALES,
    load_denoisers,
    load_vqgan,
    read_config,
    save_vqgan,
)
from imagebart.model import require_tokens
from imagebart.sampling import generator_of
from imagebart.vqgan import VQGANConfig


@pytest.fixture
def folder(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    return tmp_path


def load(folder) -> ImageBART:
    return ImageBART.from_pretrained(folder, device="cpu")


def weights(model) -> dict[str, torch.Tensor]:
    return model.state_dict()


def picture(width=32, height=32, seed=0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# ── folders ───────────────────────────────────────────────────────────────────────────────────


def test_a_saved_model_comes_back_bit_for_bit(tiny, folder):
    model = load(folder)
    assert weights(model).keys() == weights(tiny).keys()
    assert all(torch.equal(x, weights(tiny)[name]) for name, x in weights(model).items())
    assert model.diffusion.alpha_bar[1:].tolist() == tiny.diffusion.alpha_bar[1:].tolist()
    assert (model.T, model.K, model.grid, model.image_size) == (4, 12, (4, 4), (32, 32))
    (a,), (b,) = model.sample(seed=3), tiny.sample(seed=3)
    assert a.tobytes() == b.tobytes()
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_weights_stored_in_half_run_in_single_precision(tiny, tmp_path):
    tiny.save_pretrained(tmp_path, dtype=torch.float16)
    stored = load_file(tmp_path / "scale_2.safetensors")
    assert {x.dtype for x in stored.values()} == {torch.float16}
    model = load(tmp_path)
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    for name, x in weights(model).items():
        torch.testing.assert_close(x, weights(tiny)[name], rtol=1e-3, atol=1e-6)
    assert len(model.sample(2)) == 2


def test_a_shrunk_codebook_comes_back(make_vqgan, tmp_path):
    vqgan = make_vqgan()
    vqgan.quantiser.shrink(torch.tensor([0, 3, 4, 9, 11]), torch.Generator().manual_seed(0))
    save_vqgan(vqgan, tmp_path, torch.float16)
    back = load_vqgan(tmp_path)
    assert back.K == 5
    assert torch.equal(back.quantiser.used, vqgan.quantiser.used)
    assert torch.equal(back.quantiser.token_of, vqgan.quantiser.token_of)


@pytest.mark.parametrize("config", [VQGANConfig, DenoiserConfig])
def test_every_size_of_a_configuration_has_a_limit(config):
    sizes = {one.name for one in fields(config) if one.type in (int, tuple[int, ...])}
    assert sizes and sizes <= LIMITS.keys()


def test_a_folder_from_before_a_field_still_loads(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    later = dict(pixel_channels=0, extra_decoder_blocks=0, known_channels=0, quantiser="vector")
    change_config(tmp_path, lambda config: [config["vqgan"].pop(name) for name in later])
    assert load(tmp_path).vqgan.config == replace(tiny.vqgan.config, **later)


def test_layers_at_every_pixel_come_back(make_vqgan, tmp_path):
    vqgan, grid = make_vqgan(pixel_channels=8), torch.randint(12, (1, 4, 4))
    torch.nn.init.normal_(vqgan.last_layer())
    save_vqgan(vqgan, tmp_path)
    assert torch.equal(load_vqgan(tmp_path).eval().decode(grid), vqgan.decode(grid))


def test_what_fits_known_pixels_comes_back(seeing, tmp_path):
    seeing.save_pretrained(tmp_path)
    known, grid = torch.rand(1, 4, 32, 32), torch.randint(12, (1, 4, 4))
    back = load(tmp_path).generate(grid, known)
    assert torch.equal(back, seeing.generate(grid, known))
    assert not torch.equal(back, seeing.generate(grid))


def test_scales_can_be_saved_one_by_one_in_any_order(tiny, tmp_path):
    from imagebart.folders import save_scale

    save_vqgan(tiny.vqgan, tmp_path)
    for t in (4, 2, 3):
        denoiser = tiny.denoisers[t]
        save_scale(denoiser.state_dict(), denoiser.config, tiny.diffusion, t, tmp_path)
    model = load(tmp_path)
    assert all(torch.equal(x, weights(tiny)[name]) for name, x in weights(model).items())


def test_a_shorter_chain_takes_the_place_of_a_longer_one(tiny, make_model, tmp_path):
    """What is not a scale of the chain stays, whatever its name begins with."""
    tiny.save_pretrained(tmp_path)
    others = ("scale_notes.txt", "scale_old.safetensors")
    for name in others:
        (tmp_path / name).write_text("kept")
    short = make_model(T=2, seed=1)
    short.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert all(torch.equal(x, weights(short)[name]) for name, x in weights(model).items())
    left = {path.name for path in tmp_path.glob("scale_*")}
    assert left == {"scale_2.safetensors", *others}


def break_json(folder):
    (folder / "config.json").write_text("{")


def break_kind(folder):
    (folder / "config.json").write_text("[1]")


def break_field(folder):
    change_config(folder, lambda config: config["vqgan"].update(colour="red"))


def break_shape(folder):
    change_config(folder, lambda config: config["denoisers"]["3"].update(width=32))


def break_schedule(folder):
    change_config(folder, lambda config: config.update(alpha_bar=[1.0, 0.5, 0.7, 0.0]))


def break_chain(folder):
    change_config(folder, lambda config: config["denoisers"].pop("3"))


def lose_vqgan(folder):
    (folder / "vqgan.safetensors").unlink()


def lose_scale(folder):
    (folder / "scale_3.safetensors").unlink()


def cut_scale(folder):
    path = folder / "scale_2.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_scale(folder):
    path = folder / "scale_4.safetensors"
    tensors = load_file(path)
    tensors["head.weight"][0, 0] = torch.nan
    save_file(tensors, path)


def swap_scale(folder):
    (folder / "scale_2.safetensors").write_bytes((folder / "scale_4.safetensors").read_bytes())


def change_config(folder, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "damage, says",
    [
        (break_json, "config.json: must be JSON"),
        (break_kind, "config.json must hold"),
        (break_field, "must describe a VQGANConfig"),
        (break_shape, r"scale_3.safetensors: .* must be .*, got"),
        (break_schedule, "alpha_bar must fall from 1 to 0"),
        (break_chain, r"a chain of T = 4 needs scales 2 to 4, got \[2, 4\]"),
        (lose_vqgan, "vqgan.safetensors: must be a file that can be read"),
        (lose_scale, "scale_3.safetensors: must be a file that can be read"),
        (cut_scale, "scale_2.safetensors: must be a whole safetensors file"),
        (spoil_scale, "scale_4.safetensors: weights must be finite, got NaN"),
        (swap_scale, "scale_2.safetensors: .* must be"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_folder_gives_one_sentence(folder, damage, says):
    damage(folder)
    with pytest.raises(ValueError, match=says) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def value_at(*path, value):
    """A change of config.json: this value at the place that `path` names."""

    def change(config):
        *way, last = path
        for name in way:
            config = config[name]
        config[last] = value

    return change


@pytest.mark.parametrize(
    "path, value, says",
    [
        (("alpha_bar",), [1.0, None, 0.0], r"alpha_bar must be finite numbers, got \[1.0, None"),
        (("alpha_bar",), [1.0, 10**400, 0.0], "alpha_bar must be finite numbers"),
        (("alpha_bar",), [1.0, 0.5, 0.5, 0.0], "alpha_bar must fall from 1 to 0 with every step"),
        (("names",), ["x"], r"names must be names for each condition, got \['x'\]"),
        (("names",), {"class": [1]}, "names must be names for each condition, got {'class': "),
        (
            ("denoisers", "2", "conditions"),
            {"class": {"length": 1.5}},
            "conditions must be {name: ",
        ),
        (("denoisers", "2", "conditions"), {"class": {"size": 3}}, "conditions must be {name: "),
        (("denoisers", "2", "conditions"), {"class": {"length": 1}}, "describe a DenoiserConfig"),
        (
            ("denoisers", "2", "conditions"),
            {"depth": {"vocabulary": 3, "length": 1}},
            "a condition must be one of class, text, map, got 'depth'",
        ),
        (("guidance",), None, "guidance must be a finite number, got None"),
        (("guidance",), [1, "2"], r"guidance must be finite numbers, got \[1, '2'\]"),
        (("draws_class",), 1, "draws_class must be true or false, got 1"),
        (("format",), 99, r"config\.json: format must be 1 or 2, got 99"),
        (("format",), 0, "format must be 1 or 2, got 0"),
        (("format",), "2", "format must be 1 or 2, got '2'"),
        (("format",), None, "format must be 1 or 2, got None"),
        (("format",), True, "format must be 1 or 2, got True"),
        (("denoisers",), {"a": {}}, r"denoisers must be \{t: shape\} or .*, got \{'a': \{\}\}"),
        (("denoisers", "101"), {}, r"denoisers must be \{t: shape\}"),
        (("denoisers", "02"), {}, r"denoisers must be \{t: shape\}"),
        (("denoisers", "2"), 5, r"denoisers must be \{t: shape\}"),
        (("denoisers", "2", "width"), 16.0, "width must be a whole number, got 16.0"),
        (("denoisers", "2", "width"), 0, "must describe a DenoiserConfig: sizes must be at least"),
        (("denoisers", "3", "grid"), [4], r"grid must be two whole numbers, got \[4\]"),
        (("denoisers", "3", "grid"), None, "grid must be two whole numbers, got None"),
        (("denoisers", "4", "joint"), 1, "joint must be true or false, got 1"),
        (("denoisers", "4", "output"), ["plain"], r"output must be text, got \['plain'\]"),
        (("vqgan", "patch"), 0, "must describe a VQGANConfig: patch must be .* at least 1, got 0"),
        (("vqgan", "K"), 0, "must describe a VQGANConfig: K must be .* at least 1, got 0"),
        (("vqgan", "K"), True, "K must be a whole number, got True"),
        (("vqgan", "multipliers"), [], "multipliers must be at least one, got none"),
        (("vqgan", "multipliers"), [1, "2"], r"multipliers must be whole numbers, got \[1, '2'\]"),
        (("vqgan", "commitment"), "much", "commitment must be a finite number, got 'much'"),
    ],
)
def test_a_config_that_describes_no_model_gives_one_sentence(folder, path, value, says):
    change_config(folder, value_at(*path, value=value))
    with pytest.raises(ValueError, match=says) as raised:
        load(folder)
    assert "\n" not in str(raised.value)
    assert "config.json" in str(raised.value) or "alpha_bar" in str(raised.value)


def test_a_config_that_says_no_format_is_of_the_latest(tiny, folder):
    change_config(folder, lambda config: config.pop("format"))
    assert load(folder).vqgan.config == tiny.vqgan.config


def test_a_folder_of_an_unknown_format_is_neither_read_nor_written(tiny, make_model, tmp_path):
    for name in ("first", "second"):
        tiny.save_pretrained(tmp_path / name)
    change_config(tmp_path / "first", lambda config: config.update(format=3))
    before, says = files_of(tmp_path / "first"), r"config\.json: format must be 1 or 2, got 3"
    for use in (
        lambda: load_vqgan(tmp_path / "first"),
        lambda: make_model(seed=1).save_pretrained(tmp_path / "first"),
        lambda: tiny.save_pretrained(tmp_path / "second", vqgan_of="first"),
    ):
        with pytest.raises(ValueError, match=says):
            use()
    assert files_of(tmp_path / "first") == before


def test_a_chain_may_have_as_many_scales_as_a_schedule_may_have_steps(folder):
    scales = {str(t): {} for t in range(2, MOST_SCALES + 1)}
    entries = {"denoisers": scales, "alpha_bar": geometric(MOST_SCALES)}
    change_config(folder, lambda config: config.update(entries))
    assert read_config(folder)["denoisers"] == scales


HOSTILE = [
    (("denoisers", "2", "width"), 1_000_000, "width must lie in 0..16384, got 1000000"),
    (("denoisers", "2", "width"), 16_384, r"scale_2\.safetensors: .* must be \(.*16384.*\), got"),
    (("denoisers", "2", "width"), 2**64, "width must lie in 0..16384, got 1844"),
    (("denoisers", "2", "width"), 10**4000, "width must lie in 0..16384, got 1000"),
    (("denoisers", "2", "heads"), -1, "heads must lie in 0..256, got -1"),
    (("denoisers", "4", "decoder_depth"), 10**9, "decoder_depth must lie in 0..64, got 10000"),
    (("denoisers", "4", "decoder_depth"), 64, r"scale_4\.safetensors: .* must be .*, got nothing"),
    (("denoisers", "3", "grid"), [2**40, 2**40], "grid must lie in 0..128, got 1099511627776"),
    (("denoisers", "3", "rotary"), True, r"scale_3\.safetensors: .*, got"),
    (("denoisers", "3", "joint"), True, "joint must be false for scale 3, got true"),
    (("denoisers", "3", "output"), "\x1b[2J" + 8_000_000 * "a", "output must be one of"),
    (("denoisers", "3", "\x1b[2J" + 8_000_000 * "a"), 1, "must describe a DenoiserConfig"),
    (("denoisers", "9" * 5000), {}, r"denoisers must be \{t: shape\}"),
    (("denoisers", "²"), {}, r"denoisers must be \{t: shape\}"),
    (("denoisers", "joint"), {}, r"denoisers must be \{t: shape\}"),
    (("alpha_bar",), 1_000_000 * [1.0], "alpha_bar must be at most 100, got 1000000"),
    (("vqgan", "K"), 2**40, "K must lie in 0..262144, got 1099511627776"),
    (("vqgan", "multipliers"), 1_000_000 * [1], r"multipliers must be whole numbers, got \[1,"),
    (("vqgan", "multipliers"), 1000 * [1], "multipliers must be at most 8, got 1000"),
    (("vqgan", "multipliers"), [10**9], "multipliers must lie in 0..64, got 1000000000"),
    (("vqgan", "blocks"), 16, r"vqgan\.safetensors: .* must be .*, got nothing"),
    (("vqgan",), "..", "vqgan must be its shape or a folder beside this one, got '..'"),
    (("vqgan",), 300 * "a", "vqgan must be its shape or a folder beside this one, got 'aaa"),
    (("names",), {"class": 200_000 * ["a"]}, "names must be names for each condition, got"),
    (("denoisers", "2", "conditions"), {"class": {"vocabulary": 2**40}}, "vocabulary must lie in"),
    (("denoisers", "2", "conditions"), {str(i): {} for i in range(9)}, "must be at most 8, got 9"),
    (("guidance",), -1, "guidance must be a number, at least 0, got -1"),
    (("guidance",), [1.0, -1], "guidance must be a number, at least 0, got -1"),
]


@pytest.mark.parametrize(
    "path, value, says", HOSTILE, ids=[str(row[0][-1])[:20] for row in HOSTILE]
)
def test_a_hostile_config_is_refused_before_it_costs_anything(folder, path, value, says):
    change_config(folder, value_at(*path, value=value))
    start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=says) as raised:
        load(folder)
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # kB
    assert str(raised.value).isprintable() and len(str(raised.value)) < 800


STORED_AS = [torch.float8_e4m3fn, torch.bool, torch.uint8, torch.int64, torch.complex64]


@pytest.mark.parametrize("dtype", STORED_AS, ids=str)
def test_weights_are_floating_point_numbers(folder, dtype):
    path = folder / "scale_3.safetensors"
    save_file({name: x.to(dtype) for name, x in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"scale_3\.safetensors: .* must be BF16 or F16 .*, got"):
        load(folder)


NUMBERS = r"dtype must be one of torch\.float32, torch\.float16, torch\.bfloat16, torch\.float64"


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn, "float16"], ids=str
)
def test_a_model_runs_in_floating_point_numbers(folder, dtype):
    with pytest.raises(ValueError, match=f"{NUMBERS}, got"):
        ImageBART.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, "float16"], ids=str)
def test_a_model_is_stored_in_numbers_that_can_be_read(folder, dtype):
    """One that was stored well stays as it is."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=rf"{NUMBERS}, torch\.int8, got"):
        load(folder).save_pretrained(folder, dtype)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_while_a_model_is_read_no_random_number_moves(folder, monkeypatch):
    """They are those of all threads."""
    seen = []

    def look(*parts):
        seen.append(torch.get_rng_state())
        return load_denoisers(*parts)

    monkeypatch.setattr("imagebart.model.load_denoisers", look)
    before = torch.get_rng_state()
    load(folder)
    for state in (*seen, torch.get_rng_state()):
        assert torch.equal(state, before)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "table, value, says",
    [
        ("used", torch.tensor([0, 3, 12]), "used codes must lie in"),
        ("used", torch.tensor([3, 0, 7]), "used codes must be sorted"),
        ("token_of", torch.full((12,), 3), r"token_of must lie in \[0, 3\), got 3 to 3"),
        ("used", torch.tensor([0.0, 3, 7]), r"quantiser\.used must be I64, got F32"),
        ("token_of", torch.zeros(9, dtype=torch.int64), r"token_of must be \(12,\), got \(9,\)"),
    ],
)
def test_tables_of_tokens_are_checked(make_vqgan, tmp_path, table, value, says):
    vqgan = make_vqgan()
    vqgan.quantiser.shrink(torch.tensor([0, 3, 7]))
    save_vqgan(vqgan, tmp_path)
    path = tmp_path / "vqgan.safetensors"
    save_file({**load_file(path), f"quantiser.{table}": value}, path)
    with pytest.raises(ValueError, match=rf"vqgan\.safetensors: .*{says}"):
        load_vqgan(tmp_path)


TEXT = {"text": ConditionShape(TEXT_IDS, 4, vectors=9)}


def test_rows_of_text_lie_in_their_table(make_model, tmp_path):
    make_model(T=2, conditions=TEXT).save_pretrained(tmp_path)
    path = tmp_path / "scale_2.safetensors"
    tensors = load_file(path)
    tensors["prefix.text.row"][7] = 9
    save_file(tensors, path)
    with pytest.raises(
        ValueError, match=r"scale_2\.safetensors: rows of pieces must lie in \[-1, 9\), got"
    ):
        load(tmp_path)


def test_names_of_classes_are_printable_and_short(folder):
    names = ["\x1b[2J", 1000 * "a", "sea"]
    change_config(folder, value_at("names", value={"class": names, "map": []}))
    first, second, third = load(folder).names["class"]
    assert (first, len(second), third) == (r"\x1b[2J", 200, "sea")


def test_a_joint_model_is_checked_too(make_denoiser, make_vqgan, tmp_path):
    network = make_denoiser(t=4, T=4, joint=True)
    scales = {t: network.at(t) for t in (2, 3, 4)}
    ImageBART(make_vqgan(), network.diffusion, scales).save_pretrained(tmp_path)
    load(tmp_path)
    for path, value in ((("width",), 10**9), (("decoder_depth",), 64), (("joint",), False)):
        config = json.loads((tmp_path / "config.json").read_text())
        change_config(tmp_path, value_at("denoisers", "joint", *path, value=value))
        with pytest.raises(ValueError, match=r"width must|scale_joint\.safetensors: |joint must"):
            load(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(config))
    change_config(tmp_path, value_at("denoisers", "2", value={}))
    with pytest.raises(ValueError, match="denoisers must be"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "vqgan.safetensors", "scale_2.safetensors"])
def test_a_pipe_is_no_file(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=rf"{name}: must be a file that can be read, got no regul"):
        load(folder)


@pytest.mark.parametrize("source", ["./nothing/here", "nowhere", "a/b/c", "~/x", "/no/such/folder"])
def test_a_folder_that_is_not_there_gives_a_sentence(source):
    with pytest.raises(ValueError, match="a model must be a folder or a Hub id owner/name, got"):
        ImageBART.from_pretrained(source)


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: must be a file that can be read"):
        load(tmp_path)


def test_parts_that_do_not_fit_are_refused(tiny, make_denoiser):
    fewer = {t: tiny.denoisers[t] for t in (2, 3)}
    with pytest.raises(ValueError, match=r"a chain of T = 4 needs scales 2 to 4, got \[2, 3\]"):
        ImageBART(tiny.vqgan, tiny.diffusion, fewer)
    diffusion = MultinomialDiffusion(geometric(2), 7)
    with pytest.raises(ValueError, match="K must be the VQGAN's 12, got a diffusion with 7"):
        ImageBART(tiny.vqgan, diffusion, {2: make_denoiser(2, T=2, K=7)})


@pytest.mark.parametrize(
    "t, shape, says",
    [
        (2, {}, "t of scale 3 must be 3, got 2"),
        (3, dict(K=13), "K of scale 3 must be 12, got 13"),
        (
            3,
            dict(T=5),
            r"schedule of scale 3 must be \[1.0, 0.66.*, got \[1.0, 0.75, 0.5, 0.25, 0.0\]",
        ),
        (3, dict(grid=(4, 5)), r"grid of scale 3 must be \(4, 4\), got \(4, 5\)"),
        (3, dict(conditions={"class": 3}), r"conditions of scale 3 must be \{\}, got \{'class': "),
        (3, dict(condition_dropout=True), "condition_dropout of scale 3 must be False, got True"),
    ],
)
def test_scales_that_are_not_of_one_chain_are_refused(tiny, make_denoiser, t, shape, says):
    odd = make_denoiser(t, **{"T": 4, **shape})
    with pytest.raises(ValueError, match=says):
        ImageBART(tiny.vqgan, tiny.diffusion, tiny.denoisers | {3: odd})


@pytest.mark.parametrize(
    "names, says",
    [
        ({"clas": ["a", "b", "c"]}, "names must be of class, text, map, got 'clas'"),
        ({"class": ["a", "b"]}, "names of class must be none or 3, got 2"),
    ],
)
def test_names_that_are_not_of_the_conditions_are_refused(make_model, names, says):
    model = make_model(T=2, conditions={"class": 3})
    parts = model.vqgan, model.diffusion, model.denoisers
    with pytest.raises(ValueError, match=says):
        ImageBART(*parts, names=names)
    assert ImageBART(*parts, names={"class": "abc", "map": []}).names["class"] == ("a", "b", "c")


# ── x_0 ↔ x_1 ─────────────────────────────────────────────────────────────────────────────────


def test_images_become_tokens_and_back(tiny):
    images = [picture(seed=0), picture(48, 40, seed=1), picture().convert("L")]
    tokens = tiny.encode(images)
    assert tokens.shape == (3, 4, 4) and tokens.dtype == torch.int64
    assert torch.equal(tiny.encode(images[1])[0], tokens[1])
    decoded = tiny.decode(tokens)
    assert [(i.size, i.mode) for i in decoded] == [((32, 32), "RGB")] * 3


def test_a_tensor_is_taken_as_it_is(tiny):
    """Values in [0, 1], any multiple of f a side."""
    image = picture()
    tensor = torch.from_numpy(np.asarray(image) / np.float32(255)).permute(2, 0, 1)[None]
    assert torch.equal(tiny.encode(tensor), tiny.encode(image))
    assert tiny.encode(torch.rand(1, 3, 16, 48)).shape == (1, 2, 6)


def test_output_types_say_the_same(tiny):
    tokens = torch.randint(12, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    pil, pt, array = (tiny.decode(tokens, output_type=kind) for kind in ("pil", "pt", "np"))
    assert isinstance(pt, torch.Tensor) and pt.shape == (2, 3, 32, 32)
    assert isinstance(array, np.ndarray) and array.shape == (2, 32, 32, 3)
    assert array.min() >= 0 and array.max() <= 1
    assert np.array_equal(pt.permute(0, 2, 3, 1).numpy(), array)
    for i in range(2):
        assert np.abs(np.asarray(pil[i]) / 255 - array[i]).max() <= 0.5 / 255 + 1e-6


def test_an_image_is_decoded_as_if_alone(tiny, make_vqgan):
    """Bit for bit, at a width where convolutions of several images round differently."""
    model = ImageBART(make_vqgan(channels=96, multipliers=(1, 2)), tiny.diffusion, tiny.denoisers)
    tokens = torch.randint(12, (5, 8, 8), generator=torch.Generator().manual_seed(0))
    together = model.decode(tokens, output_type="pt")
    for i in range(5):
        assert torch.equal(model.decode(tokens[i : i + 1], output_type="pt"), together[i : i + 1])


@pytest.mark.parametrize(
    "tokens, says",
    [
        (torch.full((1, 4, 4), 12), r"tokens must lie in \[0, 12\)"),
        (torch.full((1, 4, 4), -1), r"tokens must lie in \[0, 12\)"),
        (torch.zeros(0, 4, 4, dtype=torch.int64), r"tokens must be \(b, h, w\)"),
    ],
)
def test_what_are_no_tokens_is_refused(tiny, tokens, says):
    for function in (tiny.decode, tiny.bits_per_token_of):
        with pytest.raises(ValueError, match=says):
            function(tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_tokens_are_whole_numbers(dtype):
    with pytest.raises(ValueError, match=f"tokens must be whole numbers, got {dtype}"):
        require_tokens(torch.zeros(1, 4, 4, dtype=dtype), 12)


def test_what_is_no_image_is_refused(tiny):
    with pytest.raises(ValueError, match="images must be b×3×H×W"):
        tiny.encode(torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match="image sides must be multiples of f"):
        tiny.encode(torch.rand(1, 3, 30, 32))
    with pytest.raises(ValueError, match=r"images must be b×3×H×W, at least one, got .*\(0, 3"):
        tiny.encode(torch.rand(0, 3, 32, 32))
    with pytest.raises(ValueError, match="images must be at least one, got none"):
        tiny.encode([])
    for dtype in (torch.uint8, torch.int64, torch.bool):
        with pytest.raises(ValueError, match=f"images must be floating-point .*, got {dtype}"):
            tiny.encode(torch.ones(1, 3, 32, 32, dtype=dtype))
    rounded = torch.full((1, 3, 32, 32), 1.0000002)
    assert torch.equal(tiny.pixels(rounded), torch.ones(1, 3, 32, 32))
    for value in (-0.01, 1.01, torch.nan, torch.inf):
        image = torch.rand(1, 3, 32, 32)
        image[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got"):
            tiny.encode(image)


def test_an_output_type_is_checked_before_the_work(tiny, monkeypatch):
    def work(*_, **__):
        raise AssertionError("work")

    monkeypatch.setattr(ImageBART, "generate", work)
    monkeypatch.setattr(Denoiser, "start", work)
    image, mask, tokens = picture(), np.ones((32, 32), bool), torch.zeros(1, 4, 4, dtype=int)
    for draw in (
        tiny.sample,
        lambda **how: tiny.inpaint(image, mask, **how),
        lambda **how: tiny.complete(image, **how),
        lambda **how: tiny.outpaint(image, left=8, **how),
        lambda **how: tiny.reimagine(image, **how),
        lambda **how: tiny.panorama(64, **how),
        lambda **how: tiny.decode(tokens, **how),
    ):
        with pytest.raises(ValueError, match=r"output_type must be one of .*, got 'jpeg'"):
            draw(output_type="jpeg")


def test_a_model_in_bfloat16_does_all_that_another_does(tiny):
    model, images = copy.deepcopy(tiny).to(torch.bfloat16), [picture(seed=0), picture(seed=1)]
    tokens = model.encode(images)
    assert tokens.shape == (2, 4, 4) and tokens.dtype == torch.int64
    bits = model.bits_per_token(images)
    assert all(value.shape == (2,) and value.isfinite().all() for value in bits.values())
    mask = np.zeros((32, 32), bool)
    mask[8:16, 8:24] = True
    painted = [np.asarray(one) for one in model.inpaint(images[0], mask, 2, seed=1)]
    for one in painted:
        assert one.shape == (32, 32, 3)
        assert np.array_equal(one[~mask], np.asarray(images[0])[~mask])


# ── the bound ─────────────────────────────────────────────────────────────────────────────────


def test_bits_per_token_are_the_losses(tiny):
    """L_t of eq. 7 and 8 on the same draws, from nats to bits, one number an image."""
    images = [picture(seed=i) for i in range(3)]
    bits = tiny.bits_per_token(images, seed=5)
    assert list(bits) == [2, 3, 4]
    x_1 = tiny.encode(images).flatten(1)
    for t, denoiser in tiny.denoisers.items():
        for i, one in enumerate(x_1.split(1)):
            generator = generator_of(5 + i, t, 0, "bound")
            x_prev, x_t = tiny.diffusion.q_sample_pair(one, t, generator)
            nats = tiny.diffusion.loss_t(denoiser(x_prev, x_t), x_t, one, t)
            expected = nats.mean(1) / np.log(2)
            torch.testing.assert_close(bits[t][i : i + 1], expected, rtol=1e-5, atol=1e-6)
    again = tiny.bits_per_token(images, seed=5)
    assert all(torch.equal(bits[t], again[t]) for t in bits)


def test_bits_of_an_image_do_not_depend_on_its_neighbours(tiny):
    images = [picture(seed=i) for i in range(3)]
    together, alone = tiny.bits_per_token(images, seed=5), tiny.bits_per_token(images[1], seed=6)
    for t, bits in together.items():
        torch.testing.assert_close(bits[1:2], alone[t], rtol=1e-5, atol=1e-6)


def test_the_bound_is_that_of_images_of_the_models_size(tiny):
    says = r"tokens must be b×4×4, of images of 32×32 pixels, got shape \(1, 2, 6\)"
    with pytest.raises(ValueError, match=says):
        tiny.bits_per_token(torch.rand(1, 3, 16, 48))


# ── classes ───────────────────────────────────────────────────────────────────────────────────


def test_a_class_decides_and_is_asked_for(make_model):
    model = make_model(T=3, conditions={"class": 3})
    one, two = (model.sample(2, classes=c, seed=0, output_type="pt") for c in (0, [0, 2]))
    assert torch.equal(one[0], two[0]) and not torch.equal(one[1], two[1])
    for classes in (None, 3, -1, [0], [0, 1, 2]):
        with pytest.raises(ValueError, match="classes"):
            model.sample(2, classes=classes)


def test_only_a_model_with_classes_draws_one(tiny):
    parts = tiny.vqgan, tiny.diffusion, tiny.denoisers
    says = "draws_class must be false for a model without classes, got true"
    with pytest.raises(ValueError, match=says):
        ImageBART(*parts, draws_class=True)


@pytest.mark.parametrize(
    "guidance, says",
    [
        (-3.0, "guidance must be a number, at least 0, got -3.0"),
        ([1.0, -3.0, 1.0], "guidance must be a number, at least 0, got -3.0"),
        (None, "guidance must be a number, at least 0, got None"),
        ([1.0, 2.0], "guidance must be one number, or 3 for t = 2 to 4, got"),
    ],
)
def test_guidance_that_no_sample_can_have_is_refused_at_once(conditional, guidance, says):
    parts = conditional.vqgan, conditional.diffusion, conditional.denoisers
    with pytest.raises(ValueError, match=says):
        ImageBART(*parts, guidance=guidance)
    assert ImageBART(*parts, guidance=[1.0, 2.0, 0.0]).guidance == [1.0, 2.0, 0.0]
    for given in (np.float32(2), torch.tensor(2.0), np.full(3, 2.0), [np.float32(2)] * 3):
        assert json.dumps(ImageBART(*parts, guidance=given).guidance) == "2.0"


def test_a_model_that_cannot_be_guided_has_no_guidance_of_its_own(make_model):
    model = make_model(T=3, conditions={"class": 3})
    parts = model.vqgan, model.diffusion, model.denoisers
    with pytest.raises(ValueError, match="guidance must be 1 for a model that was trained without"):
        ImageBART(*parts, guidance=[1.0, 2.0])
    assert ImageBART(*parts, guidance=1).guidance == 1


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=str)
def test_tokens_may_be_of_any_whole_numbers(tiny, dtype):
    x_1 = torch.randint(12, (1, 4, 4), generator=torch.Generator().manual_seed(0))
    masked = torch.ones(1, 4, 4, dtype=torch.bool)
    for results in (
        lambda one: tiny.decode(one, "pt"),
        lambda one: torch.stack([*tiny.bits_per_token_of(one).values()]),
        lambda one: [*edit_steps(tiny, one, masked)][-1].tokens,
        lambda one: [*reimagine_steps(tiny, one)][-1].tokens,
    ):
        assert torch.equal(results(x_1.to(dtype)), results(x_1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_pixels_of_half_precision_are_scaled_in_single(tiny, dtype):
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(tiny.pixels(images), tiny.pixels(images.float()))


def test_the_parts_of_a_model_are_the_callers_own_and_no_longer_learn(make_vqgan, make_denoiser):
    vqgan, denoiser = make_vqgan(), make_denoiser(2, T=2)
    vqgan.train(), denoiser.train().requires_grad_(True)
    model = ImageBART(vqgan, denoiser.diffusion, {2: denoiser})
    assert model.vqgan is vqgan and model.denoisers[2] is denoiser
    for part in (vqgan, denoiser):
        assert not part.training and not any(p.requires_grad for p in part.parameters())


def test_a_folder_may_share_the_vqgan_of_the_one_beside_it(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "first")
    tiny.save_pretrained(tmp_path / "second", vqgan_of="first")
    assert not (tmp_path / "second" / "vqgan.safetensors").exists()
    again = ImageBART.from_pretrained(tmp_path / "second")
    for name, weight in tiny.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_vqgan_that_is_shared_is_the_one_beside_as_it_is_stored_there(tiny, tmp_path, dtype):
    tiny.save_pretrained(tmp_path / "first", dtype)
    stored = load(tmp_path / "first")
    for model in (tiny, stored):
        model.save_pretrained(tmp_path / "second", vqgan_of="first")
        got, expected = weights(load(tmp_path / "second").vqgan), weights(stored.vqgan)
        assert all(torch.equal(got[name], x) for name, x in expected.items())


BESIDE = ["nowhere", "../first", "/first", "..", "", "second"]


@pytest.mark.parametrize("name", BESIDE)
def test_only_a_folder_beside_can_lend_its_vqgan(tiny, tmp_path, name):
    for folder in ("first", "second"):
        tiny.save_pretrained(tmp_path / folder)
    change_config(tmp_path / "second", lambda config: config.update(vqgan=name))
    with pytest.raises(ValueError, match="vqgan must be its shape or a folder beside this one"):
        load(tmp_path / "second")


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", [*BESIDE, "third"])
def test_a_folder_is_left_as_it_is_if_none_can_lend_it_a_vqgan(tiny, make_model, tmp_path, name):
    for folder in ("first", "second"):
        tiny.save_pretrained(tmp_path / folder)
    tiny.save_pretrained(tmp_path / "third", vqgan_of="first")  # which has none itself
    before = files_of(tmp_path / "second")
    with pytest.raises(ValueError, match=r"vqgan_of must be a folder beside|must hold vqgan"):
        make_model(seed=1).save_pretrained(tmp_path / "second", vqgan_of=name)
    assert files_of(tmp_path / "second") == before


def other_shape(folder):
    change_config(folder, lambda config: config["vqgan"].update(commitment=0.5))


def other_code(folder):
    tensors = load_file(folder / "vqgan.safetensors")
    tensors["quantiser.codebook.weight"][3] += 0.01
    save_file(tensors, folder / "vqgan.safetensors")


def one_weight_less(folder):
    tensors = load_file(folder / "vqgan.safetensors")
    tensors.pop("quant_conv.bias")
    save_file(tensors, folder / "vqgan.safetensors")


@pytest.mark.parametrize("change", [other_shape, other_code, one_weight_less])
def test_only_the_same_vqgan_is_shared(tiny, tmp_path, change):
    for folder in ("first", "second"):
        tiny.save_pretrained(tmp_path / folder)
    change(tmp_path / "first")
    before = files_of(tmp_path / "second")
    says = "vqgan_of must be a folder with this model's VQGAN, got 'first'"
    with pytest.raises(ValueError, match=says):
        tiny.save_pretrained(tmp_path / "second", vqgan_of="first")
    assert files_of(tmp_path / "second") == before


def test_a_vqgan_elsewhere_is_refused_though_it_is_there(tiny, tmp_path):
    for folder in ("first", "second"):
        tiny.save_pretrained(tmp_path / folder)
    for elsewhere in (f"../{tmp_path.name}/first", str(tmp_path / "first"), "./first"):
        with pytest.raises(ValueError, match="a folder beside this one"):
            tiny.save_pretrained(tmp_path / "second", vqgan_of=elsewhere)
