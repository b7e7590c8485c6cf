package org.dspkd.demo;

import java.io.File;
import org.pytorch.executorch.EValue;
import org.pytorch.executorch.Module;
import org.pytorch.executorch.Tensor;

/** The student's program in ExecuTorch's Android runtime. */
final class ExecuTorchModel implements Model {
    private final Module module;
    private final boolean takesBytes;

    ExecuTorchModel(File program, boolean takesBytes) {
        this.module = Module.load(program.getAbsolutePath(), Module.LOAD_MODE_MMAP);
        this.takesBytes = takesBytes;
    }

    @Override
    public float[] probabilities(Rgb pixels) {
        Tensor input = takesBytes
                ? Tensor.fromBlobUnsigned(pixels.bytes, new long[] {1, pixels.side, pixels.side, 3})
                : Tensor.fromBlob(pixels.planes(), new long[] {1, 3, pixels.side, pixels.side});
        EValue[] output = module.forward(EValue.from(input));
        if (output == null || output.length == 0) {
            throw new IllegalStateException("the program gave no answer");
        }
        return output[0].toTensor().getDataAsFloatArray();
    }

    @Override
    public void close() {
        module.destroy();
    }
}
