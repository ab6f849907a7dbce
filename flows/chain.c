/* A chain of residual blocks and their Jacobians, forward and backward. flows/chain.py says what and why.
 *
 * Matrices lie in panels: all rows of the first PANEL columns, then all rows of the next. So a product reads and writes
 * whole vectors one after another, whichever of its factors is transposed. Columns are padded with zeros to whole panels.
 *
 * For n samples in d dimensions a stack has (1 + d) n rows: the values, then the first columns of all Jacobians, and so on.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef DOUBLE
typedef double real;
typedef int64_t bits;
#else
typedef float real;
typedef int32_t bits;
#endif

#ifdef __AVX__
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif
typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
enum { LANES = VECTOR_BYTES / sizeof(real), PANEL = 2 * LANES, TILE = 6 };
#define EACH_LANE for (int t = 0; t < PANEL; t++)
#define EACH_VECTOR for (int t = 0; t < PANEL; t += LANES)
#define INLINE static inline __attribute__((always_inline))

INLINE vector load(const real *from) { return *(const vector *)from; }
INLINE void store(real *to, vector what) { *(vector *)to = what; }

/* ---- elementary functions, without branches, so that a compiler can vectorize them ---- */

INLINE void sine_and_cosine(real a, real *sine, real *cosine) {
    /* a = k pi / 2 + r with |r| <= pi / 4; coefficients of fdlibm. */
    real k = rint(a * (real)0.63661977236758134308);
#ifdef DOUBLE
    real r = a - k * 1.57079632673412561417e+00 - k * 6.07710050630396597660e-11 - k * 2.02226624879595063154e-21;
#else
    real r = a - k * 1.5703125f - k * 4.837512969970703125e-4f - k * 7.54978995489188216e-8f;
#endif
    real q = r * r;
    real s = r + r * q * ((real)-1.66666666666666324348e-01 + q * ((real)8.33333333332248946124e-03 +
             q * ((real)-1.98412698298579493134e-04 + q * ((real)2.75573137070700676789e-06 +
             q * ((real)-2.50507602534068634195e-08 + q * (real)1.58969099521155010221e-10)))));
    real c = 1 - q / 2 + q * q * ((real)4.16666666666666019037e-02 + q * ((real)-1.38888888888741095749e-03 +
             q * ((real)2.48015872894767294178e-05 + q * ((real)-2.75573143513906633035e-07 +
             q * ((real)2.08757232129817482790e-09 + q * (real)-1.13596475577881948265e-11)))));
    real quadrant = k - 4 * floor(k / 4);
    int odd = (quadrant == 1) | (quadrant == 3);
    real first = odd ? c : s, second = odd ? s : c;
    *sine = quadrant >= 2 ? -first : first;
    *cosine = (quadrant == 1) | (quadrant == 2) ? -second : second;
}

INLINE real exponential(real a) {
    /* a = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series, 2^n through the exponent's bits. */
#ifdef DOUBLE
    const real low = -708, high = 709, magic = 0x1.8p52;
    enum { DEGREE = 13, MANTISSA = 52 };
#else
    const real low = -87, high = 88, magic = 0x1.8p23f;
    enum { DEGREE = 7, MANTISSA = 23 };
#endif
    a = a < low ? low : a > high ? high : a;
    real shifted = a * (real)1.44269504088896340736 + magic, n = shifted - magic;
    real r = a - n * (real)6.93359375e-1 + n * (real)2.12194440054690583e-4;
    real sum = 1, one = 1, scale;
    for (int k = DEGREE; k > 0; k--) sum = 1 + r * sum * ((real)1 / k);
    bits whole, exponent;
    memcpy(&whole, &shifted, sizeof whole);
    memcpy(&exponent, &one, sizeof exponent);
    exponent += (bits)((uint64_t)whole << MANTISSA);
    memcpy(&scale, &exponent, sizeof scale);
    return sum * scale;
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

/* A tile of C (+)= A B: `rows` rows, one panel. Entry (i, k) of A is a[i * row + k * step]. */
INLINE void tile(int rows, const real *a, ptrdiff_t row, ptrdiff_t step, const real *b, int n, vector *left, vector *right) {
    for (int k = 0; k < n; k++, a += step, b += PANEL) {
        vector b0 = load(b), b1 = load(b + LANES);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            left[i] += a[i * row] * b0;
            right[i] += a[i * row] * b1;
        }
    }
}

