"""Nothing that a student wrote acts in a page that staff open: formgrader, feedback, the autograded notebook."""

import base64
import copy
import shutil
import struct
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import nbgrader.server_extensions.formgrader.handlers as formgrader
import pytest
from nbconvert.exporters import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output, new_raw_cell
from traitlets.config import Config

from autograder import nbgrader as steps
from autograder import sanitize
from autograder.judge.cells import grade_id
from autograder.judge.intake import STUDENT, Refused, parse
from autograder.nbgrader import PlainSources, RepairMetadata, SanitizeOutputs, install
from autograder.sanitize import clean, plain_code, plain_markdown, plain_output, plain_text

FIRE = "document.title=`FIRED`;console.log(`FIRED`)"
RESOURCES = {"nbgrader": {"assignment": "00_tiny", "student": "ann", "notebook": "lab"}}

PROSE = {
    "script": f"<script>{FIRE}</script>",
    "script in capitals, with an attribute": f"<SCRIPT type=text/javascript>{FIRE}</SCRIPT >",
    "script over lines": f"<script\n>{FIRE}</script\n>",
    "script behind a NUL": f"<\x00script>{FIRE}</script>",
    "image with onerror": f"<img src=x onerror='{FIRE}'>",
    "image by markdown": "![a](https://localhost/pixel.png)",
    "image by reference": "![a][pixel]\n\n[pixel]: https://localhost/pixel.png",
    "image by data": "![a](data:image/svg+xml;base64,PHN2Zy8+)",
    "image from an attachment": "![a](attachment:evil.svg)",
    "svg with onload": f"<svg onload='{FIRE}'><a href='javascript:{FIRE}'>x</a></svg>",
    "math with a link": f"<math href='javascript:{FIRE}'>CLICK</math>",
    "iframe": f"<iframe srcdoc='<script>parent.{FIRE}</script>'></iframe>",
    "object": f"<object data='javascript:{FIRE}'></object>",
    "embed": f"<embed src='javascript:{FIRE}'>",
    "form": f"<form action='javascript:{FIRE}'><input type=submit value='Full credit'></form>",
    "button": f"<button onclick='{FIRE}'>x</button>",
    "details with ontoggle": f"<details open ontoggle='{FIRE}'>x</details>",
    "style element": "<style>body{display:none} .score{color:red}</style>",
    "style attribute": "<div style='position:fixed;inset:0;background:url(https://localhost)'>x</div>",
    "link element": "<link rel=stylesheet href=https://localhost/x.css>",
    "meta refresh": f"<meta http-equiv=refresh content='0;url=javascript:{FIRE}'>",
    "base": "<base href=https://localhost/>",
    "comment": f"<!-- --><img src=x onerror='{FIRE}'> -->",
    "processing instruction": f"<?x <img src=x onerror='{FIRE}'>?>",
    "CDATA": f"<![CDATA[><img src=x onerror='{FIRE}'>]]>",
    "closing the page's elements": f"</div></div></body></html><body onload='{FIRE}'>",
    "unclosed tag": f"<img src=x onerror='{FIRE}' alt='",
    "tag inside code that ends": f"`code <img src=x onerror='{FIRE}'> `` ` <img src=x onerror='{FIRE}'>",
    "javascript link": f"[click](javascript:{FIRE})",
    "javascript link in capitals": f"[click](JaVaScRiPt:{FIRE})",
    "javascript link with entities": f"[click](&#106;ava&#x73;cript&colon;{FIRE})",
    "javascript link with a tab": f"[click](java&Tab;script:{FIRE})",
    "javascript link in angle brackets": f"[click](<javascript:{FIRE}>)",
    "javascript link after a newline": f"[click](\njavascript:{FIRE}\n)",
    "javascript link with an escape": f"[click](javascript\\:{FIRE})",
    "javascript link behind a control character": f"[click](\x01javascript:{FIRE})",
    "javascript link by reference": f"[click][r]\n\n[r]: javascript:{FIRE}",
    "javascript link by reference over lines": f"[click][r]\n\n[r]:\n  javascript:{FIRE}\n  'title'",
    "javascript link by reference in angle brackets": f"[click]\n\n[click]: <javascript:{FIRE}>",
    "javascript link in a link's text": f"[a [click](javascript:{FIRE}) b](https://localhost)",
    "javascript autolink": f"<javascript:{FIRE}>",
    "vbscript link": "[click](vbscript:msgbox)",
    "data link": "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "file link": "[click](file:///etc/passwd)",
    "link to a file of the submission": "[click](evil.html)",
    "link with a quote": f'[click](https://localhost/"onmouseover="{FIRE})',
    "link with a title that ends": f"[click](https://localhost 'x\" onmouseover=\"{FIRE}')",
    "MathJax href": rf"$\href{{javascript:{FIRE}}}{{x}}$",
    "MathJax href by definition": rf"$\def\x#1{{\hre#1}} \let\y\href \y{{javascript:{FIRE}}}{{x}}$",
    "MathJax style and class": r"$\style{position:fixed}{x} \class{full-credit}{x} \cssId{why}{x}$",
    "MathJax require": rf"$\require{{action}}\toggle{{x}}{{\href{{javascript:{FIRE}}}{{y}}}}\endtoggle$",
    "MathJax unicode and html": rf"$$\unicode{{x3c}}\text{{<img src=x onerror='{FIRE}'>}}$$",
    "TeX environment with a tag": rf"\begin{{a}}<img src=x onerror='{FIRE}'>\end{{a}}",
    "mermaid": f"```mermaid\n<img src=x onerror='{FIRE}'>\nclick A href \"javascript:{FIRE}\"\n```",
    "mermaid with entities": f"~~~ &#109;ermaid\n&lt;img src=x onerror='{FIRE}'&gt;\n~~~",
    "fence with a quote in its language": f"```\"><img/src=x/onerror='{FIRE}'>\nx\n```",
    "headings with the names of graded cells": "# why\n\n# check-spread\n\n# statusmessage",
    "a field of formgrader": '<input class="score tabbable" id="check-spread" value="4">',
    "text turned around": "grade: \u202e5 fo 0\u202c \u2066x\u2069",
    "table with a tag": f"| a |\n|---|\n| <img src=x onerror='{FIRE}'> |",
    "list, quote, tag": f"> - > 1. <img src=x onerror='{FIRE}'>",
    "email autolink": f'<a@b.c"onclick="{FIRE}>',
    "a very long line": "x" * 2_000_000,
    "ten thousand brackets": "[" * 10_000 + "](" * 10_000,
    "ten thousand quotes": ">" * 10_000 + " - " * 10_000,
}

SVG = f"<svg xmlns='http://www.w3.org/2000/svg' onload='{FIRE}'><script>{FIRE}</script></svg>"
LIVE = f"<script>{FIRE}</script><img src=x onerror='{FIRE}'>"


def png(width=1, height=1):
    """The beginning of a PNG of that size, in base64."""
    start = sanitize.PNG_MAGIC + struct.pack(">I4sII", 13, b"IHDR", width, height) + b"\x08" * 9
    return base64.b64encode(start).decode()


DISPLAYS = {
    "html": {"text/html": LIVE},
    "html in a list": {"text/html": [LIVE, LIVE]},
    "svg": {"image/svg+xml": SVG},
    "javascript": {"application/javascript": FIRE},
    "markdown": {"text/markdown": LIVE},
    "latex": {"text/latex": rf"$\href{{javascript:{FIRE}}}{{x}}${LIVE}"},
    "widget": {"application/vnd.jupyter.widget-view+json": {"model_id": LIVE}},
    "mermaid": {"text/vnd.mermaid": LIVE},
    "pdf": {"application/pdf": LIVE},
    "jpeg": {"image/jpeg": f'"onerror="{FIRE}'},
    "png with wrong bytes": {"image/png": base64.b64encode(SVG.encode()).decode()},
    "png that ends the attribute": {"image/png": f'x" onerror="{FIRE}'},
    "png in a list": {"image/png": [SVG]},
    "png of a gigapixel": {"image/png": png(60_000, 60_000)},
    "plain": {"text/plain": LIVE},
}


def display(data, metadata=None):
    return new_output("display_data", data, metadata=metadata or {kind: {"isolated": True} for kind in data})


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


TRACE = [LIVE, f"\x1b]8;;javascript:{FIRE}\x07click\x1b]8;;\x07"]
OUTPUTS = {
    **{name: display(data) for name, data in DISPLAYS.items()},
    "picture with metadata": display({"image/png": png()}, {"image/png": {"width": f'1" onload="{FIRE}'}}),
    "result": new_output("execute_result", {"text/html": LIVE, "text/plain": "4.0"}, execution_count=1),
    "stream": stream(LIVE),
    "stderr": stream(LIVE, "stderr"),
    "error": new_output("error", ename=LIVE, evalue=LIVE, traceback=TRACE),
    "ANSI": stream("\x1b[31mred\x1b[0m \x1b[8mhidden\x1b[0m \x1b]0;title\x07 \x1b[2J"),
    "bidi": stream("0 of 5 \u202e5 fo 5"),
    "a very long line": stream("x" * 5_000_000),
}


@pytest.fixture(autouse=True)
def labs(monkeypatch, tiny):
    monkeypatch.setenv("COURSE_LABS", str(tiny.folder.parent))
    steps.lab_of.cache_clear()


@pytest.fixture
def notebook(tiny_release):
    return copy.deepcopy(tiny_release.notebook)


def hostile(notebook):
    """Every payload, in prose, raw cells, outputs, code, metadata, ids, and in the graded cells themselves."""
    for number, (name, text) in enumerate(PROSE.items()):
        attachments = {"evil.svg": {"image/svg+xml": SVG}}
        notebook.cells.append(new_markdown_cell(text, id=f"prose-{number}", attachments=attachments))
        if "long" not in name:
            metadata = {"raw_mimetype": "text/html", "format": "text/html"}
            notebook.cells.append(new_raw_cell(text, id=f"raw-{number}", metadata=metadata))
    for number, output in enumerate(OUTPUTS.values()):
        notebook.cells.append(new_code_cell(f"'''{LIVE}'''", id=f"code-{number}", outputs=[output]))
    for cell in notebook.cells:
        cell.metadata["tags"] = [f'"><script>{FIRE}</script>']
        cell.metadata.update(alt=f'"onerror="{FIRE}', magics_language=LIVE, collapsed=LIVE)
        if cell.cell_type == "code" and not cell.outputs:
            cell.outputs = [new_output("display_data", {"text/html": LIVE})]
        if grade_id(cell) == "why":
            cell.source += "\n\n" + "\n\n".join(text for text in PROSE.values() if len(text) < 500)
    notebook.metadata.update(
        title=LIVE,
        authors=[{"name": LIVE}],
        widgets={"application/vnd.jupyter.widget-state+json": {"state": LIVE}},
        kernelspec={"display_name": LIVE, "name": f"../{LIVE}", "language": LIVE},
        language_info={"name": LIVE, "pygments_lexer": LIVE},
    )
    return notebook


def as_graded(notebook):
    """What nbgrader stores: cleaned, judged (no verdict here: an error in each check), sources spelled out."""
    for step in (RepairMetadata(), SanitizeOutputs()):
        notebook, _ = step.preprocess(notebook, copy.deepcopy(RESOURCES))
    for cell in notebook.cells:
        if grade_id(cell).startswith("check-"):
            steps.write_error(cell)
    return PlainSources().preprocess(notebook, RESOURCES)[0]


def page(notebook, template):
    """As formgrader and generate_feedback render it."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if grade_id(cell):
            cell.metadata["nbgrader"].update(score=0, points=1, comment="")
    names = {"notebook": "lab", "score": 0, "max_score": 0, "late_penalty": 0}
    shown = {"base_url": "", "notebook_id": "lab", "index": 0, "total": 1, "metadata": {"name": "lab"}}
    return exporter(template).from_notebook_node(notebook, resources={"nbgrader": names, **shown})[0]


def exporter(template):
    config = install(Config())
    static = Path(formgrader.static_path) / "node_modules" / "bootstrap" / "dist" / "css"
    config.Exporter.default_preprocessors = []
    config.HTMLExporter.template_name = template
    config.HTMLExporter.extra_template_basedirs = [formgrader.template_path]
    config.HTMLExporter.extra_template_paths = [str(static)]
    config.HTMLExporter.preprocessors = ["nbconvert.preprocessors.CSSHTMLHeaderPreprocessor"]
    return HTMLExporter(config=config)


class Actors(HTMLParser):
    """Everything in a page that acts, loads, submits, or has a name that a script looks for."""

    TAGS = ("script", "style", "iframe", "object", "embed", "form", "button", "svg", "math", "link", "meta", "base",
            "video", "audio", "template", "noscript", "frame", "frameset", "applet", "select", "textarea")  # fmt: skip
    LINKS = ("href", "src", "action", "formaction", "srcdoc", "data", "xlink:href", "poster")

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        values = {name: (value or "").strip().lower() for name, value in attributes}
        for name, value in values.items():
            plain = value.startswith(("#", "https://localhost", "data:image/png;base64,ivbor"))
            named = name == "id" and "cell-id=" not in value
            if name.startswith("on") or (name in self.LINKS and not plain) or name == "style" or named:
                self.found.append((tag, name, value[:80]))
        if tag in self.TAGS or (tag == "input" and values.get("type") != "checkbox"):
            self.found.append((tag, str(sorted(values.items()))[:200]))
        if values.get("class", "").startswith("mermaid"):
            self.found.append((tag, "class", "mermaid"))
        if tag == "img" and not values.get("src", "").startswith("data:image/png;base64,"):
            self.found.append((tag, "src", values.get("src")))


def actors(text):
    reader = Actors()
    reader.feed(text)
    return sorted(map(str, reader.found))


def raw(text):
    """As nbconvert renders it, without our filter."""
    return sanitize.markdown2html_mistune(text)


def without_names(text):
    """The names of headings are the second line's business."""
    for name in ("why", "check-spread", "statusmessage"):
        text = text.replace(f'id="{name}"', "")
    return text


RENDERED = {name: text for name, text in PROSE.items() if len(text) < 10_000 and "attachment:" not in text}


def test_the_corpus_is_alive():
    """What is tested below would act if it were let through: nbconvert's own filter passes it on."""
    alive = [name for name, text in RENDERED.items() if actors(raw(text))]
    assert len(alive) >= 40, sorted(set(PROSE) - set(alive))
    assert len(PROSE) + len(OUTPUTS) >= 80


@pytest.mark.parametrize("name", PROSE)
def test_prose_cannot_act(name):
    """Neither line of defence needs the other: the text alone is harmless, and so is the page alone."""
    text = plain_markdown(PROSE[name])
    assert not actors(without_names(raw(text)))
    assert plain_markdown(text) == text
    if name in RENDERED:
        assert not actors(clean(raw(PROSE[name])))


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_become_text_and_png(name):
    """Whatever the MIME type; and never a number that nbgrader could take for a grade."""
    output = plain_output(OUTPUTS[name])
    assert output.output_type in ("stream", "display_data") and output.get("name", "stdout") == "stdout"
    assert set(output.get("data", {})) <= {"text/plain", "image/png"} and not output.get("metadata")
    assert ("image/png" in output.get("data", {})) == (name == "picture with metadata")
    shown = str(output.get("text", output.get("data", {}).get("text/plain")))
    assert "\x1b" not in shown and "\u202e" not in shown and max(map(len, shown.split("\n"))) < 2_100


@pytest.mark.parametrize("template", ["feedback", "formgrade"])
def test_a_page_with_every_payload_acts_like_one_without(notebook, template):
    """Scripts, styles, forms, links and ids of the rendered page are those of the untouched release, one for one."""
    honest = actors(page(as_graded(copy.deepcopy(notebook)), template))
    bad = actors(page(as_graded(hostile(notebook)), template))
    theirs = [found for found in bad if found not in honest]
    assert len(honest) > 5 and not theirs, theirs[:5]
    assert bad == honest


def test_the_stored_notebook_is_harmless_too(notebook):
    """It is opened in JupyterLab, and read by other tools: no MIME type, no metadata, no attachment of theirs."""
    stored = as_graded(hostile(notebook))
    nbformat.validate(stored)
    for cell in stored.cells:
        assert set(cell.metadata) <= {"nbgrader"} and "attachments" not in cell
        for output in cell.get("outputs", []):
            assert set(output.get("data", {})) <= {"text/plain", "image/png"}
    assert FIRE not in str(stored.metadata)
    before = [cell.source for cell in stored.cells]
    assert [cell.source for cell in SanitizeOutputs().preprocess(stored, RESOURCES)[0].cells] == before


def test_the_judges_words_in_a_check_stay_ours(notebook):
    """The one place where HTML is shown is written by us, after the student's was removed."""
    check = next(cell for cell in notebook.cells if grade_id(cell) == "check-spread")
    check.outputs = [new_output("display_data", {"text/html": "<b>ours</b>"})]
    SanitizeOutputs().preprocess(notebook, RESOURCES)
    assert check.outputs[0].data["text/html"] == "<b>ours</b>"


ODD_IDS = [LIVE, "<b>", "a b", "../ann", ".hidden", "a/b", "a\u202eb", "x" * 65, "", "a\n", "-rf"]


@pytest.mark.parametrize("name", ODD_IDS)
def test_a_student_id_that_could_act_is_no_student_id(name):
    """Ids become folders, titles and links."""
    assert not STUDENT.fullmatch(name)


@pytest.mark.parametrize("name", ["a b", LIVE, '"', "x" * 65])
def test_a_cell_id_that_could_act_is_refused_or_replaced(notebook, name):
    """Cell ids become anchors."""
    notebook.cells[0]["id"] = name
    try:
        assert all(name != cell["id"] for cell in parse(str(nbformat.v4.writes(notebook)).encode()).cells)
    except Refused as refusal:
        assert "not a valid notebook" in refusal.student


ORDINARY = [
    "a < b, $x<y$ and `i <= j`",
    "[link](https://example.org/a?b=c&d=e#f)",
    "x << 2",
    r"$\frac{a}{b} \le e^{\mathrm{lse}_a - m}$",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "```python\nx[1:] = 3\n```",
    "**No.** A side weighs `exp(lse)`.",
    "a [x] b (y)",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_prose_reads_as_before(text):
    """Comparisons, links, formulas, tables: the words and the elements of the page are the same."""
    assert clean(raw(plain_markdown(text))).replace("\u200b", "") == clean(raw(text))
    assert plain_markdown(text).replace("\u200b", "") == text


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.names = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)


def test_a_release_looks_the_same_through_the_filter(notebook):
    """Its hints, tables and formulas consist of what the list lets through."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert Elements(clean(raw(cell.source))).names == Elements(raw(cell.source)).names


def test_a_progress_bar_shows_its_end_and_a_long_line_its_beginning():
    """As a terminal would; Windows line ends are line ends."""
    assert plain_text("10%\r50%\r100%\nnext\r\nlast") == "100%\nnext\nlast"
    assert plain_text("y" * 3_000).endswith("line cut") and plain_text("a\tb") == "a\tb"


def test_code_shows_what_an_editor_hides():
    """A direction mark can make a comment look like code; it is spelled out, and long code is cut."""
    assert plain_code("if a: # \u202e x") == "if a: # ⟨U+202E⟩ x"
    assert len(plain_code("x" * 10**6)) < sanitize.CODE_LIMIT + 100


# --- in a browser -----------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_in_a_real_browser_nothing_fires(notebook, tmp_path):
    """Chromium opens formgrader's page and the feedback, every link in it is clicked; a page not cleaned does fire."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium")
    control = f"<html><body>{''.join(map(raw, RENDERED.values()))}</body></html>"
    assert "FIRED" in browse(chromium, tmp_path, "control", control)
    stored = as_graded(hostile(notebook))
    for template in ("feedback", "formgrade"):
        seen = browse(chromium, tmp_path, template, page(stored, template))
        assert "CLICKED" in seen and "FIRED" not in seen


def browse(chromium, folder, name, text):
    """The page's console after loading it and clicking all its links.

    Chromium may end before the page is whole or its last words are out (2 of 12 times), so the page is opened again
    until it was clicked; what it says in any of these counts.
    """
    clicks = "document.querySelectorAll('a,button,summary').forEach(a => { try { a.click() } catch (e) {} })"
    path = folder / f"{name}.html"
    path.write_text(f"{text}<script>{clicks}; console.log('CLICKED')</script>", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    options += ["--virtual-time-budget=4000", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [f"--user-data-dir={folder / 'profile'}"]
    seen = ""
    for _ in range(10):
        made = subprocess.run(
            [chromium, *options, path.as_uri()], capture_output=True, text=True, timeout=120, check=False
        )
        seen += "\n".join(line for line in made.stderr.splitlines() if "CONSOLE" in line)
        seen += "FIRED" if "<title>FIRED" in made.stdout else ""
        if "CLICKED" in seen:
            break
    return seen
