"""Holds one model ready in one runtime and times it on request.

    python worker.py RUNTIME PRECISION FILE THREADS

Prints one JSON line about loading; then, for each line with a number of seconds on standard input, runs that long and
prints the median and the least time of a run in milliseconds.
"""

import gc
import json
import os
import sys
import time

import numpy as np

RNG = np.random.default_rng(1)


def values(name, shape, dtype):
    """Random elements of an input."""
    dtype = np.dtype(dtype)
    if dtype.itemsize == 1:
        return RNG.integers(0, 100, shape).astype(dtype)
    if dtype.kind in "iu":
        return np.ones(shape, dtype) if "mask" in name else RNG.integers(0, 8000, shape).astype(dtype)
    return RNG.normal(0.0, 1.0, shape).astype(dtype)


def onnxruntime(_precision, path, threads, start):
    import onnxruntime

    start()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for entry in session.get_inputs():
        dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[entry.type]
        binding.bind_cpu_input(entry.name, values(entry.name, entry.shape, dtype))
    for entry in session.get_outputs():
        binding.bind_output(entry.name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def openvino(precision, path, threads, start):
    import openvino

    start()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bf16" else "f32"
    model = openvino.Core().compile_model(path, "CPU", settings)
    request = model.create_infer_request()
    kept = []  # The request only points to its inputs.
    for entry in model.inputs:
        kept.append(values(entry.any_name, list(entry.shape), entry.element_type.to_dtype()))
        request.set_tensor(entry, openvino.Tensor(kept[-1]))
    # Starting and waiting separately would hand over to another thread and cost a tenth of a millisecond.
    return lambda: (request.infer(share_outputs=True), kept)


def litert(_precision, path, threads, start):
    from ai_edge_litert.interpreter import Interpreter

    start()
    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], values(entry["name"], entry["shape"], entry["dtype"]))
    return interpreter.invoke


def ncnn(precision, path, threads, start):
    import ncnn

    with open(path) as file:
        described = json.load(file)
    start()
    net = ncnn.Net()
    net.opt.num_threads, net.opt.use_vulkan_compute = threads, False
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(net.opt, name, False)
    net.opt.use_bf16_storage = precision == "bf16"
    if net.load_param(path + ".param") or net.load_model(path + ".bin"):
        raise RuntimeError("ncnn cannot load the network")
    inputs = []
    for entry in described["inputs"]:
        dtype = np.int32 if entry["integers"] else np.float32
        inputs.append((entry["name"], ncnn.Mat(values(entry["name"], entry["shape"], dtype))))

    def run():
        extractor = net.create_extractor()
        for name, mat in inputs:
            extractor.input(name, mat)
        status, result = extractor.extract(described["output"])
        if status:
            raise RuntimeError("ncnn cannot run the network")
        return result

    return run


def mnn(precision, path, threads, start):
    import MNN

    start()
    interpreter = MNN.Interpreter(path)
    settings = {"backend": "CPU", "numThread": threads, "precision": "low" if precision == "bf16" else "high"}
    if precision == "int8":
        settings["memory"] = "low"  # Keeps the weights in 8 bits and quantizes activations as they come.
    session = interpreter.createSession(settings)
    for name, tensor in interpreter.getSessionInputAll(session).items():
        kind, shape = tensor.getDataType(), tensor.getShape()
        data = values(name, shape, np.float32 if kind == MNN.Halide_Type_Float else np.int32)
        tensor.copyFrom(MNN.Tensor(shape, kind, data, MNN.Tensor_DimensionType_Caffe))

    def run():
        if interpreter.runSession(session):
            raise RuntimeError("MNN cannot run the network")

    return run


RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino, "litert": litert, "ncnn": ncnn, "mnn": mnn}


def megabytes(row):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(row)) / 1024


def main():
    runtime, precision, path, threads = sys.argv[1:]
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    # Libraries chat on standard output: give them another one.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    clock, begun = time.perf_counter, {}

    def start():
        """What comes before is Python, not the runtime."""
        begun.update(time=clock(), memory=megabytes("VmRSS:"))

    run = RUNTIMES[runtime](precision, path, int(threads), start)
    loaded = clock()
    run()
    first = clock()
    print(json.dumps({
        "load_ms": 1e3 * (loaded - begun["time"]),
        "load_first_ms": 1e3 * (first - begun["time"]),
        "memory_mb": megabytes("VmHWM:") - begun["memory"],
    }), file=out)
    gc.disable()
    for line in sys.stdin:
        run()
        times, begin = [], clock()
        while len(times) < 2 or clock() - begin < float(line):
            before = clock()
            run()
            times.append(1e3 * (clock() - before))
        times.sort()
        print(json.dumps({"med": times[len(times) // 2], "min": times[0], "n": len(times)}), file=out)
    os._exit(0)  # Some runtimes hang while they end.


if __name__ == "__main__":
    main()
