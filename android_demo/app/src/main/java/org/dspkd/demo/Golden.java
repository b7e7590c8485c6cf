package org.dspkd.demo;

import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/** Real pictures that travel with an artifact, and the answers that its own file gave for them when it was exported. */
final class Golden {
    final List<Rgb> pictures;
    final float[][] answers;
    /** JSON, as it was written beside the pictures at export. */
    final String classes;
    final String preprocess;

    private Golden(List<Rgb> pictures, float[][] answers, String classes, String preprocess) {
        this.pictures = pictures;
        this.answers = answers;
        this.classes = classes;
        this.preprocess = preprocess;
    }

    static Golden read(File file) throws IOException {
        try (Npz npz = new Npz(file)) {
            Npz.Array pixels = npz.bytes("pixels");
            if (pixels.shape.length != 4 || pixels.shape[1] != pixels.shape[2] || pixels.shape[3] != 3) {
                throw new IOException(file.getName() + ": pixels are no square RGB pictures");
            }
            // Nothing could run the artifact where it was made if there are no answers of its own.
            float[][] answers = npz.rows(npz.has("deployed") ? "deployed" : "pytorch");
            if (answers.length != pixels.shape[0]) {
                throw new IOException(file.getName() + ": " + answers.length + " answers for " + pixels.shape[0]
                        + " pictures");
            }
            int length = pixels.shape[1] * pixels.shape[2] * 3;
            List<Rgb> pictures = new ArrayList<>();
            for (int i = 0; i < pixels.shape[0]; i++) {
                byte[] one = new byte[length];
                pixels.data.get(one);
                pictures.add(new Rgb(pixels.shape[1], one));
            }
            return new Golden(pictures, answers, npz.text("classes"), npz.text("preprocess"));
        }
    }

    /** How far this device's answers are from those at export, and how far they may be. */
    static final class Verdict {
        final float difference;
        final float allowed;

        Verdict(float difference, float allowed) {
            this.difference = difference;
            this.allowed = allowed;
        }

        /** Also false for answers that are no numbers. */
        boolean holds() {
            return difference <= allowed;
        }

        @Override
        public String toString() {
            return String.format(Locale.ROOT, "largest difference %.1e, allowed %.0e", difference, allowed);
        }
    }

    Verdict check(Model model, float allowed) {
        float largest = 0;
        for (int i = 0; i < answers.length; i++) {
            float[] here = model.probabilities(pictures.get(i));
            if (here.length != answers[i].length) {
                return new Verdict(Float.NaN, allowed);
            }
            for (int k = 0; k < here.length; k++) {
                // Math.max keeps NaN, which a comparison would drop.
                largest = Math.max(largest, Math.abs(here[k] - answers[i][k]));
            }
        }
        return new Verdict(largest, allowed);
    }
}
