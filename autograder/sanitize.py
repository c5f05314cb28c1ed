r"""Make what a student wrote harmless to look at: prose, outputs and code, in formgrader, feedback and notebooks.

Two lines of defence. In the notebook, before anybody opens it: prose loses the means to begin a tag, a link that is not
plain http(s), a picture, a diagram or an unknown TeX command (by a zero-width space, so that it reads as before);
outputs become plain text and PNG. In the page: `markdown2html` replaces nbconvert's filter of that name and lets only
elements of a short list through. To the eye, ordinary prose, formulas and program output stay as they were.
"""

import base64
import binascii
import functools
import re
import struct
from typing import Any

import bleach
from jinja2 import pass_context
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from nbformat.notebooknode import NotebookNode
from nbformat.v4 import new_output

TEXT_LIMIT = 20_000  # characters of one output, or of one cell of prose; a line of 200 MB is no answer
LINE_LIMIT = 2_000  # characters of one line of output
CODE_LIMIT = 60_000  # characters of one cell of code
PNG_LIMIT = 2_000_000  # characters of base64
PNG_SIDE = 8_000  # pixels: a small file can unpack to a picture that fills the memory of a browser
OUTPUTS_LIMIT = 50  # per cell
GAP = "\u200b"  # a zero-width space
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

# What turns text around or hides it (Unicode's bidirectional controls), and control characters.
HIDDEN = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n)")  # a progress bar shows what was written last

TAG = re.compile(r"<(?=[A-Za-z/!?])")  # where HTML would begin a tag, a comment or an autolink
FENCE = re.compile(
    r"([`~]{3,}[^\S\n]*)(?=[^\s`~\u200b])(?!(?:python|py|text|bash|console|json)[^\S\n]*$)", re.MULTILINE
)
PICTURE = re.compile(r"!(?=\[)")
PLAIN_URL = r"https?://[\w.~:/?#@!$&*+,;=%-]+"
LINK = re.compile(rf"\](?=\()(?!\({PLAIN_URL}\))")
REFERENCE = re.compile(rf"\](?=:)(?!: {PLAIN_URL}$)", re.MULTILINE)
# TeX that only makes signs. MathJax has commands that make links, attributes, and new commands; those stay text.
TEX = frozenset(
    re.findall(
        r"\w+",
        """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma
    tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell infty partial
    nabla hbar forall exists in notin ni subset subseteq supset supseteq cup cap setminus emptyset varnothing to
    gets mapsto rightarrow leftarrow Rightarrow Leftarrow leftrightarrow Leftrightarrow iff implies le leq ge
    geq ne neq ll gg approx sim simeq equiv cong propto times cdot div pm mp ast star circ bullet oplus otimes
    odot top bot perp mid nmid parallel land lor lnot neg wedge vee sum prod int oint min max sup inf lim log ln
    exp sin cos tan tanh arg argmax argmin det dim ker Pr gcd mod bmod pmod frac dfrac tfrac sqrt binom over hat
    bar tilde vec dot ddot overline underline widehat widetilde overbrace underbrace left right big Big bigg
    Bigg bigl bigr Bigl Bigr langle rangle lceil rceil lfloor rfloor lvert rvert lVert rVert vert Vert begin end
    text textbf textit texttt textrm mathrm mathbf mathit mathsf mathtt mathcal mathbb mathfrak boldsymbol
    operatorname quad qquad space ldots cdots dots vdots ddots prime dagger limits nolimits displaystyle
    textstyle stackrel underset overset substack phantom middle colon backslash not checkmark blacksquare square
    triangle
    """,
    )
)
COMMAND = re.compile(r"\\(?=([A-Za-z]+))")

# What rendered prose may consist of, the release's own included.
TAGS = frozenset(
    re.findall(
        r"\w+",
        """
    a abbr b blockquote br code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i kbd li mark ol p pre s
    small span strong sub summary sup table tbody td th thead tr u ul
    """,
    )
)
ALIGN = re.compile(r"text-align:\s*(left|right|center)\s*;?")
CLASS = re.compile(r"(highlight|anchor-link|task-list-item|task-list-item-checkbox|language-\w+|[a-z]\w?\w?)")
ATTRIBUTES = {"a": ("href", "title"), "abbr": ("title",), "details": ("open",), "ol": ("start",)}
PROTOCOLS = ["http", "https", "mailto"]


