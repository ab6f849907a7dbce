/* A chain of residual blocks and their Jacobians, forward and backward. flows/chain.py says what and why.
 *
 * Matrices lie in panels: all rows of the first PANEL columns, then all rows of the next. So a product reads and writes
 * whole vectors one after another, whichever of its factors is transposed. Columns are padded with zeros to whole panels.
 *
 * For n samples in d dimensions a stack has (1 + d) n rows: the values, then the first columns of all Jacobians, and so on.
 */
#include "vectors.h"

#ifdef DOUBLE
typedef int64_t bits;
#else
typedef int32_t bits;
#endif

/* ---- elementary functions, without branches, so that a compiler can vectorize them ---- */

/* What a real's bits are, and back. */
INLINE bits bits_of(real a) { bits b; memcpy(&b, &a, sizeof b); return b; }
INLINE real real_of(bits b) { real a; memcpy(&a, &b, sizeof a); return a; }

/* Adding ROUNDER to a number of moderate size and subtracting it again rounds the number to a whole one, which the last
 * bits of the sum hold too. */
#ifdef DOUBLE
static const real ROUNDER = 0x1.8p52;
enum { MANTISSA = 52 };
#else
static const real ROUNDER = 0x1.8p23f;
enum { MANTISSA = 23 };
#endif

INLINE void sine_and_cosine(real a, real *sine, real *cosine) {
    /* a = k pi / 2 + r with |r| <= pi / 4, in float for |a| up to some millions. Coefficients of fdlibm for double, of
     * Cephes for float. */
    real shifted = a * (real)0.63661977236758134308 + ROUNDER, k = shifted - ROUNDER;
#ifdef DOUBLE
    real r = a - k * 1.57079632673412561417e+00 - k * 6.07710050630396597660e-11 - k * 2.02226624879595063154e-21;
    r = r > 0.7855 ? 0.7855 : r; /* far out k is rounded, but sine and cosine stay in [-1, 1] */
    r = r < -0.7855 ? -0.7855 : r;
    real q = r * r;
    real s = r + r * q * (-1.66666666666666324348e-01 + q * (8.33333333332248946124e-03 + q * (-1.98412698298579493134e-04
        + q * (2.75573137070700676789e-06 + q * (-2.50507602534068634195e-08 + q * 1.58969099521155010221e-10)))));
    real c = 1 - q / 2 + q * q * (4.16666666666666019037e-02 + q * (-1.38888888888741095749e-03 + q * (2.48015872894767294178e-05
        + q * (-2.75573143513906633035e-07 + q * (2.08757232129817482790e-09 + q * -1.13596475577881948265e-11)))));
#else
    real r = a - k * 1.5703125f - k * 4.837512969970703125e-4f - k * 7.54978995489188216e-8f, q = r * r;
    real s = r + r * q * (-1.6666654611e-1f + q * (8.3321608736e-3f + q * -1.9515295891e-4f));
    real c = 1 - q / 2 + q * q * (4.166664568298827e-2f + q * (-1.388731625493765e-3f + q * 2.443315711809948e-5f));
#endif
    /* The quadrant, k mod 4: odd ones swap the two; sine is below zero in 2 and 3, cosine in 1 and 2. */
    bits quadrant = bits_of(shifted);
    enum { TO_SIGN = 8 * sizeof(bits) - 2 };
    *sine = real_of(bits_of(quadrant & 1 ? c : s) ^ (bits)((uint64_t)(quadrant & 2) << TO_SIGN));
    *cosine = real_of(bits_of(quadrant & 1 ? s : c) ^ (bits)((uint64_t)((quadrant + 1) & 2) << TO_SIGN));
}

/* Where e^a is cut off. Neither const nor static: gcc takes a static that is never written for a constant, and would
 * compute e^a at both ends beforehand and choose among three results, which takes longer than choosing between two
 * numbers. */
#ifdef DOUBLE
real smallest = -708, largest = 709;
#else
real smallest = -87, largest = 88;
#endif

/* e^r for |r| <= ln 2 / 2, from the highest power to the lowest: for double the polynomial of degree 11 whose largest
 * relative error, 3e-18, is the smallest (by Remez' algorithm); for float that of Cephes. */
#ifdef DOUBLE
static const real POWERS[] = {
    2.4994314816236954e-8, 2.7632293229705629e-7, 2.7557622499311846e-6, 2.4801486521580922e-5, 1.9841269432715297e-4,
    1.3888888951223825e-3, 8.3333333335592535e-3, 4.1666666666492768e-2, 1.6666666666666169e-1, 5.0000000000000177e-1, 1, 1};
#else
static const real POWERS[] = {
    1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1, 1};
#endif

INLINE real exponential(real a) {
    /* a = n ln 2 + r; 2^n through the exponent's bits. */
    a = a < smallest ? smallest : a;
    a = a > largest ? largest : a;
    real shifted = a * (real)1.44269504088896340736 + ROUNDER, n = shifted - ROUNDER;
    real r = a - n * (real)6.93359375e-1 + n * (real)2.12194440054690583e-4, sum = POWERS[0];
    for (unsigned k = 1; k < sizeof POWERS / sizeof *POWERS; k++) sum = sum * r + POWERS[k];
    return sum * real_of(bits_of(1) + (bits)((uint64_t)bits_of(shifted) << MANTISSA));
}

INLINE real sigmoid(real a) { return 1 / (1 + exponential(-a)); }

/* ---- the activation, whose statements come from its own file in flows/activations ----
 * From a, and from the parameter p where it has one, for each of its UNITS values: value h, slope s = dh/da, curvature
 * c = ds/da, and the derivatives by p of h and s. What is not used costs nothing. */

typedef struct { real h[UNITS], s[UNITS], c[UNITS], h_by_p[UNITS], s_by_p[UNITS]; } Activated;

INLINE Activated activated(real a, real p) {
    real h[UNITS], s[UNITS], c[UNITS], h_by_p[UNITS] = {0}, s_by_p[UNITS] = {0};
    (void)p;
    ACTIVATION
    Activated all;
    for (int u = 0; u < UNITS; u++) {
        all.h[u] = h[u], all.s[u] = s[u], all.c[u] = c[u], all.h_by_p[u] = h_by_p[u], all.s_by_p[u] = s_by_p[u];
    }
    return all;
}

/* ---- products of matrices in panels ---- */