/* C = A B, all in panels: rows x inner, inner x columns. The rows are those of whole tiles. */
static void product(int rows, int inner, int columns, const real *restrict A, const real *restrict B, real *restrict C) {
    for (int column = 0; column < columns; column += PANEL, B += (ptrdiff_t)inner * PANEL)
        for (int r = 0; r < rows; r += TILE) {
            vector left[TILE] = {0}, right[TILE] = {0};
            for (int k = 0; k < inner; k += PANEL)
                tile(TILE, A + (ptrdiff_t)k * rows + r * PANEL, PANEL, 1, B + k * PANEL, PANEL, left, right);
            real *c = C + (ptrdiff_t)column * rows + r * PANEL;
#pragma GCC unroll 6
            for (int i = 0; i < TILE; i++) store(c + i * PANEL, left[i]), store(c + i * PANEL + LANES, right[i]);
        }
}

INLINE void add_tile(int rows, const real *a, int n, const real *b, real *c) {
    vector left[TILE], right[TILE];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) left[i] = load(c + i * PANEL), right[i] = load(c + i * PANEL + LANES);
    tile(rows, a, 1, PANEL, b, n, left, right);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) store(c + i * PANEL, left[i]), store(c + i * PANEL + LANES, right[i]);
}

/* C += A^T B: A is `inner` x rows and B `inner` x columns, in panels of `stride` rows. */
static void add_transposed_product(
    int rows, int inner, int stride, int columns, const real *restrict A, const real *restrict B, real *restrict C) {
    for (int column = 0; column < columns; column += PANEL, B += (ptrdiff_t)stride * PANEL)
        for (int panel = 0; panel < rows; panel += PANEL) {
            const real *a = A + (ptrdiff_t)panel * stride;
            real *c = C + (ptrdiff_t)column * rows + panel * PANEL;
            for (int r = 0; r < PANEL;) /* 16 = 6 + 6 + 4, and 8 = 6 + 2 */
                if (PANEL - r >= 6) add_tile(6, a + r, inner, B, c + r * PANEL), r += 6;
                else if (PANEL - r >= 4) add_tile(4, a + r, inner, B, c + r * PANEL), r += 4;
                else add_tile(2, a + r, inner, B, c + r * PANEL), r += 2;
        }
}

/* ---- the chain ---- */

typedef struct {
    int32_t d, width, depth, blocks;
    real *scale, *shift;     /* (blocks, d), of the affine map before each block */
    real **weight, **bias;   /* depth + 1 each: (blocks, n_out, n_in) and (blocks, n_out) */
    real *parameter;         /* (blocks, depth), of the activations */
} Chain;

enum { ALIGNMENT = 64 };

static int padded(int columns) { return (columns + PANEL - 1) / PANEL * PANEL; }
static int whole_tiles(int rows) { return (rows + TILE - 1) / TILE * TILE; }

typedef struct { char *memory, *free; } Arena;

static real *take(Arena *arena, size_t n) {
    size_t bytes = (n * sizeof(real) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    real *taken = (real *)arena->free;
    arena->free += arena->memory ? bytes : 0;
    return taken;
}

/* One block's weights in panels. */
typedef struct {
    real *first;                  /* (d, width): the first layer's, transposed */
    real *first_bias;             /* (width) */
    real **forward, **backward;   /* of layers 2 to depth: transposed, (units * width, width); as is, (width, units * width) */
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
                    backward[((ptrdiff_t)(k / PANEL) * wide + n) * PANEL + k % PANEL] = value;
                }
    }
    W = chain->weight[chain->depth] + (ptrdiff_t)block * d * UNITS * w;
    for (int i = 0; i < d; i++)
        for (int u = 0; u < UNITS; u++)
            memcpy(packed->last + i * inner + u * wide, W + ((ptrdiff_t)i * UNITS + u) * w, w * sizeof(real));
}

