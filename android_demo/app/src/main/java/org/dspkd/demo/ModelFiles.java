package org.dspkd.demo;

import android.content.Context;
import android.content.res.AssetManager;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.Arrays;

/**
 * Where the artifact comes from: one that was copied to the phone with adb, or else the one that was built into the app.
 *
 * <p>ExecuTorch maps a program from a file, so the one inside the app is unpacked first.
 */
final class ModelFiles {
    private static final String[] NAMES = {"model.pte", "golden.npz", Artifact.MANIFEST};

    private ModelFiles() {
    }

    /** What {@code adb push} can write to without any permission. Null while the phone's shared storage is not mounted. */
    static File pushed(Context context) {
        return context.getExternalFilesDir("model");
    }

    static File folder(Context context) throws IOException, ArtifactException {
        File pushed = pushed(context);
        if (pushed != null && new File(pushed, Artifact.MANIFEST).isFile()) {
            return pushed;
        }
        AssetManager assets = context.getAssets();
        String[] inside = assets.list("");
        if (inside == null || !Arrays.asList(inside).contains(Artifact.MANIFEST)) {
            throw new ArtifactException("There is no model yet. On the computer:\n\nadb push artifacts/student/executorch-int8/. "
                    + pushed + "/\n\nand open this app again.");
        }
        // Each time: an update of the app may bring another model, and a few megabytes take milliseconds.
        File unpacked = new File(context.getFilesDir(), "model");
        if (!unpacked.isDirectory() && !unpacked.mkdirs()) {
            throw new IOException(unpacked + " cannot be made");
        }
        for (String name : NAMES) {
            unpack(assets, name, unpacked);
        }
        return unpacked;
    }

    private static void unpack(AssetManager assets, String name, File folder) throws IOException {
        File aside = new File(folder, name + ".part");
        try (InputStream from = assets.open(name); OutputStream to = new FileOutputStream(aside)) {
            byte[] block = new byte[1 << 16];
            for (int n = from.read(block); n >= 0; n = from.read(block)) {
                to.write(block, 0, n);
            }
        }
        if (!aside.renameTo(new File(folder, name))) {
            throw new IOException(aside + " cannot be renamed");
        }
    }
}
