// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/choose_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace thermoe::cuda {
namespace {

using ::testing::HasSubstr;

const std::vector<DeviceFacts> kTwo = {{0, "NVIDIA H100 80GB HBM3", "GPU-3c02f5b4-a6d7-ef9b-e3e9-7548166a3abe", 90, 0},
                                       {1, "NVIDIA L4", "GPU-77aa0000-0000-0000-0000-000000000000", 89, 0}};

int Chosen(std::string_view wish) {
  const Result<DeviceFacts> device = ChooseDevice(kTwo, wish);
  return device.ok() ? device->index : -1;
}

TEST(ChooseDevice, ByNumberUuidAndName) {
  EXPECT_EQ(Chosen(""), 0);
  EXPECT_EQ(Chosen("1"), 1);
  EXPECT_EQ(Chosen("GPU-77aa0000-0000-0000-0000-000000000000"), 1);
  EXPECT_EQ(Chosen("gpu-77"), 1);
  EXPECT_EQ(Chosen("H100"), 0);
  EXPECT_EQ(Chosen("l4"), 1);
}

TEST(ChooseDevice, SaysWhatThereIs) {
  for (const char* wish : {"2", "-1", "GPU-99", "NVIDIA", "GPU-", "A100"}) {
    const Result<DeviceFacts> device = ChooseDevice(kTwo, wish);
    ASSERT_FALSE(device.ok()) << wish;
    EXPECT_EQ(device.status().code(), StatusCode::kInvalidArgument) << wish;
    EXPECT_THAT(device.status().message(), HasSubstr("there are 0 (NVIDIA H100")) << wish;
  }
  EXPECT_EQ(ChooseDevice({}, "0").status().code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace thermoe::cuda
