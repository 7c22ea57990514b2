"""Public data set layouts. A new one has a function under `@importer`, in a file that is named below."""

from granvit.corpus.importers import (  # noqa: F401  (importing registers them)
    coco,
    coco_variants,
    documents,
    finehard,
    flickr30k_entities,
    grit,
    image_folder,
    jsonl,
    llava,
    parquet,
    refcoco,
    text_lines,
    textocr,
    visual_genome,
    voc,
    vqa,
    webdataset,
)
from granvit.corpus.importers.base import IMPORTERS, Importer, importer
from granvit.corpus.importers.run import ImportSummary, import_corpus

__all__ = ["IMPORTERS", "ImportSummary", "Importer", "import_corpus", "importer"]
