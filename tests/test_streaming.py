"""Thousands of images: a batch at a time, cut anywhere, the same images in flat memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagebart import sampling, streaming
from imagebart.conditions import text_tokens
from imagebart.distributed import Ranks, part_of
from imagebart.model import ImageBART
from imagebart.sampling import decode_parallel
from imagebart.streaming import batch_that_fits, bytes_of_an_image

ROOT = Path(__file__).parents[1]
PROMPTS = ["a lake", None, "night", "", "a lake at night", "night", "a lake"]
MAPS = [np.full((8, 8), i % 3) for i in range(6)] + [None]
SAID = [
    dict(),
    dict(seed=[9, 3, 3, 70, 5, 1, 0]),
    dict(prompt=PROMPTS, negative_prompt=PROMPTS[::-1], guidance=[2.0, 1.5]),
    dict(prompt="night", classes=[0, 1, "desert", None, 0, 1, 1], temperature=[0.5, 1.0], seed=4),
    dict(semantic_map=MAPS, classes=1, guidance=3, top_k=5, method="sequential"),
    dict(semantic_map=MAPS[2], negative_prompt="a lake", guidance=2.0),
]


@pytest.fixture(scope="module")
def model(make_model):
    """One that takes all that can be said."""
    model = make_model(T=3, conditions={"class": 2, "text": 6, "map": 3}, condition_dropout=True)
    model.names["class"] = ["lake", "desert"]
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens(["a lake at night"], 6)[0])
    return model


def whole(model, num_images: int, **options) -> torch.Tensor:
    """The images, all of them in one batch."""
    *_, last = model.sample_steps(num_images, **options)
    return model.decode(last.tokens, "pt")


@pytest.mark.parametrize("said", SAID)
def test_images_do_not_depend_on_where_they_are_cut(model, said):
    expected = whole(model, 7, **said)
    assert len(expected.unique(dim=0)) > 3
    for batch in (1, 3, 7, 100):
        stream = list(model.sample_stream(7, batch=batch, output_type="pt", **said))
        assert [len(images) for images in stream] == [
            len(range(7)[k : k + batch]) for k in range(0, 7, batch)
        ]
        assert torch.equal(torch.cat(stream), expected)


@pytest.mark.parametrize("said", SAID)
def test_parts_of_several_processes_are_the_whole(model, said):
    parts = [part_of(7, Ranks(rank, 3, torch.device("cpu"))) for rank in range(3)]
    streams = [model.sample_stream(7, part=part, output_type="pt", **said) for part in parts]
    images = [image for stream in streams for image in stream]
    assert torch.equal(torch.cat(images), whole(model, 7, **said))


@pytest.mark.parametrize("kind", ["pil", "pt", "np"])
def test_sample_is_the_stream_joined(tiny, monkeypatch, kind):
    expected = tiny.decode([*tiny.sample_steps(5, seed=2)][-1].tokens, kind)
    monkeypatch.setattr(streaming, "batch_that_fits", lambda model: 2)
    images = tiny.sample(5, seed=2, output_type=kind)
    assert type(images) is type(expected) and len(images) == 5
    for image, one in zip(images, expected, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(one))


def test_no_more_noise_is_drawn_than_a_batch_needs(tiny, monkeypatch):
    asked, gumbel = [], sampling.gumbel
    monkeypatch.setattr(streaming, "batch_that_fits", lambda model: 4)
    monkeypatch.setattr(
        sampling, "gumbel", lambda seeds, *rest: (asked.append(seeds), gumbel(seeds, *rest))[1]
    )
    tiny.sample(10, seed=50)
    assert [len(seeds) for seeds in asked] == [4] * 6 + [2] * 3
    assert [seeds[0] for seeds in asked] == [50] * 3 + [54] * 3 + [58] * 3


@pytest.mark.parametrize("batch", ["2", 2.5, 0, True])
def test_a_batch_is_a_number_of_images(tiny, batch):
    with pytest.raises(ValueError, match="batch must be a whole number, at least 1, got"):
        list(tiny.sample_stream(4, batch=batch))


@pytest.mark.parametrize(
    "part", [range(5, 8), range(-1, 2), range(2, 5), range(0, 4, 2), range(2, -1), [0, 1], slice(2)]
)
def test_a_part_is_a_stretch_of_the_images(tiny, part):
    with pytest.raises(ValueError, match=r"part must be a range of step 1 in 0\.\.4, got"):
        list(tiny.sample_stream(4, part=part))
    assert list(tiny.sample_stream(4, part=range(4, 4))) == []


MEMORY = """
import resource, sys
from imagebart import ImageBART
model = ImageBART.from_pretrained(sys.argv[1], device="cpu")
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
model.sample(4)
before = peak()
for images in model.sample_stream(100, batch=4):
    pass
