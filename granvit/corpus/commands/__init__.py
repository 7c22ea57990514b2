"""``granvit corpus ...``: each command a typed dataclass with a `run` that returns the exit status."""

from granvit.corpus.commands import annotating, auditing, exporting, making

COMMANDS: dict[str, type] = {
    "import": making.Import,
    "annotate": annotating.Annotate,
    "draw": making.Draw,
    "verify": making.Verify,
    "export": exporting.Export,
    "audit": auditing.Audit,
}
