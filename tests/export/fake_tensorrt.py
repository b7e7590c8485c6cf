"""A `tensorrt` module that has exactly the names of a recorded one, for Python 3.8 and later.

What it builds and runs is decided by a settings file (JSON):

    surface   a recorded API, see record_tensorrt_api.py; any other name raises AttributeError
    model     what the ONNX file holds: inputs [{name, shape}], outputs, half, quantised, unsupported {node: reason}
    calls     where every call is written to, one JSON list a line
    execute   "row_sums": output k of an image is k + 1 times the sum of its input; "onnxruntime": the model itself

Arguments are checked against the recorded signatures, with TypeError as pybind11 has it.
"""

import ctypes
import enum
import json
import math
import re
from pathlib import Path


class Enum(enum.Enum):
    """pybind11's: str() with the name of the class, int() for the value."""

    def __int__(self):
        return self.value


def install(namespace, settings_file):
    """Put the module's names into `namespace`, the globals of a file named tensorrt.py."""
    settings = json.loads(Path(settings_file).read_text())
    surface = json.loads(Path(settings["surface"]).read_text())
    module = Module(settings, surface)
    namespace.update(module.enums, __version__=surface["version"])
    namespace.update({name: module.class_of(name) for name in ("Builder", "OnnxParser", "Runtime")})
    namespace["ILogger"] = Logger


class Module:
    def __init__(self, settings, surface):
        self.settings, self.surface = settings, surface
        self.enums = {name: Enum(name, members) for name, members in surface["enums"].items()}

    def class_of(self, name):
        """The implementation below, cut down to the recorded members."""
        module, members, base = self, self.surface["classes"][name], IMPLEMENTATIONS[name]

        class Restricted(base):
            def __getattribute__(self, attribute):
                if attribute.startswith("_"):
                    return object.__getattribute__(self, attribute)
                if attribute not in members:
                    raise AttributeError(f"'tensorrt.{name}' object has no attribute {attribute!r}")
                if not hasattr(type(self), attribute) and attribute not in self.__dict__:
                    raise NotImplementedError(f"the fake has no {name}.{attribute}")
                value = object.__getattribute__(self, attribute)
                return module.checked(name, attribute, members[attribute], value) if members.get(attribute) else value

            def __setattr__(self, attribute, value):
                if not attribute.startswith("_") and attribute not in members:
                    raise AttributeError(f"'tensorrt.{name}' object has no attribute {attribute!r}")
                object.__setattr__(self, attribute, value)

        Restricted.__name__ = Restricted.__qualname__ = name
        Restricted._module = module
        return Restricted

    def make(self, name, *arguments):
        return self.class_of(name)(*arguments)

    def checked(self, class_name, method, signature, function):
        parameters = [parameter.split(":", 1) for parameter in split_parameters(signature)][1:]

        def call(*arguments):
            shown = [repr(a) if len(repr(a)) < 200 else f"{type(a).__name__} of {len(a)}" for a in arguments]
            with Path(self.settings["calls"]).open("a") as f:
                f.write(json.dumps([f"{class_name}.{method}", *shown]) + "\n")
            needed = sum("=" not in kind for _, kind in parameters)
            if not needed <= len(arguments) <= len(parameters):
                raise TypeError(f"{method}(): incompatible function arguments, expected {signature}")
            for argument, (_, kind) in zip(arguments, parameters):  # noqa: B905  new in 3.10
                if not self.fits(argument, kind.split("=")[0].strip()):
                    raise TypeError(f"{method}(): {argument!r} does not fit {kind.strip()}")
            return function(*arguments)

        return call

    def fits(self, argument, kind):
        name = re.split(r"\.|::", kind)[-1]
        if kind in ("int", "typing.SupportsInt"):
            return hasattr(argument, "__index__")
        if kind in ("str", "bool"):
            return type(argument).__name__ == kind
        if name.lower() == "buffer":
            return isinstance(argument, (bytes, bytearray, memoryview))
        if name in ("Dims", "tuple"):
            return isinstance(argument, (tuple, list)) and all(hasattr(size, "__index__") for size in argument)
        if name in self.enums:
            return isinstance(argument, self.enums[name])
        return isinstance(argument, IMPLEMENTATIONS[name])


def split_parameters(signature):
    inside = re.search(r"\((.*)\)", signature).group(1)
    return [part.strip() for part in re.split(r",(?![^\[]*\])", inside)]


class Logger:
    Severity = Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    def log(self, severity, msg):
        raise TypeError("a logger must implement log")