/* What one thread works in. */
typedef struct {
    Packed weights;
    real *x;              /* (n, d): what enters the network */
    real **pre;           /* depth stacks of `width` columns: what enters each activation, the first without tangents */
    real *post;           /* stack of units * width columns: what leaves one */
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
        work->weights.backward[layer] = layer ? take(arena, matrix) : NULL;
        work->by_weight[layer] = layer && with_gradients ? take(arena, matrix) : NULL;
        work->pre[layer] = take(arena, layer ? rows * wide : (size_t)n * wide);
    }
    work->x = take(arena, (size_t)n * d);
    work->post = take(arena, rows * inner);
    work->out = take(arena, (size_t)(1 + d) * n * d);
    work->by_x = take(arena, (size_t)n * d);
    work->by_post = with_gradients ? take(arena, rows * inner) : NULL;
    work->by_pre = with_gradients ? take(arena, rows * wide) : NULL;
}

static int begin_work(const Chain *chain, int n, int with_gradients, Arena *arena, Work *work) {
    real **pointers = calloc(4 * chain->depth, sizeof *pointers);
    if (!pointers) return 0;
    /* The size first, on an arena that starts at zero. */
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
            vector left = load(work->weights.first_bias + panel), right = load(work->weights.first_bias + panel + LANES);
            for (int j = 0; j < d; j++) {
                real x = work->x[r * d + j];
                left += x * load(work->weights.first + j * wide + panel);
                right += x * load(work->weights.first + j * wide + panel + LANES);
            }
            real *to = work->pre[0] + (ptrdiff_t)panel * n + r * PANEL;
            store(to, left), store(to + LANES, right);
        }
}

/* Where tangent j of sample r is, of what enters the activation of `layer`: PANEL numbers. */
INLINE const real *tangent(const Work *work, int layer, int wide, int rows, int n, int panel, int j, int r) {
    return layer ? work->pre[layer] + (ptrdiff_t)panel * rows + ((1 + j) * n + r) * PANEL
                 : work->weights.first + j * wide + panel;
}

/* post = phi(pre[layer]): h for the values, s times the tangent for the tangents. */
static void activate(const Chain *chain, int block, int layer, int n, Work *work) {
    int d = chain->d, wide = padded(chain->width), rows = whole_tiles((1 + d) * n);
    real p = chain->parameter[block * chain->depth + layer];
    for (int panel = 0; panel < wide; panel += PANEL)
        for (int r = 0; r < n; r++) {
            const real *a = work->pre[layer] + (ptrdiff_t)panel * (layer ? rows : n) + r * PANEL;
            real h[UNITS][PANEL], s[UNITS][PANEL];
            EACH_LANE {
                Activated phi = activated(a[t], p);
                for (int u = 0; u < UNITS; u++) h[u][t] = phi.h[u], s[u][t] = phi.s[u];
            }
            for (int u = 0; u < UNITS; u++) {
                real *to = work->post + (ptrdiff_t)(u * wide + panel) * rows + r * PANEL;
                EACH_VECTOR store(to + t, load(h[u] + t));
                for (int j = 0; j < d; j++) {
                    const real *from = tangent(work, layer, wide, rows, n, panel, j, r);
                    EACH_VECTOR store(to + (1 + j) * n * PANEL + t, load(s[u] + t) * load(from + t));
                }
            }
        }
}

/* out = W post, of the last layer; the bias is added to the values. */
static void last_layer(const Chain *chain, int block, int n, Work *work) {
    int d = chain->d, inner = UNITS * padded(chain->width), rows = whole_tiles((1 + d) * n);
    const real *bias = chain->bias[chain->depth] + (ptrdiff_t)block * d;
    for (int r = 0; r < (1 + d) * n; r++)
        for (int i = 0; i < d; i++) {
            vector left = {0}, right = {0};
            for (int k = 0; k < inner; k += PANEL) {
                const real *from = work->post + (ptrdiff_t)k * rows + r * PANEL;
                left += load(from) * load(work->weights.last + i * inner + k);
                right += load(from + LANES) * load(work->weights.last + i * inner + k + LANES);
            }
            left += right;
            real sum = r < n ? bias[i] : 0;
            for (int t = 0; t < LANES; t++) sum += left[t];
            work->out[r * d + i] = sum;
        }
}

