/* A power series of many small matrices, cut for each at its own length. flows/estimators/series.py says what and why. */
#include <stddef.h>
#include <stdint.h>

#ifdef DOUBLE
typedef double real;
#else
typedef float real;
#endif

/* Of one matrix J and one probe v. power and next have room for d numbers each. */
static inline __attribute__((always_inline)) real one(
    int d, int64_t length, const real *J, const real *v, const real *of_terms, const real *of_powers, real *row, real *power,
    real *next) {
    real sum = 0;
    for (int i = 0; i < d; i++) power[i] = v[i], row[i] = of_powers[0] * v[i];
    for (int64_t k = 1; k < length; k++) {
        real product = 0;
        for (int j = 0; j < d; j++) next[j] = 0;
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) next[j] += power[i] * J[i * d + j];
        for (int j = 0; j < d; j++) {
            power[j] = next[j];
            product += power[j] * v[j];
            row[j] += of_powers[k] * power[j];
        }
        sum += of_terms[k] * product;
    }
    return sum;
}

/* For the samples from `begin` to `end`:
 *   J         (batch, d, d)
 *   v         (batch, probes, d)
 *   orders    (batch): which line of the tables is a sample's; NULL: the first is everybody's
 *   lengths   (lines): from this power on, a line of both tables is zero
 *   of_terms, of_powers   (lines, powers)
 *   log_det   (batch); row  (batch, probes, d)
 * Returns 1. */
int series(int64_t begin, int64_t end, int d, int probes, int64_t powers, const real *J, const real *v, const int64_t *orders,
           const int64_t *lengths, const real *of_terms, const real *of_powers, real *log_det, real *row) {
    for (int64_t n = begin; n < end; n++) {
        int64_t line = orders ? orders[n] : 0;
        const real *terms = of_terms + line * powers, *factors = of_powers + line * powers;
        real sum = 0;
        for (int m = 0; m < probes; m++) {
            ptrdiff_t at = ((ptrdiff_t)n * probes + m) * d;
            if (d == 2) { /* the compiler then keeps everything in registers */
                real power[2], next[2];
                sum += one(2, lengths[line], J + n * 4, v + at, terms, factors, row + at, power, next);
            } else {
                real power[d], next[d];
                sum += one(d, lengths[line], J + (ptrdiff_t)n * d * d, v + at, terms, factors, row + at, power, next);
            }
        }
        log_det[n] = sum;
    }
    return 1;
}
