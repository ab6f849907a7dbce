/* A power series of many small matrices, cut for each at its own length. flows/estimators/series.py says what and why. */
#include "vectors.h"

/* For one matrix J and one probe v: returns the sum of of_terms[k] v^T J^k v over k > 0, and sets row to the sum of
 * of_powers[k] v^T J^k. power and next have room for d numbers each; kept, unless it is NULL, for all powers v^T J^k, k
 * from 0 on. */
INLINE real one(int d, int64_t length, const real *J, const real *v, const real *of_terms, const real *of_powers, real *row,
                real *power, real *next, real *kept) {
    real sum = 0;
    for (int i = 0; i < d; i++) power[i] = v[i], row[i] = of_powers[0] * v[i];
    for (int64_t k = 1; k < length; k++) {
        for (int i = 0; i < d && kept; i++) *kept++ = power[i];
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

/* Adds the gradient by J to by_J: with column_k = of_terms[k] v + J column_(k+1) it is the sum of the products of
 * (v^T J^(k-1))^T, which `one` has kept, and column_k^T. column and next have room for d numbers each. */
INLINE void add_gradient(int d, int64_t length, const real *J, const real *v, const real *of_terms, const real *kept,
                         real *column, real *next, real *by_J) {
    for (int i = 0; i < d; i++) column[i] = 0;
    for (int64_t k = length - 1; k > 0; k--) {
        for (int i = 0; i < d; i++) {
            next[i] = of_terms[k] * v[i];
            for (int j = 0; j < d; j++) next[i] += J[i * d + j] * column[j];
        }
        for (int i = 0; i < d; i++) column[i] = next[i];
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) by_J[i * d + j] += kept[(k - 1) * d + i] * column[j];
    }
}

/* One sample: its estimate is returned, the gradient of that added to by_J unless that is NULL. */
INLINE real sample(int d, int probes, int64_t length, const real *J, const real *v, const real *of_terms,
                   const real *of_powers, real *row, real *kept, real *by_J) {
    real sum = 0, here[d], next[d];
    for (int m = 0; m < probes; m++, v += d, row += d) {
        sum += one(d, length, J, v, of_terms, of_powers, row, here, next, kept);
        if (by_J) add_gradient(d, length, J, v, of_terms, kept, here, next, by_J);
    }
    return sum;
}

/* For the samples from `begin` to `end`:
 *   J         (batch, d, d)
 *   v         (batch, probes, d)
 *   lengths   (batch): how many powers a sample has, `powers` at most
 *   of_terms, of_powers   (powers)
 *   log_det   (batch); row  (batch, probes, d)
 *   by_J      (batch, d, d): zeros, to which the gradient of each log_det by its J is added; or NULL
 * Returns 0 if there is no memory. */
int series(int64_t begin, int64_t end, int d, int probes, int64_t powers, const real *J, const real *v, const int64_t *lengths,
           const real *of_terms, const real *of_powers, real *log_det, real *row, real *by_J) {
    real *kept = by_J ? malloc(powers * d * sizeof(real)) : NULL;
    if (by_J && !kept) return 0;
    for (int64_t n = begin; n < end; n++) {
        ptrdiff_t probe = (ptrdiff_t)n * probes * d, matrix = (ptrdiff_t)n * d * d;
        real *by = by_J ? by_J + matrix : NULL;
        if (d == 2) /* the compiler then keeps everything in registers */
            log_det[n] = sample(2, probes, lengths[n], J + matrix, v + probe, of_terms, of_powers, row + probe, kept, by);
        else
            log_det[n] = sample(d, probes, lengths[n], J + matrix, v + probe, of_terms, of_powers, row + probe, kept, by);
    }
    free(kept);
    return 1;
}
