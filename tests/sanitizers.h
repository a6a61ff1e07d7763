// Sanitizers make everything about ten times slower: a test of many millions of values takes fewer
// of them there, where it looks for wrong accesses, and all in other builds.
#pragma once

namespace flashshard::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kUnderSanitizers = true;
#else
constexpr bool kUnderSanitizers = false;
#endif

}  // namespace flashshard::test
