// SPDX-License-Identifier: Apache-2.0
// What an engine takes of memory, what is said where there is less, and that it is said before weights are read.
#include "engine/engine_memory.h"

#include <gmock/gmock.h>

#include <limits>

#include "forward/step.h"
#include "support/fixtures.h"

namespace thermoe::testing {
namespace {

using ::testing::HasSubstr;

ModelConfig SmallConfig() {
  ModelConfig config;
  config.layers = 2, config.hidden = 64, config.heads = 4, config.kv_heads = 2, config.head_dim = 16, config.vocab = 100;
  config.context = std::numeric_limits<int32_t>::max(), config.experts = 4, config.slots = 2, config.expert_width = 32;
  return config;
}

int64_t Needed(const ModelConfig& config, const kernels::EngineSize& size) {
  return KvCache::BytesFor(KvShapeOf(config), KvPositions(size.context, size.sequences)) + Workspace::BytesFor(config, MaxRows(size));
}

// What is said to fit does: so many sequences hold their whole context at once, and each may still copy the block that it shares with a fork.
TEST(EngineMemory, SequencesThatFitHoldTheirContext) {
  for (const int32_t context : {1, 16, 33}) {
    constexpr int32_t kSequences = 5;
    const auto cache = KvCache::Create(KvShapeOf(SmallConfig()), KvPositions(context, kSequences));
    ASSERT_TRUE(cache.ok());
    std::vector<KvSequence> all(kSequences);
    for (KvSequence& sequence : all) {
      ASSERT_TRUE((*cache)->Reserve(&sequence, context).ok()) << context;
      (*cache)->Commit(&sequence, context);
    }
    EXPECT_GE((*cache)->free_blocks(), kSequences);
  }
}

TEST(EngineMemory, SaysWhatFitsOnTheHost) {
  const ModelConfig config = SmallConfig();
  const kernels::EngineSize asked{64, 4096, 256};
  EXPECT_TRUE(CheckHostMemory(config, asked, Needed(config, asked)).ok());
  const Status status = CheckHostMemory(config, asked, Needed(config, {29, 4096, 256}));
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("; 29 sequences of 4096 tokens (--parallel or --batch 29), or 64 sequences of "));
  EXPECT_THAT(CheckHostMemory(config, asked, 1000).message(), HasSubstr("free some, or take a smaller model"));
}

TEST(EngineMemory, HugeRequestsDoNotWrapAround) {
  ModelConfig config = SmallConfig();
  config.kv_heads = 4096, config.head_dim = 4096;
  const int64_t positions = KvPositions(std::numeric_limits<int32_t>::max(), 4096);
  EXPECT_EQ(positions, int64_t{4096} * ((int64_t{1} << 27) + 1) * kKvBlock);
  EXPECT_EQ(KvCache::BytesFor(KvShapeOf(config), positions), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(CheckHostMemory(config, {4096, std::numeric_limits<int32_t>::max(), 256}, int64_t{1} << 40).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(KvCache::Create(KvShapeOf(config), positions).status().code(), StatusCode::kResourceExhausted);
}

// A backend that is not there and memory that is too small are known from the headers.
TEST(EngineMemory, LoadRefusesBeforeItReads) {
  EngineOptions engine;
  engine.backend = "none such";
  LoadOptions options;
  options.experts = ExpertStorage::kNested;
  options.engine = &engine;
  bool read = false;
  options.progress = [&read](double) { return read = true; };
  const auto model = Model::Load(FixturePath("olmoe"), options);
  ASSERT_FALSE(model.ok());
  EXPECT_THAT(model.status().message(), HasSubstr("none such"));
  EXPECT_FALSE(read);
  engine.backend = "reference";
  EXPECT_TRUE(Model::Load(FixturePath("olmoe"), options).ok());
  EXPECT_TRUE(read);
}

}  // namespace
}  // namespace thermoe::testing
