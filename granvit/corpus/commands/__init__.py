"""``granvit corpus ...``: each command a typed dataclass with a `run` that returns the exit status."""

from granvit.corpus.commands import auditing, exporting, making

COMMANDS: dict[str, type] = {
    "import": making.Import,
    "draw": making.Draw,
    "verify": making.Verify,
    "export": exporting.Export,
    "audit": auditing.Audit,
}