static void add_bias(const real *bias, int width, int n, int rows, real *stack) {
    for (int column = 0; column < width; column++) {
        real *to = stack + (ptrdiff_t)(column / PANEL) * rows * PANEL + column % PANEL;
        for (int r = 0; r < n; r++) to[r * PANEL] += bias[column];
    }
}

/* The part of `kept` that belongs to the samples from `start`, of one block and layer. */
static real *kept_of(const Chain *chain, real *kept, int64_t batch, int chunk, int block, int layer, int64_t start) {
    int wide = padded(chain->width);
    int64_t of_chunk = (int64_t)whole_tiles((1 + chain->d) * chunk) * wide, chunks = (batch + chunk - 1) / chunk;
    return kept + (((int64_t)block * (chain->depth - 1) + layer - 1) * chunks + start / chunk) * of_chunk;
}

/* Numbers that `forward` keeps for `backward`. */
int64_t kept_numbers(const Chain *chain, int64_t batch, int chunk) {
    return kept_of(chain, NULL, batch, chunk, chain->blocks, 1, 0) - (real *)NULL;
}

static void enter_block(const Chain *chain, int block, int n, const real *z, Work *work) {
    int d = chain->d;
    for (int r = 0; r < n; r++)
        for (int j = 0; j < d; j++)
            work->x[r * d + j] = z[r * d + j] * chain->scale[block * d + j] + chain->shift[block * d + j];
}

/* g and J at work->x, into work->out. `pre` of layers 2 to depth must point to where they belong. */
static void evaluate_block(const Chain *chain, int block, int n, Work *work) {
    int d = chain->d, w = chain->width, wide = padded(w), rows = whole_tiles((1 + d) * n);
    first_layer(chain, n, work);
    for (int layer = 1; layer < chain->depth; layer++) {
        activate(chain, block, layer - 1, n, work);
        product(rows, UNITS * wide, wide, work->post, work->weights.forward[layer], work->pre[layer]);
        add_bias(chain->bias[layer] + (ptrdiff_t)block * w, w, n, rows, work->pre[layer]);
    }
    activate(chain, block, chain->depth - 1, n, work);
    last_layer(chain, block, n, work);
}

/* Carries the samples from `begin` to `end` through the chain; `begin` is a multiple of `chunk`.
 *   inputs   (blocks + 1, batch, d): the first is given; what enters each block and leaves the last
 *   jacobian (blocks, batch, d, d)
 *   kept     for `backward`, or NULL
 * Returns 0 if there is no memory. */
int forward(const Chain *chain, int64_t batch, int chunk, int64_t begin, int64_t end, real *inputs, real *jacobian, real *kept) {
    int d = chain->d;
    Arena arena;
    Work work;
    if (!begin_work(chain, chunk, 0, &arena, &work)) return 0;
    for (int block = 0; block < chain->blocks; block++) {
        pack(chain, block, &work.weights);
        for (int64_t start = begin; start < end; start += chunk) {
            int n = end - start < chunk ? end - start : chunk;
            enter_block(chain, block, n, inputs + (block * batch + start) * d, &work);
            for (int layer = 1; layer < chain->depth && kept; layer++)
                work.pre[layer] = kept_of(chain, kept, batch, chunk, block, layer, start);
            evaluate_block(chain, block, n, &work);
            real *z = inputs + ((block + 1) * batch + start) * d, *J = jacobian + (block * batch + start) * d * d;
            for (int r = 0; r < n; r++)
                for (int i = 0; i < d; i++) {
                    z[r * d + i] = work.x[r * d + i] + work.out[r * d + i];
                    for (int j = 0; j < d; j++) J[(r * d + i) * d + j] = work.out[((1 + j) * n + r) * d + i];
                }
        }
    }
    end_work(&arena, &work);
    return 1;
}

