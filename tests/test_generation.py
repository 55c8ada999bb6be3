"""The figures of eval/generation.py are what their definitions say, on any number of ranks.

The networks have random weights, in files placed where people put the published ones.
"""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import generation
import networks
import numpy as np
import pytest
import scipy.linalg
import torch
from generation import Config
from inputs import Kept, open_pictures, pictures, read_captions, samples
from PIL import Image
from rows import ImageRows
from torch import nn
from torch.nn import functional as F
from torchmetrics.image.fid import NoTrainInceptionV3
from torchmetrics.multimodal import CLIPScore
from transformers import CLIPProcessor, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from imagebart import ImageBART
from imagebart.conditions import ConditionShape
from imagebart.data.image_folder import ImageFolder
from imagebart.data.text import MERGES, START
from imagebart.folders import model_sha256
from imagebart.probe import ATTRIBUTES, Predictions, Probe
from imagebart.ranking import CLIP

ROOT = Path(__file__).parents[1]
EVAL = ROOT / "eval"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
N = 11  # over two ranks in batches of 5: one batch there, two here


# ------------------------------------------------------------------------------------------------
# A small world


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
    """The figures of a metric, the ends of its interval too."""
    found = {key: value for key, value in record["metrics"][metric].items() if key != "name"}
    return found | dict(zip(("low", "high"), found.pop("interval", ()), strict=False))


def pixels(folder: str) -> torch.Tensor:
    """uint8 b 3 H W of a folder, in order."""
    files = [Path(folder) / f"{i}.png" for i in range(N)]
    return torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in files])


class Narrow(nn.Module):
    """Stands for Inception where 2048 features are too many: 12, the colours of 2×2 corners."""

    sha256, published = "narrow", False
    columns: ClassVar[dict] = {"features": ("f4", 12), "logits": ("f4", 10)}

    def forward(self, images):
        features = F.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return {"features": features, "logits": 9 * features[:, :10]}


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(generation, "open_network", lambda *_, **__: Narrow())


# ------------------------------------------------------------------------------------------------
# The definitions


@pytest.mark.parametrize(
    ("n", "n_real", "name"),
    [(9_999, 20_000, "FID@9999"), (10_000, 99, "FID@99"), (10_000, 10_000, "FID")],
)
def test_only_ten_thousand_pictures_make_a_fid_without_its_number(monkeypatch, n, n_real, name):
    monkeypatch.setattr(generation.metrics, "frechet", lambda *_: {"value": 0.0})
    sets = [{"legacy-features": np.zeros((count, 2))} for count in (n, n_real)]
    monkeypatch.setattr(generation, "ImageRows", dict)
    extractor = generation.Extractor({"legacy": Narrow()}, {"fid"})
    assert generation.compute(*sets, extractor, seed=0)["fid"]["name"] == name


def test_an_inception_score_of_few_images_says_so():
    rows = {"probe-features": np.zeros((40, 2)), "probe-logits": np.eye(40, 12)}
    extractor = generation.Extractor({"probe": Narrow()}, {"is"})
    assert generation.compute(rows, None, extractor, seed=0)["probe-is"]["name"] == "probe-IS@40"


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
    extractor = generation.Extractor({}, {"clip"}, clip=CLIP(clip))
    rows = ImageRows(None, N, extractor.columns(real=False))
    for part in ([*range(6)], [*range(6, N)]):
        batch = images[part], [captions[i] for i in part], [""] * len(part)
        rows.put(part, **extractor.extract(batch, torch.device("cpu"), real=False))
    reader = CLIPProcessor(image_processor=extractor.clip.processor, tokenizer=openai)
    theirs = CLIPScore(lambda: (Unwrapped(extractor.clip.model), reader))
    theirs.update(images, captions)
    mine = generation.compute(rows, None, extractor, seed=0)["clip"]
    cosine = theirs.score / theirs.n_samples / 100  # before they clamp it at 0
    assert mine["value"] == pytest.approx(float(cosine), rel=1e-5)
    assert mine["times_100"] == pytest.approx(100 * mine["value"])
    assert mine["std"] == pytest.approx(float(np.std(rows["cosine"])))


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
    weights = Path(torch.hub.get_dir()) / "checkpoints" / networks.INCEPTION
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
    assert all("interval" in record["metrics"][name] for name in ("fid", "clip"))
    assert record["samples"]["n"] == record["reference"]["n"] == N
    assert record["samples"]["size"] == [48, 48]
    assert len({record[part]["sha256"] for part in ("samples", "reference")}) == 2
    assert record["weights"]["legacy"]["published"] is False
    assert "model.safetensors" in record["weights"]["clip"]
    assert record["options"]["batch"] == 5 and record["commit"]["id"]
    assert record["data"] == record["reference"]["sha256"]
    assert not Path("generation.rows").exists()
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
    assert record["models"] == {model: model_sha256(Path(model))}
    assert record["options"]["guidance"] == 1.0 and record["options"]["temperature"] == 0.5

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


