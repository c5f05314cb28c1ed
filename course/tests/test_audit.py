"""The audit: every record is honest, covered by the index, and judged by what was computed."""

import json
import re

import pytest

from course import audit
from course.audit import AuditError, Finding, Record, agrees, fill, judge, read_records
from course.audit import audit as run_audit
from course.claims import counting, printed, recompute
from course.tests.tree import ROOT, plant

RECORDS = read_records()


@pytest.fixture(scope="module")
def findings():
    """All records of this repository, recomputed once."""
    return run_audit(RECORDS)


def record(**changes):
    fields = {"id": "S3.1", "unit": "02_x", "row": 3, "quote": "3 GB", "claim": "c", "expect": "reproduced", "why": "w"}
    return Record(**{**fields, "compute": "1", **changes})


# --- this repository -------------------------------------------------------------------------------------------------


def test_every_verdict_is_the_expected_one(findings):
    """A change of the reference that moves a number is seen here."""
    assert not [(f.record.id, f.verdict, f.error) for f in findings if not f.as_expected]


def test_the_page_is_what_the_records_give(findings):
    """`python -m course audit` writes it."""
    assert audit.PAGE.read_text(encoding="utf-8") == audit.rendered(findings)


def test_index_and_records_agree():
    """No line is both a claim and none, and no record lies outside what is covered."""
    assert not list(audit.index_problems(RECORDS))


@pytest.mark.parametrize("row", [1, 2, 3, 5, 6, 38, 40])
def test_every_row_that_the_units_touch_has_records(row):
    """Row 7 is a kernel: the slides print no number for it."""
    assert [each for each in RECORDS if each.row == row]


@pytest.mark.parametrize(
    ("id_", "value"),
    [("S3.402", [10, 2]), ("S3.403", 2), ("S3.556b", 140.9), ("S1.1385a", 824.6), ("S1.1385b", 962.1)],
)
def test_the_slips_of_rows_1_3_and_6_are_found_by_computation(findings, id_, value):
    """The right value comes out of a run or a formula of the reference; no record holds it."""
    (found,) = [f for f in findings if f.record.id == id_]
    assert found.verdict == "corrected"
    assert found.value == (pytest.approx(value, abs=0.1) if isinstance(value, float) else value)
    numbers = value if isinstance(value, list) else [value]
    typed = json.dumps([found.record.compute, found.record.why, found.record.given])
    assert not [number for number in numbers if number > 99 and str(round(number)) in typed]


def test_the_60_gigabytes_and_the_80_that_are_missing_stand_side_by_side(findings):
    """Both numbers of the lecture's largest slip are filled in from the computation."""
    (found,) = [f for f in findings if f.record.id == "S3.556b"]
    assert "60.4 GB + 80.5 GB" in found.why and "60.4" not in found.record.why


def test_every_slip_names_its_arithmetic(findings):
    """Its reason holds a recomputed number, not a typed one."""
    slips = [f for f in findings if f.verdict == "corrected"]
    assert slips and not [f.record.id for f in slips if f.why == f.record.why]


def test_no_placeholder_is_left_on_the_page(findings):
    """A misspelt name in a reason would stay in braces."""
    names = {name for each in RECORDS for name in (*each.shows, *each.given, "x")}
    text = " ".join(f.why + f.record.claim for f in findings)
    assert not [name for name in re.findall(r"\{(\w+)[:}]", text) if name in names]
    assert not re.findall(r"\{\w+:[^{}]*[fd,g%]\}", text)


def test_numbers_that_cannot_be_tested_say_what_is_missing(findings):
    """The verdict is no way out of work."""
    assert all(len(f.why.split()) >= 8 for f in findings if f.verdict == "not testable here")


