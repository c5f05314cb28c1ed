"""The explorables: their JavaScript, run under Node, against the reference, the figures and plain arithmetic.

The last tests open them in Chromium, where there is one, and press keys.
"""

import base64
import importlib
import json
import math
import random
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("anywidget")

from course.notebooks import build, open_source
from course.notebooks.build import to_text
from course.notebooks.execute import attach, execute
from course.viz import count_tiles
from course.viz.widgets import FlashTiles, OnlineSoftmaxStepper, page
from course.viz.widgets.explorable import HERE, bundle

NODE = shutil.which("node")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_node = pytest.mark.skipif(
    NODE is None, reason="node is not installed: the explorables' JavaScript cannot run here"
)
CASES = 60


def javascript(code: str, given=None):
    """The value of `answer(given)`, where `code` defines it and `import`s by file name."""
    code = re.sub(r'from "(\w+\.js)"', lambda found: f'from "{as_module((HERE / found[1]).read_text("utf-8"))}"', code)
    # JSON knows no infinity: it travels as a word.
    code += """
    import { readFileSync } from "node:fs";
    const given = JSON.parse(readFileSync(0, "utf8"), (_, v) => (v === "-inf" ? -Infinity : v));
    const word = (_, v) => (typeof v === "number" && !Number.isFinite(v) ? String(v) : v);
    process.stdout.write(JSON.stringify(answer(given), word));"""
    run = subprocess.run(
        [str(NODE), "--input-type=module", "-e", code],
        input=json.dumps(given), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def as_module(text: str) -> str:
    """An address that holds the module itself: as a file, what `.js` means depends on Node and on the folders above."""
    return f"data:text/javascript;base64,{base64.b64encode(text.encode()).decode()}"


@cache
def simulator():
    """The reference's counter, by name: packages of this repository do not import each other."""
    return importlib.import_module("refimpl.flash_attention.simulator")


def settings(rng: random.Random) -> dict:
    """One random set of the animator's options, sizes that divide nothing included."""
    sram_kib = rng.choice([1, 3, 12, 24, 100, 192, 384])
    return {
        "n": rng.choice([1, 2, 63, 64, 100, 129, 256, 500]),
        "dim": rng.choice([1, 16, 40, 64, 128]),
        "blockQ": rng.choice([1, 7, 16, 64, 100, 600]),
        "blockK": rng.choice([1, 5, 16, 64, 128, 600]),
        "sramKib": sram_kib,
        "causal": rng.random() < 0.5,
        "algorithm": rng.choice("12"),
    }


def expected(s: dict) -> dict:
    """What the reference and the tile map of the lecture say about `s`."""
    tiles = count_tiles(s["n"], s["blockQ"], s["blockK"], causal=s["causal"])
    if s["algorithm"] == "2":
        traffic = simulator().simulate_flash2(s["n"], s["dim"], s["blockQ"], s["blockK"], causal=s["causal"])
    else:
        traffic = simulator().simulate_flash(s["n"], s["dim"], s["sramKib"] * 512, causal=s["causal"])
    plain = simulator().simulate_standard(s["n"], s["dim"])
    return {
        "reads": traffic.reads,
        "writes": traffic.writes,
        "standard": {"reads": plain.reads, "writes": plain.writes},
        "steps": tiles.loaded,
        "tiles": {"full": tiles.full, "diagonal": tiles.diagonal, "skipped": tiles.skipped, "computed": tiles.computed},
    }


COUNT = """
import { doneInRow, grid, reach, simulate, standard, tileCounts } from "flash_tiles_logic.js";
const answer = (all) => all.map((s) => {
  const steps = simulate(s);
  const last = steps[steps.length - 1];
  const { full, diagonal, skipped, computed } = tileCounts(s);
  return { reads: last.reads, writes: last.writes, standard: standard(s), steps: steps.length - 1,
    tiles: { full, diagonal, skipped, computed } };
});"""


@needs_node
def test_the_counters_equal_the_simulator_with_the_papers_blocks():
    """Algorithm 1 with the sizes that its paper takes from SRAM: reads, writes and tiles, on 60 random settings."""
    rng = random.Random(1)
    cases = [{**settings(rng), "algorithm": "1"} for _ in range(CASES)]
    for s in cases:
        s["blockQ"], s["blockK"] = simulator().block_sizes(s["sramKib"] * 512, s["dim"])
    assert javascript(COUNT, cases) == [expected(s) for s in cases]


@needs_node
def test_the_counters_equal_the_simulator_with_any_blocks(monkeypatch):
    """Both loop orders with blocks that divide nothing or exceed N, on 60 random settings."""
    rng = random.Random(2)
    cases = [settings(rng) for _ in range(CASES)]
    wanted = []
    for s in cases:
        monkeypatch.setattr(simulator(), "block_sizes", lambda *_, s=s: (s["blockQ"], s["blockK"]))
        wanted.append(expected(s))
    assert {s["algorithm"] for s in cases} == {"1", "2"} and {s["causal"] for s in cases} == {True, False}
    assert javascript(COUNT, cases) == wanted


@needs_node
def test_the_papers_block_sizes_are_the_references():
    """The button takes what `block_sizes` takes, for every offered SRAM and head size."""
    cases = [(kib * 512, dim) for kib in (1, 12, 24, 48, 96, 192, 227, 384) for dim in (16, 32, 64, 80, 128)]
    code = 'import { blockSizes } from "flash_tiles_logic.js";'
    code += "const answer = (all) => all.map(([m, d]) => { const b = blockSizes(m, d); return [b.blockQ, b.blockK]; });"
    assert javascript(code, cases) == [list(simulator().block_sizes(*case)) for case in cases]


@needs_node
def test_the_picture_shows_the_tiles_that_were_counted():
    """After every step the bands of all rows hold as many tiles as steps were taken, this one the newest of them."""
    code = """
    import { doneInRow, grid, simulate } from "flash_tiles_logic.js";
    const answer = (all) => all.map((s) => {
      const rows = [...Array(grid(s).rows).keys()];
      return simulate(s).every((step, k, steps) => {
        const done = rows.map((i) => doneInRow(s, step, i));
        const fresh = k === 0 || (done[step.i] === step.j + 1 && doneInRow(s, steps[k - 1], step.i) === step.j);
        return fresh && done.reduce((a, b) => a + b, 0) === k;
      });
    });"""
    rng = random.Random(3)
    cases = [
        {**settings(rng), "n": rng.choice([1, 17, 64, 100]), "blockQ": rng.choice([3, 8, 64, 200])}
        for _ in range(CASES)
    ]
    assert all(javascript(code, cases))


@needs_node
def test_what_is_on_the_chip_is_counted_tensor_by_tensor():
    """Four tiles of d columns, one score tile, and two numbers per query."""
    code = 'import { onChip, sum } from "flash_tiles_logic.js"; const answer = (s) => [onChip(s), sum(onChip(s))];'
    parts, total = javascript(code, {"dim": 64, "blockQ": 128, "blockK": 32})
    assert parts == {"Q": 8192, "K": 2048, "V": 2048, "O": 8192, "m, l": 256, "S": 4096}
    assert total == sum(parts.values())


TRACE = """
import { fullSoftmax, ratioToFull, trace, unitChanges } from "online_softmax_logic.js";
const answer = ({ rows, convert }) => rows.map((row) => {
  const states = trace(row, { convert });
  const last = states[states.length - 1];
  return { m: last.m, l: last.l, maxima: last.maxima, changes: unitChanges(last), textbook: last.textbook,
    ratio: states.map((state, k) => ratioToFull(state, fullSoftmax(row, k))) };
});"""


def rows_of_scores() -> list[list[float]]:
    """Random streams, and the ones on which a mistake shows: rising, falling, equal, far apart, single."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(4)
    rows = [(torch.randn(n, generator=generator) * spread) for n in (1, 2, 17, 200) for spread in (0.1, 1, 8, 40)]
    rows += [
        rows[-1].sort().values,
        rows[-1].sort(descending=True).values,
        torch.zeros(9),
        torch.tensor([0.0, 90, 200, -200]),
    ]
    return [row.tolist() for row in rows]


@needs_node
def test_the_stepper_follows_the_references_one_pass_sum():
    """m exactly, l to float32's rounding, and never further than 1e-5 from full softmax, after every key."""
    torch = pytest.importorskip("torch")
    eager = importlib.import_module("refimpl.online_softmax.eager")
    rows = rows_of_scores()
    for row, got in zip(rows, javascript(TRACE, {"rows": rows, "convert": True}), strict=True):
        m, l = eager.running_stats(torch.tensor(row), block=1)
        assert got["m"] == m.item()
        assert got["l"] == pytest.approx(l.item(), rel=1e-5)
        assert max(abs(ratio - 1) for ratio in got["ratio"]) < 1e-5


@needs_node
def test_new_maxima_are_counted_as_in_the_lecture():
    """The running maximum rises so often; the first rise changes no unit."""
    rows = rows_of_scores()
    for row, got in zip(rows, javascript(TRACE, {"rows": rows, "convert": True}), strict=True):
        rises = sum(all(z > before for before in row[:k]) for k, z in enumerate(row))
        assert (got["maxima"], got["changes"]) == (rises, rises - 1)


@needs_node
def test_without_the_conversion_a_rising_stream_is_wrong_and_a_falling_one_right():
    """The slip of the slides: every term of a rising stream stays in the unit in which it was counted."""
    rows = [[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]]
    up, down = javascript(TRACE, {"rows": rows, "convert": False})
    assert up["ratio"][-1] == pytest.approx(4 / sum(math.exp(-k) for k in range(4)))
    assert down["ratio"][-1] == pytest.approx(1, abs=1e-6)


@needs_node
def test_the_textbook_sum_overflows_in_float32_where_exp_does():
    """e^88.7 is the end of float32; the stream with its maximum subtracted does not care."""
    fine, gone = javascript(TRACE, {"rows": [[88.0], [88.0, 89.0]], "convert": True})
    assert fine["textbook"] == pytest.approx(math.exp(88), rel=1e-6)
    assert gone["textbook"] == "Infinity" and gone["l"] == pytest.approx(1 + math.exp(-1), rel=1e-6)


@needs_node
def test_masked_keys_before_the_first_visible_one_leave_no_nan():
    """m stays -inf and l stays 0 until a key can be seen."""
    (got,) = javascript(TRACE, {"rows": [["-inf", "-inf", 1.0, "-inf"]], "convert": True})
    assert (got["m"], got["l"], got["maxima"], got["ratio"]) == (1.0, 1.0, 1, [1, 1, 1, 1, 1])


@needs_node
def test_each_preset_shows_what_its_name_says():
    """Up: every key is a new maximum. Down and sink first: only the first. Too large: the textbook sum is infinite."""
    code = TRACE.replace("fullSoftmax,", "PRESETS, fullSoftmax,")
    code = (
        code.replace("const answer =", "const of =") + "const answer = () => Object.fromEntries(Object.entries(PRESETS)"
    )
    code += ".map(([name, row]) => [name, { size: row.length, ...of({ rows: [row], convert: true })[0] }]));"
    got = javascript(code)
    assert got["sorted up"]["maxima"] == got["sorted up"]["size"]
    assert got["sorted down"]["maxima"] == got["sink first"]["maxima"] == 1
    assert 1 < got["random"]["maxima"] < 8
    assert got["too large for exp"]["textbook"] == "Infinity" and got["too large for exp"]["maxima"] > 3


@needs_node
@pytest.mark.parametrize(
    ("text", "scores", "problem"),
    [
        ("1, 3, 2, 4", [1, 3, 2, 4], None),
        (" -inf\n0.5; -2e-1 ", ["-Infinity", 0.5, -0.2], None),
        ("−1.5", [-1.5], None),
        ("1, two, 3", None, "“two” (number 2)"),
        ("1 inf", None, "“inf” (number 2)"),
        ("1 nan", None, "“nan” (number 2)"),
        ("Infinity", None, "“Infinity” (number 1)"),
        ("  ", None, "No score given"),
        ("1 " * 5000, None, "5000 scores"),
    ],
)
def test_typed_scores_are_read_or_refused_with_the_place(text, scores, problem):
    """A reader sees which word is no number."""
    code = 'import { parseScores } from "online_softmax_logic.js"; const answer = (text) => parseScores(text);'
    got = javascript(code, text)
    assert got.get("scores") == scores
    assert (problem in got["problem"]) if problem else "problem" not in got


@needs_node
def test_new_maxima_can_be_visited_one_by_one():
    """Forwards and backwards; where there is none, the step stays."""
    code = """
    import { nextMaximum, previousMaximum, trace } from "online_softmax_logic.js";
    const answer = (row) => {
      const states = trace(row);
      return [[0, 1, 2, 4, 5].map((k) => nextMaximum(states, k)), [5, 4, 3, 1].map((k) => previousMaximum(states, k))];
    };"""
    assert javascript(code, [1, 0, 3, 2, 4]) == [[1, 3, 3, 5, 5], [3, 3, 1, 1]]


# --- one file --------------------------------------------------------------------------------------------------------

WIDGETS = {"stepper": OnlineSoftmaxStepper, "tiles": FlashTiles}


@needs_node
@pytest.mark.parametrize("name", ["online_softmax_stepper.js", "flash_tiles.js"])
def test_a_bundle_is_one_module_without_imports(name):
    """Node accepts it as a module: no file to fetch, no name declared twice, and it exports `render`."""
    text = bundle(name)
    assert "import " not in re.sub(r"//.*", "", text) and text.count("export ") == 1
    code = f'import widget from "{as_module(text)}"; const answer = () => typeof widget.render;'
    assert javascript(code) == "function"


@pytest.mark.parametrize("make", WIDGETS.values(), ids=WIDGETS)
def test_a_page_fetches_nothing(make, tmp_path):
    """No address, no link, no import: it opens from a disk without a network."""
    text = page(make(), tmp_path / "page.html")
    assert text == (tmp_path / "page.html").read_text(encoding="utf-8")
    outside = set(re.findall(r"https?://[^\"'\s)]+", text)) - {"http://www.w3.org/2000/svg"}
    assert not outside and not re.search(r"<link|\bsrc=|@import|\burl\(http|\bimport ", re.sub(r"//.*", "", text))


def test_a_rows_name_cannot_end_the_script():
    """A name is data."""
    assert "</script><b>" not in page(OnlineSoftmaxStepper({"</script><b>": [1.0]}))


@pytest.mark.parametrize("make", WIDGETS.values(), ids=WIDGETS)
def test_words_stand_for_the_widget_where_no_script_runs(make):
    """GitHub, a terminal and a screen reader without scripts get a sentence with numbers."""
    shown = make()._repr_mimebundle_()[0]
    assert shown["text/plain"].startswith("Explorable: ") and re.search(r"\d", shown["text/plain"])


def test_what_travels_to_the_browser_is_small():
    """Two rows of 1,024 scores, code and style: less than one figure of the lecture."""
    widget = OnlineSoftmaxStepper({name: [k / 7 for k in range(1024)] for name in "ab"})
    state = json.dumps({**widget.options(), "_esm": str(widget._esm), "_css": str(widget._css)})
    assert len(state) < 60_000


def test_a_row_travels_as_given_masked_keys_included():
    """Rounded to four decimals, -inf as a word: JSON has none, and the field in the browser reads the same text."""
    widget = OnlineSoftmaxStepper({"a": [-math.inf, 1.00004, 2]})
    assert widget.options() == {"rows": {"a": "-inf 1.0 2.0"}, "start": "a"}
    assert "a: 3 scores, new maxima: 2" in widget.alt()


@pytest.mark.slow
def test_a_widget_is_alive_in_a_committed_notebook(tmp_path):
    """Code, style and options stand in the notebook, under ids that a second run gives again."""
    folder = Path(__file__).parent / "data" / "lectures"
    text = (folder / "00_tiny.py").read_text(encoding="utf-8")
    cell = "\n# %% [markdown]\n# Step.\n# %%\nfrom course.viz.widgets import FlashTiles\n\nFlashTiles(64, block_q=16)\n"
    (tmp_path / "00_tiny.py").write_text(text + cell, encoding="utf-8")
    source = open_source(tmp_path / "00_tiny.py")
    first, second = build(source), build(source)
    for notebook in (first, second):
        execute(notebook, source, lambda _: None)
    assert to_text(first) == to_text(second) == to_text(attach(build(source), first))
    view = first.cells[-1].outputs[0].data["application/vnd.jupyter.widget-view+json"]
    state = first.metadata.widgets["application/vnd.jupyter.widget-state+json"].state[view.model_id].state
    assert state.settings.n == 64 and "export default" in state["_esm"] and ".cw" in state["_css"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OnlineSoftmaxStepper({"a": []}), "a: 0 scores"),
        (lambda: OnlineSoftmaxStepper({"a": [1.0, math.nan]}), "a: holds nan"),
        (lambda: FlashTiles(algorithm="3"), "algorithm is '3'"),
        (lambda: FlashTiles(block_q=0), "block_q=0"),
        (lambda: FlashTiles(4096, block_q=1, block_k=1), "16,777,216 tiles"),
    ],
)
def test_options_that_show_nothing_are_refused(make, words):
    """With the name and the value."""
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