# --- in the notebook ----------------------------------------------------------------------------------


def plain_markdown(source: str) -> str:
    """Markdown in which no tag can begin and no link can run code; to the eye it reads as before. Idempotent."""
    text = TAG.sub(f"<{GAP}", cut(show_hidden(source)))
    text = FENCE.sub(rf"\g<1>{GAP}", PICTURE.sub(f"!{GAP}", text))
    text = REFERENCE.sub(f"]{GAP}", LINK.sub(f"]{GAP}", text))
    return COMMAND.sub(lambda found: found[0] if found[1] in TEX else f"\\{GAP}", text)


def plain_output(output: NotebookNode) -> NotebookNode:
    """The output as text, with a PNG if it has one. Nothing on stderr: nbgrader would read a failure into it."""
    if output.output_type == "stream":
        return new_output("stream", name="stdout", text=plain_text(output.text))
    if output.output_type == "error":
        trace = plain_text("\n".join(map(str, output.get("traceback", [])))[-TEXT_LIMIT:])
        return new_output("stream", name="stdout", text=trace)
    data = {"text/plain": plain_text(output.data.get("text/plain", ""))}
    png = output.data.get("image/png")
    if is_png(png):
        data["image/png"] = png
    return new_output("display_data", data)


def plain_text(text: Any) -> str:
    """What a terminal would show of it, without colours, in lines and in all of bounded length."""
    text = cut("".join(map(str, text)) if isinstance(text, list) else str(text))
    text = OVERWRITTEN.sub("", ANSI.sub("", text.replace("\r\n", "\n")))
    lines = (line if len(line) <= LINE_LIMIT else line[:LINE_LIMIT] + " … line cut" for line in text.split("\n"))
    return show_hidden("\n".join(lines))


def plain_code(source: str) -> str:
    """Code to look at: what an editor would hide is spelled out, so that it reads as it runs."""
    return cut(show_hidden(source), CODE_LIMIT)


def show_hidden(text: str) -> str:
    """Control and direction characters by their number: they could make a line read as another one."""
    return HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def cut(text: str, limit: int = TEXT_LIMIT) -> str:
    mark = f"\n… cut after {limit:,} characters"
    return text if len(text.replace(GAP, "")) <= limit + len(mark) else text[:limit] + mark


def is_png(data: Any) -> bool:
    """Whether this is base64 of what begins as a PNG of a plausible size."""
    if not isinstance(data, str) or len(data) > PNG_LIMIT:
        return False
    try:
        content = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        return False
    if not content.startswith(PNG_MAGIC) or content[12:16] != b"IHDR" or len(content) < 33:
        return False
    return all(0 < side <= PNG_SIDE for side in struct.unpack(">II", content[16:24]))


# --- in the page --------------------------------------------------------------------------------------


@pass_context
def markdown2html(context: Any, source: str) -> str:
    """nbconvert's filter of the same name, with only the elements of TAGS in its result."""
    del context
    return clean(markdown2html_mistune(source))


def clean(html: str) -> str:
    """HTML without anything that acts: no script, frame, form, picture, style, and links to web pages only."""
    return str(_cleaner().clean(html))


@functools.cache
def _cleaner() -> bleach.Cleaner:
    return bleach.Cleaner(tags=TAGS, attributes=_allowed, protocols=PROTOCOLS, strip=True, strip_comments=True)


def _allowed(tag: str, name: str, value: str) -> bool:
    """No ids, and no classes but those of highlighting: formgrader finds its own fields and buttons by them."""
    if name == "class":
        return bool(CLASS.fullmatch(value))
    if name == "style":
        return tag in ("td", "th") and bool(ALIGN.fullmatch(value))
    if name == "href":
        return value.startswith(("https://", "http://", "mailto:", "#"))
    return name in ATTRIBUTES.get(tag, ())
