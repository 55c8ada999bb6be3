"""The caller's settings of PyTorch do not change the results, and are left as they were."""

import random
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from imagebart import ImageBART
from imagebart.editing.panorama import panorama_steps
from imagebart.editing.process import edit_steps, refined_steps
from imagebart.isolation import plain_settings

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
MASK = np.eye(32, dtype=bool)


@contextmanager
def changed(setter, value, before):
    setter(value)
    try:
        yield
    finally:
        setter(before)


def seeded():
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    return torch.enable_grad()


WORLDS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: changed(torch.set_default_dtype, torch.float64, torch.float32),
    "float16": lambda: changed(torch.set_default_dtype, torch.float16, torch.float32),
    "another device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic": lambda: changed(torch.use_deterministic_algorithms, True, False),
    "three threads": lambda: changed(torch.set_num_threads, 3, torch.get_num_threads()),
    "seeds": seeded,
}


def settings() -> dict:
    """Everything of the caller's that must stay."""
    return {
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "seeds": (
            bytes(torch.random.default_generator.get_state().numpy()),
            str(np.random.get_state()),  # Python's own is used by what checks shapes in tests
        ),
    }


def drawn(model: ImageBART) -> list:
    """A result of each method."""
    kind = {"output_type": "np"}
    return [
        model.sample(2, seed=1, top_p=0.9, **kind),
        model.inpaint(IMAGE, MASK, seed=1, process="refined", passes=1, feather=1, **kind),
        model.inpaint(IMAGE, MASK, seed=2, process="annealed", **kind),
        model.outpaint(IMAGE, left=8, **kind),
        model.reimagine(IMAGE, **kind),
        model.panorama(40, **kind),
        model.encode(IMAGE).numpy(),
        *(bits.numpy() for bits in model.bits_per_token(IMAGE).values()),
    ]


@pytest.fixture(scope="module")
def expected(tiny):
    return drawn(tiny)


@pytest.mark.parametrize("world", WORLDS)
def test_results_are_the_same_in_every_world_and_the_world_stays(tiny, expected, world):
    with WORLDS[world]():
        before = settings()
        got = drawn(tiny)
        assert settings() == before
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype and equal(one, other)


def equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Bit for bit; bits per token to rounding, since threads share out their products."""
    if one.ndim == 1:
        return np.allclose(one, other, rtol=1e-6, atol=0)
    return np.array_equal(one, other)


@pytest.mark.parametrize("world", WORLDS)
def test_a_model_is_read_alike_in_every_world(tiny, tmp_path, world):
    tiny.save_pretrained(tmp_path)
    with WORLDS[world]():
        before = settings()
        model = ImageBART.from_pretrained(tmp_path, device="cpu")
        assert settings() == before
    parameter = next(model.parameters())
    assert (parameter.dtype, parameter.is_inference()) == (torch.float32, False)
    assert np.array_equal(*(one.sample(output_type="np") for one in (model, tiny)))


@pytest.mark.parametrize("world", ["autocast", "float64", "another device", "inference mode"])
def test_between_two_steps_the_world_is_the_callers(tiny, world):
    x_1 = tiny.encode(IMAGE)
    masked = torch.ones_like(x_1, dtype=torch.bool)
    chains = {
        "sample": lambda: tiny.sample_steps(seed=1),
        "edit": lambda: edit_steps(tiny, x_1, masked, seed=1),
        "refine": lambda: refined_steps(tiny, x_1, masked, seed=1, passes=1),
        "panorama": lambda: panorama_steps(tiny, 40, seed=1),
        "stream": lambda: tiny.sample_stream(2, batch=1, seed=1),
    }
    for chain in chains.values():
        with WORLDS[world]():
            before, steps = settings(), chain()
            for _ in range(2):
                next(steps)
                assert settings() == before
            steps.close()
            assert settings() == before


def test_steps_may_be_taken_in_different_threads(tiny):
    expected = [step.tokens for step in tiny.sample_steps(seed=1)]
    steps, got = tiny.sample_steps(seed=1), []
    for _ in expected:
        thread = threading.Thread(target=lambda: got.append(next(steps).tokens))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            thread.start()
            thread.join()
    assert all(map(torch.equal, got, expected))


def test_the_first_thread_that_ends_does_not_change_the_default_of_the_others():
    with WORLDS["float64"]():
        one, other = plain_settings(), plain_settings()
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float32
        other.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float64


def test_a_refusal_leaves_the_world_as_it_was(tiny):
    with torch.autocast("cpu", dtype=torch.bfloat16), WORLDS["float64"]():
        before = settings()
        with pytest.raises(ValueError, match="temperature must be"):
            tiny.sample(temperature=-1)
        assert settings() == before


def test_autograd_keeps_what_is_drawn(tiny):
    """Tokens and pixels can be learned from: they are no tensors of inference mode."""
    tokens, images = tiny.encode(IMAGE), tiny.sample(1, seed=1, output_type="pt")
    weight = torch.ones((), requires_grad=True)
    (torch.nn.Embedding(tiny.K, 2)(tokens).sum() + (images * weight).sum()).backward()
    assert weight.grad == images.sum() and weight.grad > 0
    for step in tiny.sample_steps(1, seed=1):
        assert not step.tokens.is_inference()
    assert not any(bits.is_inference() for bits in tiny.bits_per_token(IMAGE).values())
