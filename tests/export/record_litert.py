"""Make tests/export/data/shufflenet-*.tflite anew, with a Python that has litert-torch.

DSPKD_LITERT_PYTHON=PYTHON python tests/export/record_litert.py

They are what the converter and the quantiser make of `recorded_student`, so that the tests need neither: only LiteRT
itself. The last step, `mirror`, is left to the tests.
"""

import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).with_name("data")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small_shufflenet import CALIBRATED, recorded_student, recording_job  # noqa: E402

from dspkd.litert_converter import run_converter  # noqa: E402
from dspkd_export import litert_target  # noqa: E402


def all_but_mirrored(script, command, *arguments):
    return "" if command == "mirror" else run_converter(script, command, *arguments)


if __name__ == "__main__":
    litert_target.run_converter = all_but_mirrored
    student = recorded_student()
    for precision in ("fp32", "int8"):
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / litert_target.MODEL_FILE
            litert_target.compile_litert(recording_job(student, Path(folder), precision, CALIBRATED))
            (DATA / f"shufflenet-{precision}.tflite").write_bytes(made.read_bytes())
