from granvit.loading.run_folder import checkpoint_of, named_checkpoint


def test_a_runs_checkpoint_is_meant_where_a_run_is_named(tmp_path):
    assert checkpoint_of(tmp_path) == tmp_path
    (tmp_path / "checkpoint").write_text("no folder")
    assert checkpoint_of(str(tmp_path)) == tmp_path
    (tmp_path / "checkpoint").unlink()
    (tmp_path / "checkpoint").mkdir()
    assert checkpoint_of(tmp_path) == tmp_path / "checkpoint"


def test_a_model_with_its_recipe_beside_it_is_no_run(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    assert named_checkpoint(str(tmp_path)) == str(tmp_path)
    assert named_checkpoint("owner/name") == "owner/name" and named_checkpoint("") == ""
