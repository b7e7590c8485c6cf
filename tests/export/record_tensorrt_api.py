"""Records which names a TensorRT's Python module has, for `fake_tensorrt.py`. Run by hand, once a version:

    python3.10 record_tensorrt_api.py tensorrt_bindings-8.6.1-cp310-none-manylinux_2_17_x86_64.whl > data/...

The wheels with the bindings (`tensorrt_bindings` 8.6, `tensorrt-cu12-bindings` 10, `tensorrt-cu13-bindings` 11) come
without TensorRT itself. Their extension module is imported all the same, on empty libraries that have the functions it
links to; listing its classes calls none of them.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CLASSES = (
    "Builder", "IBuilderConfig", "INetworkDefinition", "IOptimizationProfile", "OnnxParser", "ParserError", "ITensor",
    "IHostMemory", "ITimingCache", "ILogger", "Runtime", "ICudaEngine", "IExecutionContext",
)  # fmt: skip
ENUMS = ("BuilderFlag", "NetworkDefinitionCreationFlag", "MemoryPoolType", "DataType", "TensorIOMode")


def empty_libraries(extension, folder):
    """Shared libraries for everything of NVIDIA's that the extension links to."""
    symbols = subprocess.run(["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in symbols.stdout.splitlines()]
    nvidia = [name for name in names if re.match(r"(create|get(Builder|Plugin|Nv)|initLib|_ZN\d+nv)", name)]
    source = folder / "empty.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in nvidia))
    needed = subprocess.run(["readelf", "-d", extension], capture_output=True, text=True, check=True).stdout
    for library in set(re.findall(r"\[(libnv[\w.]+)\]", needed)):
        command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, source]
        subprocess.run(command, check=True)


def signature(value):
    """Of a method, as its docstring has it; of an overloaded one the first. Empty for a property."""
    lines = (value.__doc__ or "").strip().splitlines() if callable(value) else []
    overloads = [line[3:] for line in lines if line.startswith("1. ")]
    return next(iter(overloads or lines), "")


def surface(extension):
    spec = importlib.util.spec_from_file_location("tensorrt", extension)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = {
        name: {
            member: signature(getattr(getattr(module, name), member))
            for member in sorted(dir(getattr(module, name)))
            if not member.startswith("_") and not (name == "INetworkDefinition" and member.startswith("add_"))
        }
        for name in CLASSES
    }
    enums = {name: {k: int(v) for k, v in getattr(module, name).__members__.items()} for name in ENUMS}
    return {"classes": classes, "enums": enums}


def main(wheel):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        zipfile.ZipFile(wheel).extractall(folder)
        extension = folder / "tensorrt_bindings" / "tensorrt.so"
        empty_libraries(extension, folder)
        # The loader reads its search path when a process starts.
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        command = [sys.executable, __file__, "--surface", extension]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
    name = Path(wheel).name
    source = f"introspection of the extension module in {name}, imported on empty libnvinfer libraries"
    print(json.dumps({"version": name.split("-")[1], "source": source, **found}, indent=1))


if __name__ == "__main__":
    if sys.argv[1] == "--surface":
        print(json.dumps(surface(sys.argv[2])))
    else:
        main(sys.argv[1])