class Plain:
    """What only holds values."""

    def __init__(self, **values):
        for name, value in values.items():
            object.__setattr__(self, name, value)


class HostMemory(bytes):
    @property
    def nbytes(self):
        return len(self)


class Builder:
    def __init__(self, logger):
        if not isinstance(logger, Logger):
            raise TypeError("Builder(): a logger is needed")
        self._logger = logger

    def create_network(self, flags=0):
        creation = self._module.enums["NetworkDefinitionCreationFlag"]
        names = [flag.name for flag in creation if flags >> flag.value & 1]
        network = self._module.make("INetworkDefinition")
        network._flags = names
        return network

    def create_builder_config(self):
        return self._module.make("IBuilderConfig")

    def create_optimization_profile(self):
        return self._module.make("IOptimizationProfile")

    def build_serialized_network(self, network, config):
        model, flags = self._module.settings["model"], {flag.name for flag in config._flags}
        explicit = "EXPLICIT_BATCH" in network._flags
        problem = None
        if hasattr(self._module.enums["NetworkDefinitionCreationFlag"], "EXPLICIT_BATCH") and not explicit:
            problem = "implicit batch"
        elif "STRONGLY_TYPED" in network._flags:
            problem = "precision flags in a strongly typed network" if flags & {"FP16", "INT8"} else None
        elif model["half"] and "FP16" not in flags:
            problem = "half is used, but fp16 is not configured in the builder"
        elif model["quantised"] and "INT8" not in flags:
            problem = "Q/DQ layers need the INT8 builder flag"
        if any(-1 in entry["shape"] for entry in model["inputs"]) and not config._profiles:
            problem = "a dynamic input needs an optimization profile"
        if problem:
            self._logger.log(Logger.Severity.ERROR, problem)
            return None
        if config._cache is not None:
            config._cache._content += b"+timings"
        self._logger.log(Logger.Severity.INFO, "engine generation completed")
        profile = config._profiles[0]._shapes if config._profiles else {}
        header = {"version": self._module.surface["version"], "profile": profile, "tf32": "TF32" in flags}
        return HostMemory(json.dumps(header).encode() + b"\n" + network._onnx)


class Network:
    _onnx = None
    name = ""

    def _entries(self, kind):
        return self._module.settings["model"][kind] if self._onnx else []

    num_inputs = property(lambda self: len(self._entries("inputs")))
    num_outputs = property(lambda self: len(self._entries("outputs")))
    num_layers = property(lambda self: self._module.settings["model"]["layers"] if self._onnx else 0)

    def _tensor(self, entry):
        dtype = self._module.enums["DataType"][entry.get("dtype", "FLOAT")]
        return Plain(name=entry["name"], shape=tuple(entry["shape"]), dtype=dtype)

    def get_input(self, index):
        return self._tensor(self._entries("inputs")[index])

    def get_output(self, index):
        return self._tensor(self._entries("outputs")[index])


class Cache:
    _content = b""

    def serialize(self):
        return HostMemory(self._content)


class Config:
    _cache = None

    def __init__(self):
        flags = self._module.enums["BuilderFlag"]
        self._flags = {flags.TF32} if hasattr(flags, "TF32") else set()
        self._profiles = []

    def set_flag(self, flag):
        self._flags.add(flag)

    def clear_flag(self, flag):
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool, pool_size):
        self._limit = pool_size

    def add_optimization_profile(self, profile):
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache):
        cache = self._module.make("ITimingCache")
        cache._content = bytes(serialized_timing_cache) or self._module.surface["version"].encode()
        return cache

    def set_timing_cache(self, cache, ignore_mismatch):
        fits = ignore_mismatch or cache._content.startswith(self._module.surface["version"].encode())
        if fits:
            self._cache = cache
        return fits

    def get_timing_cache(self):
        return self._cache


class Profile:
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input, min, opt, max):
        self._shapes[input] = [min, opt, max]