/* From by_post to by_pre, through the activation of `layer`; returns the gradient by its parameter. */
static real pull_back(const Chain *chain, int block, int layer, int n, Work *work) {
    int d = chain->d, wide = padded(chain->width), rows = whole_tiles((1 + d) * n);
    real p = chain->parameter[block * chain->depth + layer], by_p[PANEL] = {0};
    for (int panel = 0; panel < wide; panel += PANEL)
        for (int r = 0; r < n; r++) {
            const real *a = work->pre[layer] + (ptrdiff_t)panel * (layer ? rows : n) + r * PANEL;
            const real *by_h = work->by_post + (ptrdiff_t)panel * rows + r * PANEL;
            real *by_a = work->by_pre + (ptrdiff_t)panel * rows + r * PANEL;
            const ptrdiff_t unit = (ptrdiff_t)wide * rows, next = (ptrdiff_t)n * PANEL;
            real s[UNITS][PANEL], by_s[UNITS][PANEL] = {{0}}, sum[PANEL];
            EACH_LANE {
                Activated phi = activated(a[t], p);
                for (int u = 0; u < UNITS; u++) s[u][t] = phi.s[u];
            }
            for (int j = 0; j < d; j++) {
                const real *along = tangent(work, layer, wide, rows, n, panel, j, r);
                vector sums[2] = {{0}, {0}};
                for (int u = 0; u < UNITS; u++) {
                    const real *by_column = by_h + u * unit + (1 + j) * next;
                    EACH_VECTOR {
                        store(by_s[u] + t, load(by_s[u] + t) + load(by_column + t) * load(along + t));
                        sums[t / LANES] += load(by_column + t) * load(s[u] + t);
                    }
                }
                EACH_VECTOR store(by_a + (1 + j) * next + t, sums[t / LANES]);
            }
            real by_value[UNITS][PANEL];
            for (int u = 0; u < UNITS; u++) EACH_LANE by_value[u][t] = by_h[u * unit + t];
            EACH_LANE {
                Activated phi = activated(a[t], p);
                sum[t] = 0;
                for (int u = 0; u < UNITS; u++) {
                    sum[t] += by_value[u][t] * phi.s[u] + by_s[u][t] * phi.c[u];
                    by_p[t] += by_value[u][t] * phi.h_by_p[u] + by_s[u][t] * phi.s_by_p[u];
                }
            }
            EACH_LANE by_a[t] = sum[t];
        }
    real total = 0;
    for (int t = 0; t < PANEL; t++) total += by_p[t];
    return total;
}

/* Adds the gradient by the last layer and sets by_post, from the gradient by `out`. */
static void leave_last_layer(const Chain *chain, int block, int n, Work *work, Chain *gradient) {
    int d = chain->d, w = chain->width, wide = padded(w), inner = UNITS * wide, rows = whole_tiles((1 + d) * n);
    for (int i = 0; i < d; i++)
        for (int r = 0; r < n; r++) gradient->bias[chain->depth][block * d + i] += work->out[r * d + i];
    for (int k = 0; k < inner; k += PANEL) {
        const real *post = work->post + (ptrdiff_t)k * rows;
        real *by_post = work->by_post + (ptrdiff_t)k * rows;
        for (int i = 0; i < d; i++) {
            vector left = {0}, right = {0};
            vector w0 = load(work->weights.last + i * inner + k), w1 = load(work->weights.last + i * inner + k + LANES);
            for (int r = 0; r < (1 + d) * n; r++) {
                real by_out = work->out[r * d + i];
                left += by_out * load(post + r * PANEL);
                right += by_out * load(post + r * PANEL + LANES);
                vector b0 = by_out * w0, b1 = by_out * w1;
                if (i) b0 += load(by_post + r * PANEL), b1 += load(by_post + r * PANEL + LANES);
                store(by_post + r * PANEL, b0);
                store(by_post + r * PANEL + LANES, b1);
            }
            real *to = gradient->weight[chain->depth] + (((ptrdiff_t)block * d + i) * UNITS + k / wide) * w;
            for (int t = 0; t < PANEL && k % wide + t < w; t++)
                to[k % wide + t] += t < LANES ? left[t] : right[t - LANES];
        }
    }
}