INLINE real sum_of(Row row) {
    vector sum = row[0];
    for (int v = 1; v < VECTORS; v++) sum += row[v];
    real sums[LANES];
    store(sums, sum);
    for (int half = LANES / 2; half > 0; half /= 2) /* in pairs, so that a compiler can vectorize it */
        for (int t = 0; t < half; t++) sums[t] += sums[t + half];
    return sums[0];
}

/* A tile of C += A B: `rows` rows, one panel. Entry (i, k) of A is a[i * row + k * step]. */
INLINE void tile(int rows, const real *a, ptrdiff_t row, ptrdiff_t step, const real *b, int n, Row *c) {
    for (int k = 0; k < n; k++, a += step, b += PANEL) {
        Row of_b;
        EACH_VECTOR of_b[v] = load(b + t);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) EACH_VECTOR c[i][v] += a[i * row] * of_b[v];
    }
}

/* C = A B, all in panels: rows x inner, inner x columns. The rows are those of whole tiles. */
static void product(int rows, int inner, int columns, const real *restrict A, const real *restrict B, real *restrict C) {
    for (int column = 0; column < columns; column += PANEL, B += (ptrdiff_t)inner * PANEL)
        for (int r = 0; r < rows; r += TILE) {
            Row sums[TILE] = {{{0}}};
            for (int k = 0; k < inner; k += PANEL)
                tile(TILE, A + (ptrdiff_t)k * rows + r * PANEL, PANEL, 1, B + k * PANEL, PANEL, sums);
            real *c = C + (ptrdiff_t)column * rows + r * PANEL;
#pragma GCC unroll 16
            for (int i = 0; i < TILE; i++) EACH_VECTOR store(c + i * PANEL + t, sums[i][v]);
        }
}

INLINE void add_tile(int rows, const real *a, int n, const real *b, real *c) {
    Row sums[TILE];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) EACH_VECTOR sums[i][v] = load(c + i * PANEL + t);
    tile(rows, a, 1, PANEL, b, n, sums);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) EACH_VECTOR store(c + i * PANEL + t, sums[i][v]);
}

/* C += A^T B: A is `inner` x rows and B `inner` x columns, in panels of `stride` rows. */
static void add_transposed_product(
    int rows, int inner, int stride, int columns, const real *restrict A, const real *restrict B, real *restrict C) {
    for (int column = 0; column < columns; column += PANEL, B += (ptrdiff_t)stride * PANEL)
        for (int panel = 0; panel < rows; panel += PANEL) {
            const real *a = A + (ptrdiff_t)panel * stride;
            real *c = C + (ptrdiff_t)column * rows + panel * PANEL;
            int r = 0; /* the last tile is what is left: 16 = 6 + 6 + 4 */
            for (; r + TILE <= PANEL; r += TILE) add_tile(TILE, a + r, inner, B, c + r * PANEL);
            if (r < PANEL) add_tile(PANEL % TILE, a + r, inner, B, c + r * PANEL);
        }
}

/* ---- the chain ---- */

typedef struct {
    int32_t d, width, depth, blocks;
    real *scale, *shift;     /* (blocks, d), of the affine map before each block */
    real **weight, **bias;   /* depth + 1 each: (blocks, n_out, n_in) and (blocks, n_out) */
    real *parameter;         /* (blocks, depth), of the activations */
    int8_t *inverted;        /* (blocks): whether x + g(x) = y is solved for x, rather than x carried to x + g(x) */
    double *lipschitz;       /* (blocks): of each g, at most; below 1 where a block is inverted */
} Chain;

enum { ALIGNMENT = 64 };

static int padded(int columns) { return (columns + PANEL - 1) / PANEL * PANEL; }
static int whole_tiles(int rows) { return (rows + TILE - 1) / TILE * TILE; }

typedef struct { char *memory, *free; } Arena;

