"""What every test stands on: shapes are checked while tests run, and small random models."""

import os
import random
from functools import wraps
from pathlib import Path
from unittest.mock import patch

# The tensors are small: a second thread would only wait for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import numpy as np
import torch
from beartype import beartype
from hypothesis import Phase, settings

CHECKS = 20_000
"""So many calls of a test are checked. Drawing a whole picture makes more, and the checks would
take as long as it does."""
checks_left = CHECKS


def check_shapes(function):
    """Check the arguments that are tensors: their shapes, against `imagebart.notation`.

    Other arguments are the library's to check, in a ValueError.
    """
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if "Tensor" in str(hint)}
    checked = beartype(function)
    function.__annotations__ = checked.__annotations__ = hints

    @wraps(checked)
    def counted(*args, **kwargs):
        global checks_left
        checks_left -= 1
        if not checks_left:
            jaxtyping.config.update("jaxtyping_disable", True)
        return checked(*args, **kwargs)

    return counted


jaxtyping.install_import_hook("imagebart", f"{__name__}.check_shapes")

import pytest  # noqa: E402
from server import Server  # noqa: E402
from torch import nn  # noqa: E402

from imagebart.conditions import ConditionShape, text_shape, text_tokens  # noqa: E402
from imagebart.data.text import END, START, TEXT_IDS  # noqa: E402
from imagebart.denoiser import Denoiser, DenoiserConfig  # noqa: E402
from imagebart.diffusion import MultinomialDiffusion, geometric  # noqa: E402
from imagebart.model import ImageBART  # noqa: E402
from imagebart.probe import ProbeHeads, save_probe  # noqa: E402
from imagebart.vqgan import VQGAN, VQGANConfig  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
settings.register_profile("stable", derandomize=True, deadline=None, max_examples=150)
settings.register_profile(  # of tests/mutation.py: a failure need not be small
    "quick",
    settings.get_profile("stable"),
    max_examples=15,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("stable")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test begins with the same random numbers, in any order and on any worker, and its
    shapes are checked."""
    global checks_left
    checks_left = CHECKS
    jaxtyping.config.update("jaxtyping_disable", False)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights so large that every input shows in every output it may reach."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data = 2 * noise / p.shape[-1] ** 0.5 if p.ndim > 1 else p.data + 0.2 * noise
    return module.eval().requires_grad_(False)


def condition_of(name: str, number: int | ConditionShape, grid: tuple[int, int]) -> ConditionShape:
    if isinstance(number, ConditionShape):
        return number
    length = {"class": 1, "text": number, "map": grid[0] * grid[1]}[name]
    return text_shape(length, 8) if name == "text" else ConditionShape(number, length)


def new_denoiser(t: int = 2, T: int = 3, K: int = 12, seed: int = 0, **shape) -> Denoiser:
    """One scale with random weights: 4×4 tokens, width 16, unless said otherwise.

    Conditions may be given by one number each: {"class": how many, "text": its length (with vectors
    for eight pieces), "map": how many kinds}.
    """
    small = dict(grid=(4, 4), width=16, heads=2, head_width=8, encoder_depth=1, decoder_depth=2)
    shape = {**small, **shape}
    numbers = shape.get("conditions", {})
    shape["conditions"] = {
        name: condition_of(name, x, shape["grid"]) for name, x in numbers.items()
    }
    config = DenoiserConfig(**shape)
    return lively(Denoiser(config, MultinomialDiffusion(geometric(T), K), t), seed + t)


def new_vqgan(seed: int = 0, **shape) -> VQGAN:
    """A VQGAN with random weights: 32×32 pixels, f = 8, 12 codes, unless said otherwise."""
    small = dict(image_size=32, K=12, embed_dim=4, z_channels=32, channels=32, blocks=1)
    level = dict(multipliers=(1, 1), attention_levels=(), mid_attention=True, patch=4)
    torch.manual_seed(seed)
    vqgan = VQGAN(VQGANConfig(**{**small, **level, **shape}))
    nn.init.normal_(vqgan.quantiser.codebook.weight)
    return vqgan.eval()


def new_model(T: int = 4, seed: int = 0, **shape) -> ImageBART:
    """A whole chain with random weights."""
    vqgan = new_vqgan(seed)
    if shape.get("joint"):
        network = new_denoiser(T, T, vqgan.K, seed, **shape)
        scales = {t: network.at(t) for t in range(2, T + 1)}
    else:
        scales = {t: new_denoiser(t, T, vqgan.K, seed, **shape) for t in range(2, T + 1)}
    return ImageBART(vqgan, scales[2].diffusion, scales)


@pytest.fixture(scope="session")
def make_denoiser():
    return new_denoiser


@pytest.fixture(scope="session")
def make_vqgan():
    return new_vqgan


@pytest.fixture(scope="session")
def make_model():
    return new_model


@pytest.fixture(scope="session")
def tiny():
    """A chain of T = 4 over 4×4 tokens of 12 codes: for tests that only read it."""
    return new_model()


@pytest.fixture(scope="session")
def seeing(tiny):
    """`tiny` with a VQGAN that fits what it paints to known pixels: each shows."""
    vqgan = new_vqgan(known_channels=4)
    vqgan.load_state_dict(tiny.vqgan.state_dict(), strict=False)
    lively(vqgan.known)
    return ImageBART(vqgan, tiny.diffusion, tiny.denoisers)


@pytest.fixture(scope="module")
def model(make_model, tmp_path_factory) -> ImageBART:
    """A small model as it is read from `model.folder`."""
    folder = tmp_path_factory.mktemp("model")
    make_model(T=3).save_pretrained(folder)
    model = ImageBART.from_pretrained(folder, device="cpu")
    model.folder = folder
    return model


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """The page of `model`: it ends in time, with no traceback in its log and no file left."""
    folder = tmp_path_factory.mktemp("files")
    with Server(folder, "--model", str(model.folder)) as server:
        yield server
    assert server.process.returncode == 0
    assert "Traceback" not in server.log.read_text()
    assert not list(folder.glob("imagebart-*"))


NAMES = ("desert", "forest", "lake")
TEXT = "a lake at night"
ALL_CONDITIONS = dict(conditions={"class": 3, "text": 6, "map": 4}, condition_dropout=True)


@pytest.fixture(scope="session")
def conditional():
    """T = 4, by class (one of NAMES), text and map; knows the pieces of TEXT. Only to be read."""
    model = new_model(**ALL_CONDITIONS)
    model.names["class"] = NAMES
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens([TEXT], 6)[0])
    return model


def tokens_of(model: ImageBART, **options) -> torch.Tensor:
    """x_1 of three images."""
    *_, last = model.sample_steps(3, **options)
    return last.tokens


def new_clip(longest: int, vision: dict):
    """A small CLIP with random weights."""
    from transformers import CLIPConfig, CLIPModel

    width = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ids = {"vocab_size": TEXT_IDS, "bos_token_id": START, "eos_token_id": END, "pad_token_id": 0}
    text = {"max_position_embeddings": longest, **ids, **width}
    torch.manual_seed(0)
    shape = {"text_config": text, "vision_config": {**vision, **width}}
    return CLIPModel(CLIPConfig(**shape, projection_dim=16)).eval()


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A CLIP model in a folder, whose longest text has twelve pieces."""
    from transformers import CLIPImageProcessor

    folder = tmp_path_factory.mktemp("clip")
    new_clip(12, {"image_size": 32, "patch_size": 8}).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def probe(tmp_path_factory):
    """The folder of a probe with random weights."""
    folder = tmp_path_factory.mktemp("probe")
    save_probe(new_clip(40, {"image_size": 128, "patch_size": 16}), ProbeHeads(32), folder)
    return folder


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory) -> Path:
    """A folder as torch.hub keeps it, with Inception's weights drawn at random."""

    def drawn(*_, **__) -> dict:
        return {}

    from networks import INCEPTION
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    with (
        patch.object(fidelity, "load_state_dict_from_url", drawn),
        patch.object(nn.Module, "load_state_dict", lambda *_: None),
    ):
        net = fidelity.FeatureExtractorInceptionV3("inception", ["2048"])
    torch.manual_seed(0)
    for name, weight in net.named_parameters():
        if name.endswith("conv.weight"):  # variance must survive a hundred layers
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
    home = tmp_path_factory.mktemp("torch")
    path = home / "hub" / "checkpoints" / INCEPTION
    path.parent.mkdir(parents=True)
    torch.save(net.state_dict(), path)
    return home


# ── the demo ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own_files(monkeypatch, tmp_path):
    """Files of visitors are those of the test."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


@pytest.fixture(scope="module")
def mapped(make_model, tmp_path_factory) -> ImageBART:
    """A model that takes maps and text, and knows the words of "a lake at night"."""
    model = make_model(T=3, conditions={"text": 6, "map": 3}, condition_dropout=True)
    model.names["map"] = ["sky", "water", "grass"]
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens(["a lake at night"], 6)[0])
    model.folder = tmp_path_factory.mktemp("mapped")
    model.save_pretrained(model.folder)
    return model


@pytest.fixture(scope="module")
def mapped_server(mapped, clip, tmp_path_factory):
    """A server of `mapped`, with a CLIP model that ranks."""
    arguments = "--model", str(mapped.folder), "--clip", str(clip)
    with Server(tmp_path_factory.mktemp("mapped-files"), *arguments) as server:
        yield server


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    """A program that calls the endpoints of `server`."""
    from gradio_client import Client

    return Client(server.url, verbose=False, download_files=tmp_path_factory.mktemp("got"))
