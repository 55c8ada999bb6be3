"""eval/obedience.py, eval/selection.py, eval/edits.py, eval/counterfactuals.py,
eval/completion.py: the figures follow from the probe's predictions as documented. The probe has
random weights here."""

import shutil
from functools import partial
from pathlib import Path

import completion
import counterfactuals
import edits
import numpy as np
import obedience
import pytest
import selection
import torch
from PIL import Image
from uncertainty import feature_distance

from imagebart import ImageBART
from imagebart.checkpoint import load_tensors, save_tensors
from imagebart.conditions import text_shape, text_tokens
from imagebart.data import scenery
from imagebart.data.maps import commonest_kinds
from imagebart.probe import ATTRIBUTES, Probe

KINDS, LABELS = scenery.KINDS, scenery.LABELS


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory) -> Path:
    """A random chain that takes classes, text and maps."""
    said = {"class": len(KINDS), "text": text_shape(32, vectors=128), "map": len(LABELS)}
    model = make_model(T=3, conditions=said, condition_dropout=True)
    model.names["class"], model.names["map"] = list(KINDS), list(LABELS)
    captions = [scenery.render(i, 32, 32).caption for i in range(40)]
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens(captions, 32)[0])
    folder = tmp_path_factory.mktemp("conditional")
    model.save_pretrained(folder)
    return folder


def scenes(n: int) -> list[scenery.Scene]:
    return [scenery.render(scenery.scene_seed("test", i), 32, 32) for i in range(n)]


def test_obedience_counts_correct_predictions(folder, probe):
    conditions = ("text", "class", "map")
    given = {
        "model": str(folder),
        "probe": probe,
        "conditions": conditions,
        "n": 6,
        "batch": 4,
        "seed": 3,
    }
    report = obedience.main(obedience.Config(**given, guidance=("1.5", "1")))
    rows = {row["condition"]: row for row in report["rows"] if row.get("guidance") == 1.5}
    assert report["rows"][2]["against_first"].keys() == {"all", "probe_fid"}
    model, eyes, targets = ImageBART.from_pretrained(folder), Probe(probe), scenes(6)

    images = model.sample(6, seed=3, guidance=1.5, prompt=[s.caption for s in targets])
    seen, hits = eyes.predict(images), []
    for i, scene in enumerate(targets):
        hits += [seen.values(name)[i] == value for name, value in scenery.said(scene).items()]
    assert rows["text"]["samples"]["all"] == pytest.approx(np.mean(hits))
    wanted = [scenery.said(scene).get("object") for scene in targets]
    shown = seen.values("object")
    for name, (found, of) in rows["text"]["objects"].items():
        assert of == wanted.count(name) > 0
        assert found == sum(pair == (name, name) for pair in zip(wanted, shown, strict=True))
    assert sum(of for _, of in rows["text"]["objects"].values()) == 6 - wanted.count(None)

    images = model.sample(6, seed=3, guidance=1.5, classes=list(range(6)))
    hits = [kind == KINDS[i] for i, kind in enumerate(eyes.predict(images).values("kind"))]
    assert rows["class"]["samples"] == {"all": np.mean(hits), "kind": np.mean(hits)}

    maps = [s.semantic_map for s in targets]
    images = model.sample(6, seed=3, guidance=1.5, semantic_map=maps)
    kinds = np.stack([commonest_kinds(one, (16, 16)) for one in maps])
    share = (eyes.predict(images).kinds.numpy() == kinds).mean()
    assert rows["map"]["samples"]["places"] == pytest.approx(share)
    seen = eyes.predict(images).kinds.numpy()
    every = [(seen == np.roll(kinds, shift, axis=0)).mean() for shift in range(6)]
    # 20 shuffles of six; 4 standard errors of independent ones
    assert abs(rows["map"]["chance"]["places"] - np.mean(every)) < 4 * np.std(every) / 20**0.5
    low, high = rows["map"]["samples_interval"]["places"]
    assert low <= rows["map"]["samples"]["places"] <= high
    renders = eyes.predict([Image.fromarray(scene.image) for scene in targets])
    share = (renders.kinds.numpy() == kinds).mean()
    assert rows["map"]["renders"]["places"] == pytest.approx(share)


