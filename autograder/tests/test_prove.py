"""The exam of the grader, examined: it passes a lab that keeps the rules and finds every one that is broken."""

import json
import shutil
from pathlib import Path

import pytest

from autograder import prove
from autograder.labs import load_lab
from autograder.prove import Verdict, answers, holes, kill_table, main
from autograder.question import Question
from autograder.redteam.bench import InProcess, Quick, TooSlow, deadline

EXAM = Path(__file__).parent / "data" / "exam"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A copy of the exam's lab, which a test may spoil; its folder."""
    shutil.copytree(EXAM, tmp_path / "labs")
    monkeypatch.setenv("COURSE_LABS", str(tmp_path / "labs"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return tmp_path / "labs" / "01_rows"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def quick(*more, **named):
    options = [part for name, value in named.items() for part in (f"--{name}", str(value))]
    return main(["01_rows", "--quick", "--jobs", "1", "--seed", "5", *more, *options])


# --- a lab in order -------------------------------------------------------------------------------------


def test_a_lab_that_keeps_the_rules_passes(rows, capsys):
    """Every kind of answer earns what it must, in process: the kill table says how many."""
    assert quick() == 0
    table = capsys.readouterr().out
    assert [line.split() for line in table.splitlines()[1:5]] == [
        ["01_rows", "window_sums", "100", "%", "0", "%", "5", "of", "5", "5", "4", "of", "4"],
        ["01_rows", "row_shares", "100", "%", "0", "%", "5", "of", "5", "5", "5", "of", "5"],
        ["01_rows", "tile_count", "100", "%", "0", "%", "5", "of", "5", "5", "2", "of", "2"],
        ["01_rows", "root_of", "100", "%", "0", "%", "5", "of", "5", "5", "2", "of", "2"],
    ]
    assert "82 answers judged" in table
    assert "0 holes, 0 things missing; hidden seed 5 (quick: not through the judge)" in table


def test_the_real_judge_gives_the_same_verdicts(rows, tmp_path, capsys):
    """Through zygote and sandbox, `oracle imported` included; a JSON file holds every verdict."""
    assert main(["01_rows", "--jobs", "1", "--seed", "5", "--json", str(tmp_path / "out.json")]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["seed"] == 5
    assert told["missing"] == []
    verdicts = {(v["question"], v["name"], v["seed"]): v for v in told["verdicts"]}
    for question in ("window_sums", "row_shares", "tile_count"):
        for seed in ("public", "hidden"):
            assert verdicts[question, "worked solution", seed]["earned"] == verdicts[question, "zeros", seed]["points"]
            assert verdicts[question, "oracle imported", seed]["earned"] == 0
            assert verdicts[question, "oracle imported", seed]["problem"] == ""
    assert len(verdicts) == len(told["verdicts"]) == 88
    assert "quick" not in capsys.readouterr().out


def test_several_processes_give_the_same_verdicts(rows, tmp_path):
    """In the same order."""
    outcomes = []
    for jobs in ("1", "2"):
        path = tmp_path / f"{jobs}.json"
        assert (
            main(["01", "--quick", "--question", "tile_count", "--seed", "3", "--jobs", jobs, "--json", str(path)]) == 0
        )
        outcomes.append(json.loads(path.read_text())["verdicts"])
    assert outcomes[0] == outcomes[1]
    assert {v["question"] for v in outcomes[0]} == {"tile_count"}


# --- every broken rule is found -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("mistakes.py", '@mistake("tile_count", says="You rounded down.")\n', "", "tile_count: 4 mistakes: add 1 more"),
        ("checks.py", "    library =", "    unused =", "row_shares: Forbids without a library answer"),
        (
            "mistakes.py",
            'fails="MemorySlope"',
            'fails="PoisonOutside"',
            "window_sums: MemorySlope without a full N × N",
        ),
        ("mistakes.py", "def rounded_down", "def root_of", "mistakes named like an answer of this lab: rename root_of"),
    ],
)
def test_what_is_missing_before_anything_runs_is_listed(rows, capsys, file, old, new, says):
    """Too few mistakes, no library answer, no full N × N answer, a name that means two things."""
    edit(rows / file, old, new)
    assert quick() == 1
    assert any(line.startswith("MISSING  01_rows ") and says in line for line in capsys.readouterr().out.splitlines())


def test_a_lab_without_its_notebook_is_incomplete(rows, capsys):
    """The release can not be proved, and the command that builds it is named."""
    (rows / "lab.ipynb").unlink()
    assert quick("--question", "tile_count") == 1
    assert "tile_count: no lab.ipynb to prove the release with: build it with `python -m course noteb" in (
        capsys.readouterr().out
    )


ALWAYS = "(public and hidden seed)"
STUB = 'raise NotImplementedError(\\"tile_count\\")'
TOTALS = 'says="Right, but sums over the whole row were subtracted."'
RANDOM_ROWS = 'yield Case("a matrix", torch.rand(3, 5, generator=rng) + 0.1)'
FIXED_ROWS = 'yield Case("a matrix", torch.eye(5))'
HOLES = {  # what is broken: (file, old text, new text, the line that must appear)
    "a wrong solution": (
        "lab.py", "return (n + block - 1) // block", "return n // block + 1",
        f"tile_count: reference “worked solution” {ALWAYS} must pass: fits: ",
    ),
    "a solved release": (
        "lab.ipynb", STUB, "return -(-n // block)",
        f'tile_count: release “untouched” {ALWAYS} must be "not attempted yet", is "passed"',
    ),
    "a stub that answers": (
        "lab.ipynb", STUB, "return 0",
        f'tile_count: release “untouched” {ALWAYS} must be "not attempted yet", is "not right yet"',
    ),
    "a mistake that is right": (
        "mistakes.py", "    return n // block + 1", "    return -(-n // block)",
        f"tile_count: mistake “one_more” {ALWAYS} survives: add a case that it fails",
    ),
    "two mistakes alike": (
        "mistakes.py", "    return n // block + 1", "    return n // block",
        f"tile_count: mistake “one_more” {ALWAYS} loses points, but 'rounded_down' is named",
    ),
    "no word for a mechanism": (
        "mistakes.py", f'{TOTALS[:-1]}", fails="PoisonOutside"', TOTALS,
        f"window_sums: mistake “difference_of_totals” {ALWAYS} loses points, but no mistake is named",
    ),
    "a library call allowed": (
        "checks.py", 'Forbids("normalize", "softmax")', 'Forbids("softmax")',
        f"row_shares: cheat “library call” {ALWAYS} earns 3 of 3: make the first case or a mechanism",
    ),
    "a library call that never runs": (
        "checks.py", 'library = "lambda x: torch', 'library = "lambda x, y: torch',
        f"row_shares: cheat “library call” {ALWAYS} proves nothing, it only fails with TypeError",
    ),
    "the same numbers in each draw": (
        "checks.py", RANDOM_ROWS, FIXED_ROWS, f"row_shares: cheat “cached replay” {ALWAYS} earns"
    ),
    "an input that is its own answer": (
        "checks.py", RANDOM_ROWS, FIXED_ROWS, f"row_shares: cheat “inputs returned” {ALWAYS} earns"
    ),
    "a plain case where zero is right": (
        "checks.py", 'Case("fits", 64, 16)', 'Case("fits", 0, 16)', f"tile_count: cheat “zeros” {ALWAYS} earns 0.67"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "says"), HOLES.values(), ids=HOLES)
def test_a_hole_is_found_and_said_with_the_way_out(rows, capsys, file, old, new, says):
    """Whatever the grader lets through: a survivor is one line, and the exit status is 1."""
    edit(rows / file, old, new)
    assert quick("--question", says.partition(":")[0]) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"HOLE     01_rows {says}")]


