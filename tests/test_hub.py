"""A model that is uploaded is one that loads."""

import shutil

import pytest
import torch
import yaml
from huggingface_hub import EvalResultEntry, HfApi, ModelCard
from huggingface_hub import parse_eval_result_entries as parsed

from imagebart import ImageBART
from imagebart.folders import model_sha256


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub as a folder; no request leaves."""

    def create_repo(self, repo_id, **how):
        (tmp_path / repo_id).mkdir(parents=True, exist_ok=True)
        (tmp_path / "how").write_text(f"{self.token} {how}")
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
        there = tmp_path / repo_id
        for pattern in delete_patterns:
            for path in there.glob(pattern):
                path.unlink()
        shutil.copytree(folder_path, there, dirs_exist_ok=True)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return tmp_path


def test_what_is_uploaded_loads_and_draws_the_same(tiny, hub):
    address = tiny.push_to_hub("anna/tiny", private=True, token="secret")
    assert address == "https://huggingface.co/anna/tiny"
    assert (hub / "how").read_text() == "secret {'private': True, 'exist_ok': True}"
    again = ImageBART.from_pretrained(hub / "anna" / "tiny", device="cpu")
    same = [model.sample(2, output_type="pt") for model in (tiny, again)]
    assert torch.equal(*same)


def test_a_model_takes_the_place_of_the_one_that_was_there(make_model, tiny, hub):
    fid = EvalResultEntry("anna/scenery", "fid", 15.9)
    make_model(T=5).push_to_hub("anna/model", results=[fid])
    tiny.push_to_hub("anna/model")
    tiny.save_pretrained(hub / "alone")
    assert model_sha256(hub / "anna" / "model") == model_sha256(hub / "alone")
    assert not list((hub / "anna" / "model" / ".eval_results").iterdir())


def test_the_card_says_what_the_model_is(make_model, hub):
    text = make_model(T=3, conditions={"class": 2, "text": 6}, condition_dropout=True)
    text.push_to_hub("anna/words")
    card = ModelCard.load(hub / "anna" / "words" / "README.md")
    assert card.data.library_name == "imagebart" and card.data.pipeline_tag == "text-to-image"
    assert "T = 3" in card.text and "Conditional on class and text." in card.text
    assert 'from_pretrained("anna/words")' in card.text
    make_model(T=2, grid=(2, 4)).push_to_hub("anna/plain")
    plain = ModelCard.load(hub / "anna" / "plain" / "README.md")
    assert plain.data.pipeline_tag == "unconditional-image-generation"
    assert "Unconditional." in plain.text and "images of 32×16 pixels as 2×4" in plain.text


def test_a_card_of_one_s_own_is_kept(tiny, hub):
    tiny.push_to_hub("anna/tiny", card="# mine", dtype=torch.float16)
    assert (hub / "anna" / "tiny" / "README.md").read_text() == "# mine"


def test_results_are_beside_the_card(tiny, hub):
    """A file a data set, which the Hub's own reader gives back; none without results."""
    fid = EvalResultEntry("anna/scenery", "fid", 15.9, date="2026-11-27", notes="400 images")
    results = [fid, EvalResultEntry("anna/scenery", "psnr", 30.23)]
    results.append(EvalResultEntry("otto/lakes", "fid", 20.5))
    tiny.push_to_hub("anna/tiny", results=results)
    folder = hub / "anna" / "tiny" / ".eval_results"
    assert {path.name for path in folder.iterdir()} == {"scenery.yaml", "lakes.yaml"}
    read = [
        parsed(yaml.safe_load((folder / f"{name}.yaml").read_text()))
        for name in ("scenery", "lakes")
    ]
    assert read == [results[:2], results[2:]]
    tiny.push_to_hub("anna/plain")
    assert not (hub / "anna" / "plain" / ".eval_results").exists()


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "/tiny", "anna/"])
def test_names_without_an_owner_are_refused(tiny, hub, name):
    with pytest.raises(ValueError, match="repo_id must be owner/name, got "):
        tiny.push_to_hub(name)
    assert not list(hub.iterdir())
