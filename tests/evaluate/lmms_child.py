"""Runs the real lmms-eval, in a process of its own: python lmms_child.py PLAN.json OUT.json, in the corpus's parent.

The plan is a list of runs, each the arguments of `simple_evaluate`. Of each the scores come back, and every answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

if __name__ == "__main__":
    # Only the tasks of this project: to index all of lmms-eval's takes a minute.
    manager = TaskManager(include_path=str(Path(__file__).parent / "lmms_tasks"), include_defaults=False)
    found = []
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        out = simple_evaluate(**arguments, task_manager=manager, bootstrap_iters=0, device="cpu", log_samples=True)
        said = {task: [row["filtered_resps"][0] for row in rows] for task, rows in out["samples"].items()}
        found.append({"scores": out["results"], "said": said, "backend": out["config"]["model_backend"]})
    Path(sys.argv[2]).write_text(json.dumps(found, default=str))
