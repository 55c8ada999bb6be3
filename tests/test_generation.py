"""The figures of eval/generation.py are what their definitions say, on any number of ranks.

The networks have random weights, in files placed where people put the published ones.
"""

import gzip
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import generation
import metrics
import numpy as np
import pytest
import scipy.linalg
import torch
import torch.distributed as dist
from generation import Config
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch_fidelity import feature_extractor_inceptionv3 as fidelity
from torchmetrics.image.fid import NoTrainInceptionV3
from torchmetrics.image.kid import poly_mmd
from torchmetrics.multimodal import CLIPScore
from transformers import CLIPProcessor, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from imagebart import ImageBART
from imagebart.conditions import ConditionShape
from imagebart.data.images import ImageFolder
from imagebart.data.text import MERGES, START
from imagebart.distributed import Ranks, part_of, split
from imagebart.ranking import CLIP

ROOT = Path(__file__).parents[1]
EVAL = ROOT / "eval"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
N = 11  # over two ranks in batches of 5: one batch there, two here


# ------------------------------------------------------------------------------------------------
# A small world


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory) -> Path:
    """A folder as torch.hub keeps it, with Inception's weights drawn at random."""

    def drawn(*_, **__) -> dict:
        return {}

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
    path = home / "hub" / "checkpoints" / metrics.INCEPTION
    path.parent.mkdir(parents=True)
    torch.save(net.state_dict(), path)
    return home


