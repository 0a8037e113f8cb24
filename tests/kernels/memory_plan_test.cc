// SPDX-License-Identifier: Apache-2.0
// What a model and an engine take of a device's memory, and what is said where there is less: with made-up shapes and free memory, no device.
#include "kernels/cuda/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <vector>

#include "base/saturating.h"
#include "kernels/cuda/weight_layout.h"

namespace thermoe::cuda {
namespace {

using kernels::EngineSize;
using kernels::StepSizes;
using ::testing::HasSubstr;
using ::testing::Not;

const std::byte kNoWeights{};

// Shapes of OLMoE-1B-7B without its weights.
struct Shapes {
  explicit Shapes(DType type, int32_t layers = 16) {
    config.layers = layers, config.hidden = 2048, config.heads = config.kv_heads = 16, config.head_dim = 128, config.vocab = 50304;
    config.context = 1 << 20, config.experts = 64, config.slots = 8, config.expert_width = 1024;
    const auto matrix = [](DType of, int64_t rows, int64_t cols) { return WeightMatrix{of, rows, cols, &kNoWeights}; };
    weights.embedding = weights.output = matrix(type, 50304, 2048);
    weights.output_norm.assign(2048, 1);
    weights.layers.resize(static_cast<size_t>(layers));
    for (LayerWeights& layer : weights.layers) {
      layer.attention_norm = layer.expert_norm = weights.output_norm;
      layer.q = layer.k = layer.v = layer.o = matrix(type, 2048, 2048);
      layer.gate = matrix(DType::kF32, 64, 2048);
      layer.experts.assign(64, {matrix(type, 1024, 2048), matrix(type, 1024, 2048), matrix(type, 2048, 1024)});
      experts.emplace_back(layer.experts);
    }
  }
  kernels::PlannedModel model(bool nested = false) const { return {config, weights, experts, nested}; }

