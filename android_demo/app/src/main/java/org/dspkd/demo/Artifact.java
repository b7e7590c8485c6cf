package org.dspkd.demo;

import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;

/**
 * A folder that {@code dspkd export --target executorch} has written, checked before anything of it is run.
 *
 * <p>Whatever this program does not know about the preprocessing makes it refuse: answers on other pixels than those that
 * the certificate speaks of would look like any other answer.
 */
final class Artifact {
    static final String MANIFEST = "artifact.json";
    private static final int SCHEMA_VERSION = 2;
    private static final long LARGEST_MANIFEST = 4 << 20;
    private static final Set<String> PREPROCESS_KEYS = new HashSet<>(
            Arrays.asList("size", "crop", "interpolation", "antialias", "color_order", "mean", "std"));

    final File program;
    final String architecture;
    final String precision;
    final List<String> classes;
    final int size;
    final Resize.Filter filter;
    /** Bytes, N x size x size x 3, or floats in [0, 1], N x 3 x size x size. */
    final boolean takesBytes;
    final Golden golden;
    /** Balanced accuracy of this very file on the whole validation part, and the ends of its 95 % interval. */
    final double balancedAccuracy;
    final double[] interval;
    /** How far an answer for a golden picture may be off on this device. */
    final float allowed;

    /** Turns JSON into maps, lists, strings, numbers and booleans; throws IllegalArgumentException. */
    interface JsonParser {
        Object parse(String text);
    }

    static Artifact read(File folder, JsonParser json) throws ArtifactException {
        File file = new File(folder, MANIFEST);
        if (!file.isFile()) {
            throw new ArtifactException(file + " is missing: copy all that dspkd export has written into that folder");
        }
        if (file.length() > LARGEST_MANIFEST) {
            throw new ArtifactException(file + " is larger than 4 MB, so it is no manifest of dspkd: copy it again");
        }
        Object manifest;
        try {
            manifest = json.parse(new String(Files.readAllBytes(file.toPath()), StandardCharsets.UTF_8));
        } catch (IOException | IllegalArgumentException e) {
            throw new ArtifactException(file + " cannot be read: " + e.getMessage() + " (copy the artifact again)", e);
        }
        try {
            return new Artifact(folder, new Node(MANIFEST, manifest), json);
        } catch (IOException | RuntimeException e) {
            throw new ArtifactException(folder + " cannot be read: " + e.getMessage() + " (copy the artifact again)", e);
        }
    }

    private Artifact(File folder, Node manifest, JsonParser json) throws ArtifactException, IOException {
        expect(manifest.number("schema_version") == SCHEMA_VERSION,
                "artifact.json has schema_version " + (int) manifest.number("schema_version") + "; this app reads "
                        + SCHEMA_VERSION + ": export again with the dspkd beside this app");
        String target = manifest.text("target");
        expect(target.equals("executorch"), "this artifact is for " + target
                + "; this app runs those of: dspkd export --target executorch");
        precision = manifest.text("precision");
        allowed = allowed(precision);
        architecture = manifest.at("source").text("architecture");
        classes = new ArrayList<>();
        for (Object name : manifest.list("classes")) {
            classes.add(String.valueOf(name));
        }

        Node preprocess = manifest.at("preprocess");
        for (Object key : preprocess.map().keySet()) {
            expect(PREPROCESS_KEYS.contains(key), "the model was trained on pictures prepared with '" + key
                    + "', which this app cannot do; take a model without it");
        }
        size = (int) preprocess.number("size");
        expect(size >= 16 && size <= 2048, "artifact.json: preprocess.size is " + size + ", not 16 to 2048");
        preprocess.mustSay("crop", "center-square");
        preprocess.mustSay("color_order", "RGB");
        preprocess.mustSay("antialias", true);
        filter = filter(preprocess.text("interpolation"));

        Node input = manifest.at("input");
        takesBytes = input.text("dtype").equals("uint8");
        input.mustSay("layout", takesBytes ? "NHWC" : "NCHW");
        expect(takesBytes || input.text("dtype").equals("float32"), "artifact.json: input.dtype is "
                + input.text("dtype") + "; this app knows float32 and uint8");
        manifest.at("output").mustSay("name", "probabilities");

        program = checked(folder, manifest, "model.pte");
        golden = Golden.read(checked(folder, manifest, "golden.npz"));
        expect(json.parse(golden.classes).equals(manifest.list("classes"))
                        && json.parse(golden.preprocess).equals(preprocess.map()),
                "artifact.json and golden.npz name different classes or preprocessing: export again");
        for (float[] answer : golden.answers) {
            expect(answer.length == classes.size(), "golden.npz has " + answer.length + " probabilities for "
                    + classes.size() + " classes: export again");
        }
        for (Rgb picture : golden.pictures) {
            expect(picture.side == size, "golden.npz has pictures of " + picture.side + " px, not of " + size
                    + ": export again");
        }

        Node certificate = manifest.at("certificate");
        expect(Boolean.TRUE.equals(certificate.map().get("passed")),
                "the certificate of this artifact did not hold at export, so it is not used: dspkd export says why");
        Node deployed = certificate.at("deployed");
        balancedAccuracy = deployed.number("balanced_accuracy");
        List<?> ends = deployed.at("intervals").list("balanced_accuracy");
        interval = new double[] {((Number) ends.get(0)).doubleValue(), ((Number) ends.get(1)).doubleValue()};
    }