# --- in a browser ----------------------------------------------------------------------------------------------------

# Presses keys on the picture, then leaves what the reader would see in the title.
PRESS = """
<script type="module">
const stage = document.querySelector(".cw-stage");
stage.focus();
for (const key of {keys}) stage.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true, cancelable: true }}));
const labelled = (label) => [...document.querySelectorAll("dt")].find((dt) => dt.textContent === label);
const number = (label) => labelled(label).nextSibling.textContent;
document.title = JSON.stringify([document.querySelector(".cw-live").textContent, ...{labels}.map(number)]);
</script></body>"""


def pressed(widget, keys: list[str], labels: list[str], folder: Path) -> list[str]:
    script = PRESS.format(keys=json.dumps(keys), labels=json.dumps(labels))
    (folder / "page.html").write_text(page(widget).replace("</body>", script), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'chromium'}", "--dump-dom"]
    run = subprocess.run(
        [str(CHROMIUM), *options, (folder / "page.html").as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return json.loads(re.search(r"<title>(.*?)</title>", run.stdout, re.S)[1])


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_stepper_is_driven_by_keys_alone(tmp_path):
    """Home, two steps right, and the next new maximum: the numbers beside the picture and the sentence agree."""
    widget = OnlineSoftmaxStepper({"four": [1.0, 3.0, 2.0, 4.0]})
    keys = ["Home", "ArrowRight", "ArrowRight", "PageDown"]
    said, read, m, l, changes = pressed(widget, keys, ["keys read", "maximum m", "sum l", "unit changed"], tmp_path)
    want = math.exp(1 - 4) + math.exp(3 - 4) + math.exp(2 - 4) + 1
    assert (read, m, l, changes) == ("4 of 4", "4.000", f"{want:.3f}", "2 times")
    assert said.startswith("Key 4 of 4: score 4.000, new maximum")


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_tiles_are_driven_by_keys_alone_and_say_when_they_do_not_fit(tmp_path):
    """At the end the page shows the simulator's bytes; too large a tile is a word, not only a colour."""
    widget = FlashTiles(256, block_q=64, block_k=64, sram_kib=12)
    said, reads, loaded = pressed(
        widget, ["Home", "End", "ArrowLeft", "ArrowRight"], ["HBM reads so far", "tiles loaded"], tmp_path
    )
    traffic = simulator().simulate_flash2(256, 64, 64, 64, causal=True)
    assert (reads, loaded) == (f"{2 * traffic.reads / 1e3:.0f} kB", "10 of 10")
    assert "do not fit: 40.3 KiB in 12 KiB" in said
