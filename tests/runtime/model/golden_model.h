// What transformers computes for a small model (golden/make_llama.py, make_documents.py): tokens,
// loss, gradients, logits.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "golden_options.h"
#include "llama_session.h"

namespace flashshard {

struct Golden {
  nlohmann::json facts;
  std::vector<std::vector<float>> gradients;
  std::vector<float> logits;  // (tokens, V), of the first sequence or of all
};

inline Golden read_golden(const std::string& name, int64_t sequences_of_logits = 1) {
  const std::string stem = std::string(FLASHSHARD_TEST_DATA) + "/runtime/model/golden/" + name;
  Golden golden;
  std::ifstream(stem + ".json") >> golden.facts;
  std::ifstream values(stem + ".bin", std::ios::binary);
  const auto next = [&](size_t count) {
    std::vector<float> read(count);
    values.read(reinterpret_cast<char*>(read.data()),
                static_cast<std::streamsize>(count * sizeof(float)));
    return read;
  };
  for (const size_t count : golden.facts["gradient_elements"].get<std::vector<size_t>>()) {
    golden.gradients.push_back(next(count));
  }
  golden.logits = next(static_cast<size_t>(sequences_of_logits) *
                       golden.facts["sequence_length"].get<size_t>() *
                       golden.facts["options"]["vocab_size"].get<size_t>());
  EXPECT_TRUE(values.good()) << stem;
  return golden;
}

inline double relative_error(std::span<const float> got, std::span<const float> expected) {
  EXPECT_EQ(got.size(), expected.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += std::pow(double{got[i]} - double{expected[i]}, 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

inline TokenBatch batch_of(const Golden& golden) {
  TokenBatch batch;
  batch.inputs = golden.facts["inputs"].get<std::vector<int32_t>>();
  batch.targets = golden.facts["targets"].get<std::vector<int32_t>>();
  batch.sequences = golden.facts["sequences"].get<int64_t>();
  batch.sequence_length = golden.facts["sequence_length"].get<int64_t>();
  if (golden.facts.contains("document_starts")) {
    batch.document_starts = golden.facts["document_starts"].get<std::vector<int32_t>>();
  }
  return batch;
}

}  // namespace flashshard
