"""The best of many: which are kept, that seeds draw them again, and what CLIP says."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from imagebart.data.text import END, START
from imagebart.ranking import CLIP, best_edits, best_of, best_so_far, reject


def brightness(images) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


def test_the_best_of_many_are_those_of_a_plain_sort(tiny):
    images = tiny.sample(11, seed=20)
    order = np.argsort(brightness(images))[::-1][:3]
    for chunk in (1, 4, 11, 50):
        best = best_of(tiny, 3, 11, brightness, seed=20, chunk=chunk)
        assert [ranked.seed for ranked in best] == [20 + i for i in order]
        assert [ranked.score for ranked in best] == [brightness(images)[i] for i in order]
        for ranked, i in zip(best, order, strict=True):
            assert np.array_equal(np.asarray(ranked.image), np.asarray(images[i]))


def test_a_kept_picture_is_the_sample_of_its_seed(tiny):
    (ranked,) = best_of(tiny, 1, 5, brightness, seed=3, top_k=4, temperature=0.8)
    again = tiny.sample(1, seed=ranked.seed, top_k=4, temperature=0.8)[0]
    assert np.array_equal(np.asarray(ranked.image), np.asarray(again))


def test_the_best_edits_are_those_of_a_plain_sort(tiny):
    image = tiny.sample(1, seed=90)[0]
    mask = np.zeros((32, 32), bool)
    mask[:16] = True
    edits = tiny.inpaint(image, mask, 7, seed=30, top_k=4)
    order = np.argsort(brightness(edits))[::-1][:2]
    best = best_edits(tiny, image, mask, 2, 7, brightness, seed=30, chunk=3, top_k=4)
    assert [ranked.seed for ranked in best] == [30 + i for i in order]
    for ranked, i in zip(best, order, strict=True):
        assert np.array_equal(np.asarray(ranked.image), np.asarray(edits[i]))


def test_the_best_so_far_are_told_chunk_by_chunk(tiny):
    scores = brightness(tiny.sample(7, seed=2))
    reports = list(best_so_far(tiny.sample, 2, 7, brightness, seed=2, chunk=3))
    assert [[r.score for r in best] for best in reports] == [
        sorted(scores[:n])[::-1][:2] for n in (3, 6, 7)
    ]


@pytest.mark.parametrize(
    "scores",
    [
        *([1.0], [1.0] * 3, [], None, 5.0, [1.0, None], [1.0, "2"]),
        *([1.0, float("nan")], [float("inf"), 1.0], np.array([np.nan, 1.0]), torch.ones(2, 1)),
    ],
)
def test_each_score_is_a_finite_number(tiny, scores):
    with pytest.raises(ValueError, match="score must give a finite number for each of 2, got"):
        best_of(tiny, 1, 2, lambda _: scores)


@pytest.mark.parametrize("kind", [list, tuple, np.float32, torch.tensor])
def test_scores_may_be_of_any_kind(tiny, kind):
    best = best_of(tiny, 2, 2, lambda _: kind([0.5, 2]))
    assert [(ranked.score, ranked.seed) for ranked in best] == [(2.0, 1), (0.5, 0)]


def test_there_is_a_picture_for_each_seed(tiny):
    def lost(count, seed):
        return tiny.sample(count, seed=seed)[1:]

    with pytest.raises(ValueError, match="is longer than"):
        list(best_so_far(lost, 1, 3, brightness))


@pytest.mark.parametrize(("rate", "drawn"), [(1.0, 4), (0.5, 8), (0.25, 16), (0.3, 14)])
def test_a_rate_is_the_share_that_is_accepted(tiny, rate, drawn):
    seen = []

    def score(images):
        seen.extend(images)
        return brightness(images)

    kept = reject(tiny, 4, rate, score, seed=1, chunk=3)
    assert len(seen) == drawn and len(kept) == 4
    assert [r.score for r in kept] == sorted(brightness(seen))[::-1][:4]


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, float("nan"), "half", None])
def test_a_rate_lies_above_0_and_up_to_1(tiny, rate):
    with pytest.raises(ValueError, match=r"rate must lie in \(0, 1\]"):
        reject(tiny, 2, rate, brightness)


def test_there_must_be_enough_to_choose_from(tiny):
    with pytest.raises(ValueError, match="candidates must be a whole number, at least 3, got 2"):
        best_of(tiny, 3, 2, brightness)
    with pytest.raises(ValueError, match="chunk must be a whole number"):
        best_of(tiny, 1, 2, brightness, chunk=0)
    with pytest.raises(ValueError, match="num_images must be"):
        best_of(tiny, 0, 2, brightness)


def test_all_candidates_are_of_one_prompt(make_model):
    """Also where a chunk has as many candidates as there are prompts."""
    model = make_model(T=2, conditions={"text": 6}, condition_dropout=True)
    pair = Image.new("RGB", (32, 32)), np.ones((32, 32), bool)
    for draw in (partial(best_of, model), partial(best_edits, model, *pair)):
        with pytest.raises(ValueError, match="prompt must be text: one, or 1 of them"):
            draw(1, 4, brightness, chunk=2, prompt=["a lake", "night"])


def test_clip_ranks_by_likeness(tiny, clip):
    judge, images = CLIP(clip), tiny.sample(6, seed=0)
    likeness = judge.likeness("a lake")(images)
    vectors = judge.model.get_image_features(
        **judge.processor(images=images, return_tensors="pt")
    ).pooler_output
    text = judge.model.get_text_features(
        input_ids=torch.tensor([[START, 320, 2553, END]])
    ).pooler_output
    expected = torch.nn.functional.cosine_similarity(vectors, text)
    torch.testing.assert_close(torch.tensor(likeness), expected)
    best = best_of(tiny, 2, 6, judge.likeness("a lake"), seed=0)
    assert [r.seed for r in best] == expected.argsort(descending=True)[:2].tolist()


def test_a_folder_without_clip_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="clip must be the folder of a CLIP model, got"):
        CLIP(tmp_path)


def test_a_vocabulary_of_others_is_one_sentence(clip, tmp_path):
    shutil.copytree(clip, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["text_config"]["vocab_size"] = 49407
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    weights = load_file(clip / "model.safetensors")
    table = "text_model.embeddings.token_embedding.weight"
    weights[table] = weights[table][:49407].clone()
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="vocabulary must be the 49408 pieces of OpenAI's"):
        CLIP(tmp_path / "other")
