"""An explorable as one HTML file: no kernel, no server, nothing fetched. For tests, and for the book."""

import html
import json
import re
from pathlib import Path

from course.viz.widgets.explorable import Explorable

# JupyterLab and the book bring a theme; a bare page follows the reader's system.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}
body {{ margin: 8px; background: #ffffff; color: #1b1f24; font: 15px/1.5 system-ui, sans-serif; }}
html[data-theme="dark"] {{
  color-scheme: dark; --pst-color-background: #14181e; --pst-color-text-base: #e6e9ee; --pst-color-border: #4a5563;
}}
html[data-theme="dark"] body {{ background: #14181e; color: #e6e9ee; }}
</style>
<script>
const night = window.matchMedia("(prefers-color-scheme: dark)");
const follow = () => (document.documentElement.dataset.theme = night.matches ? "dark" : "light");
night.addEventListener("change", follow);
follow();
</script>
</head>
<body>
<main>
<h1>{title}</h1>
<div id="explorable"><noscript>{alt}</noscript></div>
</main>
<script type="module">
{module}
const options = {options};
const model = {{ get: (name) => options[name], set() {{}}, on() {{}}, off() {{}}, save_changes() {{}} }};
explorable.render({{ model, el: document.getElementById("explorable") }});
</script>
</body>
</html>
"""


def page(widget: Explorable, path: str | Path | None = None) -> str:
    """The widget, as it was made, in one HTML text; also written to `path` if one is given."""
    module = re.sub(r"^export default ", "const explorable = ", str(widget._esm), flags=re.M)
    text = PAGE.format(
        title=html.escape(widget.title),
        alt=html.escape(widget.alt()),
        css=widget._css,
        module=_inside_script(module),
        options=_inside_script(json.dumps(widget.options(), ensure_ascii=False)),
    )
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def _inside_script(text: str) -> str:
    """A closing tag in a row's name would end the script; JavaScript reads `<\\/` as the same two characters."""
    return text.replace("</", "<\\/")
