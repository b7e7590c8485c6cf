"""The README is run: its commands in order on a tiny set, its links, its Python example."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_runs import STUDENT, TEACHER

from dspkd.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# The same commands, smaller.
SMALLER = {
    "tf_efficientnet_lite0": TEACHER,
    "--weights WEIGHTS": "",
    "shufflenet_v2_x1_0": STUDENT,
    "--size 112": "--size 32 --batch-size 8",
    "--epochs 10": "--epochs 1",
    "--epochs 12": "--epochs 2",
    "fp32,int8": "fp32,int8 --calibration-images 6 --margin 1",
    "--threads 1": "--threads 1 --no-memory --seconds 0 --min-rounds 5",
}


def commands():
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("dspkd ")]


def carry_out(line, monkeypatch):
    words = [
        word for part in shlex.split(line) for word in (sorted(map(str, Path().glob(part))) if "*" in part else [part])
    ]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None), line


def test_the_readme_has_the_whole_way():
    verbs = {line.split()[1] for line in commands()}
    assert {"train", "distill", "eval", "predict", "export", "verify", "bench", "report"} <= verbs


def test_commands_run_in_order(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = next((tiny_data / "images").iterdir())
    Image.open(picture).save("photo.jpg")
    used = set()
    for original in commands():
        line = original
        for long, short in SMALLER.items():
            if long in line:
                line, used = line.replace(long, short), used | {long}
        line = re.sub(r"\bDIR\b", str(tiny_data), line)
        if "recipe.toml" in line:
            write_recipe(tiny_data)
        carry_out(line, monkeypatch)
    assert used == set(SMALLER), "a substitution is no longer needed"
    assert Path("report.html").is_file()
    assert Path("artifacts/student/executorch-int8/model.pte").is_file()


def write_recipe(data):
    (recipe,) = (block for block in re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL) if "[[stages]]" in block)
    recipe = recipe.replace("epochs = 60", "epochs = 1").replace("size = 112", "size = 32\nbatch_size = 8")
    recipe = recipe.replace("shufflenet_v2_x1_0", STUDENT).replace("DIR", str(data))
    Path("recipe.toml").write_text(recipe)


def test_python_example(tiny_student, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_student, "runs/student")
    Image.open(next((tiny_data / "images").iterdir())).save("photo.jpg")
    for code in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(compile(code, "README.md", "exec"), {})
    assert "probabilities" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "DECISIONS.md", "benchmarks/README.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith(("http:", "https:")):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
