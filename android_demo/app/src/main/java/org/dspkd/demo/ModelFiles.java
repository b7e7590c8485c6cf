package org.dspkd.demo;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.Arrays;
import java.util.List;
import java.util.zip.ZipEntry;
import java.util.zip.ZipInputStream;

/** Files of artifacts in the app's own folder, where no other app can change them between a check and their use. */
final class ModelFiles {
    static final List<String> NAMES = Arrays.asList("model.pte", "golden.npz", Artifact.MANIFEST);
    private static final long LARGEST = 512L << 20;

    private ModelFiles() {
    }

    /** One file of an artifact: a stream by its name. */
    interface Source {
        InputStream open(String name) throws IOException;
    }

    static void copy(Source source, File folder) throws IOException {
        make(folder);
        for (String name : NAMES) {
            try (InputStream stream = source.open(name)) {
                write(stream, new File(folder, name));
            }
        }
    }

    /** Takes an artifact's files out of a zip, wherever in it they lie, and nothing else. */
    static void unzip(InputStream stream, File folder) throws IOException, ArtifactException {
        make(folder);
        int found = 0;
        try (ZipInputStream zip = new ZipInputStream(stream)) {
            for (ZipEntry entry = zip.getNextEntry(); entry != null; entry = zip.getNextEntry()) {
                String name = new File(entry.getName()).getName();
                if (NAMES.contains(name)) {
                    write(zip, new File(folder, name));
                    found++;
                }
            }
        }
        if (found != NAMES.size()) {
            throw new ArtifactException("This file is no zip of one artifact. On the computer: zip -j student.zip "
                    + "artifacts/student/executorch-int8/*");
        }
    }

    /** So that there is always a whole artifact or none. */
    static void replace(File old, File by) throws IOException {
        delete(old);
        if (!by.renameTo(old)) {
            throw new IOException(by + " cannot be renamed");
        }
    }

    static void delete(File folder) {
        File[] files = folder.listFiles();
        if (files != null) {
            for (File file : files) {
                file.delete();
            }
        }
        folder.delete();
    }

    private static void make(File folder) throws IOException {
        delete(folder);
        if (!folder.mkdirs()) {
            throw new IOException(folder + " cannot be made");
        }
    }

    private static void write(InputStream stream, File file) throws IOException {
        try (OutputStream to = new FileOutputStream(file)) {
            byte[] block = new byte[1 << 16];
            long written = 0;
            for (int n = stream.read(block); n >= 0; n = stream.read(block)) {
                written += n;
                if (written > LARGEST) {
                    throw new IOException(file.getName() + " is larger than 512 MB");
                }
                to.write(block, 0, n);
            }
        }
    }
}