static real *take(Arena *arena, size_t n) {
    size_t bytes = (n * sizeof(real) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    real *taken = (real *)arena->free;
    arena->free += bytes;
    return taken;
}

/* One block's weights in panels. */
typedef struct {
    real *first;                  /* (d, width): the first layer's, transposed */
    real *first_bias;             /* (width) */
    real **forward;               /* of layers 2 to depth: transposed, (units * width, width) */
    real **backward;              /* the same as is, (width, units * width), for gradients alone */
    real *last;                   /* (d, units * width) */
} Packed;

static void pack(const Chain *chain, int block, Packed *packed) {
    int d = chain->d, w = chain->width, wide = padded(w), inner = UNITS * wide;
    const real *W = chain->weight[0] + (ptrdiff_t)block * w * d, *b = chain->bias[0] + (ptrdiff_t)block * w;
    for (int n = 0; n < w; n++) {
        packed->first_bias[n] = b[n];
        for (int j = 0; j < d; j++) packed->first[j * wide + n] = W[n * d + j];
    }
    for (int layer = 1; layer < chain->depth; layer++) {
        real *forward = packed->forward[layer], *backward = packed->backward[layer];
        W = chain->weight[layer] + (ptrdiff_t)block * w * UNITS * w;
        for (int n = 0; n < w; n++)
            for (int u = 0; u < UNITS; u++)
                for (int i = 0; i < w; i++) {
                    int k = u * wide + i;
                    real value = W[((ptrdiff_t)n * UNITS + u) * w + i];
                    forward[((ptrdiff_t)(n / PANEL) * inner + k) * PANEL + n % PANEL] = value;
                    if (backward) backward[((ptrdiff_t)(k / PANEL) * wide + n) * PANEL + k % PANEL] = value;
                }
    }
    W = chain->weight[chain->depth] + (ptrdiff_t)block * d * UNITS * w;
    for (int i = 0; i < d; i++)
        for (int u = 0; u < UNITS; u++)
            memcpy(packed->last + i * inner + u * wide, W + ((ptrdiff_t)i * UNITS + u) * w, w * sizeof(real));
}

/* An activation's derivatives at PANEL numbers, named as in Activated. */
typedef struct { real s[UNITS][PANEL], c[UNITS][PANEL], h_by_p[UNITS][PANEL], s_by_p[UNITS][PANEL]; } Slopes;

/* What one thread works in. */
typedef struct {
    Packed weights;
    int stacked;          /* what a stack has of each sample: its value and d tangents, or its value alone */
    real *x;              /* (n, d): what enters the network */
    real **pre;           /* depth stacks of `width` columns: what enters each activation, the first without tangents */
    real *post;           /* stack of units * width columns: what leaves one */
    real *slopes;         /* (width, n) in panels, of Slopes: the derivatives of the activation that was made last */
    real *by_post, *by_pre; /* the gradients by them */
    real *out;            /* (1 + d, n, d): value and Jacobian, or the gradient by them */
    real *by_x;           /* (n, d) */
    real **by_weight;     /* of layers 2 to depth, in panels */
} Work;

/* Lays `work` out in the arena; called twice, first to learn its size. */
static void lay_out(const Chain *chain, int n, int with_gradients, Arena *arena, Work *work, real **pointers) {
    int d = chain->d, wide = padded(chain->width), inner = UNITS * wide, depth = chain->depth;
    size_t rows = whole_tiles((1 + d) * n), matrix = (size_t)wide * inner;
    work->weights.forward = pointers, work->weights.backward = pointers + depth;
    work->pre = pointers + 2 * depth, work->by_weight = pointers + 3 * depth;
    work->weights.first = take(arena, (size_t)d * wide);
    work->weights.first_bias = take(arena, wide);
    work->weights.last = take(arena, (size_t)d * inner);
    for (int layer = 0; layer < depth; layer++) {
        work->weights.forward[layer] = layer ? take(arena, matrix) : NULL;
        work->weights.backward[layer] = layer && with_gradients ? take(arena, matrix) : NULL;
        work->by_weight[layer] = layer && with_gradients ? take(arena, matrix) : NULL;
        work->pre[layer] = take(arena, layer ? rows * wide : (size_t)n * wide);
    }
    work->x = take(arena, (size_t)n * d);
    work->post = take(arena, rows * inner);
    work->out = take(arena, (size_t)(1 + d) * n * d);
    work->by_x = take(arena, (size_t)n * d);
    work->slopes = with_gradients ? take(arena, (size_t)n * wide * (sizeof(Slopes) / sizeof(real) / PANEL)) : NULL;
    work->by_post = with_gradients ? take(arena, rows * inner) : NULL;
    work->by_pre = with_gradients ? take(arena, rows * wide) : NULL;
}

static int begin_work(const Chain *chain, int n, int with_gradients, Arena *arena, Work *work) {
    real **pointers = calloc(4 * chain->depth, sizeof *pointers);
    if (!pointers) return 0;
    /* The size first, in an arena without memory. */
    Arena measure = {(char *)ALIGNMENT, (char *)ALIGNMENT};
    lay_out(chain, n, with_gradients, &measure, work, pointers);
    arena->memory = calloc(1, measure.free - measure.memory + ALIGNMENT);
    if (!arena->memory) { free(pointers); return 0; }
    arena->free = arena->memory + (ALIGNMENT - (uintptr_t)arena->memory % ALIGNMENT) % ALIGNMENT;
    lay_out(chain, n, with_gradients, arena, work, pointers);
    return 1;
}

static void end_work(Arena *arena, Work *work) {
    free(work->weights.forward);
    free(arena->memory);
}

/* pre[0] = W_1 x + b_1, values alone: the tangents are the columns of W_1 for every sample. */
static void first_layer(const Chain *chain, int n, Work *work) {
    int d = chain->d, wide = padded(chain->width);
    for (int panel = 0; panel < wide; panel += PANEL)
        for (int r = 0; r < n; r++) {
            Row sums;
            EACH_VECTOR sums[v] = load(work->weights.first_bias + panel + t);
            for (int j = 0; j < d; j++) {
                real x = work->x[r * d + j];
                EACH_VECTOR sums[v] += x * load(work->weights.first + j * wide + panel + t);
            }
            real *to = work->pre[0] + (ptrdiff_t)panel * n + r * PANEL;
            EACH_VECTOR store(to + t, sums[v]);
        }
}

/* The tangents of what enters an activation, of one panel: where tangent j of sample r is. */
typedef struct { const real *first; ptrdiff_t next, below; } Tangents;

INLINE Tangents tangents_of(const Work *work, int layer, int wide, int rows, int n, int panel) {
    if (layer) return (Tangents){work->pre[layer] + (ptrdiff_t)panel * rows + n * PANEL, n * PANEL, PANEL};
    return (Tangents){work->weights.first + panel, wide, 0};
}

INLINE const real *tangent(Tangents all, int j, int r) { return all.first + j * all.next + r * all.below; }

/* post = phi(pre[layer]): h for the values, s times the tangent for the tangents. Leaves `slopes`, if there are any. */
static void activate(const Chain *chain, int block, int layer, int n, Work *work) {
    int wide = padded(chain->width), tangents = work->stacked - 1, rows = whole_tiles(work->stacked * n);
    real p = chain->parameter[block * chain->depth + layer];
    for (int panel = 0; panel < wide; panel += PANEL) {
        const real *a = work->pre[layer] + (ptrdiff_t)panel * (layer ? rows : n);
        Slopes *slopes = work->slopes ? (Slopes *)work->slopes + panel / PANEL * n : NULL;
        Tangents along = tangents_of(work, layer, wide, rows, n, panel);
        real *post = work->post + (ptrdiff_t)panel * rows;
        for (int r = 0; r < n; r++, a += PANEL) {
            real h[UNITS][PANEL], s[UNITS][PANEL];
            if (slopes) {
                EACH_LANE {
                    Activated phi = activated(a[t], p);
                    for (int u = 0; u < UNITS; u++) {
                        h[u][t] = phi.h[u], s[u][t] = slopes->s[u][t] = phi.s[u], slopes->c[u][t] = phi.c[u];
                        slopes->h_by_p[u][t] = phi.h_by_p[u], slopes->s_by_p[u][t] = phi.s_by_p[u];
                    }
                }
                slopes++;
            } else if (tangents) {
                EACH_LANE {
                    Activated phi = activated(a[t], p);
                    for (int u = 0; u < UNITS; u++) h[u][t] = phi.h[u], s[u][t] = phi.s[u];
                }
            } else { /* an inverse's values alone: slopes would cost a twentieth of its time */
                EACH_LANE {
                    Activated phi = activated(a[t], p);
                    for (int u = 0; u < UNITS; u++) h[u][t] = phi.h[u];
                }
            }
            for (int u = 0; u < UNITS; u++) {
                real *to = post + (ptrdiff_t)u * wide * rows + r * PANEL;
                EACH_VECTOR store(to + t, load(h[u] + t));
                for (int j = 0; j < tangents; j++)
                    EACH_VECTOR store(to + (1 + j) * n * PANEL + t, load(s[u] + t) * load(tangent(along, j, r) + t));
            }
        }
    }
}

/* out = W post, of the last layer; the bias is added to the values. */
static void last_layer(const Chain *chain, int block, int n, Work *work) {
    int d = chain->d, inner = UNITS * padded(chain->width), rows = whole_tiles(work->stacked * n);
    const real *bias = chain->bias[chain->depth] + (ptrdiff_t)block * d;
    for (int r = 0; r < work->stacked * n; r++)
        for (int i = 0; i < d; i++) {
            Row sums = {{0}};
            for (int k = 0; k < inner; k += PANEL) {
                const real *from = work->post + (ptrdiff_t)k * rows + r * PANEL;
                EACH_VECTOR sums[v] += load(from + t) * load(work->weights.last + i * inner + k + t);
            }
            work->out[r * d + i] = sum_of(sums) + (r < n ? bias[i] : 0);
        }
}

static void add_bias(const real *bias, int width, int n, int rows, real *stack) {
    for (int panel = 0; panel < width; panel += PANEL) {
        real here[PANEL] = {0}, *to = stack + (ptrdiff_t)panel * rows;
        memcpy(here, bias + panel, sizeof(real) * (width - panel < PANEL ? width - panel : PANEL));
        for (int r = 0; r < n; r++) EACH_LANE to[r * PANEL + t] += here[t];
    }
}

/* The gradient by that bias, added to `by_bias`. */
static void add_sums(const real *stack, int width, int n, int rows, real *by_bias) {
    for (int panel = 0; panel < width; panel += PANEL) {
        real sums[PANEL] = {0};
        const real *from = stack + (ptrdiff_t)panel * rows;
        for (int r = 0; r < n; r++) EACH_LANE sums[t] += from[r * PANEL + t];
        for (int t = 0; t < PANEL && panel + t < width; t++) by_bias[panel + t] += sums[t];
    }
}

/* Where in `kept` is what belongs to the samples from `start`, of one block and layer. */
static int64_t place_in_kept(const Chain *chain, int64_t batch, int chunk, int block, int layer, int64_t start) {
    int wide = padded(chain->width);
    int64_t of_chunk = (int64_t)whole_tiles((1 + chain->d) * chunk) * wide, chunks = (batch + chunk - 1) / chunk;
    return (((int64_t)block * (chain->depth - 1) + layer - 1) * chunks + start / chunk) * of_chunk;
}

/* Numbers that `forward` keeps for `backward`. */
int64_t kept_numbers(const Chain *chain, int64_t batch, int chunk) {
    return place_in_kept(chain, batch, chunk, chain->blocks, 1, 0);
}

static void enter_block(const Chain *chain, int block, int n, const real *z, Work *work) {
    int d = chain->d;
    for (int r = 0; r < n; r++)
        for (int j = 0; j < d; j++)
            work->x[r * d + j] = z[r * d + j] * chain->scale[block * d + j] + chain->shift[block * d + j];
}

/* g and J at work->x, into work->out. `pre` of layers 2 to depth must point to where they belong. */
static void evaluate_block(const Chain *chain, int block, int n, Work *work) {
    int w = chain->width, wide = padded(w), rows = whole_tiles(work->stacked * n);
    first_layer(chain, n, work);
    for (int layer = 1; layer < chain->depth; layer++) {
        activate(chain, block, layer - 1, n, work);
        product(rows, UNITS * wide, wide, work->post, work->weights.forward[layer], work->pre[layer]);
        add_bias(chain->bias[layer] + (ptrdiff_t)block * w, w, n, rows, work->pre[layer]);
    }
    activate(chain, block, chain->depth - 1, n, work);
    last_layer(chain, block, n, work);
}

/* M, d x d, becomes its inverse: Gauss and Jordan without pivots, since for M = I + J with |J| < 1 none is near zero. */
static void invert(int d, real *M) {
    for (int k = 0; k < d; k++) {
        real pivot = 1 / M[k * d + k];
        M[k * d + k] = 1;
        for (int j = 0; j < d; j++) M[k * d + j] *= pivot;
        for (int i = 0; i < d; i++) {
            if (i == k) continue;
            real factor = M[i * d + k];
            M[i * d + k] = 0;
            for (int j = 0; j < d; j++) M[i * d + j] -= factor * M[k * d + j];
        }
    }
}

/* b = M a. */
static void multiply(int d, const real *M, const real *a, real *b) {
    for (int i = 0; i < d; i++) {
        b[i] = 0;
        for (int j = 0; j < d; j++) b[i] += M[i * d + j] * a[j];
    }
}

/* M = (I + J)^-1 of sample r, from the `n` that evaluate_block left in work->out. */
static void invert_jacobian(int d, int n, int r, const Work *work, real *M) {
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j++) M[i * d + j] = (i == j) + work->out[((1 + j) * n + r) * d + i];
    invert(d, M);
}

