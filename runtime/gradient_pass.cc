#include "runtime/gradient_pass.h"

#include <algorithm>

#include "optim/stopwatch.h"

namespace flashshard {

int StepShape::contributors(int64_t k) const {
  return static_cast<int>(std::clamp<int64_t>(micro_batches - k * world_size, 0, world_size));
}

namespace {

int64_t counted_targets(const data::MicroBatch& batch) {
  return std::ranges::count_if(batch.targets, [](int32_t target) { return target >= 0; });
}

}  // namespace

int64_t StepShape::own() const {
  return micro_batches / world_size + (rank < micro_batches % world_size ? 1 : 0);
}

PassResult GradientPass::run(double learning_rate) {
  PassResult result;
  const bool each = engine_.sharding().reduces_each();
  const int64_t rounds = each ? shape_.rounds() : shape_.own();
  for (int64_t k = 0; k < rounds; ++k) {
    const data::MicroBatch* batch = k < shape_.own() ? &next_micro_batch() : nullptr;
    if (batch != nullptr) result.tokens += counted_targets(*batch);
    if (each || k == 0) {
      Round next = round(k);
      next.learning_rate = learning_rate;
      next.tokens = result.tokens;
      engine_.optimizer().begin_round(next);
    }
    if (batch != nullptr) {
      micro_batch(k, *batch, result);
    } else {
      without_micro_batch();
    }
  }
  result.data_ms = prefetcher_.take_wait_ms();
  return result;
}

Round GradientPass::round(int64_t k) const {
  if (!engine_.sharding().reduces_each()) return {.contributors = shape_.world_size};
  Round round{
      .contributors = shape_.contributors(k), .first = k == 0, .last = k + 1 == shape_.rounds()};
  round.share = static_cast<double>(round.contributors) / static_cast<double>(shape_.micro_batches);
  return round;
}

/// Local sums are final with the rank's last micro-batch.
bool GradientPass::reduces(int64_t k) const {
  return engine_.sharding().reduces_each() || k + 1 == shape_.own();
}

void GradientPass::micro_batch(int64_t k, const data::MicroBatch& batch, PassResult& result) {
  const BackendRange range(engine_.backend(), "micro-batch", k);
  ShardedOptimizer& optimizer = engine_.optimizer();
  const int head_layer = engine_.model_options().layers + 1;
  double forward_ms = 0, communication_ms = 0;
  const Stopwatch watch;
  const auto communicate = [&](const auto& work) {
    const Stopwatch communication;
    work();
    communication_ms += communication.milliseconds();
  };
  LayerHooks hooks;
  hooks.before_layer = [&](int layer) { communicate([&] { optimizer.before_layer(layer); }); };
  hooks.after_layer_backward = [&](int layer) {
    if (layer == head_layer) forward_ms = watch.milliseconds() - communication_ms;
    if (reduces(k)) communicate([&] { optimizer.layer_ready(layer); });
  };
  optimizer.begin_pass(true);
  const LossResult loss = engine_.model().forward_backward(
      {batch.inputs, batch.targets, batch.sequences, sequence_length_, batch.document_starts},
      hooks, engine_.sharding().local_sums && k > 0);
  result.losses.push_back(loss);
  result.forward_ms += forward_ms;
  result.backward_ms += watch.milliseconds() - forward_ms - communication_ms;
}

// The others' gathers and reductions need this rank's rows all the same.
void GradientPass::without_micro_batch() {
  ShardedOptimizer& optimizer = engine_.optimizer();
  LayerHooks hooks;
  hooks.before_layer = [&](int layer) { optimizer.before_layer(layer); };
  hooks.after_layer_backward = [&](int layer) { optimizer.layer_ready(layer); };
  optimizer.begin_pass(true);
  announce_layers(engine_.model_options(), hooks, true);
}

const data::MicroBatch& GradientPass::next_micro_batch() {
  const BackendRange range(engine_.backend(), "waiting for data");
  return prefetcher_.next();
}

}  // namespace flashshard