class Painter:
    """A model whose image of seed s is of the one colour s."""

    def __init__(self, **conditions: ConditionShape):
        self.conditions, self.drawn = conditions, []
        self.names = {"class": ["lake", "desert", "canyon"]}

    def sample(self, n, *, seed, output_type, **options):
        self.drawn += [(s, *(options[name][i] for name in options)) for i, s in enumerate(seed)]
        return torch.tensor(seed).float()[:, None, None, None].expand(n, 3, 8, 8) / 255


def test_a_sample_has_its_caption_and_its_seed(tmp_path):
    painter, captions = Painter(**{"class": ConditionShape(3, 1)}), [f"c {i}" for i in range(9)]
    config = Config(batch=2, seed=100, captions="scenery")
    images, texts, classes = samples(painter, None, config, captions, [4, 5, 8])
    # A class of its own might contradict the caption, so there is none.
    assert painter.drawn == [(104, "c 4"), (105, "c 5"), (108, "c 8")]
    assert texts == ["c 4", "c 5", "c 8"] and classes == [""] * 3
    assert images[:, 0, 0, 0].tolist() == [104, 105, 108]
    Kept(tmp_path / "kept", 9, (8, 8), None).put(images, texts, [4, 5, 8])
    kept = ImageFolder(tmp_path / "kept")
    assert [kept[i]["text"] for i in range(3)] == texts


def test_the_best_of_several_draws_is_kept():
    class Judge:
        """Likes odd colours, and of these the darkest."""

        def predict(self, images):
            colours = images[:, 0, 0, 0].float()
            likes = (colours % 2) * (300 - colours) / 300
            kinds = torch.zeros(len(images), len(ATTRIBUTES["kind"]))
            kinds[:, ATTRIBUTES["kind"].index("desert")] = likes
            return Predictions(kinds, {"kind": kinds}, torch.zeros(len(images), 16, 16).long())

        def __call__(self, images, captions):
            return self.predict(images).features.max(1).values

    painter = Painter(**{"class": ConditionShape(3, 1)})
    config = Config(seed=10, rejection_rate=0.25)
    images, _, classes = samples(painter, Judge(), config, [], [1, 4])
    assert classes == ["desert"] * 2
    assert [seed for seed, _ in painter.drawn] == [14, 15, 16, 17, 26, 27, 28, 29]
    assert images[:, 0, 0, 0].tolist() == [15, 27]
    config = Config(seed=0, candidates=3, captions="scenery")
    images, texts, _ = samples(painter, Judge(), config, ["a", "b"], [0, 1])
    assert images[:, 0, 0, 0].tolist() == [1, 3] and texts == ["a", "b"]


