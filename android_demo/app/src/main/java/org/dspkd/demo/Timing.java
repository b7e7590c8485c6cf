package org.dspkd.demo;

import java.util.Arrays;
import java.util.Locale;

/** How long one answer takes on this device, for a picture that is prepared already. */
final class Timing {
    static final int WARM_UP = 20;
    static final int CALLS = 200;

    final double medianMs;
    final double p90Ms;

    private Timing(double medianMs, double p90Ms) {
        this.medianMs = medianMs;
        this.p90Ms = p90Ms;
    }

    static Timing of(Model model, Rgb pixels) {
        for (int i = 0; i < WARM_UP; i++) {
            model.probabilities(pixels);
        }
        long[] nanoseconds = new long[CALLS];
        for (int i = 0; i < CALLS; i++) {
            long start = System.nanoTime();
            model.probabilities(pixels);
            nanoseconds[i] = System.nanoTime() - start;
        }
        return ofNanoseconds(nanoseconds);
    }

    /** Nearest ranks. */
    static Timing ofNanoseconds(long[] nanoseconds) {
        long[] sorted = nanoseconds.clone();
        Arrays.sort(sorted);
        return new Timing(rank(sorted, 0.5) / 1e6, rank(sorted, 0.9) / 1e6);
    }

    private static long rank(long[] sorted, double share) {
        return sorted[(int) Math.ceil(share * sorted.length) - 1];
    }

    @Override
    public String toString() {
        return String.format(Locale.getDefault(), "median %.2f ms, nine of ten within %.2f ms (%d calls)", medianMs,
                p90Ms, CALLS);
    }
}