/* Residuals over max(1, |y|): the target of `forward`, and one from which a single Newton step more should reach it. */
#ifdef DOUBLE
static const real SOLVED = 1e-12, NEARLY_SOLVED = 1e-7;
#else
static const real SOLVED = 1e-5, NEARLY_SOLVED = 1e-3;
#endif

/* |a| / max(1, |y|). */
static real relative(int d, const real *a, const real *y) {
    real norm = 0, size = 0;
    for (int i = 0; i < d; i++) norm += a[i] * a[i], size += y[i] * y[i];
    return sqrt(norm) / (size > 1 ? sqrt(size) : 1);
}

/* residual = y - x - g; returns its norm over max(1, |y|). */
static real residual_of(int d, const real *y, const real *x, const real *g, real *residual) {
    for (int i = 0; i < d; i++) residual[i] = y[i] - x[i] - g[i];
    return relative(d, residual, y);
}

/* Solves x + g(x) = y from a start in work->x. Leaves x in work->x, g and J at x in work->out, and what enters the
 * activations in work->pre. Takes Newton steps, as flows/fixed_point.py does: one that does not shrink the residual by
 * the factor L is taken back for x + r, which does. Samples that are solved take no more steps; samples that are not
 * finite take none.
 *   y        (n, d)
 *   target   for the residuals, over max(1, |y|)
 * Returns 0 if a residual stays above `target`. */