@pytest.fixture(autouse=True)
def at_home(torch_home, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.chdir(tmp_path)


def paint(folder: Path, n: int, seed: int, size: int = 48) -> Path:
    """n pictures of coloured blocks, each with its caption."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(n):
        blocks = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        blocks.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"blocks {i}\n")
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> tuple[str, str]:
    """Pictures to measure, and a reference of as many."""
    root = tmp_path_factory.mktemp("pictures")
    return str(paint(root / "measured", N, seed=1)), str(paint(root / "real", N, seed=2))


@pytest.fixture(scope="session")
def config(folders) -> Config:
    return Config(images=Path(folders[0]), reference=folders[1], batch=5, device="cpu")


@pytest.fixture(scope="session")
def model(make_model, tmp_path_factory) -> str:
    """The folder of a class model with random weights: pictures of 32×32 in three classes."""
    folder = tmp_path_factory.mktemp("model")
    make_model(T=3, conditions={"class": 3}).save_pretrained(folder)
    return str(folder)


def run(config: Config) -> dict:
    generation.main(config)
    return json.loads(config.out.read_text())


def numbers(record: dict, metric: str) -> dict[str, float]:
    return {key: value for key, value in record["metrics"][metric].items() if key != "name"}


def pixels(folder: str) -> torch.Tensor:
    """uint8 b 3 H W of a folder, in order."""
    files = [Path(folder) / f"{i}.png" for i in range(N)]
    return torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in files])


def frechet(mu_1, sigma_1, mu_2, sigma_2) -> float:
    """FID as its paper has it, with scipy's matrix square root."""
    root = scipy.linalg.sqrtm(sigma_1 @ sigma_2).real
    return float(np.sum((mu_1 - mu_2) ** 2) + np.trace(sigma_1 + sigma_2 - 2 * root))


class Narrow(nn.Module):
    """Stands for Inception where 2048 features are too many: 12, the colours of 2×2 corners."""

    sha256 = "narrow"

    def __init__(self, path=None):
        super().__init__()

    def forward(self, images):
        features = F.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return features, 9 * features[:, :10]


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(metrics, "Inception", Narrow)
    monkeypatch.setattr(metrics.Precomputed, "num_features", 12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of tiny products: threads would only wait for each other
    yield
    torch.set_num_threads(threads)


def blocks(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shift = 40 * seed
    return torch.randint(shift, shift + 100, (n, 3, 2, 2), generator=generator, dtype=torch.uint8)


def scored(*names: str, n: int = 400, n_real: int | None = None) -> metrics.ImageMetrics:
    scorer = metrics.ImageMetrics(names, ALONE)
    scorer.update(blocks(n_real or n, seed=2), real=True)
    for part in blocks(n, seed=1).split(37):
        scorer.update(part)
    scorer.sync()
    return scorer


# ------------------------------------------------------------------------------------------------
# The definitions


def test_fid_is_the_distance_of_two_gaussians(narrow):
    real, fake = (blocks(400, seed).flatten(1).numpy() / 255 for seed in (2, 1))
    expected = frechet(fake.mean(0), np.cov(fake.T), real.mean(0), np.cov(real.T))
    scorer = scored("fid")
    result = scorer.compute(seed=0)["fid"]
    assert result["name"] == "FID@400"
    assert result["value"] == pytest.approx(expected, rel=1e-6)
    assert result["value"] == pytest.approx(float(scorer.metrics["fid"].compute()), rel=1e-5)


def test_fid_of_few_pictures_is_as_exact_as_of_many(narrow):
    real, fake = (blocks(7, seed).flatten(1).double() / 255 for seed in (2, 1))
    scorer = scored("fid", n=7)  # covariances of rank 6 in 12 dimensions
    a, b = ((f - f.mean(0)) / 6**0.5 for f in (fake, real))
    overlap = torch.linalg.svdvals(a @ b.T).sum()  # tr (Σ₁ Σ₂)^½ without the root of a matrix
    expected = (fake.mean(0) - real.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    value = scorer.compute(seed=0)["fid"]["value"]
    assert value == pytest.approx(float(expected - 2 * overlap), rel=1e-6)


def test_inception_score_is_the_information_about_the_class(narrow):
    logits = 9 * blocks(400, seed=1).flatten(1)[:, :10].double() / 255
    p = logits[torch.randperm(400, generator=torch.Generator().manual_seed(5))].softmax(1)
    parts = [(q * (q.log() - q.mean(0).log())).sum(1).mean().exp() for q in p.chunk(10)]
    result = scored("is").compute(seed=5)["is"]
    assert result["value"] == pytest.approx(float(torch.stack(parts).mean()), rel=1e-4)
    assert result["std"] == pytest.approx(float(torch.stack(parts).std()), rel=1e-3)


def test_kid_is_near_the_discrepancy_of_the_whole_sets(narrow):
    real, fake = (blocks(400, seed).flatten(1).float() / 255 for seed in (2, 1))
    result = scored("kid").compute(seed=0)["kid"]
    assert result["subset_size"] == 200
    # The mean over 100 subsets is unbiased; 4 standard errors of independent subsets.
    assert abs(result["value"] - float(poly_mmd(real, fake))) < 0.4 * result["std"]


def test_the_scores_depend_on_the_seed_and_on_no_other_draw(narrow):
    scorer = scored("is", "kid")
    first = scorer.compute(seed=1)
    torch.rand(99)
    scorer = scored("kid", "is")
    assert scorer.compute(seed=1) == first
    assert scored("is", "kid").compute(seed=2)["kid"] != first["kid"]


def test_only_ten_thousand_pictures_make_a_fid_without_its_number(narrow):
    assert scored("fid", n=9_999).compute(seed=0)["fid"]["name"] == "FID@9999"
    assert scored("fid", n=10_000, n_real=99).compute(seed=0)["fid"]["name"] == "FID@99"
    assert scored("fid", n=10_000).compute(seed=0)["fid"]["name"] == "FID"


def test_statistics_stand_for_their_pictures(narrow, tmp_path):
    whole = scored("fid")
    whole.save_stats(tmp_path / "real.npz")
    with np.load(tmp_path / "real.npz") as file:  # other projects' files know no more than this
        np.savez(tmp_path / "theirs.npz", mu=file["mu"], sigma=file["sigma"])
        np.savez(tmp_path / "others.npz", **{**file, "inception": "another file"})

    def score_with(name: str) -> dict:
        scorer = metrics.ImageMetrics(["fid"], ALONE)
        scorer.read_stats(tmp_path / name)
        scorer.update(blocks(400, seed=1))
        scorer.sync()
        return scorer.compute(seed=0)["fid"]

    expected = whole.compute(seed=0)["fid"]
    for name in ("real.npz", "theirs.npz"):
        assert score_with(name)["value"] == pytest.approx(expected["value"], rel=1e-6)
        assert score_with(name)["name"] == "FID@400"
    with pytest.raises(ValueError, match="same Inception"):
        score_with("others.npz")


def meet_and_judge(rank: int, folder: Path) -> None:
    """One of two ranks: 49 pictures are one batch, 50 are two. The first writes the scores."""
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    ranks = Ranks(rank, 2, torch.device("cpu"))
    scorer = metrics.ImageMetrics(["fid", "is", "kid"], ranks)
    for seed, real in ((2, True), (1, False)):
        part = part_of(99, ranks)
        for batch in split(part, 49):
            scorer.update(blocks(99, seed)[batch.start : batch.stop], real=real)
    scorer.sync()
    if ranks.is_main:
        scores = {"scores": scorer.compute(seed=0), "hash": scorer.sha256(real=False)}
        (folder / "scores.json").write_text(json.dumps(scores))
    dist.destroy_process_group()


def test_ranks_that_looked_at_unequal_parts_agree_with_one(narrow, tmp_path):
    fork = multiprocessing.get_context("fork")  # children share what is imported and patched
    ranks = [
        fork.Process(target=meet_and_judge, args=(rank, tmp_path), daemon=True) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()  # the other one, if one hangs
    assert codes == [0, 0]
    two = json.loads((tmp_path / "scores.json").read_text())

    one = scored("fid", "is", "kid", n=99)
    assert two["hash"] == one.sha256(real=False)
    for name, result in one.compute(seed=0).items():
        for key in result.keys() - {"name"}:
            assert two["scores"][name][key] == pytest.approx(result[key], rel=1e-5), (name, key)


def test_clip_score_is_the_mean_cosine(clip, folders):
    class Unwrapped(nn.Module):
        """What torchmetrics 1.9 expects of transformers 4."""

        def __init__(self, model):
            super().__init__()
            self.model, self.config = model, model.config

        def get_image_features(self, *args):
            return self.model.get_image_features(*args).pooler_output

        def get_text_features(self, *args):
            return self.model.get_text_features(*args).pooler_output

    merges = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    letters = [*bytes_to_unicode().values()]
    merges = [tuple(line.split()) for line in merges[1 : 1 + START - 2 * len(letters)]]
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    openai = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges)
    images, captions = pixels(folders[0]), [f"blocks {i}" for i in range(N)]
    scorer = metrics.ImageMetrics(["clip"], ALONE, clip=clip)
    for part in (slice(0, 6), slice(6, N)):
        scorer.update(images[part], captions[part])
    scorer.sync()
    reader = CLIPProcessor(image_processor=scorer.clip.processor, tokenizer=openai)
    theirs = CLIPScore(lambda: (Unwrapped(scorer.clip.model), reader))
    theirs.update(images, captions)
    mine = scorer.compute(seed=0)["clip"]
    cosine = theirs.score / theirs.n_samples / 100  # before they clamp it at 0
    assert mine["value"] == pytest.approx(float(cosine), rel=1e-5)
    assert mine["std"] == pytest.approx(float(np.std(scorer.cosines)))


def test_long_captions_are_read_as_far_as_they_fit(clip, folders):
    image, eyes = pixels(folders[0])[:1], CLIP(clip)
    assert torch.equal(
        eyes(image, ["0 1 2 3 4 5 6 7 8 9"]), eyes(image, ["0 1 2 3 4 5 6 7 8 9 and more"])
    )
    assert not torch.equal(eyes(image, ["0 1 2 3 4 5 6 7 8 9"]), eyes(image, ["0 1 2 3 4 5 6 7 8"]))


# ------------------------------------------------------------------------------------------------
# The script


def test_the_record_holds_everything_that_a_second_run_needs(config, clip, folders, capsys):
    names = ("fid", "is", "kid", "clip")
    record = run(replace(config, metrics=names, clip=clip))

    # FID of the same features, by torchmetrics' own network and the singular values of F₁ F₂ᵀ.
    weights = Path(torch.hub.get_dir()) / "checkpoints" / metrics.INCEPTION
    net = NoTrainInceptionV3("inception", ["2048"], str(weights), antialias=False)
    fake, real = (net(pixels(folder)).double().numpy() for folder in folders)
    a, b = ((f - f.mean(0)) / np.sqrt(N - 1) for f in (fake, real))
    overlap = scipy.linalg.svdvals(a @ b.T).sum()
    expected = np.sum((fake.mean(0) - real.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2)
    fid = record["metrics"]["fid"]
    assert fid["name"] == f"FID@{N}"
    assert fid["value"] == pytest.approx(expected - 2 * overlap, rel=1e-3)

    assert [*record["metrics"]] == [*names]
    assert all("std" in record["metrics"][name] for name in names[1:])
    assert record["samples"]["n"] == record["reference"]["n"] == N
    assert record["samples"]["size"] == [48, 48]
    assert len({record[part]["sha256"] for part in ("samples", "reference")}) == 2
    assert record["weights"]["inception"]["published"] is False
    assert "model.safetensors" in record["weights"]["clip"]
    assert record["config"]["batch"] == 5
    assert {"torch", "torchmetrics", "python"} <= {*record["versions"]}
    assert record["hardware"] and record["date"] and record["ranks"] == 1 and record["seconds"] > 0
    printed = capsys.readouterr().out
    assert "not comparable with published figures" in printed
    assert all(name in printed for name in (f"FID@{N}", "IS", "KID", "CLIP-score"))


def test_samples_are_the_models_and_so_are_the_kept_ones(model, narrow):
    config = Config(
        model=model,
        reference="scenery",
        metrics=("fid", "is"),
        num_images=N,
        batch=4,
        seed=7,
        temperature=0.5,
        top_k=3,
        save_images=Path("kept"),
        device="cpu",
    )
    record = run(config)
    assert record["seeds"] == [7, 7 + N - 1]
    assert len(record["weights"]["model"]["sha256"]) == 64

    drawn = ImageBART.from_pretrained(model, device="cpu").sample(
        N, seed=7, classes=[i % 3 for i in range(N)], temperature=0.5, top_k=3
    )
    each = [hashlib.sha256(np.asarray(image).tobytes()).digest() for image in drawn]
    assert len(set(each)) > 1
    assert record["samples"]["sha256"] == hashlib.sha256(b"".join(each)).hexdigest()

    again = run(Config(images=Path("kept"), metrics=("is",), seed=7, device="cpu"))
    assert again["samples"] == record["samples"]
    assert numbers(again, "is") == pytest.approx(numbers(record, "is"), rel=1e-4)


@pytest.mark.slow
def test_two_ranks_say_what_one_says(model, folders):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ["--model", model, "--reference", folders[1], "--num-images", str(N), "--batch", "5"]
    done = subprocess.run(
        [*command, EVAL / "generation.py", *options, "--device", "cpu", "--out", "two.json"],
        env=ENVIRONMENT | {"TORCH_HOME": os.environ["TORCH_HOME"]},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("FID@") == 1
    two = json.loads(Path("two.json").read_text())
    one = run(Config(model=model, reference=folders[1], num_images=N, batch=5, device="cpu"))
    assert two["samples"] == one["samples"]
    assert two["reference"] == one["reference"]
    for name in ("fid", "is", "kid"):
        assert two["metrics"][name]["name"] == one["metrics"][name]["name"]
        assert numbers(two, name) == pytest.approx(numbers(one, name), rel=1e-4), name
    assert two["ranks"] == 2


def test_a_sample_has_its_caption_and_its_seed(tmp_path):
    class Painter:
        conditions: ClassVar[dict] = {"class": ConditionShape(3, 1)}
        asked: ClassVar[list] = []

        def sample_stream(self, n, *, seed, prompt, batch, part, **options):
            assert "classes" not in options  # a class of its own might contradict the caption
            for some in split(part, batch):
                self.asked += [(seed + i, prompt[i]) for i in some]
                yield torch.zeros(len(some), 3, 8, 8)

    captions = [f"caption {i}" for i in range(9)]
    config = Config(batch=2, seed=100, save_images=tmp_path / "kept")
    seen = [*generation.samples(Painter(), config, 9, captions, range(4, 9))]
    assert Painter.asked == [(100 + i, f"caption {i}") for i in range(4, 9)]
    assert [text for _, texts in seen for text in texts] == captions[4:]
    kept = ImageFolder(tmp_path / "kept")
    assert [kept[i]["text"] for i in range(5)] == captions[4:]


def test_captions_of_scenery_are_those_of_its_reference(tmp_path):
    wanted = [item["text"] for item in generation.open_reference("scenery", 10, (32, 48))]
    assert len(set(wanted)) > 5
    assert generation.read_captions("scenery", 10, (32, 48)) == wanted


def test_a_file_of_captions_has_one_in_each_line(tmp_path):
    (tmp_path / "captions.txt").write_text("a lake\n\na desert \n")
    assert generation.read_captions("captions.txt", 10, (8, 8)) == ["a lake", "a desert"]
    assert generation.read_captions(None, 10, (8, 8)) == []
    with pytest.raises(ValueError, match="text file"):
        generation.read_captions("absent.txt", 10, (8, 8))


# ------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"reference": None}, "need --reference"),
        ({"reference": "stats.npz"}, "kid needs reference pictures"),
        ({"metrics": ("clip",), "clip": None}, "needs --clip"),
        ({"metrics": ("clip",), "clip": Path("x"), "images": None}, "needs --captions"),
        ({"save_stats": Path("x"), "metrics": ("is",)}, "save-stats needs fid"),
        ({"model": "x"}, "--images excludes"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"num_images": 0}, "num_images must be at least 10"),
        ({"metrics": ()}, "metrics must name"),
        ({"metrics": ("fid",), "reference": "absent.npz"}, "absent.npz must be a file"),
        ({"metrics": ("clip",), "clip": Path("absent")}, "folder of a CLIP model"),
        ({"inception": Path("absent.pth")}, "Inception's weights must be at absent.pth"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_a_sentence(config, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(replace(config, **options))


class Evil:
    """A pickle that creates a file when it is read."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_files_that_are_something_else_are_refused(config):
    torch.save({"a": Evil()}, "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth must hold Inception"):
        run(replace(config, inception=Path("evil.pth")))
    assert not Path("ran").exists()
    torch.save({"a": torch.zeros(1)}, "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth must hold Inception"):
        run(replace(config, inception=Path("other.pth")))
    np.savez("other.npz", mu=np.zeros(64), sigma=np.zeros((64, 64)))
    with pytest.raises(ValueError, match="2048 features"):
        run(replace(config, metrics=("fid",), reference="other.npz"))


def test_pictures_of_two_sizes_are_refused(tmp_path):
    mixed = ImageFolder(paint(tmp_path / "mixed", 12, seed=0))
    Image.new("RGB", (40, 48)).save(tmp_path / "mixed" / "11.png")
    with pytest.raises(ValueError, match=r"one size, got \[\(48, 40\), \(48, 48\)\]"):
        list(generation.pictures(mixed, 2, range(12)))


def test_pictures_without_captions_have_no_clip_score(config, clip, tmp_path):
    bare = paint(tmp_path / "bare", 12, seed=0)
    (bare / "3.txt").unlink()
    with pytest.raises(ValueError, match="a caption for every image"):
        run(replace(config, images=bare, metrics=("clip",), clip=clip))


def test_kept_samples_do_not_mix_with_other_files(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "000000.png").touch()
    with pytest.raises(ValueError, match="empty folder"):
        generation.check(Config(metrics=("is",), save_images=tmp_path / "full"))


def test_absent_weights_give_one_sentence(folders, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    done = subprocess.run(
        [sys.executable, EVAL / "generation.py", "--images", folders[0], "--reference", folders[1]],
        env=ENVIRONMENT | {"TORCH_HOME": os.environ["TORCH_HOME"]},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 1
    (sentence,) = done.stderr.strip().splitlines()
    assert sentence.startswith("error: ")
    assert metrics.INCEPTION_URL in sentence
    assert str(tmp_path / "empty" / "hub" / "checkpoints") in sentence
