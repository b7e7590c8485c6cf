"""Turning a student into artifacts: ONNX models and ExecuTorch programs that prove they give the same answers.

Needs torch; onnx and executorch are imported only by the target that uses them.
"""

from dspkd_export.export import TARGETS, check_request, export_student
from dspkd_export.verify import verify

__all__ = ["TARGETS", "check_request", "export_student", "verify"]
