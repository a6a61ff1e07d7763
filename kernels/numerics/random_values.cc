#include "kernels/numerics/random_values.h"

#include <array>
#include <cmath>

#include "kernels/numerics/philox.h"

namespace flashshard::numerics {
namespace {

std::array<uint32_t, 4> block_of(const RandomKey& key, uint64_t block) {
  return philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                     static_cast<uint32_t>(key.tensor), static_cast<uint32_t>(key.tensor >> 32)},
                    {static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32)});
}

/// Calls write(i, word) for every element, one Philox call for four of them.
template <class Write>
void for_each_word(const RandomKey& key, uint64_t first_element, size_t count, const Write& write) {
  std::array<uint32_t, 4> words = {};
  for (size_t i = 0; i < count; ++i) {
    const uint64_t element = first_element + i;
    if (i == 0 || element % 4 == 0) words = block_of(key, element / 4);
    write(i, words[element % 4]);
  }
}

/// Polynomial with coefficients in rising order.
template <size_t kTerms>
double polynomial(const std::array<double, kTerms>& coefficients, double x) {
  double sum = 0;
  for (size_t i = kTerms; i-- > 0;) sum = sum * x + coefficients[i];
  return sum;
}

/// Rational approximations of the normal quantile, AS 241 routine PPND16: in r = 0.180625 - q^2 at
/// the centre, in sqrt(-log(tail)) - 1.6 outside. Its third range starts at tails of e^-25, beyond
/// what 32 random bits reach.
constexpr std::array<double, 8> kCentreNumerator = {
    3.3871328727963666080e0,  1.3314166789178437745e+2, 1.9715909503065514427e+3,
    1.3731693765509461125e+4, 4.5921953931549871457e+4, 6.7265770927008700853e+4,
    3.3430575583588128105e+4, 2.5090809287301226727e+3};
constexpr std::array<double, 8> kCentreDenominator = {1.0,
                                                      4.2313330701600911252e+1,
                                                      6.8718700749205790830e+2,
                                                      5.3941960214247511077e+3,
                                                      2.1213794301586595867e+4,
                                                      3.9307895800092710610e+4,
                                                      2.8729085735721942674e+4,
                                                      5.2264952788528545610e+3};
constexpr std::array<double, 8> kMiddleNumerator = {
    1.42343711074968357734e0,  4.63033784615654529590e0, 5.76949722146069140550e0,
    3.64784832476320460504e0,  1.27045825245236838258e0, 2.41780725177450611770e-1,
    2.27238449892691845833e-2, 7.74545014278341407640e-4};
constexpr std::array<double, 8> kMiddleDenominator = {1.0,
                                                      2.05319162663775882187e0,
                                                      1.67638483018380384940e0,
                                                      6.89767334985100004550e-1,
                                                      1.48103976427480074590e-1,
                                                      1.51986665636164571966e-2,
                                                      5.47593808499534494600e-4,
                                                      1.05075007164441684324e-9};

/// For probabilities in [2^-33, 1 - 2^-33].
double normal_quantile(double probability) {
  const double q = probability - 0.5;
  if (std::fabs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * polynomial(kCentreNumerator, r) / polynomial(kCentreDenominator, r);
  }
  const double r = std::sqrt(-std::log(q < 0 ? probability : 1.0 - probability)) - 1.6;
  const double magnitude = polynomial(kMiddleNumerator, r) / polynomial(kMiddleDenominator, r);
  return q < 0 ? -magnitude : magnitude;
}

}  // namespace

uint32_t random_bits(const RandomKey& key, uint64_t element) {
  return block_of(key, element / 4)[element % 4];
}

float normal_from_bits(uint32_t word) {
  return static_cast<float>(normal_quantile((static_cast<double>(word) + 0.5) * 0x1p-32));
}

void fill_uniform(std::span<float> values, const RandomKey& key, uint64_t first_element, float low,
                  float high) {
  for_each_word(key, first_element, values.size(), [&](size_t i, uint32_t word) {
    values[i] = low + (high - low) * (static_cast<float>(word >> 8) * 0x1p-24f);
  });
}

void fill_normal(std::span<float> values, const RandomKey& key, uint64_t first_element,
                 float deviation) {
  for_each_word(key, first_element, values.size(),
                [&](size_t i, uint32_t word) { values[i] = deviation * normal_from_bits(word); });
}

}  // namespace flashshard::numerics
