package org.dspkd.demo;

import java.util.Arrays;

/** A square of decoded pixels: 8 bits a channel, row by row from the top, in a row from the left, in a pixel R, G, B. */
final class Rgb {
    final int side;
    final byte[] bytes;

    Rgb(int side, byte[] bytes) {
        if (bytes.length != side * side * 3) {
            throw new IllegalArgumentException(bytes.length + " bytes for " + side + " x " + side + " pixels");
        }
        this.side = side;
        this.bytes = bytes;
    }

    /**
     * Steps 1 to 3 of export/preprocessing.md for decoded pixels: upright, over white, and of that the largest centred
     * square. In one go, because a photo of 12 megapixels leaves no room for copies in an app's memory.
     *
     * @param rgba        R, G, B, A in a pixel, not premultiplied
     * @param rowBytes    from a row to the next, which may be more than its pixels need
     * @param orientation of EXIF, 1 to 8; other values change nothing
     */
    static Rgb uprightSquare(byte[] rgba, int width, int height, int rowBytes, int orientation) {
        boolean exchanged = orientation >= 5 && orientation <= 8;
        boolean fromTheRight = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
        boolean fromBelow = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
        int side = Math.min(width, height);
        int left = ((exchanged ? height : width) - side) / 2;
        int top = ((exchanged ? width : height) - side) / 2;
        byte[] square = new byte[side * side * 3];
        int to = 0;
        for (int y = top; y < top + side; y++) {
            for (int x = left; x < left + side; x++) {
                int column = exchanged ? y : x;
                int row = exchanged ? x : y;
                int from = (fromBelow ? height - 1 - row : row) * rowBytes
                        + (fromTheRight ? width - 1 - column : column) * 4;
                int alpha = rgba[from + 3] & 0xff;
                for (int c = 0; c < 3; c++) {
                    int value = rgba[from + c] & 0xff;
                    square[to++] = (byte) ((value * alpha + 255 * (255 - alpha) + 127) / 255);
                }
            }
        }
        return new Rgb(side, square);
    }

    /** Step 5, float32: each value divided by 255, first all of red, then green, then blue. */
    float[] planes() {
        int count = side * side;
        float[] planes = new float[3 * count];
        for (int i = 0; i < count; i++) {
            for (int c = 0; c < 3; c++) {
                planes[c * count + i] = (bytes[3 * i + c] & 0xff) / 255f;
            }
        }
        return planes;
    }

    /** The opaque pixels as Android's bitmaps take them. */
    int[] argb() {
        int[] colors = new int[side * side];
        Arrays.setAll(colors, i -> 0xff000000
                | (bytes[3 * i] & 0xff) << 16 | (bytes[3 * i + 1] & 0xff) << 8 | (bytes[3 * i + 2] & 0xff));
        return colors;
    }
}
