package org.dspkd.demo;

import android.content.ContentResolver;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.media.ExifInterface;
import android.net.Uri;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;

/** Steps 1 and 2 of export/preprocessing.md with Android's decoders. */
final class PictureReader {
    /** A picture and its RGB copy take seven bytes a pixel of the app's memory. */
    private static final long MOST_PIXELS = 24_000_000;

    private PictureReader() {
    }

    static final class Decoded {
        final Rgb rgb;
        /** How many pixels of a side were made one while decoding; 1 for all but very large pictures. */
        final int reduced;

        Decoded(Rgb rgb, int reduced) {
            this.rgb = rgb;
            this.reduced = reduced;
        }
    }

    static Decoded read(ContentResolver resolver, Uri uri) throws IOException {
        BitmapFactory.Options options = new BitmapFactory.Options();
        options.inJustDecodeBounds = true;
        decode(resolver, uri, options);
        if (options.outWidth <= 0 || options.outHeight <= 0) {
            throw new IOException("no picture that this phone can decode: " + uri);
        }
        options.inSampleSize = reduction(options.outWidth, options.outHeight);
        options.inJustDecodeBounds = false;
        options.inPreferredConfig = Bitmap.Config.ARGB_8888;
        // The numbers of the file: Android would multiply them by alpha.
        options.inPremultiplied = false;
        Bitmap bitmap = decode(resolver, uri, options);
        if (bitmap == null || bitmap.getConfig() != Bitmap.Config.ARGB_8888) {
            throw new IOException("no picture that this phone can decode with 8 bits a channel: " + uri);
        }
        try {
            // getPixels would convert to sRGB; training took the numbers as they are in the file.
            ByteBuffer rgba = ByteBuffer.allocate(bitmap.getByteCount());
            bitmap.copyPixelsToBuffer(rgba);
            Rgb rgb = Rgb.overWhite(rgba.array(), bitmap.getWidth(), bitmap.getHeight(), bitmap.getRowBytes());
            return new Decoded(rgb.upright(orientation(resolver, uri)), options.inSampleSize);
        } finally {
            bitmap.recycle();
        }
    }

    static int reduction(int width, int height) {
        int reduction = 1;
        while ((long) (width / reduction) * (height / reduction) > MOST_PIXELS) {
            reduction *= 2;
        }
        return reduction;
    }

    private static Bitmap decode(ContentResolver resolver, Uri uri, BitmapFactory.Options options) throws IOException {
        try (InputStream stream = open(resolver, uri)) {
            return BitmapFactory.decodeStream(stream, null, options);
        }
    }

    private static int orientation(ContentResolver resolver, Uri uri) throws IOException {
        try (InputStream stream = open(resolver, uri)) {
            return new ExifInterface(stream).getAttributeInt(
                    ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL);
        }
    }

    private static InputStream open(ContentResolver resolver, Uri uri) throws FileNotFoundException {
        InputStream stream = resolver.openInputStream(uri);
        if (stream == null) {
            throw new FileNotFoundException("cannot be opened: " + uri);
        }
        return stream;
    }
}
