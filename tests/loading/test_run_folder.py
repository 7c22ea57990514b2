from granvit.loading.run_folder import checkpoint_of


def test_a_runs_checkpoint_is_meant_where_a_run_is_named(tmp_path):
    assert checkpoint_of(tmp_path) == tmp_path
    (tmp_path / "checkpoint").write_text("no folder")
    assert checkpoint_of(str(tmp_path)) == tmp_path
    (tmp_path / "checkpoint").unlink()
    (tmp_path / "checkpoint").mkdir()
    assert checkpoint_of(tmp_path) == tmp_path / "checkpoint"
