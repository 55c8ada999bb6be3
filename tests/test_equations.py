"""Every equation that the library computes is tagged once: at the function that computes it."""

import ast
import re
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "imagebart"
HOME = {  # equation of the paper: the function that computes it
    1: "forward",  # of a denoiser
    2: "bits_per_token_of",
    3: "reconstruction_loss",
    4: "discriminator_loss",
    5: "q_step",
    6: "q_marginal",
    7: "posterior_kl",
    8: "cross_entropy",
    9: "reverse_kl",
}
DOCUMENTED = ast.FunctionDef | ast.ClassDef


def test_each_equation_is_tagged_once_and_nowhere_else_mentioned():
    tagged, mentioned = {}, {}
    for path in sorted(LIBRARY.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for number in re.findall(r"\b[Ee]q(?:uation|\.)s? ?(\d+)", text):
            mentioned.setdefault(int(number), []).append(path.name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, DOCUMENTED):
                for number in re.findall(r"\[eq\. (\d+)\]", ast.get_docstring(node) or ""):
                    tagged[int(number)] = node.name
    assert tagged == HOME
    assert {number: len(files) for number, files in mentioned.items()} == dict.fromkeys(HOME, 1)
