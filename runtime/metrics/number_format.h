// Numbers as people read them, independent of the locale.
#pragma once

#include <cstdint>
#include <string>

namespace flashshard::metrics {

/// 1234567 -> "1,234,567".
std::string with_thousands(int64_t value);

/// 1234.5 with 2 digits -> "1,234.50"; "nan", "inf", "-inf" for what is not a number.
std::string with_thousands(double value, int digits);

/// "512 B", "1.50 KiB", "1.20 GiB"; the unit keeps the number below 1024.
std::string format_bytes(int64_t bytes);

/// Rounded to seconds: "0:07", "3:25", "1:02:03"; "-" for a time that is not known (negative or not
/// finite).
std::string format_duration(double seconds);

}  // namespace flashshard::metrics
