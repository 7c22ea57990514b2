"""Public data set layouts. A new one is a file here with a function under `@importer`, and its line below."""

from granvit.corpus.importers import coco, image_folder, jsonl, sroie  # noqa: F401  (importing registers them)
from granvit.corpus.importers.base import IMPORTERS, Importer, importer
from granvit.corpus.importers.run import ImportSummary, import_corpus

__all__ = ["IMPORTERS", "ImportSummary", "Importer", "import_corpus", "importer"]