class Parser:
    def __init__(self, network, logger):
        if not isinstance(network, Network) or not isinstance(logger, Logger):
            raise TypeError("OnnxParser(): incompatible constructor arguments")
        self._network, self._problems = network, []

    def parse(self, model, path=None):
        unsupported = self._unsupported()
        if unsupported:
            self._problems = unsupported[:1]
            return False
        self._network._onnx = bytes(model)
        return True

    def _unsupported(self):
        return sorted((int(node), reason) for node, reason in self._module.settings["model"]["unsupported"].items())

    @property
    def num_errors(self):
        return len(self._problems)

    def get_error(self, index):
        node, reason = self._problems[index]
        return Plain(node=lambda: node, desc=lambda: reason)

    def supports_model(self, model, path=None):
        """The nodes that are supported in groups; only the first error is known."""
        self._problems = self._unsupported()[:1]
        return not self._problems, [(nodes, not self._problems) for nodes in self._groups()]

    def supports_model_v2(self, model, path=None):
        self._problems = self._unsupported()
        return not self._problems

    def _groups(self):
        refused = [-1, *(node for node, _ in self._unsupported()), self._module.settings["model"]["layers"]]
        between = [list(range(a + 1, b)) for a, b in zip(refused, refused[1:])]  # noqa: B905, RUF007  new in 3.10
        return [nodes for nodes in between if nodes]

    num_subgraphs = property(lambda self: len(self._groups()))

    def get_subgraph_nodes(self, index):
        return self._groups()[index]

    def is_subgraph_supported(self, index):
        return not self._problems


class Runtime:
    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        header, _, onnx = bytes(serialized_engine).partition(b"\n")
        header = json.loads(header)
        if header["version"] != self._module.surface["version"]:
            self._logger.log(Logger.Severity.ERROR, "the engine plan file is not compatible with this version")
            return None
        engine = self._module.make("ICudaEngine")
        engine._profile, engine._onnx = header["profile"], onnx
        return engine


class Engine:
    @property
    def num_io_tensors(self):
        return len(self._tensors())

    def _tensors(self):
        model = self._module.settings["model"]
        return {
            entry["name"]: (mode, entry)
            for mode, entries in (("INPUT", model["inputs"]), ("OUTPUT", model["outputs"]))
            for entry in entries
        }

    def get_tensor_name(self, index):
        return list(self._tensors())[index]

    def get_tensor_mode(self, name):
        return self._module.enums["TensorIOMode"][self._tensors()[name][0]]

    def get_tensor_dtype(self, name):
        return self._module.enums["DataType"][self._tensors()[name][1].get("dtype", "FLOAT")]

    def get_tensor_shape(self, name):
        return tuple(self._tensors()[name][1]["shape"])

    def get_tensor_profile_shape(self, name, profile_index):
        return [tuple(shape) for shape in self._profile[name]]

    def create_execution_context(self):
        context = self._module.make("IExecutionContext")
        context._engine, context._addresses, context._shape = self, {}, None
        return context


class Context:
    def set_input_shape(self, name, shape):
        own = self._engine.get_tensor_shape(name)
        largest = self._engine._profile.get(name, [own] * 3)[2]
        self._shape = tuple(shape)
        return len(shape) == len(own) and 0 < shape[0] <= largest[0] and tuple(shape[1:]) == own[1:]

    def get_tensor_shape(self, name):
        return (self._shape[0], *self._engine.get_tensor_shape(name)[1:])

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        (image,), (answer,) = ([e["name"] for e in self._module.settings["model"][k]] for k in ("inputs", "outputs"))
        if stream_handle == 0 or set(self._addresses) != {image, answer}:
            return False
        rows, classes = self.get_tensor_shape(answer)
        size = math.prod(self._shape[1:])
        kind = ctypes.c_float if self._engine.get_tensor_dtype(image).name == "FLOAT" else ctypes.c_uint8
        values = (kind * (rows * size)).from_address(self._addresses[image])
        answers = (ctypes.c_float * (rows * classes)).from_address(self._addresses[answer])
        if self._module.settings["execute"] == "onnxruntime":
            answers[:] = self._infer(image, values)
            return True
        for row in range(rows):
            total = math.fsum(values[row * size : (row + 1) * size])
            answers[row * classes : (row + 1) * classes] = [total * (k + 1) for k in range(classes)]
        return True

    def _infer(self, name, values):
        import numpy as np
        import onnxruntime

        session = onnxruntime.InferenceSession(self._engine._onnx, providers=["CPUExecutionProvider"])
        return session.run(None, {name: np.ctypeslib.as_array(values).reshape(self._shape)})[0].ravel().tolist()


IMPLEMENTATIONS = {
    "Builder": Builder, "INetworkDefinition": Network, "IBuilderConfig": Config, "IOptimizationProfile": Profile,
    "ITimingCache": Cache, "OnnxParser": Parser, "Runtime": Runtime, "ICudaEngine": Engine,
    "IExecutionContext": Context,
}  # fmt: skip