print(peak() - before)
"""


def test_what_is_said_is_checked_a_little_at_a_time(model, monkeypatch):
    """What is said of all images once; what differs in small parts, each value once."""
    checked, encode = [], streaming.encode_condition
    monkeypatch.setattr(
        streaming, "encode_condition", lambda m, n, **how: checked.append(n) or encode(m, n, **how)
    )
    for words, sizes in (
        ({}, [1]),
        ({"prompt": "a lake", "semantic_map": MAPS[0], "guidance": 2.0}, [1]),
        ({"prompt": ["a lake", "night"] * 100, "classes": 1}, [2]),
        ({"prompt": ["a lake " + "night " * i for i in range(200)]}, [64, 64, 64, 8]),
    ):
        next(streaming.batches(model, 200, words))
        assert checked == sizes
        checked.clear()
    with pytest.raises(ValueError, match="classes must"):
        next(streaming.batches(model, 200, {"classes": [0] * 199 + [5]}))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
def test_memory_does_not_grow_with_the_number_of_images(make_model, make_vqgan, tmp_path):
    """The noise of 100 images of 64 tokens of 8192 codes is 200 MiB; a batch of four needs 8."""
    small = make_model(T=2, grid=(8, 8))
    vqgan, denoiser = make_vqgan(K=8192, image_size=64), small.denoisers[2]
    diffusion = type(denoiser.diffusion)([1.0, 0.0], 8192)
    denoiser = type(denoiser)(denoiser.config, diffusion, 2)
    ImageBART(vqgan, diffusion, {2: denoiser}).save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50


def test_a_batch_fits_into_an_eighth_of_the_memory(tiny, monkeypatch):
    one = max(map(bytes_of_an_image, tiny.denoisers.values()))
    # four times the noise; two layers, keys and values of 16 places and 16 of the memory, twice
    assert one == 4 * 4 * 16 * 12 + 2 * 2 * 2 * 2 * 16 * 16 * 4
    for fit, images in ((0, 1), (1, 1), (5, 5), (15, 15), (17, 16), (1000, 16)):
        monkeypatch.setattr(streaming, "bytes_of_memory", lambda device, fit=fit: 8 * fit * one + 7)
        assert batch_that_fits(tiny) == images
    monkeypatch.undo()
    assert streaming.bytes_of_memory(tiny.device) > 2**28


@pytest.fixture
def two_at_a_time(tiny, monkeypatch):
    """Memory for two images of `tiny`."""
    most = 2 * streaming.SHARE * max(map(bytes_of_an_image, tiny.denoisers.values()))
    return lambda: monkeypatch.setattr(streaming, "bytes_of_memory", lambda device: most)


@pytest.mark.parametrize("how", [{}, {"process": "refined", "passes": 2}, {"process": "annealed"}])
def test_edits_come_in_batches_that_fit(tiny, two_at_a_time, how):
    image, mask, rows = Image.new("RGB", (32, 32)), np.eye(32, dtype=bool), []

    def decode(denoiser, x_t, *rest, **more):
        rows.append(len(x_t))
        return decode_parallel(denoiser, x_t, *rest, **more)

    how = {"seed": [3, 1, 4, 15, 9], "method": decode, "output_type": "pt", **how}
    together = tiny.inpaint(image, mask, 5, **how)
    assert 5 in rows and max(rows) <= batch_that_fits(tiny)  # or as many particles as fit
    two_at_a_time()
    rows.clear()
    assert torch.equal(tiny.inpaint(image, mask, 5, **how), together)
    assert set(rows) == {2, 1}


def test_edits_with_and_without_a_condition_may_share_a_batch_or_not(make_model, two_at_a_time):
    """The condition of an image turns off its particles, and no other image's."""
    model = make_model(T=4, conditions={"class": 2}, condition_dropout=True)
    image, mask = Image.new("RGB", (32, 32)), np.arange(32)[:, None].repeat(32, 1) < 8
    how = {"classes": [None, None, 1], "seed": 1, "output_type": "pt"}
    together = model.inpaint(image, mask, 3, **how)
    two_at_a_time()
    assert batch_that_fits(model) < 3 and torch.equal(
        model.inpaint(image, mask, 3, **how), together
    )


def test_bits_come_in_batches_that_fit(tiny, two_at_a_time, monkeypatch):
    tokens = torch.randint(12, (5, 4, 4), generator=torch.Generator().manual_seed(0))
    together, rows, denoiser = tiny.bits_per_token_of(tokens, seed=2), [], tiny.denoisers[2]
    two_at_a_time()
    watched = denoiser.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    cut = tiny.bits_per_token_of(tokens, seed=2)
    watched.remove()
    assert rows == [2, 2, 1]
    for t, bits in together.items():
        torch.testing.assert_close(cut[t], bits, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(batch=0), "batch must be a whole number, at least 1, got 0"),
        (dict(seed=[1, 2]), "seed must be one number or 3 of them, got 2"),
        (dict(prompt=["a lake"] * 2), "prompt must be text: one, or 3 of them"),
        (dict(classes=[0, 1, 2]), r"classes must be ids in \[0, 2\)"),
        (dict(output_type="jpg"), "output_type must be one of"),
        (dict(num_images=0), "num_images must be a whole number"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_image(model, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        next(model.sample_stream(**{"num_images": 3, "batch": 1, **options}))
