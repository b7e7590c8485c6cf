package org.dspkd.demo;

import java.io.File;
import java.security.MessageDigest;
import java.util.Arrays;

/** Lets the tests call the parts of the app that need no Android. Pictures come on standard input as RGB bytes. */
final class Harness {
    private Harness() {
    }

    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "resize":
                resize(args);
                return;
            case "square":
                Rgb square = Rgb.uprightSquare(System.in.readAllBytes(), number(args[1]), number(args[2]), number(args[3]),
                        number(args[4]));
                System.out.write(square.bytes);
                System.out.flush();
                return;
            case "unzip":
                unzip(new File(args[1]));
                return;
            case "read":
                read(new File(args[1]));
                return;
            case "check":
                check(new File(args[1]), Float.parseFloat(args[2]));
                return;
            case "planes":
                System.out.println(Arrays.toString(new Rgb(number(args[1]), System.in.readAllBytes()).planes()));
                return;
            case "allowed":
                System.out.println(Artifact.allowed(args[1]));
                return;
            case "timing":
                long[] times = Arrays.stream(args).skip(1).mapToLong(Long::parseLong).toArray();
                Timing timing = Timing.ofNanoseconds(times);
                System.out.println(timing.medianMs + " " + timing.p90Ms);
                return;
            default:
                throw new IllegalArgumentException(args[0]);
        }
    }

    private static void read(File folder) {
        try {
            Artifact artifact = Artifact.read(folder, Json::parse);
            System.out.println("ok " + artifact.classes + " " + artifact.size + " " + artifact.takesBytes);
            System.out.println(artifact.summary());
        } catch (ArtifactException e) {
            System.out.println(e.getMessage());
        }
    }

    private static void unzip(File folder) throws Exception {
        try {
            ModelFiles.unzip(System.in, folder);
            System.out.println("ok");
        } catch (ArtifactException e) {
            System.out.println(e.getMessage());
        }
    }

    /** As if this device's answers were off by that much for the last class of the last picture. */
    private static void check(File folder, float off) throws ArtifactException {
        Artifact artifact = Artifact.read(folder, Json::parse);
        Golden golden = artifact.golden;
        int last = golden.pictures.size() - 1;
        Golden.Verdict verdict = golden.check(new Model() {
            @Override
            public float[] probabilities(Rgb pixels) {
                int i = golden.pictures.indexOf(pixels);
                float[] answer = golden.answers[i].clone();
                answer[answer.length - 1] += i == last ? off : 0;
                return answer;
            }

            @Override
            public void close() {
            }
        }, artifact.allowed);
        System.out.println(verdict.holds() + " " + verdict);
    }

    /** Arguments in fives: width, height, seed, size, filter of a golden vector. Prints the result's SHA-256. */
    private static void resize(String[] args) throws Exception {
        for (int i = 1; i < args.length; i += 5) {
            Rgb square = square(number(args[i]), number(args[i + 1]), Integer.parseUnsignedInt(args[i + 2]));
            Resize.Filter filter = Resize.Filter.valueOf(args[i + 4].toUpperCase(java.util.Locale.ROOT));
            byte[] hash = MessageDigest.getInstance("SHA-256")
                    .digest(Resize.to(number(args[i + 3]), square, filter).bytes);
            StringBuilder hex = new StringBuilder();
            for (byte b : hash) {
                hex.append(String.format("%02x", b));
            }
            System.out.println(hex);
        }
    }

    private static Rgb square(int width, int height, int seed) {
        byte[] rgba = new byte[width * height * 4];
        for (int y = 0, to = 0; y < height; y++) {
            for (int x = 0; x < width; x++) {
                for (int c = 0; c < 3; c++) {
                    rgba[to++] = (byte) value(x, y, c, width, seed);
                }
                rgba[to++] = (byte) 255;
            }
        }
        return Rgb.uprightSquare(rgba, width, height, 4 * width, 1);
    }

    private static int value(int x, int y, int c, int width, int seed) {
        switch (mix((y >> 4) * 4096 + (x >> 4), seed) >>> 30) {
            case 0:
                return 0;
            case 1:
                return 255;
            case 2:
                return mix((y * width + x) * 3 + c, seed) >>> 24;
            default:
                return (5 * x + 3 * y + 85 * c) % 256;
        }
    }

    private static int mix(int n, int seed) {
        int v = n * (int) 2654435761L + seed * 40503;
        v ^= v >>> 15;
        v *= 1103515245;
        return v ^ (v >>> 13);
    }

    private static int number(String text) {
        return Integer.parseInt(text);
    }
}