def test_a_run_that_was_stopped_goes_on(model, narrow, monkeypatch):
    config = Config(model=model, reference="scenery", num_images=N, batch=4, seed=3, device="cpu")
    whole = run(replace(config, out=Path("whole.json")))
    drawn, sample = [], ImageBART.sample

    def dies_at_the_second_batch(self, *arguments, seed, **options):
        drawn.extend(seed)
        if len(drawn) == 8:
            raise KeyboardInterrupt
        return sample(self, *arguments, seed=seed, **options)

    monkeypatch.setattr(ImageBART, "sample", dies_at_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert not config.out.exists()
    with pytest.raises(ValueError, match="must hold this run's rows, got those of other options"):
        run(replace(config, seed=4))
    resumed = run(replace(config, batch=5))
    assert drawn == [3, 4, 5, 6, 7, 8, 9, 10, *range(7, 14)]
    for name in ("metrics", "samples", "reference", "models", "commit", "seeds"):
        assert resumed[name] == whole[name], name


def test_all_metrics_by_the_probe(model, probe):
    config = Config(model=model, reference="scenery", num_images=N, batch=6, device="cpu")
    names = ("fid", "is", "kid", "pr", "dc")
    config = replace(config, features=("probe",), probe=probe, metrics=names)
    record = run(replace(config, save_images=Path("kept.npz")))
    titles = {key: one["name"] for key, one in record["metrics"].items()}
    assert titles["probe-fid"] == f"probe-FID@{N}" and titles["probe-is"] == f"probe-IS@{N}"
    assert {*titles} == {
        *("probe-fid", "probe-is", "probe-kid", "probe-precision", "probe-recall"),
        *("probe-density", "probe-coverage"),
    }
    again = replace(config, model=None, images=Path("kept.npz"), cache=Path("cache"))
    first, second = run(again), run(again)
    assert first["metrics"] == second["metrics"] == record["metrics"]
    assert first["samples"] == record["samples"] and len([*Path("cache").iterdir()]) == 1


def test_a_class_is_right_as_often_as_the_probe_says_so():
    classes, predicted = np.arange(400) % 4, np.arange(400) % 2
    found = generation.class_accuracy(classes, predicted)
    assert found["value"] == 0.5 and found["interval"][0] < 0.5 < found["interval"][1]
    assert found["chance"] == pytest.approx(0.25, abs=0.02)


class Eyes:
    """A probe that takes every image for one kind of place."""

    def __init__(self, kind: str):
        self.kind = ATTRIBUTES["kind"].index(kind)

    def predict(self, images):
        kinds = F.one_hot(torch.tensor([self.kind] * len(images)), len(ATTRIBUTES["kind"])).float()
        return Predictions(kinds, {"kind": kinds}, torch.zeros(len(images), 16, 16).long())


def test_classes_of_a_model_and_of_a_folder_are_compared_by_name(tmp_path):
    """Both number them for themselves: a folder in the order of the alphabet, a model as it was
    trained, of some of the kinds."""
    painter = Painter(**{"class": ConditionShape(3, 1)})
    kinds = [ATTRIBUTES["kind"].index(name) for name in ("lake", "desert", "canyon")]
    extractor = generation.Extractor({}, {"class"}, probe=Eyes("desert"))
    device = torch.device("cpu")
    batch = samples(painter, None, Config(batch=4, seed=0), [], [0, 1, 2, 4])
    found = extractor.extract(batch, device, real=False)
    assert [*found["class"]] == [*kinds, kinds[1]] and {*found["predicted"].tolist()} == {kinds[1]}
    for name in ("lake", "desert"):
        (tmp_path / "kinds").mkdir(exist_ok=True)
        paint(tmp_path / "kinds" / name, 6, seed=0)
    data = ImageFolder(tmp_path / "kinds")
    assert data.names["class"] == ("desert", "lake")
    rows = ImageRows(None, 12, extractor.columns(real=False))
    rows.put([*range(12)], **extractor.extract(pictures(data, [*range(12)]), device, real=False))
    assert generation.compute(rows, None, extractor, seed=0)["class"]["value"] == 0.5
    config = Config(images=tmp_path / "kinds", metrics=("all",), device="cpu")
    assert generation.pictures_of(config).classes == {"desert", "lake"}
    with pytest.raises(ValueError, match="a class must be a kind of scenery, got none"):
        extractor.extract((batch[0], batch[1], [""] * 4), device, real=False)


@pytest.fixture
def chain(make_model, tmp_path):
    """Write a model of classes of these names, an unconditional one of none; its folder."""

    def chain(*names: str) -> str:
        model = make_model(T=2, **({"conditions": {"class": len(names)}} if any(names) else {}))
        model.names["class"] = [*names]
        model.save_pretrained(folder := tmp_path / f"{len(names)}")
        return str(folder)

    return chain


def test_all_metrics_are_those_that_the_model_has(chain, probe):
    """The probe is of the record's models wherever it measures."""
    config = Config(reference="scenery", metrics=("all",), features=("probe",), probe=probe)
    config = replace(config, num_images=N, device="cpu", out=Path("all.json"))
    none, named = chain(), chain("lake", "desert", "canyon")
    of_features = {"fid", "is", "kid", "precision", "recall", "density", "coverage"}
    for folder, more in ((none, set()), (chain("cat", "dog"), set()), (named, {"class"})):
        record = run(replace(config, model=folder))
        assert {*record["metrics"]} == {f"probe-{name}" for name in of_features} | more
        assert {*record["models"]} == {folder, str(probe)}
    stats = replace(config, model=none, metrics=("fid",), save_stats=Path("stats.npz"))
    run(stats)
    record = run(replace(stats, save_stats=None, reference="stats.npz", metrics=("all",)))
    assert {*record["metrics"]} == {"probe-fid", "probe-is"}


def test_the_record_names_the_probe_that_measures_or_chooses(clip, probe):
    eyes, networks = Probe(probe), {"probe": Narrow()}
    config = Config(model="m", probe=probe)
    for extractor, judge in (
        (generation.Extractor(networks, {"fid"}), None),
        (generation.Extractor({}, {"class"}, probe=eyes), None),
        (generation.Extractor({}, {"clip"}, clip=eyes), None),
        (generation.Extractor({}, {"is"}), eyes),
    ):
        assert generation.models_of(config, extractor, judge) == ["m", probe]
        pictures = replace(config, images=Path("x"))
        assert generation.models_of(pictures, extractor, judge) == [probe]
    other = generation.Extractor({"legacy": Narrow()}, {"fid", "clip"}, clip=CLIP(clip))
    assert generation.models_of(config, other, CLIP(clip)) == ["m"]


def test_no_rank_waits_for_the_metrics(config, narrow, monkeypatch):
    order = []
    compute = generation.compute
    monkeypatch.setattr(generation, "finish", lambda _: order.append("left"))
    monkeypatch.setattr(
        generation, "compute", lambda *given: order.append("computed") or compute(*given)
    )
    run(replace(config, metrics=("is",)))
    assert order == ["left", "computed"]


def test_captions_of_scenery_are_those_of_its_reference(tmp_path):
    wanted = [item["text"] for item in open_pictures("scenery", 10, (32, 48))]
    assert len(set(wanted)) > 5
    assert read_captions("scenery", 10, (32, 48)) == wanted


def test_a_file_of_captions_has_one_in_each_line(tmp_path):
    (tmp_path / "captions.txt").write_text("a lake\n\na desert \n")
    assert read_captions("captions.txt", 10, (8, 8)) == ["a lake", "a desert"]
    assert read_captions(None, 10, (8, 8)) == []
    with pytest.raises(ValueError, match="text file"):
        read_captions("absent.txt", 10, (8, 8))


# ------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"reference": None}, "fid, kid need --reference"),
        ({"reference": "stats.npz"}, "stats.npz must be a .npz file, got none there"),
        ({"candidates": 2, "images": None}, "--candidates of captions"),
        ({"rejection_rate": 0.5}, "--images excludes"),
        ({"features": ("legacy", "clean"), "reference": "s.npz"}, "takes one of --features"),
        ({"metrics": ("clip",), "clip": Path("x"), "images": None}, "needs --captions"),
        ({"save_stats": Path("x"), "metrics": ("is",)}, "save-stats needs fid"),
        ({"model": "x"}, "--images excludes"),
        ({"metrics": ("class",)}, r"kinds of scenery, which the probe knows, got \['none'\]"),
        ({"metrics": ("class",), "captions": "c", "images": None}, "class excludes --captions"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"num_images": 0}, "num_images must be at least 10"),
        ({"metrics": ()}, "metrics must name"),
        ({"metrics": ("fid",), "reference": "absent.npz"}, "absent.npz must be a .npz file"),
        ({"metrics": ("clip",), "clip": Path("absent")}, "folder of a CLIP model"),
        ({"inception": Path("absent.pth")}, "Inception's weights must be at absent.pth"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_a_sentence(config, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(replace(config, **options))


@pytest.mark.parametrize("given", [{"metrics": ("class",)}, {"rejection_rate": 0.5}])
def test_classes_that_the_probe_does_not_know_are_refused(chain, model, given):
    """Those of a model without classes, or without their names, too."""
    config = Config(reference="scenery", num_images=N, device="cpu")
    for folder, got in ((chain(), "none"), (model, "none"), (chain("cat", "lake"), "cat")):
        with pytest.raises(ValueError, match=f"which the probe knows, got .'{got}'"):
            run(replace(config, model=folder, **given))


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
    with pytest.raises(ValueError, match=r"\['kid'\] need reference pictures, not statistics"):
        run(replace(config, reference="other.npz"))


def test_pictures_of_two_sizes_are_refused(tmp_path):
    mixed = ImageFolder(paint(tmp_path / "mixed", 12, seed=0))
    Image.new("RGB", (40, 48)).save(tmp_path / "mixed" / "11.png")
    with pytest.raises(ValueError, match=r"one size, got \[\(48, 40\), \(48, 48\)\]"):
        pictures(mixed, [0, 11])
    with pytest.raises(ValueError, match="one size"):
        pictures(mixed, [11], size=(48, 48))


def test_pictures_without_captions_have_no_clip_score(config, clip, tmp_path):
    bare = paint(tmp_path / "bare", 12, seed=0)
    (bare / "3.txt").unlink()
    with pytest.raises(ValueError, match="a caption for every image"):
        run(replace(config, images=bare, metrics=("clip",), clip=clip))


def test_copies_of_one_black_picture_are_measured_whatever_their_format(narrow, folders, tmp_path):
    black = tmp_path / "black"
    black.mkdir()
    for i in range(12):
        mode, ending = (("RGB", "png"), ("RGB", "jpg"), ("L", "png"), ("RGBA", "png"))[i % 4]
        colour = (0, 0, 0, 255) if mode == "RGBA" else 0
        Image.new(mode, (48, 48), colour).save(black / f"{i}.{ending}")
    names = ("fid", "is", "kid", "pr", "dc")
    record = run(Config(images=black, reference=folders[1], metrics=names, device="cpu"))
    found = {name: one["value"] for name, one in record["metrics"].items()}
    assert found["is"] == pytest.approx(1) and found["fid"] > 0
    assert found["precision"] == found["recall"] == found["coverage"] == 0
    (black / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"3\.png: must be a readable image"):
        run(Config(images=black, metrics=("is",), device="cpu"))


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
    assert networks.INCEPTION_URL in sentence
    assert str(tmp_path / "empty" / "hub" / "checkpoints") in sentence