static int solve_block(const Chain *chain, int block, int n, const real *y, double target, Work *work) {
    int d = chain->d, active[n], left = 0;
    real x[n * d], fallback[n * d], limit[n], residual[d], step[d], M[d * d], enough = fmax(NEARLY_SOLVED, target);
    double L = chain->lipschitz[block];
    memcpy(x, work->x, sizeof x);
    memcpy(fallback, y, sizeof fallback);
    for (int s = 0; s < n; s++) {
        int finite = 1;
        for (int i = 0; i < d; i++) finite &= isfinite(y[s * d + i]) && isfinite(x[s * d + i]);
        limit[s] = INFINITY;
        if (finite) active[left++] = s;
    }
    /* Every second step at least shrinks a residual by L: the first residuals say how many may be needed. */
    double steps = 0, most_steps = INFINITY;
    for (;;) {
        for (; left; steps++) {
            if (steps > most_steps) return 0;
            for (int k = 0; k < left; k++) memcpy(work->x + k * d, x + active[k] * d, sizeof(real) * d);
            evaluate_block(chain, block, left, work);
            int others = 0;
            real largest = 0;
            for (int k = 0; k < left; k++) {
                int s = active[k];
                const real *here = work->x + k * d;
                real norm = residual_of(d, y + s * d, here, work->out + k * d, residual);
                int accepted = norm <= limit[s];
                invert_jacobian(d, left, k, work, M);
                multiply(d, M, residual, step);
                for (int i = 0; i < d; i++) {
                    x[s * d + i] = accepted ? here[i] + step[i] : fallback[s * d + i];
                    fallback[s * d + i] = here[i] + residual[i];
                }
                limit[s] = accepted ? L * norm : INFINITY;
                largest = norm > largest ? norm : largest;
                if (!accepted || norm > enough) active[others++] = s;
            }
            if (steps == 0) most_steps = 8 + (isfinite(largest) ? 2 * log(target / fmax(largest, target)) / log(L) : 0);
            left = others;
        }
        memcpy(work->x, x, sizeof x);
        evaluate_block(chain, block, n, work);
        for (int s = 0; s < n; s++)
            if (residual_of(d, y + s * d, x + s * d, work->out + s * d, residual) > target) active[left++] = s;
        if (!left) return 1;
        enough = target;
    }
}

/* Carries the samples from `begin` to `end` through the chain; `begin` is a multiple of `chunk`.
 *   inputs   (blocks + 1, batch, d): the first is given; what enters each block and leaves the last
 *   jacobian (blocks, batch, d, d), or NULL
 *   kept     for `backward`, or NULL
 * Returns 0 if there is no memory, -1 if a block cannot be inverted. */
int forward(const Chain *chain, int64_t batch, int chunk, int64_t begin, int64_t end, real *inputs, real *jacobian, real *kept) {
    int d = chain->d;
    real y[chunk * d];
    Arena arena;
    Work work;
    if (!begin_work(chain, chunk, 0, &arena, &work)) return 0;
    work.stacked = jacobian ? 1 + d : 1;
    for (int block = 0; block < chain->blocks; block++) {
        pack(chain, block, &work.weights);
        for (int64_t start = begin; start < end; start += chunk) {
            int n = end - start < chunk ? end - start : chunk;
            enter_block(chain, block, n, inputs + (block * batch + start) * d, &work);
            for (int layer = 1; layer < chain->depth && kept; layer++)
                work.pre[layer] = kept + place_in_kept(chain, batch, chunk, block, layer, start);
            real *z = inputs + ((block + 1) * batch + start) * d;
            if (chain->inverted[block]) {
                memcpy(y, work.x, sizeof(real) * n * d);
                if (!solve_block(chain, block, n, y, SOLVED, &work)) {
                    end_work(&arena, &work);
                    return -1;
                }
                memcpy(z, work.x, sizeof(real) * n * d);
            } else {
                evaluate_block(chain, block, n, &work);
                for (int k = 0; k < n * d; k++) z[k] = work.x[k] + work.out[k];
            }
            if (!jacobian) continue;
            real *J = jacobian + (block * batch + start) * d * d;
            for (int r = 0; r < n; r++)
                for (int i = 0; i < d; i++)
                    for (int j = 0; j < d; j++) J[(r * d + i) * d + j] = work.out[((1 + j) * n + r) * d + i];
        }
    }
    end_work(&arena, &work);
    return 1;
}

/* From x = z towards x + g(x) = z, g of one block, whose affine map is not used: a Newton step, then steps of Broyden's
 * method, which need no Jacobian. A sample stops where a step does not shrink its residual. The last of `steps`, or the
 * step that follows a residual of at most `enough`, is taken without evaluating its residual: it costs nothing.
 *   z, x      (batch, d)
 *   inverse   (batch, d, d): (I + J)^-1, roughly
 * Returns 0 if there is no memory. */
int approach(const Chain *chain, int block, int chunk, int64_t begin, int64_t end, int steps, double enough, const real *z,
             real *x, real *inverse) {
    int d = chain->d;
    Arena arena;
    Work work;
    if (!begin_work(chain, chunk, 0, &arena, &work)) return 0;
    pack(chain, block, &work.weights);
    for (int64_t start = begin; start < end; start += chunk) {
        int n = end - start < chunk ? end - start : chunk, active[n], left = n;
        const real *to = z + start * d;
        real *here = x + start * d, *inverses = inverse + start * d * d, step[n * d], last[n], residual[d], chord[d], row[d];
        memcpy(work.x, to, sizeof step);
        memcpy(here, to, sizeof step);
        work.stacked = 1 + d;
        evaluate_block(chain, block, n, &work);
        for (int s = 0; s < n; s++) {
            invert_jacobian(d, n, s, &work, inverses + s * d * d);
            last[s] = residual_of(d, to + s * d, here + s * d, work.out + s * d, residual);
            multiply(d, inverses + s * d * d, residual, step + s * d);
            active[s] = s;
        }
        work.stacked = 1;
        for (int k = 1; left && k <= steps; k++) {
            for (int a = 0; a < left; a++)
                for (int i = 0; i < d; i++) work.x[a * d + i] = here[active[a] * d + i] + step[active[a] * d + i];
            evaluate_block(chain, block, left, &work);
            int others = 0;
            for (int a = 0; a < left; a++) {
                int s = active[a];
                real *M = inverses + s * d * d, *along = step + s * d, square = 0, remainder = 0;
                real norm = residual_of(d, to + s * d, work.x + a * d, work.out + a * d, residual);
                if (!(norm < last[s])) continue;
                last[s] = norm;
                memcpy(here + s * d, work.x + a * d, sizeof(real) * d);
                multiply(d, M, residual, chord);
                for (int i = 0; i < d; i++) square += along[i] * along[i], remainder += along[i] * (along[i] - chord[i]);
                if (!(remainder > 0)) continue;
                for (int j = 0; j < d; j++) {
                    row[j] = 0;
                    for (int i = 0; i < d; i++) row[j] += along[i] * M[i * d + j];
                }
                for (int i = 0; i < d; i++) {
                    for (int j = 0; j < d; j++) M[i * d + j] += chord[i] * row[j] / remainder;
                    along[i] = chord[i] * (square / remainder); /* M residual */
                }
                if (k < steps && norm > enough) active[others++] = s;
                else for (int i = 0; i < d; i++) here[s * d + i] += along[i];
            }
            left = others;
        }
    }
    end_work(&arena, &work);
    return 1;
}

