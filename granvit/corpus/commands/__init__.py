"""``granvit corpus ...``: each command a typed dataclass with a `run` that returns the exit status."""

from granvit.corpus.commands import annotating, auditing, curating, dividing, exporting, looking, making

COMMANDS: dict[str, type] = {
    "import": making.Import,
    "annotate": annotating.Annotate,
    "draw": making.Draw,
    "verify": making.Verify,
    "export": exporting.Export,
    "curate": curating.Curate,
    "leakage": curating.Leakage,
    "audit": auditing.Audit,
    "stats": looking.Stats,
    "head": looking.Head,
    "show": looking.Show,
    "merge": dividing.Merge,
    "split": dividing.Split,
    "sample": dividing.Sample,
    "tile": dividing.Tile,
}
