/* The resize of export/preprocessing.md in C: shows that the text is enough for another language.
 *
 *     cc -std=c11 -O2 -ffp-contract=off resize.c -o resize
 *     ./resize WIDTH HEIGHT SEED SIZE bilinear|bicubic > pixels
 *
 * Computes the picture of the golden vectors, cuts its centre square, resizes it and writes the RGB bytes.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PRECISION = 22 };

static uint32_t mix(uint32_t n, uint32_t seed) {
    uint32_t v = n * 2654435761u + seed * 40503u;
    v ^= v >> 15;
    v *= 1103515245u;
    return v ^ (v >> 13);
}

static uint8_t source_value(uint32_t x, uint32_t y, uint32_t c, uint32_t width, uint32_t seed) {
    switch (mix((y >> 4) * 4096 + (x >> 4), seed) >> 30) {
    case 0:
        return 0;
    case 1:
        return 255;
    case 2:
        return (uint8_t)(mix((y * width + x) * 3 + c, seed) >> 24);
    default:
        return (uint8_t)(5 * x + 3 * y + 85 * c);
    }
}

static double triangle(double x) {
    x = x < 0 ? -x : x;
    return x < 1 ? 1 - x : 0;
}

static double cubic(double x) {
    const double a = -0.5;
    x = x < 0 ? -x : x;
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes);
    if (memory == NULL) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return memory;
}

/* `rows` rows of `source` RGB pixels. Writes the result transposed, so that a second call resizes the other direction
 * and turns it back. */
static void resize_rows(const uint8_t *in, int rows, int source, int target, int bicubic, uint8_t *out) {
    double (*filter)(double) = bicubic ? cubic : triangle;
    const double scale = (double)source / target;
    const double stretch = scale < 1 ? 1 : scale;
    const double shrink = 1 / stretch, support = (bicubic ? 2 : 1) * stretch;
    double *values = allocate(sizeof(double) * (size_t)source);
    int32_t *weights = allocate(sizeof(int32_t) * (size_t)source);
    for (int i = 0; i < target; i++) {
        const double centre = (i + 0.5) * scale;
        int first = (int)(centre - support + 0.5), end = (int)(centre + support + 0.5);
        if (first < 0) first = 0;
        if (end > source) end = source;
        double total = 0;
        for (int j = first; j < end; j++) {
            values[j] = filter((j - centre + 0.5) * shrink);
            total += values[j];
        }
        for (int j = first; j < end; j++) {
            const double weight = values[j] / total * (1 << PRECISION);
            weights[j] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
        for (int row = 0; row < rows; row++) {
            for (int c = 0; c < 3; c++) {
                int32_t sum = 1 << (PRECISION - 1);
                for (int j = first; j < end; j++) sum += in[((size_t)row * source + j) * 3 + c] * weights[j];
                sum >>= PRECISION;
                out[((size_t)i * rows + row) * 3 + c] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
            }
        }
    }
    free(values);
    free(weights);
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fputs("usage: resize WIDTH HEIGHT SEED SIZE bilinear|bicubic\n", stderr);
        return 2;
    }
    const int width = atoi(argv[1]), height = atoi(argv[2]), size = atoi(argv[4]);
    const uint32_t seed = (uint32_t)atoi(argv[3]);
    const int bicubic = strcmp(argv[5], "bicubic") == 0;
    const int side = width < height ? width : height, left = (width - side) / 2, top = (height - side) / 2;
    uint8_t *square = allocate((size_t)side * side * 3), *between = allocate((size_t)side * size * 3);
    uint8_t *result = allocate((size_t)size * size * 3);
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++)
            for (int c = 0; c < 3; c++)
                square[((size_t)y * side + x) * 3 + c] =
                    source_value((uint32_t)(x + left), (uint32_t)(y + top), (uint32_t)c, (uint32_t)width, seed);
    if (side == size) {
        memcpy(result, square, (size_t)size * size * 3);
    } else {
        resize_rows(square, side, side, size, bicubic, between);
        resize_rows(between, size, side, size, bicubic, result);
    }
    const size_t written = fwrite(result, 1, (size_t)size * size * 3, stdout);
    free(square);
    free(between);
    free(result);
    return written == (size_t)size * size * 3 ? 0 : 1;
}