enum { LOOKS = 3 }; /* how often `certify` evaluates a sample before it hands it to `solve_block` */

/* Solves x + g(x) = y from a start in x, with the guarantee of flows/fixed_point.py: with a residual r, the distance
 * from x to the solution is at most |r| / (1 - L). Takes steps x + `inverse` r, all with the same matrix; where LOOKS
 * of them are not enough, `solve_block` takes over.
 *   y, x      (n, d)
 *   inverse   (n, d, d): (I + J)^-1, roughly
 *   largest   the largest bound so far on that distance over max(1, |y|), at most `tolerance`; raised for these samples
 * Returns 0 if rounding keeps a bound above `tolerance`, or if something is not finite. */
static int certify(const Chain *chain, int block, int n, const real *y, const float *inverse, double tolerance, real *x,
                   real *largest, Work *work) {
    int d = chain->d, rest[n], left = n;
    real residual[d], step[d], M[d * d], of_rest[n * d];
    double L = chain->lipschitz[block];
    for (int s = 0; s < n; s++) {
        if (!isfinite(relative(d, y + s * d, y + s * d))) return 0; /* so large that its square is not finite */
        rest[s] = s;
    }
    work->stacked = 1;
    for (int look = 0; look < LOOKS && left; look++) {
        for (int k = 0; k < left; k++) memcpy(work->x + k * d, x + rest[k] * d, sizeof(real) * d);
        evaluate_block(chain, block, left, work);
        int others = 0;
        for (int k = 0; k < left; k++) {
            int s = rest[k];
            real bound = residual_of(d, y + s * d, x + s * d, work->out + k * d, residual) / (1 - L);
            for (int i = 0; i < d * d; i++) M[i] = inverse[s * d * d + i];
            multiply(d, M, residual, step);
            real with_step = bound + relative(d, step, y + s * d);
            int near = bound <= tolerance / 2; /* the other half is for one step more, without a look */
            int goes_on = !near || with_step <= tolerance;
            for (int i = 0; i < d && goes_on; i++) x[s * d + i] += step[i];
            if (near) *largest = fmax(*largest, goes_on ? with_step : bound);
            else rest[others++] = s;
        }
        left = others;
    }
    if (!left) return 1;
    work->stacked = 1 + d;
    for (int k = 0; k < left; k++) {
        memcpy(of_rest + k * d, y + rest[k] * d, sizeof(real) * d);
        const real *here = x + rest[k] * d;
        for (int i = 0; i < d; i++) work->x[k * d + i] = isfinite(here[i]) ? here[i] : of_rest[k * d + i];
    }
    if (!solve_block(chain, block, left, of_rest, tolerance * (1 - L) / 2, work)) return 0;
    for (int k = 0; k < left; k++) {
        real bound = residual_of(d, of_rest + k * d, work->x + k * d, work->out + k * d, residual) / (1 - L);
        if (!(bound <= tolerance)) return 0;
        memcpy(x + rest[k] * d, work->x + k * d, sizeof(real) * d);
        *largest = fmax(*largest, bound);
    }
    return 1;
}

/* `approach`, of the library for float. */
typedef int Approach(const void *chain, int block, int chunk, int64_t begin, int64_t end, int steps, double enough,
                     const float *z, float *x, float *inverse);

/* Carries the samples from `begin` to `end` through the chain, values alone, and solves inverted blocks to a guarantee.
 *   coarse, start, steps, enough   for the starting points: the same chain in float, its `approach`, that one's limits
 *   tolerance   (blocks): see `certify`
 *   points      (blocks + 1, batch, d) if `next` is batch * d: the first are given, those after each block are written.
 *               (batch, d) if `next` is 0: the points that are given are overwritten by those after the last block.
 *   bounds      (blocks), zeros: see `certify`; they stay zero where a block is not inverted
 * Returns 0 if there is no memory, -1 if a block cannot be inverted as closely as that. */
int forward_certified(const Chain *chain, const void *coarse, Approach *start, int steps, double enough,
                      const double *tolerance, int chunk, int64_t begin, int64_t end, real *points, int64_t next,
                      real *bounds) {
    int d = chain->d, done = 1;
    int64_t share = end - begin;
    real y[chunk * d];
    Arena arena;
    Work work;
    float *rounded = malloc(sizeof(float) * share * d * (2 + d)), *x = rounded + share * d, *inverse = x + share * d;
    if (!rounded || !begin_work(chain, chunk, 0, &arena, &work)) {
        free(rounded);
        return 0;
    }
    for (int block = 0; block < chain->blocks && done == 1; block++) {
        real *before = points + block * next + begin * d, *after = before + next;
        pack(chain, block, &work.weights);
        if (chain->inverted[block]) {
            for (int64_t k = 0; k < share * d; k++)
                rounded[k] = before[k] * chain->scale[block * d + k % d] + chain->shift[block * d + k % d];
            done = start(coarse, block, chunk, 0, share, steps, enough, rounded, x, inverse);
        }
        for (int64_t first = 0; first < share && done == 1; first += chunk) {
            int n = share - first < chunk ? share - first : chunk;
            real *z = after + first * d;
            enter_block(chain, block, n, before + first * d, &work);
            if (chain->inverted[block]) {
                memcpy(y, work.x, sizeof(real) * n * d);
                for (int k = 0; k < n * d; k++) z[k] = isfinite(x[first * d + k]) ? x[first * d + k] : y[k];
                const float *M = inverse + first * d * d;
                if (!certify(chain, block, n, y, M, tolerance[block], z, bounds + block, &work)) done = -1;
            } else {
                work.stacked = 1;
                evaluate_block(chain, block, n, &work);
                for (int k = 0; k < n * d; k++) z[k] = work.x[k] + work.out[k];
            }
        }
    }
    end_work(&arena, &work);
    free(rounded);
    return done;
}

