"""`python -m course VERB`: each verb is one module with `main(argv) -> int`, imported only when it is asked for."""

import importlib
import sys
from collections.abc import Sequence

VERBS = {
    "lab": ("course.lab", "open the course in JupyterLab"),
    "doctor": ("course.doctor", "is this machine ready? one fix per problem"),
    "notebooks": ("course.notebooks", "build stale notebooks from their .py sources; --check only reports"),
    "models": ("course.models", "fetch the pinned model and text packages"),
    "audit": ("course.audit", "recompute the numbers of the source lectures; --check only reports"),
    "syllabus": ("course.syllabus", "rewrite syllabus.md from the labs and the dates; --check only reports"),
    "readme": ("course.readme", "rewrite the generated tables of README.md; --check only reports"),
}


def usage() -> str:
    verbs = "\n".join(f"  {verb:<10} {says}" for verb, (_, says) in VERBS.items())
    return f"Usage: python -m course VERB [OPTIONS]\n{verbs}\nExample: python -m course doctor --json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return its exit status. An unknown verb is 2, as in argparse."""
    verb, *rest = sys.argv[1:] if argv is None else argv or [""]
    if verb in ("", "-h", "--help"):
        print(usage())
        return 0 if verb else 2
    if verb not in VERBS:
        print(f"course: there is no verb {verb!r}.\n{usage()}", file=sys.stderr)
        return 2
    return int(importlib.import_module(VERBS[verb][0]).main(rest) or 0)


if __name__ == "__main__":
    sys.exit(main())
