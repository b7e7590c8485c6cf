package org.dspkd.demo;

import android.app.Application;
import android.content.res.AssetManager;
import android.net.Uri;
import android.os.Build;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.util.Arrays;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/** What outlives a screen that is turned or recreated: the model, and the last answer. */
public final class DemoApp extends Application {
    /** All that takes time. {@code student} and {@code last} are written by no other thread. */
    final ExecutorService worker = Executors.newSingleThreadExecutor();
    private volatile Student student;
    private volatile Answer last;

    /** An artifact that answers here as it did at export. */
    static final class Student {
        final Artifact artifact;
        final Model model;
        final Golden.Verdict verdict;

        Student(Artifact artifact, Model model, Golden.Verdict verdict) {
            this.artifact = artifact;
            this.model = model;
            this.verdict = verdict;
        }
    }

    static final class Answer {
        final Artifact artifact;
        final Rgb pixels;
        final float[] probabilities;
        final double answeringMs;
        final double preparingMs;
        final int reduced;

        Answer(Artifact artifact, Rgb pixels, float[] probabilities, double answeringMs, double preparingMs, int reduced) {
            this.artifact = artifact;
            this.pixels = pixels;
            this.probabilities = probabilities;
            this.answeringMs = answeringMs;
            this.preparingMs = preparingMs;
            this.reduced = reduced;
        }

        int best() {
            int best = 0;
            for (int k = 1; k < probabilities.length; k++) {
                best = probabilities[k] > probabilities[best] ? k : best;
            }
            return best;
        }
    }

    Student student() {
        return student;
    }

    Answer last() {
        return last;
    }

    /** The artifact that was opened last, or else the one that was built into the app; null if there is neither. */
    Student load() throws ArtifactException, IOException {
        if (student != null) {
            return student;
        }
        File opened = new File(getFilesDir(), "opened");
        if (!opened.isDirectory()) {
            AssetManager assets = getAssets();
            String[] inside = assets.list("");
            if (inside == null || !Arrays.asList(inside).contains(Artifact.MANIFEST)) {
                return null;
            }
            // Each time: an update of the app may bring another model. ExecuTorch maps a program from a file.
            opened = new File(getFilesDir(), "built-in");
            ModelFiles.copy(assets::open, opened);
        }
        student = checked(opened);
        return student;
    }

    /** Replaces the model by one from a zip, if that stands all checks; otherwise everything stays as it was. */
    Student open(Uri zip) throws ArtifactException, IOException {
        File incoming = new File(getFilesDir(), "incoming");
        try (InputStream stream = PictureReader.open(getContentResolver(), zip)) {
            ModelFiles.unzip(stream, incoming);
            checked(incoming).model.close();
        } catch (ArtifactException | IOException | RuntimeException | LinkageError e) {
            ModelFiles.delete(incoming);
            throw e;
        }
        if (student != null) {
            student.model.close();
            student = null;
            last = null;
        }
        ModelFiles.replace(new File(getFilesDir(), "opened"), incoming);
        return load();
    }

    private Student checked(File folder) throws ArtifactException {
        Artifact artifact = Artifact.read(folder, OrgJson::parse);
        Model model = null;
        Golden.Verdict verdict = null;
        try {
            model = new ExecuTorchModel(artifact.program, artifact.takesBytes);
            verdict = artifact.golden.check(model, artifact.allowed);
        } catch (RuntimeException e) {
            throw new ArtifactException(getString(R.string.program_fails, e.getMessage()), e);
        } catch (LinkageError e) {
            throw new ArtifactException(getString(R.string.no_runtime, String.join(", ", Build.SUPPORTED_ABIS)), e);
        } finally {
            if (model != null && (verdict == null || !verdict.holds())) {
                model.close();
            }
        }
        if (!verdict.holds()) {
            throw new ArtifactException(getString(R.string.check_failed, verdict.toString()));
        }
        return new Student(artifact, model, verdict);
    }

    Answer answer(Uri uri) throws IOException {
        PictureReader.Decoded decoded = PictureReader.read(getContentResolver(), uri);
        long start = System.nanoTime();
        Rgb pixels = student.artifact.prepare(decoded.square);
        long middle = System.nanoTime();
        float[] probabilities = student.model.probabilities(pixels);
        long end = System.nanoTime();
        last = new Answer(student.artifact, pixels, probabilities, (end - middle) / 1e6, (middle - start) / 1e6,
                decoded.reduced);
        return last;
    }
}
