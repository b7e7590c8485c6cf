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

/** Steps 1 to 3 of export/preprocessing.md with Android's decoders. */
final class PictureReader {
    /** Four bytes a pixel and three for the square, at most 112 MB: what apps get on phones with little memory. */
    private static final long MOST_PIXELS = 16_000_000;

    private PictureReader() {
    }

    static final class Decoded {
        final Rgb square;
        /** How many pixels of a side Android's decoder made one; 1 for all but very large pictures. */
        final int reduced;

        Decoded(Rgb square, int reduced) {
            this.square = square;
            this.reduced = reduced;
        }
    }

    static Decoded read(ContentResolver resolver, Uri uri) throws IOException {
        BitmapFactory.Options options = new BitmapFactory.Options();
        options.inJustDecodeBounds = true;
        decode(resolver, uri, options);
        if (options.outWidth <= 0 || options.outHeight <= 0) {
            throw new IOException("This is no picture that the phone can decode.");
        }
        options.inSampleSize = reduction(options.outWidth, options.outHeight);
        options.inJustDecodeBounds = false;
        options.inPreferredConfig = Bitmap.Config.ARGB_8888;
        // The numbers of the file: Android would multiply them by alpha.
        options.inPremultiplied = false;
        Bitmap bitmap = decode(resolver, uri, options);
        if (bitmap == null) {
            throw new IOException("This picture is damaged: the phone cannot decode it.");
        }
        try {
            if (bitmap.getConfig() != Bitmap.Config.ARGB_8888) {
                throw new IOException("This picture has more than 8 bits a channel. Save it with 8 and open it again.");
            }
            // getPixels would convert to sRGB; training took the numbers as they are in the file.
            ByteBuffer rgba = ByteBuffer.allocate(bitmap.getByteCount());
            bitmap.copyPixelsToBuffer(rgba);
            Rgb square = Rgb.uprightSquare(rgba.array(), bitmap.getWidth(), bitmap.getHeight(), bitmap.getRowBytes(),
                    orientation(resolver, uri));
            return new Decoded(square, options.inSampleSize);
        } finally {
            bitmap.recycle();
        }
    }

    private static int reduction(int width, int height) {
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

    static InputStream open(ContentResolver resolver, Uri uri) throws FileNotFoundException {
        InputStream stream = resolver.openInputStream(uri);
        if (stream == null) {
            throw new FileNotFoundException("The other app does not hand over the file.");
        }
        return stream;
    }
}
