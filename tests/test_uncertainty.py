"""eval/uncertainty.py, rows.py and records.py: intervals, chance, kept rows, identity."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import records
import reporting
import torch
import uncertainty
from records import Run
from rows import ImageRows

from imagebart.checkpoint import save_tensors, write_json
from imagebart.folders import model_sha256

# ── intervals ─────────────────────────────────────────────────────────────────────────────────


def test_intervals_of_means_hold_the_truth_as_often_as_they_say():
    """200 sets of 40: of 95 % intervals at least 88 % must; 0.3 % of right ones would not."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        low, high = uncertainty.mean_interval(rng.exponential(size=40))
        held += low <= 1 <= high
    assert held >= 176


def test_more_right_answers_have_higher_intervals():
    """Also beside all and nothing, where the bootstrap's do not; seen failures exclude 100 %."""
    answers = [np.arange(40) < right for right in range(41)]
    low, high = zip(*map(uncertainty.share_interval, answers), strict=True)
    assert all(np.diff(low) > 0) and all(np.diff(high) > 0)
    assert high[39] < 1 == high[40] and low[0] == 0 < low[1]


def test_a_share_of_all_or_nothing_has_wilson_s_interval():
    low, high = uncertainty.share_interval(np.ones(40))
    assert high == 1 and low == pytest.approx(40 / (40 + 1.96**2), rel=1e-3)
    low, high = uncertainty.share_interval(np.zeros(40), np.full(40, 3))
    assert low == 0 and 0.08 < high < 0.1
    low, high = uncertainty.share_interval(np.array([1, 0] * 50))
    assert low == pytest.approx(0.4, abs=0.02) and high == pytest.approx(0.6, abs=0.02)


def test_differences_within_the_noise_are_called_so():
    rng = np.random.default_rng(1)
    x = rng.normal(size=200)
    assert not uncertainty.mean_difference(x, rng.permutation(x))["distinct"]
    apart = uncertainty.mean_difference(x + 0.1, x)  # the same images: the noise cancels
    assert apart["distinct"] and apart["value"] == pytest.approx(0.1)
    right, of = np.tile([1.0, 0, 0, 1], 30), np.full(120, 2.0)
    assert uncertainty.share_difference(right + 1, right, of)["value"] == 0.5
    assert not uncertainty.share_difference(right, np.roll(right, 1), of)["distinct"]


def test_distances_of_features_have_intervals_and_paired_differences():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 300, 3, generator=generator)
    assert uncertainty.feature_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert uncertainty.feature_distance(x, x + 2) == pytest.approx(12, rel=1e-4)
    low, high = uncertainty.distance_interval(x + 2, y)
    assert low < uncertainty.feature_distance(x + 2, y) < high and high - low < 4
    near, far = uncertainty.distance_interval(x[:40], y[:40])  # no distance is below 0
    assert near == 0 < far
    several = uncertainty.mean_distance_interval([x + 2, x - 2], y)
    means = [uncertainty.feature_distance(one, y) for one in (x + 2, x - 2)]
    assert several[0] < np.mean(means) < several[1] and several[1] - several[0] < high - low
    assert uncertainty.distance_difference(x + 2, x, y)["distinct"]
    assert not uncertainty.distance_difference(x, x + 1e-3, y)["distinct"]


def test_an_interval_of_a_distance_is_not_too_narrow_nor_twice_too_wide():
    """For few images of their features, where the bootstrap's is two and a half times as wide as it
    should be: of 40 distances, their own spread, and how far intervals say that they reach."""
    generator, found, said = torch.Generator().manual_seed(0), [], []
    for _ in range(40):
        pair = torch.randn(2, 60, 32, generator=generator, dtype=torch.float64)
        found.append(uncertainty.feature_distance(*pair))
        said.append(uncertainty.distance_interval(*pair)[1] - found[-1])
    assert 1 < np.mean(said) / (1.96 * np.std(found)) < 2


def test_two_images_say_nothing_of_how_far_others_would_be():
    x, y = torch.randn(2, 2, 5)
    assert uncertainty.distance_interval(x, y) == [0, np.inf]
    assert not uncertainty.distance_difference(x + 9, x, y)["distinct"]


def test_nothing_is_beyond_the_noise_where_a_figure_is_none():
    assert not uncertainty.mean_difference([1, np.nan, 2], [1, 2, 2])["distinct"]


def test_a_ratio_s_difference_knows_that_its_denominator_is_uncertain():
    rng = np.random.default_rng(0)
    of = np.append(rng.exponential(size=80), 1)
    found = uncertainty.ratio_difference(np.append(3 * of[:-1], np.nan), of, of)
    assert found["value"] == pytest.approx(2) and np.ptp(found["interval"]) < 1e-9