/* Adds the gradient by the first layer, and to by_x. */
static void leave_first_layer(const Chain *chain, int block, int n, Work *work, Chain *gradient) {
    int d = chain->d, w = chain->width, wide = padded(w), rows = whole_tiles((1 + d) * n);
    real *by_weight = gradient->weight[0] + (ptrdiff_t)block * w * d, *by_bias = gradient->bias[0] + (ptrdiff_t)block * w;
    for (int panel = 0; panel < wide; panel += PANEL) {
        const real *by_pre = work->by_pre + (ptrdiff_t)panel * rows;
        int columns = w - panel < PANEL ? w - panel : PANEL;
        real sum[PANEL] = {0};
        for (int r = 0; r < n; r++) EACH_LANE sum[t] += by_pre[r * PANEL + t];
        for (int t = 0; t < columns; t++) by_bias[panel + t] += sum[t];
        for (int j = 0; j < d; j++) {
            const real *first = work->weights.first + j * wide + panel;
            real column[PANEL] = {0};
            for (int r = 0; r < n; r++) {
                real x = work->x[r * d + j], along = 0;
                EACH_LANE column[t] += by_pre[r * PANEL + t] * x + by_pre[((1 + j) * n + r) * PANEL + t];
                EACH_LANE along += by_pre[r * PANEL + t] * first[t];
                work->by_x[r * d + j] += along;
            }
            for (int t = 0; t < columns; t++) by_weight[(panel + t) * d + j] += column[t];
        }
    }
}

/* The gradient of the samples from `begin` to `end`: added to `gradient`, which is zero before the first.
 *   by_z        (batch, d): by what leaves the last block; becomes the gradient by what enters the first
 *   by_jacobian (blocks, batch, d, d)
 * Returns 0 if there is no memory. */
int backward(const Chain *chain, Chain *gradient, int64_t batch, int chunk, int64_t begin, int64_t end, const real *inputs,
             real *kept, real *by_z, const real *by_jacobian) {
    int d = chain->d, w = chain->width, wide = padded(w), inner = UNITS * wide, depth = chain->depth;
    Arena arena;
    Work work;
    if (!begin_work(chain, chunk, 1, &arena, &work)) return 0;
    for (int block = chain->blocks - 1; block >= 0; block--) {
        pack(chain, block, &work.weights);
        for (int layer = 1; layer < depth; layer++) memset(work.by_weight[layer], 0, sizeof(real) * wide * inner);
        for (int64_t start = begin; start < end; start += chunk) {
            int n = end - start < chunk ? end - start : chunk, rows = whole_tiles((1 + d) * n);
            const real *z = inputs + (block * batch + start) * d;
            real *by_output = by_z + start * d;
            enter_block(chain, block, n, z, &work);
            first_layer(chain, n, &work);
            for (int layer = 1; layer < depth; layer++)
                work.pre[layer] = kept_of(chain, kept, batch, chunk, block, layer, start);
            memcpy(work.out, by_output, sizeof(real) * n * d);
            memcpy(work.by_x, by_output, sizeof(real) * n * d);
            for (int r = 0; r < n; r++)
                for (int i = 0; i < d; i++)
                    for (int j = 0; j < d; j++)
                        work.out[((1 + j) * n + r) * d + i] = by_jacobian[((block * batch + start + r) * d + i) * d + j];

            activate(chain, block, depth - 1, n, &work);
            leave_last_layer(chain, block, n, &work, gradient);
            for (int layer = depth - 1; layer >= 0; layer--) {
                gradient->parameter[block * depth + layer] += pull_back(chain, block, layer, n, &work);
                if (layer == 0) break;
                real *by_bias = gradient->bias[layer] + (ptrdiff_t)block * w;
                for (int column = 0; column < w; column++) {
                    const real *from = work.by_pre + (ptrdiff_t)(column / PANEL) * rows * PANEL + column % PANEL;
                    real sum = 0;
                    for (int r = 0; r < n; r++) sum += from[r * PANEL];
                    by_bias[column] += sum;
                }
                activate(chain, block, layer - 1, n, &work);
                add_transposed_product(wide, (1 + d) * n, rows, inner, work.by_pre, work.post, work.by_weight[layer]);
                product(rows, wide, inner, work.by_pre, work.weights.backward[layer], work.by_post);
            }
            leave_first_layer(chain, block, n, &work, gradient);
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
