package org.dspkd.demo;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;

/** The arrays of a numpy {@code .npz} file that golden.npz is made of: uint8, float32 and single strings. */
final class Npz implements AutoCloseable {
    private static final Pattern HEADER =
            Pattern.compile("'descr':\\s*'([^']*)'.*'fortran_order':\\s*(\\w+).*'shape':\\s*\\(([^)]*)\\)");
    private static final byte[] MAGIC = {(byte) 0x93, 'N', 'U', 'M', 'P', 'Y'};
    private static final int LARGEST = 64 << 20;

    private final File file;
    private final ZipFile zip;

    Npz(File file) throws IOException {
        this.file = file;
        this.zip = new ZipFile(file);
    }

    boolean has(String name) {
        return zip.getEntry(name + ".npy") != null;
    }

    /** Shape (N, H, W, 3) and the like; the values of a uint8 array as they lie in the file. */
    Array bytes(String name) throws IOException {
        Array array = read(name);
        expect(array.type.equals("|u1"), name, "is no uint8 array");
        return array;
    }

    float[][] rows(String name) throws IOException {
        Array array = read(name);
        expect(array.type.equals("<f4") && array.shape.length == 2, name, "is no float32 matrix");
        float[][] rows = new float[array.shape[0]][array.shape[1]];
        for (float[] row : rows) {
            for (int i = 0; i < row.length; i++) {
                row[i] = array.data.getFloat();
            }
        }
        return rows;
    }

    String text(String name) throws IOException {
        Array array = read(name);
        expect(array.type.startsWith("<U") && array.shape.length == 0, name, "is no string");
        StringBuilder text = new StringBuilder();
        while (array.data.remaining() >= 4) {
            int codePoint = array.data.getInt();
            if (codePoint == 0) {
                break;
            }
            text.appendCodePoint(codePoint);
        }
        return text.toString();
    }

    @Override
    public void close() throws IOException {
        zip.close();
    }

    static final class Array {
        final String type;
        final int[] shape;
        final ByteBuffer data;

        Array(String type, int[] shape, ByteBuffer data) {
            this.type = type;
            this.shape = shape;
            this.data = data;
        }
    }

    private Array read(String name) throws IOException {
        ZipEntry entry = zip.getEntry(name + ".npy");
        expect(entry != null, name, "is missing");
        ByteBuffer data = ByteBuffer.wrap(unpacked(name, entry)).order(ByteOrder.LITTLE_ENDIAN);
        try {
            byte[] magic = new byte[MAGIC.length];
            data.get(magic);
            expect(Arrays.equals(magic, MAGIC), name, "is no numpy array");
            int major = data.get();
            data.get();
            int length = major == 1 ? data.getShort() & 0xffff : data.getInt();
            expect(length >= 0 && length <= data.remaining(), name, "has no readable header");
            byte[] header = new byte[length];
            data.get(header);
            Matcher match = HEADER.matcher(new String(header, StandardCharsets.UTF_8));
            expect(match.find(), name, "has no readable header");
            int[] shape = shape(match.group(3));
            expect(shape.length < 2 || match.group(2).equals("False"), name, "is in Fortran's order");
            long bytes = width(match.group(1));
            for (int side : shape) {
                expect(side > 0, name, "is empty");
                bytes = Math.multiplyExact(bytes, side);
            }
            expect(data.remaining() == bytes, name, "is cut off");
            return new Array(match.group(1), shape, data);
        } catch (BufferUnderflowException | ArithmeticException | IllegalArgumentException e) {
            throw new IOException(file.getName() + ": " + name + " is damaged", e);
        }
    }

    /** By what comes out, not by the size that the entry claims: a file may be made to unpack without end. */
    private byte[] unpacked(String name, ZipEntry entry) throws IOException {
        ByteArrayOutputStream unpacked = new ByteArrayOutputStream();
        byte[] block = new byte[1 << 16];
        try (InputStream stream = zip.getInputStream(entry)) {
            for (int n = stream.read(block); n >= 0; n = stream.read(block)) {
                unpacked.write(block, 0, n);
                expect(unpacked.size() <= LARGEST, name, "is larger than 64 MB");
            }
        }
        return unpacked.toByteArray();
    }

    private static int[] shape(String text) {
        List<Integer> lengths = new ArrayList<>();
        for (String length : text.split(",")) {
            if (!length.trim().isEmpty()) {
                lengths.add(Integer.parseInt(length.trim()));
            }
        }
        return lengths.stream().mapToInt(Integer::intValue).toArray();
    }

    /** Bytes of a value: numpy counts characters of four bytes in strings. */
    private static long width(String type) {
        if (type.length() < 3) {
            throw new IllegalArgumentException(type);
        }
        long number = Integer.parseInt(type.substring(2));
        return type.charAt(1) == 'U' ? 4 * number : number;
    }

    private void expect(boolean holds, String name, String otherwise) throws IOException {
        if (!holds) {
            throw new IOException(file.getName() + ": " + name + " " + otherwise);
        }
    }
}
