"""Public data set layouts. A new one is a file here with a function under `@importer`, and its line below."""

from granvit.corpus.importers import (  # noqa: F401  (importing registers them)
    coco,
    docbank,
    finehard,
    flickr30k_entities,
    funsd,
    grit,
    icdar,
    image_folder,
    jsonl,
    llava,
    lvis,
    objects365,
    parquet,
    refcoco,
    sroie,
    textocr,
    visual_genome,
    voc,
    webdataset,
)
from granvit.corpus.importers.base import IMPORTERS, Importer, importer
from granvit.corpus.importers.run import ImportSummary, import_corpus

__all__ = ["IMPORTERS", "ImportSummary", "Importer", "import_corpus", "importer"]
