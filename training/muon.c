/* Newton and Schulz's iteration for many small matrices. training/muon.py says what and why. */
#include "vectors.h"

static int whole(int n, int parts) { return (n + parts - 1) / parts * parts; }

/* C = A B. A is rows x inner, stored with `a_row` numbers a row; B is inner x columns. Matrices are stored row by row,
 * padded with zeros to whole tiles. */
static void product(int rows, int inner, int columns, int a_row, const real *restrict A, const real *restrict B, real *restrict C) {
    for (int column = 0; column < columns; column += PANEL)
        for (int r = 0; r < rows; r += TILE) {
            Row sums[TILE] = {{{0}}};
            const real *a = A + (ptrdiff_t)r * a_row, *b = B + column;
            for (int k = 0; k < inner; k++, b += columns) {
                Row of_b;
                EACH_VECTOR of_b[v] = load(b + t);
#pragma GCC unroll 16
                for (int i = 0; i < TILE; i++) EACH_VECTOR sums[i][v] += a[(ptrdiff_t)i * a_row + k] * of_b[v];
            }
            real *c = C + (ptrdiff_t)r * columns + column;
#pragma GCC unroll 16
            for (int i = 0; i < TILE; i++) EACH_VECTOR store(c + (ptrdiff_t)i * columns + t, sums[i][v]);
        }
}

/* For each matrix of G, (matrices, rows, columns), from `begin` to before `end`: X starts as the matrix over its
 * Frobenius norm, then `steps` times X <- a X + (b A + c A A) X with A = X X^T. A tall matrix is transposed before and
 * after. Returns 0 if there is no memory. */
int orthogonalize(int64_t begin, int64_t end, int rows, int columns, int steps, double a, double b, double c, const real *G,
                  real *result) {
    int tall = rows > columns, m = tall ? columns : rows, n = tall ? rows : columns;
    int high = whole(m, TILE), wide = whole(n, PANEL), square = whole(m, PANEL);
    size_t of_X = (size_t)high * wide, of_A = (size_t)high * square, of_transposed = (size_t)n * square;
    real *X = calloc(2 * of_X + 2 * of_A + of_transposed, sizeof(real));
    if (!X) return 0;
    real *memory = X, *next = X + of_X, *A = next + of_X, *B = A + of_A, *transposed = B + of_A;
    for (int64_t matrix = begin; matrix < end; matrix++) {
        const real *from = G + matrix * m * n;
        real *to = result + matrix * m * n;
        double squares = 0;
        for (int k = 0; k < m * n; k++) squares += (double)from[k] * from[k];
        real scale = 1 / (sqrt(squares) + 1e-12);
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++) X[(ptrdiff_t)i * wide + j] = scale * from[tall ? j * m + i : i * n + j];
        for (int step = 0; step < steps; step++) {
            for (int i = 0; i < m; i++)
                for (int j = 0; j < n; j++) transposed[(ptrdiff_t)j * square + i] = X[(ptrdiff_t)i * wide + j];
            product(high, n, square, wide, X, transposed, A);
            product(high, m, square, square, A, A, B);
            for (size_t k = 0; k < of_A; k++) B[k] = (real)b * A[k] + (real)c * B[k];
            product(high, m, wide, square, B, X, next);
            for (size_t k = 0; k < of_X; k++) next[k] += (real)a * X[k];
            real *last = X;
            X = next, next = last;
        }
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++) to[tall ? j * m + i : i * n + j] = X[(ptrdiff_t)i * wide + j];
    }
    free(memory);
    return 1;
}
