/* Power iteration of many small matrices. flows/power_iteration.py says what and why. */
#include "vectors.h"

enum { SUMS = 16 }; /* sums at a time, so that a compiler can vectorize them */

static real dot(int n, const real *a, const real *b) {
    real sums[SUMS] = {0}, total = 0;
    int j = 0;
    for (; j + SUMS <= n; j += SUMS)
        for (int t = 0; t < SUMS; t++) sums[t] += a[j + t] * b[j + t];
    for (; j < n; j++) total += a[j] * b[j];
    for (int t = 0; t < SUMS; t++) total += sums[t];
    return total;
}

static void normalize(int n, real *x) {
    real norm = sqrt(dot(n, x, x)), factor = 1 / (norm > (real)1e-12 ? norm : (real)1e-12);
    for (int j = 0; j < n; j++) x[j] *= factor;
}

/* Of the matrices from `begin` to `end`:
 *   W   (matrices, rows, columns)
 *   u   (matrices, rows): becomes W v, normalized
 *   v   (matrices, columns): becomes (W^T W)^iterations v, normalized
 * Returns 1. */
int power_iterate(int64_t begin, int64_t end, int rows, int columns, int iterations, const real *W, real *u, real *v) {
    for (int64_t matrix = begin; matrix < end; matrix++) {
        const real *here = W + matrix * rows * columns;
        real *left = u + matrix * rows, *right = v + matrix * columns, next[columns];
        for (int k = 0; k < iterations; k++) {
            memset(next, 0, sizeof next);
            for (int i = 0; i < rows; i++) {
                const real *row = here + i * columns;
                real along = dot(columns, row, right);
                for (int j = 0; j < columns; j++) next[j] += along * row[j];
            }
            memcpy(right, next, sizeof next);
            normalize(columns, right);
        }
        for (int i = 0; i < rows; i++) left[i] = dot(columns, here + i * columns, right);
        normalize(rows, left);
    }
    return 1;
}
