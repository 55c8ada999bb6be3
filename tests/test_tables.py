"""eval/tables.py: the documents agree with the run records."""

import importlib
import json

import paper
import pytest
import tables
import torch
from layouts import TABLES, held_out, parts

from imagebart.checkpoint import save_tensors, write_json
from imagebart.folders import model_sha256


@pytest.mark.parametrize("path", tables.DOCUMENTS, ids=lambda path: path.parent.name)
def test_documents_agree_with_the_records(path):
    found = tables.tables_in(path.read_text(encoding="utf-8"))
    assert found, f"{path} has no table"
    for name, now, due in found:
        assert now == due, f"{path}: table {name} is stale, run eval/tables.py"


def test_every_table_stands_in_a_document():
    texts = [path.read_text(encoding="utf-8") for path in tables.DOCUMENTS]
    placed = {name for text in texts for name, _, _ in tables.tables_in(text)}
    assert placed == set(TABLES)


def test_a_typed_figure_is_found_and_mended(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    record = json.loads((parts.RESULTS / "scenery_edits.json").read_text(encoding="utf-8"))
    (rainbow,) = (row for row in record["rows"] if row["target"] == "under a rainbow")
    rainbow["found"] = 0.25
    monkeypatch.setattr(parts, "RESULTS", tmp_path / "results")
    for name in ("scenery_edits", "scenery_edits_wide"):
        (parts.RESULTS / f"{name}.json").write_text(json.dumps(record))
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
    assert "| under a rainbow | 40 | 25 % (" in text and "typed" not in text
    assert text.startswith("above\n\n<!-- table") and text.endswith("<!-- end -->\n\nbelow\n")
    assert tables.fill(text.replace(tables.tables_in(text)[0][1] + "\n", "")) == text  # none yet
    tables.main(tables.Config(check=True))


def test_a_row_is_found_by_what_it_is_and_must_be_alone():
    name = "scenery_completion_particles"
    row = parts.record_row(name, mask="upper", resampling_passes=8)
    assert (row["mask"], row["resampling_passes"]) == ("upper", 8)
    with pytest.raises(ValueError, match=rf"{name}.json must have one row .* got 3"):
        parts.record_row(name, mask="upper")


def test_an_unknown_table_is_named():
    with pytest.raises(ValueError, match=r"table must be one of highlights.*, got 'edit'"):
        tables.fill("<!-- table edit -->\n\n<!-- end -->")


def test_a_record_of_other_weights_is_refused(tmp_path, monkeypatch):
    for folder in ("results", "model"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    monkeypatch.setattr(parts, "RESULTS", tmp_path / "results")
    save_tensors({"a": torch.zeros(2)}, tmp_path / "model" / "scale_2.safetensors")
    write_json({"guidance": 1.0}, tmp_path / "model" / "config.json")
    named = {"models": {"model": model_sha256(tmp_path / "model"), "runs/elsewhere": "0" * 64}}
    write_json(named, tmp_path / "results" / "measured.json")
    assert parts.record("measured") == named
    write_json({}, tmp_path / "results" / "nameless.json")
    with pytest.raises(ValueError, match=r"but nameless\.json names none"):
        parts.record("nameless")
    monkeypatch.setattr(parts, "UNNAMED", ("nameless", "measured"))
    assert parts.record("nameless") == {}
    with pytest.raises(ValueError, match=r"but measured\.json names its model"):
        parts.record("measured")
    monkeypatch.setattr(parts, "UNNAMED", ())
    save_tensors({"a": torch.ones(2)}, tmp_path / "model" / "scale_2.safetensors")
    with pytest.raises(ValueError, match=r"measured\.json must be of the weights in model, got"):
        parts.record("measured")


def test_a_guidance_that_is_not_the_models_own_is_said(tmp_path, monkeypatch):
    """The model's hash says nothing of it."""
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    monkeypatch.setattr(parts, "RESULTS", tmp_path)
    model = tmp_path / "model"
    model.mkdir()

    def said(own, given) -> str:
        write_json({"guidance": own, "T": 3}, model / "config.json")
        where = {"hardware": "a chip", "date": "2026-11-28T12:00:00"}
        where |= {"models": {"model": model_sha256(model)}, "options": {"guidance": given}}
        write_json(where, tmp_path / "measured.json")
        return parts.provenance("measured").removeprefix("a chip, 28 November 2026, model ")[7:]

    for own, given in ((4.0, 4.0), (4.0, [4.0]), (4.0, None), ([8.0, 2.0], [[8.0, 2.0]])):
        assert said(own, given) == ": `measured.json`."
    assert said([8.0, 2.0], 4.0) == said([8.0, 2.0], [4.0]) == ", guidance 4.0: `measured.json`."
    assert said(4.0, [8.0, 2.0]) == ", guidance 8.0, 2.0: `measured.json`."


@pytest.mark.parametrize("tables_of", [paper.PAPER_TABLES, paper.PAPER_FIGURES])
def test_the_paper_s_tables_stand_beside_ours(tables_of, capsys):
    for name, table in tables_of.items():
        option = "table" if tables_of is paper.PAPER_TABLES else "figure"
        tables.main(tables.Config(**{option: name}))
        assert capsys.readouterr().out == table() + "\n"
        head, rule, *rows = table().splitlines()
        assert head.endswith("| the paper | ours, released weights | ours, scenery |")
        assert rows and all(row.count("|") == rule.count("|") for row in rows)


def test_the_paper_s_numbers_are_in_their_table():
    assert "| FID, ffhq-2 | 9.57 (T = 2: 11.4), table 1 |" in paper.table_1()
    assert "| rejection rate 0.05 | FID 7.44, IS 273.5, table 2 |" in paper.table_2()
    assert "| upper half, single pass, T = 9 | FID 6.64, IS 4.86, table 3 |" in paper.table_3()


def test_a_trend_within_the_noise_is_called_so(tmp_path, monkeypatch):
    def row(preset: str, value: float, other: str = "", distinct: bool = False) -> dict:
        keys = ("probe_fid", "completion_fid")
        found = {key: {"value": value, "interval": [value - 1, value + 1]} for key in keys}
        apart = {"preset": other} | {key: {"distinct": distinct} for key in keys}
        return {"preset": preset, **found} | ({"against": apart} if other else {})

    rows = [row("mini-2", 20.0), row("mini-3", 30.0, "mini-2"), row("mini-5", 50.0, "mini-2", True)]
    rows += [row("mini-9", 90.0, "mini-2", True), row("mini-5-joint", 40.0, "mini-5", True)]
    write_json({"rows": rows, "models": {}}, tmp_path / "scenery_trend.json")
    monkeypatch.setattr(parts, "RESULTS", tmp_path)
    table = paper.table_3()
    assert "probe-FID 30.0 (29.0 to 31.0), T = 2 within the noise" in table
    assert "probe-FID 50.0 (49.0 to 51.0), differs from T = 2" in table
    assert "4.4 |  | probe-FID 40.0 (39.0 to 41.0), differs from T = 5" in table
    write_json({"rows": rows[:2], "models": {}}, tmp_path / "scenery_trend.json")
    assert f"| {paper.AWAITED}scenery_trend.json of mini-5 |" in paper.table_3()


def test_a_rate_s_distance_is_compared_with_that_of_all():
    whole = "{:+.0f}".format
    noise = {"value": -4.2, "interval": [-9.0, 1.4], "distinct": False}
    assert parts.difference_of(noise, whole) == "-4 (-9 to +1), within the noise"
    assert parts.difference_of(noise | {"distinct": True}, whole) == "-4 (-9 to +1)"
    assert parts.difference_of(None, whole) == ""


def test_a_trend_s_row_says_in_which_figures_it_differs():
    drawn = {key: {"distinct": key.startswith("drawn")} for key in held_out.TREND}
    said = held_out.trend_apart({"preset": "mini-2", **drawn})
    assert said == "of `mini-2`: one of 16 fillings: probe-FID; time of day, of 16"
    nothing = {key: {"distinct": False} for key in held_out.TREND}
    assert held_out.trend_apart({"preset": "mini-2", **nothing}) == "of `mini-2`: nothing"


# ── all records again ─────────────────────────────────────────────────────────────────────────

REMADE = importlib.import_module("all")


def test_every_record_of_scenery_is_remade_by_one_command():
    names = {one.name for one in REMADE.MEASUREMENTS}
    own = {"passes_equal_training"}  # chains that are not shipped
    larger = {"ffhq-4_speed_bf16", "split_752"}  # shapes with random weights
    assert {*parts.UNNAMED} - names == own | larger
    for one in REMADE.MEASUREMENTS:
        assert (parts.ROOT / one.command.split()[0]).exists()


def test_what_moved_is_told_by_its_interval():
    before = {"n": 3, "found": 0.5, "seconds": 9, "rows": [{"fid": 10.0}, {"fid": 20.0}]}
    after = {"n": 3, "found": 0.6, "found_interval": [0.55, 0.65], "seconds": 3}
    after["rows"] = [{"fid": 10.05}, {"fid": 21.0, "fid_interval": [15.0, 25.0]}]
    assert [*REMADE.moved(before, after)] == ["found 0.5 → 0.6 (beyond its interval)"]
    assert [*REMADE.moved({"x": 1.0}, {"x": 1.1})] == ["x 1 → 1.1"]


def test_records_are_measured_in_order_until_the_budget_is_spent(tmp_path, monkeypatch, capsys):
    made = []

    def measure(one, path):
        made.append(one.name)
        write_json({"found": len(made), "models": {}}, path)
        return True

    few = [REMADE.Measurement(name, "eval/edits.py", minutes) for name, minutes in FEW.items()]
    monkeypatch.setattr(REMADE, "MEASUREMENTS", few)
    monkeypatch.setattr(REMADE, "RECORDS", tmp_path)
    monkeypatch.setattr(REMADE, "remade", measure)
    monkeypatch.setattr(REMADE, "is_current", lambda record: record.get("found") == 2)
    REMADE.main(REMADE.Config(budget="10m"))
    assert made == ["a", "c"]  # b takes longer than there is
    assert "no time left for b: run the same command again" in capsys.readouterr().out
    REMADE.main(REMADE.Config(budget="1h"))
    assert made == ["a", "c", "a", "b"]
    assert "c: of these weights and this code" in capsys.readouterr().out
    monkeypatch.setattr(REMADE, "remade", lambda one, path: one.name != "a" and measure(one, path))
    with pytest.raises(ValueError, match="all must be measured, failed have a: see above"):
        REMADE.main(REMADE.Config(budget="1h"))
    assert made[4:] == ["b"]  # what comes after a failure is measured
    with pytest.raises(ValueError, match="budget must be a number and s, m or h, as 2h, got '2'"):
        REMADE.main(REMADE.Config(budget="2"))
    with pytest.raises(ValueError, match=r"records must be of a, b, c, got \['d'\]"):
        REMADE.main(REMADE.Config(only=("d",)))


FEW = {"a": 5, "b": 30, "c": 1}