# --- judging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "said", "value", "right"),
    [
        ("equal", [10, 0], [10, 0], True),
        ("equal", [10, 0], [10, 2], False),
        ("rounded", "60", 60.4, True),
        ("rounded", "60", 60.5, False),
        ("rounded", "40.3", 40.25, True),
        ("rounded", "40.3", 40.24, False),
        ("within 3 %", 100.0, 102.9, True),
        ("within 3 %", 100.0, 103.1, False),
        ("within 10 %", "40.3", 44.4, False),
        ("within 3 %", [4.0, 0.5], [4.1, 0.5], True),
        ("within 3 %", [4.0, 0.5], [4.1, 0.6], False),
        ("at least", 24, 24.0, True),
        ("at least", 24, 23.9, False),
        ("less than", 1.0, 1.0, False),
        ("less than", 1.0, 0.9, True),
        ("all equal", None, [53, 53], True),
        ("all equal", None, [52, 53], False),
        ("below 1e-12", None, 1e-15, True),
        ("below 1e-12", None, 1e-3, False),
        ("below 1e-12", None, float("nan"), False),
        ("below 1e-12", None, float("-inf"), False),
    ],
)
def test_a_rule_accepts_what_agrees_and_nothing_else(rule, said, value, right):
    """Half up where a number is rounded; NaN agrees with nothing."""
    assert agrees(rule, said, value) is right


def test_an_unknown_rule_is_refused():
    """A slip in a rule must not reproduce anything."""
    with pytest.raises(AuditError, match="unknown rule 'nearly'"):
        agrees("nearly", 1, 1)


@pytest.mark.parametrize(
    ("how", "value", "verdict"),
    [("number", 3, "reproduced"), ("number", 4, "corrected"), ("kind", 3, "shown in kind"), ("kind", 4, "corrected"),
     ("none", 3, "not testable here")],
)  # fmt: skip
def test_the_verdict_follows_from_the_value(how, value, verdict):
    """Whatever the record expects."""
    found = judge(record(value=3, how=how), {"value": value})
    assert found.verdict == verdict and found.as_expected is (verdict == "reproduced")


def test_a_record_whose_command_fails_is_never_as_expected():
    """Not even one that expects to be not testable."""
    found = judge(record(expect="not testable here"), {"error": "ValueError: x"})
    assert not found.as_expected and found.error == "ValueError: x"


def test_reasons_are_filled_with_recomputed_numbers_and_keep_tex():
    """Braces that are no known name stay."""
    assert fill(r"{x:.1f} of \frac{a}{b}, {n}", {"x": 2.25, "n": 3}) == r"2.2 of \frac{a}{b}, 3"


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"id": "S3-1"}, "an id is source"), ({"expect": "fine"}, "expect is one of"), ({"how": "so"}, "how is number"),
     ({"compute": ""}, "no `compute`"), ({"why": " "}, "no `why`")],
)  # fmt: skip
def test_a_record_that_could_not_be_judged_is_refused_when_read(changes, says):
    """The message names the file and the record."""
    with pytest.raises(AuditError, match=says):
        audit.check_record(ROOT / "x.toml", record(**changes))


ONE = """[[claim]]
id = "S3.5"
row = 1
quote = "5"
claim = "c"
compute = "5"
value = 5
expect = "reproduced"
why = "w"
"""


def test_two_records_of_one_name_and_unknown_keys_are_refused(tmp_path):
    """A letter tells two numbers of one line apart."""
    plant(tmp_path, **{"01_a_dot_toml": ONE * 2})
    with pytest.raises(AuditError, match=r"two records are called S3.5. Add a letter: S3.5a, S3.5b"):
        read_records(tmp_path)
    plant(tmp_path, **{"01_a_dot_toml": ONE + "valeu = 3\n"})
    with pytest.raises(AuditError, match=r"S3.5: unknown key \['valeu'\]"):
        read_records(tmp_path)


def test_a_table_of_cells_is_one_record_per_cell(tmp_path):
    """Columns are names in the expression and in the texts."""
    table = (
        ONE.replace('"S3.5"', '"S3.{line}"').replace('"c"', '"cell {n}"').replace('compute = "5"', 'compute = "2 * n"')
    )
    plant(tmp_path, **{"01_a_dot_toml": table + 'columns = ["line", "n", "value"]\ncells = [[5, 1, 2], [6, 2, 5]]\n'})
    found = [judge(each, recompute.recompute({"compute": each.compute, "shows": {}, "given": each.given}, {}))
             for each in read_records(tmp_path)]  # fmt: skip
    assert [(f.record.id, f.record.claim, f.verdict) for f in found] == [
        ("S3.5", "cell 1", "reproduced"),
        ("S3.6", "cell 2", "corrected"),
    ]


