package org.dspkd.demo;

/**
 * Step 4 of export/preprocessing.md: the square resized, with the very bytes that Pillow gives.
 *
 * <p>Android's own scaling is not antialiased in the same way; a student that is shown other pixels than those of its
 * training gives other answers than those that its certificate speaks of.
 */
final class Resize {
    private static final int PRECISION = 22;

    private Resize() {
    }

    enum Filter {
        BILINEAR(1) {
            @Override
            double at(double x) {
                x = Math.abs(x);
                return x < 1 ? 1 - x : 0;
            }
        },
        BICUBIC(2) {
            @Override
            double at(double x) {
                final double a = -0.5;
                x = Math.abs(x);
                if (x < 1) {
                    return ((a + 2) * x - (a + 3)) * x * x + 1;
                }
                return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
            }
        };

        final double reach;

        Filter(double reach) {
            this.reach = reach;
        }

        abstract double at(double x);
    }

    static Rgb to(int size, Rgb square, Filter filter) {
        int side = square.side;
        if (side == size) {
            return square;
        }
        Weights weights = new Weights(side, size, filter);
        byte[] narrow = new byte[side * size * 3];
        for (int y = 0; y < side; y++) {
            weights.resizeLine(square.bytes, y * side * 3, 3, narrow, y * size * 3, 3);
        }
        byte[] small = new byte[size * size * 3];
        for (int x = 0; x < size; x++) {
            weights.resizeLine(narrow, x * 3, size * 3, small, x * 3, size * 3);
        }
        return new Rgb(size, small);
    }

    /** What each pixel of a resized line takes from the line, as integers that mean 1 / 2^22. */
    private static final class Weights {
        private final int[] first;
        private final int[][] weight;

        Weights(int side, int size, Filter filter) {
            double scale = (double) side / size;
            double stretch = Math.max(scale, 1);
            double support = filter.reach * stretch;
            double shrink = 1 / stretch;
            first = new int[size];
            weight = new int[size][];
            for (int i = 0; i < size; i++) {
                double centre = (i + 0.5) * scale;
                first[i] = Math.max((int) (centre - support + 0.5), 0);
                int end = Math.min((int) (centre + support + 0.5), side);
                double[] value = new double[end - first[i]];
                double total = 0;
                for (int j = first[i]; j < end; j++) {
                    value[j - first[i]] = filter.at((j - centre + 0.5) * shrink);
                    total += value[j - first[i]];
                }
                weight[i] = new int[value.length];
                for (int j = 0; j < value.length; j++) {
                    double w = value[j] / total * (1 << PRECISION);
                    weight[i][j] = (int) (w < 0 ? w - 0.5 : w + 0.5);
                }
            }
        }

        /** Three channels beside one another; {@code step} leads from a pixel of the line to the next. */
        void resizeLine(byte[] in, int inStart, int inStep, byte[] out, int outStart, int outStep) {
            for (int i = 0; i < first.length; i++) {
                int red = 1 << (PRECISION - 1);
                int green = red;
                int blue = red;
                int at = inStart + first[i] * inStep;
                for (int w : weight[i]) {
                    red += (in[at] & 0xff) * w;
                    green += (in[at + 1] & 0xff) * w;
                    blue += (in[at + 2] & 0xff) * w;
                    at += inStep;
                }
                int to = outStart + i * outStep;
                out[to] = level(red);
                out[to + 1] = level(green);
                out[to + 2] = level(blue);
            }
        }

        private static byte level(int sum) {
            return (byte) Math.max(0, Math.min(255, sum >> PRECISION));
        }
    }
}
