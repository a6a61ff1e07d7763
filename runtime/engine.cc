#include "runtime/engine.h"

#include <algorithm>
#include <optional>

#include "runtime/agreement.h"
#include "runtime/checkpoint/master_reader.h"
#include "runtime/config/sharding_options.h"
#include "runtime/metrics/process_memory.h"
#include "runtime/parameter_groups.h"

namespace flashshard {
namespace {

DType model_dtype(const proto::RunConfig& config) {
  return config.model().dtype() == proto::WeightType::FP32 ? DType::kFP32 : DType::kBF16;
}

Recompute recompute(const proto::RunConfig& config) {
  switch (config.model().recompute()) {
    case proto::Recomputation::NONE:
      return Recompute::kNone;
    case proto::Recomputation::FEED_FORWARD:
      return Recompute::kFeedForward;
    case proto::Recomputation::FULL:
      return Recompute::kFull;
    default:
      return Recompute::kElementwise;
  }
}

/// The master weight of so many bits in the configured format.
WeightFormat weight_format(const proto::RunConfig& config, int bits) {
  if (model_dtype(config) == DType::kFP32) return WeightFormat::kFP32;
  const bool v1 = config.optimizer().state_format() == proto::StateFormatVersion::FLASHOPTIM_V1;
  switch (bits) {
    case 32:
      return v1 ? WeightFormat::kCorrected32 : WeightFormat::kSplit32;
    case 24:
      return v1 ? WeightFormat::kCorrected24 : WeightFormat::kSplit24;
    default:
      return WeightFormat::kBF16;
  }
}

StateFormat state_format(const proto::OptimizerSection& optimizer,
                         proto::OptimizerState::Value state) {
  if (state == proto::OptimizerState::FP32) return StateFormat::kFP32;
  return optimizer.state_format() == proto::StateFormatVersion::FLASHOPTIM_V1
             ? StateFormat::kFlashOptim
             : StateFormat::kCompanded;
}

Rule rule_of(proto::UpdateRuleKind::Value rule) {
  switch (rule) {
    case proto::UpdateRuleKind::ADAM:
      return Rule::kAdam;
    case proto::UpdateRuleKind::LION:
      return Rule::kLion;
    case proto::UpdateRuleKind::SGD:
      return Rule::kSGD;
    case proto::UpdateRuleKind::SGDW:
      return Rule::kSGDW;
    case proto::UpdateRuleKind::ADAMW:
      break;
  }
  return Rule::kAdamW;
}

std::vector<ParameterGroup> parameter_groups(const proto::RunConfig& config,
                                             std::span<const ParameterSpec> parameters) {
  const proto::OptimizerSection& optimizer = config.optimizer();
  const auto members = members_of_groups(optimizer, parameters);
  std::vector<ParameterGroup> groups(members.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    const proto::ParameterGroup& set = optimizer.group(static_cast<int>(g));
    for (int t : members[g].tensors) {
      groups[g].parameters.push_back(parameters[static_cast<size_t>(t)].name);
    }
    groups[g].learning_rate_factor = set.learning_rate_factor();
    if (set.has_weight_decay()) groups[g].weight_decay = set.weight_decay();
    if (set.has_rule()) groups[g].rule = rule_of(set.rule());
    if (set.has_state()) groups[g].state_format = state_format(optimizer, set.state());
    if (set.has_master_weight_bits()) {
      groups[g].weight_format = weight_format(config, set.master_weight_bits());
    }
  }
  return groups;
}

ElementwiseOptions rule_options(const proto::RunConfig& config,
                                std::span<const ParameterSpec> parameters) {
  const proto::OptimizerSection& o = config.optimizer();
  ElementwiseOptions options;
  options.rule = rule_of(o.rule());
  options.hyper = {o.beta1(), o.beta2(), o.epsilon(), o.dampening(), o.nesterov()};
  options.weight_decay = {o.weight_decay(), o.decouple_lr() ? o.learning_rate() : 0};
  options.weight_format = weight_format(config, o.master_weight_bits());
  options.vector_weight_format = weight_format(config, 32);
  options.state_format = state_format(o, o.state());
  options.rounding =
      o.rounding() == proto::RoundingMode::NEAREST ? Rounding::kNearest : Rounding::kStochastic;
  options.seed = config.run().seed();
  options.groups = parameter_groups(config, parameters);
  return options;
}

ReductionOrder reduction_order(const proto::ParallelismSection& parallelism) {
  if (parallelism.order() == proto::ReductionOrder::FLAT) return {};
  return {.kind = ReductionOrder::Kind::kTwoLevel, .group = parallelism.order_group()};
}

RopeScaling rope_scaling(const proto::ModelSection& m) {
  using Kind = RopeScaling::Kind;
  return {.kind = m.rope_scaling() == proto::RopeScalingKind::LLAMA3 ? Kind::kLlama3 : Kind::kNone,
          .factor = m.rope_scaling_factor(),
          .low_frequency_factor = m.rope_low_frequency_factor(),
          .high_frequency_factor = m.rope_high_frequency_factor(),
          .original_positions = m.rope_original_positions()};
}

ShardLayout make_layout(const UpdateRule& rule, const std::vector<ParameterSpec>& parameters,
                        int world_size) {
  std::vector<int64_t> units;
  units.reserve(parameters.size());
  for (const ParameterSpec& parameter : parameters) units.push_back(unit_rows_of(rule, parameter));
  return ShardLayout(parameters, std::move(units), world_size);
}

}  // namespace

LlamaOptions llama_options(const proto::RunConfig& config, int64_t data_vocab_size) {
  const proto::ModelSection& m = config.model();
  LlamaOptions options;
  options.vocab_size = m.vocab_size() > 0 ? m.vocab_size() : data_vocab_size;
  if (data_vocab_size > options.vocab_size) {
    throw Error(ExitCode::kUsage,
                "the data's vocabulary of " + std::to_string(data_vocab_size) +
                    " tokens does not fit the model's " + std::to_string(options.vocab_size),
                "model.vocab_size", "set it to 0 to take the data's");
  }
  options.hidden_size = m.hidden_size();
  options.layers = static_cast<int>(m.layers());
  options.heads = static_cast<int>(m.heads());
  options.kv_heads = static_cast<int>(m.kv_heads() > 0 ? m.kv_heads() : m.heads());
  options.head_dim =
      static_cast<int>(m.head_dim() > 0 ? m.head_dim() : m.hidden_size() / m.heads());
  options.feed_forward_size = m.feed_forward_size();
  options.rope_theta = m.rope_theta();
  options.rope_scaling = rope_scaling(m);
  options.max_position_embeddings = m.max_position_embeddings();
  options.qkv_bias = m.qkv_bias();
  options.norm_epsilon = m.norm_epsilon();
  options.tied_embeddings = m.tied_embeddings();
  options.init_std = m.init_std();
  options.dtype = model_dtype(config);
  validate(options);
  return options;
}

void announce_layers(const LlamaOptions& model, const LayerHooks& hooks, bool backward) {
  for (int layer = 0; layer <= model.layers; ++layer) hooks.call_before_layer(layer);
  if (model.tied_embeddings) hooks.call_before_layer(0);
  hooks.call_before_layer(model.layers + 1);
  if (!backward) return;
  hooks.call_after_layer_backward(model.layers + 1);
  for (int layer = model.layers; layer >= 1; --layer) {
    hooks.call_before_layer(layer);
    hooks.call_after_layer_backward(layer);
  }
  hooks.call_after_layer_backward(0);
}

AttentionScope attention_scope(const proto::RunConfig& config) {
  return config.train().attention() == proto::AttentionScopeKind::DOCUMENT
             ? AttentionScope::kDocument
             : AttentionScope::kSequence;
}

Engine::Engine(Communicator& communicator, const proto::RunConfig& config, int64_t data_vocab_size)
    : resident_before_(metrics::read_process_memory().resident),
      sharding_(sharding_of(config, communicator.world_size())),
      groups_(communicator,
              ShardPlacement(sharding_, communicator.world_size(), communicator.rank())),
      threads_(settle_threads(config, share_processors(communicator))),
      backend_(make_backend(config, threads_.threads)),
      ledger_(std::make_unique<MemoryLedger>(*backend_)),
      model_options_(llama_options(config, data_vocab_size)) {
  const ActivationShape shape{config.train().micro_batch(), config.train().sequence_length(),
                              ActivationUse::kTraining, recompute(config), attention_scope(config)};
  model_ = std::make_unique<Llama>(*ledger_, model_options_, shape);
  rule_ = make_elementwise_rule(*backend_, rule_options(config, model_->parameters()));
  layout_ = std::make_unique<ShardLayout>(
      make_layout(*rule_, model_->parameters(), communicator.world_size()));
  state_ = std::make_unique<ShardedState>(*ledger_, *layout_, *rule_, communicator.rank(),
                                          model_options_.dtype, sharding_);
  plan_ = std::make_unique<BucketPlan>(*layout_, config.parallelism().bucket_bytes(),
                                       static_cast<int64_t>(size_of(model_options_.dtype)));
  gradients_ = std::make_unique<Gradients>(*ledger_, *plan_, communicator.rank(),
                                           GradientFormat{sharding_, model_options_.dtype});
  ShardedOptimizerOptions options;
  options.clip_norm = config.optimizer().clip_norm();
  options.wire = model_options_.dtype;
  options.order = reduction_order(config.parallelism());
  optimizer_ =
      std::make_unique<ShardedOptimizer>(groups_, *ledger_, *state_, *gradients_, *rule_, options);
  model_->bind(optimizer_->model_weights(), gradients_->local());
  allocate_save_staging(config);
  predicted_ = predict(config, communicator.rank(), shape);
}

std::unique_ptr<Backend> Engine::make_backend(const proto::RunConfig& config, int threads) {
  std::unique_ptr<Backend> backend = make_cpu_backend({threads});
  if (config.run().profile() == 0) return backend;
  auto traced = std::make_unique<TracedBackend>(std::move(backend));
  traced_backend_ = traced.get();
  return traced;
}

// Only a save in the middle of a run has anything to go on with while it is written.
void Engine::allocate_save_staging(const proto::RunConfig& config) {
  saves_in_background_ = config.checkpoint().async() && config.checkpoint().every() > 0;
  if (!saves_in_background_) return;
  const auto bytes = static_cast<size_t>(
      std::min(config.checkpoint().staging_bytes(),
               owned_bytes(*layout_, *rule_, state_->placement().own(), model_options_.dtype)));
  void* memory = ledger_->allocate(MemoryClass::kStaging, bytes);
  save_staging_ = {static_cast<std::byte*>(memory), bytes};
}

MemoryTable Engine::predict(const proto::RunConfig& config, int rank,
                            const ActivationShape& shape) const {
  LedgerInputs inputs;
  inputs.format = gradients_->format();
  inputs.wire = model_options_.dtype;
  inputs.order = reduction_order(config.parallelism());
  inputs.bucket_bytes = config.parallelism().bucket_bytes();
  inputs.activation_bytes = activation_bytes(model_options_, shape);
  if (saves_in_background_) inputs.staging_limit = config.checkpoint().staging_bytes();
  inputs.other_bytes = llama_other_bytes(*backend_, model_options_, shape);
  return predict_memory(*layout_, *rule_, rank, inputs);
}

void Engine::initialize(uint64_t seed) {
  optimizer_->initialize([&](int tensor, RowRange rows, std::span<float> out) {
    flashshard::initialize(model_->initialization(tensor), seed, tensor,
                           rows.first * layout_->parameter(tensor).cols, out);
  });
}

LossResult Engine::evaluate(const MicroBatchView* batch) {
  LayerHooks hooks;
  hooks.before_layer = [this](int layer) { optimizer_->before_layer(layer); };
  optimizer_->begin_pass(false);
  if (batch != nullptr) return model_->evaluate(*batch, hooks);
  announce_layers(model_options_, hooks, false);
  return {};
}

void Engine::start_from_weights(const std::string& step_folder, Communicator& communicator) {
  std::optional<checkpoint::CheckpointReader> reader;
  std::optional<checkpoint::MasterReader> masters;
  const auto host = make_cpu_backend({.threads = 1});
  run_and_agree(communicator, [&] {
    const checkpoint::Schema& saved = reader.emplace(step_folder).manifest().schema;
    checkpoint::require_same_shapes(saved, layout_->parameters(), step_folder);
    for (int t = 0; t < layout_->tensors(); ++t) {
      checkpoint::require_weight_dtype(saved, t, model_options_.dtype, step_folder);
    }
    masters.emplace(*reader, *host);
  });
  // The initialization is collective: a rank whose file fails goes through it to the vote.
  std::optional<Failure> failure;
  optimizer_->initialize([&](int tensor, RowRange rows, std::span<float> values) {
    std::ranges::fill(values, 0.0f);
    if (failure) return;
    failure =
        outcome_of([&] { masters->read(tensor, rows, checkpoint::WeightValue::kMaster, values); });
  });
  agree(communicator, failure);
  const checkpoint::LogicalHash read = all_reduce(masters->hash(), communicator);
  run_and_agree(communicator, [&] {
    checkpoint::require_weights_of(*reader, read, checkpoint::WeightValue::kMaster);
  });
}

}  // namespace flashshard
