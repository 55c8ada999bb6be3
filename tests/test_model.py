"""The whole chain as one object: folders that come back, sentences for those that cannot."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from imagebart import ImageBART
from imagebart.diffusion import MultinomialDiffusion, geometric
from imagebart.model import load_vqgan, save_vqgan


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


def test_a_folder_from_before_a_field_still_loads(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    change_config(
        tmp_path, lambda config: [config["vqgan"].pop(name) for name in ("fine", "deeper")]
    )
    assert load(tmp_path).vqgan.config == replace(tiny.vqgan.config, fine=0, deeper=0)


def test_layers_at_every_pixel_come_back(make_vqgan, tmp_path):
    vqgan, grid = make_vqgan(fine=8), torch.randint(12, (1, 4, 4))
    torch.nn.init.normal_(vqgan.last_layer())
    save_vqgan(vqgan, tmp_path)
    assert torch.equal(load_vqgan(tmp_path).eval().decode(grid), vqgan.decode(grid))


def test_scales_can_be_saved_one_by_one_in_any_order(tiny, tmp_path):
    from imagebart.model import save_scale

    save_vqgan(tiny.vqgan, tmp_path)
    for t in (4, 2, 3):
        denoiser = tiny.denoisers[t]
        save_scale(denoiser.state_dict(), denoiser.config, tiny.diffusion, t, tmp_path)
    model = load(tmp_path)
    assert all(torch.equal(x, weights(tiny)[name]) for name, x in weights(model).items())


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
    with pytest.raises(ValueError, match=says):
        tiny.decode(tokens)


def test_what_is_no_image_is_refused(tiny):
    with pytest.raises(ValueError, match="images must be b×3×H×W"):
        tiny.encode(torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match="image sides must be multiples of f"):
        tiny.encode(torch.rand(1, 3, 30, 32))
    with pytest.raises(ValueError, match=r"output_type must be one of .*, got 'jpeg'"):
        tiny.sample(output_type="jpeg")


# ── the bound ─────────────────────────────────────────────────────────────────────────────────


def test_bits_per_token_are_the_losses(tiny):
    """L_t of eq. 7 and 8 on the same draws, from nats to bits, one number an image."""
    images = [picture(seed=i) for i in range(3)]
    bits = tiny.bits_per_token(images, seed=5)
    assert list(bits) == [2, 3, 4]
    x_1 = tiny.encode(images).flatten(1)
    generator = torch.Generator().manual_seed(5)
    for t, denoiser in tiny.denoisers.items():
        x_prev, x_t = tiny.diffusion.q_sample_pair(x_1, t, generator)
        nats = tiny.diffusion.loss_t(denoiser(x_prev, x_t), x_t, x_1, t)
        torch.testing.assert_close(bits[t], nats.mean(1) / np.log(2), rtol=1e-5, atol=1e-6)
    again = tiny.bits_per_token(images, seed=5)
    assert all(torch.equal(bits[t], again[t]) for t in bits)


# ── classes ───────────────────────────────────────────────────────────────────────────────────


def test_a_class_decides_and_is_asked_for(make_model):
    model = make_model(T=3, classes=3)
    one, two = (model.sample(2, classes=c, seed=0, output_type="pt") for c in (0, [0, 2]))
    assert torch.equal(one[0], two[0]) and not torch.equal(one[1], two[1])
    for classes in (None, 3, -1, [0], [0, 1, 2]):
        with pytest.raises(ValueError, match="classes"):
            model.sample(2, classes=classes)


def test_a_folder_may_share_the_vqgan_of_the_one_beside_it(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "first")
    tiny.save_pretrained(tmp_path / "second", vqgan_of="first")
    assert not (tmp_path / "second" / "vqgan.safetensors").exists()
    again = ImageBART.from_pretrained(tmp_path / "second")
    for name, weight in tiny.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


@pytest.mark.parametrize("name", ["nowhere", "../first", "/first", "..", ""])
def test_only_a_folder_beside_can_lend_its_vqgan(tiny, tmp_path, name):
    for folder in ("first", "second"):
        tiny.save_pretrained(tmp_path / folder)
    with pytest.raises(ValueError, match="vqgan must be its shape or a folder beside this one"):
        tiny.save_pretrained(tmp_path / "second", vqgan_of=name)
    with pytest.raises(ValueError, match="vqgan must be its shape or a folder beside this one"):
        ImageBART.from_pretrained(tmp_path / "second")


def test_a_vqgan_elsewhere_is_refused_though_it_is_there(tiny, tmp_path):
    for folder in ("first", "second"):
        tiny.save_pretrained(tmp_path / folder)
    for elsewhere in (f"../{tmp_path.name}/first", str(tmp_path / "first"), "./first"):
        with pytest.raises(ValueError, match="a folder beside this one"):
            tiny.save_pretrained(tmp_path / "second", vqgan_of=elsewhere)
