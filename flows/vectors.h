/* What every C source of the project starts from: its real numbers, and vectors of them as wide as the processor's. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef DOUBLE
typedef double real;
#else
typedef float real;
#endif

/* A product of matrices works on tiles, TILE rows by VECTORS vectors, which with a row of one factor fill the registers. */
#ifdef __AVX512F__
#pragma GCC target("prefer-vector-width=512") /* gcc's own choice is half of it */
enum { VECTOR_BYTES = 64, VECTORS = 1, TILE = 16 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, VECTORS = 2, TILE = 6 };
#else
enum { VECTOR_BYTES = 16, VECTORS = 2, TILE = 6 };
#endif
typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
enum { LANES = VECTOR_BYTES / sizeof(real), PANEL = VECTORS * LANES };
typedef vector Row[VECTORS];

#define EACH_LANE for (int t = 0; t < PANEL; t++)
#define EACH_VECTOR for (int v = 0, t = 0; v < VECTORS; v++, t += LANES)
#define INLINE static inline __attribute__((always_inline))

INLINE vector load(const real *from) { return *(const vector *)from; }
INLINE void store(real *to, vector what) { *(vector *)to = what; }