def test_a_class_that_overwrites_inputs_would_be_seen(rows, capsys, monkeypatch):
    """If the grader handed out its own tensors, and kept no result, the oracle would agree with whoever zeroes them."""
    monkeypatch.setattr(Question, "truths", property(lambda self: {}))
    monkeypatch.setattr("autograder.checks.hand_over", lambda question, case: case)
    monkeypatch.setattr("autograder.checks.fresh", lambda value: value)
    assert quick("--question", "window_sums") == 1
    assert "cheat “inputs mutated”" in capsys.readouterr().out


def test_an_unknown_lab_ends_with_a_message(rows, capsys):
    """Not with a stack."""
    assert main(["99", "--quick"]) == 2
    assert capsys.readouterr().err.startswith("prove: there is no lab '99'.")


# --- the table ------------------------------------------------------------------------------------------


def verdict(kind, name, earned, problem="", seed="public"):
    return Verdict("07_x", "q", kind, name, seed, earned, 4.0, problem)


def test_the_table_counts_an_answer_only_if_every_seed_agrees():
    """A mistake that survives once is not killed; shares that differ are shown as a range."""
    table = kill_table(
        [
            verdict("reference", "worked solution", 4.0),
            verdict("reference", "worked solution", 2.0, "must pass", "hidden"),
            verdict("mistake", "a", 0.0),
            verdict("mistake", "a", 4.0, "survives", "hidden"),
            verdict("mistake", "b", 1.0, "no mistake is named"),
            verdict("cheat", "zeros", 0.0),
        ]
    )
    assert table.splitlines()[1].split() == ["07_x", "q", "50", "%–100", "%", "?", "1", "of", "2", "0", "1", "of", "1"]