def test_rejection_keeps_the_most_probable_of_each_group(folder, probe):
    config = selection.Config(
        model=str(folder), probe=probe, per_class=20, captions=2, candidates=4, batch=8
    )
    report = selection.main(config)
    model, eyes = ImageBART.from_pretrained(folder), Probe(probe)
    right = {rate: [] for rate in selection.RATES}
    surest = []
    for k, name in enumerate(KINDS):
        images = model.sample(20, seed=20 * k, classes=name, guidance=1.0)
        probabilities = eyes.predict(images).attributes["kind"]
        own = ATTRIBUTES["kind"].index(name)
        for rate in selection.RATES:
            size = round(1 / rate)
            for start in range(0, 20, size):
                best = start + probabilities[start : start + size, own].argmax()
                right[rate].append(probabilities[best].argmax() == own)
        surest.append(probabilities[probabilities[:, own].argmax()])
    scores = {row["rate"]: row["inception_score"] for row in report["rejection"]}
    p = torch.stack(surest)
    information = (p * (p / p.mean(0)).log()).sum(1).mean().exp().item()
    assert scores[0.05] == pytest.approx(information, rel=1e-5)
    for row in report["rejection"]:
        assert row["kept"] == len(right[row["rate"]]) == round(240 * row["rate"])
        assert row["class_accuracy"] == pytest.approx(np.mean(right[row["rate"]]))

        assert row["guidance"] == 1.0  # of the model's own, the record's, nothing is read
    every, *fewer = report["rejection"]
    assert "against_first" not in every
    for row in fewer:
        assert row["against_first"]["value"] == pytest.approx(row["probe_fid"] - every["probe_fid"])
    assert report["seeds"] == [0, 239]

    ranked = report["re-ranking"]
    assert [row["best_of"] for row in ranked] == [1, 2, 4]
    for row in ranked:
        best = []
        for k, scene in enumerate(scenes(2)):
            images = model.sample(row["best_of"], seed=4 * k, prompt=scene.caption)
            best.append(max(eyes.likeness(scene.caption)(images)))
        assert row["similarity"] == pytest.approx(np.mean(best), abs=1e-5)
        if row is not ranked[0]:
            gained = row["against_first"]["value"]
            assert gained == pytest.approx(row["accuracy"] - ranked[0]["accuracy"])
    assert "against_first" not in ranked[0]
    similar = [row["similarity"] for row in ranked]
    assert similar == sorted(similar) and similar[0] < similar[-1]


@pytest.fixture(scope="module")
def foggy(probe, tmp_path_factory) -> Path:
    """A probe that sees fog everywhere, so that no scene shows a target."""
    folder = tmp_path_factory.mktemp("probes") / "foggy"
    shutil.copytree(probe, folder)
    weights = load_tensors(folder / "heads.safetensors")
    weights["attributes.weather.bias"][scenery.WEATHERS.index("fog")] = 99
    save_tensors(weights, folder / "heads.safetensors")
    return folder


def test_edits_start_without_their_target(foggy):
    eyes = Probe(foggy)
    suitable = partial(edits.suitable, among=range(100), probe=eyes, size=(32, 32))
    for target in edits.TARGETS:
        for _, scene in zip(range(2), suitable(target), strict=False):
            assert scene.attributes["weather"] != target.weather
            assert scene.attributes["time"] in target.times
            assert eyes.predict([Image.fromarray(scene.image)]).values("weather") != [
                target.weather
            ]
            shown = set(np.unique(scene.semantic_map[edits.sky_of(scene)]))
            assert shown <= set(edits.IN_THE_SKY)
            prompt = edits.prompt_of(scene, target)
            assert prompt.endswith(target.words) and f"at {scene.attributes['time']}" in prompt
    fog = edits.Target("fog", "in the fog", scenery.TIMES)
    with pytest.raises(ValueError, match="scenes that do not show fog yet must be found"):
        next(suitable(fog))


