// CRC-32C (Castagnoli, RFC 3720 appendix B.4), the checksum of TensorFlow's record format.
#pragma once

#include <cstdint>
#include <string_view>

namespace flashshard::metrics {

/// Reflected polynomial 0x82f63b78, initial value and final xor 0xffffffff.
uint32_t crc32c(std::string_view bytes);

/// Rotated and offset so that the checksum of data that holds checksums stays strong:
/// ((crc >> 15) | (crc << 17)) + 0xa282ead8, as in TensorFlow's record_writer.
uint32_t masked_crc32c(std::string_view bytes);

}  // namespace flashshard::metrics
