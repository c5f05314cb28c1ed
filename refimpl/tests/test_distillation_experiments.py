"""Row 28 in small: the whole run on toy weights, the density, and claims of results made up here."""

import pytest
import torch

from refimpl.experiments import bert_students, harness, lm_students, row_28
from refimpl.models import load_minilm

SMALL = {
    "few": 4, "many": 8, "test": 10, "steps": 2, "teacher": 2, "start": 2, "more": 2, "texts": 4, "held_out": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def result():
    """Row 28 with a few steps of everything and MiniLM's toy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_MODELS", "toy")
        patch.setattr(bert_students, "LAYERS", 2)  # the toy teacher has two layers
        patch.setattr(lm_students, "CONTEXT", lm_students.PROMPT + 4)  # texts of four bytes
        return row_28.measure(SMALL, (0, 1))


def test_every_student_is_there_for_every_seed(result):
    """Four ways to learn layers and one student that learned nothing; a teacher, a start and four ways for texts."""
    assert result["mark"] == "toy weights"
    assert [len(r["agreement"]) for r in result["layers"]] == [2] * 5
    ways = [r["way"] for r in result["texts"]["rows"]]
    assert ways == ["teacher", *(["start", *row_28.WAYS] * 2)]
    assert result["texts"]["parameters"]["teacher"] > 8 * result["texts"]["parameters"]["student"]


def test_the_teacher_agrees_with_itself(result):
    """No divergence in either direction, and a rank correlation of 1."""
    teacher = result["texts"]["rows"][0]
    assert teacher["forward"] == pytest.approx(0, abs=1e-6) and teacher["reverse"] == pytest.approx(0, abs=1e-6)
    assert teacher["own_nats"] == teacher["teacher_nats"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_MODELS", "toy")
        lm = load_minilm()
    assert bert_students.agreement(lm.model, lm, ["one", "another", "a third text"]) == pytest.approx(1)


def test_augmented_sentences_keep_their_first_piece_and_their_padding(monkeypatch):
    """Three variants of two texts; some words differ, all are words that the texts have."""
    monkeypatch.setenv("COURSE_MODELS", "toy")
    lm, texts = load_minilm(), ["the first of all texts", "a second"]
    (plain,), (more,) = bert_students.batches(lm, texts), bert_students.batches(lm, texts, variants=3)
    assert more.ids.shape == (6, plain.ids.shape[1]) and torch.equal(more.real, plain.real.repeat(3, 1))
    same = plain.ids.repeat(3, 1) == more.ids
    assert same[:, 0].all() and same[~more.real].all() and not same.all()
    assert set(more.ids.unique().tolist()) <= set(plain.ids.unique().tolist())


def test_the_density_is_covered_or_sought(result):
    """The claim shows on any machine: nothing in it is random."""
    assert row_28.claims(result)[-1].shows
    assert len(result["density"]["x"]) == len(result["density"]["curves"]["forward"])


def test_claims_follow_from_the_numbers(result):
    """Better than the other way and than no teaching shows, better than one of them does not; each claim has a note."""
    ours = row_28.agreements(result, "layers", "many")

    def shows(output, untaught):
        given = {"output": [x + output for x in ours], "none": [x + untaught for x in ours]}
        rows = [r | {"agreement": given.get(r["how"], r["agreement"])} for r in result["layers"]]
        return row_28.claims(result | {"layers": rows})[0].shows

    assert shows(-0.5, -0.5) and not shows(0.5, -0.5) and not shows(-0.5, 0.5)
    assert all(claim.note for claim in row_28.claims(result))


def test_the_record_is_of_the_real_teacher():
    """Toy weights teach nothing."""
    assert harness.load("28")["result"]["mark"] == ""