/* From by_post to by_pre, through the activation of `layer`, the one that was made last; returns the gradient by its
 * parameter. */
static real pull_back(const Chain *chain, int layer, int n, Work *work) {
    int wide = padded(chain->width), tangents = work->stacked - 1, rows = whole_tiles(work->stacked * n);
    const ptrdiff_t unit = (ptrdiff_t)wide * rows, next = (ptrdiff_t)n * PANEL;
    Row by_p = {{0}};
    for (int panel = 0; panel < wide; panel += PANEL) {
        const Slopes *slopes = (const Slopes *)work->slopes + panel / PANEL * n;
        const real *by_h = work->by_post + (ptrdiff_t)panel * rows;
        real *by_a = work->by_pre + (ptrdiff_t)panel * rows;
        Tangents all = tangents_of(work, layer, wide, rows, n, panel);
        for (int r = 0; r < n; r++, slopes++, by_h += PANEL, by_a += PANEL) {
            Row by_s[UNITS] = {{{0}}}, sum = {{0}};
            for (int j = 0; j < tangents; j++) {
                const real *along = tangent(all, j, r);
                Row sums = {{0}};
                for (int u = 0; u < UNITS; u++) {
                    const real *by_column = by_h + u * unit + (1 + j) * next;
                    EACH_VECTOR {
                        by_s[u][v] += load(by_column + t) * load(along + t);
                        sums[v] += load(by_column + t) * load(slopes->s[u] + t);
                    }
                }
                EACH_VECTOR store(by_a + (1 + j) * next + t, sums[v]);
            }
            for (int u = 0; u < UNITS; u++)
                EACH_VECTOR {
                    vector by_value = load(by_h + u * unit + t);
                    sum[v] += by_value * load(slopes->s[u] + t) + by_s[u][v] * load(slopes->c[u] + t);
                    by_p[v] += by_value * load(slopes->h_by_p[u] + t) + by_s[u][v] * load(slopes->s_by_p[u] + t);
                }
            EACH_VECTOR store(by_a + t, sum[v]);
        }
    }
    return sum_of(by_p);
}

/* Adds the gradient by the last layer and sets by_post, from the gradient by `out`. */
static void leave_last_layer(const Chain *chain, int block, int n, Work *work, Chain *gradient) {
    int d = chain->d, w = chain->width, wide = padded(w), inner = UNITS * wide, rows = whole_tiles(work->stacked * n);
    for (int i = 0; i < d; i++)
        for (int r = 0; r < n; r++) gradient->bias[chain->depth][block * d + i] += work->out[r * d + i];
    for (int k = 0; k < inner; k += PANEL) {
        const real *post = work->post + (ptrdiff_t)k * rows;
        real *by_post = work->by_post + (ptrdiff_t)k * rows;
        for (int i = 0; i < d; i++) {
            Row sums = {{0}};
            for (int r = 0; r < work->stacked * n; r++) {
                real by_out = work->out[r * d + i];
                EACH_VECTOR {
                    sums[v] += by_out * load(post + r * PANEL + t);
                    vector by_h = by_out * load(work->weights.last + i * inner + k + t);
                    if (i) by_h += load(by_post + r * PANEL + t);
                    store(by_post + r * PANEL + t, by_h);
                }
            }
            real *to = gradient->weight[chain->depth] + (((ptrdiff_t)block * d + i) * UNITS + k / wide) * w;
            for (int t = 0; t < PANEL && k % wide + t < w; t++)
                to[k % wide + t] += sums[t / LANES][t % LANES];
        }
    }
}

/* Adds the gradient by the first layer, and to by_x. */
static void leave_first_layer(const Chain *chain, int block, int n, Work *work, Chain *gradient) {
    int d = chain->d, w = chain->width, wide = padded(w), rows = whole_tiles(work->stacked * n);
    real *by_weight = gradient->weight[0] + (ptrdiff_t)block * w * d;
    add_sums(work->by_pre, w, n, rows, gradient->bias[0] + (ptrdiff_t)block * w);
    for (int panel = 0; panel < wide; panel += PANEL) {
        const real *by_pre = work->by_pre + (ptrdiff_t)panel * rows;
        for (int j = 0; j < d; j++) {
            Row sums = {{0}};
            for (int r = 0; r < n; r++) {
                real x = work->x[r * d + j];
                EACH_VECTOR sums[v] += load(by_pre + r * PANEL + t) * x;
                if (work->stacked > 1) EACH_VECTOR sums[v] += load(by_pre + ((1 + j) * n + r) * PANEL + t);
            }
            for (int t = 0; t < PANEL && panel + t < w; t++) by_weight[(panel + t) * d + j] += sums[t / LANES][t % LANES];
        }
    }
    for (int r = 0; r < n; r++)
        for (int j = 0; j < d; j++) {
            Row along = {{0}};
            for (int panel = 0; panel < wide; panel += PANEL)
                EACH_VECTOR along[v] += load(work->by_pre + (ptrdiff_t)panel * rows + r * PANEL + t)
                    * load(work->weights.first + j * wide + panel + t);
            work->by_x[r * d + j] += sum_of(along);
        }
}

/* work->out now holds the gradient by what evaluate_block left there. Adds the gradient by the parameters to
 * `gradient`, and the gradient by work->x to work->by_x. */
static void pull_back_block(const Chain *chain, int block, int n, Work *work, Chain *gradient) {
    int w = chain->width, wide = padded(w), inner = UNITS * wide, depth = chain->depth;
    int used = work->stacked * n, rows = whole_tiles(used);
    activate(chain, block, depth - 1, n, work);
    leave_last_layer(chain, block, n, work, gradient);
    for (int layer = depth - 1; layer >= 0; layer--) {
        gradient->parameter[block * depth + layer] += pull_back(chain, layer, n, work);
        if (layer == 0) break;
        add_sums(work->by_pre, w, n, rows, gradient->bias[layer] + (ptrdiff_t)block * w);
        activate(chain, block, layer - 1, n, work);
        add_transposed_product(wide, used, rows, inner, work->by_pre, work->post, work->by_weight[layer]);
        product(rows, wide, inner, work->by_pre, work->weights.backward[layer], work->by_post);
    }
    leave_first_layer(chain, block, n, work, gradient);
}