def test_a_hole_under_two_seeds_is_one_line():
    """The first seed speaks."""
    lines = holes([verdict("cheat", "zeros", 1.0, "earns 1"), verdict("cheat", "zeros", 2.0, "earns 2", "hidden")])
    assert lines == ["07_x q: cheat “zeros” (public and hidden seed) earns 1"]


# --- the bench ------------------------------------------------------------------------------------------


@pytest.mark.no_cover  # the alarm may ring while coverage holds its lock, and its handler would wait for it for ever
def test_a_hanging_answer_ends_at_its_deadline(rows):
    """In process too, whatever it catches; memory measurement included."""
    lab = load_lab(rows)
    question = lab.checks["window_sums"]
    case = question.grow(1, 64)
    slow = "def window_sums(x, width):\n while True:\n  try:\n   x.sum()\n  except Exception:\n   pass\n"
    object.__setattr__(lab, "seconds", 0.2)
    with InProcess(lab, [("added", slow)]) as runner:
        assert runner.call(question, case).error == "Timeout"
        outcome, peak = runner.peak(question, case, case)
        assert (outcome.error, peak) == ("Timeout", None)
    with pytest.raises(TooSlow), deadline(0.05):
        while True:
            pass


def test_a_cell_that_fails_is_told_where_its_answer_is_missing(rows):
    """The cells after it still run."""
    lab = load_lab(rows)
    cells = [("first", "1 / 0"), ("second", "def tile_count(n, block):\n    return -(-n // block)")]
    with Quick(lab).open(cells) as runner:
        question = lab.checks["tile_count"]
        (_, case), *_ = question.draw(1)
        assert runner.call(question, case).value == 4
        missing = runner.call(lab.checks["row_shares"], case)
        assert missing.message == "cell first: ZeroDivisionError: division by zero"


def test_every_answer_stands_in_a_whole_notebook(rows):
    """Setup and all worked solutions first; a wrong answer comes as one more cell."""
    lab = load_lab(rows)
    found = {(a.kind, a.name): a for a in answers(lab, lab.checks["tile_count"])}
    names = [name for name, _ in found["reference", "worked solution"].cells]
    assert names[2:] == ["window_sums", "row_shares", "tile_count", "root_of"]
    assert [name for name, _ in found["mistake", "rounded_down"].cells] == [*names, "added"]
    assert found["mistake", "rounded_down"].cells[-1][1].endswith("tile_count = rounded_down\n")
    assert "NotImplementedError" in dict(found["release", "untouched"].cells)["tile_count"]


# --- the course's own labs ------------------------------------------------------------------------------

PLANTED = {
    ("03_online_softmax", "merge"): [
        ("torch.maximum(a[0], b[0])", "torch.maximum(a[0], b[0]) + 1"),
        ("ka[..., None] * a[2]", "ka[..., None].sqrt() * a[2]"),
        ("kb * b[1]", "kb * b[1].clamp(max=1.0)"),
    ],
    ("03_online_softmax", "safe_softmax"): [("(x - unit).exp()", "(x - unit).clamp(min=-10).exp()")],
}


@pytest.mark.parametrize(("slug", "question"), PLANTED, ids=lambda value: value)
def test_a_mistake_in_no_list_still_loses_points(slug, question, monkeypatch):
    """Planted by hand in the worked solution of a real lab: the cases find it without knowing it."""
    monkeypatch.delenv("COURSE_LABS", raising=False)
    lab = load_lab(REPOSITORY / "labs" / slug)
    for old, new in PLANTED[slug, question]:
        source = lab.solution(question)
        assert old in source
        planted = prove.Answer(question, "mistake", "planted", prove.notebook(lab, source.replace(old, new, 1)))
        for verdict in prove.judge(lab, planted, Quick(lab), {"public": 1, "hidden": 2}):
            assert verdict.earned < verdict.points, f"{old} -> {new} earned {verdict.earned}"
            assert "no mistake is named" in verdict.problem