# --- the index -------------------------------------------------------------------------------------------------------

INDEX = '[covered]\nS3 = [[4, 6]]\n[[line]]\nsource = "S3"\nlines = [6]\nwhy = "a year"\n'


def test_the_index_finds_contradictions_without_the_texts(tmp_path):
    """Outside the ranges; both claim and none; no reason."""
    plant(tmp_path, **{"01_a_dot_toml": ONE, "lines_dot_toml": INDEX})
    assert not list(audit.index_problems(read_records(tmp_path), tmp_path))
    plant(tmp_path, lines_dot_toml=INDEX.replace("[[4, 6]]", "[[6, 9]]").replace("lines = [6]", "lines = [5]"))
    assert len(list(audit.index_problems(read_records(tmp_path), tmp_path))) == 2
    plant(tmp_path, lines_dot_toml=INDEX.replace("a year", " "))
    assert "S3.6: no reason" in "".join(audit.index_problems(read_records(tmp_path), tmp_path))


def test_with_the_texts_every_quote_and_every_number_is_looked_up(tmp_path):
    """A quote that moved, and a number that nobody judged."""
    plant(tmp_path, **{"01_a_dot_toml": ONE, "lines_dot_toml": INDEX})
    text = tmp_path / "003_x.txt"
    text.write_text("1\n2\n3\nno number\nit is 5 here\nin 2020\n7\n", encoding="utf-8")
    assert not list(audit.source_problems(tmp_path, read_records(tmp_path), tmp_path))
    text.write_text("1\n2\n3\ntwo numbers\nit is 6 here\nin 2020\n", encoding="utf-8")
    assert [problem.split(":")[0] for problem in audit.source_problems(tmp_path, read_records(tmp_path), tmp_path)] == [
        "S3.5", "S3.4",
    ]  # fmt: skip


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """An audit of one record that needs no torch; the child runs in the real root."""
    plant(tmp_path, **{"01_a_dot_toml": ONE, "lines_dot_toml": INDEX})
    monkeypatch.setattr(audit, "FOLDER", tmp_path)
    monkeypatch.setattr(audit, "PAGE", tmp_path / "audit.md")
    monkeypatch.setattr(audit, "page_problems", _here(audit.page_problems, tmp_path))
    return tmp_path


def _here(page_problems, root):
    def inside(findings, *, write):
        audit.ROOT, kept = root, audit.ROOT
        try:
            return list(page_problems(findings, write=write))
        finally:
            audit.ROOT = kept

    return inside


def test_a_stale_page_fails_the_check_and_the_command_mends_it(small, capsys):
    """Exit status 1, then 0."""
    assert audit.main(["--check"]) == 1 and "STALE audit.md" in capsys.readouterr().err
    assert audit.main([]) == 0 and audit.main(["--check"]) == 0
    assert "**1 reproduced, 0 corrected, 0 shown in kind, 0 not testable here**" in (small / "audit.md").read_text()


def test_a_changed_verdict_fails_and_writes_nothing(small, capsys):
    """The page keeps what was true until somebody decides."""
    plant(small, **{"01_a_dot_toml": ONE.replace("value = 5", "value = 6")})
    assert audit.main([]) == 1
    assert "CHANGED S3.5" in capsys.readouterr().err and not (small / "audit.md").exists()


@pytest.mark.parametrize("name", ["1", "01", "01_a", "S3", "S3.5"])
def test_a_part_can_be_asked_for_and_shows_its_command(small, capsys, name):
    """By row, unit, source or id; no page is written for a part."""
    assert audit.main([name]) == 0
    out = capsys.readouterr().out
    assert "S3.5" in out and "1 reproduced" in out and not (small / "audit.md").exists()


def test_an_unknown_part_is_refused_with_what_there_is(small, capsys):
    """Nothing run is not nothing wrong."""
    assert audit.main(["S9"]) == 2
    assert "nothing is called S9. Rows: 1. Units: 01_a." in capsys.readouterr().err


