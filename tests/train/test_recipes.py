import json
import subprocess
import sys

import torch

from granvit.train.recipes.base import cpu_precision

# Libraries that take seconds to import.
SLOW = ("torch", "transformers", "accelerate", "grain", "matplotlib", "scipy", "datasets")


def test_the_program_starts_without_the_slow_libraries():
    """`granvit --help` shows every recipe with all its settings, which takes no torch."""
    code = (
        "import json, sys\n"
        "from granvit.cli import main\n"
        "try: main(['train', 'nano', '--help'])\n"
        "except SystemExit as left: assert left.code == 0\n"
        f"print(json.dumps([name for name in {SLOW} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--stages.0.loop.steps" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_cpus_precision_is_told_as_torch_tells_it():
    assert (cpu_precision() == "bf16") == torch.cpu._is_avx512_bf16_supported()
