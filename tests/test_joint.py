"""One network for all scales does what a chain of independent ones does."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from imagebart import ImageBART
from imagebart.choice import Filter
from imagebart.conditions import ABSENT
from imagebart.data.text import encode_text
from imagebart.diffusion import MultinomialDiffusion, geometric
from imagebart.sampling import decode_parallel, gumbel, uniform_tokens

CONDITIONS = dict(conditions={"class": 3, "text": 6, "map": 4}, condition_dropout=True)


@pytest.fixture(scope="module", params=[False, True], ids=["map before", "map in place"])
def joint(make_model, request):
    """T = 4 over 4×4 tokens of 12 codes: rotary, with every condition."""
    shape = dict(rotary=True, qk_norm=True, map_in_place=request.param, **CONDITIONS)
    model = make_model(joint=True, **shape)
    model.denoisers[2].know_text(encode_text(["sea", "sky"], 6)[0])
    return model


@pytest.fixture
def folder(joint, tmp_path):
    joint.save_pretrained(tmp_path)
    return tmp_path


def picture(width: int = 32, height: int = 32) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tokens_of(model, method: str = "parallel", **options) -> list[torch.Tensor]:
    return [step.tokens for step in model.sample_steps(2, method=method, **options)]


# ── one set of weights, one file ──────────────────────────────────────────────────────────────


def test_the_weights_are_there_once(joint):
    model = copy.deepcopy(joint)
    network = model.denoisers[2]
    everywhere = {id(p) for p in [*model.vqgan.parameters(), *network.parameters()]}
    assert {id(p) for p in model.parameters()} == everywhere
    model.bfloat16()
    for t, denoiser in model.denoisers.items():
        assert denoiser.t == t and denoiser.head is network.head
        assert {p.dtype for p in denoiser.parameters()} == {torch.bfloat16}
        assert denoiser.decoder.turns.dtype == torch.float32  # they are in no file
    assert joint.denoisers[2].head.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_they_are_saved_once_and_come_back(joint, tmp_path, dtype):
    joint.save_pretrained(tmp_path, dtype)
    names = {path.name for path in tmp_path.glob("*.safetensors")}
    assert names == {"scale_joint.safetensors", "vqgan.safetensors"}
    assert list(json.loads((tmp_path / "config.json").read_text())["denoisers"]) == ["joint"]
    model = ImageBART.from_pretrained(tmp_path, device="cpu")
    assert model.denoisers[2].head is model.denoisers[4].head
    assert model.denoisers[3].config == joint.denoisers[3].config
    if dtype is None:
        for a, b in zip(tokens_of(model), tokens_of(joint), strict=True):
            assert torch.equal(a, b)


def test_it_takes_the_place_of_independent_scales_and_they_of_it(tiny, folder, joint):
    tiny.save_pretrained(folder)
    assert sorted(path.name for path in folder.glob("scale_*")) == [
        f"scale_{t}.safetensors" for t in (2, 3, 4)
    ]
    assert not ImageBART.from_pretrained(folder, device="cpu").denoisers[2].config.joint
    joint.save_pretrained(folder)
    assert [path.name for path in folder.glob("scale_*")] == ["scale_joint.safetensors"]
    assert ImageBART.from_pretrained(folder, device="cpu").denoisers[2].config.joint


def test_rows_that_disagree_with_their_names_are_refused(tiny, folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (row,) = config["denoisers"].values()
    for rows, says in (
        ({"joint": row, "2": row}, "denoisers must be"),
        (
            {"joint": row | {"joint": False, "map_in_place": False}},
            "joint must be true for scale joint, got false",
        ),
        ({"2": row}, "joint must be false for scale 2, got true"),
    ):
        path.write_text(json.dumps(config | {"denoisers": rows}))
        with pytest.raises(ValueError, match=says):
            ImageBART.from_pretrained(folder)


def test_two_networks_are_no_joint_one(joint, make_denoiser):
    other = make_denoiser(4, T=4, seed=1, **vars(joint.denoisers[4].config)).at(3)
    with pytest.raises(ValueError, match="scale 3 must share the joint network's weights"):
        ImageBART(joint.vqgan, joint.diffusion, joint.denoisers | {3: other})
    alone = make_denoiser(3, T=4, **CONDITIONS)
    with pytest.raises(ValueError, match="joint of scale 3 must be True, got False"):
        ImageBART(joint.vqgan, joint.diffusion, joint.denoisers | {3: alone})
    with pytest.raises(ValueError, match="only a joint network serves every scale"):
        alone.at(2)


# ── it does what others do ────────────────────────────────────────────────────────────────────

WORDS = dict(classes=1, prompt="sea", guidance=2.0)


@pytest.mark.parametrize("options", [{}, WORDS, dict(semantic_map=np.ones((4, 4), int), top_k=5)])
def test_both_ways_of_decoding_give_the_same_tokens(joint, options):
    ways = (tokens_of(joint, method, seed=5, **options) for method in ("parallel", "sequential"))
    for a, b in zip(*ways, strict=True):
        assert torch.equal(a, b)


def test_greedy_decoding_is_the_argmax_of_teacher_forcing(joint):
    """Whatever x_t is: each token is the likeliest given those before it."""
    condition, greedy = torch.full((2, 1 + 6 + 16), -1), Filter(temperature=0.0)
    x_t = uniform_tokens([0, 1], 4, 16, joint.K)
    for t, denoiser in joint.denoisers.items():
        noise = gumbel([0, 1], t, 16, joint.K)
        x_prev = decode_parallel(denoiser, x_t, noise, greedy, condition)
        assert torch.equal(denoiser(x_prev, x_t, condition).argmax(-1), x_prev)


def test_one_seed_is_one_picture_in_any_company(joint):
    (alone,) = joint.sample(1, seed=8, **WORDS)
    assert joint.sample(3, seed=7, **WORDS)[1].tobytes() == alone.tobytes()


@pytest.mark.parametrize("process", ["single", "annealed", "refined"])
def test_known_pixels_survive_an_edit(joint, process):
    image, mask = picture(), np.zeros((32, 32), bool)
    mask[8:24, 16:] = True
    methods = ("parallel", "sequential")
    first, second = (
        np.asarray(joint.inpaint(image, mask, process=process, method=method)[0])
        for method in methods
    )
    assert (first[~mask] == np.asarray(image)[~mask]).all()
    assert (first == second).all() and (first[mask] != np.asarray(image)[mask]).any()


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_it_draws_wide_pictures(joint, mode):
    (image,) = joint.panorama(48, mode=mode, prompts=["sea", "sky"], guidance=2.0)
    assert image.size == (48, 32)


def test_its_bound_is_that_of_each_scale(joint):
    x_1 = torch.randint(12, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    bits = joint.bits_per_token_of(x_1)
    assert list(bits) == [2, 3, 4]
    for t, denoiser in joint.denoisers.items():
        x_prev, x_t = joint._forgotten(x_1.flatten(1), t, [0, 1])
        losses = denoiser.loss(x_prev, x_t, x_1.flatten(1), torch.full((2, 23), -1))
        torch.testing.assert_close(bits[t], losses.mean(1) / np.log(2))


# ── a map in place ────────────────────────────────────────────────────────────────────────────


def test_a_map_in_place_is_added_where_it_lies(make_denoiser):
    """To x_t and to what is predicted next; nothing stands before them for it."""
    network = make_denoiser(3, joint=True, map_in_place=True, **CONDITIONS)
    plain = make_denoiser(3, joint=True, **CONDITIONS | {"conditions": {"class": 3, "text": 6}})
    own = network.state_dict()
    of_x_t, of_next = own.pop("map_vectors.weight"), own.pop("next_map_vectors.weight")
    plain.load_state_dict(own)
    assert of_x_t.shape == of_next.shape == (1 + 4, 16)
    generator = torch.Generator().manual_seed(0)
    x_prev, x_t = torch.randint(12, (2, 2, 16), generator=generator)
    others, kinds = torch.full((2, 7), ABSENT), torch.arange(32).reshape(2, 16) % 5 - 1
    f = network(x_prev, x_t, torch.cat([others, kinds], 1))
    read, written = plain.noisy_positions().clone(), plain.positions().clone()
    for row in range(2):
        order = [{ABSENT: 0, 0: 1, 1: 2, 2: 3, 3: 4}[int(kind)] for kind in kinds[row]]
        plain.noisy_positions.forward = lambda order=order: read + of_x_t[order]
        plain.positions.forward = lambda order=order: written + of_next[order]
        expected = plain(x_prev[row : row + 1], x_t[row : row + 1], others[:1])
        torch.testing.assert_close(f[row], expected[0])


@pytest.mark.parametrize("end", [0, 9])
def test_rows_that_are_kept_keep_their_maps(make_denoiser, end):
    network = make_denoiser(3, joint=True, map_in_place=True, **CONDITIONS)
    generator = torch.Generator().manual_seed(0)
    x_prev, x_t = torch.randint(12, (2, 3, 16), generator=generator)
    condition = torch.randint(-1, 3, (3, 7 + 16), generator=generator)
    state, rows = network.start(x_t, condition), torch.tensor([False, True, True])
    network.read(x_prev, end, state)
    network.keep(rows, state)
    got = network.step(x_prev[rows], torch.arange(end, 16).expand(2, -1), state)
    expected = network(x_prev, x_t, condition)[rows, end:]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [dict(joint=False, **CONDITIONS), dict(joint=True)])
def test_only_a_joint_network_with_a_map_has_it_in_place(make_denoiser, shape):
    with pytest.raises(ValueError, match="map_in_place must be of a joint network with a map"):
        make_denoiser(map_in_place=True, **shape)


def test_a_schedule_with_one_scale_is_a_joint_network_too(make_denoiser, joint):
    network = make_denoiser(2, T=2, joint=True, rotary=True)
    model = ImageBART(joint.vqgan, MultinomialDiffusion(geometric(2), 12), {2: network})
    assert len(model.sample(1)) == 1