def test_chance_is_what_shuffled_labels_give():
    classes = np.arange(600) % 12
    chance = uncertainty.by_chance(lambda order: {"": (classes[order] == classes).mean()}, 600)
    assert chance[""] == pytest.approx(1 / 12, abs=0.01)


# ── rows ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kept", [False, True])
def test_rows_are_there_once_they_are_put(tmp_path, kept):
    path = tmp_path / "rows.npy" if kept else None
    columns = {"x": ("f4", 3), "y": ("f8", 1)}
    rows = ImageRows(path, 5, columns)
    assert [*rows.missing(batch=2)] == [[0, 1], [2, 3], [4]]
    rows.put([1, 3], x=torch.ones(2, 3), y=[1.0, 3.0])
    with pytest.raises(ValueError, match="all 5 rows must be there, got 2"):
        rows["x"]
    rows = ImageRows(path, 5, columns) if kept else rows
    assert [*rows.missing(range(1, 5), 2)] == [[2, 4]]
    rows.put([0, 2, 4], x=torch.zeros(3, 3), y=[0.0, 2.0, 4.0])
    assert rows["y"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert torch.as_tensor(rows["x"]).sum() == 6  # as it lies, without a copy
    if kept:
        with pytest.raises(ValueError, match="must hold 6 rows of this run"):
            ImageRows(path, 6, columns)


# ── the record ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Config:
    out: Path | None
    steps: tuple[int, ...] = (1, 2)
    guidance: float | None = None


@pytest.fixture
def folder(tmp_path) -> Path:
    save_tensors({"a": torch.zeros(2)}, tmp_path / "model" / "scale_2.safetensors")
    write_json({"guidance": 1.0}, tmp_path / "model" / "config.json")
    return tmp_path / "model"


def test_the_hash_of_a_model_covers_its_weights_and_its_configuration(folder, tmp_path):
    first = model_sha256(folder)
    (folder / "README.md").write_text("a card")
    assert model_sha256(folder) == first
    write_json({"guidance": 3.0}, folder / "config.json")
    assert model_sha256(folder) == first  # how to sample is no part of what is computed
    write_json({"guidance": 3.0, "draws_class": True}, folder / "config.json")
    second = model_sha256(folder)
    save_tensors({"a": torch.ones(2)}, folder / "scale_2.safetensors")
    third = model_sha256(folder)
    beside = tmp_path / "beside"
    save_tensors({"b": torch.zeros(1)}, beside / "vqgan.safetensors")
    write_json({"vqgan": {"K": 3}}, beside / "config.json")
    write_json({"guidance": 3.0, "vqgan": "beside"}, folder / "config.json")
    fourth = model_sha256(folder)
    save_tensors({"b": torch.ones(1)}, beside / "vqgan.safetensors")
    assert len({first, second, third, fourth, model_sha256(folder)}) == 5
    with pytest.raises(ValueError, match=r"must hold config\.json, got no such file"):
        model_sha256(tmp_path)


def test_a_record_identifies_what_was_measured(folder, tmp_path):
    run = Run(Config(tmp_path / "a.json"), [folder])
    record = run.record(torch.device("cpu"), data=None, n=3, seeds=(5, 7), guidance=1.0)
    assert record["models"] == {str(folder): model_sha256(folder)}
    assert record["options"] == {"out": str(tmp_path / "a.json"), "steps": [1, 2], "guidance": 1.0}
    assert (record["n"], record["seeds"], record["data"]) == (3, [5, 7], None)
    head = subprocess.run(
        ["git", "-C", records.ROOT, "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if head.returncode == 0:
        assert record["commit"]["id"] == head.stdout.strip()
    assert {"torch", "python"} <= record["versions"].keys() and record["hardware"]
    json.dumps(record, allow_nan=False)


def test_rows_are_of_the_code_and_not_of_its_commit(folder, tmp_path, monkeypatch):
    """Another commit of the same code goes on; a file that is changed once more does not."""
    config, columns = Config(tmp_path / "a.json"), {"x": ("f8", 1)}
    Run(config, [folder]).rows("some", 2, columns).put([0, 1], x=[1.0, 2.0])
    now = records.commit()
    monkeypatch.setattr(
        records, "commit", lambda code: now | {"id": "another", "changed": ["x.py"]}
    )
    assert Run(config, [folder]).rows("some", 2, columns)["x"].sum() == 3
    monkeypatch.setattr(records, "commit", lambda code: now | {"sha256": "another"})
    with pytest.raises(ValueError, match="must hold this run's rows, got those of other code"):
        Run(config, [folder]).rows("some", 2, columns)


def test_the_code_is_known_by_its_contents(tmp_path, monkeypatch):
    """A file that is changed is other code when it is changed again."""
    monkeypatch.setattr(records, "ROOT", tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "imagebart").mkdir()
    (tmp_path / "imagebart" / "a.py").write_text("a = 1")
    (tmp_path / "README.md").write_text("before")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    found = [records.commit()["sha256"]]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.py").write_text("a = 1")
    assert records.commit()["sha256"] == found[0]
    assert records.commit(records.TRAINING_CODE)["sha256"] != found[0]
    (tmp_path / "README.md").write_text("after")
    assert records.commit()["sha256"] == found[0]
    for content in ("a = 2", "a = 3"):
        (tmp_path / "imagebart" / "a.py").write_text(content)
        found.append(records.commit()["sha256"])
        assert records.commit()["changed"] == ["imagebart/a.py"]
    (tmp_path / "imagebart" / "new.py").write_text("b = 1")
    found.append(records.commit()["sha256"])
    assert len({*found}) == 4


def test_the_code_is_known_outside_of_a_checkout_too(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "ROOT", tmp_path)
    (tmp_path / "imagebart" / "data").mkdir(parents=True)
    (tmp_path / "eval").mkdir()
    found = []
    for name in ("imagebart/data/a.py", "eval/b.py", "requirements.txt"):
        for content in ("first", "second"):
            (tmp_path / name).write_text(content)
            found.append(records.commit()["sha256"])
    assert len({*found}) == 6 and records.commit()["id"] is None
    (tmp_path / "imagebart" / "README.md").write_text("no code")
    assert records.commit()["sha256"] == found[-1]
    assert not records.same_code(records.commit())


def test_rows_of_other_files_are_refused(folder, tmp_path):
    config, columns = Config(tmp_path / "a.json"), {"x": ("f8", 1)}
    for images in ("first", "second"):
        run = Run(config, [folder])
        run.reads(images=images)
        if images == "first":
            run.rows("some", 2, columns).put([0, 1], x=[1.0, 2.0])
            assert run.rows("some", 2, columns)["x"].sum() == 3
    with pytest.raises(ValueError, match="must hold this run's rows, got those of other files"):
        run.rows("some", 2, columns)


def test_a_record_of_another_guidance_is_measured_again(folder, monkeypatch):
    """Also if its weights are those that lie there."""
    monkeypatch.setattr(records, "ROOT", folder.parent)
    monkeypatch.setattr(records, "same_code", lambda then: True)
    found = {"models": {"model": model_sha256(folder)}, "commit": None}
    for given, current in ((None, True), (1.0, True), ([1.0], True), (4.0, False)):
        assert records.is_current(found | {"options": {"guidance": given}}) is current
    save_tensors({"a": torch.ones(2)}, folder / "scale_2.safetensors")
    assert not records.is_current(found | {"options": {"guidance": 1.0}})


def test_rows_of_another_model_are_refused_and_rows_go_with_the_record(folder, tmp_path):
    config = Config(tmp_path / "a.json")
    Run(config, [folder]).rows("some", 2, {"x": ("f8", 1)}).put([0, 1], x=[1.0, 2.0])
    assert Run(config, [folder]).rows("some", 2, {"x": ("f8", 1)})["x"].sum() == 3
    for name in ("so-me", "so_me"):  # alike in a file's name, and others
        assert not Run(config, [folder]).rows(name, 2, {"x": ("f8", 1)}).table["done"].any()
        Run(config, [folder]).rows(name, 2, {"x": ("f8", 1)}).put([0, 1], x=[1.0, 2.0])
    with pytest.raises(ValueError, match="got those of other versions: delete"):
        Run(config, [folder], packages=("torch", "pytest")).rows("some", 2, {"x": ("f8", 1)})
    for entries, other in (({"guidance": 2.0}, "guidance"), ({"T": 3}, "models, guidance")):
        write_json(entries, folder / "config.json")
        said = f"must hold this run's rows, got those of other {other}: delete"
        with pytest.raises(ValueError, match=said):
            Run(config, [folder]).rows("some", 2, {"x": ("f8", 1)})
    reporting.write_report({"x": float("nan"), "y": [1.0, float("inf")]}, config.out)
    assert json.loads(config.out.read_text()) == {"x": None, "y": [1.0, None]}
    assert [path.name for path in tmp_path.iterdir() if path != folder] == ["a.json"]