  ModelConfig config;
  ModelWeights weights;
  std::vector<std::span<const FfnWeights>> experts;
};

// As the engine's: a block more than its context for each sequence.
StepSizes SizesOf(const EngineSize& size) {
  const int32_t rows = size.prefill_chunk + size.sequences;
  return {SaturatingProduct(size.sequences, int64_t{size.context} / kKvBlock + (size.context % kKvBlock != 0) + 1, kKvBlock), rows * int64_t{200'000}, rows,
          size.sequences, size.context};
}

const OperationRoom kRoom = {
    [](int32_t rows, int32_t in) { return static_cast<size_t>(rows) * static_cast<size_t>(in) * 2; },
    [](int32_t hidden, int32_t, int32_t slots, int32_t rows) { return static_cast<size_t>(rows) * static_cast<size_t>(slots * hidden) * 4; },
    [](int64_t singles, int32_t heads, int32_t head_dim) { return singles * heads * head_dim * 4; },
    [](int64_t rows) { return rows * 64; },
    256,
    [](int32_t rows) { return static_cast<size_t>(rows >= 250 ? 24 << 20 : 0); },
};

int64_t Needed(const Shapes& shapes, const EngineSize& size, const ModelChange& change = {}) {
  return PlanMemory(shapes.model(), SizesOf(size), kRoom, change).total();
}

Status Check(const Shapes& shapes, const EngineSize& size, int64_t free_bytes, bool nested = false) {
  return CheckFits({"a card", free_bytes, int64_t{80} << 30}, shapes.model(nested), size, SizesOf, kRoom);
}

std::string Refusal(const Shapes& shapes, const EngineSize& size, int64_t free_bytes, bool nested = false) {
  const Status status = Check(shapes, size, free_bytes, nested);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("a card has " + std::to_string(free_bytes >> 20) + " of 81920 MiB free but "));
  return status.message();
}

TEST(MemoryPlan, IsTheSumOfWhatIsAllocated) {
  const Shapes shapes(DType::kQ8_0);
  const MemoryPlan plan = PlanMemory(shapes.model(), SizesOf({3, 100, 256}), kRoom);
  // A weight takes a byte, and 32 of them share a binary16 scale; the gate stays in floats.
  const int64_t layer = 4 * 2048 * 2048 + 64 * 3 * 1024 * 2048;
  EXPECT_EQ(plan.weights, (16 * layer + int64_t{50304} * 2048) * 17 / 16 + 16 * 64 * 2048 * 4);
  EXPECT_EQ(plan.vectors, (2 * 16 + 1) * 2048 * 4);
  EXPECT_EQ(plan.embedding, int64_t{50304} * 2048 / 32 * 34);
  EXPECT_EQ(plan.kv, int64_t{3 * 8 * 16} * 16 * 2 * 2048 * 2);  // 8 blocks of 16 positions a sequence, in binary16
  EXPECT_EQ(plan.step, 259 * 200'000);
  EXPECT_EQ(plan.scratch, int64_t{259} * 8 * 2048 * 4);
  EXPECT_EQ(plan.halves, 256 * 2048 * 2);
  EXPECT_EQ(plan.unpacked, 24 << 20);
  EXPECT_EQ(PlanMemory(shapes.model(), SizesOf({3, 100, 128}), kRoom).unpacked, 0);
  EXPECT_EQ(plan.rows, (2 * 259 + 3 * (100 / 16 + 2)) * 4);
  EXPECT_EQ(plan.total(), plan.weights + plan.vectors + plan.embedding + plan.tables + plan.kv + plan.step + plan.scratch + plan.halves + plan.unpacked + plan.rows +
                              kReserveBytes);
}

// The size of nested experts is known before they are made.
TEST(MemoryPlan, NestedExpertsByTheirShapes) {
  const Shapes file(DType::kBF16);
  Shapes made(DType::kBF16);
  for (LayerWeights& layer : made.weights.layers) {
    for (FfnWeights& expert : layer.experts) expert.gate.type = expert.up.type = expert.down.type = DType::kNested8;
  }
  const int64_t planned = PlanMemory(file.model(/*nested=*/true), SizesOf({}), kRoom).weights;
  EXPECT_EQ(planned, PlanMemory(made.model(), SizesOf({}), kRoom).weights);
  EXPECT_LT(planned, PlanMemory(file.model(), SizesOf({}), kRoom).weights * 3 / 5);
}

TEST(MemoryPlan, AllFitsToTheByte) {
  const Shapes shapes(DType::kQ8_0);
  const EngineSize size{8, 4096, 256};
  EXPECT_TRUE(Check(shapes, size, Needed(shapes, size)).ok());
  EXPECT_FALSE(Check(shapes, size, Needed(shapes, size) - 1).ok());
}

TEST(MemoryPlan, SaysHowManySequencesFitAndWhatContext) {
  const Shapes shapes(DType::kQ8_0);
  const EngineSize asked{64, 4096, 256};
  const int64_t free_bytes = Needed(shapes, {29, 4096, 256});
  const std::string text = Refusal(shapes, asked, free_bytes);
  EXPECT_THAT(text, HasSubstr("keys and values of 64 sequences of 4096 tokens"));
  EXPECT_THAT(text, HasSubstr("; 29 sequences of 4096 tokens (--parallel or --batch 29), or 64 sequences of "));
  EXPECT_THAT(text, Not(HasSubstr("layers")));
  EXPECT_THAT(Refusal(shapes, asked, free_bytes - 1), HasSubstr("; 28 sequences of 4096 tokens (--parallel or --batch 28)"));
  // The context that is named fits and the next block of positions does not.
  const size_t at = text.find("--ctx or --window ");
  ASSERT_NE(at, std::string::npos) << text;
  const int32_t context = std::stoi(text.substr(at + 18));
  EXPECT_GT(context, 1000);
  EXPECT_LE(Needed(shapes, {64, context, 256}), free_bytes);
  EXPECT_GT(Needed(shapes, {64, context + 1, 256}), free_bytes);
}

TEST(MemoryPlan, SaysWhatContextOneSequenceMayHave) {
  const Shapes shapes(DType::kQ8_0);
  const std::string text = Refusal(shapes, {1, 1 << 20, 256}, Needed(shapes, {1, 1024, 256}));
  EXPECT_THAT(text, HasSubstr("; one sequence of 1024 tokens (--ctx or --window 1024) would fit"));
  EXPECT_THAT(text, Not(HasSubstr("--parallel")));
}

TEST(MemoryPlan, SaysWhereBothMustShrink) {
  const Shapes shapes(DType::kQ8_0);
  const EngineSize asked{4096, 1 << 20, 256};
  EXPECT_THAT(Refusal(shapes, asked, Needed(shapes, {1, 512, 256})),
              HasSubstr("; one sequence of 512 tokens (--parallel or --batch 1, --ctx or --window 512) would fit"));
}

TEST(MemoryPlan, SaysWhereStepsMustShrink) {
  const Shapes shapes(DType::kQ8_0);
  EXPECT_THAT(Refusal(shapes, {1, 4096, 8192}, Needed(shapes, {1, 4096, 1000})), HasSubstr("; all of it in smaller steps (--prefill-chunk 1000) would fit"));
  EXPECT_THAT(Refusal(shapes, {2, 4096, 8192}, Needed(shapes, {1, 64, 32})), HasSubstr("--ctx or --window 64, --prefill-chunk 32) would fit"));
}

TEST(MemoryPlan, SaysHowManyLayersFitAndWhatTypeHelps) {
  const EngineSize asked{8, 4096, 256}, least{1, 16, 32};
  const Shapes q8(DType::kQ8_0), bf16(DType::kBF16);
  const std::string text = Refusal(q8, asked, Needed(q8, least, {.layers = 13, .at_most = {}}));
  EXPECT_THAT(text, HasSubstr("the weights of 13 of its 16 layers would fit"));
  EXPECT_THAT(text, HasSubstr("all of them from a file of q4_0"));
  EXPECT_THAT(text, Not(HasSubstr("--experts nested")));
  // Experts of 16 bits may be halved when they are loaded.
  const std::string nested = Refusal(bf16, asked, Needed(bf16, least, {.layers = 12, .at_most = {}}));
  EXPECT_THAT(nested, HasSubstr("the weights of 12 of its 16 layers would fit, all of them with experts of 8 bits (--experts nested)"));
  // And where that was asked for already, a smaller file is left, whose other matrices have 8 bits too.
  const int64_t nested_least = PlanMemory(bf16.model(true), SizesOf(least), kRoom).total();
  EXPECT_THAT(Refusal(bf16, asked, nested_least - 1, /*nested=*/true), HasSubstr("all of them from a file of q8_0, with fewer sequences"));
  // What fits so alone, but not beside all that was asked for.
  EXPECT_THAT(Refusal(q8, {4096, 1 << 20, 256}, Needed(q8, least, {.layers = 13, .at_most = {}})),
              HasSubstr("q4_0, with fewer sequences or a shorter context"));
}

TEST(MemoryPlan, SaysThatNothingFits) {
  const std::string text = Refusal(Shapes(DType::kQ4_0), {1, 16, 32}, int64_t{100} << 20);
  EXPECT_THAT(text, HasSubstr("not one of its 16 layers would fit"));
  EXPECT_THAT(text, HasSubstr("take a smaller model or another GPU (--device), or use --backend cpu (or THERMOE_BACKEND=cpu)"));
  EXPECT_FALSE(Check(Shapes(DType::kQ4_0), {1, 16, 32}, 0).ok());
}

// Far more than 64 bits count.
TEST(MemoryPlan, HugeRequestsDoNotWrapAround) {
  Shapes shapes(DType::kQ8_0);
  shapes.config.kv_heads = 4096;
  const EngineSize asked{4096, std::numeric_limits<int32_t>::max(), 8192};
  EXPECT_EQ(Needed(shapes, asked), std::numeric_limits<int64_t>::max());
  const std::string text = Refusal(shapes, asked, int64_t{80} << 30);
  const size_t at = text.find("one sequence of ");
  ASSERT_NE(at, std::string::npos) << text;
  const int32_t context = std::stoi(text.substr(at + 16));
  EXPECT_LE(Needed(shapes, {1, context, 8192}), int64_t{80} << 30);
  EXPECT_GT(Needed(shapes, {1, context + 1, 8192}), int64_t{80} << 30);
}

TEST(Saturating, SumsAndProducts) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(SaturatingProduct(3, int64_t{1} << 40, 5), int64_t{15} << 40);
  EXPECT_EQ(SaturatingProduct(int64_t{1} << 40, int64_t{1} << 40), kMost);
  EXPECT_EQ(SaturatingProduct(int64_t{1} << 40, int64_t{1} << 40, 0), 0);
  EXPECT_EQ(SaturatingSum(kMost - 1, 1), kMost);
  EXPECT_EQ(SaturatingSum(kMost, 1, 5), kMost);
  EXPECT_EQ(SaturatingSum(1, 2, 3), 6);
}

}  // namespace
}  // namespace thermoe::cuda