def test_edits_leave_the_rest_exact(folder, foggy, monkeypatch):
    """Each is of a scene of its own, with seeds of its own."""
    config = edits.Config(model=str(folder), probe=foggy, n=10, candidates=2)
    inpaint, seeds, scenes = ImageBART.inpaint, [], set()

    def watched(model, image, *given, **options):
        seeds.extend(options["seed"])
        scenes.add(image.tobytes())
        return inpaint(model, image, *given, **options)

    monkeypatch.setattr(ImageBART, "inpaint", watched)
    report = edits.main(config)
    assert [row["edits"] for row in report["rows"]] == [2] * 5
    assert len(scenes) == 10 and sorted(seeds) == [*range(20)] and report["seeds"] == [0, 19]
    assert all(row["exact"] == 1 for row in report["rows"])
    assert report["found"] == 0


def test_skies_of_wide_scenes_are_edited_and_seen_whole(folder, foggy, monkeypatch):
    sizes = []
    monkeypatch.setattr(edits, "squeezed", lambda image: sizes.append(image.size) or image)
    report = edits.main(edits.Config(model=str(folder), probe=foggy, n=5, width=57))
    assert {*sizes} == {(57, 32)} and len(sizes) >= 10
    assert all(row["exact"] == 1 for row in report["rows"])
    monkeypatch.undo()
    assert edits.squeezed(Image.new("RGB", (57, 32))).size == (32, 32)


def test_edits_are_set_beside_the_true_render(folder, probe):
    """Strength 0 is the picture's reconstruction; the true twin differs in its light alone."""
    config = counterfactuals.Config(model=str(folder), probe=probe, n=3, strength=(0.0, 1.0))
    report = counterfactuals.main(config)
    nothing, everything = report["rows"]
    assert nothing["ground"] == 1 and nothing["psnr"] == nothing["psnr_of_picture"]
    assert everything["ground"] < 1 and everything["psnr"] != everything["psnr_of_picture"]
    assert nothing["same"] == everything["same"] == 1
    for row in (nothing, everything):
        apart = row["psnr"] - row["psnr_of_sample"]
        assert row["psnr_over_sample"]["value"] == pytest.approx(apart)
    model = ImageBART.from_pretrained(folder)
    pairs, predicted = counterfactuals.pairs_of(3, model), []
    for i, pair in enumerate(pairs):
        words = {"prompt": pair.other_prompt, "source_prompt": pair.prompt}
        predicted += (
            Probe(probe).predict(model.reimagine(pair.image, seed=i, **words)).values("time")
        )
        assert pair.image.size == pair.other.size and pair.image != pair.other
        assert pair.time in pair.other_prompt and pair.time not in pair.prompt
    right = [time == pair.time for time, pair in zip(predicted, pairs, strict=True)]
    assert everything["found"] == pytest.approx(np.mean(right))
    x_1, twins = (model.encode([pair[i] for pair in pairs]) for i in (0, 1))
    ground = torch.from_numpy(np.stack([pair.ground for pair in pairs]))
    kept = [(a == b)[g].float().mean() for a, b, g in zip(x_1, twins, ground, strict=True)]
    assert nothing["ground_of_render"] == pytest.approx(np.nanmean(kept))


def test_completions_are_set_beside_the_untouched(folder, probe):
    config = completion.Config(
        model=(str(folder),), process=("single",), masks=("upper",), n=5, probe=probe
    )
    (row,) = completion.main(config)["rows"]
    model, eyes = ImageBART.from_pretrained(folder), Probe(probe)
    renders, completed, times = [], [], []
    for i in range(5):
        scene = scenery.render(scenery.scene_seed("validation", i), 32, 32)
        renders.append(Image.fromarray(scene.image))
        completed += model.complete(renders[-1], keep="lower", seed=i)
        times.append(scene.attributes["time"])
    for name, images in (("found", completed), ("found_in_renders", renders)):
        hits = [a == b for a, b in zip(eyes.predict(images).values("time"), times, strict=True)]
        assert row[name]["time"] == pytest.approx(np.mean(hits))
    distance = feature_distance(eyes.predict(renders).features, eyes.predict(completed).features)
    assert row["probe_fid"] == pytest.approx(distance, rel=1e-3)
