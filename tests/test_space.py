"""The folder of a Space has what the Hub reads, and its page would be served."""

import re
import runpy
from pathlib import Path

import pytest
from huggingface_hub import RepoCard

from demo.serving import read_auth, site_of

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "space"


def pins(path: Path) -> dict[str, str]:
    """{package: version} of a file of requirements."""
    return dict(re.findall(r"^([\w-]+)==(\S+)$", path.read_text(encoding="utf-8"), re.M))


def test_the_header_names_what_is_there():
    header = RepoCard((SPACE / "README.md").read_text(encoding="utf-8")).data.to_dict()
    assert header["sdk"] == "gradio" and (SPACE / header["app_file"]).is_file()
    own, tested = pins(SPACE / "requirements.txt"), pins(ROOT / "requirements.txt")
    assert (
        header["sdk_version"] == own["gradio"] and {"torch", "tyro", "transformers"} <= own.keys()
    )
    assert own.items() <= tested.items()


def test_its_page_needs_a_password_and_has_the_space_s_name(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("SPACE_HOST", "anna-imagebart.hf.space")
    monkeypatch.delenv("AUTH", raising=False)
    config = runpy.run_path(str(SPACE / "space.py"))["CONFIG"]
    with pytest.raises(ValueError, match="--auth USER:PASSWORD must be given, got none"):
        read_auth(config.host, config.auth, config.public_host)
    monkeypatch.setenv("AUTH", "anna:secret")
    config = runpy.run_path(str(SPACE / "space.py"))["CONFIG"]
    assert read_auth(config.host, config.auth, config.public_host) == ("anna", "secret")
    site = site_of(config.host, config.public_host, config.root_path, config.trusted_proxy)
    assert "anna-imagebart.hf.space" in site.hosts