    Rgb prepare(Rgb square) {
        return Resize.to(size, square, filter);
    }

    String summary() {
        return String.format(Locale.getDefault(), "%s, %s, %d px, %.1f MB%nbalanced accuracy %.1f %% (%.1f to %.1f) on its validation images",
                architecture, precision, size, program.length() / 1e6, 100 * balancedAccuracy, 100 * interval[0],
                100 * interval[1]);
    }

    /** The bounds of {@code dspkd verify} on another machine than the one that exported. */
    static float allowed(String precision) throws ArtifactException {
        switch (precision) {
            case "fp32":
                return 1e-4f;
            case "fp16":
                return 1e-2f;
            case "int8":
                return 5e-2f;
            default:
                throw new ArtifactException("artifact.json: precision " + precision
                        + " is unknown; this app knows fp32, fp16 and int8");
        }
    }

    private static Resize.Filter filter(String interpolation) throws ArtifactException {
        switch (interpolation) {
            case "bilinear":
                return Resize.Filter.BILINEAR;
            case "bicubic":
                return Resize.Filter.BICUBIC;
            default:
                throw new ArtifactException("artifact.json: interpolation " + interpolation
                        + " is unknown; this app knows bilinear and bicubic");
        }
    }

    private static File checked(File folder, Node manifest, String name) throws ArtifactException, IOException {
        File file = new File(folder, name);
        if (!file.isFile()) {
            throw new ArtifactException(file + " is missing: copy the artifact again");
        }
        if (!sha256(file).equals(manifest.at("files").at(name).text("sha256"))) {
            throw new ArtifactException(file + " is not the file that artifact.json speaks of: copy the artifact again");
        }
        return file;
    }

    static String sha256(File file) throws IOException {
        try (InputStream stream = new FileInputStream(file)) {
            MessageDigest digest = MessageDigest.getInstance("SHA-256");
            byte[] block = new byte[1 << 16];
            for (int n = stream.read(block); n >= 0; n = stream.read(block)) {
                digest.update(block, 0, n);
            }
            StringBuilder hex = new StringBuilder();
            for (byte b : digest.digest()) {
                hex.append(String.format(Locale.ROOT, "%02x", b));
            }
            return hex.toString();
        } catch (NoSuchAlgorithmException e) {
            throw new AssertionError("every Java has SHA-256", e);
        }
    }

    private static void expect(boolean holds, String otherwise) throws ArtifactException {
        if (!holds) {
            throw new ArtifactException(otherwise);
        }
    }

    /** A part of the manifest that knows where it stands, for messages. */
    private static final class Node {
        private final String path;
        private final Object value;

        Node(String path, Object value) {
            this.path = path;
            this.value = value;
        }

        Map<?, ?> map() throws ArtifactException {
            return as(Map.class, "object");
        }

        Node at(String key) throws ArtifactException {
            return new Node(path + ": " + key, map().get(key));
        }

        String text(String key) throws ArtifactException {
            return at(key).as(String.class, "text");
        }

        double number(String key) throws ArtifactException {
            return at(key).as(Number.class, "number").doubleValue();
        }

        List<?> list(String key) throws ArtifactException {
            return at(key).as(List.class, "list");
        }

        void mustSay(String key, Object expected) throws ArtifactException {
            Object said = map().get(key);
            expect(expected.equals(said), path + ": " + key + " is " + said + "; this app knows only " + expected);
        }

        private <T> T as(Class<T> type, String name) throws ArtifactException {
            if (!type.isInstance(value)) {
                throw new ArtifactException(path + " is no " + name + ": export again");
            }
            return type.cast(value);
        }
    }
}
