"""Layouts that other trainers read. A new one is a file here with a function under `@exporter`, and its line below."""

from granvit.corpus.exporters import coco, llava, webdataset  # noqa: F401  (importing registers them)
from granvit.corpus.exporters.base import EXPORTERS, Exporter, ExportSummary, export_corpus, exporter

__all__ = ["EXPORTERS", "ExportSummary", "Exporter", "export_corpus", "exporter"]