def test_a_failing_expression_is_one_records_error():
    """The others are still computed; a module that is missing says its name."""
    asked = [
        {"id": "a", "use": [], "compute": "1 / 0", "shows": {}, "given": {}},
        {"id": "b", "use": ["no.such.module"], "compute": "module.f()", "shows": {}, "given": {}},
        {"id": "c", "use": ["math"], "compute": "math.sqrt(\n n)", "shows": {"twice": "2 * x"}, "given": {"n": 9}},
    ]
    results = audit.recompute(asked)
    assert results["a"] == {"error": "ZeroDivisionError: division by zero"}
    assert "no.such.module" in results["b"]["error"]
    assert results["c"] == {"value": 3.0, "shows": {"twice": 6.0}}


def test_values_are_written_for_readers():
    """Counts with thousands, five digits."""
    values = [3, 1234567, 140.938, True, [10, 2], None, "text", 825e9]
    shown = [audit.shown(value) for value in values]
    assert shown == ["3", "1,234,567", "140.94", "holds", "10, 2", "", "text", "8.25e+11"]


def test_errors_within_rounding_have_no_digits_on_the_page():
    """They differ between machines, and the page would be stale on every other one."""
    small = judge(record(rule="below 1e-12"), {"value": 1e-16})
    assert (
        audit.outcome(small) == audit.outcome(judge(record(rule="below 1e-12"), {"value": 0.0})) == "exact to rounding"
    )
    assert audit.outcome(judge(record(rule="below 1e-12"), {"value": 0.25})) == "0.25"


def test_a_pipe_in_a_cell_does_not_break_the_table():
    """Formulas have them."""
    found = Finding(record(quote="|Q| = `n`"), "reproduced", 1, "a | b")
    assert audit.unit_table([found], "02_x").splitlines()[2] == r"| S3.1 | `\|Q\| = n` | c | 1 | reproduced | a \| b |"


# --- the functions that claims call ----------------------------------------------------------------------------------


def test_a_right_recurrence_is_exact_and_a_wrong_one_is_not():
    """The yardstick of unit 03's records must be able to fail."""
    right = "\n".join([
        "m = max(m_old, S)",
        "l = l_old * exp(m_old - m) + exp(S - m)",
        "O = O_old * l_old / l * exp(m_old - m) + exp(S - m) * V / l",
    ])  # fmt: skip
    assert printed.recurrence_error(right) < 1e-12
    assert printed.recurrence_error(right.replace("m = max(m_old, S)", "m = 0 * S")) < 1e-12  # any pivot will do
    assert printed.recurrence_error(right.replace("exp(S - m) * V", "V")) > 1e-2
    assert printed.recurrence_error(right.replace("O_old *", "1e400 *")) == float("inf")


LINE_11 = "exp(m - m_new) * l + exp(m_t - m_new) * l_t"
LINE_12 = "(l * exp(m - m_new) * O + exp(m_t - m_new) * (P @ V)) / l_new"


@pytest.mark.parametrize(
    ("line_11", "line_12", "exact"),
    [
        (LINE_11, LINE_12, True),
        (LINE_11.replace("exp(m - m_new) * l +", "l +"), LINE_12, False),
        (LINE_11, LINE_12.replace("l * exp(m - m_new) * O", "l * O"), False),
    ],
)
def test_algorithm_1_tells_right_lines_from_wrong_ones(line_11, line_12, exact):
    """The yardstick of unit 04's records must be able to fail."""
    assert (printed.algorithm_1(line_11, line_12)["error"] < 1e-12) is exact


def test_laws_that_do_not_fit_their_runs_are_refused(monkeypatch):
    """Counts at several sizes must lie on the law, or no law is given."""
    monkeypatch.setattr(counting, "saved", lambda *args, **kwargs: args[2] ** 3)
    with pytest.raises(ValueError, match="is not a N"):
        counting.saved_law(None, None, 8, 2)
    monkeypatch.setattr(counting, "matmuls", lambda *args, **kwargs: [None] * args[3] ** 2)
    with pytest.raises(ValueError, match="not linear in the heads"):
        counting.line_in_heads(None, None, "encoder")
