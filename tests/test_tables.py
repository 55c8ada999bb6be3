"""eval/tables.py: the documents agree with the run records."""

import layouts
import pytest
import tables


@pytest.mark.parametrize("path", tables.DOCUMENTS, ids=lambda path: path.parent.name)
def test_documents_agree_with_the_records(path):
    found = tables.tables_in(path.read_text(encoding="utf-8"))
    assert found, f"{path} has no table"
    for name, now, due in found:
        assert now == due, f"{path}: table {name} is stale, run eval/tables.py"


def test_every_table_stands_in_a_document():
    texts = [path.read_text(encoding="utf-8") for path in tables.DOCUMENTS]
    placed = {name for text in texts for name, _, _ in tables.tables_in(text)}
    assert placed == set(layouts.TABLES)


def test_a_typed_figure_is_found_and_mended(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    original = (layouts.RESULTS / "scenery_edits.json").read_text(encoding="utf-8")
    monkeypatch.setattr(layouts, "RESULTS", tmp_path / "results")
    (layouts.RESULTS / "scenery_edits.json").write_text(original.replace("0.8,", "0.25,"))
    document = tmp_path / "README.md"
    document.write_text("above\n\n<!-- table edits -->\n| typed |\n<!-- end -->\n\nbelow\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "DOCUMENTS", (document,))
    with pytest.raises(
        ValueError, match=r"tables must agree with their run records, got stale ones: \['edits'\]"
    ):
        tables.main(tables.Config(check=True))
    assert "typed" in document.read_text()
    tables.main(tables.Config())
    text = document.read_text()
    assert "| under a rainbow | 40 | 25 % |" in text and "typed" not in text
    assert text.startswith("above\n\n<!-- table") and text.endswith("<!-- end -->\n\nbelow\n")
    tables.main(tables.Config(check=True))


def test_a_row_is_found_by_what_it_is_and_must_be_alone():
    row = layouts.record_row("scenery_completion_t2", T=2, process="single")
    assert (row["T"], row["process"]) == (2, "single")
    with pytest.raises(ValueError, match=r"scenery_completion_t2.json must have one row .* got 2"):
        layouts.record_row("scenery_completion_t2", process="single")


def test_an_unknown_table_is_named():
    with pytest.raises(ValueError, match=r"table must be one of highlights.*, got 'edit'"):
        tables.fill("<!-- table edit -->\n\n<!-- end -->")
