"""Models uploaded to the Hugging Face Hub; `ImageBART.from_pretrained` reads them."""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from imagebart.checkpoint import atomic_write

if TYPE_CHECKING:
    from huggingface_hub import EvalResultEntry

    from imagebart.model import ImageBART

TAGS = ["imagebart", "image-inpainting", "discrete-diffusion", "arxiv:2108.08827"]
BODY = """
# {name}

An ImageBART: images of {W}×{H} pixels as {h}×{w} tokens of {K} codes, and a chain of T = {T}.
{conditions}

```python
from imagebart import ImageBART

model = ImageBART.from_pretrained("{repo_id}")
images = model.sample(4)
edits = model.inpaint(image, mask)
```
"""


def push_to_hub(
    model: "ImageBART",
    repo_id: str,
    *,
    card: str | None = None,
    results: Sequence["EvalResultEntry"] = (),
    dtype: torch.dtype | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload the model to the Hugging Face Hub as owner/name and give its address.

    `card` is the text of its README.md, one with the model's sizes if not given; `results` is what
    was measured, for the folder `.eval_results` beside it; `dtype` as `save_pretrained`. Scales and
    results of a model that was there are deleted.
    `from_pretrained(repo_id)` reads it. Raises ValueError for a name that is not owner/name, and
    what huggingface_hub raises.
    """
    from huggingface_hub import HfApi

    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ValueError(f"repo_id must be owner/name, got {repo_id!r}")
    hub = HfApi(token=token)
    address = hub.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, dtype)
        with atomic_write(Path(folder) / "README.md") as draft:
            draft.write_text(card or model_card(model, repo_id), encoding="utf-8")
        write_results(results, Path(folder) / ".eval_results")
        former = ["scale_*.safetensors", ".eval_results/*"]  # what this model has is not deleted
        hub.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="An ImageBART",
            delete_patterns=former,
        )
    return str(address)


def write_results(results: Sequence["EvalResultEntry"], folder: Path) -> None:
    """A file for each data set, NAME.yaml of owner/NAME, with its results as the Hub reads them."""
    from huggingface_hub import eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    of_data = defaultdict(list)
    for one in results:
        of_data[one.dataset_id.split("/")[-1]].append(one)
    for name, entries in of_data.items():
        folder.mkdir(exist_ok=True)
        with atomic_write(folder / f"{name}.yaml") as draft:
            rows = eval_result_entries_to_yaml(entries)
            draft.write_text(yaml_dump(rows, sort_keys=False), encoding="utf-8")


def model_card(model: "ImageBART", repo_id: str) -> str:
    """A card that says what the model itself knows, with the Hub's metadata."""
    from huggingface_hub import ModelCard, ModelCardData

    text = "text" in model.conditions
    about = ModelCardData(
        library_name="imagebart",
        pipeline_tag="text-to-image" if text else "unconditional-image-generation",
        tags=TAGS,
    )
    (h, w), (H, W), kinds = model.grid, model.image_size, " and ".join(model.conditions)
    body = BODY.format(
        name=repo_id.split("/")[1],
        repo_id=repo_id,
        H=H,
        W=W,
        h=h,
        w=w,
        K=model.K,
        T=model.T,
        conditions=f"Conditional on {kinds}." if kinds else "Unconditional.",
    )
    return str(ModelCard(f"---\n{about.to_yaml()}\n---\n{body}"))
