"""A small model, and a folder that it is saved in, for all tests of exports."""

import pytest
from helpers.tiny_model import make_model


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    model.save(folder)
    return folder
