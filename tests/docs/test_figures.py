"""The script that makes the README's pictures, with an untrained model."""

import importlib.util

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.tiny_model import make_model

from granvit import predict


def test_what_goes_in_and_what_comes_out_stand_side_by_side(tmp_path, monkeypatch):
    for name in ("LONGEST_DESCRIPTION", "LONGEST_BOX"):
        monkeypatch.setattr(predict, name, 4)
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    make_model().save(tmp_path)
    picture = figures.in_and_out(tmp_path, 4)
    assert picture.width == pytest.approx(912) and picture.height > 480
    halves = np.asarray(picture)[:, :456], np.asarray(picture)[:, 456:]
    assert all((half != 255).any(-1).mean() > 0.3 for half in halves)
    assert not np.array_equal(*halves)