/* The same for the solution x of x + g(x) = y: turns work->by_x from the gradient v by x into the gradient w by y. With
 * J at x, w = (I + J)^-T v, and the gradient by g is -w.
 *   J   (n, d, d), at x */
static void pull_back_solution(const Chain *chain, int block, int n, const real *J, Work *work, Chain *gradient) {
    int d = chain->d, stacked = work->stacked;
    real by_y[n * d], M[d * d];
    memset(by_y, 0, sizeof by_y);
    for (int r = 0; r < n; r++) {
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) M[i * d + j] = (i == j) + J[(r * d + i) * d + j];
        invert(d, M);
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) by_y[r * d + j] += work->by_x[r * d + i] * M[i * d + j];
    }
    work->stacked = 1; /* the gradient through the Jacobian was added before */
    evaluate_block(chain, block, n, work);
    for (int k = 0; k < n * d; k++) work->out[k] = -by_y[k];
    pull_back_block(chain, block, n, work, gradient);
    work->stacked = stacked;
    memcpy(work->by_x, by_y, sizeof by_y);
}

/* The gradient of the samples from `begin` to `end`: added to `gradient`, which is zero before the first.
 *   by_z        (batch, d): by what leaves the last block; becomes the gradient by what enters the first
 *   jacobian, by_jacobian   (blocks, batch, d, d)
 * Returns 0 if there is no memory. */
int backward(const Chain *chain, Chain *gradient, int64_t batch, int chunk, int64_t begin, int64_t end, const real *inputs,
             const real *jacobian, real *kept, real *by_z, const real *by_jacobian) {
    int d = chain->d, w = chain->width, wide = padded(w), inner = UNITS * wide, depth = chain->depth;
    Arena arena;
    Work work;
    if (!begin_work(chain, chunk, 1, &arena, &work)) return 0;
    work.stacked = 1 + d;
    for (int block = chain->blocks - 1; block >= 0; block--) {
        pack(chain, block, &work.weights);
        for (int layer = 1; layer < depth; layer++) memset(work.by_weight[layer], 0, sizeof(real) * wide * inner);
        for (int64_t start = begin; start < end; start += chunk) {
            int n = end - start < chunk ? end - start : chunk, inverted = chain->inverted[block];
            const ptrdiff_t here = block * batch + start;
            const real *z = inputs + here * d;
            real *by_output = by_z + start * d;
            if (inverted) memcpy(work.x, z + batch * d, sizeof(real) * n * d);
            else enter_block(chain, block, n, z, &work);
            first_layer(chain, n, &work);
            for (int layer = 1; layer < depth; layer++)
                work.pre[layer] = kept + place_in_kept(chain, batch, chunk, block, layer, start);
            /* What leaves the block is x + g, or x, the solution, itself. */
            memcpy(work.by_x, by_output, sizeof(real) * n * d);
            for (int k = 0; k < n * d; k++) work.out[k] = inverted ? 0 : by_output[k];
            for (int r = 0; r < n; r++)
                for (int i = 0; i < d; i++)
                    for (int j = 0; j < d; j++) work.out[((1 + j) * n + r) * d + i] = by_jacobian[((here + r) * d + i) * d + j];
            pull_back_block(chain, block, n, &work, gradient);
            if (inverted) pull_back_solution(chain, block, n, jacobian + here * d * d, &work, gradient);
            for (int r = 0; r < n; r++)
                for (int j = 0; j < d; j++) {
                    real by_x = work.by_x[r * d + j];
                    gradient->shift[block * d + j] += by_x;
                    gradient->scale[block * d + j] += by_x * z[r * d + j];
                    by_output[r * d + j] = by_x * chain->scale[block * d + j];
                }
        }
        for (int layer = 1; layer < depth; layer++) {
            real *to = gradient->weight[layer] + (ptrdiff_t)block * w * UNITS * w;
            for (int n = 0; n < w; n++)
                for (int u = 0; u < UNITS; u++)
                    for (int i = 0; i < w; i++) {
                        int k = u * wide + i;
                        to[((ptrdiff_t)n * UNITS + u) * w + i] =
                            work.by_weight[layer][((ptrdiff_t)(k / PANEL) * wide + n) * PANEL + k % PANEL];
                    }
        }
    }
    end_work(&arena, &work);
    return 1;
}

/* ---- an activation alone, of rows of numbers that are not in panels ----
 * For the rows from `begin` to `end`: a and by_a are (rows, width); h, s and the gradients by them (rows, UNITS * width). */

int activate_rows(int64_t begin, int64_t end, int width, const real *p, const real *restrict a, real *restrict h,
                  real *restrict s) {
    real parameter = *p;
    for (int64_t r = begin; r < end; r++)
        for (int k = 0; k < width; k++) {
            Activated phi = activated(a[r * width + k], parameter);
            for (int u = 0; u < UNITS; u++) h[(r * UNITS + u) * width + k] = phi.h[u], s[(r * UNITS + u) * width + k] = phi.s[u];
        }
    return 1;
}

/* by_p is that of these rows. */
int pull_back_rows(int64_t begin, int64_t end, int width, const real *p, const real *restrict a, const real *restrict by_h,
                   const real *restrict by_s, real *restrict by_a, real *restrict by_p) {
    real parameter = *p, sums[width]; /* by column, so that a compiler can vectorize it */
    memset(sums, 0, sizeof sums);
    for (int64_t r = begin; r < end; r++)
        for (int k = 0; k < width; k++) {
            Activated phi = activated(a[r * width + k], parameter);
            real sum = 0;
            for (int u = 0; u < UNITS; u++) {
                ptrdiff_t at = (r * UNITS + u) * width + k;
                sum += by_h[at] * phi.s[u] + by_s[at] * phi.c[u];
                sums[k] += by_h[at] * phi.h_by_p[u] + by_s[at] * phi.s_by_p[u];
            }
            by_a[r * width + k] = sum;
        }
    *by_p = 0;
    for (int k = 0; k < width; k++) *by_p += sums[k];
    return 1;
}
