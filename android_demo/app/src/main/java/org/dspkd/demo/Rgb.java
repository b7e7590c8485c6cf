package org.dspkd.demo;

import java.util.Arrays;

/** A decoded picture: 8 bits a channel, row by row from the top, in a row from the left, in a pixel R, G, B. */
final class Rgb {
    final int width;
    final int height;
    final byte[] bytes;

    Rgb(int width, int height, byte[] bytes) {
        if (bytes.length != width * height * 3) {
            throw new IllegalArgumentException(bytes.length + " bytes for " + width + " x " + height + " pixels");
        }
        this.width = width;
        this.height = height;
        this.bytes = bytes;
    }

    /**
     * Step 2 of export/preprocessing.md for pixels with an alpha channel that are not premultiplied.
     *
     * @param rgba R, G, B, A in a pixel; a row takes {@code rowBytes}, which may be more than its pixels need
     */
    static Rgb overWhite(byte[] rgba, int width, int height, int rowBytes) {
        byte[] rgb = new byte[Math.multiplyExact(Math.multiplyExact(width, height), 3)];
        int to = 0;
        for (int y = 0; y < height; y++) {
            int from = y * rowBytes;
            for (int x = 0; x < width; x++, from += 4) {
                int alpha = rgba[from + 3] & 0xff;
                for (int c = 0; c < 3; c++) {
                    int value = rgba[from + c] & 0xff;
                    rgb[to++] = (byte) ((value * alpha + 255 * (255 - alpha) + 127) / 255);
                }
            }
        }
        return new Rgb(width, height, rgb);
    }

    /** Step 1: the picture as its EXIF orientation (1 to 8) means it to be seen; other values change nothing. */
    Rgb upright(int orientation) {
        if (orientation < 2 || orientation > 8) {
            return this;
        }
        boolean exchanged = orientation >= 5;
        boolean fromTheRight = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
        boolean fromBelow = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
        int newWidth = exchanged ? height : width;
        int newHeight = exchanged ? width : height;
        byte[] turned = new byte[bytes.length];
        int to = 0;
        for (int y = 0; y < newHeight; y++) {
            for (int x = 0; x < newWidth; x++, to += 3) {
                int column = exchanged ? y : x;
                int row = exchanged ? x : y;
                if (fromTheRight) {
                    column = width - 1 - column;
                }
                if (fromBelow) {
                    row = height - 1 - row;
                }
                System.arraycopy(bytes, (row * width + column) * 3, turned, to, 3);
            }
        }
        return new Rgb(newWidth, newHeight, turned);
    }

    /** The opaque pixels as Android's bitmaps take them. */
    int[] argb() {
        int[] colors = new int[width * height];
        Arrays.setAll(colors, i -> 0xff000000
                | (bytes[3 * i] & 0xff) << 16 | (bytes[3 * i + 1] & 0xff) << 8 | (bytes[3 * i + 2] & 0xff));
        return colors;
    }
}
